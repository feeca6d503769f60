"""Maps from a classifier: its head at every position, ImageNet's classes for ours, and the folder that is filled."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tests.support.data_sets import mask_of, write_text, write_voc
from tests.support.tiny_runs import one_line
from wilson.cli import main
from wilson.data.names import VOC_CLASSES
from wilson.data.sources.prior_maps import PriorMaps, read_maps
from wilson.errors import UserError
from wilson.priors.head import Head, class_maps, dense_logits, open_classifier
from wilson.priors.hyponyms import hyponyms, numbers

MODEL = "test_efficientnet.r160_in1k"  # of timm, made for tests: 0.4 million weights


def classifier(name: str) -> Any:
    """A model with random weights, the same in every call."""
    torch.manual_seed(0)
    return timm.create_model(name).eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "head.pth"
    torch.save(classifier(MODEL).state_dict(), file)
    return file


@pytest.mark.parametrize("name", [MODEL, "test_resnet.r160_in1k", "test_convnext.r160_in1k", "mobilenetv3_small_050"])
def test_the_head_at_every_position(name: str) -> None:
    """Of an image of one position the logits are the model's own, whatever its head does after pooling."""
    model = classifier(name)
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert model.forward_features(image).shape[2:] == (1, 1)
        torch.testing.assert_close(dense_logits(model, image)[:, :, 0, 0], model(image))


def test_logits_are_not_pooled() -> None:
    """The head of this model is linear, so the mean of its logits over positions is that of the pooled features."""
    model = classifier(MODEL)
    image = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        logits = dense_logits(model, image)
        assert logits.shape == (1, 1000, 3, 2) and logits.std((2, 3)).min() > 0
        torch.testing.assert_close(logits.mean((2, 3)), model(image))


def test_class_maps_are_those_of_the_equations() -> None:
    s = torch.randn(6, 2, 3, dtype=torch.float64) * 4
    inside, outside = s[[1, 4]].exp().sum(0), s[[0, 2, 3, 5]].exp().sum(0)
    maps = class_maps(s, [[1, 4], [0]], "odds")
    torch.testing.assert_close(maps[0], 1 / (1 + (outside / inside) ** (1 / 3)))
    maps = class_maps(s, [[1, 4], [0]], "min-max")
    torch.testing.assert_close(maps[1], (s[0] - s[0].min()) / (s[0].max() - s[0].min()))
    highest = s[[1, 4]].max(0).values
    torch.testing.assert_close(maps[0], (highest - highest.min()) / (highest.max() - highest.min()))
    assert not class_maps(torch.ones(6, 2, 3), [[0]], "min-max").any()


def test_the_whole_image_is_seen_at_its_shape(weights: Path) -> None:
    head = Head(MODEL, weights, [[339], [151, 152]])
    for size, expected in (((300, 300), (2, 7, 7)), ((500, 333), (2, 7, 11)), ((20, 400), (2, 42, 7))):
        maps = head(Image.new("RGB", size))
        assert maps.shape == expected and 0 <= maps.min() <= maps.max() <= 1


def test_weights_by_the_names_of_another_library(weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights, weights_only=True)
    other = {f"_{number}": value for number, (name, value) in enumerate(state.items()) if "num_batches" not in name}
    torch.save(other, tmp_path / "other.pth")
    ours, theirs = (open_classifier(MODEL, file).state_dict() for file in (weights, tmp_path / "other.pth"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    torch.save(dict(list(other.items())[:-2]), tmp_path / "headless.pth")
    with pytest.raises(UserError, match=r"headless\.pth do not fit.*missing"):
        open_classifier(MODEL, tmp_path / "headless.pth")


def test_every_class_of_voc_has_its_kinds() -> None:
    found = hyponyms(VOC_CLASSES[1:])
    assert list(found) == list(VOC_CLASSES[1:])
    assert found["horse"] == numbers("sorrel", "") and found["dog"] == [*range(151, 269)]
    named = {"dog": ("Chihuahua", "Mexican hairless"), "bird": ("cock", "albatross"), "sheep": ("ram", "bighorn"),
             "cat": ("tabby", "Egyptian cat"), "bus": ("minibus", "trolleybus"), "boat": ("canoe", "yawl")}  # fmt: skip
    for name, ends in named.items():
        assert numbers(", ".join(ends), "") == [found[name][0], found[name][-1]]
    assert hyponyms(["couch", "zebra"]) == {"couch": [831]}


def test_a_file_names_other_kinds(tmp_path: Path) -> None:
    write_text(tmp_path / "kinds.txt", ["# ours", "zebra: 340", "", "horse: sorrel, 340, 345-346"])
    assert hyponyms(["zebra", "horse", "cow"], tmp_path / "kinds.txt") == {
        "zebra": [340], "horse": [339, 340, 345, 346], "cow": [345],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "text"),
    [("zebra 340", "expected NAME: ImageNet classes"), ("zebra: zebbra", "no class 'zebbra'; did you mean 'zebra'"),
     ("zebra: 1000", "expected numbers from 0 to 999, got '1000'"), ("zebra: 9-3", "got '9-3'")],
)  # fmt: skip
def test_a_file_with_a_mistake(tmp_path: Path, line: str, text: str) -> None:
    write_text(tmp_path / "kinds.txt", ["", line])
    with pytest.raises(UserError, match=f"kinds.txt, line 2: .*{text}"):
        hyponyms(["zebra"], tmp_path / "kinds.txt")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    masks = {"a": mask_of(0, 1, size=(40, 60)), "b": mask_of(0, 2, size=(60, 40))}
    return write_voc(tmp_path / "voc", masks, classes=("background", "horse", "dog", "eel"))


def command(root: Path, weights: Path, *more: str) -> list[str]:
    out = ["--out", str(root / "maps"), "--root", str(root), "--split", "train"]
    return ["prior", "head", *out, "--model", MODEL, "--weights", str(weights), *more]


def test_the_command_fills_a_folder_and_goes_on(root: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(root, weights)) == 0
    assert "no maps of eel" in capsys.readouterr().out
    maps, classes, _ = read_maps(root / "maps" / "a.npz")
    assert classes == ["horse", "dog"] and maps.shape == (2, 7, 10)  # 224 x 320 at stride 32
    look = Head(MODEL, weights, [[339], range(151, 269)])
    expected = (look(Image.open(root / "JPEGImages" / "a.jpg")) * 255).round().numpy().astype(np.uint8)
    assert np.array_equal(maps, expected)
    assert PriorMaps(root / "maps", ["a", "b"], ["dog"]).read("b", (40, 60)).shape == (1, 10, 7)
    kept = (root / "maps" / "a.npz").stat().st_mtime_ns
    (root / "maps" / "b.npz").unlink()
    assert main(command(root, weights)) == 0
    assert (root / "maps" / "a.npz").stat().st_mtime_ns == kept and (root / "maps" / "b.npz").is_file()


def test_images_that_cannot_be_read_are_counted(root: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "JPEGImages" / "a.jpg").write_text("no image")
    assert main(command(root, weights)) == 0
    assert "no maps of 1 images, as they cannot be read; the first: " in capsys.readouterr().out
    assert [path.name for path in (root / "maps").iterdir()] == ["b.npz"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--kind", "min-max"), "a.npz: holds maps of horse, dog, made by .* give another --out"),
        (("--classes", "horse"), "a.npz: holds maps of horse, dog, made by .*"),
        (("--classes", "eel"), "no ImageNet class is known for eel; .*--hyponyms"),
        (("--classes", "cod"), "--classes: unknown class 'cod'"),
        (("--size", "112"), "--size: expected at least 224, got 112"),
        (("--model", "no_such_model"), "--model no_such_model: .*give a timm model"),
        (("--model", "resnet18"), "do not fit"),
    ],
)
def test_a_mistake_is_one_line(
    root: Path, weights: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], text: str
) -> None:
    assert main(command(root, weights)) == 0
    capsys.readouterr()
    assert main(command(root, weights, *options)) == 2
    line = one_line(capsys)
    assert re.search(text, line), line


def test_a_network_without_maps_is_refused(tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(classifier("test_vit.r160_in1k").state_dict(), tmp_path / "vit.pth")
    options = ["--out", str(tmp_path / "maps"), "--root", str(root), "--split", "train"]
    assert (
        main(["prior", "head", *options, "--model", "test_vit.r160_in1k", "--weights", str(tmp_path / "vit.pth")]) == 2
    )
    assert "choose a convolutional one" in one_line(capsys)
