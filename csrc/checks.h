// What the raw ops of every device refuse. Kernels trust their arguments, and anybody may call a raw op: whatever would
// make a kernel read outside of a tensor is refused here. The public functions have checked more before.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "maps.h"
#include "math/walk.h"

namespace wilson {

// (2, 21, 32, 32), (24,) or ().
template <class Numbers>
std::string tuple_text(const Numbers& numbers) {
  std::ostringstream text;
  for (size_t i = 0; i < numbers.size(); ++i) text << (i ? ", " : "(") << numbers[i];
  text << (numbers.size() == 0 ? "()" : numbers.size() == 1 ? ",)" : ")");
  return text.str();
}

inline std::string shape_text(const Tensor& tensor) { return tuple_text(tensor.sizes()); }

// ---------------------------------------------------------------------------------------------------------- one tensor

inline void check_map(const char* op, const char* name, const Tensor& map) {
  const ScalarType dtype = map.scalar_type();
  STD_TORCH_CHECK(dtype == ScalarType::Double || dtype == ScalarType::Float || dtype == ScalarType::BFloat16 ||
                      dtype == ScalarType::Half,
                  op, ": ", name, " must be float64, float32, bfloat16 or float16");
  STD_TORCH_CHECK(map.dim() == 4 && map.size(1) > 0 && map.size(2) > 0 && map.size(3) > 0, op, ": ", name,
                  " must be (B, C, H, W), empty in its batch only, got ", shape_text(map));
}

inline void check_same_grid(const char* op, const char* name, const Tensor& map, const char* like_name,
                            const Tensor& like) {
  STD_TORCH_CHECK(map.size(0) == like.size(0) && map.size(2) == like.size(2) && map.size(3) == like.size(3), op, ": ",
                  name, " must have the batch, height and width of ", like_name, " ", shape_text(like), ", got ",
                  shape_text(map));
}

inline void check_same_shape(const char* op, const char* name, const Tensor& map, const char* like_name,
                             const Tensor& like) {
  check_same_grid(op, name, map, like_name, like);
  STD_TORCH_CHECK(map.size(1) == like.size(1), op, ": ", name, " must have the classes of ", like_name, " ",
                  shape_text(like), ", got ", shape_text(map));
}

// (B,)
inline void check_per_image(const char* op, const char* name, const Tensor& tensor, const Tensor& map) {
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == map.size(0), op, ": ", name,
                  " must be (B,) with B = ", map.size(0), ", got ", shape_text(tensor));
}

// (B, C)
inline void check_per_class(const char* op, const char* name, const Tensor& tensor, const Tensor& map) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == map.size(0) && tensor.size(1) == map.size(1), op, ": ", name,
                  " must be (B, C) of a map ", shape_text(map), ", got ", shape_text(tensor));
}

// (B, C) in the accumulation dtype.
inline void check_statistic(const char* op, const char* name, const Tensor& tensor, const Tensor& map) {
  check_per_class(op, name, tensor, map);
  const bool is_double = tensor.scalar_type() == ScalarType::Double,
             is_float = tensor.scalar_type() == ScalarType::Float;
  const bool wants_double = acc_dtype(map) == ScalarType::Double;
  STD_TORCH_CHECK(wants_double ? is_double : is_float, op, ": ", name, " must be ",
                  wants_double ? "float64, as the scores are" : "float32", ", got ",
                  is_double  ? "float64"
                  : is_float ? "float32"
                             : "another dtype");
}

inline void check_image_labels(const char* op, const Tensor& labels, const Tensor& map) {
  STD_TORCH_CHECK(labels.dim() == 2 && labels.size(0) == map.size(0) && labels.size(1) == map.size(1) - 1, op,
                  ": image_labels must be (B, C-1) of a map ", shape_text(map), ", got ", shape_text(labels));
}

// (B, H', W'), of any size.
inline void check_label_map(const char* op, const Tensor& labels, const Tensor& map) {
  STD_TORCH_CHECK(labels.dim() == 3 && labels.size(0) == map.size(0) && labels.size(1) > 0 && labels.size(2) > 0, op,
                  ": labels must be (B, H', W') with B = ", map.size(0), " and no empty side, got ",
                  shape_text(labels));
}

// --------------------------------------------------------------------------------------------- the arguments of one op

inline void check_old_logits(const char* op, const Tensor& old_logits, const char* name, const Tensor& scores) {
  check_map(op, name, scores);
  check_map(op, "old_logits", old_logits);
  check_same_grid(op, "old_logits", old_logits, name, scores);
  STD_TORCH_CHECK(old_logits.size(1) <= scores.size(1), op, ": old_logits must have at most the ", scores.size(1),
                  " classes of ", name, ", got ", old_logits.size(1));
}

inline void check_soft_margin(const char* op, const Tensor& logits, const Tensor& targets,
                              const std::optional<Tensor>& image_weight) {
  check_map(op, "logits", logits);
  check_map(op, "targets", targets);
  check_same_shape(op, "targets", targets, "logits", logits);
  if (image_weight) check_per_image(op, "image_weight", *image_weight, logits);
}

inline void check_one_versus_rest(const char* op, const Tensor& logits) {
  check_map(op, "logits", logits);
  STD_TORCH_CHECK(logits.size(1) > 1, op, ": logits must have two classes or more, got ", shape_text(logits));
}

inline void check_pseudo_labels(const char* op, const Tensor& localizer_scores, const Tensor& old_logits,
                                const Tensor& image_labels, const std::optional<Tensor>& prior) {
  check_old_logits(op, old_logits, "localizer_scores", localizer_scores);
  check_image_labels(op, image_labels, localizer_scores);
  if (!prior) return;
  check_map(op, "prior", *prior);
  check_same_grid(op, "prior", *prior, "localizer_scores", localizer_scores);
  STD_TORCH_CHECK(prior->size(1) == localizer_scores.size(1) - old_logits.size(1), op, ": prior must have the ",
                  localizer_scores.size(1) - old_logits.size(1), " new classes of ", localizer_scores.size(1),
                  ", of which ", old_logits.size(1), " are old, got ", prior->size(1));
}

inline void check_pseudo_label_loss(const char* op, const Tensor& logits, const Tensor& localizer_scores,
                                    const Tensor& old_logits, const Tensor& image_labels,
                                    const std::optional<Tensor>& prior) {
  check_pseudo_labels(op, localizer_scores, old_logits, image_labels, prior);
  check_map(op, "logits", logits);
  check_same_shape(op, "localizer_scores", localizer_scores, "logits", logits);
}

// What prior_loss is given, and the numbers that follow from it once it is checked.
struct PriorArguments {
  const Tensor &scores, &image_labels;
  const std::optional<Tensor>&maps, &similarity, &old_logits;

  ScalarType dtype() const {
    return maps ? acc_dtype(scores, image_labels, *maps) : acc_dtype(scores, image_labels, *similarity, *old_logits);
  }
  int64_t classes() const { return maps ? maps->size(1) : scores.size(1) - old_logits->size(1); }  // new ones
  // The elements of the mean.
  int64_t counted() const { return std::max<int64_t>(1, scores.size(0) * classes() * scores.size(2) * scores.size(3)); }

  void check(const char* op) const {
    check_map(op, "scores", scores);
    STD_TORCH_CHECK(maps.has_value() != similarity.has_value() && similarity.has_value() == old_logits.has_value(), op,
                    ": expected either maps, or similarity with old_logits");
    if (maps) {
      check_map(op, "maps", *maps);
      check_same_grid(op, "maps", *maps, "scores", scores);
      STD_TORCH_CHECK(maps->size(1) <= scores.size(1), op, ": maps must have at most the ", scores.size(1),
                      " classes of scores, got ", maps->size(1));
    } else {
      check_old_logits(op, *old_logits, "scores", scores);
      STD_TORCH_CHECK(old_logits->size(1) < scores.size(1), op, ": old_logits must have fewer classes than the ",
                      scores.size(1), " of scores, got ", old_logits->size(1));
      STD_TORCH_CHECK(
          similarity->dim() == 2 && similarity->size(0) == scores.size(1) && similarity->size(1) == scores.size(1), op,
          ": similarity must be (C, C) of scores ", shape_text(scores), ", got ", shape_text(*similarity));
    }
    STD_TORCH_CHECK(
        image_labels.dim() == 2 && image_labels.size(0) == scores.size(0) && image_labels.size(1) >= classes(), op,
        ": image_labels must be (B, L) with B = ", scores.size(0), " and L >= ", classes(), ", got ",
        shape_text(image_labels));
  }
};

// Of pamr and par. most: how many dilations the device's kernels can take, if not any number.
inline void check_refinement(const char* op, const Tensor& image, const Tensor& mask,
                             const std::optional<Tensor>& image_labels, int64_t iterations,
                             const std::vector<int64_t>& dilations, std::optional<int64_t> most = std::nullopt) {
  check_map(op, "image", image);
  check_map(op, "mask", mask);
  if (image_labels) check_image_labels(op, *image_labels, mask);
  STD_TORCH_CHECK(image.size(1) == 3 && image.size(0) == mask.size(0), op,
                  ": image must be (B, 3, H, W) with B = ", mask.size(0), ", got ", shape_text(image));
  STD_TORCH_CHECK(iterations > 0, op, ": iterations must be at least 1, got ", iterations);
  STD_TORCH_CHECK(!dilations.empty() && *std::min_element(dilations.begin(), dilations.end()) > 0, op,
                  ": dilations must be at least 1 each, and one or more, got ", tuple_text(dilations));
  STD_TORCH_CHECK(!most || static_cast<int64_t>(dilations.size()) <= *most, op, ": dilations must be at most ", *most,
                  " on this device, got ", dilations.size());
}

inline void check_random_walk(const Tensor& scores, const Tensor& edge, int64_t radius, double beta, int64_t steps) {
  check_map("random_walk", "scores", scores);
  check_map("random_walk", "edge", edge);
  check_same_grid("random_walk", "edge", edge, "scores", scores);
  STD_TORCH_CHECK(edge.size(1) == 1, "random_walk: edge must be (B, 1, H, W), got ", shape_text(edge));
  STD_TORCH_CHECK(radius >= 1 && radius <= kMostRadius, "random_walk: radius must be within 1..", kMostRadius, ", got ",
                  radius);
  STD_TORCH_CHECK(beta > 0, "random_walk: beta must be positive, got ", beta);
  STD_TORCH_CHECK(steps >= 0, "random_walk: steps must be at least 0, got ", steps);
}

inline void check_balanced(const char* op, const Tensor& scores, const Tensor& labels, const Tensor& counts,
                           const Tensor& image_labels) {
  check_map(op, "scores", scores);
  check_image_labels(op, image_labels, scores);
  STD_TORCH_CHECK(labels.dim() == 3 && labels.size(0) == scores.size(0) && labels.size(1) == scores.size(2) &&
                      labels.size(2) == scores.size(3),
                  op, ": labels must be (B, H, W) of scores ", shape_text(scores), ", got ", shape_text(labels));
  check_per_class(op, "counts", counts, scores);
}

inline void check_upsampled_loss(const char* op, const Tensor& logits, const Tensor& labels) {
  check_map(op, "logits", logits);
  check_label_map(op, labels, logits);
}

inline void check_upsampled_argmax(const Tensor& logits, int64_t height, int64_t width) {
  check_map("upsampled_argmax", "logits", logits);
  STD_TORCH_CHECK(height > 0 && width > 0, "upsampled_argmax: height and width must be at least 1, got ", height,
                  " and ", width);
}

}  // namespace wilson
