"""What replayed images add to a step of WILSON, and which terms they stay out of."""

import pytest
import torch
from torch.nn import functional as F

from wilson.config import LossConfig
from wilson.methods import Settings, Wilson
from wilson.models import build_segmenter

OLD, NEW, OWN, REPLAYED = 3, 2, 3, 1


@pytest.fixture
def method():
    torch.manual_seed(0)
    old = build_segmenter("small_resnet", 4, "none", 16, [OLD], crop=32, dilations=(1, 2, 3))
    settings = Settings(LossConfig(seg=2.0), 0, localizer_channels=16, replayed=REPLAYED / (OWN + REPLAYED))
    method = Wilson(old.extended(NEW), old, settings).eval()
    with torch.no_grad():  # so that all classes claim pixels in SSS
        method.localizer.get_parameter("4.weight").mul_(30)
    return method


@pytest.fixture
def batch():
    torch.manual_seed(1)
    image = torch.randn(OWN + REPLAYED, 3, 32, 32)
    labels = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0]]).float()
    mask = torch.full((OWN + REPLAYED, 32, 32), 255)
    mask[OWN:] = torch.randint(0, OLD, (REPLAYED, 32, 32))
    mask[OWN:, :4] = 255
    return {"image": image, "rgb": torch.rand_like(image), "labels": labels, "mask": mask, "own": OWN}


def only(batch, images):
    return {key: value[:images] for key, value in batch.items() if isinstance(value, torch.Tensor)}


def test_terms(method, batch):
    """CLS, SSS and SEG of the step's images alone, LOC and ENC of all; and the base step's loss of the masks."""
    terms, of_step, of_all = method(batch, 0), method(only(batch, OWN), 0), method(only(batch, OWN + REPLAYED), 0)
    for name in ("cls", "sss", "seg"):
        torch.testing.assert_close(terms[name], of_step[name], msg=name)
        assert terms[name] > 0 and not torch.allclose(terms[name], of_all[name]), name
    for name in ("loc", "enc"):
        torch.testing.assert_close(terms[name], of_all[name], msg=name)
    logits = method.model(batch["image"]).logits[OWN:, :OLD]
    up = F.interpolate(logits, size=(32, 32), mode="bilinear", align_corners=False)
    mask = batch["mask"][OWN:]
    one_hot = F.one_hot(mask.where(mask < OLD, 0), OLD).movedim(-1, 1).float()
    expected = F.binary_cross_entropy_with_logits(up, one_hot, reduction="none").sum(1) * (mask < OLD)
    torch.testing.assert_close(terms["replay"], 2.0 * expected.mean())
    terms["replay"].backward()
    (first, last) = method.model.classifiers
    assert first.weight.grad.any() and not last.weight.grad.any()


def test_parts_add_up_to_the_whole(method, batch):
    """As the loop weighs the terms of parts by their images, whichever part the replayed images are in."""
    whole = method(batch, 0)
    halves = [{key: value[half] if key != "own" else own for key, value in batch.items()}
              for half, own in ((slice(0, 2), 2), (slice(2, 4), 1))]  # fmt: skip
    parts = [method(half, 0) for half in halves]
    for name in ("cls", "loc", "enc", "sss", "replay"):  # SEG is weighted by the images that count in it
        torch.testing.assert_close(sum(part[name] for part in parts) / 2, whole[name], msg=name)
