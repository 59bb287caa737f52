// A call's weights in the order in which kernels read them.
#pragma once

#include "problem.h"

namespace varlen_rnn {

// A call's weights packed in blocks of some units, as varlen_rnn/ops/packed.py has them: every array
// exactly as large as the kernels may read.
struct Packed {
  WeightOrder order;
  int64_t units;
  Tensor weight_ih[2], weight_hh[2], bias_ih[2], bias_hh[2], weight_hr[2];

  Packed(const Problem& q, int64_t units_of_a_block, bool pairs)
      : order(pairs ? WeightOrder::kBFloat16Pairs : WeightOrder::kPacked), units(units_of_a_block) {
    for (int64_t d = 0; d < q.D; ++d) {
      weight_ih[d] = matrix(q, q.weight_ih[d], q.I, pairs);
      weight_hh[d] = matrix(q, q.weight_hh[d], q.P, pairs);
      bias_ih[d] = matrix(q, q.bias_ih[d], 1, false);
      bias_hh[d] = matrix(q, q.bias_hh[d], 1, false);
      if (!q.projected) continue;
      const int64_t width = 4 * units, blocks = (q.P + width - 1) / width;
      const Values values = q.weight_hr[d].values();
      weight_hr[d] = zeros(q.compute, blocks * q.H * width);
      for (int64_t p = 0; p < q.P; ++p) {
        for (int64_t h = 0; h < q.H; ++h) {
          weight_hr[d].set((p / width * q.H + h) * width + p % width, values[p * q.H + h]);
        }
      }
    }
  }

  Weights pointers(int64_t d) const {
    return {weight_ih[d].data(),
            weight_hh[d].data(),
            bias_ih[d].data(),
            bias_hh[d].data(),
            weight_hr[d].data(),
            nullptr,
            nullptr};
  }

 private:
  static Tensor zeros(Dtype dtype, int64_t size) {
    Tensor tensor(dtype, size, false);
    for (int64_t i = 0; i < size; ++i) tensor.set(i, 0);
    return tensor;
  }

  // [gates * H, K], or nothing, which is zeros.
  Tensor matrix(const Problem& q, const Tensor& given, int64_t K, bool pairs) const {
    const int64_t side_by_side = pairs ? 2 : 1, depth = (K + side_by_side - 1) / side_by_side;
    const int64_t blocks = (q.H + units - 1) / units;
    Tensor result = zeros(pairs ? Dtype::kBFloat16 : q.compute,
                          blocks * depth * side_by_side * q.gates * units);
    const Values values = given.values();
    for (int64_t row = 0; row < q.gates * q.H && !values.empty(); ++row) {
      const int64_t gate = row / q.H, unit = row % q.H, block = unit / units;
      for (int64_t k = 0; k < K; ++k) {
        const int64_t column =
            ((block * depth + k / side_by_side) * q.gates + gate) * units + unit % units;
        result.set(column * side_by_side + k % side_by_side, values[row * K + k]);
      }
    }
    return result;
  }
};

// In the order of kernels with registers of so many bytes, and of others'; bfloat16 also in pairs.
inline std::vector<Packed> packed_in_every_way(const Problem& q, int64_t vector_bytes) {
  const int64_t lanes = vector_bytes / format_of(q.compute).bytes, own = q.lstm ? lanes / 2 : lanes;
  std::vector<Packed> packed;
  for (int64_t units : {own, 2 * own}) {
    packed.emplace_back(q, units, false);
    if (q.dtype == Dtype::kBFloat16) packed.emplace_back(q, units, true);
  }
  return packed;
}

}  // namespace varlen_rnn
