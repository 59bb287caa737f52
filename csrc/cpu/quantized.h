// The structs of layers with int8 weights; see params.h for the legend and for what they share with
// others.
//
// Columns, the rows of weight_ih and weight_hh, come in groups of 16 units: all gates of the first
// 16 units, 16 columns each, then those of the next. U groups hold H units, padded with zeros.
// Weights are [U, gates, K / 2, 16, 2], K padded to an even number: what one instruction multiplies
// lies side by side, whatever the instruction set.
#pragma once

#include "params.h"

namespace varlen_rnn {

inline constexpr int64_t kQuantizedUnits = 16;  // of a group
inline constexpr int64_t kQuantizedMax = 127;   // of a weight
// Of an activation: 256 * 127 + 127, the largest number of 16 bits made of two signed bytes, which
// is what some instruction sets multiply.
inline constexpr int64_t kQuantizedActivationMax = 32639;

// The largest quantised value of an activation: the sum of K products fits into 32 bits.
inline int64_t quantized_activation_max(int64_t K) {
  const int64_t most = INT32_MAX / kQuantizedMax / K;
  return most < kQuantizedActivationMax ? most : kQuantizedActivationMax;
}

struct QuantizedWeights {
  const int8_t* weight_ih;  // [U, gates, ceil(I / 2), 16, 2]  in
  const int8_t* weight_hh;  // [U, gates, ceil(H / 2), 16, 2]  in
  const float* scale_ih;    // [U, gates, 16]                  in: a weight is scale * int8
  const float* scale_hh;    // [U, gates, 16]                  in
  const float* bias_ih;     // [U, gates, 16]                  in
  const float* bias_hh;     // [U, gates, 16]                  in
};

struct QuantizedForward {
  Call call;                    // all float32; the output size is H
  QuantizedWeights weights[2];  // one for each direction
  const float* x;               // [R, I]      in; rows that no token points at are never read
  int64_t x_stride;             //             elements from one row of x to the next
  const float* h_0;             // [D, B, H]   in, or null for zeros
  const float* c_0;             // [D, B, H]   in, or null for zeros (always null for GRU)
  float* out;                   // [R, D * H]  out; only the tokens' rows are written
  float* h_n;                   // [D, B, H]   out; only the segments' final rows are written
  float* c_n;                   // [D, B, H]   out; the same (null for GRU)
};

// Of one instruction set, as Kernels.
struct QuantizedKernels {
  size_t (*lstm_scratch)(const QuantizedForward&);
  void (*lstm)(const QuantizedForward&);
  size_t (*gru_scratch)(const QuantizedForward&);
  void (*gru)(const QuantizedForward&);
};

}  // namespace varlen_rnn
