"""Export the segmentation model of a step to one file (torch.export or ONNX), for images of any number and size."""

from __future__ import annotations

import copy
import io
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wilson.atomic import replacing
from wilson.checkpoint import open_model
from wilson.errors import UserError, first_line
from wilson.inference.exported import KEY, LEAST, ONNX, PROGRAM, Description, Exported
from wilson.models import SegmentationModel, Segmenter
from wilson.models.backbone import TimmBackbone
from wilson.models.decoder import DeepLabV3Head
from wilson.models.transformer import Transformer

TOLERANCE = 1e-4  # allowed difference of a logit, relative to the largest logit; rounding stays well below


def export(checkpoint: Path, out: Path, builder: str | None = None) -> float:
    """Export a model without its localizer, and compare it with the original on images of several sizes.

    Args:
        checkpoint: of a step, or a folder, see :func:`wilson.checkpoint.open_model`.
        out: the .pt2 or .onnx file to write. It maps normalised images, float32 (B, 3, H, W) with sides of at least 32
            pixels (33 with stages or patches of 32), to logits (B, C, h, w) at feature resolution. Its metadata hold
            classes, mask ids, mean, standard deviation and crop.
        builder: FILE.py:FUNCTION that returns the architecture, for a model that was built by one.

    Returns:
        The largest difference of a logit.

    Raises:
        UserError: an argument is wrong, the model's code depends on the size of an image, or the logits differ from the
            original's by more than `TOLERANCE`; nothing is written then.
    """
    if out.suffix not in (PROGRAM, ONNX):
        raise UserError(
            f"--out {out}: expected a {PROGRAM} (torch.export) or {ONNX} file, got {out.suffix or 'no extension'}"
        )
    if out.exists():
        raise UserError(f"{out} is there already; remove it, or choose another --out")
    saved = open_model(checkpoint, builder)
    if out.suffix == ONNX:
        import onnxruntime  # noqa: F401  a missing package is reported before the work
        import onnxscript  # noqa: F401
    model, description = saved.model(), Description.of(saved)
    crop = saved.config.data.crop
    program = trace(model, crop)
    data = _onnx(program, description) if out.suffix == ONNX else _program(program, description)
    difference, largest = compare(model, Exported.parse(data, out.suffix, torch.device("cpu")), crop)
    if not difference <= TOLERANCE * largest:
        raise UserError(
            f"the exported model differs from {checkpoint}: logits of up to {largest:.1e} differ by {difference:.1e}, "
            f"more than {TOLERANCE:g} of that; nothing was written. Use the other format, or another version of torch"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        temporary.write_bytes(data)
    print(f"{out}: {len(data) / 1e6:.1f} MB; logits of up to {largest:.1e} differ by at most {difference:.1e}")
    return difference


@torch.no_grad()
def compare(model: SegmentationModel, exported: Exported, crop: int) -> tuple[float, float]:
    """Largest difference and largest magnitude of the logits, for images of other sizes than the traced one.

    Below the training crop, too, unless the model is of another library, which may not take these.
    """
    generator, difference, largest = torch.Generator().manual_seed(0), 0.0, 0.0
    small = max(least_side(model), crop // 2) if isinstance(model, Segmenter) else crop
    for shape in (
        (1, 3, small, small + 1),
        (2, 3, crop, crop),
        (1, 3, crop, 2 * crop + 1),
        (1, 3, 2 * crop + 1, small),
    ):
        images = torch.randn(shape, generator=generator)
        expected = model(images).logits
        difference = max(difference, (exported.logits(images) - expected).abs().max().item())
        largest = max(largest, expected.abs().max().item())
    return difference, largest


def trace(model: SegmentationModel, crop: int) -> torch.export.ExportedProgram:
    """Trace the graph from images to logits, for any number of images and any sides from :func:`least_side` on.

    The least sides of another library's model are its own; they follow from its code.
    """
    example = torch.zeros(2, 3, crop + LEAST + 1, crop + LEAST + 3)
    if isinstance(model, Segmenter):
        if isinstance(model.backbone, Transformer) and model.backbone.windowed:
            raise UserError(
                f"torch.export takes minutes and more to follow the windows of {model.backbone.name} for images of any "
                "size; use the checkpoint itself, or a backbone without windows such as vit_small_patch14_dinov2"
            )
        network: nn.Module = AnySize(model)
        least = least_side(model)
        sides = {2: torch.export.Dim("height", min=least), 3: torch.export.Dim("width", min=least)}
    else:
        network, sides = Foreign(model), {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    shapes = ({0: torch.export.Dim("batch"), **sides},)
    try:
        with torch.no_grad():
            return torch.export.export(network, (example,), dynamic_shapes=shapes)
    except Exception as error:  # torch has many kinds for code that it cannot follow
        instead = (
            "checkpoint itself" if isinstance(model, Segmenter) else "model in its own library, or export it there"
        )
        raise UserError(
            f"torch.export cannot follow the model's code for images of any size: {first_line(error)}; "
            f"use the {instead}"
        ) from error


def least_side(model: Segmenter) -> int:
    """The least side of an image, in pixels: torch.export takes a map of a single pixel for one of that size alone."""
    return max(LEAST, model.backbone.coarsest + 1) if isinstance(model.backbone, Transformer) else LEAST


class Foreign(nn.Module):
    """A model of another library, from images to logits."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image).logits


class AnySize(nn.Module):
    """The model from images to logits, with operations that do not branch on the size of an image."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval()
        self.model.head.__class__ = AnySizeHead
        if isinstance(self.model.backbone, TimmBackbone):
            _replace_same_padding(self.model.backbone)

    def forward(self, image: Tensor) -> Tensor:
        return self.model(image).logits


class AnySizeHead(DeepLabV3Head):
    """The decoder in eval mode, with its sliding window computed from differences of cumulative sums.

    At the border the window stops inside the map, so the mean is that of the nearest whole window; replicate padding
    gives the same. On a side shorter than the window, all pixels count.
    """

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.contiguous())  # of maps that are channels last, torch.export guards the strides

    def _pool(self, features: Tensor) -> Tensor:
        for dimension in (2, 3):
            index = torch.arange(features.shape[dimension], device=features.device)
            length = index[-1:] + 1
            size = length.clamp(max=self.window)
            first = torch.minimum((index - (size - 1) // 2).clamp(min=0), length - size)
            sums = F.pad(features.cumsum(dimension), (1, 0) if dimension == 3 else (0, 0, 1, 0))
            features = (sums.index_select(dimension, first + size) - sums.index_select(dimension, first)) / size
        return features


def _replace_same_padding(module: nn.Module) -> None:
    """Replace timm's convolutions with TensorFlow's padding, which branch on the size of the image."""
    from timm.layers.conv2d_same import Conv2dSame

    for name, child in module.named_children():
        if isinstance(child, Conv2dSame) and SamePadding.serves(child):
            setattr(module, name, SamePadding(child))
        else:
            _replace_same_padding(child)


class SamePadding(nn.Module):
    """A convolution with TensorFlow's padding that does not branch on the size of the image.

    Between its first and its last pixel, a kernel of size k and dilation d spans d (k - 1) pixels. So many are padded
    at stride 1; at stride 2 one less on even sides. Half of them come first, and an odd one last.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    @staticmethod
    def serves(conv: nn.Conv2d) -> bool:
        """Whether this module can take the convolution's place."""
        spans = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return conv.stride == (1, 1) or (conv.stride == (2, 2) and all(span and span % 2 == 0 for span in spans))

    def forward(self, x: Tensor) -> Tensor:
        conv, padding = self.conv, []
        for side in (1, 0):  # F.pad begins with the last dimension
            span = conv.dilation[side] * (conv.kernel_size[side] - 1)
            fewer = 1 - x.shape[2 + side] % 2 if conv.stride[side] == 2 else 0
            padding += [span // 2 - fewer, span - span // 2]
        return F.conv2d(F.pad(x, padding), conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups)


def _program(program: torch.export.ExportedProgram, description: Description) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={KEY: str(description)})
    return file.getvalue()


def _onnx(program: torch.export.ExportedProgram, description: Description) -> bytes:
    converted = torch.onnx.export(program, dynamo=True, verbose=False, input_names=["image"], output_names=["logits"])
    assert converted is not None  # it never is with dynamo=True
    proto = converted.model_proto
    _name_axes(proto.graph)
    proto.metadata_props.add(key=KEY, value=str(description))
    return proto.SerializeToString()


def _name_axes(graph: Any) -> None:
    """Name the axes of any size. The exporter calls them s40 and the like, and gives formulas of these for others."""
    axes = graph.input[0].type.tensor_type.shape.dim
    names = dict(zip((axis.dim_param for axis in axes), ("batch", "", "height", "width"), strict=True))
    symbols = re.compile("|".join(rf"\b{re.escape(symbol)}\b" for symbol in names if symbol))
    for value in (*graph.input, *graph.value_info, *graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = symbols.sub(lambda found: names[found[0]], axis.dim_param)
    for axis, name in zip(
        graph.output[0].type.tensor_type.shape.dim, ("batch", "", "feature_height", "feature_width"), strict=True
    ):
        if name:
            axis.dim_param = name
