"""Tasks and protocols deal out classes and images as the rules say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wilson.data.names import COCO_CLASSES, COCO_IDS, VOC_TO_COCO
from wilson.data.sources.voc import VOC_CLASSES
from wilson.data.tasks import Task, drawn, published, select
from wilson.errors import UserError


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("19-1", [19, 1]),
        ("15-5", [15, 5]),
        ("15-1", [15, 1, 1, 1, 1, 1]),
        ("10-10", [10, 10]),
        ("10-5", [10, 5, 5]),
        ("10-2", [10, 2, 2, 2, 2, 2]),
        ("10-1", [10] + 10 * [1]),
        ("10-3", [10, 3, 3, 3, 1]),
        ("5-99", [5, 15]),
        ("offline", [20]),
    ],
)
def test_counted_tasks_take_the_classes_in_the_data_sets_order(text: str, sizes: list[int]) -> None:
    task = Task.parse(text, VOC_CLASSES)
    assert [len(step) for step in task.steps] == sizes
    assert [class_id for step in task.steps for class_id in step] == list(range(1, 21))


def test_spelled_out_task_keeps_its_order_and_mixes_ids_with_names() -> None:
    task = Task.parse(" 12, cat,9 / 10,horse ", VOC_CLASSES)
    assert task.steps == ((12, 8, 9), (10, 13))
    assert task.new(1) == (10, 13)
    assert task.seen(0) == (0, 12, 8, 9)
    assert task.seen(1) == (0, 12, 8, 9, 10, 13)
    assert task.class_names(1) == ("background", "dog", "cat", "chair", "cow", "horse")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20-1", "X from 1 to 19"),
        ("0-5", "X from 1 to 19"),
        ("15-0", "Y of at least 1"),
        ("8,9/10,8", "8 .cat. comes more than once"),
        ("8,cat", "8 .cat. comes more than once"),
        ("8,21", "'21'"),
        ("0,8", "background .0. is always there"),
        ("background,8", "background .0. is always there"),
        ("8,255", "'255'"),
        ("8,hrose", "did you mean 'horse'"),
        ("8,,9", "got the class ''"),
        ("8,9/", "got the class ''"),
        ("", "got the class ''"),
        ("ofline", "'offline'"),
    ],
)
def test_malformed_tasks_are_refused_with_the_reason(text: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        Task.parse(text, VOC_CLASSES)


def test_steps_outside_the_task_are_refused() -> None:
    task = Task.parse("15-5", VOC_CLASSES)
    for step in (-1, 2):
        with pytest.raises(UserError, match="step from 0 to 1"):
            task.seen(step)


def test_channels_follow_the_written_order_and_hide_what_is_not_seen() -> None:
    task = Task.parse("12,8/10", VOC_CLASSES)
    training = task.channels(0, ignore=None)
    assert training.shape == (256,)
    assert {i: int(c) for i, c in enumerate(training) if c} == {12: 1, 8: 2}
    testing = task.channels(1, ignore=255)
    assert {i: int(c) for i, c in enumerate(testing) if c} == {12: 1, 8: 2, 10: 3, 255: 255}


def test_the_last_possible_mask_id_has_a_channel() -> None:
    names = ["background", *(f"class{i}" for i in range(1, 255))]
    table = Task.parse("offline", names).channels(0, ignore=255)
    assert table.tolist() == list(range(256))


# Classes 1 and 2 in the first step, 3 in the second, 4 in the third; 5 in none.
IMAGES = [frozenset(ids) for ids in ((1,), (1, 3), (3,), (3, 4), (2, 4), (4, 5), (5,), ())]


@pytest.mark.parametrize(
    ("protocol", "chosen"),
    [
        ("overlap", [[0, 1, 4], [1, 2, 3], [3, 4, 5]]),
        ("disjoint", [[0], [1, 2], [3, 4, 5]]),
    ],
)
def test_select_follows_the_rule_of_the_protocol(protocol: str, chosen: list[list[int]]) -> None:
    task = Task.parse("1,2/3/4", VOC_CLASSES)
    assert [select(IMAGES, task, step, protocol) for step in range(3)] == chosen


@pytest.mark.parametrize("protocol", ["overlap", "disjoint"])
def test_offline_takes_every_image_with_a_class(protocol: str) -> None:
    assert select(IMAGES, Task.parse("offline", VOC_CLASSES), 0, protocol) == [0, 1, 2, 3, 4, 5, 6]


def test_unknown_protocol_is_refused() -> None:
    with pytest.raises(UserError, match="disjoint or overlap, got 'disjunct'"):
        select(IMAGES, Task.parse("15-5", VOC_CLASSES), 0, "disjunct")


@given(st.lists(st.frozensets(st.integers(1, 20), max_size=6), max_size=30))
def test_disjoint_steps_share_no_image_and_leave_none_out(class_sets: list[frozenset[int]]) -> None:
    task = Task.parse("10-3", VOC_CLASSES)
    chosen = [index for step in range(len(task.steps)) for index in select(class_sets, task, step, "disjoint")]
    assert sorted(chosen) == [index for index, held in enumerate(class_sets) if held]
    for step in range(len(task.steps)):
        assert set(select(class_sets, task, step, "disjoint")) <= set(select(class_sets, task, step, "overlap"))


def test_coco_to_voc_takes_cocos_other_classes_first() -> None:
    task = Task.parse("coco-to-voc", COCO_CLASSES)
    assert [len(step) for step in task.steps] == [60, 20]
    assert sorted(sum(task.steps, ())) == list(range(1, 81))
    assert task.class_names(0)[:4] == ("background", "truck", "traffic light", "fire hydrant")
    # The published task in COCO's category ids.
    new = [1, 2, 3, 4, 5, 6, 7, 9, 16, 17, 18, 19, 20, 21, 44, 62, 63, 64, 67, 72]
    assert [COCO_IDS[class_id - 1] for class_id in task.new(1)] == new
    for text, classes in (("coco-to-voc", VOC_CLASSES), ("coco-to-voc", COCO_CLASSES[:60])):
        with pytest.raises(UserError, match="VOC's 20 classes and others"):
            Task.parse(text, classes)


def test_cocos_classes_have_their_category_ids() -> None:
    by_id = dict(zip(COCO_IDS, COCO_CLASSES[1:], strict=True))
    known = {1: "person", 11: "fire hydrant", 13: "stop sign", 44: "bottle", 67: "dining table", 90: "toothbrush"}
    assert {category: by_id[category] for category in known} == known
    assert set(VOC_TO_COCO) < set(VOC_CLASSES) and set(VOC_TO_COCO.values()) < set(COCO_CLASSES)


def test_published_sizes_are_compared_on_the_published_list_only() -> None:
    assert published(10582, Task.parse("15-5", VOC_CLASSES), "disjoint") == (8437, 2145)
    assert published(10582, Task.parse("10-10", VOC_CLASSES), "overlap") == (6139, 6876)
    assert published(118287, Task.parse("coco-to-voc", COCO_CLASSES), "disjoint") == (23274,)
    assert published(1464, Task.parse("15-5", VOC_CLASSES), "disjoint") is None
    assert published(10582, Task.parse("15-5", COCO_CLASSES), "disjoint") is None
    assert published(10582, Task.parse("15-1", VOC_CLASSES), "disjoint") is None


def test_few_images_are_drawn_for_each_class() -> None:
    task = Task.parse("1/2,3", ("background", "a", "b", "c"))
    held = [frozenset(classes) for classes in ({2}, {2, 3}, {3}, {1}, {2}, {3}, {2, 3})]
    indices = select(held, task, 1, "overlap")
    draws = {tuple(drawn(held, indices, task, 1, 2, seed)) for seed in range(20)}
    assert len(draws) > 1
    for chosen in draws:
        assert list(chosen) == sorted(set(chosen)) and len(chosen) == 4 and set(chosen) <= set(indices)
        assert all(sum(class_id in held[index] for index in chosen) >= 2 for class_id in (2, 3))
    assert drawn(held, indices, task, 1, 2, 7) == drawn(held, indices, task, 1, 2, 7)
    with pytest.raises(UserError, match=r"--data\.shots 9: step 1 has 4 images of b"):
        drawn(held, indices, task, 1, 9, 0)
