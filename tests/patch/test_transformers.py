"""The patched SegFormer of transformers gives the loss and the gradients of the one that is not patched."""

import warnings

import pytest
import torch

from wilson import ops, patch

transformers = pytest.importorskip("transformers", reason='needs pip install -e ".[examples]"')


def model_of(labels=5, **options):
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 16, 16, 32], "decoder_hidden_size": 16, "depths": [1, 1, 1, 1]}
    config = transformers.SegformerConfig(**sizes, num_labels=labels, **options)
    return transformers.SegformerForSemanticSegmentation(config)


def batch_of(labels=5, size=(64, 48), ignored=255):
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 3, 64, 64, generator=generator)
    mask = torch.randint(0, labels, (2, *size), generator=generator)
    mask[:, :5] = ignored
    return image, mask


def loss_and_gradients(model, image, mask, **options):
    """With the dropout that the seed gives."""
    torch.manual_seed(2)
    model.zero_grad()
    output = model(image, labels=mask, **options)
    loss = output[0] if isinstance(output, tuple) else output.loss
    loss.backward()
    return output, loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


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


@pytest.mark.parametrize("return_dict", [True, False])
@pytest.mark.parametrize("ignored", [255, -100, 3])
def test_equal_loss_and_gradient(ignored, return_dict, calls):
    model, (image, mask) = model_of(semantic_loss_ignore_index=ignored), batch_of(ignored=ignored)
    output, loss, gradients = loss_and_gradients(model, image, mask, return_dict=return_dict)
    with patch.transformers_segformer():
        found_output, found, found_gradients = loss_and_gradients(model, image, mask, return_dict=return_dict)
    assert len(calls) == 1 and type(found_output) is type(output)
    torch.testing.assert_close(found, loss)
    assert len(found_gradients) == len(gradients) > 50
    for one, other in zip(found_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    if return_dict:
        assert list(found_output) == list(output) == ["loss", "logits"]
        assert torch.equal(found_output.logits, output.logits)
    else:
        assert len(found_output) == len(output) and torch.equal(found_output[1], output[1])


def test_hidden_states_and_evaluation(calls):
    model, (image, mask) = model_of().eval(), batch_of()
    with torch.no_grad():
        usual = model(image, mask, output_hidden_states=True)
        with patch.transformers_segformer():
            found = model(image, mask, output_hidden_states=True)
            assert model(image).loss is None
    assert len(calls) == 1 and list(found) == list(usual) and len(found.hidden_states) == len(usual.hidden_states)
    torch.testing.assert_close(found.loss, usual.loss)


@pytest.mark.parametrize("what", ["one label", "255 of 300"])
def test_what_is_not_served_goes_its_own_way(what, calls):
    labels = 1 if what == "one label" else 300
    model, (image, mask) = model_of(labels), batch_of(labels)
    _, loss, gradients = loss_and_gradients(model, image, mask)
    with patch.transformers_segformer():
        with pytest.warns(UserWarning, match="wilson.patch.transformers_segformer: .*the library's own loss"):
            _, found, found_gradients = loss_and_gradients(model, image, mask)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # no second warning
            loss_and_gradients(model, image, mask)
    assert not calls and torch.equal(found, loss) and all(map(torch.equal, found_gradients, gradients))


def test_compiles(calls):
    model, (image, mask) = model_of().eval(), batch_of()
    loss = model(image, labels=mask).loss
    torch.compiler.reset()
    with patch.transformers_segformer():
        found = torch.compile(model, backend="eager")(image, labels=mask).loss
    torch.testing.assert_close(found, loss)


def test_the_signature_stays():
    """The trainer of transformers reads from it which columns of a data set the model takes."""
    import inspect

    forward = transformers.SegformerForSemanticSegmentation.forward
    with patch.transformers_segformer():
        patched = transformers.SegformerForSemanticSegmentation.forward
        assert patched is not forward and inspect.signature(patched) == inspect.signature(forward)
    assert transformers.SegformerForSemanticSegmentation.forward is forward
