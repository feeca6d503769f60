"""The command demo."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from wilson.config import RECIPES, changed
from wilson.errors import UserError

from .options import Folder, Where, flag


@dataclass(frozen=True)
class Demo:
    """Train the base step, fine-tuning and WILSON on the built-in data set, and compare them in one report."""

    where: Folder = field(default_factory=Where)
    seed: int = 0
    """Seed of data, initialisation, order and augmentation."""

    def __call__(self) -> int:
        from wilson import distributed
        from wilson.runs.demo import demo
        from wilson.runs.folder import default_folder

        if distributed.launched():
            raise UserError("the demo runs in one process; torchrun is for wilson run and wilson train")
        config = changed(RECIPES["demo"], {"seed": self.seed}, flag)
        out = self.where.out or default_folder(replace(config, method="wilson"), suffix="demo")
        report = demo(config, out, resume=self.where.resume, overwrite=self.where.overwrite)
        print(f"open {report}")
        return 0
