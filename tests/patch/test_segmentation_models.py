"""The patched models of segmentation_models.pytorch give the loss and the gradients of those that are not patched."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wilson import ops, patch
from wilson.patch.segmentation_models import UpsampledLogits

smp = pytest.importorskip("segmentation_models_pytorch", reason='needs pip install -e ".[examples]"')

CLASSES = 5
UPSAMPLE = ("FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus", "UPerNet", "Segformer")
DO_NOT = ("Unet", "UnetPlusPlus", "MAnet", "Linknet")


def model_of(name="FPN", **options):
    torch.manual_seed(0)
    return getattr(smp, name)("resnet18", encoder_weights=None, classes=CLASSES, **options)


def batch_of(size=64):
    generator = torch.Generator().manual_seed(1)
    mask = torch.randint(0, CLASSES, (2, size, size), generator=generator)
    mask[:, :5] = 255
    return torch.randn(2, 3, size, size, generator=generator), mask


def head_of(**options):
    """What all these models end with, and its batch: fast, and where the patch is."""
    torch.manual_seed(0)
    head = smp.base.SegmentationHead(8, CLASSES, upsampling=4, **options)
    return head, (torch.randn(2, 8, 16, 16), batch_of()[1])


def loss_and_gradients(model, image, mask, loss_of):
    torch.manual_seed(2)  # of the dropout
    model.zero_grad()
    loss = loss_of(model(image), mask)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def calls(monkeypatch):
    """How often the op was called."""
    found = []
    op = ops.upsampled_cross_entropy

    def counted(*args, **options):
        found.append(1)
        return op(*args, **options)

    monkeypatch.setattr(ops, "upsampled_cross_entropy", counted)
    return found


def assert_equal(found, usual):
    torch.testing.assert_close(found[0], usual[0])
    assert found[1].keys() == usual[1].keys()
    largest = max(g.abs().max().item() for g in usual[1].values())
    for name, gradient in usual[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-5 * largest)


FAST = ("FPN", "DeepLabV3Plus", "Unet")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in (*UPSAMPLE, *DO_NOT)]
)
def test_equal_loss_and_gradient(name, calls):
    model, (image, mask) = model_of(name).double(), batch_of(128 if name == "PAN" else 64)
    loss_of = nn.CrossEntropyLoss(ignore_index=255)
    usual = loss_and_gradients(model, image.double(), mask, loss_of)
    with patch.smp():
        found = loss_and_gradients(model, image.double(), mask, loss_of)
    assert len(calls) == (name in UPSAMPLE)
    torch.testing.assert_close(found, usual, rtol=1e-9, atol=1e-12)


def test_equal_in_float32_and_under_autocast(calls):
    model, (image, mask) = head_of()
    loss_of = nn.CrossEntropyLoss(ignore_index=255)
    with patch.smp():
        found = loss_and_gradients(model, image, mask, loss_of)
        with torch.autocast("cpu", torch.bfloat16):
            half = loss_of(model(image), mask)
    assert len(calls) == 2
    assert_equal(found, loss_and_gradients(model, image, mask, loss_of))
    with torch.autocast("cpu", torch.bfloat16):
        usual = loss_of(model(image), mask)
    assert half.dtype == usual.dtype
    torch.testing.assert_close(half, usual, rtol=0.02, atol=0)


@pytest.mark.filterwarnings("ignore:wilson.patch.smp. the loss is no torch")  # of the Dice loss
def test_whatever_else_reads_the_logits_reads_the_librarys(calls):
    model, (image, mask) = head_of()
    usual = model(image)
    with patch.smp():
        logits = model(image)
    assert torch.equal(logits, usual) and type(logits) is UpsampledLogits
    assert {type(x) for x in (logits + 0, logits.detach(), logits.softmax(1), logits[:1], logits.argmax(1))} == {
        torch.Tensor
    }
    assert logits.contiguous() is logits  # as smp's tutorials call it
    for copied in (copy.copy(logits.detach()), pickle.loads(pickle.dumps(logits.detach()))):
        assert torch.equal(copied, usual) and type(copied) is torch.Tensor
    loss = F.cross_entropy(logits, mask, ignore_index=255) + 0.1 * smp.losses.DiceLoss("multiclass", ignore_index=255)(
        logits, mask
    )
    expected = F.cross_entropy(usual, mask, ignore_index=255) + 0.1 * smp.losses.DiceLoss(
        "multiclass", ignore_index=255
    )(usual, mask)
    weight = model[0].weight
    (found,), (wanted,) = torch.autograd.grad(loss, weight), torch.autograd.grad(expected, weight)
    assert len(calls) == 1
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def weighted(logits, mask):
    return F.cross_entropy(logits, mask, torch.arange(1.0, 1 + CLASSES), ignore_index=255)


def written(logits, mask):
    return F.cross_entropy(logits.mul_(2), mask, ignore_index=255)


def read_again(logits, mask):
    return smp.losses.SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=255)(logits, mask)


def soft(logits, mask):
    return F.cross_entropy(logits, F.one_hot(mask.clamp(max=CLASSES - 1), CLASSES).movedim(3, 1).to(logits.dtype))


OWN_WAY = {
    "class weights": weighted,
    "label smoothing": lambda x, y: F.cross_entropy(x, y, ignore_index=255, label_smoothing=0.1),
    "reduction": lambda x, y: F.cross_entropy(x, y, ignore_index=255, reduction="sum"),
    "written into": written,
    "no torch.nn.CrossEntropyLoss": read_again,
    "no integers": soft,
}


@pytest.mark.parametrize("reason", OWN_WAY)
def test_what_is_not_served_goes_its_own_way(reason, calls):
    model, (image, mask) = head_of()
    usual = loss_and_gradients(model, image, mask, OWN_WAY[reason])
    with patch.smp():
        with pytest.warns(UserWarning, match=f"wilson.patch.smp: .*{reason}.*the library's own loss"):
            found = loss_and_gradients(model, image, mask, OWN_WAY[reason])
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # no second warning
            loss_and_gradients(model, image, mask, OWN_WAY[reason])
    assert not calls
    torch.testing.assert_close(found, usual, rtol=0, atol=0)


def test_an_activation_and_evaluation_and_compiled_models(calls):
    model, (image, _) = head_of()
    with patch.smp():
        with pytest.warns(UserWarning, match="activation"):
            assert type(head_of(activation="softmax2d")[0](image)) is torch.Tensor
        assert type(model.eval()(image)) is torch.Tensor
        with torch.no_grad():
            assert type(model.train()(image)) is torch.Tensor
        torch.compiler.reset()
        assert type(torch.compile(model, backend="eager")(image)) is torch.Tensor
    assert not calls


def test_a_gradient_that_is_asked_for_at_the_logits_comes_by_there(calls):
    model, (image, mask) = head_of()
    with patch.smp():
        logits = model(image)
        logits.retain_grad()
        F.cross_entropy(logits, mask, ignore_index=255).backward()
    assert not calls and logits.grad.abs().sum() > 0
