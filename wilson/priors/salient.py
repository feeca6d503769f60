"""Saliency maps from a network in an ONNX file, such as U2-Net's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, Resampling, fromarray

from wilson.atomic import replacing
from wilson.data.sources.base import ImageSource
from wilson.errors import UserError, first_line
from wilson.models.backbone import IMAGENET_MEAN, IMAGENET_STD

from .maps import missing

SIDE = 320  # of the input, where the file leaves it open; that of U2-Net


class Salient:
    """Looks at an image and tells how salient each pixel is.

    The image is squeezed to the network's input and divided by its highest value, as U2-Net (Qin et al., Pattern
    Recognition 2020) was trained. The first output is scaled to 0..1 within the image.

    Args:
        network: ONNX file of a network from images (1, 3, S, S), normalised as for ImageNet, to maps (1, 1, S, S).

    Raises:
        UserError: the file cannot be opened, or is of another kind of network.
    """

    def __init__(self, network: Path) -> None:
        import onnxruntime

        if not network.is_file():
            raise UserError(f"--network {network}: no such file; give an ONNX file, such as u2netp.onnx")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        try:
            self.session = onnxruntime.InferenceSession(
                str(network), options, providers=onnxruntime.get_available_providers()
            )
        except Exception as error:  # of kinds of its own
            raise UserError(f"--network {network}: not a network in ONNX ({first_line(error)})") from error
        (given,) = self.session.get_inputs()[:1]
        shape = list(given.shape)
        if len(self.session.get_inputs()) != 1 or len(shape) != 4 or shape[1] != 3:
            raise UserError(
                f"--network {network}: takes {[tuple(each.shape) for each in self.session.get_inputs()]}; expected one "
                "image (1, 3, S, S), as U2-Net does"
            )
        self.input = given.name
        self.height, self.width = (side if isinstance(side, int) else SIDE for side in shape[2:])

    def __call__(self, image: Image) -> NDArray[np.uint8]:
        """The map (H, W), 255 where the upright RGB image is most salient."""
        pixels = np.asarray(image.resize((self.width, self.height), Resampling.LANCZOS), np.float32)
        pixels = pixels / max(pixels.max(), 1e-6)
        pixels = (pixels - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
        found = self.session.run(None, {self.input: pixels.transpose(2, 0, 1)[None]})[0]
        values = np.asarray(found, np.float32).reshape(found.shape[-2:])
        values = (values - values.min()) / max(values.max() - values.min(), 1e-12)
        small = fromarray((values * 255).round().astype(np.uint8))
        return np.asarray(small.resize(image.size, Resampling.BILINEAR))


def fill(out: Path, source: ImageSource, look: Salient) -> None:
    """Write FOLDER/NAME.png for each image; files that are there are kept, so that an interrupted command goes on.

    Images that cannot be read get no file; how many is printed at the end.
    """
    for file, image in missing(out, ".png", source):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            fromarray(look(image)).save(temporary, "png")
