// Losses and labels at the image's size from logits at feature resolution, on NVIDIA GPUs. The upsampled logits
// (bilinear) are computed where they are needed and never stored.
//
// Losses and labels: a thread has a few pixels of a column and goes through the classes.
// Derivatives: a block owns a rectangle of the low-resolution map. Each of its threads goes down a column of the image,
// through all pixels that the rectangle has a share in. Two blocks compute the pixels around a border, so that no two
// add to the same derivative.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <limits>
#include <tuple>
#include <type_traits>

#include "checks.h"
#include "cuda/common/fast.h"
#include "cuda/common/launch.h"
#include "cuda/common/reduce.h"
#include "math/bilinear.h"

namespace wilson {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kLanes;
constexpr int kRun = 4;       // rows of a thread, mostly between the same four low-resolution pixels: one load for all
constexpr int kGroup = 8;     // classes of a block of derivatives: their logits and sums take 32 registers
constexpr int kPrecise = 32;  // up to here a float has 18 bits behind the point
constexpr int kBand = 4;      // low-resolution rows of such a block: many blocks for little work done twice

template <class T>
struct LowMap {
  const T* data;  // (B, C, H, W)
  int64_t batch, classes, height, width;
  int64_t batch_stride, class_stride, row_stride, pixel_stride;
};

template <class T>
LowMap<T> low_map(const Tensor& t) {
  return {const_data<T>(t), t.size(0),   t.size(1),   t.size(2),  t.size(3),
          t.stride(0),      t.stride(1), t.stride(2), t.stride(3)};
}

// Interpolates along a row of low-resolution pixels.
template <class acc>
struct Column {
  int64_t left, right;  // offsets in a row
  acc weight;           // of `right`

  template <class T, class Axis>
  __device__ Column(const LowMap<T>& map, const Axis& axis, int64_t x) {
    const int64_t low = axis.low(x);
    left = low * map.pixel_stride;
    right = min(low + 1, map.width - 1) * map.pixel_stride;
    weight = axis.template weight<acc>(x, low);
  }

  template <class T>
  __device__ acc of(const T* row) const {
    return mix(interpolable(static_cast<acc>(row[left])), interpolable(static_cast<acc>(row[right])), weight);
  }
};

// The weights of low-resolution rows in the pixels between them: the same bits in every kernel.
template <class acc>
struct RowWeight {
  acc share;

  template <class Axis>
  __device__ explicit RowWeight(const Axis& rows) : share(acc(1) / static_cast<acc>(rows.unit())) {}

  // Of the row below, given rows.rest().
  __device__ acc of(int rest) const { return static_cast<acc>(max(rest, 0)) * share; }
};

// --------------------------------------------------------------------------------------------------- losses and labels

// What a thread does with the logits of a pixel: add() takes them class by class, `State` is what the pixel keeps,
// done() returns its loss.

struct ArgMax {
  void* labels;  // (B, H', W'), the first class of the highest logit
  bool many;     // int64, else uint8

  template <class acc>
  struct State {
    acc best = -std::numeric_limits<acc>::infinity();
    int index = 0;
  };

  template <class acc>
  __device__ void add(State<acc>& state, int c, acc s, int) const {
    if (s > state.best || (s != s && state.best == state.best)) state.best = s, state.index = c;
  }

  template <class acc>
  __device__ acc done(const State<acc>& state, int64_t at, int) const {
    const int index = ruled_out(state.best) ? 0 : state.index;  // all of them are: the first of equals
    if (many) {
      static_cast<int64_t*>(labels)[at] = index;
    } else {
      static_cast<uint8_t*>(labels)[at] = static_cast<uint8_t>(index);
    }
    return acc(0);
  }

  static constexpr bool kLoss = false;
};

// Binary cross-entropy against the one-hot label, summed over classes.
struct SoftMargin {
  template <class acc>
  using State = LogisticSum<acc>;

  template <class acc>
  __device__ void add(State<acc>& state, int c, acc s, int label) const {
    state.add(s, label == c, fast_exp(-abs(s)));
    state.added(1);
  }

  template <class acc>
  __device__ acc done(State<acc>& state, int64_t, int) const {
    return -interpolated(-state.value());
  }

  // What the derivatives of a pixel share: nothing.
  struct Norm {};
  template <class LogitOf>
  __device__ Norm norm(int64_t, int, LogitOf) const {
    return {};
  }

  // Of the loss of a pixel with a class, by a logit.
  template <class acc>
  __device__ acc derivative(acc s, acc e, bool hit, Norm) const {
    return (s >= acc(0) ? acc(1) : e) * fast_reciprocal(acc(1) + e) - (hit ? acc(1) : acc(0));  // the sigmoid
  }

  static constexpr bool kLoss = true;
  // Whether the kernel of the derivatives gives the loss as well.
  static constexpr bool kLossWithDerivative = true;
};

// Softmax cross-entropy.
template <class Acc>
struct CrossEntropy {
  Acc* log_norm;  // (B, H', W'), log of the sum of exp(s), for the derivatives; or none

  template <class acc>
  struct State {
    acc peak = std::numeric_limits<acc>::lowest(), sum = 0, own = 0;

    // The log of the sum: NaN where the softmax is, with +inf in a class or -inf in all.
    __device__ acc tail() const { return log(sum) + (interpolated(peak) - interpolated(peak)); }
  };

  template <class acc>
  __device__ void add(State<acc>& state, int c, acc s, int label) const {
    const Step<acc> step = softmax_step(state.peak, s, fast_exp(-abs(s - state.peak)));
    state.sum = step.before * state.sum + step.now;
    state.own = label == c ? s : state.own;
  }

  template <class acc>
  __device__ acc done(const State<acc>& state, int64_t at, int) const {
    const acc tail = state.tail();
    if (log_norm) log_norm[at] = state.peak + tail;
    return tail + (state.peak - interpolated(state.own));
  }

  struct Norm {
    Acc peak, tail;  // in two parts: log of the sum of exp(s) is their sum
  };
  // A large log of the sum has lost the digits that matter, so its two parts are computed anew.
  template <class LogitOf>
  __device__ Norm norm(int64_t at, int classes, LogitOf logit_of) const {
    const Acc known = log_norm[at];
    if (abs(known) <= Acc(kPrecise)) return {known, Acc(0)};
    State<Acc> state;
#pragma unroll 1
    for (int c = 0; c < classes; ++c) add(state, c, logit_of(c), -1);
    return {state.peak, state.tail()};
  }

  template <class acc>
  __device__ acc derivative(acc s, acc, bool hit, const Norm& norm) const {
    return fast_exp((s - norm.peak) - norm.tail) - (hit ? acc(1) : acc(0));
  }

  static constexpr bool kLoss = true;
  static constexpr bool kLossWithDerivative = false;
};

// How blocks share out the image: kThreads columns and kRun rows each.
struct Runs {
  int64_t runs, tiles;  // of the rows, of the columns

  template <class Axis>
  Runs(const Axis& rows, const Axis& columns)
      : runs((rows.size + kRun - 1) / kRun), tiles((columns.size + kThreads - 1) / kThreads) {}
  int64_t blocks() const { return runs * tiles; }  // of an image
};

// sums, counted: (B, blocks), the loss and number of the pixels with a class. ArgMax reads no labels.
template <class T, class Axis, class Visit>
__global__ void __launch_bounds__(kThreads, 1)
    upsampled_loss_fwd_kernel(LowMap<T> logits, Axis rows, Axis columns, LabelView labels, Visit visit, Runs runs,
                              acc_t<T>* __restrict__ sums, int32_t* __restrict__ counted) {
  using acc = acc_t<T>;
  const int64_t tile = blockIdx.x % runs.tiles, run = blockIdx.x / runs.tiles % runs.runs;
  const int64_t b = blockIdx.x / runs.tiles / runs.runs;
  const int64_t x = tile * kThreads + threadIdx.y * kLanes + threadIdx.x, y = run * kRun;
  const bool inside = x < columns.size;
  const Column<acc> column(logits, columns, inside ? x : 0);

  const RowWeight<acc> row_weight(rows);
  const int last = static_cast<int>(logits.height) - 1;
  typename Visit::template State<acc> state[kRun];
  int low[kRun];     // the row of the map above
  acc weight[kRun];  // of the row below
  int32_t label[kRun];
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    const bool real = inside && y + i < rows.size;
    low[i] = static_cast<int>(rows.low(min(y + i, rows.size - 1)));
    weight[i] = row_weight.of(static_cast<int>(rows.rest(min(y + i, rows.size - 1), low[i])));
    label[i] = Visit::kLoss && real ? class_at(labels, b, y + i, x) : -1;
  }
  const T* plane = logits.data + b * logits.batch_stride;
#pragma unroll 1
  for (int c = 0; c < logits.classes; ++c, plane += logits.class_stride) {
    acc top, bottom;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if (i == 0 || low[i] != low[i - 1]) {
        top = column.of(plane + low[i] * logits.row_stride);
        bottom = column.of(plane + min(low[i] + 1, last) * logits.row_stride);
      }
      visit.add(state[i], c, mix(top, bottom, weight[i]), label[i]);
    }
  }
  acc loss = 0;
  int count = 0;
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    if (!inside || y + i >= rows.size) continue;
    const acc value = visit.done(state[i], (b * rows.size + y + i) * columns.size + x, label[i]);
    loss += label[i] < 0 ? acc(0) : value;
    count += label[i] >= 0;
  }
  if constexpr (Visit::kLoss) {
    loss = block_sum(loss);
    count = block_sum(count);
    if (threadIdx.x == 0 && threadIdx.y == 0) {
      sums[blockIdx.x] = loss;
      if (counted) counted[blockIdx.x] = count;
    }
  }
}

// --------------------------------------------------------------------------------------------------------- derivatives

// How blocks share out the map: kBand rows, `owned` columns and kGroup classes each.
struct Cells {
  int64_t owned, tiles, bands, groups;

  // A block owns as many columns as have all their pixels among kThreads, and all blocks about the same number.
  template <class Axis>
  Cells(const Axis& rows, const Axis& columns, int64_t classes) {
    const int64_t most = std::max<int64_t>(1, kThreads * columns.slope() / columns.unit() - 1);
    tiles = (columns.low_size + most - 1) / most;
    owned = (columns.low_size + tiles - 1) / tiles;
    tiles = (columns.low_size + owned - 1) / owned;
    bands = (rows.low_size + kBand - 1) / kBand;
    groups = (classes + kGroup - 1) / kGroup;
  }
  int64_t blocks() const { return tiles * bands * groups; }  // of an image
};

// Blocks of a multiprocessor at once: two floats' take 128 registers of a thread, a third would spill.
template <class acc>
constexpr int kDerivativeBlocks = std::is_same_v<acc, float> ? 2 : 1;

// derivative: (B, C, H, W), the sum over the pixels of the derivative of their losses. sums: (B, blocks), the losses.
template <class T, class Axis, class Loss>
__global__ void __launch_bounds__(kThreads, kDerivativeBlocks<acc_t<T>>)
    upsampled_loss_derivative_kernel(LowMap<T> logits, Axis rows, Axis columns, LabelView labels, Loss loss_of,
                                     Cells cells, acc_t<T>* __restrict__ derivative, acc_t<T>* __restrict__ sums) {
  using acc = acc_t<T>;
  __shared__ acc column_sum[kGroup][kThreads], column_weight[kThreads];
  const int thread = threadIdx.y * kLanes + threadIdx.x;
  int64_t block = blockIdx.x;
  const int64_t left = block % cells.tiles * cells.owned, right = min(left + cells.owned, logits.width);
  block /= cells.tiles;
  const int64_t above = block % cells.bands * kBand, below = min(above + kBand, logits.height);
  block /= cells.bands;
  const int first_class = static_cast<int>(block % cells.groups) * kGroup;
  const int64_t b = block / cells.groups;
  const int classes = static_cast<int>(min(logits.classes - first_class, int64_t(kGroup)));
  const T* planes = logits.data + b * logits.batch_stride + first_class * logits.class_stride;
  acc* out = derivative + (b * logits.classes + first_class) * logits.height * logits.width;

  LogisticSum<acc> loss;
  acc total = 0;  // of the pixels that the block owns
  const RowWeight<acc> row_weight(rows);
  const int rest_step = static_cast<int>(rows.slope());
  const int64_t end = columns.first(right);
  int64_t begin = columns.first(left - 1);
  bool again = false;  // whether the block has more columns than threads, and this is not the first of their runs
  do {
    const int64_t x = begin + thread;
    const bool inside = x < end;
    const Column<acc> column(logits, columns, inside ? x : columns.size - 1);
    const bool owned = inside && columns.low(x) >= left;
    const auto load_row = [&](int64_t row, acc(&values)[kGroup]) {
      const T* from = planes + min(row, logits.height - 1) * logits.row_stride;
#pragma unroll
      for (int k = 0; k < kGroup; ++k) {
        if (k < classes) values[k] = column.of(from + k * logits.class_stride);
      }
    };
    acc top[kGroup] = {}, bottom[kGroup] = {};          // the logits of the rows around the pixel, in its column
    acc top_sum[kGroup] = {}, bottom_sum[kGroup] = {};  // their derivatives
    column_weight[thread] = column.weight;
    const int64_t start = max(above - 1, int64_t(0));
    load_row(start, bottom);
    const int64_t label_column = b * labels.batch_stride + x * labels.pixel_stride;
    int64_t y = rows.first(start);
#pragma unroll 1
    for (int64_t row = start; row < below; ++row) {
#pragma unroll
      for (int k = 0; k < kGroup; ++k) top[k] = bottom[k];
      load_row(row + 1, bottom);
      const int64_t y_end = rows.first(row + 1);
      int rest = static_cast<int>(rows.rest(y, row));
#pragma unroll 1
      for (; y < y_end; ++y, rest += rest_step) {
        const int32_t label = inside ? class_at(labels, label_column + y * labels.row_stride) : -1;
        if (label < 0) continue;
        const acc weight = row_weight.of(rest);
        const auto norm =
            loss_of.norm((b * rows.size + y) * columns.size + x, static_cast<int>(logits.classes), [&](int c) {
              const T* plane = logits.data + b * logits.batch_stride + c * logits.class_stride;
              return mix(column.of(plane + row * logits.row_stride),
                         column.of(plane + min(row + 1, logits.height - 1) * logits.row_stride), weight);
            });
#pragma unroll
        for (int k = 0; k < kGroup; ++k) {
          if (k >= classes) continue;
          const acc s = mix(top[k], bottom[k], weight);
          const bool hit = label == first_class + k;
          acc e = 0;
          if constexpr (Loss::kLossWithDerivative) {
            e = fast_exp(-abs(s));
            loss.add(s, hit, e);
          }
          const acc d = loss_of.derivative(s, e, hit, norm);
          top_sum[k] += (acc(1) - weight) * d;
          bottom_sum[k] += weight * d;
        }
        if constexpr (Loss::kLossWithDerivative) loss.added(kGroup);
      }
      if constexpr (Loss::kLossWithDerivative) {
        if (owned && row >= above) total += loss.value();
        loss = {};
      }
      if (row == logits.height - 1) {  // after the last row comes itself
#pragma unroll
        for (int k = 0; k < kGroup; ++k) top_sum[k] += bottom_sum[k];
      }
      if (row >= above) {  // the row is complete: gather it along x
#pragma unroll
        for (int k = 0; k < kGroup; ++k) column_sum[k][thread] = top_sum[k];
        __syncthreads();
        const int64_t width = right - left;
        for (int64_t i = thread; i < classes * width; i += kThreads) {
          const int k = static_cast<int>(i / width);
          const int64_t q = left + i % width;
          const int from = static_cast<int>(max(columns.first(q - 1) - begin, int64_t(0)));
          const int64_t own = columns.first(q) - begin, to = min(columns.first(q + 1), end) - begin;
          acc* value = &out[(k * logits.height + row) * logits.width + q];
          acc sum = again ? *value : acc(0);
          for (int j = from; j < min(to, int64_t(kThreads)); ++j) {
            const bool last = j >= own && q == logits.width - 1;  // after the last column comes itself
            const acc share = j < own ? column_weight[j] : last ? acc(1) : acc(1) - column_weight[j];
            sum += share * column_sum[k][j];
          }
          *value = sum;
        }
        __syncthreads();
      }
#pragma unroll
      for (int k = 0; k < kGroup; ++k) top_sum[k] = bottom_sum[k], bottom_sum[k] = acc(0);
    }
    begin += kThreads;
    again = true;
  } while (begin < end);
  if constexpr (Loss::kLossWithDerivative) {
    total = block_sum(-interpolated(-total));
    if (thread == 0) sums[blockIdx.x] = total;
  }
}

// ------------------------------------------------------------------------------------------------------------- the ops

template <class T, class Axis, class Visit>
void visit_pixels(const Tensor& logits, const Axis& rows, const Axis& columns, const LabelView& labels, Visit visit,
                  acc_t<T>* sums, int32_t* counted) {
  const Runs runs(rows, columns);
  upsampled_loss_fwd_kernel<T><<<logits.size(0) * runs.blocks(), dim3(kLanes, kWarps), 0, current_stream(logits)>>>(
      low_map<T>(logits), rows, columns, labels, visit, runs, sums, counted);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class T, class Axis, class Loss>
void derivatives(const Tensor& logits, const Axis& rows, const Axis& columns, const LabelView& labels, Loss loss_of,
                 acc_t<T>* derivative, acc_t<T>* sums) {
  const Cells cells(rows, columns, logits.size(1));
  upsampled_loss_derivative_kernel<T>
      <<<logits.size(0) * cells.blocks(), dim3(kLanes, kWarps), 0, current_stream(logits)>>>(
          low_map<T>(logits), rows, columns, labels, loss_of, cells, derivative, sums);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class Run>
void with_type_and_axes(const Tensor& logits, int64_t height, int64_t width, bool align_corners, Run run) {
  with_type_of(logits.scalar_type(), [&](auto type) {
    with_axes(align_corners, [&](auto axis) {
      using Axis = decltype(axis);
      run(type, Axis{height, logits.size(2)}, Axis{width, logits.size(3)});
    });
  });
}

Tensor empty_derivative(const Tensor& logits, bool with_derivative) {
  const ScalarType dtype = acc_dtype(logits);
  return with_derivative ? torch::stable::new_empty(logits, logits.sizes(), dtype)
                         : torch::stable::new_empty(logits, {0}, dtype);
}

std::tuple<Tensor, Tensor> upsampled_soft_margin_loss(const Tensor& logits, const Tensor& labels, int64_t ignore_index,
                                                      bool align_corners, bool with_derivative) {
  check_upsampled_loss("upsampled_soft_margin_loss", logits, labels);
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const ScalarType dtype = acc_dtype(logits);
  const LabelView view = label_view(labels, logits.size(1), ignore_index);
  const int64_t B = logits.size(0);
  Tensor loss = torch::stable::new_empty(logits, {}, dtype), derivative = empty_derivative(logits, with_derivative);
  with_type_and_axes(logits, labels.size(1), labels.size(2), align_corners, [&](auto type, auto rows, auto columns) {
    using T = decltype(type);
    using acc = acc_t<T>;
    const int64_t blocks =
        with_derivative ? Cells(rows, columns, logits.size(1)).blocks() : Runs(rows, columns).blocks();
    Tensor sums = torch::stable::new_empty(logits, {B, blocks}, dtype);
    if (B > 0 && with_derivative) {
      derivatives<T>(logits, rows, columns, view, SoftMargin(), mutable_data<acc>(derivative), mutable_data<acc>(sums));
    } else if (B > 0) {
      visit_pixels<T>(logits, rows, columns, view, SoftMargin(), mutable_data<acc>(sums), nullptr);
    }
    finish_loss<acc>(sums, std::max<int64_t>(1, labels.numel()), loss);
  });
  return {loss, derivative};
}

std::tuple<Tensor, Tensor, Tensor> upsampled_cross_entropy(const Tensor& logits, const Tensor& labels,
                                                           int64_t ignore_index, bool align_corners,
                                                           bool with_derivative) {
  check_upsampled_loss("upsampled_cross_entropy", logits, labels);
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const ScalarType dtype = acc_dtype(logits);
  const LabelView view = label_view(labels, logits.size(1), ignore_index);
  const int64_t B = logits.size(0);
  Tensor loss = torch::stable::new_empty(logits, {}, dtype), count = torch::stable::new_empty(logits, {}, dtype),
         derivative = empty_derivative(logits, with_derivative);
  with_type_and_axes(logits, labels.size(1), labels.size(2), align_corners, [&](auto type, auto rows, auto columns) {
    using T = decltype(type);
    using acc = acc_t<T>;
    const int64_t blocks = Runs(rows, columns).blocks();
    Tensor sums = torch::stable::new_empty(logits, {B, blocks}, dtype),
           counted = torch::stable::new_empty(logits, {B, blocks}, ScalarType::Int),
           log_norm = torch::stable::new_empty(logits, {with_derivative ? B : 0, rows.size, columns.size}, dtype);
    const CrossEntropy<acc> entropy{with_derivative ? mutable_data<acc>(log_norm) : nullptr};
    if (B > 0) {
      visit_pixels<T>(logits, rows, columns, view, entropy, mutable_data<acc>(sums), mutable_data<int32_t>(counted));
    }
    if (B > 0 && with_derivative) {
      derivatives<T>(logits, rows, columns, view, entropy, mutable_data<acc>(derivative), nullptr);
    }
    finish_loss<acc>(sums, 1, loss, Unscaled(), &counted, &count);
  });
  return {loss, count, derivative};
}

Tensor upsampled_argmax(const Tensor& logits, int64_t height, int64_t width, bool align_corners) {
  check_upsampled_argmax(logits, height, width);
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const bool many = logits.size(1) > 255;
  Tensor labels =
      torch::stable::new_empty(logits, {logits.size(0), height, width}, many ? ScalarType::Long : ScalarType::Byte);
  if (logits.size(0) == 0) return labels;
  with_type_and_axes(logits, height, width, align_corners, [&](auto type, auto rows, auto columns) {
    const ArgMax argmax{labels.mutable_data_ptr(), many};
    visit_pixels<decltype(type)>(logits, rows, columns, LabelView{}, argmax, nullptr, nullptr);
  });
  return labels;
}

}  // namespace
}  // namespace wilson

STABLE_TORCH_LIBRARY_IMPL(wilson, CUDA, m) {
  m.impl("upsampled_soft_margin_loss", TORCH_BOX(&wilson::upsampled_soft_margin_loss));
  m.impl("upsampled_cross_entropy", TORCH_BOX(&wilson::upsampled_cross_entropy));
  m.impl("upsampled_argmax", TORCH_BOX(&wilson::upsampled_argmax));
}
