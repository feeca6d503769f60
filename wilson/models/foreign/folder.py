"""A model of another library as a folder: its own files, and `wilson.json`, which says how to read it again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from wilson.atomic import replacing
from wilson.errors import UserError, first_line

from . import builders, heads
from .adapted import Adapted
from .search import Found

DESCRIPTION, WEIGHTS, FORMAT = "wilson.json", "model.safetensors", 1


def save(model: Adapted, folder: Path, *, built: str | None, crop: int) -> None:
    """Write a model folder.

    A model of transformers is written by its own `save_pretrained`, any other one as `model.safetensors`, the state
    dict of the same architecture with more outputs.

    Args:
        model: what to write.
        folder: created if missing; files of the same names are replaced, the description last.
        built: what :func:`builders.build` makes the architecture of; None for a module from Python.
        crop: short side in pixels that images are resized to.
    """
    from safetensors.torch import save_model

    folder.mkdir(parents=True, exist_ok=True)
    if is_transformers(model.module):
        model.module.save_pretrained(folder)  # type: ignore[operator]
        built = None  # the folder itself
    else:
        with replacing(folder / WEIGHTS) as temporary:
            save_model(model.module, str(temporary))
    values = {
        "format": FORMAT,
        "origin": built,
        "classes": model.in_order_of_module(model.names()),
        "background": model.background,
        "output": "softmax" if model.softmax else "sigmoid",
        "mean": model.mean,
        "std": model.std,
        "crop": crop,
        "found": asdict(model.found),
    }
    with replacing(folder / DESCRIPTION) as temporary:
        temporary.write_text(json.dumps(values, indent=2), encoding="utf-8")


def inside(path: Path) -> Path | None:
    """The model folder that a path names: itself, or that of a run of `wilson add`; None if it is neither."""
    return next((folder for folder in (path, path / "model") if (folder / DESCRIPTION).is_file()), None)


def origin(folder: Path) -> str | None:
    """What the architecture in a model folder is built of."""
    return json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["origin"]


def is_transformers(module: nn.Module) -> bool:
    """Whether a module has the methods of transformers' models."""
    return hasattr(module, "save_pretrained") and hasattr(getattr(module, "config", None), "id2label")


def load(folder: Path, builder: str | None = None) -> tuple[Adapted, int]:
    """Read a model folder.

    Args:
        folder: as :func:`save` wrote it.
        builder: FILE.py:FUNCTION of a model that was built by one; code runs only if the caller names it here.

    Returns:
        The model in eval mode, and the short side in pixels that images are resized to.

    Raises:
        UserError: the folder is none of these or damaged, or the model's code is needed.
    """
    path = folder / DESCRIPTION
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']!r}, this version reads {FORMAT}")
        built, names = values["origin"], tuple(map(str, values["classes"]))
        found = Found(**values["found"])
        background, crop = int(values["background"]), int(values["crop"])
        mean, std = tuple(map(float, values["mean"])), tuple(map(float, values["std"]))
        softmax = {"softmax": True, "sigmoid": False}[values["output"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not the description of a model ({type(error).__name__}: {first_line(error)}); give a folder that "
            "wilson add wrote"
        ) from error
    module = _module(folder, builder or built, by_user=builder is not None, outputs=len(names), found=found)
    ordered = (names[background], *names[:background], *names[background + 1 :])
    return Adapted(module, found, softmax, background, ordered, mean, std).eval(), crop


def _module(folder: Path, built: str | None, *, by_user: bool, outputs: int, found: Found) -> nn.Module:
    if (folder / "config.json").is_file():
        module = builders.build(str(folder))
        heads.drop_auxiliary(module, outputs)
        return module
    if built is None or (".py:" in built and not by_user):
        how = f"by {built}" if built else "in Python"
        raise UserError(
            f"{folder}: this model was built {how}, and no code is run unless you name it: give FILE.py:FUNCTION, "
            "which returns the architecture, as builder"
        )
    state = builders.read_state(folder / WEIGHTS)
    if ".py:" not in built:
        module = builders.build(built, state)
        heads.drop_auxiliary(module, outputs)
        return module
    module = builders.build(built)
    layer = module.get_submodule(found.classifier)
    before = heads.outputs(layer)
    if before is None or before > outputs:
        raise UserError(f"{built}: its {found.classifier} has {before} outputs; expected at most {outputs}")
    heads.drop_auxiliary(module, before)
    module.set_submodule(found.classifier, heads.extended(layer, outputs - before))
    builders.load(module, state, built)
    return module


def load_into(model: Adapted, folder: Path) -> None:
    """Load the weights and the names of a model folder into a module that has its shape already."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{folder}: no {WEIGHTS} there; give a folder that wilson add wrote")
    builders.load(model.module, builders.read_state(path), str(folder))
    values = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    names, first = values["classes"], values["background"]
    model.rename((names[first], *names[:first], *names[first + 1 :]))
    model.eval()
