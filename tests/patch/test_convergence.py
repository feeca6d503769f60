"""A small SegFormer trains alike with the usual code and with the patch: 60 iterations, loss beside loss."""

import contextlib

import pytest
import torch

from wilson import patch

transformers = pytest.importorskip("transformers", reason='needs pip install -e ".[examples]"')

CLASSES = 6
# Of each loss, relative: float32 differs in the order of sums, which training magnifies; under bfloat16 the usual code
# rounds the resized logits to 8 bits, which the op does not make
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # measured: 3e-7, 3e-3


def train(dtype, iterations=60):
    """The losses of a network that starts from fixed random weights, with its dropout, on squares of random classes."""
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        hidden_sizes=[16, 16, 32, 32], decoder_hidden_size=32, depths=[1, 1, 1, 1], num_labels=CLASSES
    )
    model = transformers.SegformerForSemanticSegmentation(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(iterations):
        coarse = torch.randint(0, CLASSES, (4, 4, 4), generator=generator)
        mask = coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)
        image = torch.stack([mask % 2, mask // 2 % 2, mask // 4], 1).float()
        image += 0.1 * torch.randn(image.shape, generator=generator)
        mask[:, :4] = 255
        with torch.autocast("cpu", dtype) if dtype != torch.float32 else contextlib.nullcontext():
            loss = model(image, labels=mask).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_trains_alike(dtype):
    usual = train(dtype)
    with patch.transformers_segformer():
        found = train(dtype)
    difference = (found - usual).abs() / usual
    print(f"{dtype}: loss {usual[0]:.3f} to {usual[-1]:.3f}, patched {found[-1]:.3f}, largest {difference.max():.1e}")
    assert usual[-5:].mean() < 0.5 * usual[0], "the network does not learn"
    assert not torch.equal(found, usual), "the patch does nothing"
    assert difference.max() < TOLERANCE[dtype], f"{difference.max():.1e} at iteration {difference.argmax()}"
