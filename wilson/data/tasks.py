"""Tasks and protocols: which classes and which images belong to which step."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from wilson.config import ProtocolName
from wilson.config.masks import BACKGROUND, VOID
from wilson.data.names import VOC_CLASSES, find, find_id
from wilson.errors import UserError

PROTOCOLS: tuple[str, ...] = get_args(ProtocolName)
COCO_TO_VOC = "coco-to-voc"

# Number of images of each step in the published lists. VOC: the lists of MiB (Cermelli et al., CVPR 2020), which WILSON
# uses, out of the 10582 training images with SBD's masks. COCO-to-VOC: WILSON's base step, out of train2017's 118287.
VOC_IMAGES, COCO_IMAGES = 10582, 118287
PUBLISHED = {
    (VOC_IMAGES, "15-5", "disjoint"): (8437, 2145),
    (VOC_IMAGES, "15-5", "overlap"): (9568, 2145),
    (VOC_IMAGES, "10-10", "disjoint"): (3706, 6876),
    (VOC_IMAGES, "10-10", "overlap"): (6139, 6876),
    (COCO_IMAGES, COCO_TO_VOC, "disjoint"): (23274,),  # its second step learns from VOC's images
}


@dataclass(frozen=True)
class Task:
    """The classes of a data set, assigned to steps.

    Attributes:
        name: the text of the task, such as "15-5".
        classes: class names of the data set by mask id, background first.
        steps: mask ids that each step adds, without background, in the order of the output channels.
    """

    name: str
    classes: tuple[str, ...]
    steps: tuple[tuple[int, ...], ...]

    @classmethod
    def parse(cls, text: str, classes: Sequence[str]) -> Task:
        """Parse a task.

        Args:
            text: "X-Y" (the first X classes, then groups of Y, the last of which may be smaller), "offline" (all
                classes at once), "coco-to-voc" (the 60 COCO classes that VOC lacks, then VOC's 20, both in COCO's
                order), or mask ids and class names with commas between classes and slashes between steps, as in
                "8,9,cat/10,13".
            classes: class names of the data set by mask id, background first; at most 255.

        Returns:
            The task.

        Raises:
            UserError: the text has none of these forms, names an unknown class, or names a class twice.
        """
        text = text.strip()
        ids = range(1, len(classes))
        if text == "offline":
            steps = [list(ids)]
        elif text == COCO_TO_VOC:
            steps = _coco_to_voc(text, classes)
        elif match := re.fullmatch(r"(\d+)-(\d+)", text):
            steps = _count_off(text, ids, first=int(match[1]), then=int(match[2]))
        else:
            steps = [[_class_id(text, word, classes) for word in step.split(",")] for step in text.split("/")]
        flat = [class_id for step in steps for class_id in step]
        for class_id in flat:
            if flat.count(class_id) > 1:
                name = classes[class_id]
                raise UserError(f"task '{text}': class {class_id} ({name}) comes more than once; name each class once")
        return cls(text, tuple(classes), tuple(tuple(step) for step in steps))

    def check(self) -> None:
        """Raise a UserError if there is no step, or a step adds what is no class of the data set, or nothing."""
        known = range(1, len(self.classes))
        if not self.steps or any(not ids or not set(ids) <= set(known) for ids in self.steps):
            raise UserError(
                f"task '{self.name}': expected steps of mask ids from 1 to {known[-1] if known else 0}, got "
                f"{[list(ids) for ids in self.steps][:5]}"
            )

    def new(self, step: int) -> tuple[int, ...]:
        """Mask ids that `step` adds, in the order of its output channels."""
        self._check(step)
        return self.steps[step]

    def seen(self, step: int) -> tuple[int, ...]:
        """Mask ids of all output channels after `step`: background, then the classes of each step in turn."""
        self._check(step)
        return (BACKGROUND, *(class_id for ids in self.steps[: step + 1] for class_id in ids))

    def channels_before(self, step: int) -> int:
        """Number of output channels before `step`, background included; 1 at step 0."""
        return len(self.seen(step - 1)) if step else 1

    def class_counts(self, step: int) -> list[int]:
        """Number of output channels that each step up to `step` adds; the first number includes the background."""
        return [len(ids) + (t == 0) for t, ids in enumerate(self.steps[: step + 1])]

    def class_names(self, step: int) -> tuple[str, ...]:
        """Names of all output channels after `step`, background first."""
        return tuple(self.classes[class_id] for class_id in self.seen(step))

    def channels(self, step: int, *, ignore: int | None) -> Tensor:
        """The table that turns mask ids into output channels.

        Args:
            step: the step; the channels are those of the model after it.
            ignore: what 255 becomes: None for background, as in training, or a label that is left out, as in testing.

        Returns:
            Output channel of each mask id, int64 (256,); classes not seen yet are background.
        """
        table = torch.zeros(256, dtype=torch.int64)
        table[list(self.seen(step))] = torch.arange(len(self.seen(step)))
        table[VOID] = BACKGROUND if ignore is None else ignore
        return table

    def _check(self, step: int) -> None:
        if not 0 <= step < len(self.steps):
            raise UserError(f"task '{self.name}': expected a step from 0 to {len(self.steps) - 1}, got {step}")


def check_protocol(name: str) -> None:
    """Raise a UserError for an unknown protocol."""
    if name not in PROTOCOLS:
        raise UserError(f"protocol: expected {' or '.join(PROTOCOLS)}, got '{name}'")


def select(class_sets: Sequence[frozenset[int]], task: Task, step: int, protocol: str) -> list[int]:
    """Choose the training images of a step.

    With overlap, an image belongs to a step if it holds a class of the step. With disjoint, it must also hold no class
    of a later step.

    Args:
        class_sets: mask ids of the classes in each image.
        task: the task.
        step: the step.
        protocol: "disjoint" or "overlap".

    Returns:
        Indices into `class_sets`, ascending.

    Raises:
        UserError: the protocol or the step is unknown.
    """
    check_protocol(protocol)
    new = frozenset(task.new(step))
    later = frozenset(class_id for ids in task.steps[step + 1 :] for class_id in ids)
    refused = later if protocol == "disjoint" else frozenset()
    return [index for index, held in enumerate(class_sets) if held & new and not held & refused]


def drawn(
    class_sets: Sequence[frozenset[int]], indices: Sequence[int], task: Task, step: int, shots: int, seed: int
) -> list[int]:
    """Draw a few images for each class of a step.

    The classes take turns in the order of the task; an image that shows several counts for the class that drew it.

    Args:
        class_sets: mask ids of the classes in each image.
        indices: images of the step, as :func:`select` chose them.
        task: the task.
        step: the step.
        shots: images of each class.
        seed: of the draw.

    Returns:
        `shots` images for each class, ascending.

    Raises:
        UserError: the step has fewer images of a class that no other class has drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    left = [indices[i] for i in torch.randperm(len(indices), generator=generator).tolist()]
    chosen: list[int] = []
    for class_id in task.new(step):
        of_class = [index for index in left if class_id in class_sets[index]][:shots]
        if len(of_class) < shots:
            raise UserError(
                f"--data.shots {shots}: step {step} has {len(of_class)} images of {task.classes[class_id]} besides "
                "those drawn for other classes; ask for fewer, or add images"
            )
        chosen += of_class
        left = [index for index in left if index not in of_class]
    return sorted(chosen)


def without_classes(class_sets: Sequence[frozenset[int]], task: Task, step: int, protocol: str, old: bool) -> list[int]:
    """Choose the images that are negative examples of every class of a step.

    Such an image shows no class of the step. With disjoint, it shows no class of a later step either, as these images
    belong to the later steps. With `old`, it shows no class of an earlier step.

    Args:
        class_sets: mask ids of the classes in each image.
        task, step, protocol: as in :func:`select`.
        old: whether the step is told the classes of earlier steps, too, so that images without labels must lack them.

    Returns:
        Indices into `class_sets`, ascending.
    """
    check_protocol(protocol)
    refused = frozenset(task.seen(step) if old else task.new(step))
    if protocol == "disjoint":
        refused |= frozenset(class_id for ids in task.steps[step + 1 :] for class_id in ids)
    return [index for index, held in enumerate(class_sets) if not held & refused]


def published(images: int, task: Task, protocol: str) -> tuple[int, ...] | None:
    """Number of images of each step in the published lists; None if none are known for this task and list length."""
    of_voc = task.classes == VOC_CLASSES
    known = PUBLISHED.get((images, task.name, protocol))
    return known if of_voc == (images == VOC_IMAGES) else None


def _count_off(text: str, ids: range, *, first: int, then: int) -> list[list[int]]:
    if not 1 <= first < len(ids) or then < 1:
        raise UserError(
            f"task '{text}': X-Y needs X from 1 to {len(ids) - 1} and Y of at least 1: the data set has {len(ids)} "
            "classes besides background; use 'offline' for all classes at once"
        )
    return [list(ids[:first])] + [list(ids[start : start + then]) for start in range(first, len(ids), then)]


def _coco_to_voc(text: str, classes: Sequence[str]) -> list[list[int]]:
    found = [find(name, classes) for name in VOC_CLASSES[1:]]
    new = sorted(class_id for class_id in found if class_id is not None)
    old = [class_id for class_id in range(1, len(classes)) if class_id not in new]
    if len(new) < len(found) or not old:
        raise UserError(
            f"task '{text}': needs a data set with VOC's 20 classes and others, as COCO has; this one has "
            f"{', '.join(classes[1:])}"
        )
    return [old, new]


def _class_id(text: str, word: str, classes: Sequence[str]) -> int:
    word = word.strip()
    found = find_id(word, classes)
    if found == BACKGROUND:
        raise UserError(f"task '{text}': background (0) is always there; leave it out")
    if found is None:
        near = difflib.get_close_matches(word, classes[1:], n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(
            f"task '{text}': expected X-Y, 'offline', '{COCO_TO_VOC}', or classes such as '1,2/3', got the class "
            f"'{word}'; {hint}the data set's classes are 1 to {len(classes) - 1}: {', '.join(classes[1:])}"
        )
    return found
