"""Files of weights: read without executing anything, written whole or not at all, identified by a checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from wilson import tensor_files
from wilson.atomic import replacing
from wilson.config import Activation
from wilson.errors import UserError, first_line

ACTIVATION = "activation"  # key of the activation's name in the metadata of a .safetensors file


def load_weights(model: nn.Module, path: Path, activation: Activation = "own") -> None:
    """Load a state dict into a model. Tensors that only the file has (the classifier) are ignored.

    Args:
        model: takes the weights.
        path: the file.
        activation: of the model; a .safetensors file may name the activation of its weights.

    Raises:
        UserError: the file is missing or no state dict, a tensor of the model is missing in it or has another shape, or
            the weights were trained with another activation or are not finite.
    """
    state, metadata = read_weights(path)
    trained_with = metadata.get(ACTIVATION, activation)
    if trained_with != activation:
        raise UserError(
            f"weights {path} were trained with the activation {trained_with}, the backbone has {activation}; "
            f"use --model.activation {trained_with}"
        )
    take_weights(model, state, path)


def take_weights(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load the state dict of a file into a model, as :func:`load_weights` does."""
    wanted = model.state_dict()
    # timm flattens some names where it takes features from a model, such as stages.0 to stages_0
    whole = {name.replace(".", "_"): value for name, value in state.items()}
    state = {name: whole[flat] for name in wanted if (flat := name.replace(".", "_")) in whole}
    wrong = [k for k, v in wanted.items() if k not in state or state[k].shape != v.shape]
    wrong = [k for k in wrong if not k.endswith("num_batches_tracked")]
    if wrong:
        raise UserError(
            f"weights {path} do not fit the backbone: {len(wrong)} of {len(wanted)} tensors are missing or of another "
            f"shape, the first {wrong[0]}; give weights of the same model "
            "(published in-place-ABN weights: see wilson weights import)"
        )
    nn.Module.load_state_dict(model, state, strict=False)  # SegFormer's encoder has another one of its own
    if name := not_finite(model.state_dict()):
        raise UserError(f"weights {path}: {name} holds values that are no finite numbers; give weights without any")


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a state dict without executing anything in the file.

    Returns:
        The tensors by name, and the metadata of a .safetensors file (empty for other files).

    Raises:
        UserError: the file is missing or no state dict.
    """
    if not path.is_file():
        raise UserError(f"weights {path}: no such file; give a .safetensors or .pth file, hub, or none")
    try:
        if path.suffix != ".safetensors":
            state = tensor_files.read(path)
            if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
                raise ValueError("expected a dictionary of tensors; wilson weights import reads published checkpoints")
            return {str(name): value for name, value in state.items()}, {}
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # each format has errors of its own for a broken file
        raise UserError(f"weights {path}: not a readable state dict: {first_line(error)}") from error


def not_finite(weights: Mapping[str, Tensor]) -> str:
    """The name of the first tensor with NaN or an infinite value; empty if there is none."""
    return next((name for name, value in weights.items() if not value.isfinite().all()), "")


def write_weights(weights: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Write a .safetensors file; its folder is created."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        save_file(weights, temporary, metadata=metadata)


def checksum(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, dtype, shape and bytes of all tensors, sorted by name, without norm layers' batch counts."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        if name.endswith("num_batches_tracked"):
            continue
        value = weights[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
