"""The examples run, learn, and compute what the code that they replace computes."""

import importlib
import sys

import pytest
import torch
from torch.nn import functional as F

from tests.support import decode_heads


@pytest.mark.slow
def test_torchvision_deeplabv3():
    from examples import torchvision_deeplabv3 as example

    losses = example.main(iterations=10, batch=2, size=48)
    assert len(losses) == 10 and losses[-2] < losses[0]  # of the batches with masks

    torch.manual_seed(0)
    model = example.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=example.CLASSES).eval()
    image, mask, labels = example.synthetic_batch(2, 48)
    mask[:, :3] = 255
    usual = F.cross_entropy(model(image)["out"], mask, ignore_index=255)
    torch.testing.assert_close(example.training_step(model, image, mask, labels), usual)


def saves(ratios: dict[str, float]) -> bool:
    """Less memory; of time only that it is no loss, as tests run beside others."""
    return ratios["memory"] > 2 and ratios["time"] > 1


def test_segmentation_models_loss():
    pytest.importorskip("segmentation_models_pytorch", reason='needs pip install -e ".[examples]"')
    from examples import segmentation_models_loss as example

    losses, saved = example.main(size=128, batch=2, iterations=4)  # which compares gradients, too
    assert losses[-1] < losses[0] and saves(saved)
    with pytest.raises(ValueError, match="multilabel"):
        example.UpsampledLoss("binary")


@pytest.mark.parametrize("library", ["mmsegmentation", "none"])
def test_mmseg_decode_head(library, monkeypatch):
    if library == "none":
        for module in ("mmseg", "mmseg.registry"):
            monkeypatch.setitem(sys.modules, module, None)
    else:
        decode_heads.put_in(library, monkeypatch)
    monkeypatch.delitem(sys.modules, "examples.mmseg_decode_head", raising=False)
    example = importlib.import_module("examples.mmseg_decode_head")
    assert example.MODELS.__module__.split(".")[0] == ("examples" if library == "none" else "mmengine")

    losses, saved = example.main(size=128, batch=2)
    assert losses["loss_wilson"].requires_grad and 0 <= losses["acc_seg"] <= 100 and saves(saved)
    loss = example.MODELS.build({"type": "WilsonUpsampledLoss", "use_sigmoid": True})
    logits, mask = torch.randn(1, 3, 4, 4), torch.randint(0, 3, (1, 8, 8))
    up = F.interpolate(logits, (8, 8), mode="bilinear")
    one_hot = F.one_hot(mask, 3).permute(0, 3, 1, 2).float()
    usual = F.binary_cross_entropy_with_logits(up, one_hot, reduction="none").sum(1).mean()
    torch.testing.assert_close(loss(logits, mask), usual)
    with pytest.raises(ValueError, match="ignore_index"):
        loss(logits, mask, weight=torch.ones(1, 8, 8))


@pytest.mark.slow
def test_cam_refinement():
    from examples import cam_refinement as example

    accuracy, saved = example.main()
    assert accuracy["refined"] > accuracy["activation maps"] and accuracy["refined"] > 98 and saves(saved)
