#include "cpu/layers.h"

#include <algorithm>
#include <limits>
#include <new>
#include <type_traits>

#include "cpu/dispatch.h"
#include "cpu/work.h"

namespace varlen_rnn {

int64_t LayerSizes::flops(size_t layer) const {
  const int64_t columns = (is_lstm ? 4 : 3) * hidden_size;
  return 2 * columns * ((layer == 0 ? input_size : output_size) + output_size);
}

double LayerSizes::flops(size_t num_layers, int64_t num_tokens) const {
  int64_t token = 0;
  for (size_t layer = 0; layer < num_layers; ++layer) token += flops(layer);
  return static_cast<double>(token) * static_cast<double>(num_tokens);
}

size_t LayerSizes::element() const {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

size_t LayerSizes::cell_element() const { return float_cells ? 4 : element(); }

void LayerRunner::run(const LayerSizes& sizes, const Weights* layers, size_t num_layers,
                      const Rows& rows, const Pool& pool) {
  const int64_t count = rows.count, num_steps = rows.num_steps, num_tokens = count * num_steps;
  if (num_tokens == 0) return;
  const auto steps = static_cast<size_t>(num_steps), tokens = static_cast<size_t>(num_tokens);

  Forward p{};
  Layout& layout = p.call.layout;
  layout.num_rows = rows.num_states;
  layout.num_flat_rows = layout.num_tokens = layout.num_places = num_tokens;
  layout.num_steps = num_steps;
  layout.num_segments = count;
  batch_sizes_.assign(steps, count);
  first_token_.resize(steps);
  for (int64_t t = 0; t < num_steps; ++t) first_token_[static_cast<size_t>(t)] = t * count;
  layout.batch_sizes = batch_sizes_.data();
  layout.first_token = first_token_.data();
  if (!rows.by_step && num_steps > 1 && count > 1) {  // tokens are numbered by step
    flat_rows_.resize(tokens);
    for (int64_t n = 0; n < num_tokens; ++n) {
      flat_rows_[static_cast<size_t>(n)] = n % count * num_steps + n / count;
    }
    layout.rows = flat_rows_.data();
  }
  layout.initial_row = layout.final_row = rows.numbers;

  p.call.dtype = sizes.dtype;
  p.call.hidden_size = sizes.hidden_size;
  p.call.output_size = sizes.output_size;
  p.call.num_directions = 1;
  p.call.barrier_cycles = pool.may_wait ? kBarrierCycles : std::numeric_limits<double>::infinity();
  p.order = sizes.order;
  p.units = sizes.units;
  p.float_cells = sizes.float_cells;
  p.backwards = rows.backwards;

  const auto outputs = static_cast<size_t>(sizes.output_size) * sizes.element();
  const auto num_states = static_cast<size_t>(rows.num_states);
  const size_t h_bytes = num_states * outputs;
  const size_t c_bytes = num_states * static_cast<size_t>(sizes.hidden_size) * sizes.cell_element();
  if (num_layers > 1) {
    for (auto& buffer : between_) {
      if (buffer.size() < tokens * outputs) buffer.resize(tokens * outputs);
    }
  }
  const ForwardKernel kernel = forward_kernel(sizes.is_lstm, sizes.order);
  const auto layer_of = [](auto* states, size_t layer, size_t bytes) {
    using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(states)>>,
                                    const char, char>;
    return states == nullptr ? nullptr : static_cast<Byte*>(states) + layer * bytes;
  };
  const auto begin = [&](size_t layer) {
    p.call.input_size = layer == 0 ? sizes.input_size : sizes.output_size;
    p.call.num_workers =
        num_workers(static_cast<double>(sizes.flops(layer)) * static_cast<double>(num_tokens),
                    static_cast<double>(count), pool.num_threads);
    p.call.parallel_for = p.call.num_workers > 1 ? pool.parallel_for : serial_for;
    p.weights[0] = layers[layer];
  };
  // Before any layer changes a state; all but the first are alike.
  size_t scratch_bytes = 0;
  for (size_t layer = 0; layer < num_layers && layer < 2; ++layer) {
    begin(layer);
    scratch_bytes = std::max(scratch_bytes, kernel.scratch(p));
  }
  p.call.scratch = scratch(scratch_bytes);
  for (size_t layer = 0; layer < num_layers; ++layer) {
    begin(layer);
    p.x = layer == 0 ? rows.x : between_[(layer - 1) % 2].data();
    p.x_stride = p.call.input_size;
    p.out = layer + 1 == num_layers ? rows.out : between_[layer % 2].data();
    p.h_0 = layer_of(rows.h_0, layer, h_bytes);
    p.h_n = layer_of(rows.h_n, layer, h_bytes);
    p.c_0 = layer_of(rows.c_0, layer, c_bytes);
    p.c_n = layer_of(rows.c_n, layer, c_bytes);
    kernel.run(p);
  }
}

void* LayerRunner::scratch(size_t bytes) {
  if (!is_kept_) {
    scratch_.reset();
    return scratch_.emplace(bytes).data();
  }
  if (bytes > own_bytes_) {
    own_bytes_ = 0;
    own_scratch_.reset(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
    if (own_scratch_ == nullptr) throw std::bad_alloc();
    own_bytes_ = bytes;
  }
  return own_scratch_.get();
}

}  // namespace varlen_rnn
