"""Builds models of other libraries from what a user names; a file of weights is read, never executed."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from wilson.errors import UserError, first_line
from wilson.models.weight_files import not_finite, read_weights

KINDS = (
    "torchvision:NAME, smp:ARCHITECTURE?encoder_name=NAME, a folder of transformers (save_pretrained), or "
    "FILE.py:FUNCTION"
)
TORCHVISION, SMP = "torchvision:", "smp:"
HEADS = {TORCHVISION: "classifier.", SMP: "segmentation_head."}  # where the weights of the classifier are


def build(what: str, weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Build a model.

    Args:
        what: `torchvision:NAME`; `smp:ARCHITECTURE?encoder_name=NAME`, with any keyword of `smp.create_model`, or
            `smp:FOLDER` or `smp:REPOSITORY` as `smp.from_pretrained` takes them; a folder of transformers; or
            `FILE.py:FUNCTION`, which is imported and called without arguments.
        weights: its state dict; None for those that come with it: torchvision's published ones, a folder's own.

    Raises:
        UserError: there is no such model, or the weights do not fit it.
    """
    if what.startswith(TORCHVISION):
        model = _torchvision(what.removeprefix(TORCHVISION), weights)
    elif what.startswith(SMP):
        model = _smp(what.removeprefix(SMP), weights)
    elif (Path(what) / "config.json").is_file():
        model = _transformers(Path(what))
    elif ".py:" in what:
        model = _function(what)
    elif what.endswith(".py"):
        raise UserError(f"{what}: name the function that returns the model, too, as in {what}:build")
    else:
        raise UserError(f"{what}: no model there; expected {KINDS}, or a checkpoint or run of wilson")
    if weights is not None:
        load(model, weights, what)
    return model


def named(what: str) -> bool:
    """Whether a library knows the model by this name; else it is a path."""
    return what.startswith((TORCHVISION, SMP))


def own_weights(what: str) -> str:
    """Which weights a model has where none are given, in words."""
    if what.startswith(TORCHVISION):
        return "the published weights"
    function = what.rpartition(":")[2]
    return f"the weights that {function}() gave it (no --weights)" if ".py:" in what else "its own weights"


def fixed(what: str) -> bool:
    """Whether what is built has a number of outputs of its own, whatever the weights have."""
    return ".py:" in what or (what.startswith(SMP) and _is_saved(what.removeprefix(SMP)))


def published_classes(what: str) -> tuple[str, ...] | None:
    """Names of the outputs of a model that comes with published weights; None where they tell none."""
    if not what.startswith(TORCHVISION):
        return None
    from torchvision import models

    name = what.removeprefix(TORCHVISION)
    if name not in models.list_models(models.segmentation):
        return None
    names = models.get_model_weights(name).DEFAULT.meta.get("categories")
    return None if names is None else tuple(map(str, names))


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict, as trainers of many kinds write it: alone, or among other things; UserError if it is none."""
    if not path.is_file():
        raise UserError(f"weights {path}: no such file; give a state dict (.pt, .pth, .safetensors)")
    try:
        state, _ = read_weights(path)
    except UserError:
        from wilson import tensor_files

        if path.suffix == ".safetensors":
            raise
        try:
            values = tensor_files.read(path)
        except ValueError as error:
            raise UserError(
                f"weights {path}: not a readable state dict: {error}; save it again with "
                "torch.save(model.state_dict(), FILE)"
            ) from error
        inner = [values.get(key) for key in ("state_dict", "model", "model_state_dict") if isinstance(values, Mapping)]
        found = [v for v in inner if isinstance(v, Mapping) and all(isinstance(t, Tensor) for t in v.values())]
        if not found:
            raise
        state = {str(name): value for name, value in found[0].items()}
    for prefix in ("module.", "model."):  # of DataParallel and of Lightning
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def load(model: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Load a state dict; auxiliary heads may be missing on either side, as they are not kept."""
    wanted = model.state_dict()
    wrong = [name for name, value in wanted.items() if name not in weights or weights[name].shape != value.shape]
    wrong = [name for name in wrong + [name for name in weights if name not in wanted] if not _auxiliary(name)]
    if wrong:
        raise UserError(
            f"the weights do not fit {what}: {len(wrong)} tensors are missing, superfluous or of another shape, the "
            f"first {wrong[0]}; give the weights of this very architecture"
        )
    fitting = {k: value for k, value in weights.items() if k in wanted and value.shape == wanted[k].shape}
    model.load_state_dict(fitting, strict=False)
    if name := not_finite(model.state_dict()):
        raise UserError(f"the weights of {what}: {name} holds values that are no finite numbers; give others")


def _auxiliary(name: str) -> bool:
    return "aux" in name or name.endswith("num_batches_tracked")


def _outputs(kind: str, weights: Mapping[str, Tensor], what: str) -> int:
    """Number of outputs of the classifier whose weights these are."""
    names = [name for name in weights if name.startswith(HEADS[kind]) and name.endswith(".weight")]
    if not names:
        raise UserError(f"the weights hold no {HEADS[kind]}*.weight, so they are not of {kind}{what}")
    return len(weights[names[-1]])


def _torchvision(name: str, weights: Mapping[str, Tensor] | None) -> nn.Module:
    from torchvision import models

    known = models.list_models(models.segmentation)
    if name not in known:
        raise UserError(f"{TORCHVISION}{name}: torchvision has no such model; expected one of {', '.join(known)}")
    if weights is None:
        try:
            return models.get_model(name, weights="DEFAULT")
        except OSError as error:
            raise UserError(
                f"{TORCHVISION}{name}: its published weights could not be fetched ({first_line(error)}); give a file "
                "with --weights"
            ) from error
    auxiliary = any(key.startswith("aux_classifier") for key in weights)
    options: dict[str, Any] = {} if name.startswith("lraspp") else {"aux_loss": auxiliary}
    outputs = _outputs(TORCHVISION, weights, name)
    return models.get_model(name, weights=None, weights_backbone=None, num_classes=outputs, **options)


def _smp(name: str, weights: Mapping[str, Tensor] | None) -> nn.Module:
    smp = _library("segmentation_models_pytorch", f"{SMP}{name}")
    if _is_saved(name):
        try:
            return smp.from_pretrained(name)
        except Exception as error:  # of the hub, of files, or of the class that it names
            raise UserError(
                f"{SMP}{name}: no model that smp.from_pretrained can load ({type(error).__name__}: "
                f"{first_line(error)}); expected what its save_pretrained wrote"
            ) from error
    architecture, _, query = name.partition("?")
    options = {key: _value(value) for key, _, value in (pair.partition("=") for pair in query.split("&") if pair)}
    if weights is None:
        raise UserError(f"{SMP}{name}: an architecture has no weights of its own; give a file of yours with --weights")
    options = {"encoder_weights": None, **options, "classes": _outputs(SMP, weights, name)}
    try:
        return smp.create_model(architecture, **options)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{SMP}{name}: {first_line(error)}; expected ARCHITECTURE?encoder_name=NAME, further keywords with &"
        ) from error


def _is_saved(name: str) -> bool:
    """Whether smp's name is a folder of it, or a repository."""
    return Path(name).is_dir() or "/" in name.partition("?")[0]


def _library(package: str, what: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        install = package.replace("_", "-")
        raise UserError(f"{what}: the package {package} is missing; install it: pip install {install}") from error


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _transformers(folder: Path) -> nn.Module:
    transformers = _library("transformers", str(folder))
    try:
        return transformers.AutoModelForSemanticSegmentation.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder}: no model of semantic segmentation that transformers can load ({first_line(error)}); expected a "
            "folder of save_pretrained"
        ) from error


def _function(what: str) -> nn.Module:
    """Import the file that the user names, and call the function."""
    place, _, name = what.rpartition(":")
    path = Path(place)
    if not path.is_file():
        raise UserError(f"{what}: no file {path}; expected FILE.py:FUNCTION")
    key = f"named_by_user_{path.stem}"  # no other module is hidden, whatever the file's name
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _others_code(what, path.resolve().parent):
        sys.modules[key] = module
        spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        raise UserError(f"{what}: {path} has no function {name}; it has {', '.join(own) or 'none'}")
    with _others_code(what, path.resolve().parent):
        model = function()
    if not isinstance(model, nn.Module):
        raise UserError(f"{what}: {name}() returned {type(model).__name__}; expected a torch.nn.Module")
    return model


@contextmanager
def _others_code(what: str, folder: Path) -> Iterator[None]:
    """Run a user's code as Python runs a script of this folder; UserError for whatever it raises."""
    sys.path.insert(0, str(folder))
    try:
        yield
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{what}: this code failed: {type(error).__name__}: {first_line(error)}; call the function in Python to "
            "see where, and mend it"
        ) from error
    finally:
        with suppress(ValueError):
            sys.path.remove(str(folder))
