"""The similarity of class names, from the embeddings of sentences about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from wilson.data.names import find_all
from wilson.errors import UserError, first_line

SHARPNESS = 5.0
SENTENCE = "this is an image of {}"
UNKNOWN = "unknown"  # stands for the background


def similarity(vectors: Tensor) -> Tensor:
    """A_nm = exp(-5 (1 - E_n . E_m)), E the vectors (C, D) at unit length; (C, C) (RaSP, Roy et al., CoLLAs 2023)."""
    unit = F.normalize(vectors.double(), dim=1)
    return (-SHARPNESS * (1 - unit @ unit.T)).exp().float()


def sentences(names: Sequence[str]) -> list[str]:
    """What is said of each class, background first."""
    return [SENTENCE.format(UNKNOWN if index == 0 else name) for index, name in enumerate(names)]


def read_vectors(file: Path, names: Sequence[str]) -> Tensor:
    """Read vectors of class names from a file.

    Args:
        file: .npz with `classes`, M names, and `vectors`, (M, D). The background may be called unknown.
        names: of the C classes, background first.

    Returns:
        float32 (C, D), in the order of `names`.

    Raises:
        UserError: the file is broken, lacks a class, or a vector is 0 or not finite.
    """
    try:
        with np.load(file, allow_pickle=False) as values:
            classes = [str(name) for name in values["classes"]]
            vectors = torch.from_numpy(np.asarray(values["vectors"], np.float32))
        if vectors.dim() != 2 or len(vectors) != len(classes):
            raise ValueError(f"expected vectors (M, D) of M classes, got {tuple(vectors.shape)} of {len(classes)}")
    except Exception as error:  # numpy has half a dozen kinds for a broken file
        raise UserError(
            f"{file}: is no file of vectors: {first_line(error)}; give a .npz with classes, M names, and vectors (M, D)"
        ) from error
    renamed = [names[0] if name == UNKNOWN and names[0] not in classes else name for name in classes]
    found, missing = find_all(names, renamed)
    if missing:
        raise UserError(f"{file}: lacks a vector of {missing[0]}; add one for each class and the background")
    chosen = vectors[found]
    for name, vector in zip(names, chosen, strict=True):
        if not vector.isfinite().all() or not vector.any():
            raise UserError(f"{file}: the vector of {name} is 0 or not finite; make the file anew")
    return chosen


def embed(folder: Path, texts: Sequence[str]) -> Tensor:
    """Embed sentences (M, D) with a local model: the mean of its last states, or its first one if its folder says so.

    Args:
        folder: as sentence-transformers keeps its models: `tokenizer.json`, and `config.json` with `model.safetensors`,
            or `model.onnx` (also in `onnx/`).
        texts: M sentences.

    Raises:
        UserError: there is no such folder, or a file in it cannot be read.
    """
    onnx = next((file for file in (folder / "model.onnx", folder / "onnx" / "model.onnx") if file.is_file()), None)
    if not (folder / "tokenizer.json").is_file() or (onnx is None and not (folder / "config.json").is_file()):
        raise UserError(
            f"{folder}: is no sentence model; expected a folder with tokenizer.json, and with config.json and "
            "model.safetensors or with model.onnx"
        )
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_padding()
        tokens = tokenizer.encode_batch(list(texts))
        inputs = {
            "input_ids": torch.tensor([token.ids for token in tokens]),
            "attention_mask": torch.tensor([token.attention_mask for token in tokens]),
            "token_type_ids": torch.tensor([token.type_ids for token in tokens]),
        }
        states = _run_transformer(folder, inputs) if onnx is None else _run_onnx(onnx, inputs)
        return _pooled(states, inputs["attention_mask"], _first_alone(folder))
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each of the libraries has errors of its own for a broken file
        raise UserError(f"{folder}: the sentence model cannot be run: {first_line(error)}; give another") from error


def _run_transformer(folder: Path, inputs: dict[str, Tensor]) -> Tensor:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
    with torch.no_grad():
        states: Tensor = model(**inputs).last_hidden_state
    return states


def _run_onnx(file: Path, inputs: dict[str, Tensor]) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    wanted = {given.name for given in session.get_inputs()}
    outputs = session.run(None, {name: value.numpy() for name, value in inputs.items() if name in wanted})
    return torch.from_numpy(outputs[0])


def _pooled(states: Tensor, mask: Tensor, first: bool) -> Tensor:
    """One vector (M, D) of the states (M, T, D) of a sentence's tokens; of a model that pools by itself, its own."""
    if states.dim() == 2:
        return states
    if first:
        return states[:, 0]
    counted = mask[:, :, None].to(states.dtype)
    return (states * counted).sum(1) / counted.sum(1)


def _first_alone(folder: Path) -> bool:
    """Whether the model is one of those whose sentence is the state of the first token."""
    file = folder / "1_Pooling" / "config.json"
    settings: Any = json.loads(file.read_bytes()) if file.is_file() else {}
    return bool(settings.get("pooling_mode_cls_token", False))
