"""The definition of every op, in plain differentiable PyTorch.

Same names and signatures as :mod:`wilson.ops`; the compiled kernels must agree with these lines. Each function first
brings its floating inputs to the accumulation dtype (float64 if any of them is, else float32). Gradients of any order
flow, except where the op has none. Arguments are not checked here; :mod:`wilson.ops` does that.

What infinite and undefined numbers mean, here as in every kernel:

- A class whose score is -inf is ruled out: the softmax is over the others, and the class adds 0 to what is pooled.
- In a binary cross-entropy 0 times infinity is 0: a logit of -inf adds 0 where the target is 0, else +inf.
- +inf and NaN, like -inf in all classes, make a pixel's softmax NaN; the result is NaN where the pixel counts.
- A pixel without a class, or of an image that does not count, adds 0 to loss and gradient whatever its scores.
- Upsampling gives -inf where a pixel of -inf has a share above 0, as where a number under 2^-40 of the lowest results.
- The arg-max is that of `torch.argmax`: the first NaN, else the first of the highest.
- A class with a NaN or +inf in an image claims no pixel there.
- A NaN in the prior of a labelled class makes its target and that of the background NaN; it has no hard label there.
- The one-versus-rest logit of a class ruled out is -inf, that of the only one left +inf; NaN where the softmax is.

A gradient is defined where the loss is finite. `pamr`, `par` and `random_walk` make no promise: infinite and undefined
numbers spread to the neighbours.

Equation numbers are those of the paper (Cermelli et al., "Incremental Learning in Semantic Segmentation from Image
Labels", CVPR 2022, arXiv 2112.01882). Where its published code computes something else, the op follows the code, and
its docstring says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGE_WEIGHT_EPS = 1e-5  # of Eq. 7: keeps the weighted mean over images finite when no image counts


def accumulate(*tensors: Tensor | None) -> torch.dtype:
    """The dtype that an op computes and returns in: float64 if any floating input is, else float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def ngwp_focal_pool(
    scores: Tensor, *, eps: float = 1.0, gamma: float = 3.0, lam: float = 0.01, focal: bool = True
) -> Tensor:
    """T / (eps + S) + (1 - S/P)^gamma log(lam + S/P); S = sum_i m_i, T = sum_i m_i z_i, m = softmax of z (Eq. 1, 2)."""
    z = scores.to(accumulate(scores)).flatten(2)  # (B, C, P)
    m = z.softmax(1)
    mass = m.sum(2)
    pooled = (m * counted_scores(z)).sum(2) / (eps + mass)
    return pooled + focal_penalty(mass, z.shape[2], gamma, lam) if focal else pooled


def counted_scores(z: Tensor) -> Tensor:
    """The scores, with 0 for -inf: their probability is 0, and 0 times infinity would be NaN."""
    return z.masked_fill(z == -torch.inf, 0)


def focal_penalty(mass: Tensor, pixels: int, gamma: float, lam: float) -> Tensor:
    """(1 - S/P)^gamma log(lam + S/P): low for a class that covers little of the image; S/P clamped against rounding."""
    share = (mass / pixels).clamp(max=1)
    return (1 - share) ** gamma * (lam + share).log()


def localization_prior_loss(scores: Tensor, old_logits: Tensor) -> Tensor:
    """BCE between the localizer's scores of old classes and the old model's sigmoid, mean over B*O*P (LOC, Eq. 4)."""
    dtype = accumulate(scores, old_logits)
    old = old_logits.shape[1]
    z, prior = scores[:, :old].to(dtype), old_logits.detach().to(dtype).sigmoid()
    return margin_loss(z, prior).sum() / max(z.numel(), 1)


def soft_margin_loss(logits: Tensor, targets: Tensor, *, image_weight: Tensor | None = None) -> Tensor:
    """BCE with soft targets: sum over classes, mean over pixels, (weighted) mean over images (SEG, Eq. 7)."""
    dtype = accumulate(logits, targets, image_weight)
    s, q = logits.to(dtype), targets.detach().to(dtype)
    per_image = margin_loss(s, q).sum(1).flatten(1).mean(1)  # (B,)
    if image_weight is None:
        return per_image.sum() / max(len(per_image), 1)
    g = image_weight.detach().to(dtype)
    return (g * per_image).sum() / (g.sum() + IMAGE_WEIGHT_EPS)


def margin_loss(s: Tensor, q: Tensor) -> Tensor:
    """Binary cross-entropy with logits s against q, element by element: log(1 + exp(s)) - s q, where 0 * inf is 0."""
    return -F.logsigmoid(-s) - torch.where(q == 0, 0, s * q)


def prior_loss(
    scores: Tensor,
    image_labels: Tensor,
    *,
    maps: Tensor | None = None,
    similarity: Tensor | None = None,
    old_logits: Tensor | None = None,
) -> Tensor:
    """BCE of the N new classes' scores against :func:`prior_targets`, gated by the labels, mean over B*N*P."""
    dtype = accumulate(scores, image_labels, maps, similarity, old_logits)
    targets = prior_targets(maps, similarity, old_logits, dtype)
    new = targets.shape[1]
    y = image_labels.detach()[:, -new:].to(dtype)[:, :, None, None]
    z = torch.where(y != 0, scores[:, -new:].to(dtype), 0)  # what does not count may hold anything
    return torch.where(y != 0, y * margin_loss(z, targets), 0).sum() / max(z.numel(), 1)


def prior_targets(
    maps: Tensor | None, similarity: Tensor | None, old_logits: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The maps, or sigmoid(A[n, k] / A[n, 0]) with k the class that the old model sees: (B, N, H, W)."""
    if maps is not None:
        return maps.detach().to(dtype)
    assert similarity is not None and old_logits is not None
    return relative_similarity(similarity.detach().to(dtype), old_logits.detach()).sigmoid()


def relative_similarity(similarity: Tensor, old_logits: Tensor) -> Tensor:
    """s_n,i = A[n, k_i] / A[n, 0], (B, N, H, W), of A (C, C) and logits (B, O, H, W), k_i their first arg-max."""
    of_new = similarity[old_logits.shape[1] :]
    return (of_new / of_new[:, :1])[:, old_logits.argmax(1)].movedim(0, 1)


def one_versus_rest(logits: Tensor) -> Tensor:
    """l_c = s_c - log sum_{k != c} exp s_k, whose sigmoid is the softmax of s; in the dtype of the logits.

    The others of any class but the top one include the top one, whose share is at least that of the class itself: they
    are what is left of the sum. Those of the top class are added up by themselves.
    """
    s = logits.to(accumulate(logits))
    peak = s.detach().amax(1, keepdim=True)
    top = torch.arange(s.shape[1], device=s.device)[:, None, None] == s.detach().argmax(1, keepdim=True)
    z = s - peak
    e = z.exp()
    others = (e.sum(1, keepdim=True) - e.masked_fill(top, 0)).log()
    lowest = torch.finfo(s.dtype).min  # in the top class's place: with -inf, none but it would make the gradient NaN
    others_of_top = s.masked_fill(top, lowest).logsumexp(1, keepdim=True)
    others_of_top = others_of_top.masked_fill(others_of_top == lowest, -torch.inf)
    undefined = peak - peak  # NaN where the softmax is, else 0
    return torch.where(top, s - others_of_top + undefined, z - others).to(logits.dtype)


def merge_pseudo_labels(
    localizer_scores: Tensor,
    old_logits: Tensor,
    image_labels: Tensor,
    *,
    alpha: float = 0.5,
    background: float | str = "min",
    old_yields: bool = False,
    prior: Tensor | None = None,
    prior_weight: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Smoothed, gated pseudo-labels for background and new classes, the old model's output for old ones (Eq. 5, 6).

    The gate (image-level labels) comes before the arg-max, and the background is the minimum of both, as in the
    published code. `old_yields`: the old model's output times 1 minus what the localizer gives to new classes.
    `prior`: what the arg-max is taken of is mixed with these maps of the new classes.
    """
    dtype = accumulate(localizer_scores, old_logits, image_labels, prior)
    old = old_logits.shape[1]
    labels = image_labels.detach().to(dtype)
    m = localizer_scores.detach().to(dtype).softmax(1)
    m = gated = torch.cat([m[:, :1], m[:, 1:] * labels[:, :, None, None]], 1)
    if prior is not None and prior_weight is not None:
        m = mixed_with_prior(m, prior.detach().to(dtype), labels[:, old - 1 :, None, None], float(prior_weight))
    hard = (m == m.amax(1, keepdim=True)).to(dtype)  # every class of a tie gets 1
    q = alpha * hard + (1 - alpha) * m

    omega = old_logits.detach().to(dtype).sigmoid()
    if old_yields:
        omega = omega * (1 - gated[:, old:].sum(1, keepdim=True)).clamp(min=0)  # the sum can pass 1 by rounding
    if background == "min":
        merged = torch.minimum(omega[:, :1], q[:, :1])
    else:
        merged = (1 - float(background)) * omega[:, :1] + float(background) * q[:, :1]
    targets = torch.cat([merged, omega[:, 1:], q[:, old:]], 1)

    found = (q[:, old:] > 0).flatten(2).any(2)
    image_weight = (found == (labels[:, old - 1 :] > 0)).all(1).to(dtype)
    return targets, image_weight


def mixed_with_prior(m: Tensor, prior: Tensor, labels: Tensor, weight: float) -> Tensor:
    """(1 - b) m_n + b p_n y_n of new classes, (1 - b) m_0 + b (1 - max_n p_n y_n) of the background; others as m.

    The prior of a class without a label counts as 0, whatever it holds.
    """
    p = torch.where(labels == 0, 0, prior * labels)  # (B, N, H, W)
    share = torch.cat([1 - p.amax(1, keepdim=True), p], 1)
    old = m.shape[1] - p.shape[1]
    mixed = (1 - weight) * torch.cat([m[:, :1], m[:, old:]], 1) + weight * share
    return torch.cat([mixed[:, :1], m[:, 1:old], mixed[:, 1:]], 1)


def pseudo_label_loss(
    logits: Tensor,
    localizer_scores: Tensor,
    old_logits: Tensor,
    image_labels: Tensor,
    *,
    alpha: float = 0.5,
    background: float | str = "min",
    old_yields: bool = False,
    prior: Tensor | None = None,
    prior_weight: float | None = None,
) -> Tensor:
    """:func:`soft_margin_loss` against :func:`merge_pseudo_labels` (SEG, Eq. 5 to 7)."""
    dtype = accumulate(logits, localizer_scores, old_logits, image_labels, prior)
    targets, image_weight = merge_pseudo_labels(
        localizer_scores.to(dtype), old_logits, image_labels,
        alpha=alpha, background=background, old_yields=old_yields, prior=prior, prior_weight=prior_weight,
    )  # fmt: skip
    return soft_margin_loss(logits, targets, image_weight=image_weight)


def pamr(
    image: Tensor,
    mask: Tensor,
    *,
    image_labels: Tensor | None = None,
    iterations: int = 10,
    dilations: Sequence[int] = (1, 2, 4, 8, 12),
) -> Tensor:
    """Pixel-adaptive mask refinement (Araslanov and Roth, CVPR 2020): mask_i <- sum_n a_in mask_n, repeated.

    k_in = mean over channels of -|x_i - x_n| / (1e-8 + 0.1 sigma_i); a = softmax of k over the 8 neighbours at each
    dilation; sigma_i is the unbiased deviation over those neighbours and, once per dilation, the centre. Classes whose
    image-level label is 0 give 0.
    """
    return refined(pamr_affinity, image, mask, image_labels, iterations, dilations)


def pamr_affinity(x: Tensor, dilations: Sequence[int]) -> Tensor:
    """a_in of :func:`pamr`, (8D, B, H, W), of the image x."""
    around = torch.stack(list(neighbours(x, dilations)))  # (8D, B, 3, H, W)
    sigma = torch.cat([around, x.expand(len(dilations), *x.shape)]).std(0)
    kernel = (-(x - around).abs() / (1e-8 + 0.1 * sigma)).mean(2)  # (8D, B, H, W)
    return kernel.softmax(0)


def par(
    image: Tensor,
    mask: Tensor,
    *,
    image_labels: Tensor | None = None,
    iterations: int = 10,
    dilations: Sequence[int] = (1, 2, 4, 8, 12, 24),
) -> Tensor:
    """Pixel-adaptive refinement (Ru et al., CVPR 2022): :func:`pamr` with other affinities.

    a = softmax of -mean over channels of (|x_i - x_n| / (sigma_i + 1e-8) / 0.3)^2, plus 0.01 times the same of the
    neighbours' distances; sigma_i is the unbiased deviation over the 8 neighbours at each dilation, without the centre.
    """
    return refined(par_affinity, image, mask, image_labels, iterations, dilations)


def par_affinity(x: Tensor, dilations: Sequence[int]) -> Tensor:
    """a_in of :func:`par`, (8D, B, H, W), of the image x.

    Of the squared differences of a channel the least is taken off, which the softmax does not see. For where the
    neighbours are alike and the centre is not, sigma is 0 and the squares reach 1e17: one number, which would round the
    shares of the other channels away, in float64, too. Taken off, it leaves 0.
    """
    around = torch.stack(list(neighbours(x, dilations)))  # (8D, B, 3, H, W)
    difference = (x - around).abs()
    least = difference.amin(0)
    squares = (difference - least) * (difference + least)  # difference^2 - least^2, with fewer digits lost
    kernel = -(squares / (0.3 * (around.std(0) + 1e-8)) ** 2).mean(2)  # (8D, B, H, W)
    return kernel.softmax(0) + 0.01 * nearness(dilations).to(x)[:, None, None, None]


def nearness(dilations: Sequence[int]) -> Tensor:
    """softmax of -(rho / (sigma_rho + 1e-8) / 0.3)^2, of the neighbours' distances rho: (8D,), float64."""
    corner = math.sqrt(2)
    ring = torch.tensor([corner, 1, corner, 1, 1, corner, 1, corner], dtype=torch.float64)  # row by row
    rho = (torch.tensor(dilations, dtype=torch.float64)[:, None] * ring).flatten()
    return (-((rho / (rho.std() + 1e-8) / 0.3) ** 2)).softmax(0)


def refined(
    affinity_of: Callable[[Tensor, Sequence[int]], Tensor],
    image: Tensor,
    mask: Tensor,
    image_labels: Tensor | None,
    iterations: int,
    dilations: Sequence[int],
) -> Tensor:
    """mask_i <- sum_n a_in mask_n, repeated, at the image's size."""
    dtype = accumulate(image, mask)
    x, mask = image.detach().to(dtype), mask.detach().to(dtype)
    if not len(x):  # which interpolate and pad refuse
        return mask.new_empty((0, mask.shape[1], *x.shape[2:]))
    if mask.shape[2:] != x.shape[2:]:
        mask = F.interpolate(mask, size=x.shape[2:], mode="bilinear", align_corners=True)
    affinity = affinity_of(x, dilations).unsqueeze(2)  # (8D, B, 1, H, W)
    for _ in range(iterations):
        mean = torch.zeros_like(mask)
        for a, neighbour in zip(affinity, neighbours(mask, dilations), strict=True):
            mean = mean + a * neighbour
        mask = mean
    if image_labels is None:
        return mask
    shown = F.pad(image_labels != 0, (1, 0), value=True)
    return torch.where(shown[:, :, None, None], mask, 0)


def neighbours(x: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """The 8 neighbours of every pixel at each dilation, coordinates clamped to the image: (B, C, H, W) each."""
    height, width = x.shape[2:]
    for d in dilations:
        padded = F.pad(x, (d, d, d, d), mode="replicate")
        for dy in (0, d, 2 * d):
            for dx in (0, d, 2 * d):
                if (dy, dx) != (d, d):
                    yield padded[:, :, dy : dy + height, dx : dx + width]


def random_walk(scores: Tensor, edge: Tensor, *, radius: int = 5, beta: float = 10.0, steps: int = 256) -> Tensor:
    """x_j <- sum_i a_ij^beta x_i / sum_k a_kj^beta, `steps` times, from x (1 - e) on (IRN; Ahn et al., CVPR 2019).

    a_ij = 1 - the strongest edge between the pixels i and j, which are less than `radius` apart; a_ii = 1.
    """
    dtype = accumulate(scores, edge)
    x, e = scores.detach().to(dtype), edge.detach().to(dtype)
    e = e if e.dim() == 4 else e.unsqueeze(1)
    x = x * (1 - e)
    near, barred = disc(radius), pad(e, radius, 1)  # nobody walks past the border
    weights = [link_weight(barred, radius, beta, *step, x.shape[2:]) for step in near]
    total = 1 + sum(weights)
    for _ in range(steps):
        padded = pad(x, radius, 0)
        for weight, step in zip(weights, near, strict=True):
            x = x + weight * window(padded, radius, *step, x.shape[2:])
        x = x / total
    return x


def link_weight(barred: Tensor, radius: int, beta: float, down: int, right: int, size: Sequence[int]) -> Tensor:
    """a^beta of every pixel and its neighbour so many pixels down and to the right; 0 if that lies outside."""
    strongest = torch.stack([window(barred, radius, y, x, size) for y, x in path(down, right)]).amax(0)
    return (1 - strongest).clamp(min=0) ** beta


def disc(radius: int) -> list[tuple[int, int]]:
    """The steps (down, right) to the neighbours of a pixel that are less than `radius` away."""
    within = range(1 - radius, radius)
    return [(y, x) for y in within for x in within if 0 < y * y + x * x < radius * radius]


def path(down: int, right: int) -> list[tuple[int, int]]:
    """The pixels that the line to a neighbour passes, both ends included: those of the box less than 1 away from it."""
    rows, columns = range(min(down, 0), max(down, 0) + 1), range(min(right, 0), max(right, 0) + 1)
    return [(y, x) for y in rows for x in columns if (down * x - right * y) ** 2 < down * down + right * right]


def pad(x: Tensor, radius: int, value: float) -> Tensor:
    return F.pad(x, [radius - 1] * 4, value=value)


def window(padded: Tensor, radius: int, down: int, right: int, size: Sequence[int]) -> Tensor:
    """Every pixel's neighbour so many pixels down and to the right, of what :func:`pad` gave."""
    top, left = radius - 1 + down, radius - 1 + right
    return padded[:, :, top : top + size[0], left : left + size[1]]


def confident_labels(
    refined: Tensor,
    image_labels: Tensor,
    *,
    background_ratio: float = 0.7,
    class_ratio: float = 0.6,
    floor: float = 0.2,
    ignore_index: int = 255,
) -> tuple[Tensor, Tensor]:
    """A pixel belongs to the one class whose gated score exceeds max(ratio * peak, floor); published code, SSS."""
    r = refined.detach().to(accumulate(refined))
    r = torch.cat([r[:, :1], r[:, 1:] * image_labels[:, :, None, None].to(r.dtype)], 1)
    peak = r.flatten(2).amax(2)  # (B, C)
    ratio = torch.full_like(peak, class_ratio)
    ratio[:, :1] = background_ratio
    claimed = r > (ratio * peak).clamp(min=floor)[:, :, None, None]
    claimed = claimed & (claimed.sum(1, keepdim=True) == 1)
    labels = torch.where(claimed.any(1), claimed.to(torch.uint8).argmax(1), ignore_index)
    return labels, claimed.flatten(2).sum(2)


def balanced_cross_entropy(
    scores: Tensor, labels: Tensor, counts: Tensor, image_labels: Tensor, *, ignore_index: int = 255
) -> Tensor:
    """Cross-entropy weighted by w_c = (n - n_c) / (1 + n), over all pixels and images; published code, SSS steps 4, 5.

    An image counts only if the number of classes that claimed pixels is the background plus the labelled ones.
    """
    dtype = accumulate(scores)
    valid, index = valid_labels(labels, scores.shape[1], ignore_index)
    weight = balanced_weights(counts, image_labels, dtype).gather(1, index.flatten(1)).view(index.shape) * valid
    z = torch.where((weight != 0).unsqueeze(1), scores.to(dtype), 0)  # pixels that do not count may hold anything
    entropy = -z.log_softmax(1).gather(1, index.unsqueeze(1)).squeeze(1)  # (B, H, W)
    return torch.where(weight != 0, weight * entropy, 0).sum() / max(labels.numel(), 1)


def balanced_weights(counts: Tensor, image_labels: Tensor, dtype: torch.dtype) -> Tensor:
    """w_c = (n - n_c) / (1 + n), all 0 for an image whose classes are not the labelled ones plus background: (B, C)."""
    n = counts.sum(1, keepdim=True)
    complete = (counts > 0).sum(1, keepdim=True) == 1 + (image_labels > 0).sum(1, keepdim=True)
    return complete * (n - counts).to(dtype) / (1 + n).to(dtype)


def upsampled_soft_margin_loss(
    logits: Tensor, labels: Tensor, *, ignore_index: int = 255, align_corners: bool = False
) -> Tensor:
    """BCE of the upsampled logits against the one-hot label: sum over classes, mean over all pixels (base step).

    A pixel labelled ignore_index or outside 0..C-1 adds 0 and is counted.
    """
    up, valid, index = upsampled_with_labels(logits, labels, ignore_index, align_corners)
    # BCE with logits against y is -log sigmoid(-s) - y s
    per_pixel = -F.logsigmoid(-up).sum(1) - up.gather(1, index.unsqueeze(1)).squeeze(1)
    return torch.where(valid, per_pixel, 0).sum() / max(labels.numel(), 1)


def upsampled_cross_entropy(
    logits: Tensor, labels: Tensor, *, ignore_index: int = 255, align_corners: bool = False
) -> Tensor:
    """Softmax cross-entropy of the upsampled logits, mean over pixels whose label is a class; 0 if there is none."""
    up, valid, index = upsampled_with_labels(logits, labels, ignore_index, align_corners)
    entropy = -up.log_softmax(1).gather(1, index.unsqueeze(1)).squeeze(1)
    return torch.where(valid, entropy, 0).sum() / valid.sum().clamp(min=1)


def upsampled_argmax(logits: Tensor, size: tuple[int, int], *, align_corners: bool = False) -> Tensor:
    """The class of the highest upsampled logit (the first of equals): uint8, int64 above 255 classes."""
    best = upsample(logits.detach(), size, align_corners).argmax(1)
    return best if logits.shape[1] > 255 else best.to(torch.uint8)


def upsampled_with_labels(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The logits at the labels' size, 0 where there is no class; which pixels carry a class; and that class."""
    valid, index = valid_labels(labels, logits.shape[1], ignore_index)
    return upsample(logits, labels.shape[1:], align_corners).masked_fill(~valid.unsqueeze(1), 0), valid, index


def upsample(logits: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Bilinear, in the accumulation dtype; -inf where a pixel of -inf has a share."""
    logits = logits.to(accumulate(logits))
    if not len(logits):  # which interpolate refuses
        return logits[:, :, :1, :1].expand(0, -1, *size)
    lowest = torch.finfo(logits.dtype).min  # instead of -inf, which a weight of 0 would make NaN
    finite = logits.masked_fill(logits == -torch.inf, lowest)
    up = F.interpolate(finite, size=list(size), mode="bilinear", align_corners=align_corners)
    return F.threshold(up, lowest * 2.0**-40, -torch.inf, inplace=True)


def valid_labels(labels: Tensor, classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Which pixels carry a class, and that class (0 elsewhere), both (B, H, W)."""
    labels = labels.long()
    valid = (labels != ignore_index) & (labels >= 0) & (labels < classes)
    return valid, torch.where(valid, labels, 0)
