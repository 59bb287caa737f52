// The ops of either cell with their arguments in the order of library.cpp, for any device.
#pragma once

#include <tuple>
#include <vector>

#include "checks.h"

namespace varlen_rnn {

// A forward pass of either cell; c_n and cells are there for LSTM only.
struct ForwardResult {
  Tensor out, h_n;
  OptionalTensor c_n, gates, cells;
};

// A backward pass of either cell; d_c_0 is there for LSTM only. Gradients that are not wanted, or of
// weights that are not there, have no elements; those of biases are there without a bias, too.
struct BackwardResult {
  Tensor d_x, d_h_0;
  OptionalTensor d_c_0;
  std::vector<std::vector<Tensor>> d_weights;  // by direction; kinds as in WeightTensors
};

// What a device brings: `Device::forward` and `Device::backward`.

template <class Device, bool training>
auto lstm(const Tensor& x, const OptionalTensor& h_0, const OptionalTensor& c_0,
          const Tensor& weight_ih, const Tensor& weight_hh, const OptionalTensor& bias_ih,
          const OptionalTensor& bias_hh, const OptionalTensor& weight_hr,
          const OptionalTensor& weight_ih_reverse, const OptionalTensor& weight_hh_reverse,
          const OptionalTensor& bias_ih_reverse, const OptionalTensor& bias_hh_reverse,
          const OptionalTensor& weight_hr_reverse, const Tensor& batch_sizes,
          const OptionalTensor& rows, const OptionalTensor& reverse, const Tensor& initial_row,
          const Tensor& final_segment, bool allow_tf32) {
  const WeightTensors weights = {{{weight_ih, weight_hh, bias_ih, bias_hh, weight_hr},
                                  {weight_ih_reverse, weight_hh_reverse, bias_ih_reverse,
                                   bias_hh_reverse, weight_hr_reverse}}};
  const char* op = training ? "varlen_rnn::lstm_forward" : "varlen_rnn::lstm_inference";
  ForwardResult r = Device::forward(op, 4, training, x, h_0, c_0, weights, batch_sizes, rows,
                                    reverse, initial_row, final_segment, allow_tf32);
  if constexpr (training) {
    return std::make_tuple(r.out, r.h_n, *r.c_n, *r.cells, *r.gates);
  } else {
    return std::make_tuple(r.out, r.h_n, *r.c_n);
  }
}

template <class Device>
auto lstm_backward(const OptionalTensor& d_out, const OptionalTensor& d_h_n,
                   const OptionalTensor& d_c_n, const OptionalTensor& d_cells, const Tensor& x,
                   const OptionalTensor& h_0, const OptionalTensor& c_0, const Tensor& weight_ih,
                   const Tensor& weight_hh, const OptionalTensor& weight_hr,
                   const OptionalTensor& weight_ih_reverse, const OptionalTensor& weight_hh_reverse,
                   const OptionalTensor& weight_hr_reverse, const Tensor& batch_sizes,
                   const OptionalTensor& rows, const OptionalTensor& reverse,
                   const Tensor& initial_row, const Tensor& final_segment, bool allow_tf32,
                   const Tensor& out, const Tensor& gates, const Tensor& cells, bool needs_x,
                   bool needs_weights) {
  const WeightTensors weights = {
      {{weight_ih, weight_hh, {}, {}, weight_hr},
       {weight_ih_reverse, weight_hh_reverse, {}, {}, weight_hr_reverse}}};
  BackwardResult r =
      Device::backward("varlen_rnn::lstm_backward", 4, d_out, d_h_n, d_c_n, d_cells, x, h_0, c_0,
                       weights, batch_sizes, rows, reverse, initial_row, final_segment, allow_tf32,
                       out, gates, cells, needs_x, needs_weights);
  const std::vector<Tensor>&f = r.d_weights[0], &b = r.d_weights[1];
  return std::make_tuple(r.d_x, r.d_h_0, *r.d_c_0, f[0], f[1], f[2], f[3], f[4], b[0], b[1], b[2],
                         b[3], b[4]);
}

template <class Device, bool training>
auto gru(const Tensor& x, const OptionalTensor& h_0, const Tensor& weight_ih,
         const Tensor& weight_hh, const OptionalTensor& bias_ih, const OptionalTensor& bias_hh,
         const OptionalTensor& weight_ih_reverse, const OptionalTensor& weight_hh_reverse,
         const OptionalTensor& bias_ih_reverse, const OptionalTensor& bias_hh_reverse,
         const Tensor& batch_sizes, const OptionalTensor& rows, const OptionalTensor& reverse,
         const Tensor& initial_row, const Tensor& final_segment, bool allow_tf32) {
  const WeightTensors weights = {
      {{weight_ih, weight_hh, bias_ih, bias_hh, {}},
       {weight_ih_reverse, weight_hh_reverse, bias_ih_reverse, bias_hh_reverse, {}}}};
  const char* op = training ? "varlen_rnn::gru_forward" : "varlen_rnn::gru_inference";
  ForwardResult r = Device::forward(op, 3, training, x, h_0, {}, weights, batch_sizes, rows,
                                    reverse, initial_row, final_segment, allow_tf32);
  if constexpr (training) {
    return std::make_tuple(r.out, r.h_n, *r.gates);
  } else {
    return std::make_tuple(r.out, r.h_n);
  }
}

template <class Device>
auto gru_backward(const OptionalTensor& d_out, const OptionalTensor& d_h_n, const Tensor& x,
                  const OptionalTensor& h_0, const Tensor& weight_ih, const Tensor& weight_hh,
                  const OptionalTensor& weight_ih_reverse, const OptionalTensor& weight_hh_reverse,
                  const Tensor& batch_sizes, const OptionalTensor& rows,
                  const OptionalTensor& reverse, const Tensor& initial_row,
                  const Tensor& final_segment, bool allow_tf32, const Tensor& out,
                  const Tensor& gates, bool needs_x, bool needs_weights) {
  const WeightTensors weights = {
      {{weight_ih, weight_hh, {}, {}, {}}, {weight_ih_reverse, weight_hh_reverse, {}, {}, {}}}};
  BackwardResult r = Device::backward(
      "varlen_rnn::gru_backward", 3, d_out, d_h_n, {}, {}, x, h_0, {}, weights, batch_sizes, rows,
      reverse, initial_row, final_segment, allow_tf32, out, gates, {}, needs_x, needs_weights);
  const std::vector<Tensor>&f = r.d_weights[0], &b = r.d_weights[1];
  return std::make_tuple(r.d_x, r.d_h_0, f[0], f[1], f[2], f[3], b[0], b[1], b[2], b[3]);
}

template <class Device, class Library>
void implement(Library& m) {
  m.impl("lstm_inference", TORCH_BOX((&lstm<Device, false>)));
  m.impl("lstm_forward", TORCH_BOX((&lstm<Device, true>)));
  m.impl("lstm_backward", TORCH_BOX((&lstm_backward<Device>)));
  m.impl("gru_inference", TORCH_BOX((&gru<Device, false>)));
  m.impl("gru_forward", TORCH_BOX((&gru<Device, true>)));
  m.impl("gru_backward", TORCH_BOX((&gru_backward<Device>)));
}

}  // namespace varlen_rnn
