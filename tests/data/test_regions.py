"""Regions beside a data set: cut like the image, and checked before anything is trained; and the command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.data_sets import mask_of, write_voc
from tests.support.tiny_runs import TINY, one_line
from wilson.cli import main
from wilson.data.dataset import StepDataset
from wilson.data.loading import make_loader, to_batch
from wilson.data.opening import open_source
from wilson.data.replay import Replay
from wilson.data.tasks import Task
from wilson.data.transforms import Normalization, TrainingCrop
from wilson.errors import UserError
from wilson.runs.checks import check_maps
from wilson.runs.experiment import Experiment

SIZE = (64, 96)  # height and width of the images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_voc(tmp_path / "voc", {"a": mask_of(0, 3, size=SIZE), "b": mask_of(0, 4, size=SIZE)})


def step(root: Path, **options: object) -> StepDataset:
    source = open_source(root, "train")
    task = Task.parse("ant/cat,dog", source.classes)
    options = {"dense": False, "seed": 0, "regions": root / "regions", **options}
    return StepDataset(source, [0, 1], task, 1, TrainingCrop(32), **options)  # type: ignore[arg-type]


def write(root: Path, name: str, ids: np.ndarray) -> None:
    (root / "regions").mkdir(exist_ok=True)
    Image.fromarray(ids).save(root / "regions" / f"{name}.png")


def test_regions_are_cut_like_the_mask(root: Path) -> None:
    """With the masks, plus 1000, as regions of 16 bits, both come out alike from every crop."""
    source = open_source(root, "train")
    for index, name in enumerate(source.names):
        mask = source.mask(index)
        assert mask is not None
        write(root, name, np.asarray(mask).astype(np.uint16) + 1000)
    with_masks = step(root, dense=True)
    with_masks.mask_channels = torch.arange(256)
    for epoch in range(4):
        for position in range(2):
            sample = with_masks[epoch, position]
            assert sample["regions"].dtype == torch.int32
            torch.testing.assert_close(sample["regions"].long(), sample["mask"] + 1000)
    batch = to_batch(
        next(iter(make_loader(step(root), 2, 0, torch.device("cpu")))),
        torch.device("cpu"),
        Normalization((0.0,) * 3, (1.0,) * 3),
    )
    assert batch["regions"].shape == (2, 32, 32)


def test_ids_of_8_bits_and_of_any_value(root: Path) -> None:
    write(root, "a", np.full(SIZE, 255, np.uint8))
    write(root, "b", np.full(SIZE, 65535, np.uint16))
    data = step(root)
    assert data[0]["regions"].unique().tolist() == [255] and data[1]["regions"].unique().tolist() == [65535]
    check_maps(data)


def test_negatives_and_replayed_images_need_none(root: Path, tmp_path: Path) -> None:
    for name in "ab":
        write(root, name, np.ones(SIZE, np.uint8))
    negatives = open_source(write_voc(tmp_path / "none", {"n": mask_of(0, size=SIZE)}), "train")
    replay = Replay(open_source(root, "train"), (0,), torch.arange(256), 0.25)
    data = step(root, negatives=negatives, replay=replay)
    assert [data[place]["regions"].unique().tolist() for place in range(4)] == [[1], [1], [0], [0]]


@pytest.mark.parametrize(
    ("ids", "line"),
    [
        (np.zeros((9, 9), np.uint8), r"image 'a' is 96x64 pixels, .*a\.png 9x9"),
        (np.eye(64, 96, dtype=np.uint8), r"a\.png: 6080 of 6144 pixels are of no region \(0\).*wilson regions"),
        (np.ones((64, 96, 3), np.uint8), r"a\.png: expected ids of one channel of 8 or 16 bits, got mode RGB"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(root: Path, ids: np.ndarray, line: str) -> None:
    write(root, "a", ids)
    write(root, "b", np.ones(SIZE, np.uint8))
    with pytest.raises(UserError, match=line):
        check_maps(step(root))


def test_a_missing_file_is_counted(root: Path) -> None:
    write(root, "b", np.ones(SIZE, np.uint8))
    with pytest.raises(
        UserError, match=r"a\.png: no such file of regions \(1 of 2 images have none\).*--data\.regions"
    ):
        step(root)


@pytest.mark.parametrize("change", [{"method": "mib"}, {"losses": replace(TINY.losses, merge=False)}])
def test_regions_need_the_merge(change: dict[str, object], tmp_path: Path) -> None:
    config = replace(TINY, data=replace(TINY.data, regions=str(tmp_path)), **change)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"--data\.regions works with the methods wilson and rasp and with the merge"):
        Experiment.open(config)


def test_superpixels_cover_the_image_and_follow_its_colours(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.full((*SIZE, 3), 40, np.uint8)
    pixels[:, 40:] = 200
    Image.fromarray(pixels).save(root / "JPEGImages" / "a.jpg", quality=95)
    command = ["regions", "--root", str(root), "--split", "train", "--out", str(root / "regions"), "--count", "12"]
    assert main(command) == 0
    ids = np.asarray(Image.open(root / "regions" / "a.png")).astype(int)
    assert ids.shape == SIZE and ids.min() == 1 and 6 <= ids.max() <= 24
    assert not set(ids[:, :39].flat) & set(ids[:, 41:].flat)
    check_maps(step(root))
    (root / "regions" / "b.png").unlink()
    kept = (root / "regions" / "a.png").stat().st_mtime_ns
    assert main(command) == 0
    assert (root / "regions" / "b.png").exists() and (root / "regions" / "a.png").stat().st_mtime_ns == kept
    capsys.readouterr()
    assert main([*command[:-1], "0"]) == 2
    assert "--count: expected 1 to 65535 superpixels, got 0" in one_line(capsys)
