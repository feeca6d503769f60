"""Read a whole data set and report what is there and what is wrong with it.

`voc` and `coco` read the two layouts, `counts` counts what a list holds, `diagnosis` guesses why ids are wrong,
`findings` holds the report and its text.
"""

from __future__ import annotations

from pathlib import Path

from wilson.data.sources.coco import coco_splits
from wilson.data.tasks import check_protocol

from .coco import check_coco
from .findings import Report, render
from .voc import check_voc

__all__ = ["Report", "check", "render"]


def check(root: str | Path, task: str | None = None, protocol: str = "overlap") -> Report:
    """Read every list, image and mask of a folder in the layout of VOC or COCO.

    Args:
        root: the folder.
        task: a task, as in `Task.parse`, to count the images of its steps; None for no such count.
        protocol: "disjoint" or "overlap": which images belong to a step.

    Returns:
        Counts for each list and class, and every problem with its file.

    Raises:
        UserError: the folder is missing or has no lists, or `classes.txt`, task or protocol is malformed.
    """
    root = Path(root)
    check_protocol(protocol)
    if coco_splits(root):
        return check_coco(root, task, protocol)
    return check_voc(root, task, protocol)
