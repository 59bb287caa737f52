// What layout_from_rows checks of its arguments whatever the device: all but their values.
#pragma once

#include <limits>

#include "checks.h"

namespace varlen_rnn {

// The rows of a batch, and where they lie in the flat tensor of R rows.
struct RowArrays {
  int64_t num_rows;        // B
  int64_t num_steps;       // T; R with `first`
  int64_t num_flat_rows;   // R
  OptionalTensor lengths;  // [B], or missing: T each
  OptionalTensor first;    // [B], where rows begin; missing in a padded batch
  OptionalTensor mask;     // [R], bool, or missing
  OptionalTensor resets;   // [R], bool, or missing
  bool batch_first;

  RowArrays(const char* op, const Tensor& positions, const OptionalTensor& given_lengths,
            const OptionalTensor& given_first, const OptionalTensor& given_mask,
            const OptionalTensor& given_resets, bool is_batch_first)
      : batch_first(is_batch_first) {
    const bool is_flat = given_first.has_value();
    STD_TORCH_CHECK(positions.dim() == (is_flat ? 2 : 3), op, ": positions must be ",
                    is_flat ? "[R, 0]" : "[B, T, 0]", ", got ", to_string(positions.sizes()));
    STD_TORCH_CHECK(!is_flat || given_first->dim() == 1, op, ": first must be [B], got ",
                    to_string(given_first->sizes()));
    num_rows = is_flat ? given_first->size(0) : positions.size(0);
    num_steps = positions.size(is_flat ? 0 : 1);
    STD_TORCH_CHECK(num_steps == 0 || num_rows <= std::numeric_limits<int64_t>::max() / num_steps,
                    op, ": B * T must fit 64 bits, got ", num_rows, " and ", num_steps);
    num_flat_rows = is_flat ? num_steps : num_rows * num_steps;
    const Place place(positions);
    const auto checked = [&](const char* name, const OptionalTensor& tensor, ScalarType dtype,
                             const char* symbols, int64_t size) {
      return checked_optional(op, name, tensor, dtype, place, symbols, {size});
    };
    lengths = checked("lengths", given_lengths, ScalarType::Long, "[B]", num_rows);
    first = checked("first", given_first, ScalarType::Long, "[B]", num_rows);
    mask = checked("mask", given_mask, ScalarType::Bool, "[R]", num_flat_rows);
    resets = checked("resets", given_resets, ScalarType::Bool, "[R]", num_flat_rows);
  }
};

}  // namespace varlen_rnn
