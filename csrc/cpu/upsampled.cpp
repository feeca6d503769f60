// Losses and labels at the image's size from logits at feature resolution, on the CPU. The upsampled logits (bilinear)
// are computed where they are needed and never stored.
//
// Threads share out bands of low-resolution rows. A band has the pixels between its rows, and those between its last
// row and the next band's first. Their gradient for that first row, the seam, is kept apart and added afterwards, band
// by band: a fixed order, whatever the number of threads. A band goes through tiles of columns; a tile keeps the two
// low-resolution rows around the current pixels, upsampled along x, and their gradients.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>
#include <tuple>
#include <vector>

#include "checks.h"
#include "cpu/common/rows.h"
#include "math/bilinear.h"

namespace wilson {
namespace {

constexpr int64_t kBand = 8;  // low-resolution rows: few enough for many threads, many enough that seams cost little

// Where the pixels of the image lie between those of the feature map: `weight` is that of low + 1.
template <class acc>
struct Axis {
  std::vector<int32_t> low;
  std::vector<acc> weight;

  Axis(int64_t size, int64_t low_size, bool align_corners) : low(size), weight(size) {
    with_axes(align_corners, [&](auto axis) {
      axis = {size, low_size};
      for (int64_t i = 0; i < size; ++i) {
        low[i] = static_cast<int32_t>(axis.low(i));
        weight[i] = axis.template weight<acc>(i, low[i]);
      }
    });
  }
};

template <class acc>
struct Upsampling {
  AnyMap logits;  // (B, C, H, W)
  int64_t classes, low_height, low_width, height, width;
  Axis<acc> y, x;

  Upsampling(const Tensor& logits, int64_t height, int64_t width, bool align_corners)
      : logits(any_map(logits)),
        classes(logits.size(1)),
        low_height(logits.size(2)),
        low_width(logits.size(3)),
        height(height),
        width(width),
        y(height, low_height, align_corners),
        x(width, low_width, align_corners) {}

  int64_t bands() const { return (low_height + kBand - 1) / kBand; }
  int64_t rows(int64_t band) const { return std::min(kBand, low_height - band * kBand); }
  // The first row of the image whose pixels lie in the band or after it.
  int64_t first_row(int64_t band) const {
    return std::lower_bound(y.low.begin(), y.low.end(), band * kBand) - y.low.begin();
  }
};

// What one thread works with. Low-resolution rows have one more column, and a band one more row: copies of the last
// ones at the map's end.
template <class acc>
struct Scratch {
  int64_t classes, stride;
  std::vector<acc> low, low_grad;        // (kBand + 1, C, W + 1)
  std::vector<Row<acc>> up[2], grad[2];  // of the rows around the current pixels: a tile of columns, each C
  std::vector<Row<acc>> terms;           // C
  bool finite;                           // whether no logit of the band is NaN or infinite

  explicit Scratch(const Upsampling<acc>& u)
      : classes(u.classes),
        stride(u.low_width + 1),
        low((kBand + 1) * u.classes * stride),
        low_grad(low.size()),
        terms(u.classes) {
    for (int i : {0, 1}) up[i].resize(classes), grad[i].resize(classes);
  }

  WILSON_INLINE acc* low_row(int64_t row, int64_t c) { return low.data() + (row * classes + c) * stride; }
  WILSON_INLINE acc* low_grad_row(int64_t row, int64_t c) { return low_grad.data() + (row * classes + c) * stride; }
};

// The low-resolution rows of a band and the one after it.
template <class acc>
void load_band(const Upsampling<acc>& u, int64_t b, int64_t band, Scratch<acc>& scratch) {
  acc odd = 0;  // NaN once a logit is NaN or infinite
  with_type_of(u.logits.dtype, [&](auto type) {
    const auto* image = u.logits.template image<const decltype(type)>(b);
    for (int64_t r = 0; r <= u.rows(band); ++r) {
      const int64_t row = std::min(band * kBand + r, u.low_height - 1);
      for (int64_t x = 0; x <= u.low_width; ++x) {
        const auto* from = image + u.logits.offset(row * u.low_width + std::min(x, u.low_width - 1));
        for (int64_t c = 0; c < u.classes; ++c) {
          const acc logit = static_cast<acc>(from[c * u.logits.class_stride]);
          scratch.low_row(r, c)[x] = interpolable(logit);
          odd += logit - logit;
        }
      }
    }
  });
  scratch.finite = odd == acc(0);
}

// A low-resolution row upsampled along x.
template <class acc>
WILSON_INLINE void upsample_row(const Upsampling<acc>& u, int64_t row, int64_t column, int64_t count,
                                Scratch<acc>& scratch, Row<acc>* up) {
  for (int64_t c = 0; c < u.classes; ++c) {
    const acc* low = scratch.low_row(row, c);
    const int32_t* at = u.x.low.data() + column;
    const acc* weight = u.x.weight.data() + column;
    acc* to = up[c].value;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) to[j] = blend(low[at[j]], low[at[j] + 1], weight[j]);
  }
}

// Its transpose: adds the gradient of a tile's columns to a low-resolution row.
template <class acc>
WILSON_INLINE void gather_row(const Upsampling<acc>& u, int64_t row, int64_t column, int64_t count,
                              const Row<acc>* grad, Scratch<acc>& scratch) {
  for (int64_t c = 0; c < u.classes; ++c) {
    acc* low = scratch.low_grad_row(row, c);
    const int32_t* at = u.x.low.data() + column;
    const acc* weight = u.x.weight.data() + column;
    const acc* from = grad[c].value;
    for (int64_t j = 0; j < count;) {  // pixel by pixel between the same two columns
      const int32_t left = at[j];
      acc near = 0, far = 0;
      for (; j < count && at[j] == left; ++j) {
        near += (acc(1) - weight[j]) * from[j];
        far += weight[j] * from[j];
      }
      low[left] += near;
      low[left + 1] += far;
    }
  }
}

// The pixels of one row and one tile of columns, between two low-resolution rows.
template <class acc>
struct Pixels {
  int64_t row, column, count;
  acc weight;                       // of the lower row
  const Row<acc>*top, *bottom;      // logits, (C) rows
  Row<acc>*grad_top, *grad_bottom;  // to be added to

  WILSON_INLINE acc logit(int64_t c, int64_t j) const { return blend(top[c].value[j], bottom[c].value[j], weight); }
};

// Calls visit(pixels) for all pixels of a band. With kGrad, visit adds to the gradients of the upsampled rows, and
// their sums end up in scratch.low_grad.
template <bool kGrad, class acc, class Visit>
WILSON_INLINE void visit_band(const Upsampling<acc>& u, int64_t b, int64_t band, Scratch<acc>& scratch, Visit visit) {
  load_band(u, b, band, scratch);
  if (kGrad) std::fill(scratch.low_grad.begin(), scratch.low_grad.end(), acc(0));
  const int64_t begin = u.first_row(band), end = u.first_row(band + 1);
  for (int64_t column = 0; column < u.width; column += kTile) {
    const int64_t count = std::min(kTile, u.width - column);
    Row<acc>*top = scratch.up[0].data(), *bottom = scratch.up[1].data();
    Row<acc>*grad_top = scratch.grad[0].data(), *grad_bottom = scratch.grad[1].data();
    const auto clear = [&](Row<acc>* rows) {
      std::fill_n(rows->value, u.classes * sizeof(Row<acc>) / sizeof(acc), acc(0));
    };
    if (kGrad) clear(grad_top), clear(grad_bottom);
    int64_t held = -2;  // the low-resolution row in `top`
    for (int64_t y = begin; y < end; ++y) {
      const int64_t low = u.y.low[y] - band * kBand;
      if (low != held) {
        if (kGrad && held >= 0) {
          gather_row(u, held, column, count, grad_top, scratch);
          if (low != held + 1) gather_row(u, held + 1, column, count, grad_bottom, scratch), clear(grad_bottom);
          std::swap(grad_top, grad_bottom);
          clear(grad_bottom);
        }
        if (low == held + 1) {
          std::swap(top, bottom);
        } else {
          upsample_row(u, low, column, count, scratch, top);
        }
        upsample_row(u, low + 1, column, count, scratch, bottom);
        held = low;
      }
      visit(Pixels<acc>{y, column, count, u.y.weight[y], top, bottom, grad_top, grad_bottom});
    }
    if (kGrad && held >= 0) {
      gather_row(u, held, column, count, grad_top, scratch);
      gather_row(u, held + 1, column, count, grad_bottom, scratch);
    }
  }
}

template <class acc>
struct LabelTile {
  int32_t label[kTile];
  acc top[kTile], bottom[kTile];  // weights of the two rows in the gradient, 0 for pixels without a class
  int64_t counted;                // pixels with a class

  WILSON_INLINE LabelTile(const LabelMap& labels, int64_t b, const Pixels<acc>& p) {
    std::fill_n(label, kTile, -1);
    labels.read(b, p.row, p.column, p.count, label);
    int64_t n = 0;
#pragma omp simd reduction(+ : n)
    for (int64_t j = 0; j < kTile; ++j) {
      top[j] = label[j] < 0 ? acc(0) : acc(1) - p.weight;
      bottom[j] = label[j] < 0 ? acc(0) : p.weight;
      n += label[j] >= 0;
    }
    counted = n;
  }

  // The rows of a class before its derivatives are added, for bands whose logits are not all finite: a pixel without a
  // class adds 0 times its derivative, which must not be NaN.
  struct Kept {
    acc top[kTile], bottom[kTile];
  };
  WILSON_INLINE void keep(bool finite, const acc* top, const acc* bottom, Kept& kept) const {
    if (finite) return;
    std::copy_n(top, kTile, kept.top);
    std::copy_n(bottom, kTile, kept.bottom);
  }
  WILSON_INLINE void restore(bool finite, acc* top, acc* bottom, const Kept& kept) const {
    for (int64_t j = 0; !finite && j < kTile; ++j) {
      if (label[j] < 0) top[j] = kept.top[j], bottom[j] = kept.bottom[j];
    }
  }

  // Sum of the losses of pixels with a class.
  WILSON_INLINE acc sum(acc* loss) const {
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) loss[j] = label[j] < 0 ? acc(0) : loss[j];
    return sum_of(loss, kTile);
  }
};

struct BandLoss {
  double sum = 0;
  int64_t counted = 0;
};

// Binary cross-entropy against the one-hot label, summed over classes.
template <bool kGrad, class acc>
WILSON_CPU_LEVELS BandLoss upsampled_soft_margin_loss_fwd_band(const Upsampling<acc>& u, const LabelMap& labels,
                                                               int64_t b, int64_t band, Scratch<acc>& scratch) {
  BandLoss total;
  visit_band<kGrad>(u, b, band, scratch, [&](const Pixels<acc>& p) __attribute__((always_inline)) {
    const LabelTile<acc> tile(labels, b, p);
    total.counted += tile.counted;
    if (tile.counted == 0) return;
    alignas(64) acc loss[kTile] = {}, product[kTile] = {};
    typename LabelTile<acc>::Kept kept;
    for (int64_t c = 0; c < u.classes; ++c) {
      acc *top = p.grad_top[c].value, *bottom = p.grad_bottom[c].value;
      if (kGrad) tile.keep(scratch.finite, top, bottom, kept);
#pragma omp simd
      for (int64_t j = 0; j < kTile; ++j) {
        const acc s = p.logit(c, j), e = exp_nonpositive(-std::abs(s));
        const bool hit = tile.label[j] == static_cast<int32_t>(c);
        product[j] = times_one_plus(product[j], e);
        loss[j] += positive_part(s) - (hit ? s : acc(0));
        if (kGrad) {
          const acc derivative = sigmoid(s, e) - (hit ? acc(1) : acc(0));
          top[j] += tile.top[j] * derivative;
          bottom[j] += tile.bottom[j] * derivative;
        }
      }
      if (kGrad) tile.restore(scratch.finite, top, bottom, kept);
      settle(c, u.classes, product, loss);
    }
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) loss[j] = -interpolated(-loss[j]);
    total.sum += tile.sum(loss);
  });
  return total;
}

// Softmax cross-entropy.
template <bool kGrad, class acc>
WILSON_CPU_LEVELS BandLoss upsampled_cross_entropy_fwd_band(const Upsampling<acc>& u, const LabelMap& labels, int64_t b,
                                                            int64_t band, Scratch<acc>& scratch) {
  BandLoss total;
  visit_band<kGrad>(u, b, band, scratch, [&](const Pixels<acc>& p) __attribute__((always_inline)) {
    const LabelTile<acc> tile(labels, b, p);
    total.counted += tile.counted;
    if (tile.counted == 0) return;
    alignas(64) acc peak[kTile], own[kTile] = {}, sum[kTile];
    for (int64_t c = 0; c < u.classes; ++c) {
      acc* s = scratch.terms[c].value;
#pragma omp simd
      for (int64_t j = 0; j < kTile; ++j) {
        s[j] = p.logit(c, j);
        peak[j] = c == 0 || s[j] > peak[j] ? s[j] : peak[j];
        own[j] = tile.label[j] == static_cast<int32_t>(c) ? s[j] : own[j];
      }
    }
    Row<acc>* terms = scratch.terms.data();
    exponentials({terms->value, tile_of(terms).stride}, u.classes, peak, terms, sum);
    alignas(64) acc loss[kTile];
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) {
      loss[j] = log1p_nonnegative(sum[j] - acc(1)) + (interpolated(peak[j]) - interpolated(own[j]));
      sum[j] = acc(1) / sum[j];
    }
    total.sum += tile.sum(loss);
    typename LabelTile<acc>::Kept kept;
    for (int64_t c = 0; kGrad && c < u.classes; ++c) {
      acc *top = p.grad_top[c].value, *bottom = p.grad_bottom[c].value;
      tile.keep(scratch.finite, top, bottom, kept);
      const acc* e = scratch.terms[c].value;
#pragma omp simd
      for (int64_t j = 0; j < kTile; ++j) {
        const acc derivative = e[j] * sum[j] - (tile.label[j] == static_cast<int32_t>(c) ? acc(1) : acc(0));
        top[j] += tile.top[j] * derivative;
        bottom[j] += tile.bottom[j] * derivative;
      }
      tile.restore(scratch.finite, top, bottom, kept);
    }
  });
  return total;
}

// The first NaN is above all, as in torch.argmax; where all classes are ruled out, the first of them it is.
template <class acc>
void put_odd_first(int64_t classes, const Pixels<acc>& p, const acc* best, int32_t* index) {
  for (int64_t j = 0; j < p.count; ++j) {
    int64_t c = 0;
    while (c < classes && p.logit(c, j) == p.logit(c, j)) ++c;
    if (c < classes || ruled_out(best[j])) index[j] = static_cast<int32_t>(c % classes);
  }
}

// The first class of the highest logit.
template <class acc, class Label>
WILSON_CPU_LEVELS void upsampled_argmax_fwd_band(const Upsampling<acc>& u, int64_t b, int64_t band, Label* labels,
                                                 Scratch<acc>& scratch) {
  visit_band<false>(u, b, band, scratch, [&](const Pixels<acc>& p) __attribute__((always_inline)) {
    alignas(64) acc best[kTile];
    alignas(64) int32_t index[kTile] = {};
    for (int64_t c = 0; c < u.classes; ++c) {
#pragma omp simd
      for (int64_t j = 0; j < kTile; ++j) {
        const acc s = p.logit(c, j);
        const bool higher = c == 0 || s > best[j];
        best[j] = higher ? s : best[j];
        index[j] = higher ? static_cast<int32_t>(c) : index[j];
      }
    }
    if (!scratch.finite) put_odd_first(u.classes, p, best, index);
    Label* to = labels + (b * u.height + p.row) * u.width + p.column;
    for (int64_t j = 0; j < p.count; ++j) to[j] = static_cast<Label>(index[j]);
  });
}

// Adds up the bands: loss (a sum over the pixels with a class) and its derivative by the logits, (B, C, H, W).
template <class acc, class Band>
BandLoss loss_of_bands(const Upsampling<acc>& u, acc* derivative, Band band_loss) {
  const int64_t B = u.logits.batch, C = u.classes, H = u.low_height, W = u.low_width, bands = u.bands();
  std::vector<BandLoss> losses(B * bands);
  const std::unique_ptr<acc[]> seams(derivative ? new acc[B * bands * C * W] : nullptr);  // (B, bands, C, W)
  torch::stable::parallel_for(0, B * bands, 1, [&](int64_t begin, int64_t end) {
    Scratch<acc> scratch(u);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / bands, band = i % bands, rows = u.rows(band);
      losses[i] = band_loss(b, band, scratch);
      for (int64_t c = 0; derivative && c < C; ++c) {
        for (int64_t r = 0; r <= rows; ++r) {
          acc* low = scratch.low_grad_row(r, c);
          low[W - 1] += low[W];
          acc* to = r < rows ? derivative + ((b * C + c) * H + band * kBand + r) * W : seams.get() + (i * C + c) * W;
          std::copy_n(low, W, to);
        }
      }
    }
  });
  for (int64_t i = 0; derivative && i < B * bands; ++i) {
    const int64_t b = i / bands, next = std::min((i % bands + 1) * kBand, H - 1);  // after the last row comes itself
    for (int64_t c = 0; c < C; ++c) {
      const acc* seam = seams.get() + (i * C + c) * W;
      acc* to = derivative + ((b * C + c) * H + next) * W;
      for (int64_t x = 0; x < W; ++x) to[x] += seam[x];
    }
  }
  BandLoss total;
  for (const BandLoss& loss : losses) total.sum += loss.sum, total.counted += loss.counted;
  return total;
}

Tensor empty_derivative(const Tensor& logits, bool with_derivative) {
  const ScalarType dtype = acc_dtype(logits);
  return with_derivative ? torch::stable::empty(logits.sizes(), dtype) : torch::stable::empty({0}, dtype);
}

std::tuple<Tensor, Tensor> upsampled_soft_margin_loss(const Tensor& logits, const Tensor& labels, int64_t ignore_index,
                                                      bool align_corners, bool with_derivative) {
  check_upsampled_loss("upsampled_soft_margin_loss", logits, labels);
  Tensor loss = torch::stable::empty({}, acc_dtype(logits));
  Tensor derivative = empty_derivative(logits, with_derivative);
  with_acc(acc_dtype(logits), [&](auto type) {
    using acc = decltype(type);
    const Upsampling<acc> u(logits, labels.size(1), labels.size(2), align_corners);
    const LabelMap map = label_map(labels, u.classes, ignore_index);
    acc* out = with_derivative ? mutable_data<acc>(derivative) : nullptr;
    const auto total = loss_of_bands(u, out, [&](int64_t b, int64_t band, Scratch<acc>& scratch) {
      return out ? upsampled_soft_margin_loss_fwd_band<true>(u, map, b, band, scratch)
                 : upsampled_soft_margin_loss_fwd_band<false>(u, map, b, band, scratch);
    });
    *mutable_data<acc>(loss) = static_cast<acc>(total.sum / std::max<int64_t>(1, labels.numel()));
  });
  return {loss, derivative};
}

std::tuple<Tensor, Tensor, Tensor> upsampled_cross_entropy(const Tensor& logits, const Tensor& labels,
                                                           int64_t ignore_index, bool align_corners,
                                                           bool with_derivative) {
  check_upsampled_loss("upsampled_cross_entropy", logits, labels);
  const ScalarType dtype = acc_dtype(logits);
  Tensor loss = torch::stable::empty({}, dtype), counted = torch::stable::empty({}, dtype);
  Tensor derivative = empty_derivative(logits, with_derivative);
  with_acc(acc_dtype(logits), [&](auto type) {
    using acc = decltype(type);
    const Upsampling<acc> u(logits, labels.size(1), labels.size(2), align_corners);
    const LabelMap map = label_map(labels, u.classes, ignore_index);
    acc* out = with_derivative ? mutable_data<acc>(derivative) : nullptr;
    const auto total = loss_of_bands(u, out, [&](int64_t b, int64_t band, Scratch<acc>& scratch) {
      return out ? upsampled_cross_entropy_fwd_band<true>(u, map, b, band, scratch)
                 : upsampled_cross_entropy_fwd_band<false>(u, map, b, band, scratch);
    });
    const double pixels = static_cast<double>(std::max<int64_t>(1, total.counted));
    *mutable_data<acc>(loss) = static_cast<acc>(total.sum / pixels);
    *mutable_data<acc>(counted) = static_cast<acc>(pixels);
  });
  return {loss, counted, derivative};
}

Tensor upsampled_argmax(const Tensor& logits, int64_t height, int64_t width, bool align_corners) {
  check_upsampled_argmax(logits, height, width);
  const bool many = logits.size(1) > 255;
  Tensor labels = torch::stable::empty({logits.size(0), height, width}, many ? ScalarType::Long : ScalarType::Byte);
  with_acc(acc_dtype(logits), [&](auto type) {
    using acc = decltype(type);
    const Upsampling<acc> u(logits, height, width, align_corners);
    const int64_t bands = u.bands();
    torch::stable::parallel_for(0, logits.size(0) * bands, 1, [&](int64_t begin, int64_t end) {
      Scratch<acc> scratch(u);
      for (int64_t i = begin; i < end; ++i) {
        if (many) {
          upsampled_argmax_fwd_band(u, i / bands, i % bands, mutable_data<int64_t>(labels), scratch);
        } else {
          upsampled_argmax_fwd_band(u, i / bands, i % bands, mutable_data<uint8_t>(labels), scratch);
        }
      }
    });
  });
  return labels;
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CPU, m) {
  m.impl("upsampled_soft_margin_loss", TORCH_BOX(&wilson::upsampled_soft_margin_loss));
  m.impl("upsampled_cross_entropy", TORCH_BOX(&wilson::upsampled_cross_entropy));
  m.impl("upsampled_argmax", TORCH_BOX(&wilson::upsampled_argmax));
}
