"""What the page does with a work folder; all of it is done by other rooms."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from wilson.adding.add import make_plan, training_set
from wilson.adding.choices import Given
from wilson.adding.jobs import Jobs
from wilson.adding.photographs import check_names
from wilson.adding.subject import open_subject
from wilson.data.images import read_image
from wilson.distributed import choose_device
from wilson.errors import UserError
from wilson.grown import Grown, inside
from wilson.inference.coco import document
from wilson.inference.predict import Predictor
from wilson.inference.side_by_side import side_by_side
from wilson.pictures import palette
from wilson.pictures.inline import url
from wilson.report import watching

from .uploads import Pile, said

NAME = re.compile(r"[^\W_][\w -]{0,39}")
SIDE = 800  # longest side of a photograph on the page, in pixels


class Desk:
    """Arguments as for :func:`serve`; the work folder is absolute."""

    def __init__(
        self, models: Sequence[Path], work: Path, builder: str | None, validation: Path | None, device: str
    ) -> None:
        self.work, self.builder, self.validation, self.device = work, builder, validation, device
        last = [path.absolute().name for path in models]  # a label as short as tells them apart
        self.given = {n if last.count(n) == 1 else str(p): p.absolute() for n, p in zip(last, models, strict=True)}
        self.jobs = Jobs(work / "jobs")
        self.photographs, self.without = (Pile(work / "photographs" / kind) for kind in ("with", "without"))
        self.note = work / "name.txt"  # of the class, so that a reloaded page has it
        self.predictor, self.subject = cache(self._predictor), cache(self._subject)

    def offered(self) -> dict[str, Path]:
        """The models by their labels: those that were given, then those that were made here."""
        made = ((job, job.written) for job in self.jobs.all())
        return self.given | {f"{job.model} + {job.name} ({job.path.name[:4]})": path for job, path in made if path}

    def model(self, label: str | None) -> Path:
        """The path of a model."""
        if label is None or label not in (found := self.offered()):
            raise UserError("no model is chosen; `wilson serve MODEL` opens the page with one")
        return found[label]

    def look(self, label: str | None, other: str | None, photograph: Path) -> tuple[str, Path, Path]:
        """What viewer.js draws, and the mask at the photograph's own size, as PNG and as JSON of COCO."""
        model, picture = self.predictor(self.model(label)), read_image(photograph)
        picture.thumbnail((SIDE, SIDE))
        asked = {one: self.predictor(self.model(one)) for one in (other, label) if one}
        colours, seen = side_by_side(picture, asked)
        panes = [
            {"title": title, "labels": url(of.labels), "sure": url(np.rint(255 * of.sure).astype(np.uint8)),
             "shares": of.shares} for title, of in seen.items()
        ]  # fmt: skip
        value = {"photograph": url(np.asarray(picture)), "size": picture.size, "panes": panes, "classes": colours}
        ids, out = model.predict(photograph), self.work / "cache" / "masks" / photograph.parent.name
        out.mkdir(parents=True, exist_ok=True)
        png, coco = out / f"{photograph.stem}_mask.png", out / f"{photograph.stem}_coco.json"
        palette.apply(ids, model.colours()).save(png)
        names = dict(zip(model.ids.tolist(), model.classes, strict=True))
        coco.write_text(json.dumps(document(photograph.name, ids, names)), encoding="utf-8")
        return json.dumps(value), png, coco

    def name(self, label: str | None, text: str) -> str:
        """The name of a new class, which the model does not know yet."""
        if not NAME.fullmatch(text.strip()):
            raise UserError("a name has up to 40 letters, digits, spaces, - and _, a letter or digit first")
        check_names([text.strip()], self.predictor(self.model(label)).classes)
        return text.strip()

    def plan(self, label: str | None, text: str, epochs: float) -> list[str]:
        """The plan of `wilson add`; UserError says what it lacks."""
        fields = {"a name": text.strip(), "photographs with it": self.photographs.files()}
        fields["photographs without it"] = self.without.files()
        if lacking := [field for field, held in fields.items() if not held]:
            raise UserError(f"still missing: {', '.join(lacking)}")
        name, validation = self.name(label, text), None if self.validation is None else str(self.validation)
        given = Given(epochs=int(epochs) or None, device=self.device)
        subject = self.subject(self.model(label))
        plan = make_plan(subject, {name: self.photographs.folder}, self.without.folder, validation, given)
        training_set(plan)
        return [self.plain(line) for line in plan.lines()]

    def start(self, label: str | None, text: str, epochs: float) -> None:
        """Start `wilson add`, unless it would refuse."""
        self.plan(label, text, epochs)
        name, path = self.name(label, text), self.model(label)
        options = {"--device": self.device, "--validation": self.validation, "--builder": self._needed(path)}
        words = [str(word) for pair in options.items() if pair[1] is not None for word in pair]
        words += ["--epochs", str(int(epochs))] if epochs else []
        self.jobs.start(name, (str(label), path), self.photographs.folder, self.without.folder, words)

    def told(self) -> tuple[str, str, str]:
        """The last job: its state, a text that changes whenever there is more to tell, and what there is, as HTML."""
        job = next(reversed(self.jobs.all()), None)
        state = "none" if job is None else self.jobs.state(job)
        if job is None:
            return state, state, '<p class="hint">Nothing was added yet.</p>'
        if state == "running":
            return state, f"{job.path} {watching.stamp(job.run)}", watching.running(job.run, job.name)
        if state == "done":
            return state, f"{job.path} {state}", watching.finished(job.run, job.name)
        reason = job.reason()
        why = (
            said(f"{job.name} was not learned: {reason}")
            if reason
            else said(f"{job.name}: stopped, and can go on.", "hint")
        )
        return state, f"{job.path} {state}", why + watching.so_far(job.run)

    def plain(self, error: UserError | str) -> str:
        """A sentence in the words of the page, which has fields in place of folders and options."""
        text = re.sub(r" \(--[^)]*\)", "", str(error)).rstrip(".")
        text = text.replace(str(self.without.folder), "without it").replace(str(self.photographs.folder), "with it")
        return text[:1].upper() + text[1:] + "."

    def _needed(self, path: Path) -> str | None:
        folder = inside(path)
        return self.builder if folder is not None and Grown(folder).builder else None

    def _predictor(self, path: Path) -> Predictor:
        return Predictor.load(path, choose_device(self.device), self._needed(path))

    def _subject(self, path: Path) -> Any:
        return open_subject(path, builder=self._needed(path))
