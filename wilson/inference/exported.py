"""Read the files that `wilson export` writes, for prediction."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wilson.checkpoint import Checkpoint
from wilson.errors import UserError, first_line
from wilson.grown import Grown
from wilson.models import image_statistics
from wilson.tensor_files import check_archive

if TYPE_CHECKING:
    from wilson.hub import HubModel  # which needs huggingface_hub

PROGRAM, ONNX = ".pt2", ".onnx"
LEAST = 32  # smallest side of an image, in pixels, but for a few backbones
KEY = "wilson"  # key of the description in a file's metadata


@dataclass(frozen=True)
class Description:
    """What prediction needs besides the network; stored as JSON in the metadata of an exported file."""

    classes: tuple[str, ...]  # by output channel, background first
    ids: tuple[int, ...]  # mask id of each channel
    mean: tuple[float, ...]  # of the image channels, RGB in 0..1
    std: tuple[float, ...]
    crop: int  # side of the evaluated crops in pixels; images are resized to this short side

    @classmethod
    def of(cls, checkpoint: Checkpoint | Grown | HubModel) -> Description:
        """The description of a checkpoint's model."""
        task, step = checkpoint.task, checkpoint.step
        mean, std = image_statistics(checkpoint.config)
        return cls(tuple(task.class_names(step)), tuple(task.seen(step)), mean, std, checkpoint.config.data.tested_crop)

    @classmethod
    def parse(cls, text: str) -> Description:
        """Read a description from its JSON."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}
        return cls(**values)

    def __str__(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Exported:
    """A network from an exported file: normalised images (B, 3, H, W) to logits (B, C, h, w)."""

    description: Description
    logits: Callable[[Tensor], Tensor]

    @classmethod
    def read(cls, path: Path, device: torch.device) -> Exported:
        """Read a .pt2 or .onnx file. A .pt2 file is a program: reading it may execute what it holds.

        Raises:
            UserError: the file is missing, damaged, not written by `wilson export`, or its logits are not finite.
        """
        if not path.is_file():
            raise UserError(f"model {path}: no such file; wilson export writes one")
        try:
            model = cls.parse(path.read_bytes(), path.suffix, device)
            side = model.description.crop  # images are never seen smaller, and some models cannot take it
            grey = model.logits(torch.zeros(1, 3, side, side, device=device))
        except ModuleNotFoundError:
            raise
        except Exception as error:  # both libraries have a dozen kinds for a broken file
            raise UserError(
                f"model {path}: not a whole file of wilson export ({first_line(error)}); export the checkpoint again"
            ) from error
        if not grey.isfinite().all():
            raise UserError(
                f"model {path}: its logits are no finite numbers, so predictions would mean nothing; export another "
                "checkpoint"
            )
        return model

    @classmethod
    def parse(cls, data: bytes, suffix: str, device: torch.device) -> Exported:
        """Read the content of a file with this suffix."""
        return _program(data, device) if suffix == PROGRAM else _onnx(data, device)


def _program(data: bytes, device: torch.device) -> Exported:
    check_archive(io.BytesIO(data))
    metadata = {KEY: ""}
    program = torch.export.load(io.BytesIO(data), extra_files=metadata)
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, device)
    return Exported(Description.parse(metadata[KEY]), program.module())


def _onnx(data: bytes, device: torch.device) -> Exported:
    import onnxruntime

    wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    available = [name for name in wanted if name in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(data, providers=[*available, "CPUExecutionProvider"])
    (image,) = session.get_inputs()

    def logits(images: Tensor) -> Tensor:
        (result,) = session.run(None, {image.name: images.cpu().numpy()})
        return torch.from_numpy(result).to(images.device)

    return Exported(Description.parse(session.get_modelmeta().custom_metadata_map[KEY]), logits)
