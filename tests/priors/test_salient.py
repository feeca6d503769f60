"""Saliency maps from an ONNX file: what the network sees, what becomes of its output, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.data_sets import mask_of, write_voc
from tests.support.tiny_runs import one_line
from wilson.cli import main
from wilson.data.images import read_image
from wilson.errors import UserError
from wilson.priors.salient import Salient

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def network(path: Path, operator: str = "ReduceMax", shape: tuple[int | str, ...] = (1, 3, 16, 8)) -> Path:
    """The highest channel at each pixel."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    axes = helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [1])
    node = helper.make_node(operator, ["image", "axes"], ["map"], keepdims=1)
    given = helper.make_tensor_value_info("image", kind, shape)
    made = helper.make_tensor_value_info("map", kind, (1, 1, *shape[2:]))
    graph = helper.make_graph([node], "net", [given], [made], [axes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_a_map_is_the_networks_scaled_to_the_image(tmp_path: Path) -> None:
    """One half of the image is darker; its highest normalised channel is the lowest of the map."""
    pixels = np.full((32, 16, 3), 100, np.uint8)
    pixels[16:] = (20, 30, 40)
    look = Salient(network(tmp_path / "net.onnx"))
    assert (look.height, look.width) == (16, 8)
    found = look(Image.fromarray(pixels))
    assert found.shape == (32, 16) and found.dtype == np.uint8
    assert found.min() < 5 and found.max() > 250
    assert found[:12].min() > 200 and found[20:].max() < 50  # the edge rings a little


def test_what_the_network_sees(tmp_path: Path) -> None:
    """Values over the highest of the image, less ImageNet's mean, over its deviation; channels first."""
    look = Salient(network(tmp_path / "net.onnx"))
    seen = []

    class Session:
        def run(self, _: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
            seen.append(given["image"])
            return [given["image"][:, :1]]

    look.session = Session()
    look(Image.fromarray(np.full((16, 8, 3), (200, 100, 50), np.uint8)))
    (image,) = seen
    expected = (torch.tensor([1, 0.5, 0.25]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(torch.tensor(image), expected[None, :, None, None].expand(1, 3, 16, 8))


def test_command_fills_a_folder_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = write_voc(tmp_path / "voc", {"a": mask_of(0, 1), "b": mask_of(2, 0)}), tmp_path / "maps"
    file = network(tmp_path / "net.onnx", shape=(1, 3, "height", "width"))
    command = ["saliency", "--network", str(file), "--root", str(root), "--split", "train", "--out", str(out)]
    assert main(command) == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "b.png"]
    image = read_image(root / "JPEGImages" / "a.jpg")
    with Image.open(out / "a.png") as made:
        assert made.mode == "L" and made.size == image.size
    (out / "b.png").unlink()
    before = (out / "a.png").stat().st_mtime_ns
    assert main(command) == 0
    assert (out / "b.png").is_file() and (out / "a.png").stat().st_mtime_ns == before
    (tmp_path / "text.onnx").write_text("no network")
    assert main([*command[:2], str(tmp_path / "text.onnx"), *command[3:]]) == 2
    assert "not a network in ONNX" in one_line(capsys)


def test_networks_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        Salient(tmp_path / "none.onnx")
    with pytest.raises(UserError, match=r"takes \[\(1, 4, 16, 8\)\]; expected one image \(1, 3, S, S\)"):
        Salient(network(tmp_path / "four.onnx", shape=(1, 4, 16, 8)))
