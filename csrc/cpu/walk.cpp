// Scores that walk at random and stop at edges (IRN) on the CPU. Ahn et al., CVPR 2019. Formulas: math/walk.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "checks.h"
#include "cpu/common/planes.h"
#include "cpu/common/tiles.h"
#include "math/power.h"
#include "math/walk.h"

namespace wilson {
namespace {

// Classes that share the weights once they are loaded, and blocks of a row. Two classes took 1.1 times as long with one
// block, and as long with four; each class more, up to four, took two fifths of the first. Sums of their own for the
// links either way were no faster with AVX-512, and 1.4 times slower with AVX2.
constexpr int kGroup = 4;
constexpr int kStrip = 2;
// Columns of 0 on either side of a row, of which the next row uses those to the right: a block, so that rows begin at
// multiples of 64 bytes.
constexpr int64_t kPad = kBlock;
static_assert(kPad >= kMostRadius - 1);

// Planes with a border around them, and where the neighbours of a pixel lie in them.
struct Stencil {
  struct Link {
    int64_t down, right;
    int64_t to;                 // how far behind a pixel its neighbour lies
    int64_t back;               // how far before a pixel's weights lies the weight of the link that ends in it
    std::vector<int64_t> path;  // as `to`, of all pixels on the way
  };

  int64_t height, width;
  int64_t blocks, stride;  // of a row
  int64_t border;          // rows above and below
  std::vector<Link> links;

  Stencil(int64_t height, int64_t width, int64_t radius)
      : height(height),
        width(width),
        blocks((width + kBlock - 1) / kBlock),
        stride(kPad + blocks * kBlock),
        border(radius - 1) {
    each_link(static_cast<int>(radius), [&](int down, int right) {
      if (down >= height || std::abs(right) >= width) return;
      links.push_back({down, right, down * stride + right, 0, {}});
      each_on_path(down, right, [&](int y, int x) { links.back().path.push_back(y * stride + x); });
    });
    for (Link& link : links) link.back = link.down * weights_of_row() + link.right;
  }

  int64_t count() const { return static_cast<int64_t>(links.size()); }
  int64_t plane() const { return (height + 2 * border) * stride + kPad; }
  int64_t at(int64_t y) const { return (border + y) * stride + kPad; }  // where a row begins in a plane
  // The weights of a row lie together, a link behind the other: (border + H, links, stride), 0 above the first row.
  int64_t weights_of_row() const { return count() * stride; }
  int64_t weights() const { return (border + height) * weights_of_row() + kPad; }
  int64_t weights_at(int64_t y) const { return (border + y) * weights_of_row() + kPad; }
};

// Zeros, from a multiple of 64 bytes on.
template <class acc>
class Zeros {
 public:
  explicit Zeros(int64_t count) : lines_(new Line[(count + kBlock - 1) / kBlock]()) {}
  acc* data() const { return lines_[0].value; }

 private:
  struct alignas(64) Line {
    acc value[kBlock];
  };
  std::unique_ptr<Line[]> lines_;
};

// The weights a^beta of a row's links. What lies outside of `edge` is an edge of 1, so that no link leads there.
template <class acc>
WILSON_CPU_LEVELS void weigh_row(const Stencil& s, const acc* edge, acc beta, acc* weights) {
  for (const Stencil::Link& link : s.links) {
    for (int64_t x = 0; x < s.blocks * kBlock; x += kBlock) {
      acc strongest[kBlock];
      std::copy_n(edge + x, kBlock, strongest);
      for (const int64_t step : link.path) {
        const acc* e = edge + x + step;
#pragma omp simd
        for (int64_t j = 0; j < kBlock; ++j) strongest[j] = e[j] > strongest[j] ? e[j] : strongest[j];
      }
#pragma omp simd
      for (int64_t j = 0; j < kBlock; ++j) weights[x + j] = power_of_share(acc(1) - strongest[j], beta);
    }
    weights += s.stride;
  }
}

// 1 over the sum of the weights of a row's pixels, their own of 1 included; 0 beside the map. The 1 comes last, here as
// in a step: many weights are so small that it would swallow them one by one.
template <class acc>
WILSON_CPU_LEVELS void divide_row(const Stencil& s, const acc* weights, acc* share) {
  std::fill_n(share, s.width, acc(0));
  const acc* weight = weights;
  for (const Stencil::Link& link : s.links) {
    const acc* back = weight - link.back;
#pragma omp simd
    for (int64_t x = 0; x < s.width; ++x) share[x] += weight[x] + back[x];
    weight += s.stride;
  }
#pragma omp simd
  for (int64_t x = 0; x < s.width; ++x) share[x] = acc(1) / (acc(1) + share[x]);
}

// A step of `kClasses` planes, at some blocks of a row.
template <int kClasses, int kBlocks, class acc>
WILSON_INLINE void walk_blocks(const Stencil& s, const acc* weights, const acc* share, const acc* from, acc* to) {
  using Vector = typename Block<acc>::Vector;
  const int64_t plane = s.plane(), stride = s.stride;
  Vector sum[kClasses][kBlocks] = {};
  for (const Stencil::Link& link : s.links) {
    const acc *next = from + link.to, *last = from - link.to, *back = weights - link.back;
#pragma GCC unroll 2
    for (int k = 0; k < kBlocks; ++k) {
      const Vector forth = Block<acc>::load(weights + k * kBlock), other = Block<acc>::load(back + k * kBlock);
#pragma GCC unroll 4
      for (int c = 0; c < kClasses; ++c) {
        sum[c][k] += forth * Block<acc>::load(next + c * plane + k * kBlock);
        sum[c][k] += other * Block<acc>::load(last + c * plane + k * kBlock);
      }
    }
    weights += stride;
  }
#pragma GCC unroll 2
  for (int k = 0; k < kBlocks; ++k) {
    const Vector part = Block<acc>::load(share + k * kBlock);
#pragma GCC unroll 4
    for (int c = 0; c < kClasses; ++c) {
      const int64_t at = c * plane + k * kBlock;
      Block<acc>::store(to + at, (Block<acc>::load(from + at) + sum[c][k]) * part);
    }
  }
}

// A step of some rows: strip by strip from top to bottom, as the weights of a strip's last rows stay in the nearest
// cache until the links that end there are walked the other way.
template <int kClasses, class acc>
WILSON_CPU_LEVELS void walk_rows(const Stencil& s, const acc* weights, const acc* share, int64_t begin, int64_t end,
                                 const acc* from, acc* to) {
  for (int64_t block = 0; block < s.blocks; block += kStrip) {
    const int64_t x = block * kBlock;
    for (int64_t y = begin; y < end; ++y) {
      const int64_t at = s.at(y) + x;
      const acc* of_row = weights + s.weights_at(y) + x;
      if (block + kStrip <= s.blocks) {
        walk_blocks<kClasses, kStrip>(s, of_row, share + at, from + at, to + at);
      } else {
        walk_blocks<kClasses, 1>(s, of_row, share + at, from + at, to + at);
      }
    }
  }
}

template <class acc>
void walk_rows(int64_t classes, const Stencil& s, const acc* weights, const acc* share, int64_t begin, int64_t end,
               const acc* from, acc* to) {
  switch (classes) {
    case 4:
      return walk_rows<4>(s, weights, share, begin, end, from, to);
    case 3:
      return walk_rows<3>(s, weights, share, begin, end, from, to);
    case 2:
      return walk_rows<2>(s, weights, share, begin, end, from, to);
    default:
      return walk_rows<1>(s, weights, share, begin, end, from, to);
  }
}

// All steps of one image. Threads share its rows, unless they share the images. They meet after each step: to meet
// after every fourth, with the rows around a thread's own walked twice, was no faster, not even where other processes
// had the cores.
template <class acc>
void walk_image(const Planes& scores, const Planes& edges, int64_t b, const Stencil& s, acc beta, int64_t steps,
                acc* walked) {
  const auto each_rows = [&](int64_t classes, auto body) {
    const int64_t work = 2 * s.width * classes * std::max<int64_t>(1, s.count());
    torch::stable::parallel_for(0, s.height, std::max<int64_t>(1, kGrain / work), body);
  };
  const Zeros<acc> edge(s.plane()), share(s.plane()), weights(s.weights());
  std::fill_n(edge.data(), s.plane(), acc(1));
  edges.with_rows(b, 0, [&](auto row_of) {
    for (int64_t y = 0; y < s.height; ++y) {
      const auto from = row_of(y);
      acc* row = edge.data() + s.at(y);
      for (int64_t x = 0; x < s.width; ++x) row[x] = static_cast<acc>(from(x));
    }
  });
  each_rows(1, [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      weigh_row(s, edge.data() + s.at(y), beta, weights.data() + s.weights_at(y));
    }
  });
  each_rows(1, [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      divide_row(s, weights.data() + s.weights_at(y), share.data() + s.at(y));
    }
  });

  for (int64_t first = 0; first < scores.classes; first += kGroup) {
    const int64_t classes = std::min<int64_t>(kGroup, scores.classes - first);
    const Zeros<acc> planes(2 * classes * s.plane());
    acc *from = planes.data(), *to = from + classes * s.plane();
    for (int64_t c = 0; c < classes; ++c) {
      scores.with_rows(b, first + c, [&](auto row_of) {
        for (int64_t y = 0; y < s.height; ++y) {
          const auto score = row_of(y);
          const acc* e = edge.data() + s.at(y);
          acc* row = from + c * s.plane() + s.at(y);
          for (int64_t x = 0; x < s.width; ++x) row[x] = static_cast<acc>(score(x)) * (acc(1) - e[x]);
        }
      });
    }
    for (int64_t step = 0; step < steps && s.count() > 0; ++step) {
      each_rows(classes, [&](int64_t begin, int64_t end) {
        walk_rows<acc>(classes, s, weights.data(), share.data(), begin, end, from, to);
      });
      std::swap(from, to);
    }
    for (int64_t c = 0; c < classes; ++c) {
      for (int64_t y = 0; y < s.height; ++y) {
        std::copy_n(from + c * s.plane() + s.at(y), s.width,
                    walked + (((b * scores.classes + first + c) * s.height) + y) * s.width);
      }
    }
  }
}

Tensor random_walk(const Tensor& scores, const Tensor& edge, int64_t radius, double beta, int64_t steps) {
  check_random_walk(scores, edge, radius, beta, steps);
  const ScalarType dtype = acc_dtype(scores, edge);
  Tensor walked = torch::stable::empty({scores.size(0), scores.size(1), scores.size(2), scores.size(3)}, dtype);
  with_acc(dtype, [&](auto type) {
    using acc = decltype(type);
    const Planes maps(scores), edges(edge);
    const Stencil s(maps.height, maps.width, radius);
    const auto walk_images = [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        walk_image(maps, edges, b, s, static_cast<acc>(beta), steps, mutable_data<acc>(walked));
      }
    };
    if (maps.batch < torch::stable::get_num_threads()) {
      walk_images(0, maps.batch);
    } else {
      torch::stable::parallel_for(0, maps.batch, 1, walk_images);
    }
  });
  return walked;
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CPU, m) { m.impl("random_walk", TORCH_BOX(&wilson::random_walk)); }
