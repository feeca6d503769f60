"""Segment images with a trained model."""

from __future__ import annotations

import glob
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wilson import ops
from wilson.checkpoint import Checkpoint
from wilson.data.files import UNREADABLE, orientation, rgb, upright
from wilson.data.transforms import Normalization, WholeImage, unit_range
from wilson.errors import UserError
from wilson.inference.exported import ONNX, PROGRAM, Description, Exported
from wilson.pictures import palette
from wilson.pictures.overlay import overlay

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # of the images in a folder


class Predictor:
    """A trained model that segments images of any size.

    Args:
        model: the checkpoint of a step, or an exported model.
        device: runs the model.

    Attributes:
        classes: names by output channel, background first.
        ids: the mask id of each channel, uint8.
    """

    def __init__(self, model: Checkpoint | Exported, device: torch.device) -> None:
        if isinstance(model, Exported):
            self.description = model.description
            self._logits: Callable[[Tensor], Tensor] = model.logits
        else:
            self.description = Description.of(model)
            network = model.model().to(device)
            self._logits = lambda images: network(images).logits
        self.device = device
        self._resize = WholeImage(self.description.crop)
        self._normalize = Normalization(self.description.mean, self.description.std)
        self.classes = self.description.classes
        self.ids = np.array(self.description.ids, dtype=np.uint8)

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Predictor:
        """Load the model from a checkpoint, a .pt2 or a .onnx file; UserError if the file holds none."""
        if path.suffix in (PROGRAM, ONNX):
            return cls(Exported.read(path, device), device)
        return cls(Checkpoint(path), device)

    def predict(self, image: Image.Image | np.ndarray | Path | str) -> np.ndarray:
        """Predict the mask id of every pixel.

        The model sees the image with its short side resized to the training crop.

        Args:
            image: a PIL image; an array, uint8 (H, W, 3) RGB or (H, W) grey; or an image file.

        Returns:
            Mask ids (H, W), uint8.

        Raises:
            UserError: the file cannot be read, or the array has another shape or dtype.
        """
        return self.predict_batch([_rgb(image)])[0]

    @torch.no_grad()
    def predict_batch(self, images: Sequence[Image.Image]) -> list[np.ndarray]:
        """Predict the mask ids of RGB images of one size together; see :meth:`predict`."""
        pixels = torch.stack([self._resize(image, None)[0] for image in images]).to(self.device)
        logits = self._logits(self._normalize(unit_range(pixels)))
        channels = ops.upsampled_argmax(logits, (images[0].height, images[0].width)).cpu().numpy()
        return list(self.ids[channels])


def _rgb(image: Image.Image | np.ndarray | Path | str) -> Image.Image:
    if isinstance(image, (str, Path)):
        return upright(Path(image))
    if isinstance(image, Image.Image):
        return rgb(image)
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or pixels.shape[2:] == (3,)) or not pixels.size:
        raise UserError(
            f"image: expected a uint8 array (H, W, 3) or (H, W), got {pixels.dtype} {pixels.shape}; "
            "scale values in 0..1 by 255, and put the channels last"
        )
    return Image.fromarray(pixels).convert("RGB")


def predict(
    images: Sequence[Path],
    model: Path,
    out: Path,
    device: torch.device,
    *,
    batch: int = 8,
    overwrite: bool = False,
) -> list[Path]:
    """Write `NAME.png`, a palette mask of mask ids, and `NAME_overlay.jpg` for each image.

    Args:
        images: files that Pillow reads, folders of them, and patterns (`photos/*.jpg`, `**` for subfolders).
        model: the checkpoint of a step, or an exported model.
        out: folder for the results.
        device: runs the model.
        batch: number of images of one size that are computed together, at least 1.
        overwrite: write into a folder that is not empty.

    Returns:
        The masks written, in the order of the images.

    Raises:
        UserError: an argument is wrong, an image is missing or no image, or two images have the same name; nothing is
            written then. Or an image turned out to be broken when it was read; the others are written then.
    """
    from tqdm import tqdm

    if batch < 1:
        raise UserError(f"--batch: expected at least 1 image, got {batch}")
    files = find_images(images)
    if out.exists() and not overwrite and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; use --overwrite or another --out")
    by_size = check_images(files, out)
    predictor = Predictor.load(model, device)
    out.mkdir(parents=True, exist_ok=True)
    written: dict[Path, Path] = {}
    broken: list[str] = []
    with tqdm(total=len(files), unit="image", disable=None) as bar:
        for same_size in by_size.values():
            for start in range(0, len(same_size), batch):
                paths = same_size[start : start + batch]
                pictures = {path: picture for path in paths if (picture := _read(path, broken))}
                masks = predictor.predict_batch(list(pictures.values())) if pictures else []
                for (path, picture), ids in zip(pictures.items(), masks, strict=True):
                    written[path] = write(picture, ids, out, path.stem)
                    bar.write(f"{written[path]}: {', '.join(names(predictor, ids)) or 'background'}")
                bar.update(len(paths))
    if broken:
        raise UserError(f"{len(broken)} of {len(files)} images were left out; the others are in {out}: {broken[0]}")
    return [written[path] for path in files]


def _read(path: Path, broken: list[str]) -> Image.Image | None:
    try:
        return upright(path)
    except UserError as error:
        broken.append(str(error))
        return None


def write(picture: Image.Image, ids: np.ndarray, out: Path, name: str) -> Path:
    """Write the mask and the overlay of one image; returns the mask's file."""
    colours, (mask, coloured) = palette.palette(256), outputs(out, name)
    palette.apply(ids, colours).save(mask)
    overlay(picture, ids, colours=colours).save(coloured, quality=92)
    return mask


def outputs(out: Path, name: str) -> tuple[Path, Path]:
    """Paths of an image's mask and overlay."""
    return out / f"{name}.png", out / f"{name}_overlay.jpg"


def names(predictor: Predictor, ids: np.ndarray) -> list[str]:
    """The classes in a mask, without the background."""
    present = np.unique(ids)
    return [name for name, i in zip(predictor.classes, predictor.ids, strict=True) if i and i in present]


def find_images(patterns: Sequence[Path]) -> list[Path]:
    """The files that paths, folders and patterns stand for, each once; UserError if one of them stands for no file."""
    found: list[Path] = []
    for pattern in patterns:
        if pattern.is_dir():
            files = sorted(path for path in pattern.iterdir() if path.suffix.lower() in EXTENSIONS)
            expected = f"a folder with images ({', '.join(EXTENSIONS)})"
        elif glob.has_magic(str(pattern)) and not pattern.exists():
            files = sorted(path for name in glob.glob(str(pattern), recursive=True) if (path := Path(name)).is_file())
            expected = "a pattern that files fit"
        else:
            files, expected = [pattern], "a file"
        if not files:
            raise UserError(f"images {pattern}: expected {expected}, found none")
        found += files
    if not found:
        raise UserError("no image was given; name one or more image files, folders or patterns")
    return list(dict.fromkeys(found))


def check_images(images: Sequence[Path], out: Path) -> dict[tuple[int, int], list[Path]]:
    """Group images by their size (width, height) when upright.

    Raises:
        UserError: a file is missing or no image, a result would overwrite an image, or two results have the same name.
    """
    inputs = {path.resolve() for path in images}
    stems: dict[str, Path] = {}
    sizes: defaultdict[tuple[int, int], list[Path]] = defaultdict(list)
    for path in images:
        if stems.setdefault(path.stem, path) != path:
            raise UserError(f"{stems[path.stem]} and {path} would both be written as {path.stem}.png; rename one")
        if lost := [file for file in outputs(out, path.stem) if file.resolve() in inputs]:
            raise UserError(f"the result of {path} would overwrite the image {lost[0]}; choose another --out")
        try:
            with Image.open(path) as file:
                file.verify()
            with Image.open(path) as file:  # nothing else can be read after verify
                turned = orientation(file) > 4  # by a quarter
                sizes[file.size[::-1] if turned else file.size].append(path)
        except FileNotFoundError:
            raise UserError(f"image {path}: no such file") from None
        except UNREADABLE as error:
            raise UserError(f"image {path} cannot be read ({error}); give an image file such as JPEG or PNG") from error
    return sizes
