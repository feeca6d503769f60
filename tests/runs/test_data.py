"""What a run does with the data that its options name."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import get_worker_info

from tests.support import tiny_runs
from tests.support.data_sets import (
    box,
    mask_of,
    write_image,
    write_instances,
    write_labels,
    write_stuff_maps,
    write_text,
    write_voc,
)
from tests.support.tiny_runs import one_line
from wilson.cli import main, parse
from wilson.config import RECIPES, Config
from wilson.data.names import COCO_CLASSES, COCO_IDS, VOC_CLASSES
from wilson.data.sources.synthetic import Synthetic
from wilson.errors import UserError
from wilson.runs.checks import check_single_class
from wilson.runs.experiment import Experiment
from wilson.runs.loading_speed import bench, images_per_second, workers_for
from wilson.runs.run import learned_from

TINY = tiny_runs.options(tiny_runs.QUICK)


def configured(*options: str) -> Config:
    command: Any = parse(["run", *TINY, *options])
    return command.config


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    size = ["--train-images", "42", "--val-images", "6", "--size", "32"]
    assert main(["data", "export", "--out", str(root / "all"), *size]) == 0
    assert main(["data", "export", "--out", str(root / "negatives"), *size, "--without", "zigzag"]) == 0
    return root


def test_a_single_class_is_refused_without_negatives_only(exported: Path) -> None:
    task = ("--task", "1,2,3,4,5/6")
    with pytest.raises(UserError, match=r"single class zigzag.*--data.negatives FOLDER.*--data.prior"):
        check_single_class(Experiment.open(configured(*task)), [0, 1])
    negatives = ("--data.negatives", str(exported / "negatives" / "JPEGImages"))
    for options in (negatives, ("--method", "mib"), ("--method", "offline")):
        check_single_class(Experiment.open(configured(*task, *options)), [0, 1])


def test_old_labels_lift_the_refusal_of_a_single_class_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    check_single_class(Experiment.open(configured("--task", "1,2,3,4,5/6", "--all-labels")), [0, 1])
    warning = capsys.readouterr().out
    assert warning.startswith("warning: step 1 ") and "single class zigzag" in warning and "12.2" in warning


def test_maps_lift_the_refusal_of_a_single_class_with_a_warning(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = ("--data.root", str(exported / "all"), "--task", "1,2,3,4,5/6", "--data.prior", str(exported))
    check_single_class(Experiment.open(configured(*task)), [0, 1])
    warning = capsys.readouterr().out
    assert warning.startswith("warning: step 1 ") and "single class zigzag" in warning and "28.6" in warning
    check_single_class(Experiment.open(configured(*task, "--all-labels")), [0, 1])
    assert capsys.readouterr().out == warning
    for options in (("--method", "finetune"), ("--losses.maps", "0")):
        with pytest.raises(UserError, match=r"single class zigzag.*--data\.prior"):
            check_single_class(Experiment.open(configured(*task, *options)), [0, 1])


def test_negatives_are_mixed_into_incremental_steps_only(exported: Path) -> None:
    negatives = ("--data.negatives", str(exported / "negatives" / "JPEGImages"))
    experiment = Experiment.open(configured("--task", "1,2,3,4,5/6", *negatives))
    step = experiment.training_set(1)
    rows = [step[key] for key in list(step.sampler(8))[:8]]
    assert [row["labels"][-1].item() for row in rows] == [1] * 6 + [0] * 2
    base = experiment.training_set(0)
    assert len(base.sampler(8)) == len(base)
    dense = Experiment.open(configured("--task", "1,2,3,4,5/6", "--method", "mib", *negatives)).training_set(1)
    assert len(dense.sampler(8)) == len(dense)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "none d,e"),
        (("--protocol", "overlap"), "none a,d,e,g"),
        (("--all-labels",), "none d"),
        (("--data.negatives", "more"), "none more d,e"),
        (("--method", "mib"), ""),
        (("--data.no-find-negatives",), ""),
    ],
)
def test_negatives_are_found_where_the_labels_tell(tmp_path: Path, options: tuple[str, ...], expected: str) -> None:
    held = {"a": (0, 3), "b": (0, 2), "c": (1, 2), "d": (0, 5), "e": (1, 0), "f": (2, 255), "g": (1, 3), "h": (2, 4)}
    root = write_voc(tmp_path / "set", {name: mask_of(*ids, size=(40, 40)) for name, ids in held.items()})
    write_labels(root, ["none"])  # an image without a mask that is known to show nothing
    write_image(root / "JPEGImages" / "none.jpg", np.zeros((40, 40, 3)))
    write_text(root / "ImageSets" / "Segmentation" / "train.txt", [*held, "none"])
    write_image(tmp_path / "more" / "more.png", np.zeros((40, 40, 3)))
    options = tuple(str(tmp_path / word) if word == "more" else word for word in options)
    lists = ("--data.root", str(root), "--data.val-split", "train", "--data.train-split", "train")
    task = ("--task", "ant/bee,dog/cat", "--data.find-negatives")  # eel (5) is in no step
    experiment = Experiment.open(configured(*task, *lists, "--protocol", "disjoint", *options))
    negatives = experiment.training_set(1).negatives
    found = [] if negatives is None else negatives.names
    assert set(found) == set(expected.replace(" ", ",").split(",")) - {""}
    for index, name in enumerate(found):
        assert negatives is not None and negatives.image(index).size == (40, 40)
        assert negatives.class_ids(index) == (frozenset(held.get(name, ())) - {0, 255})


def test_found_negatives_serve_a_single_class_and_are_counted(exported: Path) -> None:
    options = ("--data.root", str(exported / "all"), "--task", "1,2,3,4,5/6", "--data.find-negatives")
    check_single_class(Experiment.open(configured(*options)), [0, 1])
    step = Experiment.open(configured(*options)).training_set(1)
    assert step.negatives is not None
    assert (
        learned_from(step, 8) == f"{len(step)} images and {len(step.negatives.names)} negatives (2 in each batch of 8)"
    )
    assert len(step.negatives.names) > 10, "most images show no zigzag"


def test_labels_without_a_class_of_the_step_are_refused_before_anything_is_trained(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(8):
        write_image(
            tmp_path / "own" / ("zigzag" if number % 2 else "dots") / f"{number}.png", np.full((40, 50, 3), number)
        )
    options = ["--data.root", str(exported / "all"), "--data.labels", str(tmp_path / "own")]
    command = ["run", *TINY, *options, "--out", str(tmp_path / "run"), "--task"]
    assert main([*command, "1,2/zigzag,dots,rings"]) == 2
    line = one_line(capsys)
    assert "step 1" in line and "has the label rings" in line and "leave the class out of the task" in line
    assert not (tmp_path / "run").exists()


def test_masks_without_a_class_of_the_step_train_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = {f"{i}": mask_of(0, 1, *((2,) if i < 8 else ()), size=(40, 40)) for i in range(12)}
    root = write_voc(tmp_path / "set", masks)
    options = ["--data.root", str(root), "--data.val-split", "train", "--task", "ant,cat/bee,dog"]
    options += ["--data.find-negatives", "--protocol", "overlap"]
    assert main(["run", *TINY, *options, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "warning: no training image holds cat: it cannot be learned" in printed
    assert "warning: no training image holds dog: it cannot be learned" in printed
    steps = json.loads((tmp_path / "run" / "results.json").read_text())["steps"]
    assert [step["training"] for step in steps] == [
        {"images": 12, "negatives": 0, "negatives_in_batch": 0, "absent": ["cat"]},
        {"images": 8, "negatives": 4, "negatives_in_batch": 2, "absent": ["dog"]},
    ]


def test_labels_of_ones_own_images_take_the_place_of_the_data_sets(exported: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("zigzag", "dots", "rings")):
        write_image(tmp_path / name / "1.png", np.full((40, 50, 3), number))
    experiment = Experiment.open(configured("--data.root", str(exported / "all"), "--data.labels", str(tmp_path)))
    step = experiment.training_set(1)
    assert {step[i]["name"] for i in range(len(step))} == {"zigzag/1", "dots/1"}
    assert "mask" not in step[0] and step.labels.sum() == 2
    assert len(experiment.training_set(0)) > 20


def test_images_of_the_validation_list_are_not_trained_on(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = exported / "all" / "ImageSets" / "Segmentation" / "image_labels.txt"
    options = ("--data.root", str(exported / "all"), "--data.labels", str(labels))
    negatives = ("--data.negatives", str(exported / "all" / "JPEGImages"))
    experiment = Experiment.open(configured(*options, *negatives))
    tested = set(experiment.validation.names)
    assert len(tested) == 6
    assert len(experiment.incremental.names) == 42 and not tested & set(experiment.incremental.names)
    assert experiment.negatives is not None and not tested & set(experiment.negatives.names)
    printed = capsys.readouterr().out
    assert f"{labels}: 6 of 48 images are left out, as the validation list holds them" in printed
    assert "JPEGImages: 6 of 48 images are left out" in printed

    (tmp_path / "bee.txt").write_text(f"{experiment.validation.names[0]} zigzag\n")
    with pytest.raises(UserError, match="all 1 images are in the validation list"):
        Experiment.open(configured("--data.root", str(exported / "all"), "--data.labels", str(tmp_path / "bee.txt")))


def test_images_of_ones_own_without_a_class_are_negatives(exported: Path, tmp_path: Path) -> None:
    for number in range(8):
        write_image(tmp_path / f"{number}.png", np.zeros((40, 50, 3)))
    rows = [f"{number}.png,{int(number < 6)}" for number in range(8)]
    (tmp_path / "labels.csv").write_text("\n".join(["image,zigzag", *rows]))
    negatives = ("--data.negatives", str(exported / "negatives" / "JPEGImages"))
    labels = ("--task", "1,2,3,4,5/6", "--data.labels", str(tmp_path / "labels.csv"))
    experiment = Experiment.open(configured(*labels))
    check_single_class(experiment, [0, 1])
    step = experiment.training_set(1)
    samples = [step[key] for key in step.sampler(8)]
    assert [sample["labels"][-1].item() for sample in samples] == [1] * 6 + [0] * 2
    assert {sample["name"] for sample in samples} == set("01234567")
    both = Experiment.open(configured(*labels, *negatives)).negatives
    assert both is not None and len(both.names) == 2 + len(list((exported / "negatives" / "JPEGImages").iterdir()))


def coco_to_voc(root: Path) -> list[str]:
    """COCO with the 60 classes that VOC lacks in every image, and VOC; the options that name them."""
    values = {name: category - 1 for name, category in zip(COCO_CLASSES[1:], COCO_IDS, strict=True)}
    shared = {"person": 0, "dog": 17}
    others = np.array([values[name] for name in ("truck", "zebra", "oven", "vase")], np.uint8)
    for split, count in (("train2017", 10), ("val2017", 3)):
        maps = {
            f"{split}{i}": np.kron(np.roll(others, i).reshape(2, 2), np.ones((20, 20), np.uint8)) for i in range(count)
        }
        maps["with_voc"] = np.full((40, 40), shared["dog"], np.uint8)
        write_stuff_maps(root / "coco", split, maps)
    dog, cat = VOC_CLASSES.index("dog"), VOC_CLASSES.index("cat")
    masks = {f"v{i}": np.kron([[0, dog], [cat, 255]], np.ones((20, 20))).astype(np.uint8) for i in range(10)}
    write_voc(root / "voc", masks, classes=None, lists={"train_aug": list(masks), "val": ["v0", "v1"]})
    task = ["--task", "coco-to-voc", "--protocol", "disjoint", "--data.train-split", "train2017"]
    roots = ["--data.root", str(root / "coco"), "--data.step-root", str(root / "voc")]
    return [*task, *roots, "--data.val-split", "val2017"]


def test_coco_to_voc_learns_from_both_data_sets(tmp_path: Path) -> None:
    options = coco_to_voc(tmp_path)
    experiment = Experiment.open(configured(*options))
    base, step = experiment.training_set(0), experiment.training_set(1)
    assert len(base) == 10, "the image with a class of VOC belongs to no base step"
    assert base.labels.shape[1] == 60 and base.labels.sum() == 40
    names = experiment.task.class_names(1)
    assert [names[i + 1] for i in np.flatnonzero(step.labels[0])] == ["cat", "dog"]
    others = experiment.step_validation_set(1)
    assert others is not None and len(others) == 2 and experiment.step_validation_set(0) is None
    assert {names[i] for i in others[0]["mask"].unique().tolist() if i != 255} == {"background", "cat", "dog"}

    assert main(["run", *TINY, *options, "--out", str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())["steps"]
    assert len(results[1]["classes"]) == 81
    assert results[1]["iou"]["zebra"] is not None and results[1]["iou"]["cat"] is None
    on_voc = results[1]["step_validation"]
    assert on_voc["iou"]["zebra"] is None and on_voc["iou"]["cat"] is not None and on_voc["miou"]["old"] is None
    out = tmp_path / "voc.json"
    checkpoint = str(tmp_path / "run" / "step-1" / "checkpoint.pt")
    assert main(["evaluate", checkpoint, "--root", str(tmp_path / "voc"), "--split", "val", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["iou"] == on_voc["iou"]


def test_recipe_of_coco_to_voc_is_the_published_one() -> None:
    config = RECIPES["coco-voc"]
    assert (config.task, config.protocol) == ("coco-to-voc", "disjoint")
    assert (config.data.crop, config.data.test_crop) == (448, 512)
    assert (config.model.backbone, config.model.stride, config.losses.alpha) == ("wide_resnet38_a2", 8, 0.9)
    assert (config.base.epochs, config.step.epochs, config.for_step(1).warmup) == (30, 30, 5)
    assert (config.step.lr_encoder, config.step.lr_head, config.step.batch) == (0.001, 0.01, 24)


def test_a_run_learns_from_instances(tmp_path: Path) -> None:
    images = {
        f"{i}.jpg": [{"category_id": 1 + 6 * (i % 2), "segmentation": box(0, 0, 20, 30), "area": 600}] for i in range(8)
    }
    for split in ("train2017", "val2017"):
        write_instances(tmp_path, split, images, size=(40, 40))
    options = ["--data.root", str(tmp_path), "--data.train-split", "train2017", "--data.val-split", "val2017"]
    command = ["train", *TINY, *options, "--task", "person,train/toothbrush", "--out", str(tmp_path / "run")]
    assert main(command) == 0
    iou = json.loads((tmp_path / "run" / "results.json").read_text())["steps"][0]["iou"]
    assert list(iou) == ["background", "person", "train"] and None not in iou.values()


def test_corrupt_images_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    size = ["--train-images", "42", "--val-images", "6", "--size", "32"]
    assert main(["data", "export", "--out", str(root), *size]) == 0
    for name in ("train_00001", "train_00002", "val_00003"):
        file = root / "JPEGImages" / f"{name}.jpg"
        file.write_bytes(file.read_bytes()[:-200])
    command = ["train", *TINY, "--data.root", str(root), "--out", str(tmp_path / "run")]
    assert main(command) == 2
    assert "JPEGImages/train_0000" in capsys.readouterr().err
    assert main([*command, "--data.skip-corrupt", "--overwrite"]) == 0
    (entry,) = json.loads((tmp_path / "run" / "results.json").read_text())["steps"]
    assert entry["skipped"] == {"training": 2, "validation": 1}
    assert "2 of 42 images are left out" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["wilson", "mib", "joint", "offline"])
def test_images_left_out_are_counted_where_they_would_be_trained_on(
    exported: Path, tmp_path: Path, method: str
) -> None:
    root, own = tmp_path / "data", tmp_path / "own"
    shutil.copytree(exported / "all", root)
    file = root / "JPEGImages" / "train_00001.jpg"
    file.write_bytes(file.read_bytes()[:-200])
    for number, name in enumerate(("zigzag/1", "zigzag/2", "zigzag/3", "none/1", "none/2")):
        write_image(own / f"{name}.png", np.full((40, 50, 3), number))
    for name in ("zigzag/1", "zigzag/2", "none/1"):
        (own / f"{name}.png").write_text(f"no PNG, {name}")
    options = ["--data.root", str(root), "--data.skip-corrupt", "--method", method, "--task", "1,2,3,4,5/6"]
    if method != "mib":
        options += ["--data.labels", str(own)]
        shutil.move(own / "none", tmp_path / "none")
    options += ["--data.negatives", str(tmp_path / "none" if method != "mib" else own / "none")]
    step = 0 if method == "offline" else 1
    trained = {"training": 2, "negatives": 1} if method == "wilson" else {"training": 1}
    assert Experiment.open(configured(*options)).skipped(step) == {**trained, "validation": 0}


def test_a_data_worker_that_dies_ends_the_run_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Synthetic.image

    def killed(self: Synthetic, index: int) -> object:
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
        return image(self, index)

    monkeypatch.setattr(Synthetic, "image", killed)
    assert main(["train", *TINY, "--data.workers", "1", "--out", str(tmp_path / "run")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("wilson: ")]
    assert len(lines) == 1 and "process that loads images died" in lines[0] and "--data.workers" in lines[0]


def test_bench_answers_with_what_was_measured() -> None:
    rates = {0: 50.0, 1: 40.0, 2: 70.0, 4: 100.0}
    assert [workers_for(need, rates) for need in (30, 45, 60, 99, 101, 250)] == [0, 0, 2, 4, 5, 10]
    assert workers_for(101, {0: 50.0}) == 3


def test_bench_does_not_count_what_workers_loaded_before_its_clock() -> None:
    class Loader:
        num_workers, taken, restarts = 3, 0, 0

        def __iter__(self) -> Iterator[None]:
            self.restarts += 1
            for _ in range(5):
                time.sleep(0.02 if self.taken >= self.num_workers else 0)
                self.taken += 1
                yield

    loader: Any = Loader()
    assert 0 < images_per_second(loader, 4, 0.2) < 4 / 0.02
    assert loader.restarts > 1


def test_bench_counts_images_per_second(capsys: pytest.CaptureFixture[str]) -> None:
    rates = bench(configured("--data.workers", "1"), 0, 0.05, 1e6)
    assert list(rates) == [0, 1] and min(rates.values()) > 10
    printed = capsys.readouterr().out
    assert "1e+06 images/s need" in printed and "crop 32, batches of 8" in printed
    with pytest.raises(UserError, match="--seconds: expected a positive number"):
        bench(configured(), 0, 0, None)
