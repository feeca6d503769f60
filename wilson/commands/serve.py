"""The command serve."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True)
class Serve:
    """Open a local page to try models on photographs, and to add classes to them."""

    models: Positional[tuple[Path, ...]] = ()
    """Checkpoints, folders of runs, of wilson save or of wilson add, exported models. The page also has those that it
    made. A .pt2 file is a program: trust its source."""
    work: Path = Path("runs/serve")
    """Folder for photographs, for the classes that are added, and for their models."""
    host: str | None = None
    """Address to serve at, such as 0.0.0.0; by default this machine alone. It needs a user and a password."""
    port: int | None = None
    """Port; by default the first free one from 7860 on."""
    user: str | None = None
    """Name of the user who may see the page, with --host."""
    password: str | None = None
    """Password; by default the environment variable WILSON_PASSWORD, which no list of processes shows."""
    builder: str | None = None
    """FILE.py:FUNCTION that returns the architecture, for models that were built by one; it is imported and called."""
    validation: Path | None = None
    """Data set with masks in the layout of VOC or COCO, to measure a new class as wilson add does."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __call__(self) -> int:
        from wilson.serving.serve import serve

        password = self.password or (os.environ.get("WILSON_PASSWORD") if self.user is not None else None)
        page = serve(
            self.models,
            self.work,
            host=self.host,
            port=self.port,
            user=self.user,
            password=password,
            builder=self.builder,
            validation=self.validation,
            device=self.device,
        )
        print(f"{page.local_url}\nCtrl-C ends the page; a class that is being added goes on.", flush=True)
        page.block_thread()
        return 0
