"""Which of ImageNet's 1000 classes stand for a class: those that are kinds of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from wilson.data.files import read_lines
from wilson.data.names import find
from wilson.errors import UserError

COUNT = 1000
# For VOC's classes, by the order of ImageNet's challenge of 2012
OF_VOC = {
    "aeroplane": "404, 895",  # airliner, warplane
    "bicycle": "444, 671",  # tandem, mountain bike
    "bird": "7-24, 80-100, 127-146",
    "boat": "472, 484, 510, 554, 576, 625, 628, 780, 814, 871, 914",  # canoe to yawl
    "bottle": "440, 720, 737, 898, 907",  # of beer, pills, pop, water and wine
    "bus": "654, 779, 874",  # minibus, school bus, trolleybus
    "car": "407, 436, 468, 511, 609, 627, 656, 661, 717, 734, 751, 817",  # ambulance to sports car
    "cat": "281-285",  # those of a house
    "chair": "423, 559, 765, 857",  # barber chair, folding chair, rocking chair, throne
    "cow": "345",  # ox
    "diningtable": "532",
    "dog": "151-268",
    "horse": "339",  # sorrel
    "motorbike": "665, 670",  # moped, motor scooter
    "person": "981-983",  # ballplayer, groom, scuba diver
    "pottedplant": "738",  # flowerpot
    "sheep": "348, 349",  # ram, bighorn
    "sofa": "831",  # studio couch
    "train": "466, 547, 565, 705, 820",  # bullet train, locomotives, cars
    "tvmonitor": "664, 782, 851",  # monitor, screen, television
}


def hyponyms(classes: Sequence[str], file: Path | None = None) -> dict[str, list[int]]:
    """The ImageNet classes of each class, by those of a file, else by the table for VOC's classes.

    Args:
        classes: names.
        file: lines as in `zebra crossing: 339, 151-268, street sign`: numbers, ranges and names of ImageNet's classes.

    Returns:
        Their numbers by class, in the order of `classes`; a class that none stands for is left out.

    Raises:
        UserError: the file cannot be read, or a word in it is no class of ImageNet.
    """
    words, where = dict(OF_VOC), dict[str, str]()
    for number, line in enumerate([] if file is None else read_lines(file), 1):
        name, colon, listed = line.partition(":")
        if not line.strip() or line.startswith("#"):
            continue
        if not colon:
            raise UserError(f"{file}, line {number}: expected NAME: ImageNet classes, as in horse: 339, got '{line}'")
        words[name.strip()], where[name.strip()] = listed, f"{file}, line {number}"
    found = {}
    for name in classes:
        known = list(words)[::-1]  # the file's names come before the table's
        if (position := find(name, known)) is not None:
            found[name] = numbers(words[known[position]], where.get(known[position], "hyponyms"))
    return found


def numbers(words: str, where: str) -> list[int]:
    """The numbers of ImageNet classes from numbers, ranges and names with commas between them."""
    found: list[int] = []
    for word in (word.strip() for word in words.split(",")):
        if match := re.fullmatch(r"(\d+)(?:-(\d+))?", word):
            first, last = int(match[1]), int(match[2] or match[1])
            if not first <= last < COUNT:
                raise UserError(f"{where}: expected numbers from 0 to {COUNT - 1}, got '{word}'")
            found += range(first, last + 1)
        elif word in _names():
            found.append(_names()[word])
        else:
            near = get_close_matches(word, _names(), n=1)
            hint = f"did you mean '{near[0]}'?" if near else "give a number from 0 to 999"
            raise UserError(f"{where}: ImageNet has no class '{word}'; {hint}")
    return sorted(set(found))


@cache
def _names() -> dict[str, int]:
    """ImageNet's classes by each of their names; where two share one, by the first of them."""
    from timm.data import ImageNetInfo

    info, found = ImageNetInfo(), dict[str, int]()
    for number in range(COUNT):
        for name in info.index_to_description(number).split(","):
            found.setdefault(name.strip(), number)
    return found
