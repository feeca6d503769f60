"""What the training of a step cost, in core-hours."""

from __future__ import annotations

import json
import os

import torch

from wilson import distributed
from wilson.atomic import replacing
from wilson.run_folder import StepFolder


class Cost:
    """The processor time of a step, evaluation included: of all processes, of their loaders, and before a resume.

    A file of its own holds it, because results.json has the same bytes however often a step was resumed.

    Args:
        folder: of the step.
        device: of the training.
        resumed: add to what the folder says.
    """

    def __init__(self, folder: StepFolder, device: torch.device, resumed: bool) -> None:
        self.file, self.device = folder.cost, device
        self.before = 3600 * read(folder) if resumed and self.file.exists() else 0.0
        self.start = used()

    def keep(self) -> None:
        """Write the cost until now."""
        ours = torch.tensor(used() - self.start, device=self.device)
        seconds = self.before + distributed.total(ours).item()
        if distributed.is_main():
            with replacing(self.file) as temporary:
                temporary.write_text(json.dumps({"core_hours": round(seconds / 3600, 5)}) + "\n", encoding="utf-8")


def used() -> float:
    """Processor seconds of this process, and of those that it started and that ended: loaders end with the training."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def read(folder: StepFolder) -> float:
    """Core-hours of a step; 0 if the folder does not tell."""
    try:
        return float(json.loads(folder.cost.read_text(encoding="utf-8"))["core_hours"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
