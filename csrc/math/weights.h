// What an image or a class weighs in the losses.
#pragma once

#include <cstdint>

#include "math/compiler.h"

namespace wilson {

constexpr double kImageWeightEps = 1e-5;  // keeps the weighted mean over images finite when no image counts

// What the loss of an image, a sum over its P pixels, is multiplied by: g / (sum g + 1e-5) / P with weights g of the
// images (published code of arXiv 2112.01882).
template <class acc>
WILSON_HOST_DEVICE acc image_factor(acc weight, acc sum_of_weights, acc pixels) {
  return weight / (sum_of_weights + static_cast<acc>(kImageWeightEps)) / pixels;
}

// The same without weights: 1 / (B P).
template <class acc>
WILSON_HOST_DEVICE acc image_factor(acc pixels_of_all) {
  return acc(1) / pixels_of_all;
}

// w_c = (n - n_c) / (1 + n) of the balanced loss, with n_c confident pixels of class c and n of all classes (published
// code of arXiv 2112.01882).
template <class acc>
WILSON_HOST_DEVICE acc class_weight(int64_t pixels_of_class, int64_t pixels_of_all) {
  return static_cast<acc>(pixels_of_all - pixels_of_class) / static_cast<acc>(1 + pixels_of_all);
}

// An image counts in the balanced loss if it has confident pixels of as many classes as it should show, which are the
// background and the labelled ones: if this, summed over its classes, is 0.
WILSON_HOST_DEVICE int missing_class(bool shown, int64_t pixels_of_class) { return shown - (pixels_of_class > 0); }

}  // namespace wilson
