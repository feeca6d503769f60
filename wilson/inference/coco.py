"""A predicted mask as a document of COCO, with a run-length encoding for each class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from wilson.config.masks import BACKGROUND
from wilson.data.sources.coco_outlines import encoded


def document(name: str, ids: np.ndarray, classes: Mapping[int, str]) -> dict[str, Any]:
    """A mask in COCO's layout; the background has no annotation.

    Args:
        name: file name of the image.
        ids: mask ids, integers (H, W).
        classes: names by mask id.

    Returns:
        `images`, `categories` and `annotations`, of plain values.
    """
    annotations: list[dict[str, Any]] = []
    for class_id in (number for number in classes if number != BACKGROUND and (ids == number).any()):
        inside = ids == class_id
        rows, columns = (np.flatnonzero(inside.any(axis)).tolist() for axis in (1, 0))
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": 1,
                "category_id": class_id,
                "segmentation": encoded(inside),
                "area": int(inside.sum()),
                "bbox": [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]],
                "iscrowd": 0,
            }
        )
    return {
        "images": [{"id": 1, "file_name": name, "height": ids.shape[0], "width": ids.shape[1]}],
        "categories": [
            {"id": class_id, "name": label} for class_id, label in classes.items() if class_id != BACKGROUND
        ],
        "annotations": annotations,
    }
