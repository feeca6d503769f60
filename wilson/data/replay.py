"""Images of the base step that later steps see again, with their masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wilson.config.masks import VOID
from wilson.data.sources.base import ImageSource, class_sets
from wilson.data.tasks import Task, select
from wilson.errors import UserError


@dataclass(frozen=True)
class Replay:
    """What a step replays.

    Attributes:
        source: the data set of the base step.
        indices: positions of the replayed images in it.
        channels: output channel of each mask id as the base step saw it, int64 (256,); later classes are background.
        share: of each batch, above 0 and below 1.
    """

    source: ImageSource
    indices: tuple[int, ...]
    channels: Tensor
    share: float

    @classmethod
    def of(cls, source: ImageSource, task: Task, protocol: str, images: int, seed: int, share: float) -> Replay:
        """Draw images of the base step, the classes in turn, so that each has about as many.

        Args:
            source: the data set of the base step.
            task, protocol: decide which images are those of the base step.
            images: number to draw, at least 1.
            seed: of the draw; the steps of a run replay the same images.
            share: of each batch.

        Raises:
            UserError: the base step has fewer images, or an image has no mask.
        """
        sets = class_sets(source)
        base = select(sets, task, 0, protocol)
        if len(base) < images:
            raise UserError(f"--data.replay {images}: the base step has {len(base)} images; replay fewer")
        unmasked = [source.names[index] for index in base if not source.has_mask(index)]
        if unmasked:
            raise UserError(
                f"--data.replay: image '{unmasked[0]}' of the base step has no mask ({len(unmasked)} have none); add "
                "the masks, or do without replay"
            )
        chosen = balanced(sets, base, task.new(0), images, seed)
        return cls(source, chosen, task.channels(0, ignore=VOID if source.crowds else None), share)


def balanced(
    class_sets: Sequence[frozenset[int]], indices: Sequence[int], classes: Sequence[int], images: int, seed: int
) -> tuple[int, ...]:
    """Draw images, the classes in turn: each draws one of those left that hold it, if there is one.

    Args:
        class_sets: mask ids of the classes in each image.
        indices: images to choose among, each of which holds one of the classes.
        classes: mask ids.
        images: number to draw, at most that of `indices`.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    left = [indices[i] for i in torch.randperm(len(indices), generator=generator).tolist()]
    chosen: list[int] = []
    while len(chosen) < images:
        for class_id in classes:
            found = next((index for index in left if class_id in class_sets[index]), None)
            if found is not None and len(chosen) < images:
                chosen.append(found)
                left.remove(found)
    return tuple(sorted(chosen))
