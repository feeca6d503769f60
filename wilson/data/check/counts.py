"""Count what one list of a data set holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wilson.config.masks import LEAST_BACKGROUND, VOID
from wilson.data.check.findings import Split
from wilson.data.tasks import Task, published, select


def count(
    name: str,
    held: Sequence[frozenset[int]],
    pixels: NDArray[np.int64],
    masks: int,
    classes: Sequence[str],
    task: Task | None,
    protocol: str,
) -> tuple[Split, list[str]]:
    """Count what one list holds.

    Args:
        name: name of the list.
        held: mask ids of the classes in each image, with or without the background.
        pixels: number of pixels of each mask id, (256,).
        masks: number of images with a mask.
        classes: class names by mask id.
        task: the task; None for none.
        protocol: "disjoint" or "overlap".

    Returns:
        The counts, and the texts of warnings.
    """
    images = Counter(class_id for ids in held for class_id in ids)
    steps = [] if task is None else [len(select(held, task, step, protocol)) for step in range(len(task.steps))]
    wanted = range(1, len(classes)) if task is None else sorted(task.seen(len(task.steps) - 1)[1:])
    absent = [classes[class_id] for class_id in wanted if not images[class_id]]
    warnings = [f"no image holds {', '.join(absent)}"] if absent else []
    if 0 < masks < len(held):
        warnings.append(f"{len(held) - masks} of {len(held)} images have no mask: a base step cannot use them")
    labelled = int(pixels[:VOID].sum())
    background = labelled - int(pixels[list(wanted)].sum())  # classes of no step are background, too
    if labelled and background < LEAST_BACKGROUND * labelled:
        warnings.append(
            f"background covers {100 * background / labelled:.1f} % of the labelled pixels: once "
            "all classes are learned, nothing is left to be background; leave classes such as sky or grass out of the "
            "task, so that they become background"
        )
    matches = None
    if task is not None and (expected := published(len(held), task, protocol)) is not None:
        found = tuple(steps[: len(expected)])
        matches = found == expected
        if not matches:
            warnings.append(
                f"the steps hold {_listed(found)} images, those of the published splits {_listed(expected)}"
            )
    class_images, class_pixels = (tuple(int(counts[i]) for i in range(len(classes))) for counts in (images, pixels))
    return Split(name, len(held), masks, class_images, class_pixels, tuple(steps), matches), warnings


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
