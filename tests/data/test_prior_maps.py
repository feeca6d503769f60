"""Maps of classes beside a data set: picked by name, cut like the image, and checked before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tests.support.data_sets import mask_of, write_labels, write_voc
from wilson.config import Config, DataConfig
from wilson.data.dataset import StepDataset, random_numbers_from
from wilson.data.loading import make_loader, to_batch
from wilson.data.opening import open_source
from wilson.data.sources.prior_maps import Maps, PriorMaps, read_maps, write_maps
from wilson.data.tasks import Task
from wilson.data.transforms import Normalization, TrainingCrop
from wilson.errors import UserError
from wilson.runs.checks import check_maps
from wilson.runs.experiment import prior_maps

SIZE = (64, 96)  # height and width of the images
NEW = ["cat", "dog"]


def write(file: Path, classes: list[str], *values: int, size: tuple[int, int] = (4, 6)) -> None:
    """Constant maps of these values."""
    write_maps(file, Maps(np.stack([np.full(size, value, np.uint8) for value in values]), classes, ""))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_voc(tmp_path / "voc", {"a": mask_of(0, 3, size=SIZE), "b": mask_of(0, 4, size=SIZE)})


def step(root: Path, **options: object) -> StepDataset:
    source = open_source(root, "train")
    task = Task.parse("ant/cat,dog", source.classes)
    options = {"dense": False, "seed": 0, "prior": root / "maps", **options}
    return StepDataset(source, [0, 1], task, 1, TrainingCrop(32), **options)  # type: ignore[arg-type]


def test_maps_are_picked_by_name_in_the_order_of_the_step(root: Path) -> None:
    write(root / "maps" / "a.npz", ["eel", "dog", "cat"], 255, 51, 102)
    write(root / "maps" / "b.npz", ["cat", "dog"], 204, 0)
    loader = make_loader(step(root), 2, 0, torch.device("cpu"))
    batch = to_batch(next(iter(loader)), torch.device("cpu"), Normalization((0.0,) * 3, (1.0,) * 3))
    assert batch["prior"].dtype == torch.float32 and batch["prior"].shape == (2, 2, 8, 8)
    torch.testing.assert_close(batch["prior"][:, :, 3, 3], torch.tensor([[0.4, 0.2], [0.8, 0.0]]))


def test_names_of_the_other_data_set_will_do(root: Path) -> None:
    write(root / "maps" / "a.npz", ["couch"], 7)
    assert PriorMaps(root / "maps", ["a"], ["sofa"]).read("a", (96, 64)).max() == 7


@pytest.mark.parametrize("size", [SIZE, (128, 192), (16, 24)])
def test_maps_are_cut_and_flipped_like_the_image(size: tuple[int, int]) -> None:
    """Of an image that is its own map: two ramps, which tell every place and every scale."""
    rows, columns = (np.linspace(0, 255, n) for n in SIZE)
    ramps = np.stack([np.broadcast_to(columns, SIZE), np.broadcast_to(rows[:, None], SIZE)]).astype(np.uint8)
    image = Image.fromarray(np.moveaxis(np.concatenate([ramps, ramps[:1]]), 0, 2))
    maps = np.stack([np.asarray(Image.fromarray(ramp).resize(size[::-1], Image.Resampling.BILINEAR)) for ramp in ramps])
    transform, slopes = TrainingCrop(48), set()
    for seed in range(12):
        with random_numbers_from(seed):
            pixels, _ = transform(image, None)
        with random_numbers_from(seed):
            found = transform.maps(image, maps)
        assert found.dtype == torch.uint8 and found.shape == (2, 12, 12)
        expected = F.avg_pool2d(pixels[:2].float(), 4)
        assert (found - expected).abs().max() < 9  # of 255; a crop elsewhere or not flipped is off by dozens
        slopes.add(bool(found[0, 0, 0] > found[0, 0, -1]))
    assert slopes == {True, False}


def test_workers_and_epochs_cut_maps_like_images(root: Path) -> None:
    for index, name in enumerate("ab"):
        grey = np.random.default_rng(index).integers(0, 256, (8, 12)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        Image.fromarray(np.stack([grey] * 3, 2)).save(root / "JPEGImages" / f"{name}.jpg", quality=100)
        write_maps(root / "maps" / f"{name}.npz", Maps(np.stack([grey, grey]), NEW, ""))
    dataset = step(root)
    for key in [(0, 0), (3, 0), (3, 1)]:
        sample = dataset[key]
        small = F.avg_pool2d(sample["image"][:1].float(), 4)
        assert (sample["prior"][:1] - small).abs().mean() < 25 < (small - small.mean()).abs().mean()


def test_negatives_need_no_files(root: Path, tmp_path: Path) -> None:
    for name in "ab":
        write(root / "maps" / f"{name}.npz", NEW, 255, 255)
    negatives = open_source(write_voc(tmp_path / "none", {"n": mask_of(0, size=SIZE)}), "train")
    dataset = step(root, negatives=negatives)
    assert dataset[0]["prior"].min() == 255
    assert dataset[len(dataset)]["prior"].shape == (2, 8, 8) and not dataset[len(dataset)]["prior"].any()


def test_missing_files_are_counted(root: Path) -> None:
    write(root / "maps" / "a.npz", NEW, 0, 0)
    with pytest.raises(UserError, match=r"b\.npz: no such file of maps \(1 of 2 images have none\); .*--data\.prior"):
        step(root)
    with pytest.raises(UserError, match="2 images named 'a'"):
        PriorMaps(root / "maps", ["a", "a"], NEW)


def spoil_broken(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 255
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda file: write(file, ["cat", "eel"], 1, 2), "holds no map of dog, but of cat, eel; make the folder anew"),
        (lambda file: write(file, NEW, 1, 2, size=(6, 4)), "maps of 4x6 pixels have not the shape of the image, 96x64"),
        (lambda file: write(file, NEW, 1), r"expected maps uint8 \(N, h, w\).*got uint8 \(1, 4, 6\) and 2"),
        (lambda file: np.savez(file, maps=np.zeros((2, 4, 6)), classes=NEW), "expected maps uint8.*got float64"),
        (lambda file: np.savez(file, maps=np.zeros((2, 4, 6), np.uint8)), "is no file of maps: .*classes"),
        (lambda file: np.savez(file, maps=np.array([{}]), classes=NEW), "is no file of maps: .*allow_pickle"),
        (lambda file: file.write_bytes(b"map"), "is no file of maps"),
        (lambda file: file.write_bytes(file.read_bytes()[:-30]), "is no file of maps"),
        (spoil_broken, "is no file of maps"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line_before_training(root: Path, spoil: object, text: str) -> None:
    for name in "ab":
        write(root / "maps" / f"{name}.npz", NEW, 1, 2)
    check_maps(step(root))
    spoil(root / "maps" / "b.npz")  # type: ignore[operator]
    with pytest.raises(UserError, match=text) as caught:
        check_maps(step(root))
    assert str(caught.value).startswith(str(root / "maps" / "b.npz")) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "image"), [((7, 7), (64, 64)), ((7, 11), (333, 500)), ((11, 7), (500, 333)), ((1, 1), (9, 9))]
)
def test_maps_may_be_of_any_size_of_the_whole_image(
    tmp_path: Path, size: tuple[int, int], image: tuple[int, int]
) -> None:
    write(tmp_path / "a.npz", ["cat"], 3, size=size)
    assert PriorMaps(tmp_path, ["a"], ["cat"]).read("a", image[::-1]).shape == (1, *size)


def test_the_shape_is_that_of_the_upright_image(root: Path) -> None:
    picture = Image.new("RGB", (96, 64))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(root / "JPEGImages" / "a.jpg", exif=exif)
    write_labels(root, ["a cat", "b dog"])
    for name in "ab":
        (root / "SegmentationClass" / f"{name}.png").unlink()
        write(root / "maps" / f"{name}.npz", NEW, 1, 2, size=(6, 4) if name == "a" else (4, 6))
    check_maps(step(root))


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    maps = Maps(np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8), ["ant", "pot plant", "é"], "me")
    write_maps(tmp_path / "below" / "a.npz", maps)
    found = read_maps(tmp_path / "below" / "a.npz")
    assert np.array_equal(found.maps, maps.maps) and found[1:] == maps[1:]
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["a.npz"]


def test_only_methods_that_use_maps_read_them() -> None:
    config = replace(Config(), data=DataConfig(prior="maps"))
    assert prior_maps(config) == Path("maps") == prior_maps(replace(config, method="rasp"))
    assert prior_maps(replace(config, method="cam")) is None and prior_maps(Config()) is None
    never = replace(config.losses, maps=0.0)
    assert prior_maps(replace(config, losses=never)) is None
    assert prior_maps(replace(config, losses=replace(never, prior_use="mix"))) == Path("maps")
