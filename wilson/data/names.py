"""The classes of Pascal VOC and COCO, and which of them are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from wilson.errors import UserError

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

# COCO's 80 things, in the order of their category ids. These run from 1 to 90, with the gaps below.
COCO_GAPS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
COCO_IDS = tuple(category for category in range(1, 91) if category not in COCO_GAPS)
COCO_CLASSES = (
    "background",
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)

VOC_TO_COCO = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
_SYNONYMS = {**VOC_TO_COCO, **{coco: voc for voc, coco in VOC_TO_COCO.items()}}


def find(name: str, classes: Sequence[str]) -> int | None:
    """The mask id of a class by its name in either data set; None if there is none."""
    for word in (name, _SYNONYMS.get(name)):
        if word in classes:
            return classes.index(word)
    return None


def find_all(names: Sequence[str], classes: Sequence[str]) -> tuple[list[int], list[str]]:
    """The mask ids of classes by their names in either data set, and the names without one."""
    found = {name: find(name, classes) for name in names}
    return [where for where in found.values() if where is not None], [name for name in names if found[name] is None]


def find_id(word: str, classes: Sequence[str]) -> int | None:
    """The mask id that a word stands for; None for an unknown class.

    A word is the name of a class, or else an id. `name:3` is the class named 3 and nothing else, `id:3` the id 3.
    """
    if (found := find(word, classes)) is not None:
        return found
    kind, colon, rest = word.partition(":")
    if colon and kind == "name":
        return find(rest, classes)
    number = rest if colon and kind == "id" else word
    return int(number) if number.isdecimal() and int(number) < len(classes) else None


def named(word: str, classes: Sequence[str], where: object) -> int:
    """The mask id of a word, see :func:`find_id`; a UserError for an unknown class begins with `where`."""
    found = find_id(word, classes)
    if found is None:
        raise UserError(
            f"{where}: unknown class '{word}'; expected ids from 1 to {len(classes) - 1} or class names, such as "
            f"{', '.join(classes[1:4])}"
        )
    return found


def check_names(names: Sequence[str], where: Callable[[int], str]) -> None:
    """Check class names by mask id: each is given, printable and unlike the others, also in lower case.

    Args:
        names: without surrounding spaces.
        where: begins the error on the name at a position.

    Raises:
        UserError: a name is wrong.
    """
    first: dict[str, str] = {}
    for position, name in enumerate(names):
        before = first.setdefault(name.casefold(), name)
        if not name or not name.isprintable():
            wrong = "is empty" if not name else f"holds characters that cannot be printed: {name!r}"
        elif len(first) <= position:
            wrong = (
                f"repeats '{before}'" if name == before else f"is '{name}', which differs from '{before}' by case only"
            )
        else:
            continue
        raise UserError(f"{where(position)} {wrong}; each class needs a name of its own")
