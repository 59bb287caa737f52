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
    : initial_row(given_initial), exact(false) {
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
  Tensor batch_sizes = dense(sizes);
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

  // A recorded call's arrays on the host have room to spare.
  //~ whether to keep
  const bool keeps = keeps_plans() && (exact || !on_host) && !is_capturing(stream);
  const auto derive = [&] {
    return std::make_shared<DerivedLayout>(layout, batch_sizes, last_segments, on_host, place,
                                           stream);
  };
  if (keeps) {
    //~ key
    LayoutKey key{place, stream, layout.num_flat_rows, host_batch_sizes, {}};
    std::vector<Tensor> arrays;
    const auto add = [&](size_t index, const OptionalTensor& array) {
      if (!array) return;
      //~ key of an array
      key.arrays[index] = {array->const_data_ptr(), array->size(0), array->stride(0)};
      //~ held array
      arrays.push_back(*array);
    };
    if (!on_host) add(0, sizes);
    add(1, given_rows);
    add(2, given_reverse);
    add(3, given_initial);
    add(4, final_segment);
    derived = find_layout(key);
    if (!derived) {
      derived = derive();
      keep_layout(key, derived, std::move(arrays));
    }
  } else {
    derived = derive();
  }
  layout.batch_sizes = indices(derived->batch_sizes());
  layout.first_token = indices(derived->first_token());
  layout.final_row = indices(derived->final_row());
  layout.rows = indices(rows);
  layout.reverse = indices(reverse);
  layout.initial_row = indices(initial_row);
}

}  // namespace varlen_rnn::cuda
