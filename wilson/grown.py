"""A model of another library with the classes that `wilson add` gave it, as a folder: its own files, and `wilson.json`,
which says how to read it again."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wilson.atomic import replacing
from wilson.config import Config, from_dict, to_dict
from wilson.data.tasks import Task
from wilson.errors import UserError, first_line
from wilson.model_card import LIBRARY, card
from wilson.models.foreign import Adapted, auxiliary, builders, heads
from wilson.models.foreign.search import Found

DESCRIPTION, WEIGHTS, FORMAT = "wilson.json", "model.safetensors", 1
PREPROCESSOR = "preprocessor_config.json"  # of transformers: what is done to an image


class Grown:
    """A grown model with everything needed to use it, as :class:`wilson.checkpoint.Checkpoint` has it for our own.

    Args:
        folder: as :func:`save` wrote it.
        builder: FILE.py:FUNCTION of a model that was built by one; code runs only if the caller names it here.

    Attributes:
        origin: what the architecture is built of; None where the folder tells, or a module was given in Python.

    Raises:
        UserError: the folder is none of these or damaged.
    """

    step = 1  # the model was given to step 0

    def __init__(self, folder: Path, builder: str | None = None) -> None:
        if builder is not None and not isinstance(builder, str):
            raise UserError(f"builder: expected the text 'FILE.py:FUNCTION', got a {type(builder).__name__}")
        self.path, self._builder = folder, builder
        path = folder / DESCRIPTION
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']!r}, this version reads {FORMAT}")
            self.origin: str | None = values["origin"]
            self.config = from_dict(values["config"])
            old, new = values["steps"]
            self.task = Task(str(values["task"]), tuple(map(str, values["classes"])), (tuple(old), tuple(new)))
            self.task.check()
            self.results: list[dict[str, Any]] = list(values["results"])
            self._found, self._background = Found(**values["found"]), int(values["background"])
            self._softmax = {"softmax": True, "sigmoid": False}[values["output"]]
        except (OSError, ValueError, KeyError, TypeError, UserError) as error:
            raise UserError(
                f"{path}: not the description of a model ({type(error).__name__}: {first_line(error)}); give a folder "
                "that wilson add wrote"
            ) from error

    @property
    def is_transformers(self) -> bool:
        """Whether the folder is one of transformers, which tells the architecture."""
        return (self.path / "config.json").is_file()

    @property
    def builder(self) -> str | None:
        """The function of the user that alone knows the architecture, as far as it is known; None if none is needed."""
        return None if self.is_transformers else _builder(self.origin)

    def model(self) -> Adapted:
        """The model, in eval mode.

        Raises:
            UserError: the weights are damaged or do not fit, or the model's code is needed.
        """
        data, names = self.config.data, tuple(self.task.class_names(self.step))
        assert data.mean is not None and data.std is not None
        module = self._module(len(names))
        told = heads.told_classes(module)
        own = told[self._background] if told is not None and len(told) == len(names) else names[0]
        return Adapted(module, self._found, self._softmax, self._background, names, data.mean, data.std, own).eval()

    def _module(self, outputs: int) -> nn.Module:
        folder, built = self.path, self._builder or self.origin
        if self.is_transformers:
            module = builders.build(str(folder))
            auxiliary.drop(module, outputs, self._found.size)
            return module
        if built is None or (_builder(built) and self._builder is None):
            how = f"by {built}" if built else "in Python"
            raise UserError(
                f"{folder}: this model was built {how}, and no code is run unless you name it: give "
                f"{_builder(built)}, which returns the architecture, as builder (--builder)"
            )
        state = builders.read_state(folder / WEIGHTS)
        if not builders.fixed(built):
            module = builders.build(built, state)
            auxiliary.drop(module, outputs, self._found.size)
            return module
        module = builders.build(built)
        layer = module.get_submodule(self._found.classifier)
        before = heads.outputs(layer)
        if before is None or before > outputs:
            raise UserError(f"{built}: its {self._found.classifier} has {before} outputs; expected at most {outputs}")
        auxiliary.drop(module, before, self._found.size)
        module.set_submodule(self._found.classifier, heads.extended(layer, outputs - before))
        builders.load(module, state, built)
        return module


def save(
    model: Adapted, config: Config, task: Task, results: list[dict[str, Any]], folder: Path, origin: str | None
) -> None:
    """Write the folder of a grown model.

    A model of transformers is written by its own `save_pretrained`, any other one as `model.safetensors`, the state
    dict of the same architecture with more outputs.

    Args:
        model: what to write.
        config: of the step, with mean and deviation of the images.
        task: of two steps, the classes that the model knew, and those that it got.
        results: entries of results.json.
        folder: created if missing; files of the same names are replaced, the description last.
        origin: what :func:`builders.build` makes the architecture of; None for a module from Python.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    own = is_transformers(model.module)
    if own:
        model.module.save_pretrained(folder)  # type: ignore[operator]
        if origin is not None and (Path(origin) / PREPROCESSOR).is_file():
            shutil.copyfile(Path(origin) / PREPROCESSOR, folder / PREPROCESSOR)
        origin = None  # the folder itself
    else:
        # Copies, as weights of two names are to be in the file twice, as in any state dict
        state = {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in model.module.state_dict().items()
        }
        with replacing(folder / WEIGHTS) as temporary:
            save_file(state, str(temporary), metadata={"format": "pt"})
    values = {
        "format": FORMAT,
        "origin": origin,
        "task": task.name,
        "classes": list(task.classes),
        "steps": [list(ids) for ids in task.steps],
        "background": model.background,
        "output": "softmax" if model.softmax else "sigmoid",
        "found": asdict(model.found),
        "config": to_dict(config),
        "results": results,
    }
    loading = 'import wilson\n\nmodel = wilson.load("FOLDER")  # where this file lies'
    if not own and (builder := _builder(origin)):
        loading = loading.replace('"FOLDER"', f'"FOLDER", builder="{builder}"')
    library = "transformers" if own else LIBRARY
    card(config, task, Grown.step, results, loading, library).save(folder / "README.md")
    with replacing(folder / DESCRIPTION) as temporary:
        temporary.write_text(json.dumps(values, indent=2), encoding="utf-8")


def inside(path: Path) -> Path | None:
    """The folder of a grown model that a path names: itself, or that of a run of `wilson add`; None if neither."""
    return next((folder for folder in (path, path / "model") if (folder / DESCRIPTION).is_file()), None)


def is_transformers(module: nn.Module) -> bool:
    """Whether a module has the methods of transformers' models."""
    return hasattr(module, "save_pretrained") and hasattr(getattr(module, "config", None), "id2label")


def _builder(origin: str | None) -> str | None:
    return "FILE.py:FUNCTION" if origin is None else origin if ".py:" in origin else None


def load_into(model: Adapted, folder: Path) -> None:
    """Load the weights and the names of a folder into a model that has its shape already."""
    path = folder / WEIGHTS
    if is_transformers(model.module):  # its names in the file are others
        state = type(model.module).from_pretrained(folder, local_files_only=True).state_dict()  # type: ignore[attr-defined]
    elif path.is_file():
        state = builders.read_state(path)
    else:
        raise UserError(f"{folder}: no {WEIGHTS} there; give a folder that wilson add wrote")
    builders.load(model.module, state, str(folder))
    model.rename(Grown(folder).task.classes)
    model.eval()
