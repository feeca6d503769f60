"""Folders in COCO's layouts are read as they are written, and seen with VOC's classes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.data_sets import CATEGORIES, box, mask_of, write_image, write_instances, write_stuff_maps, write_voc
from wilson.config import Config, DataConfig
from wilson.data.check import check, render
from wilson.data.names import COCO_CLASSES, COCO_IDS
from wilson.data.opening import open_source
from wilson.data.sources.base import ImageSource, class_sets
from wilson.data.sources.coco_outlines import encoded, outline
from wilson.data.sources.views import Chosen
from wilson.data.tasks import Task, select
from wilson.data.transforms import Normalization
from wilson.errors import UserError
from wilson.methods import METHODS, Plop, Settings
from wilson.models import build_segmenter
from wilson.models.segmenter import Prediction
from wilson.runs.experiment import Experiment

# Values of COCO-Stuff's maps: category id less 1. 0 person, 12 stop sign, 24 giraffe... 78 oven, 91 to 181 stuff.
MAPS = {"a": mask_of(0, 12, 255), "b": mask_of(91, 181, 78), "c": mask_of(181)}
PERSON, STOP_SIGN, OVEN = (COCO_CLASSES.index(name) for name in ("person", "stop sign", "oven"))


@pytest.mark.parametrize("layout", [("images", "annotations"), (".", "stuffthingmaps_trainval2017")])
def test_pixel_maps_become_ids_of_things(tmp_path: Path, layout: tuple[str, str]) -> None:
    write_stuff_maps(tmp_path, "train2017", MAPS, images=layout[0], maps=layout[1])
    source = open_source(tmp_path, "train2017")
    assert source.classes == COCO_CLASSES
    assert list(source.names) == ["a", "b", "c"]
    np.testing.assert_array_equal(source.mask(0), mask_of(PERSON, STOP_SIGN, 255))
    np.testing.assert_array_equal(source.mask(1), mask_of(0, 0, OVEN))
    assert class_sets(source) == [{PERSON, STOP_SIGN}, {OVEN}, frozenset()]
    assert source.image(0).size == (12, 8)


def test_every_thing_has_its_id(tmp_path: Path) -> None:
    values = np.array([[category - 1 for category in COCO_IDS]], np.uint8)
    write_stuff_maps(tmp_path, "val2017", {"a": values})
    np.testing.assert_array_equal(open_source(tmp_path, "val2017").mask(0), np.arange(1, 81)[None])


def test_instances_are_drawn_smaller_ones_on_top_and_crowds_void(tmp_path: Path) -> None:
    large = {"category_id": 7, "segmentation": box(0, 0, 8, 8), "area": 64, "bbox": [0, 0, 8, 8]}
    small = {"category_id": 90, "segmentation": box(2, 2, 3, 3), "area": 9, "bbox": [2, 2, 3, 3]}
    # Run-length encoding in columns: the last 6 of 12 columns of 8 pixels.
    crowd = {"category_id": 1, "segmentation": {"counts": [48, 48], "size": [8, 12]}, "area": 48, "iscrowd": 1}
    write_instances(tmp_path, "train2017", {"b.jpg": [small, large], "a.jpg": [small, crowd, large], "c.jpg": []})
    source = open_source(tmp_path, "train2017")
    person, train, toothbrush = 1, 2, 3
    assert source.classes == ("background", "person", "train", "toothbrush")
    assert list(source.names) == ["a", "b", "c"]
    expected = np.zeros((8, 12))
    expected[:, :8] = train
    expected[2:5, 2:5] = toothbrush
    np.testing.assert_array_equal(source.mask(1), expected)
    expected[:, 8:] = 255
    np.testing.assert_array_equal(source.mask(0), expected)
    assert class_sets(source) == [{person, train, toothbrush}, {train, toothbrush}, frozenset()]


def test_training_leaves_crowds_out_and_vocs_void_not(tmp_path: Path) -> None:
    crowd = {"category_id": 1, "segmentation": {"counts": [48, 48], "size": [8, 12]}, "area": 48, "iscrowd": 1}
    instances = open_source(write_instances(tmp_path / "coco", "train2017", {"a.jpg": [crowd]}), "train2017")
    voc = open_source(write_voc(tmp_path / "voc", {"a": mask_of(1, 255)}), "train")
    config = replace(Config(), data=replace(DataConfig(), crop=8))
    normal = Normalization((0.0,) * 3, (1.0,) * 3)
    for source, expected in ((Chosen(instances, [0]), {0, 255}), (voc, {0, 1})):
        task = Task.parse("1/2", source.classes)
        experiment = Experiment(config, task, source, source, None, source, None, torch.device("cpu"), normal)
        dataset = experiment.training_set(0)
        assert {label for epoch in range(8) for label in dataset[epoch, 0]["mask"].unique().tolist()} == expected
    named = open_source(tmp_path / "coco", "train2017", classes=("background", "toothbrush", "train", "person"))
    assert named.crowds and named.class_ids(0) == {3}


@pytest.mark.parametrize("name", ["finetune-pixel", "joint", "lwf", "lwf-mc", "ilt", "mib"])
def test_no_method_learns_from_what_training_leaves_out(name: str) -> None:
    torch.manual_seed(0)
    old, model = (build_segmenter("small_resnet", 4, "none", 8, c, 16, (1, 2, 3)) for c in ([2], [2, 2]))
    method = METHODS[name](model, old, Settings())
    images = torch.randn(2, 3, 16, 16)
    said = Prediction(torch.randn(2, 4, 16, 16, requires_grad=True), old(images).features.detach())
    mask = torch.randint(0, 3, (2, 16, 16))
    mask = torch.where(mask > 0, mask + 1, 0)
    mask[:, :, 8:] = 255
    with patch.object(model, "forward", lambda image: said):
        for labels, learns in ((mask, True), (torch.full_like(mask, 255), False)):
            term = next(iter(method({"image": images, "mask": labels}, 0).values()))
            (gradient,) = torch.autograd.grad(term, said.logits)
            assert torch.isfinite(term) and not gradient[..., 8:].any()
            assert gradient[..., :8].any() == learns


def test_plop_gives_no_label_to_what_training_leaves_out() -> None:
    old, model = (build_segmenter("small_resnet", 4, "none", 8, c, 16, (1, 2, 3)) for c in ([2], [2, 2]))
    method = Plop(model, old)
    method.thresholds.fill_(2.0)  # every pixel of the background has a label
    mask = torch.tensor([[[0, 2, 255, 255]]])
    labels, share = method.pseudo_labels(torch.tensor([[[[0.0] * 4], [[1.0] * 4]]]), mask)
    assert labels.tolist() == [[[1, 2, 255, 255]]] and share.tolist() == [1.0]
    terms = method({"image": torch.randn(2, 3, 16, 16), "mask": torch.full((2, 16, 16), 255)}, 0)
    assert terms["ce"] == 0


def test_pixel_maps_come_before_instances(tmp_path: Path) -> None:
    write_instances(tmp_path, "train2017", {"a.jpg": []})
    assert open_source(tmp_path, "train2017").classes == ("background", "person", "train", "toothbrush")
    write_stuff_maps(tmp_path, "train2017", {"a": mask_of(0)}, images=".")
    assert open_source(tmp_path, "train2017").classes == COCO_CLASSES


def test_a_folder_in_both_layouts_is_vocs_or_refused(tmp_path: Path) -> None:
    write_stuff_maps(tmp_path, "train", {"a": mask_of(0, 12)})
    (tmp_path / "classes.txt").write_text("background\nant\n")
    for look in (lambda: open_source(tmp_path, "train"), lambda: check(tmp_path)):
        with pytest.raises(UserError, match=r"COCO's folders \(train\).*and classes.txt.*take classes.txt away"):
            look()
    write_voc(tmp_path, {"v": mask_of(0, 1)})
    assert open_source(tmp_path, "train").names == ["v"]
    assert [split.images for split in check(tmp_path).splits] == [1]


def test_missing_things_are_named(tmp_path: Path) -> None:
    write_stuff_maps(tmp_path, "train2017", MAPS)
    with pytest.raises(UserError, match=r"no split 'train'.*has train2017"):
        open_source(tmp_path, "train")
    (tmp_path / "annotations" / "train2017" / "b.png").unlink()
    with pytest.raises(UserError, match=r"b.png: no such pixel map .1 of 3"):
        open_source(tmp_path, "train2017")


def test_maps_with_values_that_are_never_used_are_refused(tmp_path: Path) -> None:
    write_stuff_maps(tmp_path, "train2017", {"a": mask_of(0, 11)})
    with pytest.raises(UserError, match=r"a.png: holds the values \[11\].*wilson data check"):
        class_sets(open_source(tmp_path, "train2017"))


def test_instances_name_the_extra_that_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_instances(tmp_path, "train2017", {"a.jpg": []})
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match=r"pip install .wilson-seg\[coco\]"):
        open_source(tmp_path, "train2017")


@pytest.mark.parametrize("name", ["../a.jpg", "x/../../a.jpg"])
def test_file_names_in_the_json_cannot_lead_out(tmp_path: Path, name: str) -> None:
    write_instances(tmp_path, "train2017", {name: []})
    with pytest.raises(UserError, match="must stay inside"):
        open_source(tmp_path, "train2017")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": [{"id": 1}], "annotations": [], "categories": []}'])
def test_malformed_json_is_refused(tmp_path: Path, text: str) -> None:
    write_instances(tmp_path, "train2017", {"a.jpg": []})
    (tmp_path / "annotations" / "instances_train2017.json").write_text(text)
    with pytest.raises(UserError, match=r"instances_train2017.json: "):
        open_source(tmp_path, "train2017")


@pytest.mark.parametrize(
    "shape",
    [
        {"counts": "?", "size": [3]},
        {"counts": [0, 10**7], "size": [8, 12]},
        {"counts": [0, 400], "size": [20, 20]},
        [[1e9, 1e9, -1e9, 1e9, 3, 4]],
        [[float("nan"), 1, 3, 4, 5, 6]],
        [["__import__('os')", 1, 3, 4, 5, 6]],
        None,
    ],
)
def test_instances_that_cannot_be_drawn_name_their_image(tmp_path: Path, shape: object) -> None:
    wrong = {"category_id": 1, "segmentation": shape, "area": 1}
    write_instances(tmp_path, "train2017", {"a.jpg": [wrong]})
    with pytest.raises(UserError, match=r"2017.json: image id 101 \(a.jpg\), annotation id 1: 'segmentation'"):
        open_source(tmp_path, "train2017").mask(0)


def test_vocs_images_are_seen_with_cocos_classes(tmp_path: Path) -> None:
    masks = {"a": mask_of(0, 1, 255), "b": mask_of(20, 18, 11, 16)}
    source = open_source(write_voc(tmp_path, masks, classes=None), "train", classes=COCO_CLASSES)
    ids = {name: COCO_CLASSES.index(name) for name in ("airplane", "tv", "couch", "dining table", "potted plant")}
    assert source.classes == COCO_CLASSES
    np.testing.assert_array_equal(source.mask(0), mask_of(0, ids["airplane"], 255))
    others = [ids[name] for name in ("tv", "couch", "dining table", "potted plant")]
    np.testing.assert_array_equal(source.mask(1), mask_of(*others))
    assert class_sets(source) == [{ids["airplane"]}, set(others)]
    with pytest.raises(UserError, match="the classes ant, bee, eel are unknown there"):
        open_source(write_voc(tmp_path / "other", masks), "train", classes=COCO_CLASSES)


def test_disjoint_removes_images_of_the_base_step_that_hold_a_class_of_voc(tmp_path: Path) -> None:
    masks = {"both": mask_of(0, 12), "base": mask_of(12, 100), "voc": mask_of(0), "stuff": mask_of(120)}
    source = open_source(write_stuff_maps(tmp_path, "train2017", masks), "train2017")
    task = Task.parse("coco-to-voc", source.classes)
    chosen = {p: [source.names[i] for i in select(class_sets(source), task, 0, p)] for p in ("disjoint", "overlap")}
    assert chosen == {"disjoint": ["base"], "overlap": ["base", "both"]}


def everything(shift: int = 0, *, stuff: bool = True) -> dict[str, np.ndarray]:
    """Maps of all things and some stuff, each value moved."""
    things = [category - 1 + shift for category in COCO_IDS]
    values = [value for value in (*things, *((100 + shift, 181 + shift) if stuff else ())) if value >= 0]
    return {f"m{i}": mask_of(*values[i : i + 21], 255, size=(44, 6)) for i in range(0, len(values), 21)}


def test_check_counts_pixel_maps(tmp_path: Path) -> None:
    report = check(write_stuff_maps(tmp_path, "train2017", everything()), "coco-to-voc", "disjoint")
    assert report.errors == ()
    (split,) = report.splits
    assert (split.images, split.masks, split.class_images[1:]) == (4, 4, (1,) * 80)
    assert split.class_pixels[STOP_SIGN] == 12
    assert sum(split.steps) == 4
    assert "80 " in render(report)


@pytest.mark.parametrize(("shift", "stuff", "text"), [
    (1, True, r"one too high.*subtract 1 from every value but 255 \(0 becomes 255\)"),
    (1, False, r"one too high.*\(0, the background, becomes 91\)"),
    (-1, True, "one too low"),
])  # fmt: skip
def test_check_recognises_maps_that_are_off_by_one(tmp_path: Path, shift: int, stuff: bool, text: str) -> None:
    report = check(write_stuff_maps(tmp_path, "train2017", everything(shift, stuff=stuff)))
    assert report.errors[0].file == "pixel maps"
    assert re.search(text, report.errors[0].text)
    assert any("which COCO-Stuff's maps never do" in problem.text for problem in report.errors[1:])


def test_repair_that_the_check_names_makes_the_maps_right(tmp_path: Path) -> None:
    maps = everything(1)
    repaired = {name: (values - (values != 255)).astype(np.uint8) for name, values in maps.items()}
    assert check(write_stuff_maps(tmp_path, "train2017", repaired)).errors == ()


def test_pixel_maps_in_vocs_layout_are_recognised(tmp_path: Path) -> None:
    report = check(write_voc(tmp_path, everything(), classes=COCO_CLASSES))
    assert any("COCO-Stuff's pixel maps" in problem.text for problem in report.errors)


def test_check_names_broken_files_of_coco(tmp_path: Path) -> None:
    write_stuff_maps(tmp_path, "train2017", {**MAPS, "d": mask_of(0)})
    (tmp_path / "images" / "train2017" / "a.jpg").write_bytes(b"no JPEG")
    (tmp_path / "annotations" / "train2017" / "b.png").write_bytes(b"no PNG")
    write_image(tmp_path / "annotations" / "train2017" / "c.png", mask_of(0, size=(4, 4)))
    found = {problem.file: problem.text for problem in check(tmp_path).errors}
    assert set(found) == {f"{p}/train2017/{n}" for p, n in (("images", "a.jpg"), ("annotations", "b.png"))} | {
        "annotations/train2017/c.png"
    }
    assert found["images/train2017/a.jpg"].startswith("cannot be read")
    assert "12x8 pixels, its mask 4x4" in found["annotations/train2017/c.png"]


def test_check_counts_instances(tmp_path: Path) -> None:
    one = {"category_id": 7, "segmentation": box(0, 0, 6, 8), "area": 48}
    report = check(write_instances(tmp_path, "val2017", {"a.jpg": [one], "b.jpg": []}), "person/train")
    (split,) = report.splits
    assert report.errors == ()
    assert (split.class_images[1:], split.class_pixels[2], split.steps) == ((0, 1, 0), 48, (0, 1))
    assert len(report.classes) == 1 + len(CATEGORIES)


def written(root: Path, change: Callable[[dict[str, Any]], None]) -> ImageSource:
    """Two images, the first with a box of 3x3 pixels of class 1, after a change of their JSON."""
    instance = {"category_id": 1, "segmentation": box(2, 2, 3, 3), "area": 9}
    write_instances(root, "train2017", {"a.jpg": [instance], "b.jpg": []})
    file = root / "annotations" / "instances_train2017.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    return open_source(root, "train2017")


def change(list_name: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    """A change of the first entry of a list; None takes the key away."""

    def apply(document: dict[str, Any]) -> None:
        entry = document[list_name][0]
        entry.update(values)
        for key in [key for key, value in values.items() if value is None]:
            del entry[key]

    return apply


SQUARE = np.zeros((8, 12), np.uint8)
SQUARE[2:5, 2:5] = 1
RUNS = {"counts": [18, 3, 5, 3, 5, 3, 59], "size": [8, 12]}  # the same in columns


@pytest.mark.parametrize(
    "harmless",
    [
        change("annotations", area=None),
        change("annotations", area="nine"),
        change("annotations", iscrowd=None),
        change("annotations", iscrowd="0"),
        change("annotations", iscrowd=False),
        change("annotations", segmentation=box(2, 2, 3, 3)[0]),
        change("annotations", segmentation=json.dumps(box(2, 2, 3, 3))),
        change("annotations", segmentation=[*box(2, 2, 3, 3), [1, 1, 9, 9], []]),
        change("annotations", segmentation=RUNS),
        change("annotations", segmentation=[RUNS]),
        change("annotations", segmentation=json.dumps(RUNS)),
        change("annotations", segmentation={"counts": RUNS["counts"]}),
        change("annotations", segmentation={"counts": [float(n) for n in RUNS["counts"]], "size": ["8", 12.0]}),
        change("annotations", image_id="101", category_id="1"),
        change("annotations", image_id=101.0),
        change("annotations", id=None),
        change("images", id="101"),
        change("images", width=None, height=None),
        change("images", height=None),
        change("images", width="12", height=8.0),
        change("images", file_name=r".\a.JPG"),
        change("images", file_name="train2017/a.jpg"),
        change("categories", id="7"),
        lambda document: document["annotations"].append({"image_id": 999, "category_id": 12345}),
    ],
)
def test_jsons_as_tools_write_them_are_drawn_alike(tmp_path: Path, harmless: Callable[[dict[str, Any]], None]) -> None:
    source = written(tmp_path, harmless)
    first, second = sorted(range(2), key=lambda index: source.names[index][-1])
    assert (source.class_ids(first), source.class_ids(second)) == ({1}, frozenset())
    np.testing.assert_array_equal(source.mask(first), SQUARE)
    assert not np.asarray(source.mask(second)).any(), "an image without annotations is background"


def test_run_lengths_as_text_are_drawn_alike(tmp_path: Path) -> None:
    from pycocotools import mask

    text = mask.encode(np.asfortranarray(SQUARE))["counts"].decode()
    source = written(tmp_path, change("annotations", segmentation={"counts": text, "size": [8, 12]}))
    np.testing.assert_array_equal(source.mask(0), SQUARE)


def test_run_lengths_as_text_are_read_as_pycocotools_writes_them() -> None:
    from pycocotools import mask

    rng = np.random.default_rng(0)
    for share in (0.0, 0.01, 0.5, 0.99, 1.0):
        for height, width in ((1, 1), (8, 12), (70, 3), (300, 400)):
            drawn = np.asfortranarray(rng.random((height, width)) < share, np.uint8)
            text = mask.encode(drawn)["counts"].decode()
            found = outline({"segmentation": {"counts": text, "size": [height, width]}}, (width, height), "a")
            np.testing.assert_array_equal(found, drawn)


@pytest.mark.parametrize(("text", "expected"), [
    ("", "add up to 0; expected 96"),
    ("0", "add up to 0; expected 96"),
    ("1", "add up to 1; expected 96"),
    ("0`1", "add up to 48; expected 96"),
    ("0`3`1", "add up to 160; expected 96"),
    ("?", "add up to 15; expected 96"),
    ("O", "a run of under 0 pixels"),
    ("0`", "breaks off"),
    ("ooooooooo", "COCO's text never does"),
    ("a b", "COCO's text never does"),
    ("\xff", "COCO's text never does"),
])  # fmt: skip
def test_run_lengths_that_are_not_all_pixels_are_refused(text: str, expected: str) -> None:
    with pytest.raises(UserError, match=rf"a: 'segmentation': 'counts' .*{expected}"):
        outline({"segmentation": {"counts": text, "size": [8, 12]}}, (12, 8), "a")


@pytest.mark.parametrize(
    ("fault", "key"),
    [
        (change("annotations", segmentation=None), "annotation id 1: 'segmentation' holds no outline"),
        (change("annotations", segmentation=[]), "annotation id 1: 'segmentation' holds no outline"),
        (change("annotations", segmentation=[[]]), "annotation id 1: 'segmentation' holds no outline"),
        (change("annotations", segmentation=[[1, 1, 9, 9]]), "annotation id 1: 'segmentation' holds no outline"),
        (change("annotations", segmentation=[[1, 1, 9, 9, 5, 5, 3]]), "annotation id 1: 'segmentation' holds"),
        (change("annotations", segmentation="mask.png"), "annotation id 1: 'segmentation' is text"),
        (change("annotations", segmentation=7), "annotation id 1: 'segmentation' is of type int"),
        (change("annotations", segmentation={"counts": [1, 2]}), "annotation id 1: 'segmentation': 'counts' add up"),
        (change("annotations", segmentation={"size": [8, 12]}), "annotation id 1: 'segmentation': 'counts' is of type"),
        (change("annotations", segmentation={**RUNS, "size": [12, 8]}), r"'size' is \[12, 8\]; expected .*\[8, 12\]"),
        (change("annotations", segmentation={**RUNS, "counts": [97, -1]}), "'counts' is -1"),
        (change("annotations", iscrowd="yes"), "annotation id 1: 'iscrowd' is 'yes'"),
        (change("annotations", iscrowd=2), "annotation id 1: 'iscrowd' is 2; expected 0 or 1"),
        (change("annotations", image_id=None), "annotation id 1: 'image_id' is missing; expected an id"),
        (change("annotations", category_id=None), "image id 101 .a.jpg., annotation id 1: 'category_id' is missing"),
        (change("annotations", category_id=5), "annotation id 1: 'category_id' is 5, which 'categories' lacks"),
        (change("images", id=None), "an image: 'id' is missing"),
        (change("images", id=102), "several images with the id '102'"),
        (change("images", file_name=None), "image id 101: 'file_name' is None"),
        (change("images", file_name="b.jpg"), "several images with the file 'b.jpg'"),
        (change("images", width=0), "image id 101: 'width' is 0; expected a whole number of at least 1"),
        (change("images", height=8.5), "image id 101: 'height' is 8.5"),
        (change("categories", name=None), "category id 7: 'name' is None"),
        (change("categories", id=None), "category without an id: 'id' is missing"),
        (change("categories", id=90), "several categories with the id '90'"),
        (change("categories", name="person"), "category id 7 repeats 'person'"),
        (change("categories", name="Person"), "category id 7 is 'Person', which differs from 'person' by case only"),
        (lambda document: document.pop("annotations"), "'annotations' is missing"),
        (lambda document: document.update(images={}), "'images' is missing or none"),
        (lambda document: document.update(images=[]), "'images' is empty"),
        (lambda document: document.update(categories=[]), "expected 1 to 254 categories"),
    ],
)  # fmt: skip
def test_faults_of_the_json_name_file_image_and_key(
    tmp_path: Path, fault: Callable[[dict[str, Any]], None], key: str
) -> None:
    with pytest.raises(UserError, match=f"instances_train2017.json: .*{key}"):
        written(tmp_path, fault).mask(0)


def test_sizes_that_are_not_the_images_are_refused_before_drawing(tmp_path: Path) -> None:
    source = written(tmp_path, change("images", width=10**9, height=10**9))
    with pytest.raises(UserError, match="image 'a' is 12x8 pixels, its mask 1000000000x1000000000"):
        source.mask(0)


def test_a_category_named_background_is_the_background(tmp_path: Path) -> None:
    source = written(tmp_path, change("categories", id=0, name="Background"))
    assert source.classes == ("background", "person", "toothbrush")
    assert class_sets(source) == [{1}, set()]


def test_instances_of_the_background_are_drawn_as_such(tmp_path: Path) -> None:
    def rename(document: dict[str, Any]) -> None:
        next(entry for entry in document["categories"] if entry["id"] == 1)["name"] = "background"

    source = written(tmp_path, rename)
    assert source.classes == ("background", "train", "toothbrush")
    assert class_sets(source) == [set(), set()] and not np.asarray(source.mask(0)).any()


def test_an_outline_is_not_needed_for_labels(tmp_path: Path) -> None:
    source = written(tmp_path, change("annotations", segmentation=None))
    assert class_sets(source) == [{1}, set()]
    (error,) = check(tmp_path).errors
    assert error.file == "train2017/a.jpg" and "annotation id 1: 'segmentation' holds no outline" in error.text


def test_instances_turn_with_their_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    source = written(tmp_path, lambda document: None)
    Image.new("RGB", (12, 8)).save(tmp_path / "train2017" / "a.jpg", exif=exif)
    assert source.image(0).size == (8, 12)
    np.testing.assert_array_equal(source.mask(0), np.rot90(SQUARE, -1))


def test_masks_are_encoded_as_pycocotools_does():
    from pycocotools import mask

    rng = np.random.default_rng(0)
    shapes = [(1, 1), (5, 3), (1, 40), (300, 500)]
    masks = [np.kron(rng.random(shape) < share, np.ones((2, 3))) > 0 for shape in shapes for share in (0, 0.1, 0.9, 1)]
    for inside in masks:
        found = encoded(inside)
        assert found["counts"] == mask.encode(np.asfortranarray(inside.astype(np.uint8)))["counts"].decode()
        assert np.array_equal(outline({"segmentation": found}, (inside.shape[1], inside.shape[0]), "here"), inside)
