"""Segment images with a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from wilson import ops, palette
from wilson.checkpoint import Checkpoint, image_statistics
from wilson.data.transforms import resized
from wilson.errors import UserError
from wilson.overlay import overlay


class Predictor:
    """A model after some step, ready to segment images of any size.

    Args:
        checkpoint: the checkpoint of a step.
        device: where to compute.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        config = checkpoint.config
        self.model, self.device = checkpoint.model().to(device), device
        self.short_side = config.data.crop
        self.mean, self.std = image_statistics(config)
        self.classes = checkpoint.task.class_names(checkpoint.step)
        self.ids = np.array(checkpoint.task.seen(checkpoint.step), dtype=np.uint8)

    @torch.no_grad()
    def predict(self, image: Image.Image) -> np.ndarray:
        """The mask id of every pixel: uint8 (H, W) for an RGB image (H, W).

        The model sees the image with its short side resized to the training crop.
        """
        pixels = resized(image, self.short_side, self.mean, self.std).unsqueeze(0).to(self.device)
        logits = self.model(pixels).logits
        channels = ops.upsampled_argmax(logits, (image.height, image.width))[0].cpu().numpy()
        return self.ids[channels]


def predict(
    images: Sequence[Path], checkpoint: Path, out: Path, device: torch.device, *, overwrite: bool = False
) -> list[Path]:
    """Write `NAME.png`, a palette mask of mask ids, and `NAME_overlay.jpg` for each image.

    Args:
        images: files that Pillow reads.
        checkpoint: the checkpoint of a step.
        out: folder for the results.
        device: where to compute.
        overwrite: write into a folder that is not empty.

    Returns:
        The masks written.

    Raises:
        UserError: an image is missing or unreadable, or two have one name; nothing is written then.
    """
    if not images:
        raise UserError("no image was given; name one or more image files")
    if out.exists() and not overwrite and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; use --overwrite or another --out")
    check_images(images)
    predictor = Predictor(Checkpoint(checkpoint), device)
    colours = palette.palette(256)
    out.mkdir(parents=True, exist_ok=True)
    masks = []
    for path in images:
        with Image.open(path) as file:
            image = file.convert("RGB")
        ids = predictor.predict(image)
        masks.append(out / f"{path.stem}.png")
        palette.apply(ids, colours).save(masks[-1])
        overlay(image, ids, colours=colours).save(out / f"{path.stem}_overlay.jpg", quality=92)
        present = [predictor.classes[c] for c, i in enumerate(predictor.ids) if i and (ids == i).any()]
        print(f"{masks[-1]}: {', '.join(present) or 'background'}", flush=True)
    return masks


def check_images(images: Sequence[Path]) -> None:
    stems: dict[str, Path] = {}
    for path in images:
        if stems.setdefault(path.stem, path) != path:
            raise UserError(f"{stems[path.stem]} and {path} would both be written as {path.stem}.png; rename one")
        try:
            with Image.open(path) as file:
                file.verify()
        except FileNotFoundError:
            raise UserError(f"image {path}: no such file") from None
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise UserError(f"image {path} cannot be read ({error}); give an image file such as JPEG or PNG") from error
