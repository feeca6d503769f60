"""Exported models say what the checkpoint says, for any number and size of images."""

import json
import re
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers.conv2d_same import Conv2dSame

import wilson
from tests.support.tiny_runs import CPU, one_line, save_tiny
from wilson.checkpoint import Checkpoint
from wilson.cli import main
from wilson.errors import UserError
from wilson.inference import export
from wilson.inference.exported import Description, Exported
from wilson.models import build_segmenter

HALF = (0.5, 0.5, 0.5)
PARAMETERS = [".pt2", pytest.param(".onnx", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "checkpoint.pt")


@pytest.fixture(scope="module", params=PARAMETERS)
def exported(request, model):
    out = model.with_name(f"model{request.param}")
    assert main(["export", str(model), "--out", str(out)]) == 0
    return out


@torch.no_grad()
def test_logits_are_the_checkpoints_for_images_below_and_above_the_window(model, exported):
    network, original = Exported.read(exported, CPU), Checkpoint(model).model()
    assert network.description == Description(("background", "ant", "bee", "dog"), (0, 1, 2, 4), *((0.5,) * 3,) * 2, 32)
    for shape in ((1, 3, 32, 32), (3, 3, 32, 97), (2, 3, 130, 33), (1, 3, 75, 81)):
        images = torch.randn(shape)
        expected = original(images).logits
        assert torch.allclose(network.logits(images), expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


def test_predict_writes_the_same_masks(model, exported, tmp_path):
    image = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((70, 50)).save(image)
    assert main(["predict", str(image), "--checkpoint", str(exported), "--out", str(tmp_path / "out")]) == 0
    written = np.asarray(Image.open(tmp_path / "out" / "picture.png"))
    expected = wilson.load(model, "cpu").predict(image)
    assert (written == expected).mean() > 0.999  # rounding may turn a pixel between two classes
    assert np.array_equal(written, wilson.load(exported, "cpu").predict(image))


def test_a_damaged_file_is_one_line(exported, tmp_path, capsys):
    data = exported.read_bytes()
    Image.new("RGB", (40, 40)).save(tmp_path / "picture.png")
    for damaged in (data[: len(data) // 2], b"hello"):
        (tmp_path / exported.name).write_bytes(damaged)
        command = ["predict", str(tmp_path / "picture.png"), "--checkpoint", str(tmp_path / exported.name)]
        assert main([*command, "--out", str(tmp_path / "out")]) == 2
        assert "not a whole file of wilson export" in one_line(capsys)


def test_mistakes_are_one_line_and_leave_nothing(model, tmp_path, capsys, monkeypatch):
    for out, text in ((tmp_path / "model.pth", "expected a .pt2"), (model.with_suffix(".onnx"), "there already")):
        (model.with_suffix(".onnx")).touch()
        assert main(["export", str(model), "--out", str(out)]) == 2
        assert text in one_line(capsys)
    assert main(["export", str(tmp_path / "none.pt"), "--out", str(tmp_path / "a.pt2")]) == 2
    assert "no such file" in one_line(capsys)
    assert not list(tmp_path.iterdir())


def test_an_export_that_computes_something_else_is_refused(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "trace", lambda *_: None)
    monkeypatch.setattr(export, "_program", lambda *_: b"")
    shifted = Checkpoint(model).model()
    torch.nn.init.zeros_(shifted.get_parameter("classifiers.0.weight"))
    wrong = Exported(Description.of(Checkpoint(model)), lambda images: shifted(images).logits)
    monkeypatch.setattr(Exported, "parse", lambda *_: wrong)
    assert main(["export", str(model), "--out", str(tmp_path / "a.pt2")]) == 2
    assert "differs from" in one_line(capsys) and not list(tmp_path.iterdir())


@torch.no_grad()
def test_tensorflows_padding_is_kept():
    convs = [Conv2dSame(4, 6, size, stride=2, groups=2) for size in (3, 5)]
    convs += [Conv2dSame(4, 6, size, dilation=dilation) for size in (2, 3) for dilation in (1, 2)]
    convs += [Conv2dSame(4, 6, 2, stride=2, dilation=2)]
    assert not export.SamePadding.serves(Conv2dSame(4, 6, 1, stride=2))
    for conv in convs:
        assert export.SamePadding.serves(conv)
        for shape in ((2, 4, 8, 9), (2, 4, 9, 8), (1, 4, 7, 7), (1, 4, 6, 6)):
            x = torch.randn(shape)
            assert torch.allclose(export.SamePadding(conv)(x), conv(x), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize(
    ("name", "stride"),
    [("convnext_atto", 16), ("eva02_tiny_patch14_224", 14), ("pvt_v2_b0", 16), ("vit_small_patch32_224", 32)],
)
def test_backbones_of_every_kind(name, stride, suffix):
    """A dilated one with TensorFlow's padding, with rotary embeddings, with stages, and with patches of 32."""
    network = build_segmenter(name, stride, "none", 8, [3], 64, (1, 2, 3)).eval()
    program = export.trace(network, 64)
    description = Description(classes=("background", "a", "b"), ids=(0, 1, 2), mean=HALF, std=HALF, crop=64)
    data = export._onnx(program, description) if suffix == ".onnx" else export._program(program, description)
    difference, largest = export.compare(network, Exported.parse(data, suffix, CPU), 64)
    assert difference <= export.TOLERANCE * largest


def test_windows_are_refused():
    network = build_segmenter("swin_tiny_patch4_window7_224", 16, "none", 8, [3], 64, (1, 2, 3))
    with pytest.raises(UserError, match="windows of swin_tiny"):
        export.trace(network, 64)


def test_metadata_is_plain_json(exported):
    if exported.suffix == ".onnx":
        import onnx

        (text,) = (entry.value for entry in onnx.load(exported).metadata_props if entry.key == "wilson")
        graph = onnx.load(exported).graph
        axes = [[axis.dim_param for axis in v.type.tensor_type.shape.dim] for v in (*graph.input, *graph.output)]
        assert axes == [["batch", "", "height", "width"], ["batch", "", "feature_height", "feature_width"]]
        inner = {axis.dim_param for value in graph.value_info for axis in value.type.tensor_type.shape.dim}
        assert not any(re.search(r"\bs\d+", name) for name in inner)
    else:
        with zipfile.ZipFile(exported) as file:
            (text,) = (file.read(name) for name in file.namelist() if name.endswith("extra/wilson"))
    assert json.loads(text)["classes"] == ["background", "ant", "bee", "dog"]
