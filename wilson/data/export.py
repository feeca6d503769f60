"""Write any data set in the VOC layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from tqdm import tqdm

from wilson.data.sources.base import ImageSource, class_sets
from wilson.data.sources.voc import CLASSES, IMAGES, LABELS, MASKS, list_file
from wilson.errors import UserError
from wilson.pictures.palette import apply


def export(sources: Mapping[str, ImageSource], out: str | Path) -> None:
    """Write data sets as the splits of one folder in the VOC layout.

    Images become JPEG files (quality 95), masks become palette PNG files in VOC's colours. `image_labels.txt` lists the
    mask ids of the classes in every image, so the data set stays usable when the masks are removed.

    Args:
        sources: the images of each split by its name; all with the same classes.
        out: the folder, new or empty.

    Raises:
        UserError: the folder is not empty or cannot be written, classes differ, or two images have the same name.
    """
    out = Path(out)
    _check(sources, out)
    classes = next(iter(sources.values())).classes
    try:
        (out / IMAGES).mkdir(parents=True)
        _write(out / CLASSES, classes)
        labels = []
        for split, source in sources.items():
            _write(list_file(out, split), source.names)
            held = class_sets(source)
            for index, name in enumerate(tqdm(source.names, desc=f"Writing {split}", unit="image")):
                labels.append(" ".join([name, *map(str, sorted(held[index]))]))
                file = out / IMAGES / f"{name}.jpg"
                file.parent.mkdir(parents=True, exist_ok=True)
                # No chroma subsampling, or thin stripes would lose their colours.
                source.image(index).save(file, quality=95, subsampling=0)
                mask = source.mask(index)
                if mask is not None:
                    file = out / MASKS[-1] / f"{name}.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    apply(mask).save(file)
        _write(list_file(out, LABELS), labels)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}; choose another folder") from error


def _check(sources: Mapping[str, ImageSource], out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: expected a new or empty folder, but something is there; choose another one")
    if len({source.classes for source in sources.values()}) != 1:
        raise UserError(f"splits {', '.join(sources)}: expected at least one, and all of the same classes")
    times = Counter(name for source in sources.values() for name in source.names)
    name, most = times.most_common(1)[0]
    if most > 1:
        raise UserError(
            f"splits {', '.join(sources)}: {most} images are named '{name}'; leave out the split that repeats"
        )


def _write(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
