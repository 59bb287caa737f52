// A layout's tensors, checked as far as that needs no value of the device's.
#include "cuda/layer.h"
#include "cuda/settings.h"

namespace varlen_rnn::cuda {
namespace {

Tensor checked_indices(const char* op, const char* name, const Tensor& tensor, Place place,
                       const char* symbols, int64_t size) {
  check_dtype(op, name, tensor, ScalarType::Long);
  check_place(op, name, tensor, place);
  check_shape(op, name, tensor, symbols, {size});
  return dense(tensor);
}

bool is_on_host(const Tensor& tensor) {
#ifdef VARLEN_RNN_EMULATE
  if (settings().layouts_on_device) return false;
#endif
  return Place(tensor).is_cpu();
}

const int64_t* indices(const OptionalTensor& tensor) {
  return static_cast<const int64_t*>(device_pointer(tensor));
}

}  // namespace

LayoutTensors::LayoutTensors(const char* op, const Tensor& x, int64_t num_directions,
                             const Tensor& sizes, const OptionalTensor& given_rows,
                             const OptionalTensor& given_reverse, const Tensor& given_initial,
                             const Tensor& final_segment, void* stream)
    : batch_sizes(sizes),
      first_token(sizes),
      initial_row(given_initial),
      final_row(given_initial),
      exact(false) {
  const Place place(x);
  const bool on_host = is_on_host(sizes);
  layout.num_flat_rows = x.size(0);
  STD_TORCH_CHECK(final_segment.dim() == 1, op, ": final_segment must be [B], got ",
                  to_string(final_segment.sizes()));
  layout.num_rows = final_segment.numel();
  STD_TORCH_CHECK(!given_rows || given_rows->dim() == 1, op, ": rows must be [N], got ",
                  to_string(given_rows->sizes()));
  layout.num_tokens = given_rows ? given_rows->numel() : x.size(0);
  STD_TORCH_CHECK(sizes.dim() == 1, op, ": batch_sizes must be [S], got ",
                  to_string(sizes.sizes()));
  check_dtype(op, "batch_sizes", sizes, ScalarType::Long);
  if (!on_host) check_place(op, "batch_sizes", sizes, place);
  // A graph would copy from where the array no longer is.
  STD_TORCH_CHECK(
      !on_host || !is_capturing(stream), op,
      ": lengths must be on the device while a CUDA graph is captured (and a PackedSequence "
      "has none there), got cpu");
  batch_sizes = dense(sizes);
  layout.num_steps = batch_sizes.numel();
  if (given_rows) {
    rows = checked_indices(op, "rows", *given_rows, place, "[N]", layout.num_tokens);
  }
  STD_TORCH_CHECK(given_reverse.has_value() || num_directions == 1, op,
                  ": reverse must be [N] for two directions, got None");
  if (given_reverse) {
    reverse = checked_indices(op, "reverse", *given_reverse, place, "[N]", layout.num_tokens);
  }
  STD_TORCH_CHECK(initial_row.dim() == 1, op, ": initial_row must be [G], got ",
                  to_string(initial_row.sizes()));
  layout.num_segments = initial_row.numel();
  if (on_host) {
    HostSteps steps(op, batch_sizes, layout.num_tokens);
    exact = !steps.at_capacity;
    layout.num_steps = steps.num_steps();
    layout.num_segments = steps.num_segments();
    host_batch_sizes = std::move(steps.batch_sizes);
    batch_sizes = slice(batch_sizes, 0, 0, layout.num_steps);
    if (steps.at_capacity) {
      check_longer(op, "initial_row", initial_row, "[G]", layout.num_segments);
      initial_row = slice(initial_row, 0, 0, layout.num_segments);
    }
  }
  initial_row = checked_indices(op, "initial_row", initial_row, place, "[G]", layout.num_segments);
  const Tensor last_segments =
      checked_indices(op, "final_segment", final_segment, place, "[B]", layout.num_rows);
  if (layout.num_steps == 0 || layout.num_segments == 0) layout.num_tokens = 0;
  if (is_empty()) return;

  if (on_host) {
    const Tensor on_device = torch::stable::new_empty(initial_row, {layout.num_steps});
    Tensor to = on_device;
    torch::stable::copy_(to, batch_sizes, /*non_blocking=*/true);
    batch_sizes = on_device;
  }
  first_token = torch::stable::new_zeros(batch_sizes, {layout.num_steps + 1});
  Tensor sums = slice(first_token, 0, 1, layout.num_steps);
  torch::stable::copy_(sums, cumsum(batch_sizes));
  layout.batch_sizes = indices(batch_sizes);
  layout.first_token = indices(first_token);
  layout.rows = indices(rows);
  layout.reverse = indices(reverse);
  layout.initial_row = indices(initial_row);
  final_row = torch::stable::new_empty(initial_row, {layout.num_segments});
  torch::stable::fill_(final_row, -1);
  int64_t* rows_of_segments = static_cast<int64_t*>(device_pointer(final_row));
  layout.final_row = rows_of_segments;
  find_final_rows(indices(last_segments), layout.num_rows, layout.num_segments, rows_of_segments,
                  stream);
}

}  // namespace varlen_rnn::cuda
