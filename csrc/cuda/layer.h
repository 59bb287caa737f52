// A layer's call, checked: what the two paths have in common.
#pragma once

#include "checks.h"
#include "cuda/kernels.h"
#include "cuda/layout_cache.h"
#include "cuda/tensors.h"
#include "op_table.h"

namespace varlen_rnn::cuda {

// The layout on the device. Nothing of it is read here but batch_sizes that lie on the CPU.
struct LayoutTensors {
  OptionalTensor rows, reverse;            // on the device
  Tensor initial_row;                      // on the device
  std::shared_ptr<DerivedLayout> derived;  // null if there is no token
  std::vector<int64_t> host_batch_sizes;   // empty if they are on the device
  bool exact;                              // whether these are the sizes
  DeviceLayout layout{};

  LayoutTensors(const char* op, const Tensor& x, int64_t num_directions, const Tensor& batch_sizes,
                const OptionalTensor& rows, const OptionalTensor& reverse,
                const Tensor& initial_row, const Tensor& final_segment, void* stream);

  bool is_empty() const { return layout.num_tokens == 0; }
};

struct Layer {
  bool is_lstm;
  bool allow_tf32;
  Call call{};
  CheckedInput input;
  LayoutTensors layout;

  int64_t num_gates() const { return is_lstm ? 4 : 3; }
  bool projected() const { return input.weights[0][kWeightHr].has_value(); }
  const Tensor& weight(int64_t d, int kind) const {
    return *input.weights[static_cast<size_t>(d)][static_cast<size_t>(kind)];
  }
  const OptionalTensor& bias_hh(int64_t d) const {
    return input.weights[static_cast<size_t>(d)][kBiasHh];
  }
};

struct ForwardTensors {
  Tensor inputs;  // [N, D * gates * H]: W_ih x and the biases, by token
  OptionalTensor h_0, c_0;
  Tensor out, h_n;
  OptionalTensor c_n, gates, cells;
};

struct BackwardTensors {
  OptionalTensor d_out, d_h_n, d_c_n, d_cells, h_0, c_0;
  Tensor out, gates;
  OptionalTensor cells;
  Tensor d_gates;  // [N, D * 4 * H]
  Tensor d_h_0;
  OptionalTensor d_c_0;
  OptionalTensor d_projected;  // [D, N, P], if there is a projection
};

// persistent_path.cpp: false if this layer has no team on this device; then nothing was done.
bool run_persistent(const Layer& layer, const ForwardTensors& t, int32_t device, void* stream);
bool run_persistent(const Layer& layer, const BackwardTensors& t, int32_t device, void* stream);

// generic_path.cpp
void run_generic(const Layer& layer, const ForwardTensors& t, void* stream);
void run_generic(const Layer& layer, const BackwardTensors& t, void* stream);

}  // namespace varlen_rnn::cuda
