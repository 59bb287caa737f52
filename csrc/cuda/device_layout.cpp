// The op layout_from_rows on the device: arrays as large as they may have to be, for nobody waits for
// a length.
#include <algorithm>
#include <tuple>

#include "cuda/kernels.h"
#include "cuda/tensors.h"
#include "layout_arguments.h"

namespace varlen_rnn::cuda {
namespace {

// How many elements of scratch the kernels want; with memory, gives every array its part.
int64_t for_scratch(DeviceRows& p, const Tensor* memory) {
  int64_t used = 0;
  const auto part = [&](int64_t*& array, int64_t count, bool wanted = true) {
    if (!wanted) return;
    if (memory != nullptr) array = static_cast<int64_t*>(device_part(*memory, used, count));
    used += count;
  };
  const bool masked = p.mask != nullptr, resets = p.resets != nullptr;
  const int64_t B = p.num_rows, R = p.num_flat_rows, segments = resets ? R : B;
  part(p.totals, 3);
  part(p.first_token, p.num_steps);
  part(p.length_of_segment, segments);
  part(p.order, segments);
  part(p.other_order, segments);
  part(p.tokens_of_row, B, masked || resets);
  part(p.tokens, R, masked);
  part(p.starts, R, resets);
  part(p.segments_of_row, B, resets);
  part(p.first_segment, B, resets);
  part(p.begins_anew, B, resets);
  part(p.row_of_segment, R, resets);
  part(p.start_of_segment, R, resets);
  return used;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layout_from_rows(
    const Tensor& positions, const OptionalTensor& lengths, const OptionalTensor& first,
    const OptionalTensor& mask, const OptionalTensor& resets, bool batch_first, bool bidirectional,
    bool /*at_capacity: always*/) {
  const RowArrays given("varlen_rnn::layout_from_rows", positions, lengths, first, mask, resets,
                        batch_first);
  const Place place(positions);
  const OnDevice device(place.index);
  const auto indices = [&](int64_t size) {
    return unfilled(place, aoti_torch_dtype_int64(), {size});
  };
  DeviceRows p{};
  p.num_rows = given.num_rows;
  p.num_steps = given.num_steps;
  p.num_flat_rows = given.num_flat_rows;
  // Without resets every row is one segment at most.
  p.num_segments =
      given.resets ? given.num_flat_rows : std::min(given.num_rows, given.num_flat_rows);
  p.batch_first = batch_first;
  p.lengths = static_cast<const int64_t*>(device_pointer(given.lengths));
  p.first = static_cast<const int64_t*>(device_pointer(given.first));
  if (given.num_flat_rows > 0) {
    p.mask = static_cast<const uint8_t*>(device_pointer(given.mask));
    p.resets = static_cast<const uint8_t*>(device_pointer(given.resets));
  }
  const auto out = [](const Tensor& tensor) {
    return static_cast<int64_t*>(device_pointer(tensor));
  };
  const Tensor batch_sizes = indices(p.num_steps), rows = indices(p.num_flat_rows);
  const Tensor reverse = indices(bidirectional ? p.num_flat_rows : 0);
  const Tensor initial_row = indices(p.num_segments), final_segment = indices(p.num_rows);
  p.batch_sizes = out(batch_sizes);
  p.rows = out(rows);
  if (bidirectional) p.reverse = out(reverse);
  p.initial_row = out(initial_row);
  p.final_segment = out(final_segment);
  const Tensor memory = indices(for_scratch(p, nullptr));
  for_scratch(p, &memory);
  make_device_layout(p, device.stream());
  return {batch_sizes, rows, reverse, initial_row, final_segment};
}

}  // namespace

#ifdef VARLEN_RNN_EMULATE
STABLE_TORCH_LIBRARY_IMPL(varlen_rnn_emulated, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(varlen_rnn, CUDA, m) {
#endif
  m.impl("layout_from_rows", TORCH_BOX(&layout_from_rows));
}

}  // namespace varlen_rnn::cuda
