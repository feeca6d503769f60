"""The examples run, learn, and compute what the code that they replace computes."""

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))


def test_torchvision_deeplabv3():
    import torchvision_deeplabv3 as example

    losses = example.main(iterations=10, batch=2, size=48)
    assert len(losses) == 10 and losses[-2] < losses[0]  # of the batches with masks

    torch.manual_seed(0)
    model = example.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=example.CLASSES).eval()
    image, mask, labels = example.synthetic_batch(2, 48)
    mask[:, :3] = 255
    usual = F.cross_entropy(model(image)["out"], mask, ignore_index=255)
    torch.testing.assert_close(example.training_step(model, image, mask, labels), usual)
