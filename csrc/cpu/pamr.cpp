// Refining masks by the image's colours on the CPU: PAMR (Araslanov and Roth, CVPR 2020, as in WILSON's published code)
// and PAR (Ru et al., CVPR 2022), which differ in their affinities alone. Formulas: math/pamr.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "checks.h"
#include "cpu/common/planes.h"
#include "cpu/common/rows.h"
#include "cpu/common/tiles.h"
#include "math/bilinear.h"
#include "math/pamr.h"

namespace wilson {
namespace {

constexpr int kGroup = 8;  // classes that share the affinities once they are loaded: 8 sums fit into registers

// The neighbours of a pixel, in planes that repeat the values of their border around them, so that none lies outside.
struct Stencil {
  int64_t height, width;
  int64_t blocks;                // of a row
  int64_t pad_y, pad_x, stride;  // of a padded plane: rows and columns on either side, elements of a row
  int64_t dilations;
  std::vector<int64_t> offset;  // of the 8 neighbours at each dilation

  Stencil(int64_t height, int64_t width, const std::vector<int64_t>& distances)
      : height(height), width(width), blocks((width + kBlock - 1) / kBlock), dilations(distances.size()) {
    const int64_t far = *std::max_element(distances.begin(), distances.end());
    pad_y = std::min(far, height - 1);  // further out there is nothing but the border again
    pad_x = std::min(far, width - 1);
    stride = pad_x + blocks * kBlock + pad_x;
    for (const int64_t distance : distances) {
      const int64_t dy = std::min(distance, height - 1) * stride, dx = std::min(distance, width - 1);
      for (const int64_t y : {-dy, int64_t(0), dy}) {
        for (const int64_t x : {-dx, int64_t(0), dx}) offset.push_back(y + x);
      }
      offset.erase(offset.end() - 5);  // the pixel itself
    }
  }

  int64_t neighbours() const { return static_cast<int64_t>(offset.size()); }
  int64_t plane() const { return (height + 2 * pad_y) * stride; }
  int64_t first() const { return pad_y * stride + pad_x; }
  int64_t affinities() const { return height * blocks * kBlock * neighbours(); }
};

// Repeats the border's values around a plane.
template <class acc>
void pad(const Stencil& s, acc* plane) {
  for (int64_t y = 0; y < s.height; ++y) {
    acc* row = plane + (s.pad_y + y) * s.stride;
    std::fill_n(row, s.pad_x, row[s.pad_x]);
    std::fill(row + s.pad_x + s.width, row + s.stride, row[s.pad_x + s.width - 1]);
  }
  acc *top = plane + s.pad_y * s.stride, *bottom = top + (s.height - 1) * s.stride;
  for (int64_t y = 1; y <= s.pad_y; ++y) {
    std::copy_n(top, s.stride, top - y * s.stride);
    std::copy_n(bottom, s.stride, bottom + y * s.stride);
  }
}

template <class acc>
void load_plane(const Planes& map, int64_t b, int64_t c, const Stencil& s, acc* plane) {
  map.with_rows(b, c, [&](auto row_of) {
    for (int64_t y = 0; y < s.height; ++y) {
      const auto from = row_of(y);
      acc* row = plane + s.first() + y * s.stride;
      for (int64_t x = 0; x < s.width; ++x) row[x] = static_cast<acc>(from(x));
    }
  });
  pad(s, plane);
}

template <class acc>
void load_resized_plane(const Planes& map, int64_t b, int64_t c, const Stencil& s, acc* plane) {
  std::vector<AlignedCorners<acc>> columns;
  for (int64_t x = 0; x < s.width; ++x) columns.emplace_back(x, s.width, map.width);
  map.with_rows(b, c, [&](auto row_of) {
    for (int64_t y = 0; y < s.height; ++y) {
      const AlignedCorners<acc> between(y, s.height, map.height);
      const auto top = row_of(between.low), bottom = row_of(between.high);
      acc* row = plane + s.first() + y * s.stride;
      for (int64_t x = 0; x < s.width; ++x) {
        const auto [left, right, weight] = columns[x];
        const auto across = [left = left, right = right, weight = weight](const auto& from) {
          return blend(static_cast<acc>(from(left)), static_cast<acc>(from(right)), weight);
        };
        row[x] = blend(across(top), across(bottom), between.weight);
      }
    }
  });
  pad(s, plane);
}

// affinity: (blocks, neighbours, kBlock), of one row of pixels, from the planes of the three colours. `differences` has
// room for those of a block, (3, neighbours, kBlock), so that each is taken once.
//
// The deviation in PAMR comes of the sums of the differences to the centre and of their squares. It loses no digits:
// the centre itself is a ninth of the values, so that the squares are at most ten times what remains of them. In PAR it
// is none of them, so that the mean has to come first. PAR adds `nearness`, of each neighbour, to the softmax.
template <Affinity kind, class acc>
WILSON_CPU_LEVELS void pamr_affinity_row(const Stencil& s, const acc* planes, int64_t y, const acc* nearness,
                                         acc* differences, acc* affinity) {
  using Vector = typename Block<acc>::Vector;
  const auto size = [](const Vector& d) __attribute__((always_inline)) { return d < 0 ? -d : d; };
  const int64_t N = s.neighbours();
  const acc values = deviation_values<kind, acc>(s.dilations);
  const int64_t* offset = s.offset.data();
  for (int64_t block = 0; block < s.blocks; ++block, affinity += N * kBlock) {
    Vector slope[3], least[3] = {};
    for (int colour = 0; colour < 3; ++colour) {
      const acc* x = planes + colour * s.plane() + s.first() + y * s.stride + block * kBlock;
      acc* difference = differences + colour * N * kBlock;
      const Vector centre = Block<acc>::load(x);
      Vector total = {}, squares = {};
      for (int64_t n = 0; n < N; ++n, difference += kBlock) {
        const Vector d = Block<acc>::load(x + offset[n]) - centre;
        total += d;
        if constexpr (kind == Affinity::kPamr) {
          squares += d * d;
        } else {
          least[colour] = n == 0 || size(d) < least[colour] ? size(d) : least[colour];
        }
        Block<acc>::store(difference, d);
      }
      if constexpr (kind == Affinity::kPamr) {
        squares -= total * total / values;
      } else {
        const Vector mean = total / values;
        difference = differences + colour * N * kBlock;
        for (int64_t n = 0; n < N; ++n, difference += kBlock) {
          const Vector d = Block<acc>::load(difference) - mean;
          squares += d * d;
        }
      }
      acc variance[kBlock];
      Block<acc>::store(variance, squares / (values - acc(1)));
#pragma omp simd
      for (int64_t j = 0; j < kBlock; ++j) variance[j] = steepness<kind>(variance[j]);
      slope[colour] = Block<acc>::load(variance);
    }
    const acc *red = differences, *green = red + N * kBlock, *blue = green + N * kBlock;
    const auto part = [&](const acc* difference, int colour) __attribute__((always_inline)) {
      const Vector d = size(Block<acc>::load(difference));
      if constexpr (kind == Affinity::kPamr) return d * slope[colour];  // similarity(), which takes no vectors
      return (d - least[colour]) * (d + least[colour]) * slope[colour];
    };
    Vector peak = {};
    for (int64_t n = 0; n < N; ++n) {
      const int64_t at = n * kBlock;
      const Vector k = part(red + at, 0) + part(green + at, 1) + part(blue + at, 2);
      peak = n == 0 ? k : k > peak ? k : peak;
      Block<acc>::store(affinity + at, k);
    }
    acc highest[kBlock];
    Block<acc>::store(highest, peak);
    for (int64_t n = 0; n < N; ++n) {
      acc* k = affinity + n * kBlock;
#pragma omp simd
      for (int64_t j = 0; j < kBlock; ++j) k[j] = exp_nonpositive(k[j] - highest[j]);
    }
    Vector sum = {};
    for (int64_t n = 0; n < N; ++n) sum += Block<acc>::load(affinity + n * kBlock);
    const Vector share = acc(1) / sum;
    for (int64_t n = 0; n < N; ++n) {
      acc* k = affinity + n * kBlock;
      if constexpr (kind == Affinity::kPamr) {
        Block<acc>::store(k, Block<acc>::load(k) * share);
      } else {
        Block<acc>::store(k, Block<acc>::load(k) * share + nearness[n]);
      }
    }
  }
}

// One iteration for `kClasses` planes of an image.
template <int kClasses, class acc>
WILSON_CPU_LEVELS void pamr_step(const Stencil& s, const acc* affinity, const acc* from, acc* to) {
  using Vector = typename Block<acc>::Vector;
  const int64_t N = s.neighbours(), plane = s.plane();
  const int64_t* offset = s.offset.data();
  for (int64_t y = 0; y < s.height; ++y) {
    for (int64_t block = 0; block < s.blocks; ++block, affinity += N * kBlock) {
      const int64_t at = s.first() + y * s.stride + block * kBlock;
      Vector sum[kClasses] = {};
      for (int64_t n = 0; n < N; ++n) {
        const Vector a = Block<acc>::load(affinity + n * kBlock);
        const acc* neighbour = from + at + offset[n];
#pragma GCC unroll 8
        for (int c = 0; c < kClasses; ++c) sum[c] += a * Block<acc>::load(neighbour + c * plane);
      }
#pragma GCC unroll 8
      for (int c = 0; c < kClasses; ++c) Block<acc>::store(to + c * plane + at, sum[c]);
    }
  }
}

template <class acc>
void pamr_step(int classes, const Stencil& s, const acc* affinity, const acc* from, acc* to) {
  switch (classes) {
    case 8:
      return pamr_step<8>(s, affinity, from, to);
    case 7:
      return pamr_step<7>(s, affinity, from, to);
    case 6:
      return pamr_step<6>(s, affinity, from, to);
    case 5:
      return pamr_step<5>(s, affinity, from, to);
    case 4:
      return pamr_step<4>(s, affinity, from, to);
    case 3:
      return pamr_step<3>(s, affinity, from, to);
    case 2:
      return pamr_step<2>(s, affinity, from, to);
    default:
      return pamr_step<1>(s, affinity, from, to);
  }
}

// Classes of an image that are refined together.
struct Group {
  int64_t image;
  std::vector<int64_t> classes, hidden;  // hidden: not shown by the image, so they give 0
};

// The background and the classes that an image shows, `kGroup` at a time; all classes if nobody says what it shows.
std::vector<Group> groups_of(const Planes& mask, const std::optional<Tensor>& image_labels) {
  const int64_t C = mask.classes;
  std::vector<double> labels(mask.batch * (C - 1), 1.0);
  if (image_labels) labels = read_matrix<double>(*image_labels);
  std::vector<Group> groups;
  for (int64_t b = 0; b < mask.batch; ++b) {
    groups.push_back({b, {}, {}});
    for (int64_t c = 0; c < C; ++c) {
      if (c > 0 && labels[b * (C - 1) + c - 1] == 0) {
        groups.back().hidden.push_back(c);
        continue;
      }
      if (groups.back().classes.size() == kGroup) groups.push_back({b, {}, {}});
      groups.back().classes.push_back(c);
    }
  }
  return groups;
}

// What PAR adds to the affinities of the neighbours, in the order of the stencil's offsets.
template <class acc>
std::vector<acc> nearness_around(const std::vector<int64_t>& dilations) {
  std::vector<acc> around;
  for (const auto [beside, corner] : nearness_of(dilations)) {
    for (const double near : {corner, beside, corner, beside, beside, corner, beside, corner}) {
      around.push_back(static_cast<acc>(near));
    }
  }
  return around;
}

template <Affinity kind, class acc>
void refine_images(const Planes& image, const Planes& mask, const std::optional<Tensor>& image_labels,
                   int64_t iterations, const Stencil& s, const std::vector<acc>& nearness, acc* refined) {
  const int64_t B = mask.batch, C = mask.classes, N = s.neighbours();
  const std::unique_ptr<acc[]> affinity(new acc[B * s.affinities()]);  // (B, H, blocks, neighbours, kBlock)
  const int64_t rows_of_work = std::max<int64_t>(1, kGrain / (s.width * N));
  torch::stable::parallel_for(0, B * s.height, rows_of_work, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<acc[]> planes(new acc[3 * s.plane()]), differences(new acc[3 * N * kBlock]);
    for (int64_t i = begin; i < end; ++i) {
      if (i == begin || i % s.height == 0) {
        for (int64_t c = 0; c < 3; ++c) load_plane(image, i / s.height, c, s, planes.get() + c * s.plane());
      }
      pamr_affinity_row<kind>(s, planes.get(), i % s.height, nearness.data(), differences.get(),
                              affinity.get() + i * s.blocks * kBlock * N);
    }
  });
  const bool same_size = mask.height == s.height && mask.width == s.width;
  const std::vector<Group> groups = groups_of(mask, image_labels);
  torch::stable::parallel_for(0, static_cast<int64_t>(groups.size()), 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<acc[]> planes(new acc[2 * kGroup * s.plane()]);
    for (int64_t i = begin; i < end; ++i) {
      const auto& [b, wanted, hidden] = groups[i];
      for (const int64_t c : hidden)
        std::fill_n(refined + (b * C + c) * s.height * s.width, s.height * s.width, acc(0));
      const int64_t classes = static_cast<int64_t>(wanted.size());
      acc *from = planes.get(), *to = from + kGroup * s.plane();
      for (int64_t c = 0; c < classes; ++c) {
        (same_size ? load_plane<acc> : load_resized_plane<acc>)(mask, b, wanted[c], s, from + c * s.plane());
      }
      for (int64_t k = 0; k < iterations; ++k) {
        pamr_step<acc>(static_cast<int>(classes), s, affinity.get() + b * s.affinities(), from, to);
        for (int64_t c = 0; c < classes; ++c) pad(s, to + c * s.plane());
        std::swap(from, to);
      }
      for (int64_t c = 0; c < classes; ++c) {
        for (int64_t y = 0; y < s.height; ++y) {
          std::copy_n(from + c * s.plane() + s.first() + y * s.stride, s.width,
                      refined + ((b * C + wanted[c]) * s.height + y) * s.width);
        }
      }
    }
  });
}

template <Affinity kind>
Tensor refine(const char* op, const Tensor& image, const Tensor& mask, const std::optional<Tensor>& image_labels,
              int64_t iterations, const std::vector<int64_t>& dilations) {
  check_refinement(op, image, mask, image_labels, iterations, dilations);
  Tensor refined =
      torch::stable::empty({mask.size(0), mask.size(1), image.size(2), image.size(3)}, acc_dtype(image, mask));
  with_acc(acc_dtype(image, mask), [&](auto type) {
    using acc = decltype(type);
    refine_images<kind, acc>(Planes(image), Planes(mask), image_labels, iterations,
                             Stencil(image.size(2), image.size(3), dilations), nearness_around<acc>(dilations),
                             mutable_data<acc>(refined));
  });
  return refined;
}

Tensor pamr(const Tensor& image, const Tensor& mask, std::optional<Tensor> image_labels, int64_t iterations,
            std::vector<int64_t> dilations) {
  return refine<Affinity::kPamr>("pamr", image, mask, image_labels, iterations, dilations);
}

Tensor par(const Tensor& image, const Tensor& mask, std::optional<Tensor> image_labels, int64_t iterations,
           std::vector<int64_t> dilations) {
  return refine<Affinity::kPar>("par", image, mask, image_labels, iterations, dilations);
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CPU, m) {
  m.impl("pamr", TORCH_BOX(&wilson::pamr));
  m.impl("par", TORCH_BOX(&wilson::par));
}
