"""The training state, from which a killed step resumes. Two generations are kept, each with checksums."""

from __future__ import annotations

from typing import Any

import torch

from wilson import checkpoint
from wilson.atomic import replacing
from wilson.errors import UserError, first_line
from wilson.run_folder import StepFolder


class TrainingState:
    """Everything that the next epoch depends on: the parts' state dicts, the epoch, and the random numbers.

    Args:
        folder: of the step.
        device: of the training; its random numbers are kept, besides the CPU's.
        parts: objects with `state_dict` and `load_state_dict`, by name.
    """

    def __init__(self, folder: StepFolder, device: torch.device, **parts: Any) -> None:
        self.folder, self.device, self.parts = folder, device, parts

    def keep(self, epoch: int) -> None:
        """Write the state after `epoch` epochs."""
        values = {name: part.state_dict() for name, part in self.parts.items()}
        cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        save(
            {"format": checkpoint.FORMAT, "epoch": epoch, "rng": torch.get_rng_state(), "cuda_rng": cuda, **values},
            self.folder,
        )

    def restore(self) -> int:
        """Load what :meth:`keep` wrote.

        Returns:
            The epoch to continue with; 0 if there is no state.

        Raises:
            UserError: no state is whole, or the state does not fit the parts.
        """
        values = load(self.folder)
        if values is None:
            return 0
        try:
            for name, part in self.parts.items():
                part.load_state_dict(values[name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"{self.folder.state} does not fit this configuration ({first_line(error)}); use --overwrite"
            ) from error
        torch.set_rng_state(values["rng"])
        if self.device.type == "cuda" and values["cuda_rng"] is not None:
            torch.cuda.set_rng_state(values["cuda_rng"], self.device)
        return values["epoch"]


def save(values: dict[str, Any], folder: StepFolder) -> None:
    """Write the training state of a step, and keep the one before beside it."""
    with replacing(folder.state) as temporary:
        with temporary.open("wb") as file:
            torch.save(values, file)
        if folder.state.exists():
            folder.state.replace(folder.previous_state)


def load(folder: StepFolder) -> dict[str, Any] | None:
    """Read the newest whole training state of a step; None if there is none at all.

    Raises:
        UserError: there are states, but none is whole.
    """
    damaged = []
    for path in (folder.state, folder.previous_state):
        if not path.exists():
            continue
        try:
            values = checkpoint.load(path)
        except UserError:
            damaged.append(path)
            continue
        if damaged:
            print(f"{damaged[0]} is damaged; going on from {path}, after epoch {values['epoch']}", flush=True)
            damaged[0].unlink(missing_ok=True)  # else the next save would put it in the place of the whole one
        return values
    if damaged:
        names = " and ".join(map(str, damaged))
        raise UserError(f"{names}: damaged or of another program; remove, and --resume trains the step from its start")
    return None


def remove(folder: StepFolder) -> None:
    """Remove the training state of a step that is complete."""
    for path in (folder.state, folder.previous_state):
        path.unlink(missing_ok=True)
