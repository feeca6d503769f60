"""Folders of maps: which images and classes they are of, and how they are filled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from wilson.data.names import named
from wilson.data.opening import open_source
from wilson.data.sources.base import ImageSource
from wilson.data.sources.labelled import open_labelled
from wilson.data.sources.prior_maps import Maps, read_maps, write_maps
from wilson.data.sources.voc import IMAGES
from wilson.data.transforms import LONGEST, Normalization, unit_range
from wilson.errors import UserError

Look = Callable[[Image], Tensor]  # from an upright RGB image to maps (N, h, w) in 0..1


def open_images(root: str, split: str, labels: str | None = None) -> ImageSource:
    """The images of a data set, or those of `data.labels`, with the data set's classes."""
    source = open_source(root, split)
    return source if labels is None else open_labelled(labels, source.classes, [Path(root, IMAGES)])


def chosen_classes(source: ImageSource, words: str | None) -> list[str]:
    """The classes that words with commas name, by name or id; all of the data set for None."""
    if words is None:
        return list(source.classes[1:])
    return [source.classes[named(word.strip(), source.classes, "--classes")] for word in words.split(",")]


def fill(out: Path, source: ImageSource, classes: Sequence[str], made: str, look: Look) -> None:
    """Write FOLDER/NAME.npz for each image; files that are there are kept, so that an interrupted command goes on.

    Args:
        out: the folder; created if missing.
        source: the images.
        classes: names of the N maps.
        made: says how the maps are made; kept in each file.
        look: makes the maps.

    Images that cannot be read get no file; how many is printed at the end.

    Raises:
        UserError: a file there is broken or of other maps.
    """

    def keep(file: Path) -> None:
        _, there, how = read_maps(file)
        if (there, how) != (list(classes), made):
            raise UserError(
                f"{file}: holds maps of {', '.join(there[:6])}, made by '{how}', not of {', '.join(classes[:6])}, "
                f"made by '{made}'; give another --out, or remove the folder"
            )

    for file, image in missing(out, ".npz", source, keep):
        maps = (look(image) * 255).round().to(torch.uint8)
        write_maps(file, Maps(maps.cpu().numpy(), list(classes), made))


def missing(
    out: Path,
    suffix: str,
    source: ImageSource,
    keep: Callable[[Path], None] = lambda _: None,
    what: str = "maps",
) -> Iterator[tuple[Path, Image]]:
    """Each file FOLDER/NAME that is still to be written, and its image; shows progress, and what cannot be read.

    Args:
        out: the folder.
        suffix: of the files.
        source: the images.
        keep: is called with each file that is there.
        what: the files hold.
    """
    unread: list[str] = []
    for index, name in enumerate(tqdm(source.names, desc=f"Making {what}", unit="image")):
        file = out / f"{name}{suffix}"
        if file.exists():
            keep(file)
            continue
        try:
            image = source.image(index)
        except UserError as error:
            unread.append(str(error))
            continue
        yield file, image
    if unread:
        print(f"no {what} of {len(unread)} images, as they cannot be read; the first: {unread[0]}", flush=True)


def resized(image: Image, short_side: int, multiple: int, normalization: Normalization) -> Tensor:
    """A whole image (1, 3, H, W), normalised, at about this short side, both sides multiples of `multiple`.

    Each pixel of a network's last map then stands for an equal part of the image. One longer than 6:1 is squeezed.
    """
    scale = short_side / min(image.size)
    sides = [min(side * scale, LONGEST * short_side) for side in (image.height, image.width)]
    size = [max(1, round(side / multiple)) * multiple for side in sides]
    pixels = F.resize(F.pil_to_tensor(image), size, interpolation=F.InterpolationMode.BILINEAR, antialias=True)
    return normalization(unit_range(pixels))[None]
