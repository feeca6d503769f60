"""Check a folder in VOC's layout: every list, image and mask."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from wilson.config.masks import BACKGROUND, VOID
from wilson.data.check.counts import count
from wilson.data.check.diagnosis import label_shift, likely_cause, turns_doubtfully
from wilson.data.check.findings import Problem, Report, Split
from wilson.data.images import how_stored, read_image, read_mask, turned
from wilson.data.scan import ids_among
from wilson.data.sources.voc import (
    CLASSES,
    LABELS,
    LISTS,
    Entry,
    Lists,
    list_file,
    read_classes,
    read_image_labels,
    read_list,
    splits,
)
from wilson.data.tasks import Task
from wilson.errors import UserError


@dataclass
class _Finding:
    """What reading one image and its mask found."""

    pixels: NDArray[np.int64] | None = None  # of each mask id, (256,); None without a readable mask
    errors: list[tuple[Path, str]] = field(default_factory=list)
    warnings: list[tuple[Path, str]] = field(default_factory=list)


def check_voc(root: Path, task: str | None, protocol: str) -> Report:
    """As :func:`wilson.data.check.check`, for a folder in VOC's layout."""
    return _Check(root, task, protocol).run()


class _Check:
    def __init__(self, root: Path, task: str | None, protocol: str) -> None:
        self.root, self.protocol = root, protocol
        self.names = splits(root)
        if not self.names:
            raise UserError(f"{root / LISTS}: no lists; expected files such as train.txt with one image name per line")
        self.classes, self.lists = read_classes(root), Lists(root)
        self.task = None if task is None else Task.parse(task, self.classes)
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []

    def run(self) -> Report:
        lists = {name: self._entries(name) for name in self.names}
        self.labels = self._image_labels()
        entries = list(dict.fromkeys(entry for listed in lists.values() for entry in listed))
        self.findings = {entry: _examine(entry) for entry in tqdm(entries, desc="Checking", unit="image")}
        for entry, finding in self.findings.items():
            self._judge(entry, finding)
        self._judge_ids()
        counts = tuple(self._count(name, listed) for name, listed in lists.items())
        self._warn_overlap(lists)
        source = f"of {CLASSES}" if (self.root / CLASSES).is_file() else f"VOC's, because there is no {CLASSES}"
        return Report(
            self.root, self.classes, self.task, self.protocol, counts, tuple(self.errors), tuple(self.warnings), source
        )

    def _error(self, file: Path, text: object) -> None:
        self.errors.append(self._problem(file, text))

    def _warn(self, file: Path, text: object) -> None:
        self.warnings.append(self._problem(file, text))

    def _problem(self, file: Path, text: object) -> Problem:
        return Problem(os.path.relpath(file, self.root), str(text).removeprefix(f"{file}: "))

    def _entries(self, name: str) -> list[Entry]:
        file = list_file(self.root, name)
        entries = [entry for line in read_list(self.root, name) if (entry := self._entry(name, line)) is not None]
        for image, times in Counter(entry.name for entry in entries).items():
            if times > 1:
                self._error(file, f"lists '{image}' {times} times; list each image once")
        if not entries:
            self._error(file, "lists no image")
        return list(dict.fromkeys(entries))

    def _entry(self, name: str, line: str) -> Entry | None:
        try:
            return self.lists.entry(name, line)
        except UserError as error:
            self._error(list_file(self.root, name), error)
            return None

    def _image_labels(self) -> dict[str, frozenset[int]]:
        try:
            return read_image_labels(self.root, self.classes)
        except UserError as error:
            self._error(list_file(self.root, LABELS), error)
            return {}

    def _judge(self, entry: Entry, finding: _Finding) -> None:
        for file, text in finding.errors:
            self._error(file, text)
        for file, text in finding.warnings:
            self._warn(file, text)
        if finding.pixels is not None:
            beyond = np.flatnonzero(finding.pixels[len(self.classes) : VOID]) + len(self.classes)
            if len(beyond):
                ids = ", ".join(f"{class_id} ({finding.pixels[class_id]} pixels)" for class_id in beyond[:5])
                more = f" and {len(beyond) - 5} more" if len(beyond) > 5 else ""
                self._error(entry.mask, f"unknown ids {ids}{more}; the classes are 0 to {len(self.classes) - 1}")
        elif not finding.errors and entry.name not in self.labels:
            sought = entry.sought.replace(f"{self.root}{os.sep}", "")
            self._error(
                entry.mask,
                f"no such mask (looked for {sought}), and no line for '{entry.name}' in {LABELS}.txt; add one of them",
            )

    def _judge_ids(self) -> None:
        """Look at all masks together, for the likely cause of wrong ids and for contradictions to the labels."""
        masks = {entry: finding.pixels for entry, finding in self.findings.items() if finding.pixels is not None}
        if not masks:
            return
        cause = likely_cause(np.sum(list(masks.values()), axis=0), self.classes)
        labelled = {entry: ids_among(pixels) for entry, pixels in masks.items() if entry.name in self.labels}
        wrong = [entry for entry, ids in labelled.items() if ids - {BACKGROUND} != self.labels[entry.name]]
        shift = label_shift(labelled.values(), (self.labels[entry.name] for entry in labelled)) if wrong else None
        if shift is not None:
            cause = (
                f"every id is one too {'low' if shift > 0 else 'high'}, according to {LABELS}.txt; "
                f"{'add 1 to' if shift > 0 else 'subtract 1 from'} the classes' ids"
            )
        if cause is not None:
            example = wrong[0] if wrong else next(iter(masks))
            self.errors.insert(
                0, self._problem(example.mask.parent, f"likely cause: {cause} (see {example.mask.name})")
            )
        elif wrong:
            self._warn(
                wrong[0].mask,
                f"holds {sorted(labelled[wrong[0]] - {BACKGROUND})}, {LABELS}.txt says "
                f"{sorted(self.labels[wrong[0].name])}; they differ in {len(wrong)} of {len(labelled)} images, "
                "and the masks are used",
            )

    def _count(self, name: str, entries: Sequence[Entry]) -> Split:
        held: list[frozenset[int]] = []
        pixels = np.zeros(256, np.int64)
        masks = 0
        for entry in entries:
            found = self.findings[entry].pixels
            if found is None:
                held.append(self.labels.get(entry.name, frozenset()))
            else:
                held.append(ids_among(found))
                pixels += found
                masks += 1
        split, warnings = count(name, held, pixels, masks, self.classes, self.task, self.protocol)
        for text in warnings:
            self._warn(list_file(self.root, name), text)
        return split

    def _warn_overlap(self, lists: dict[str, list[Entry]]) -> None:
        for one, other in combinations(lists, 2):
            # trainval and the like are unions by intent
            if {_kind(one), _kind(other)} == {"train", "val"}:
                both = {entry.name for entry in lists[one]} & {entry.name for entry in lists[other]}
                if both:
                    self._warn(
                        list_file(self.root, other),
                        f"shares {len(both)} images with {one}, such as '{min(both)}': results on them say little",
                    )


def _examine(entry: Entry) -> _Finding:
    finding = _Finding()
    image = mask = None
    if not entry.image.is_file():
        finding.errors.append((entry.image, entry.no_image))
    else:
        try:
            image = read_image(entry.image)
        except UserError as error:
            finding.errors.append((entry.image, str(error)))
    if entry.mask.is_file():
        try:
            mask = read_mask(entry.mask)
        except UserError as error:
            finding.errors.append((entry.mask, str(error)))
    if mask is not None:
        finding.pixels = np.array(mask.histogram(), np.int64)
        if image is not None:
            stored = how_stored(entry.image)
            if turned(mask, stored).size != image.size:
                finding.errors.append((entry.mask, "is {}x{} pixels, the image {}x{}".format(*mask.size, *image.size)))
            elif text := turns_doubtfully(stored, mask.size):
                finding.warnings.append((entry.image, text))
    return finding


def _kind(split: str) -> str:
    if split.startswith("trainval"):
        return "union"
    return next((kind for kind in ("train", "val") if split.startswith(kind)), split)
