"""Runs small enough for a test: their configurations, and what a test reads of their folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wilson import checkpoint
from wilson.checkpoint import Checkpoint
from wilson.config import DEMO, Config, to_dict
from wilson.data.tasks import Task
from wilson.models import new_model
from wilson.run_folder import RunFolder

CPU = torch.device("cpu")

# Images of 32 x 32 in batches of 8, narrow networks, and a few epochs
TINY = replace(
    DEMO,
    data=replace(DEMO.data, train_images=42, val_images=12, crop=32),
    model=replace(DEMO.model, head_channels=8, localizer_channels=8),
    base=replace(DEMO.base, epochs=2, batch=8),
    step=replace(DEMO.step, epochs=3, batch=8, warmup=1),
    evaluate_every=2,
)
# The same with one epoch a step, for tests that look at what is written and not at how it was learned
QUICK = replace(
    TINY,
    data=replace(TINY.data, val_images=6),
    base=replace(TINY.base, epochs=1),
    step=replace(TINY.step, epochs=1, warmup=0),
    evaluate_every=DEMO.evaluate_every,
)


def changes(config: Config) -> dict[str, Any]:
    """What a configuration changes of the demo's recipe, nested as in config.yaml."""

    def different(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for key, value in ours.items():
            if isinstance(value, dict):
                if inner := different(value, theirs[key]):
                    found[key] = inner
            elif value != theirs[key]:
                found[key] = value
        return found

    return different(to_dict(config), to_dict(DEMO))


def options(config: Config) -> list[str]:
    """The command-line options that make a configuration of numbers and words."""

    def flat(values: dict[str, Any], prefix: str) -> list[str]:
        words = []
        for key, value in values.items():
            name = f"{prefix}{key.replace('_', '-')}"
            words += flat(value, f"{name}.") if isinstance(value, dict) else [name, str(value)]
        return words

    return ["--recipe", "demo", *flat(changes(config), "--")]


def checkpoint_of(run: Path, step: int) -> Path:
    """The file of a step's checkpoint."""
    return RunFolder(run).step(step).checkpoint


def weights(run: Path, step: int) -> dict[str, Tensor]:
    """The model's weights after a step."""
    return Checkpoint(checkpoint_of(run, step)).weights


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two state dicts have the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def losses(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Iterations and values of every scalar in the TensorBoard log of a step, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def one_line(capsys: Any) -> str:
    """The one line that a command says of a user's mistake."""
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if line.startswith("wilson: ")]
    assert len(lines) == 1
    return lines[0]


CLASSES = ("background", "ant", "bee", "cat", "dog")


def save_tiny(path: Path, task: str = "1,2/4") -> Path:
    """A checkpoint of an untrained model whose mask ids are not its channels."""
    config = replace(
        DEMO, task=task, data=replace(DEMO.data, crop=32), model=replace(DEMO.model, head_channels=8), seed=3
    )
    parsed = Task.parse(task, CLASSES)
    torch.manual_seed(3)
    model = new_model(config.model, parsed.class_counts(1), config.data.crop, "none")
    for classifier in model.classifiers:  # so that each class is predicted somewhere
        assert isinstance(classifier, nn.Conv2d) and classifier.bias is not None
        nn.init.normal_(classifier.weight, std=10)
        nn.init.zeros_(classifier.bias)
    checkpoint.save_model(model, config, parsed, 1, [], path)
    return path
