// What the raw ops of every device refuse. The public functions have checked more, and say more.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "common.h"

namespace wilson {

// Kernels trust their arguments, and a caller of the raw ops may hand over anything: refuse what would read outside.
inline void check_scores(const char* op, const Tensor& scores) {
  STD_TORCH_CHECK(scores.dim() == 4, op, ": scores must be (B, C, H, W), got ", scores.dim(), " dimensions");
  STD_TORCH_CHECK(scores.size(1) > 0 && scores.size(2) > 0 && scores.size(3) > 0, op,
                  ": scores must have C, H and W of at least 1");
}

inline void check_same_grid(const char* op, const char* name, const Tensor& tensor, const Tensor& like) {
  STD_TORCH_CHECK(tensor.size(0) == like.size(0) && tensor.size(2) == like.size(2) && tensor.size(3) == like.size(3),
                  op, ": ", name, " must have the batch, height and width of the scores");
}

inline void check_image_labels(const char* op, const Tensor& labels, const Tensor& scores) {
  STD_TORCH_CHECK(labels.dim() == 2 && labels.size(0) == scores.size(0) && labels.size(1) == scores.size(1) - 1, op,
                  ": image_labels must be (B, C-1)");
}

inline void check_per_class(const char* op, const char* name, const Tensor& tensor, const Tensor& scores) {
  STD_TORCH_CHECK(tensor.dim() == 2 && tensor.size(0) == scores.size(0) && tensor.size(1) == scores.size(1) &&
                      tensor.scalar_type() == acc_dtype(scores.scalar_type()),
                  op, ": ", name, " must be (B, C), float64 for float64 scores, else float32");
}

inline void check_old_logits(const char* op, const Tensor& old_logits, const Tensor& scores) {
  check_scores(op, scores);
  check_scores(op, old_logits);
  check_same_grid(op, "old_logits", old_logits, scores);
  STD_TORCH_CHECK(old_logits.size(1) <= scores.size(1), op, ": old_logits has more classes than the scores");
}

inline void check_targets(const char* op, const Tensor& logits, const Tensor& targets,
                          const std::optional<Tensor>& weight) {
  check_scores(op, logits);
  check_scores(op, targets);
  check_same_grid(op, "targets", targets, logits);
  STD_TORCH_CHECK(targets.size(1) == logits.size(1), op, ": targets must have the classes of logits");
  STD_TORCH_CHECK(!weight || (weight->dim() == 1 && weight->size(0) == logits.size(0)), op,
                  ": image_weight must be (B,)");
}

inline void check_pseudo_labels(const char* op, const Tensor& scores, const Tensor& old_logits,
                                const Tensor& image_labels) {
  check_old_logits(op, old_logits, scores);
  check_image_labels(op, image_labels, scores);
}

inline void check_pamr(const Tensor& image, const Tensor& mask, int64_t iterations,
                       const std::vector<int64_t>& dilations) {
  check_scores("pamr", image);
  check_scores("pamr", mask);
  STD_TORCH_CHECK(image.size(1) == 3 && image.size(0) == mask.size(0), "pamr: image must be (B, 3, H, W)");
  STD_TORCH_CHECK(iterations > 0 && !dilations.empty() && *std::min_element(dilations.begin(), dilations.end()) > 0,
                  "pamr: iterations and dilations must be at least 1");
}

inline void check_balanced(const char* op, const Tensor& scores, const Tensor& labels, const Tensor& counts,
                           const Tensor& image_labels) {
  check_scores(op, scores);
  check_image_labels(op, image_labels, scores);
  STD_TORCH_CHECK(labels.dim() == 3 && labels.size(0) == scores.size(0) && labels.size(1) == scores.size(2) &&
                      labels.size(2) == scores.size(3),
                  op, ": labels must be (B, H, W)");
  STD_TORCH_CHECK(counts.dim() == 2 && counts.size(0) == scores.size(0) && counts.size(1) == scores.size(1), op,
                  ": counts must be (B, C)");
}

inline void check_label_map(const char* op, const Tensor& logits, const Tensor& labels) {
  check_scores(op, logits);
  STD_TORCH_CHECK(labels.dim() == 3 && labels.size(0) == logits.size(0) && labels.size(1) > 0 && labels.size(2) > 0, op,
                  ": labels must be (B, H', W')");
}

}  // namespace wilson
