// What kernels with int8 weights and those who check their arguments know alike.
#pragma once

#include <cstdint>

namespace varlen_rnn {

inline constexpr int64_t kInt8Units = 16;  // of a group: a block of a gate's weights
inline constexpr int64_t kInt8Max = 127;   // of a weight
// Of an activation: 256 * 127 + 127, the largest number of 16 bits made of two signed bytes, which
// is what some instruction sets multiply.
inline constexpr int64_t kActivationMax = 32639;

// The largest quantised value of an activation: the sum of K products fits into 32 bits.
inline int64_t activation_max(int64_t K) {
  const int64_t most = INT32_MAX / kInt8Max / K;
  return most < kActivationMax ? most : kActivationMax;
}

}  // namespace varlen_rnn
