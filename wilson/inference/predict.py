"""Segment images with a trained model."""

from __future__ import annotations

import glob
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from wilson import ops
from wilson.checkpoint import Checkpoint, open_model
from wilson.data.files import EXTENSIONS, is_data, is_image
from wilson.data.images import header, read_image, rgb
from wilson.data.transforms import Normalization, WholeImage, unit_range
from wilson.errors import UserError
from wilson.grown import Grown
from wilson.inference.exported import ONNX, PROGRAM, Description, Exported
from wilson.pictures import palette
from wilson.pictures.overlay import overlay, with_legend
from wilson.printing import printable

if TYPE_CHECKING:
    from wilson.hub import HubModel  # which needs huggingface_hub

# Pixels. They bound memory, whatever the images: those of a batch, and those whose classes are found at once.
BATCH, PART = 2**27, 2**26
LONGEST_OVERLAY, LARGEST_OVERLAY = 2**14, 2**25  # side and area; a larger overlay is drawn at a fraction of the size


class Predictor:
    """A trained model that segments images of any size.

    Args:
        model: the checkpoint of a step, one of the Hub, a grown model of another library, or an exported one.
        device: runs the model.

    Attributes:
        classes: names by output channel, background first.
        ids: the mask id of each channel, uint8.
    """

    def __init__(self, model: Checkpoint | Grown | HubModel | Exported, device: torch.device) -> None:
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
    def load(cls, path: Path, device: torch.device, builder: str | None = None) -> Predictor:
        """Load a model.

        Args:
            path: a checkpoint, a .pt2 or .onnx file, a run's folder, whose last step counts, or a folder that
                `wilson save` or `wilson add` wrote.
            device: runs the model.
            builder: FILE.py:FUNCTION that returns the architecture, for a folder whose model was built by one.

        Raises:
            UserError: there is no model, or its code is needed.
        """
        if path.suffix in (PROGRAM, ONNX):
            return cls(Exported.read(path, device), device)
        return cls(open_model(path, builder), device)

    def predict(self, image: Image.Image | np.ndarray | Path | str) -> np.ndarray:
        """Predict the mask id of every pixel.

        The model sees the image with its short side resized to that of the evaluated crops; an image longer than 6:1 is
        resized to the area of one of 6:1.

        Args:
            image: a PIL image, as its pixels stand; an array, uint8 (H, W, 3) RGB or (H, W) grey; or an image file,
                which is turned upright as its EXIF data says.

        Returns:
            Mask ids (H, W), uint8.

        Raises:
            UserError: the file cannot be read, or the array has another shape or dtype.
        """
        return self.predict_batch([_rgb(image)])[0]

    @torch.no_grad()
    def predict_batch(self, images: Sequence[Image.Image]) -> list[np.ndarray]:
        """Predict the mask ids of RGB images of one size together; see :meth:`predict`."""
        logits, size = self._see(images), (images[0].height, images[0].width)
        return [np.concatenate([self.ids[part] for part in _parts(one, size)]) for one in logits.split(1)]

    @torch.no_grad()
    def probabilities(self, image: Image.Image | np.ndarray | Path | str) -> np.ndarray:
        """The probability of each class at each pixel: the softmax of the logits, upsampled to the image's size.

        Args:
            image: as for :meth:`predict`, which picks the most probable class.

        Returns:
            Probabilities (C, H, W), float32, in the order of `classes`.

        Raises:
            UserError: as for :meth:`predict`.
        """
        picture = _rgb(image)
        size = (picture.height, picture.width)
        logits = F.interpolate(self._see([picture]).float(), size=size, mode="bilinear", align_corners=False)
        return logits.softmax(1)[0].cpu().numpy()

    def colours(self) -> list[palette.Colour]:
        """The report's colour of each mask id; white for those that the model does not know."""
        table: list[palette.Colour] = [(255, 255, 255)] * 256
        for class_id, colour in zip(self.ids, palette.distinct(len(self.ids)), strict=True):
            table[class_id] = colour
        return table

    def _see(self, images: Sequence[Image.Image]) -> Tensor:
        """Logits at feature resolution for RGB images of one size."""
        pixels = torch.stack([self._resize(image, None)[0] for image in images]).to(self.device)
        return self._logits(self._normalize(unit_range(pixels)))


def _parts(logits: Tensor, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """The arg-max of the upsampled logits (1, C, h, w), channels (rows, W) from top to bottom; small ones are whole."""
    height, width = size
    rows = max(1, PART // width)
    if rows >= height:
        yield ops.upsampled_argmax(logits, size)[0].cpu().numpy()
        return
    # As bilinear upsampling does it: each row of the result lies between two rows of the logits.
    place = ((torch.arange(height, dtype=torch.float64) + 0.5) * (logits.shape[2] / height) - 0.5).clamp(min=0)
    above = place.long().clamp(max=logits.shape[2] - 1)
    below, weight = (above + 1).clamp(max=logits.shape[2] - 1), (place - above)[:, None]
    for which in torch.arange(height).split(rows):
        over, under, share = (values[which].to(logits.device) for values in (above, below, weight))
        between = torch.lerp(logits[:, :, over], logits[:, :, under], share.to(logits.dtype))
        yield ops.upsampled_argmax(between, (len(which), width))[0].cpu().numpy()


def _rgb(image: Image.Image | np.ndarray | Path | str) -> Image.Image:
    if isinstance(image, (str, Path)):
        return read_image(Path(image))
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
    probabilities: bool = False,
    builder: str | None = None,
) -> list[Path]:
    """Write `NAME.png`, a palette mask of mask ids, and `NAME_overlay.jpg` with a legend for each image.

    Args:
        images: files that Pillow reads, folders of them, and patterns (`photos/*.jpg`, `**` for subfolders).
        model, builder: see :meth:`Predictor.load`.
        out: folder for the results.
        device: runs the model.
        batch: number of images of one size that are computed together, at least 1.
        overwrite: write into a folder that is not empty.
        probabilities: write `NAME_probabilities.npz`, too, with `probabilities`, float16 (C, H, W), `classes`, `ids`.

    Returns:
        The masks written, in the order of the images.

    Raises:
        UserError: an argument is wrong, an image is missing, or no image can be read; nothing is written then. Or some
            images cannot be read; the others are written then.
    """
    from tqdm import tqdm

    if batch < 1:
        raise UserError(f"--batch: expected at least 1 image, got {batch}")
    files = find_images(images)
    if out.exists() and not overwrite and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty; use --overwrite or another --out")
    results = result_names(files, out)
    by_size, broken = check_images(files)
    predictor = Predictor.load(model, device, builder)
    out.mkdir(parents=True, exist_ok=True)
    written: dict[Path, Path] = {}
    with tqdm(total=len(files), initial=len(broken), unit="image", disable=None) as bar:
        for (width, height), same_size in by_size.items():
            at_once = min(batch, max(1, BATCH // (width * height)))
            for start in range(0, len(same_size), at_once):
                paths = same_size[start : start + at_once]
                for path, picture, ids in _segmented(predictor, paths, broken):
                    written[path] = write(predictor, picture, ids, out, results[path])
                    if probabilities:
                        write_probabilities(predictor, picture, outputs(out, results[path])[2])
                    bar.write(f"{printable(written[path])}: {', '.join(names(predictor, ids)) or 'background'}")
                bar.update(len(paths))
    if broken:
        raise UserError(f"{len(broken)} of {len(files)} images were left out; the others are in {out}: {broken[0]}")
    return [written[path] for path in files]


def _segmented(
    predictor: Predictor, paths: Sequence[Path], broken: list[str]
) -> Iterator[tuple[Path, Image.Image, np.ndarray]]:
    """Each image that can be read, and its mask ids; the errors of the others are added to `broken`."""
    by_size: defaultdict[tuple[int, int], dict[Path, Image.Image]] = defaultdict(dict)
    for path in paths:
        if (picture := _read(path, broken)) is not None:
            by_size[picture.size][path] = picture  # a header may tell another size than the pixels have
    for pictures in by_size.values():
        masks = predictor.predict_batch(list(pictures.values()))
        yield from zip(pictures, pictures.values(), masks, strict=True)


def _read(path: Path, broken: list[str]) -> Image.Image | None:
    try:
        return read_image(path)
    except UserError as error:
        broken.append(str(error))
        return None


def write(predictor: Predictor, picture: Image.Image, ids: np.ndarray, out: Path, name: str) -> Path:
    """Write the mask and the overlay of one image, in the report's colours; returns the mask's file."""
    colours, (mask, coloured, _) = predictor.colours(), outputs(out, name)
    mask.parent.mkdir(parents=True, exist_ok=True)
    palette.apply(ids, colours).save(mask)
    known = {int(class_id): label for class_id, label in zip(predictor.ids, predictor.classes, strict=True)}
    entries = [(known[class_id], colours[class_id]) for class_id in np.unique(ids).tolist() if class_id]
    side, area = max(picture.size), picture.width * picture.height
    step = max(math.ceil(side / LONGEST_OVERLAY), math.ceil(math.sqrt(area / LARGEST_OVERLAY)))
    if step > 1:
        picture, ids = picture.reduce(step), np.ascontiguousarray(ids[::step, ::step])
    with_legend(overlay(picture, ids, colours=colours), entries).save(coloured, quality=92)
    return mask


def write_probabilities(predictor: Predictor, picture: Image.Image, path: Path) -> None:
    """Write the probabilities of one image, and the classes and ids that they are of."""
    values = predictor.probabilities(picture).astype(np.float16)
    np.savez_compressed(path, probabilities=values, classes=np.array(predictor.classes), ids=predictor.ids)


def outputs(out: Path, name: str) -> tuple[Path, Path, Path]:
    """Paths of an image's mask, overlay and probabilities."""
    return out / f"{name}.png", out / f"{name}_overlay.jpg", out / f"{name}_probabilities.npz"


def names(predictor: Predictor, ids: np.ndarray) -> list[str]:
    """The classes in a mask, without the background."""
    present = np.unique(ids)
    return [name for name, i in zip(predictor.classes, predictor.ids, strict=True) if i and i in present]


def find_images(patterns: Sequence[Path]) -> list[Path]:
    """The files that paths, folders and patterns stand for, each once; UserError if one of them stands for no file."""
    found: list[Path] = []
    images = f"images ({', '.join(EXTENSIONS)})"
    for pattern in patterns:
        if pattern.is_dir():
            files = sorted(path for path in pattern.iterdir() if is_image(Path(path.name)))
            expected = f"a folder with {images}"
        elif glob.has_magic(str(pattern)) and not pattern.exists():
            matches = (Path(name) for name in glob.glob(str(pattern), recursive=True))
            files = sorted(path for path in matches if _is_meant(path, pattern) and path.is_file())
            expected = f"a pattern that {images} fit"
        else:
            # A shell that expands a pattern names side files, too
            files, expected = [pattern] if is_data(Path(pattern.name)) else [], "an image, no side file of a system"
        if not files and (len(patterns) == 1 or is_data(Path(pattern.name))):
            raise UserError(f"images {pattern}: expected {expected}, found none")
        found += files
    if not found:
        raise UserError("no image was given; name one or more image files, folders or patterns")
    return list(dict.fromkeys(found))


def _is_meant(path: Path, pattern: Path) -> bool:
    """Whether a pattern stands for a path that it fits: an image, and no side file unless the pattern names it."""
    found = [part for part in path.parts if part not in pattern.parts]
    return path.suffix.lower() in EXTENSIONS and is_data(Path(*found))


def result_names(images: Sequence[Path], out: Path) -> dict[Path, str]:
    """The name of each image's results: that of its file, with its folders where several files have the same name.

    Raises:
        UserError: a result would overwrite an image.
    """
    top = Path(os.path.commonpath([path.absolute().parent for path in images]))
    below = {path: path.absolute().relative_to(top) for path in images}
    names = {path: path.stem for path in images}
    for longer in (lambda path: str(below[path].with_suffix("")), lambda path: str(below[path])):
        times = Counter(names.values())
        names = {path: name if times[name] == 1 else longer(path) for path, name in names.items()}
    if len(set(names.values())) < len(names):  # the longer name of one is the short one of another, `a.jpg.png`
        names = {path: str(below[path]) for path in images}
    inputs = {path.resolve() for path in images}
    for path, name in names.items():
        if lost := [file for file in outputs(out, name) if file.resolve() in inputs]:
            raise UserError(f"the result of {path} would overwrite the image {lost[0]}; choose another --out")
    return names


def check_images(images: Sequence[Path]) -> tuple[dict[tuple[int, int], list[Path]], list[str]]:
    """Group images by their size (width, height) when upright.

    Returns:
        The groups, and the errors of images that cannot be read.

    Raises:
        UserError: a file is missing, or no image can be read.
    """
    sizes: defaultdict[tuple[int, int], list[Path]] = defaultdict(list)
    broken: list[str] = []
    for path in images:
        if not path.exists():
            raise UserError(f"image {path}: no such file")
        try:
            sizes[header(path).upright].append(path)
        except UserError as error:
            broken.append(str(error))
    if not sizes:
        raise UserError(broken[0])
    return sizes, broken
