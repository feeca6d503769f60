"""SDR: its terms against the equations written out, its prototypes, and what numbers do to it."""

import pytest
import torch

from tests.support.pixel_supervised import SIDE, C, build, moved
from wilson.config.masks import VOID
from wilson.methods.sdr import LEAST, clustering, matching, sparsity


@pytest.fixture
def labelled():
    """Features of two images, their labels, and prototypes, of which background and class 4 have none."""
    torch.manual_seed(1)
    features = torch.randn(2, 6, 3, 4, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([[0, 0, 3, 3], [3, VOID, 4, 4], [0, 3, 3, 4]])
    labels = torch.stack([labels, torch.tensor([0, VOID, VOID, 0]).repeat(3, 1)])
    prototypes = torch.randn(C, 6, dtype=torch.float64)
    prototypes[[0, 4]] = 0
    return features, labels, prototypes


def of_class(features, labels, image, c):
    """The features of a class in an image, (n, D)."""
    return torch.stack([features[image, :, y, x] for y in range(3) for x in range(4) if labels[image, y, x] == c])


def test_matching_compares_mean_features_with_prototypes(labelled):
    features, labels, prototypes = labelled
    labels = torch.where(labels == 0, 1, labels)
    first = [(of_class(features, labels, 0, c).mean(0) - prototypes[c]).square().mean() for c in (1, 3)]
    second = (of_class(features, labels, 1, 1).mean(0) - prototypes[1]).square().mean()
    torch.testing.assert_close(matching(features, labels, prototypes), (sum(first) / 2 + second) / 2)


def test_clustering_attracts_classes_to_prototypes_and_repels_them_from_each_other(labelled):
    features, labels, prototypes = labelled
    attraction, repulsion = clustering(features, labels, prototypes)
    attracted = (of_class(features, labels, 0, 3) - prototypes[3]).square().mean()
    means = [of_class(features, labels, 0, c).mean(0) for c in (0, 3, 4)]
    apart = [1 / (means[i] - means[j]).norm() for i, j in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(attraction, attracted / 2)
    torch.testing.assert_close(repulsion, sum(apart) / 3 / 2)
    repulsion.backward()
    assert features.grad.isfinite().all() and features.grad[0].any() and not features.grad[1].any()


def test_equal_means_do_not_repel(labelled):
    """Equal up to rounding; their distance would make a gradient of its inverse square."""
    _, labels, prototypes = labelled
    same = torch.randn(1, 6, 1, 1).expand(2, 6, 3, 4).clone().requires_grad_()
    repulsion = clustering(same, labels, prototypes.float())[1]
    repulsion.backward()
    assert repulsion == 0 and not same.grad.any()


def test_near_means_of_many_classes_repel_as_those_of_few():
    torch.manual_seed(2)
    features = torch.randn(1, 512, 1, 1) + 3e-3 * torch.randn(1, 512, 3, 4)
    labels = torch.arange(12).view(1, 3, 4) % 4
    few, many = (clustering(features, labels, torch.zeros(classes, 512))[1] for classes in (C, 81))
    assert few > 0
    torch.testing.assert_close(many, few)


def test_sparsity_compares_exponentials_with_their_argument(labelled):
    features, labels, _ = labelled
    with torch.no_grad():
        features[0, :, 0, 0] = -1  # without a positive feature
        features[0, :, 1, 1] = 1e3  # without a label
        features[0, :, 0, 1] = torch.tensor([LEAST / 1e3, *[-1] * 5])  # as good as empty
    means = []
    for image in range(2):
        ratios = []
        for c in set(labels[image].flatten().tolist()) - {VOID}:
            positive = of_class(features, labels, image, c).relu()
            shares = positive / positive.max()
            ratios += [row.exp().sum() / row.sum() for row in shares if row.sum() > LEAST]
        means.append(sum(ratios) / len(ratios))
    value = sparsity(features, labels, C)
    torch.testing.assert_close(value, sum(means) / 2)
    value.backward()
    assert features.grad.isfinite().all() and features.grad.any()
    assert not features.grad[0, :, 0, :2].any() and not features.grad[0, :, 1, 1].any()


def test_prototypes_are_the_old_features_of_the_labels(parts):
    _, old, batch = parts
    method = build("sdr", parts)
    method.prepare([{name: value[:2] for name, value in batch.items()}, {name: v[2:] for name, v in batch.items()}])
    logits, features = old(batch["image"])
    side = features.shape[2]
    labels = batch["mask"][:, :: SIDE // side, :: SIDE // side]
    labels = torch.where(labels == 0, logits.argmax(1), labels)
    assert set(labels.unique().tolist()) >= {0, 1, 3, 4}  # more than one old class, and both new ones
    for c in range(C):
        chosen = features.movedim(1, 3)[labels == c]
        expected = chosen.mean(0) if c and len(chosen) else torch.zeros(features.shape[1])
        torch.testing.assert_close(method.prototypes[c], expected)


@pytest.mark.parametrize("distillation", [1.0, 0.5])
def test_terms(parts, distillation):
    """MiB's terms with a weight of its own; old classes match where the old model sees them in the background."""
    model, old, batch = parts
    mib, method = build("mib", parts).eval(), build("sdr", parts, distillation=distillation).eval()
    moved(model)
    method.prepare([batch])
    terms, of_mib = method(batch, 0), mib(batch, 0)
    features, logits = model(batch["image"]).features, old(batch["image"]).logits
    labels = batch["mask"][:, :: SIDE // features.shape[2], :: SIDE // features.shape[2]]
    remembered = torch.where(labels == 0, logits.argmax(1), VOID)
    attraction, repulsion = clustering(features, labels, method.prototypes)
    expected = {
        "ce": of_mib["ce"],
        "kd": distillation * 10 * of_mib["kd"],
        "match": distillation * 0.01 * matching(features, remembered, method.prototypes),
        "attract": 0.001 * attraction,
        "repel": 0.001 * repulsion,
        "sparse": 0.001 * sparsity(features, labels, C),
    }
    torch.testing.assert_close(terms, expected)
    assert all(term > 0 for term in terms.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_terms_on_features_keep_float32_in_mixed_precision(parts, dtype, monkeypatch):
    """Sums over the pixels of a class would leave the range of float16."""
    method, batch = build("sdr", parts).eval(), parts[2]
    now, old = method.model(batch["image"]), method.remember(batch)
    large = now._replace(features=1000 * now.features.detach())
    monkeypatch.setattr(method.model, "forward", lambda _: large)
    monkeypatch.setattr(method.old, "forward", lambda _: old)
    method.prototypes.copy_(torch.randn_like(method.prototypes))
    expected = method(batch, 0)
    with torch.autocast("cpu", dtype):
        terms = method(batch, 0)
    for name in ("match", "attract", "repel", "sparse"):
        torch.testing.assert_close(terms[name], expected[name])
