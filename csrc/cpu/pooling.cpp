// nGWP + focal pooling on the CPU. Formulas: math/pooling.h.
//
// An image is worked on in chunks of pixels, whose sums are added in chunk order, so that neither the number of threads
// nor the other images of the batch can change a bit. A chunk goes through tiles small enough to stay in the cache.
#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "../common.h"
#include "../cpu_levels.h"
#include "../math/convert.h"
#include "../math/exp.h"
#include "../math/pooling.h"

namespace wilson {
namespace {

constexpr int64_t kTile = 128;  // pixels whose scores of all classes stay in the cache
constexpr int64_t kChunk = 8 * kTile;
constexpr int64_t kLanes = 16;     // running sums of a class, so that they are added up once a chunk, not once a tile
constexpr int64_t kGrain = 16384;  // elements that are worth a thread

// One class of a tile. The padding keeps the rows out of each other's cache sets.
template <class acc>
struct alignas(64) Row {
  acc value[kTile + kLanes];
};

template <class acc>
struct alignas(64) Lanes {
  acc value[kLanes];

  acc sum() const { return std::accumulate(value, value + kLanes, acc(0)); }
};

// What one thread works with.
template <class acc>
struct Scratch {
  explicit Scratch(int64_t classes) : scores(classes), terms(classes), mass(classes), total(classes) {}
  std::vector<Row<acc>> scores, terms;
  std::vector<Lanes<acc>> mass, total;
};

// The scores of a tile: where they are, or a converted copy.
template <class acc>
struct Tile {
  const acc* data;
  int64_t stride;

  WILSON_INLINE const acc* row(int64_t c) const { return data + c * stride; }
};

// Offsets of `count` pixels from `first` on.
template <class T>
WILSON_INLINE void pixel_offsets(const MapView<T>& view, int64_t first, int64_t count, int64_t* offset) {
  int64_t row = first / view.width, column = first % view.width;
  for (int64_t j = 0; j < count; ++j) {
    offset[j] = row * view.row_stride + column * view.pixel_stride;
    if (++column == view.width) column = 0, ++row;
  }
}

// Scores of `count` pixels of an image from `first` on. The copy's remaining columns are 0.
template <class T, class acc>
WILSON_INLINE Tile<acc> load_tile(const MapView<const T>& view, const T* image, int64_t first, int64_t count,
                                  Row<acc>* copy) {
  if (view.unit_stride()) {
    if (std::is_same_v<T, acc> && count == kTile) {
      return {reinterpret_cast<const acc*>(image + first), view.class_stride};
    }
    for (int64_t c = 0; c < view.classes; ++c) {
      const T* from = image + c * view.class_stride + first;
      acc* to = copy[c].value;
      if (count == kTile) {
#pragma omp simd
        for (int64_t j = 0; j < kTile; ++j) to[j] = static_cast<acc>(from[j]);
      } else {
        for (int64_t j = 0; j < kTile; ++j) to[j] = j < count ? static_cast<acc>(from[j]) : acc(0);
      }
    }
  } else {
    int64_t offset[kTile];
    pixel_offsets(view, first, count, offset);
    for (int64_t j = count; j < kTile; ++j) offset[j] = offset[0];
    for (int64_t j = 0; j < kTile; ++j) {  // pixel by pixel: in channels-last their classes lie side by side
      const T* from = image + offset[j];
      for (int64_t c = 0; c < view.classes; ++c) copy[c].value[j] = static_cast<acc>(from[c * view.class_stride]);
    }
  }
  return {copy->value, sizeof(Row<acc>) / sizeof(acc)};
}

template <class acc>
WILSON_INLINE void prefetch(const acc* row) {
  for (int64_t j = 0; j < kTile; j += 64 / sizeof(acc)) __builtin_prefetch(row + j);
}

// The highest score of each pixel.
template <class acc>
WILSON_INLINE void find_peaks(const Tile<acc>& z, int64_t classes, acc* peak) {
  const acc* z0 = z.row(0);
#pragma omp simd
  for (int64_t j = 0; j < kTile; ++j) peak[j] = z0[j];
  for (int64_t c = 1; c < classes; ++c) {
    const acc* zc = z.row(c);
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) peak[j] = zc[j] > peak[j] ? zc[j] : peak[j];
  }
}

template <class T>
WILSON_CPU_LEVELS void forward_chunk(const MapView<const T>& view, int64_t b, int64_t begin, int64_t end,
                                     Scratch<acc_t<T>>& scratch) {
  using acc = acc_t<T>;
  const int64_t C = view.classes;
  Row<acc>* terms = scratch.terms.data();
  Lanes<acc>*mass = scratch.mass.data(), *total = scratch.total.data();
  std::fill_n(mass, C, Lanes<acc>{});
  std::fill_n(total, C, Lanes<acc>{});
  for (int64_t first = begin; first < end; first += kTile) {
    const int64_t count = std::min(kTile, end - first);
    const auto z = load_tile(view, view.data + b * view.batch_stride, first, count, scratch.scores.data());
    alignas(64) acc peak[kTile], sum[kTile];
    find_peaks(z, C, peak);
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) sum[j] = acc(0);
    for (int64_t c = 0; c < C; ++c) {
      const acc* zc = z.row(c);
      acc* e = terms[c].value;
      prefetch(zc + kTile);
#pragma omp simd
      for (int64_t j = 0; j < kTile; ++j) {
        e[j] = exp_nonpositive(zc[j] - peak[j]);
        sum[j] += e[j];
      }
    }
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) sum[j] = j < count ? acc(1) / sum[j] : acc(0);
    for (int64_t c = 0; c < C; ++c) {
      const acc *zc = z.row(c), *e = terms[c].value;
      Lanes<acc> s{}, t{};  // short sums first: less rounding
      for (int64_t i = 0; i < kTile; i += kLanes) {
#pragma omp simd
        for (int64_t j = 0; j < kLanes; ++j) {
          const acc m = e[i + j] * sum[i + j];
          s.value[j] += m;
          t.value[j] += m * zc[i + j];
        }
      }
#pragma omp simd
      for (int64_t j = 0; j < kLanes; ++j) {
        mass[c].value[j] += s.value[j];
        total[c].value[j] += t.value[j];
      }
    }
  }
}

template <class T>
WILSON_CPU_LEVELS void backward_chunk(const MapView<const T>& view, const MapView<T>& grad, int64_t b, int64_t begin,
                                      int64_t end, const acc_t<T>* by_mass, const acc_t<T>* by_total,
                                      Scratch<acc_t<T>>& scratch) {
  using acc = acc_t<T>;
  const int64_t C = view.classes;
  Row<acc>* terms = scratch.terms.data();
  for (int64_t first = begin; first < end; first += kTile) {
    const int64_t count = std::min(kTile, end - first);
    const auto z = load_tile(view, view.data + b * view.batch_stride, first, count, scratch.scores.data());
    alignas(64) acc peak[kTile], sum[kTile], inner[kTile];
    find_peaks(z, C, peak);
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) sum[j] = inner[j] = acc(0);
    for (int64_t c = 0; c < C; ++c) {
      const acc* zc = z.row(c);
      acc* e = terms[c].value;
      const acc A = by_mass[c], B = by_total[c];
      prefetch(zc + kTile);
#pragma omp simd
      for (int64_t j = 0; j < kTile; ++j) {
        e[j] = exp_nonpositive(zc[j] - peak[j]);
        sum[j] += e[j];
        inner[j] += e[j] * (A + B * zc[j]);
      }
    }
#pragma omp simd
    for (int64_t j = 0; j < kTile; ++j) {
      sum[j] = acc(1) / sum[j];
      inner[j] *= sum[j];
    }
    T* image = grad.data + b * grad.batch_stride;
    const bool in_place = grad.unit_stride() && count == kTile;
    for (int64_t c = 0; c < C; ++c) {
      const acc* zc = z.row(c);
      acc* e = terms[c].value;
      const acc A = by_mass[c], B = by_total[c];
      if (in_place) {
        T* to = image + c * grad.class_stride + first;
#pragma omp simd
        for (int64_t j = 0; j < kTile; ++j) to[j] = round_to<T>(e[j] * sum[j] * ((A + B * zc[j]) - inner[j] + B));
      } else {
#pragma omp simd
        for (int64_t j = 0; j < kTile; ++j) e[j] = e[j] * sum[j] * ((A + B * zc[j]) - inner[j] + B);
      }
    }
    if (!in_place) {
      int64_t offset[kTile];
      pixel_offsets(grad, first, count, offset);
      for (int64_t j = 0; j < count; ++j) {
        T* to = image + offset[j];
        for (int64_t c = 0; c < C; ++c) to[c * grad.class_stride] = round_to<T>(terms[c].value[j]);
      }
    }
  }
}

inline int64_t grain(int64_t classes, int64_t pixels) {
  return std::max<int64_t>(1, kGrain / (classes * std::min(pixels, kChunk)));
}

template <class T>
void forward(const Tensor& scores, const PoolingOptions<acc_t<T>>& options, Tensor& pooled, Tensor& mass,
             Tensor& score) {
  using acc = acc_t<T>;
  const auto view = map_view<const T>(scores);
  const int64_t B = view.batch, C = view.classes, P = view.pixels, chunks = (P + kChunk - 1) / kChunk;
  const std::unique_ptr<acc[]> sums(new acc[B * chunks * 2 * C]);  // (B, chunks, 2, C): S and T of each chunk
  torch::stable::parallel_for(0, B * chunks, grain(C, P), [&](int64_t begin, int64_t end) {
    Scratch<acc> scratch(C);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / chunks, first = i % chunks * kChunk;
      acc* chunk = sums.get() + i * 2 * C;
      forward_chunk<T>(view, b, first, std::min(P, first + kChunk), scratch);
      for (int64_t c = 0; c < C; ++c) {
        chunk[c] = scratch.mass[c].sum();
        chunk[C + c] = scratch.total[c].sum();
      }
    }
  });
  acc *pooled_data = mutable_data<acc>(pooled), *mass_data = mutable_data<acc>(mass),
      *score_data = mutable_data<acc>(score);  // (B, C)
  for (int64_t i = 0; i < B * C; ++i) {
    const acc* chunk = sums.get() + i / C * chunks * 2 * C + i % C;
    double s = 0, t = 0;
    for (int64_t k = 0; k < chunks; ++k) {
      s += chunk[k * 2 * C];
      t += chunk[k * 2 * C + C];
    }
    mass_data[i] = static_cast<acc>(s);
    score_data[i] = static_cast<acc>(t) / (options.eps + mass_data[i]);
    pooled_data[i] = score_data[i] + (options.focal ? focal_penalty(mass_data[i], options) : acc(0));
  }
}

template <class T>
void backward(const Tensor& grad_pooled, const Tensor& scores, const Tensor& mass, const Tensor& score,
              const PoolingOptions<acc_t<T>>& options, Tensor& grad_scores) {
  using acc = acc_t<T>;
  const auto view = map_view<const T>(scores);
  const auto grad = map_view<T>(grad_scores);
  const int64_t B = view.batch, C = view.classes, P = view.pixels, chunks = (P + kChunk - 1) / kChunk;
  const acc *grad_pooled_data = const_data<acc>(grad_pooled), *mass_data = const_data<acc>(mass),
            *score_data = const_data<acc>(score);
  const int64_t image_stride = grad_pooled.stride(0), class_stride = grad_pooled.stride(1);
  torch::stable::parallel_for(0, B * chunks, grain(C, P), [&](int64_t begin, int64_t end) {
    Scratch<acc> scratch(C);
    std::vector<acc> A(C), Bc(C);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / chunks, first = i % chunks * kChunk;
      if (i == begin || first == 0) {
        for (int64_t c = 0; c < C; ++c) {
          const auto s = pooling_slopes(grad_pooled_data[b * image_stride + c * class_stride], mass_data[b * C + c],
                                        score_data[b * C + c], options);
          A[c] = s.by_mass;
          Bc[c] = s.by_total;
        }
      }
      backward_chunk<T>(view, grad, b, first, std::min(P, first + kChunk), A.data(), Bc.data(), scratch);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> ngwp_focal_pool(const Tensor& scores, double eps, double gamma, double lam,
                                                   bool focal) {
  const ScalarType dtype = acc_dtype(scores.scalar_type());
  const int64_t B = scores.size(0), C = scores.size(1), H = scores.size(2), W = scores.size(3);
  Tensor pooled = torch::stable::empty({B, C}, dtype), mass = torch::stable::empty({B, C}, dtype),
         score = torch::stable::empty({B, C}, dtype);
  WILSON_DISPATCH(scores.scalar_type(), "ngwp_focal_pool", [&] {
    forward<scalar_t>(scores, pooling_options<acc_t<scalar_t>>(eps, gamma, lam, H * W, focal), pooled, mass, score);
  });
  return {pooled, mass, score};
}

Tensor ngwp_focal_pool_backward(const Tensor& grad_pooled, const Tensor& scores, const Tensor& mass,
                                const Tensor& score, double eps, double gamma, double lam, bool focal) {
  Tensor grad_scores = torch::stable::empty_like(scores);
  WILSON_DISPATCH(scores.scalar_type(), "ngwp_focal_pool_backward", [&] {
    backward<scalar_t>(grad_pooled, scores, mass, score,
                       pooling_options<acc_t<scalar_t>>(eps, gamma, lam, scores.size(2) * scores.size(3), focal),
                       grad_scores);
  });
  return grad_scores;
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CPU, m) {
  m.impl("ngwp_focal_pool", TORCH_BOX(&wilson::ngwp_focal_pool));
  m.impl("ngwp_focal_pool_backward", TORCH_BOX(&wilson::ngwp_focal_pool_backward));
}
