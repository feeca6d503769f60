"""What several commands share: the options of a configuration, and where a run writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from wilson.config import Config
from wilson.errors import UserError

Options = Annotated[Config, arg(name="")]  # options of a configuration, without a prefix


@dataclass(frozen=True)
class Where:
    """Where a run writes."""

    out: Path | None = None
    """Folder of the results; runs/TIME-TASK-METHOD by default. A folder that is not empty is refused."""
    resume: bool = False
    """Continue the run in the folder where it stopped."""
    overwrite: bool = False
    """Remove the run in the folder first."""

    def folder(self, config: Config) -> Path:
        """The folder of a run; `torchrun --max-restarts` needs --out, so that restarted processes find it again."""
        from wilson import distributed
        from wilson.runs.folder import default_folder

        if self.out is None and distributed.may_restart():
            raise UserError("torchrun --max-restarts: give --out FOLDER, so that restarted processes find the run")
        return self.out or default_folder(config)


Folder = Annotated[Where, arg(name="")]
