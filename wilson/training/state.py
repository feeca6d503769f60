"""The training state, from which a killed step resumes. Two generations are kept, each with checksums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from wilson import checkpoint, distributed
from wilson.atomic import replacing
from wilson.errors import UserError, first_line
from wilson.run_folder import StepFolder


class TrainingState:
    """Everything that the next epoch depends on: the parts' state dicts, the epoch, and the random numbers.

    Args:
        folder: of the step.
        device: of the training; its random numbers are kept, besides the CPU's.
        parts: objects with `state_dict` and `load_state_dict`, by name.

    Attributes:
        evaluation: what the last epoch's evaluation returned, plain values and tensors; None before it.
    """

    def __init__(self, folder: StepFolder, device: torch.device, **parts: Any) -> None:
        self.folder, self.device, self.parts = folder, device, parts
        self.evaluation: Any = None
        self._newest_is_good = True

    def keep(self, epoch: int) -> None:
        """Write the state after `epoch` epochs; the one before stays beside it."""
        values = {name: part.state_dict() for name, part in self.parts.items()}
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        save(
            {
                "format": checkpoint.FORMAT,
                "epoch": epoch,
                "rng": torch.get_rng_state(),
                "cuda_rng": cuda,
                "evaluation": self.evaluation,
                **values,
            },
            self.folder,
            keep_newest=self._newest_is_good,
        )
        self._newest_is_good = True

    def restore(self) -> int:
        """Load the newest state that is whole and fits the parts. One that is not stays until the next is written.

        Returns:
            The epoch to continue with; 0 if there is no state.

        Raises:
            UserError: there are states, but none will do.
        """
        failed: dict[Path, str] = {}
        for path in (self.folder.state, self.folder.previous_state):
            if not path.exists():
                continue
            try:
                epoch = self._take(checkpoint.load(path))
            except (UserError, KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
                failed[path] = first_line(error)
                continue  # a misfit may have been loaded in part; the next one, or none at all, takes its place
            for wrong, reason in failed.items():
                self._newest_is_good = False
                _say(f"{wrong} cannot be used ({reason}); going on from {path}, after epoch {epoch}")
            return epoch
        if failed:
            names, reason = " and ".join(map(str, failed)), next(iter(failed.values()))
            raise UserError(
                f"{names}: damaged, or of another configuration or program ({reason}); move away, and --resume trains "
                "this step from its start; the steps before it are kept"
            )
        return 0

    def _take(self, values: dict[str, Any]) -> int:
        epoch, evaluation, rng, cuda = (values[key] for key in ("epoch", "evaluation", "rng", "cuda_rng"))
        if type(epoch) is not int or epoch < 1:
            raise ValueError(f"epoch {epoch!r}")
        for name, part in self.parts.items():
            part.load_state_dict(values[name])
        torch.set_rng_state(rng)
        if self.device.type == "cuda" and cuda is not None:
            torch.cuda.set_rng_state(cuda, self.device)
        self.evaluation = evaluation
        return epoch


def save(values: dict[str, Any], folder: StepFolder, *, keep_newest: bool = True) -> None:
    """Write the training state of a step, and keep the one before beside it, unless that one cannot be used."""
    with replacing(folder.state) as temporary:
        with temporary.open("wb") as file:
            torch.save(values, file)
        if keep_newest and folder.state.exists():
            folder.state.replace(folder.previous_state)


def present(folder: StepFolder) -> bool:
    """Whether a step has a training state to go on from."""
    return folder.state.exists() or folder.previous_state.exists()


def remove(folder: StepFolder) -> None:
    """Remove the training state of a step that is complete, and what tells how far it is."""
    for path in (folder.state, folder.previous_state, folder.progress):
        path.unlink(missing_ok=True)


def _say(text: str) -> None:
    if distributed.is_main():
        print(text, flush=True)
