// What every op on CPU tensors does around its kernel: check the layout, bring results to their first
// values, and run on as many workers as the work is worth.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include "checks.h"
#include "cpu/dispatch.h"
#include "cpu/scratch.h"
#include "cpu/work.h"
#include "op_table.h"

namespace varlen_rnn {

inline constexpr int64_t kMinimalBytes = 1 << 18;  // of zeros, that are worth a thread

// The layout's arrays, checked and contiguous, and what the kernels read of them.
struct CheckedLayout {
  Place place;
  TensorList keep;  // owners of the layout's pointers
  std::optional<HostSteps> steps;
  std::vector<char>
      is_token;  // of each flat row, whether it is no padding; empty if all are tokens
  std::vector<int64_t> final_row;  // [G]
  Layout layout{};

  // Of each number below `bound` whether it is among `values`, where none may be twice.
  std::vector<char> distinct(const char* op, const char* name, const int64_t* values,
                             int64_t bound) const {
    std::vector<char> found(static_cast<size_t>(bound), 0);
    for (int64_t n = 0; n < layout.num_tokens; ++n) {
      STD_TORCH_CHECK(!found[values[n]], op, ": ", name, " must not repeat, got ", values[n],
                      " again at index ", n);
      found[values[n]] = 1;
    }
    return found;
  }

  // The first `size` elements of an array, which is no longer than that if the layout is exact.
  const int64_t* array(const char* op, const char* name, const Tensor& tensor, const char* symbols,
                       int64_t size, int64_t lowest, int64_t bound) {
    check_dtype(op, name, tensor, ScalarType::Long);
    check_place(op, name, tensor, place);
    if (steps->at_capacity) {
      check_longer(op, name, tensor, symbols, size);
    } else {
      check_shape(op, name, tensor, symbols, {size});
    }
    keep.push_back(dense(tensor));
    const int64_t* values = keep.back().const_data_ptr<int64_t>();
    for (int64_t i = 0; i < size; ++i) {
      STD_TORCH_CHECK(values[i] >= lowest && values[i] < bound, op, ": ", name, " must be in [",
                      lowest, ", ", bound, "), got ", values[i], " at index ", i);
    }
    return values;
  }

  // The row that each segment is the last one of, from the segment that each row ends with.
  void find_final_rows(const char* op, const Tensor& final_segment) {
    const int64_t* segments =
        array(op, "final_segment", final_segment, "[B]", layout.num_rows, -1, layout.num_segments);
    final_row.assign(static_cast<size_t>(layout.num_segments), -1);
    for (int64_t b = 0; b < layout.num_rows; ++b) {
      if (segments[b] < 0) continue;
      int64_t& row = final_row[static_cast<size_t>(segments[b])];
      STD_TORCH_CHECK(row < 0, op, ": final_segment must not repeat, got ", segments[b],
                      " again at index ", b);
      row = b;
    }
    layout.final_row = final_row.data();
  }

  CheckedLayout(const char* op, Place on, int64_t num_flat_rows, int64_t num_directions,
                const Tensor& batch_sizes, const OptionalTensor& rows,
                const OptionalTensor& reverse, const Tensor& initial_row,
                const Tensor& final_segment)
      : place(on) {
    STD_TORCH_CHECK(final_segment.dim() == 1, op, ": final_segment must be [B], got ",
                    to_string(final_segment.sizes()));
    STD_TORCH_CHECK(!rows.has_value() || rows->dim() == 1, op, ": rows must be [N], got ",
                    to_string(rows->sizes()));
    STD_TORCH_CHECK(batch_sizes.dim() == 1, op, ": batch_sizes must be [S], got ",
                    to_string(batch_sizes.sizes()));
    check_dtype(op, "batch_sizes", batch_sizes, ScalarType::Long);
    check_place(op, "batch_sizes", batch_sizes, place);
    layout.num_rows = final_segment.numel();
    layout.num_flat_rows = num_flat_rows;
    layout.num_places = rows.has_value() ? rows->numel() : num_flat_rows;
    steps.emplace(op, dense(batch_sizes), layout.num_places);
    layout.num_tokens = steps->num_tokens;
    layout.num_steps = steps->num_steps();
    layout.num_segments = steps->num_segments();
    layout.batch_sizes = steps->batch_sizes.data();
    layout.first_token = steps->first_token.data();
    if (rows.has_value()) {
      layout.rows = array(op, "rows", *rows, "[N]", layout.num_tokens, 0, num_flat_rows);
      is_token = distinct(op, "rows", layout.rows, num_flat_rows);
    } else if (layout.num_tokens < num_flat_rows) {
      is_token.assign(static_cast<size_t>(num_flat_rows), 0);
      std::fill_n(is_token.begin(), layout.num_tokens, 1);
    }
    STD_TORCH_CHECK(reverse.has_value() || num_directions == 1, op,
                    ": reverse must be [N] for two directions, got None");
    if (reverse.has_value()) {
      layout.reverse =
          array(op, "reverse", *reverse, "[N]", layout.num_tokens, 0, layout.num_tokens);
      distinct(op, "reverse", layout.reverse, layout.num_tokens);
    }
    layout.initial_row =
        array(op, "initial_row", initial_row, "[G]", layout.num_segments, -1, layout.num_rows);
    find_final_rows(op, final_segment);
  }
};

// Runs a kernel on as many workers as its work is worth.
template <class Params>
void run_kernel(Params& p, double flops, size_t (*scratch)(const Params&),
                void (*kernel)(const Params&)) {
  p.call.num_workers = num_workers(
      flops,
      static_cast<double>(p.call.layout.num_tokens) / static_cast<double>(p.call.layout.num_steps),
      torch::stable::get_num_threads());
  p.call.barrier_cycles =
      workers_may_wait() ? kBarrierCycles : std::numeric_limits<double>::infinity();
  p.call.parallel_for = p.call.num_workers > 1 ? parallel_for : serial_for;
  const Scratch memory(scratch(p));
  p.call.scratch = memory.data();
  kernel(p);
}

// Flat rows that no token points at: padding. Kernels write the others.
inline void zero_padding(const CheckedLayout& checked, const Tensor& out) {
  const Layout& layout = checked.layout;
  const std::vector<char>& is_token = checked.is_token;
  if (layout.num_tokens == layout.num_flat_rows) return;
  const int64_t bytes = out.size(1) * static_cast<int64_t>(out.element_size());
  char* data = static_cast<char*>(out.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(1, kMinimalBytes / bytes);
  torch::stable::parallel_for(0, layout.num_flat_rows, grain, [&](int64_t begin, int64_t end) {
    const auto last = is_token.begin() + end;
    for (auto row = is_token.begin() + begin; row != last;) {
      const auto padding = std::find(row, last, 0), token = std::find(padding, last, 1);
      std::memset(data + (padding - is_token.begin()) * bytes, 0,
                  static_cast<size_t>((token - padding) * bytes));
      row = token;
    }
  });
}

// States [D, B, *] that kernels write only in part: every row begins as `from`, or as zeros without
// it.
inline Tensor states_like(const Tensor& like, const OptionalTensor& from,
                          std::initializer_list<int64_t> shape) {
  const Tensor states = new_unfilled(like, shape);
  const size_t bytes = static_cast<size_t>(states.numel()) * states.element_size();
  if (from.has_value()) {
    std::memcpy(states.mutable_data_ptr(), from->const_data_ptr(), bytes);
  } else {
    std::memset(states.mutable_data_ptr(), 0, bytes);
  }
  return states;
}

// The forward pass of a layer whose input `x`, with columns side by side, and weights are checked: `p`
// has its dtype, sizes and weights. Checks the layout and the states, and runs.
inline ForwardResult forward_of_layer(const char* op, int64_t num_gates, bool training, Forward& p,
                                      const Tensor& x, const OptionalTensor& h_0,
                                      const OptionalTensor& c_0, const Tensor& batch_sizes,
                                      const OptionalTensor& rows, const OptionalTensor& reverse,
                                      const Tensor& initial_row, const Tensor& final_segment) {
  const bool is_lstm = num_gates == 4;
  const ScalarType dtype = x.scalar_type();
  const Place place(x);
  Call& call = p.call;
  const int64_t D = call.num_directions, H = call.hidden_size, P = call.output_size;
  const CheckedLayout checked(op, place, x.size(0), D, batch_sizes, rows, reverse, initial_row,
                              final_segment);
  call.layout = checked.layout;
  const int64_t B = call.layout.num_rows;
  const OptionalTensor h = checked_optional(op, "h_0", h_0, dtype, place, "[D, B, P]", {D, B, P});
  const OptionalTensor c = checked_optional(op, "c_0", c_0, dtype, place, "[D, B, H]", {D, B, H});

  ForwardResult result{
      torch::stable::new_empty(x, {x.size(0), D * P}), states_like(x, h, {D, B, P}), {}, {}, {}};
  if (is_lstm) result.c_n = states_like(x, c, {D, B, H});
  if (training) {
    const ScalarType compute = compute_dtype(dtype);
    const int64_t places = call.layout.num_places;
    result.gates = torch::stable::new_empty(x, {D, places, 4 * H}, compute);
    if (is_lstm) result.cells = torch::stable::new_empty(x, {D, places, H}, compute);
    use_huge_pages(result.gates->mutable_data_ptr(),
                   static_cast<size_t>(result.gates->numel()) * result.gates->element_size());
  }

  p.x = x.const_data_ptr();
  p.x_stride = x.stride(0);
  p.h_0 = pointer(h);
  p.c_0 = pointer(c);
  p.out = result.out.mutable_data_ptr();
  p.h_n = result.h_n.mutable_data_ptr();
  if (result.c_n) p.c_n = result.c_n->mutable_data_ptr();
  if (result.gates) p.gates = result.gates->mutable_data_ptr();
  if (result.cells) p.cells = result.cells->mutable_data_ptr();
  zero_padding(checked, result.out);
  if (call.layout.num_tokens == 0) return result;

  const double flops = 2.0 * static_cast<double>(call.layout.num_tokens * D * num_gates * H) *
                       static_cast<double>(call.input_size + P);
  const ForwardKernel kernel = forward_kernel(is_lstm, p.order);
  run_kernel(p, flops, kernel.scratch, kernel.run);
  return result;
}

}  // namespace varlen_rnn
