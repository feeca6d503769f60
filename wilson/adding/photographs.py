"""The photographs of new classes: a folder for each, and a folder without any; a part is held out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wilson.config.masks import BACKGROUND
from wilson.data.files import images_below
from wilson.data.sources.base import ImageSource, class_sets
from wilson.data.sources.labelled import Labelled, among, open_folders, open_negatives
from wilson.data.sources.views import Chosen, Joined, usable
from wilson.errors import UserError

LEAST, FEW = 2, 20  # photographs of a class: fewer are refused, or warned of
FIFTH, ENOUGH = 5, 10  # a fifth is held out where there are enough


@dataclass(frozen=True)
class Photographs:
    """What a model learns new classes from.

    Attributes:
        training: photographs of the new classes, with their mask ids.
        negatives: photographs without any of them; None without such a folder.
        held_out: a fifth of both, to tell how it went; may be empty.
        counts: photographs of each class, those held out included.
        others: photographs without any of them, those held out included.
        notes: what a user should know of them.
    """

    training: ImageSource
    negatives: ImageSource | None
    held_out: ImageSource
    counts: dict[str, int]
    others: int
    notes: tuple[str, ...]


def open_photographs(
    classes: Mapping[str, str | Path],
    without: str | Path | None,
    old: Sequence[str],
    seed: int,
    tested: ImageSource | None = None,
) -> Photographs:
    """Open the photographs of new classes. Those that are tested on are left out, and copies of them.

    Args:
        classes: a folder for each new class. An image in the folders of several has the classes of all.
        without: a folder of photographs that show none of them. Those of the classes' own folders, which may lie in it,
            are left out, and copies of them.
        old: names of the classes that the model knows, background first; the mask id of a class is its place in these
            and the new ones.
        seed: chooses what is held out.
        tested: images with masks that the model is tested on; None for none.

    Raises:
        UserError: a name is empty or known already, a folder holds too few images, or a single class has no negatives.
    """
    names = [name.strip() for name in classes]
    check_names(names, old)
    if not names:
        raise UserError("no class was named; give one or more as NAME=FOLDER")
    if len(names) == 1 and without is None:
        raise UserError(
            f"a single class needs photographs without it, too: with {names[0]} in every one, nothing tells where it "
            "is not. Give a folder of any photographs without it (--without FOLDER), or several classes"
        )
    everything, notes = (*old, *names), []
    folders: dict[Path, int] = {}
    for number, folder in enumerate(classes.values(), len(old)):
        if Path(folder) in folders:
            raise UserError(f"{folder}: is the folder of two classes; give each class a folder of its own")
        folders[Path(folder)] = number
    tests = [] if tested is None else [file for i in range(len(tested.names)) for file in tested.files(i)]
    found, note = _untaken(
        open_folders(folders, everything), tests, "the photographs", "the validation list holds them"
    )
    notes.append(note)
    shown, note = usable(found, "the photographs")
    notes.append(note)
    counts = {name: sum(number in ids for ids in class_sets(shown)) for number, name in enumerate(names, len(old))}
    for name, count in counts.items():
        if count < LEAST:
            why = "; ".join(["", *filter(None, notes)])
            raise UserError(
                f"{name}: {count} photograph{'s' * (count != 1)} can be used, expected at least {LEAST}, better "
                f"{FEW}{why}"
            )
        if count < FEW:
            notes.append(f"{name} has only {count} photographs; with {FEW} and more it is learned better")
    training, held = _divided(shown, range(len(old), len(everything)), seed)
    negatives, held_without, count = None, None, 0
    if without is not None:
        others = open_negatives(without, everything)
        for files, why in (
            ([image for folder in folders for image in images_below(folder)], "they show the new classes"),
            (tests, "the validation list holds them"),
        ):
            others, note = _untaken(others, files, without, why)
            notes.append(note)
        usables, note = usable(others, without)
        notes.append(note)
        negatives, held_without = _divided(usables, [BACKGROUND], seed)
        count = len(usables.names)
    parts = [part for part in (held, held_without) if part is not None and part.names]
    held_out = Joined(parts) if len(parts) > 1 else parts[0] if parts else held
    return Photographs(training, negatives, held_out, counts, count, tuple(filter(None, notes)))


def _untaken(source: Labelled, files: Sequence[Path], where: object, why: str) -> tuple[Labelled, str]:
    """The photographs that are neither among some files nor copies of them, and a line on those left out."""
    left = source.without(among((source.files(index)[0] for index in range(len(source.names))), files))
    count = len(source.names) - len(left.names)
    if not left.names:
        raise UserError(f"{where}: all {count} photographs are left out, as {why}; give others")
    return left, f"{where}: {count} of {len(source.names)} photographs are left out, as {why}" if count else ""


def check_names(names: Sequence[str], old: Sequence[str]) -> None:
    """Raise a UserError if the name of a new class is empty, or taken by one that the model knows or by another one."""
    known = {name.casefold() for name in old}
    for name in names:
        if not name or name.casefold() in known:
            what = "is known to the model already" if name else "is empty"
            raise UserError(f"the class '{name}' {what}; give a new class another name ({', '.join(old[:8])} ...)")
        known.add(name.casefold())


def _divided(source: ImageSource, classes: Sequence[int], seed: int) -> tuple[Chosen, Chosen]:
    """The photographs to learn from, and a fifth of each class that is held out; those of no class count as one."""

    def draw(index: int) -> bytes:
        return hashlib.blake2b(f"{seed} {source.names[index]}".encode(errors="surrogateescape")).digest()

    held: set[int] = set()
    sets = class_sets(source)
    for class_id in classes:
        members = [index for index, ids in enumerate(sets) if class_id in ids or (class_id == BACKGROUND and not ids)]
        if len(members) >= ENOUGH:
            held.update(sorted(members, key=draw)[: len(members) // FIFTH])
    return Chosen(source, sorted(set(range(len(sets))) - held)), Chosen(source, sorted(held))
