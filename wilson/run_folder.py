"""The files in a run's folder. Every file name of a run is defined here.

config.yaml        the configuration used
command.txt        the command line
data.json          which images the run learns from and is tested on
run.lock           the process that writes here; empty when none does
results.json       IoU and mean IoU after each step
steps.csv, .png    mIoU of each step's classes after every later step, from three steps on
step-T/            checkpoint.pt, TensorBoard log, panels, confusion matrix, cost.json; training.pt and progress.json
                   while the step is unfinished; pseudo-labels/ of wilson add
report.html        all of the above on one page
model/             the grown model of another library, as wilson add writes it
added.json         how wilson add went, before and after
pictures/          photographs as the model of wilson add saw them before and sees them now
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CHECKPOINT = "checkpoint.pt"
STEP = "step-"
LOG = "events.out.tfevents."


@dataclass(frozen=True)
class StepFolder:
    """The files of one step."""

    path: Path

    @property
    def checkpoint(self) -> Path:
        """The checkpoint: the model after the step."""
        return self.path / CHECKPOINT

    @property
    def state(self) -> Path:
        """The training state: everything needed to resume the step."""
        return self.path / "training.pt"

    @property
    def previous_state(self) -> Path:
        """The training state one epoch earlier, in case the newer one is damaged."""
        return self.path / "training.previous.pt"

    @property
    def progress(self) -> Path:
        """How far the unfinished step is, for whoever watches the folder."""
        return self.path / "progress.json"

    @property
    def cost(self) -> Path:
        """The core-hours of the training."""
        return self.path / "cost.json"

    @property
    def pseudo_labels(self) -> Path:
        """The folder of a few photographs with the pseudo-labels that `wilson add` learns from."""
        return self.path / "pseudo-labels"

    def tells_of_training(self, path: Path) -> bool:
        """Whether a file of the folder only tells of the training, so that nothing is lost with it."""
        return path in (*self.logs(), self.progress, self.cost) or path.parent == self.pseudo_labels

    def logs(self) -> list[Path]:
        """The TensorBoard files, in the order in which TensorBoard reads them."""
        return sorted(self.path.glob(f"{LOG}*"))

    def log(self, name: str) -> Path:
        """The TensorBoard file of this name."""
        return self.path / f"{LOG}{name}"

    @property
    def panels(self) -> Path:
        """The folder of the example pictures."""
        return self.path / "panels"

    @property
    def confusion(self) -> Path:
        """The confusion matrix as numbers."""
        return self.path / "confusion.json"

    @property
    def confusion_picture(self) -> Path:
        """The confusion matrix as a picture."""
        return self.path / "confusion.png"


@dataclass(frozen=True)
class RunFolder:
    """The files of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """The configuration of the run."""
        return self.path / "config.yaml"

    @property
    def command(self) -> Path:
        """The command line that started the run."""
        return self.path / "command.txt"

    @property
    def data(self) -> Path:
        """What the images of the run are known by."""
        return self.path / "data.json"

    @property
    def lock(self) -> Path:
        """The lock of the process that writes into the folder."""
        return self.path / "run.lock"

    @property
    def results(self) -> Path:
        """IoU, mean IoU and pixel accuracy after each step."""
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        """The report of the run."""
        return self.path / "report.html"

    @property
    def model(self) -> Path:
        """The grown model of another library."""
        return self.path / "model"

    @property
    def added(self) -> Path:
        """What `wilson add` chose and measured."""
        return self.path / "added.json"

    @property
    def pictures(self) -> Path:
        """The folder of the photographs before and after `wilson add`."""
        return self.path / "pictures"

    @property
    def pictures_index(self) -> Path:
        """Which of them are of one photograph, and the classes in them."""
        return self.pictures / "before-after.json"

    @property
    def steps_table(self) -> Path:
        """Mean IoU of each step's classes after every later step, as a table."""
        return self.path / "steps.csv"

    @property
    def steps_picture(self) -> Path:
        """The same as a plot."""
        return self.path / "steps.png"

    def step(self, number: int) -> StepFolder:
        """The folder of a step."""
        return StepFolder(self.path / f"{STEP}{number}")

    def holds(self, path: Path) -> bool:
        """Whether a run writes a file or folder of this name into its folder."""
        files = [self.config, self.command, self.data, self.lock, self.results, self.report]
        files += [self.steps_table, self.steps_picture, self.model, self.added, self.pictures]
        names = {file.name for file in files}
        return path.name in names or path.name.startswith(STEP)


def last_checkpoint(path: Path) -> Path | None:
    """The checkpoint of the last step in a run's folder; None if there is none."""
    steps = [folder for folder in path.glob(f"{STEP}*") if StepFolder(folder).checkpoint.is_file()]
    numbered = [(int(text), folder) for folder in steps if (text := folder.name.removeprefix(STEP)).isdecimal()]
    return StepFolder(max(numbered)[1]).checkpoint if numbered else None
