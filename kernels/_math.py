"""The formulas of the ops, each once, as csrc/math has them for C++."""

from __future__ import annotations

import triton
import triton.language as tl

IMAGE_WEIGHT_EPS = tl.constexpr(1e-5)  # keeps the weighted mean over images finite when no image counts


# ------------------------------------------------------------------------------------------------- the logistic loss


@triton.jit
def sigmoid(x):
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0. What 1 + x rounds off is given back to first order: exact for small x."""
    u = 1.0 + x
    return tl.log(u) + (x - (u - 1.0)) / u


@triton.jit
def times_one_plus(product, e):
    """A product of factors 1 + e, less 1, after one factor more; its relative precision stays however small they are.

    A sum of log(1 + e) is the logarithm of it.
    """
    return tl.fma(product, e, product + e)


@triton.jit
def soft_margin(s, q):
    """Binary cross-entropy with logits s against q, as max(s, 0) - s q + log(1 + exp(-|s|)), where 0 * inf is 0."""
    return tl.maximum(s, 0.0) - tl.where(q == 0, 0.0, s) * q + log1p(tl.exp(-tl.abs(s)))


# --------------------------------------------------------------------- nGWP + focal pooling (arXiv 2112.01882, Eq. 2)


@triton.jit
def power(x, EXPONENT: tl.constexpr):
    """x ** EXPONENT for x in 0..1, EXPONENT >= 0; cheap for gamma = 3, as each thread needs it for all its classes."""
    if EXPONENT == 0:
        return tl.full(x.shape, 1.0, x.dtype)
    if EXPONENT == 2:
        return x * x
    if EXPONENT == 3:
        return x * x * x
    return tl.where(x > 0, tl.exp(EXPONENT * tl.log(tl.where(x > 0, x, 1.0))), 0.0)


@triton.jit
def focal_penalty(S, P, GAMMA: tl.constexpr, LAM: tl.constexpr):
    """(1 - S/P)^gamma log(lam + S/P)."""
    share = tl.minimum(S / P, 1.0)  # S can pass P by rounding
    return power(1.0 - share, GAMMA) * tl.log(LAM + share)


@triton.jit
def focal_penalty_slope(S, P, GAMMA: tl.constexpr, LAM: tl.constexpr):
    """The penalty's derivative by S; 0 beyond P, where the share is held at 1."""
    share = tl.minimum(S / P, 1.0)
    rest = 1.0 - share
    slope = power(rest, GAMMA - 1) * (rest / (LAM + share) - GAMMA * tl.log(LAM + share)) / P
    return tl.where(S > P, 0.0, slope)


# ------------------------------------------------------------------- pseudo-labels (arXiv 2112.01882, Eq. 5 and 6)


@triton.jit
def pseudo_label(m, hard, ALPHA: tl.constexpr):
    """alpha h + (1 - alpha) m, where h is 1 if `hard`."""
    return ALPHA * hard.to(m.dtype) + (1.0 - ALPHA) * m


@triton.jit
def left_to_old(new):
    """1 less the sum of m over the new classes, which passes 1 by rounding; NaN stays."""
    left = 1.0 - new
    return tl.where(left < 0, 0.0, left)


@triton.jit
def highest_of(x, y):
    """The larger number, NaN if one of them is."""
    return tl.where((x > y) | (x != x), x, y)


@triton.jit
def mixed_with_prior(m, prior, highest, c, old, PRIOR_WEIGHT: tl.constexpr):
    """m of classes and pixels, mixed with the gated prior of the new classes, of which `highest` is the highest.

    (1 - b) m_n + b p_n of a new class, (1 - b) m_0 + b (1 - highest) of the background, m of an old class. Rounded in
    one way everywhere: a kernel computes it twice, and the hard label is where both are equal.
    """
    share = tl.where((c == 0)[:, None], 1.0 - highest[None, :], prior)
    mixed = tl.fma(share, tl.full(m.shape, PRIOR_WEIGHT, m.dtype), (1.0 - PRIOR_WEIGHT) * m)
    return tl.where(((c == 0) | (c >= old))[:, None], mixed, m)


@triton.jit
def merged_targets(omega, q, c, old, BACKGROUND_WEIGHT: tl.constexpr):
    """Targets (classes, pixels) of the old model's sigmoid and the pseudo-label q.

    An old class has the sigmoid, a new one q, the background the smaller of both or, with a weight, their mean.
    """
    if BACKGROUND_WEIGHT is None:
        background = tl.where((omega < q) | (omega != omega), omega, q)  # NaN if one of them is
    else:
        background = (1.0 - BACKGROUND_WEIGHT) * omega + BACKGROUND_WEIGHT * q
    return tl.where((c == 0)[:, None], background, tl.where((c < old)[:, None], omega, q))


# ------------------------------------- weights of images, pixels and neighbours (published code of arXiv 2112.01882)


@triton.jit
def image_factor(weight, sum_of_weights, pixels):
    """What the sum over an image's pixels is multiplied by in a weighted mean over images."""
    return weight / (sum_of_weights + IMAGE_WEIGHT_EPS) / pixels


@triton.jit
def class_weight(n_c, n, ACC: tl.constexpr):
    """(n - n_c) / (1 + n), with n_c confident pixels of the class and n of all classes."""
    return (n - n_c).to(ACC) / (1 + n).to(ACC)


@triton.jit
def threshold(peak, c, BACKGROUND_RATIO: tl.constexpr, CLASS_RATIO: tl.constexpr, FLOOR: tl.constexpr):
    """The score above which a class claims a pixel: a share of the class's peak in the image, at least FLOOR."""
    background = tl.full(peak.shape, BACKGROUND_RATIO, peak.dtype)
    others = tl.full(peak.shape, CLASS_RATIO, peak.dtype)
    share = tl.where(c == 0, background, others) * peak
    # NaN stays: such a class claims nothing
    return tl.where(share < FLOOR, tl.full(peak.shape, FLOOR, peak.dtype), share)


@triton.jit
def steepness(sum, sum_of_squares, COUNT: tl.constexpr):
    """A colour's share of -1 / (1e-8 + 0.1 sigma) in PAMR.

    sigma is the deviation of COUNT values, given by the sums of their differences from the centre and of the squares.
    """
    variance = (sum_of_squares - sum * sum / COUNT) / (COUNT - 1)
    return -1.0 / (3.0 * (1e-8 + 0.1 * tl.sqrt(tl.maximum(variance, 0.0))))


@triton.jit
def par_similarity(difference, there, COUNT: tl.constexpr):
    """A colour's share of the similarities in PAR, -(|difference| / (sigma + 1e-8) / 0.3)^2 / 3, less the highest.

    sigma is the deviation of the COUNT differences (neighbours, pixels) from the centre that are there; the others are
    0. Where all are alike, but not 0, the squares reach 1e17, and would round the other colours away: so the least is
    taken off, which a softmax does not see, and which leaves 0.
    """
    mean = tl.sum(difference, axis=0) / COUNT
    deviation = tl.where(there, difference - mean[None, :], 0.0)
    width = 0.3 * (1e-8 + tl.sqrt(tl.sum(deviation * deviation, axis=0) / (COUNT - 1)))
    size = tl.abs(difference)
    least = tl.min(tl.where(there, size, float("inf")), axis=0)
    squares = (size - least[None, :]) * (size + least[None, :])  # size^2 - least^2, with fewer digits lost
    return squares * (-1.0 / (3.0 * width * width))[None, :]


# ---------------------------------------------------------------------------------------------- bilinear interpolation


@triton.jit
def aligned_corners(i, small, large, ACC: tl.constexpr):
    """Which of `small` points lie before and after point i of `large`, and the weight of the latter. Corners aligned.

    Integers find the points, because they are exact.
    """
    steps = i.to(tl.int64) * (small - 1)
    before = steps // tl.maximum(large - 1, 1)
    weight = (steps - before * tl.maximum(large - 1, 1)).to(ACC) / tl.maximum(large - 1, 1)
    return before, tl.minimum(before + 1, small - 1), weight


@triton.jit
def between(i, small, large, ALIGNED: tl.constexpr, ACC: tl.constexpr):
    """The same in whole numbers, and not before the first.

    Corners not aligned, point i lies at (i + 1/2) small / large - 1/2; aligned, at i (small - 1) / (large - 1).
    """
    before = tl.maximum(_place(i, small, large, ALIGNED), 0) // _unit(large, ALIGNED)
    return before, tl.minimum(before + 1, small - 1), weight_after(i, before, small, large, ALIGNED, ACC)


@triton.jit
def weight_after(i, before, small, large, ALIGNED: tl.constexpr, ACC: tl.constexpr):
    """The weight of the point after point `before` of `small`, for point i of `large`, which lies between them."""
    beyond = _place(i, small, large, ALIGNED) - _unit(large, ALIGNED) * before
    return tl.maximum(beyond, 0).to(ACC) / _unit(large, ALIGNED)


@triton.jit
def first_from(k, small, large, ALIGNED: tl.constexpr):
    """The first of `large` points that lies at point k of `small` or after it."""
    if ALIGNED:
        i = (k.to(tl.int64) * _unit(large, ALIGNED) + small - 2) // tl.maximum(small - 1, 1)
        i = tl.where((small == 1) & (k > 0), large, i)
        return tl.minimum(tl.maximum(i, 0), large)
    else:
        twice = tl.maximum(large * (2 * k.to(tl.int64) + 1) - small, 0)
        return tl.minimum((twice + 2 * small - 1) // (2 * small), large)


@triton.jit
def _place(i, small, large, ALIGNED: tl.constexpr):
    """Where point i of `large` lies among those of `small`, in shares of 1 / `_unit`."""
    if ALIGNED:
        return i.to(tl.int64) * (small - 1)
    else:
        return (2 * i.to(tl.int64) + 1) * small - large


@triton.jit
def _unit(large, ALIGNED: tl.constexpr):
    if ALIGNED:
        return tl.maximum(large - 1, 1)
    else:
        return 2 * large


@triton.jit
def lowest(ACC: tl.constexpr):
    return -3.4028234663852886e38 if ACC == tl.float32 else -1.7976931348623157e308  # noqa: SIM300


@triton.jit
def interpolable(score, ACC: tl.constexpr):
    """-inf is interpolated as the lowest number, since a weight of 0 would make it NaN."""
    return tl.where(score < lowest(ACC), lowest(ACC), score)


@triton.jit
def interpolated(score, ACC: tl.constexpr):
    """What comes out of it is so low, down to a share of 2^-40, that it passes for -inf again."""
    return tl.where(score <= lowest(ACC) * 9.094947017729282e-13, -float("inf"), score)


@triton.jit
def mix(near, far, weight):
    """near + (far - near) weight, rounded in one way everywhere: a logit has the same bits in every kernel."""
    return tl.fma(tl.broadcast_to(weight, near.shape), far - near, near)
