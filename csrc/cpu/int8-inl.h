// Rows of floats times int8 weights, by exact integer products.
//
// A row is quantised to 16 bits, symmetrically, by its own largest magnitude. A 16-bit activation
// times an int8 weight, summed in 32 bits, never overflows (activation_max), so the order
// of summation is free and every instruction set, batch and split of the work gives the same sums.
#pragma once

#include <cstring>

#include "cpu/int8-simd-inl.h"
#include "cpu/tile-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

// A row's own scale, and 0 where all is 0, or so small that it counts as 0; NaN where something is
// not finite, which makes everything NaN that the row is multiplied into.
struct RowScale {
  float scale;    // a value is scale * integer
  float inverse;  // an integer is value * inverse, rounded to nearest, ties to even
};

inline RowScale row_scale(const float* x, int64_t n, float largest) {
  // Magnitudes are ordered as their bits are, NaN above all others.
  Ints bits{};
  for (int64_t i = 0; i < n; i += kLanes<float>) {
    const Ints b = (Ints)load_first(x + i, n - i) & 0x7fffffff;
    bits = b > bits ? b : bits;
  }
  int32_t most = 0;
  for (int i = 0; i < kLanes<float>; ++i) most = bits[i] > most ? bits[i] : most;
  float magnitude;
  std::memcpy(&magnitude, &most, sizeof(magnitude));
  if (most >= 0x7f800000) return {__builtin_nanf(""), 0.0f};
  if (magnitude < 0x1p-100f) return {0.0f, 0.0f};
  return {magnitude / largest, largest / magnitude};
}

// Quantises n values, and fills up with zeros to a multiple of kGroup; returns the scale.
inline float quantize_row(int16_t* to, const float* x, int64_t n, float largest) {
  const RowScale row = row_scale(x, n, largest);
  const int64_t padded = (n + kGroup - 1) / kGroup * kGroup;
  if (row.inverse == 0.0f) {
    std::memset(to, 0, static_cast<size_t>(padded) * sizeof(int16_t));
    return row.scale;
  }
  for (int64_t i = 0; i < padded; i += kGroup) {
    Ints values[kGroupVectors];
    VR_UNROLL
    for (int v = 0; v < kGroupVectors; ++v) {
      const int64_t first = i + v * kLanes<float>;
      // Added to this number, a value is rounded to an integer in the lowest bits of the mantissa.
      values[v] =
          (Ints)(load_first(x + first, n - first) * broadcast(row.inverse) + broadcast(0x1.8p23f));
    }
    store_values(to + i, values);
  }
  return row.scale;
}

// Rows to multiply: 16-bit integers and their scales.
struct Int8Rows {
  const int16_t* values;  // [rows, ld]: K of them, then zeros
  int64_t ld;
  const float* scales;  // [rows]
};

// The columns of some blocks.
struct Int8Columns {
  const int8_t* weights;  // [blocks, pairs, 16, 2]
  int64_t pairs;
  const float* scales;  // [blocks, 16]
  const float* bias;    // [blocks, 16]
};

// sums[block][r] += a[r] * the block's weights, for a step of pairs from the k-th on. Of the last
// ones there may be fewer than a step has: `weights` are theirs, then.
template <int R, int NB>
VR_INLINE void add_steps(Ints (&sums)[NB][R][kSums], const Int8Rows& a, int64_t k,
                         const int8_t* weights, int64_t block) {
  RowStep rows[R];
  VR_UNROLL
  for (int r = 0; r < R; ++r) rows[r] = load_step(a.values + r * a.ld + 2 * k);
  VR_UNROLL
  for (int i = 0; i < NB; ++i) add_step<R>(sums[i], weights + i * block, rows);
}

// c[r][j] = bias[j] + (sum of row r times column j) * (scale of r * scale of j)
template <int R, int NB>
__attribute__((noinline)) void int8_tile(Int8Rows a, Int8Columns b, float* c, int64_t ldc) {
  constexpr int kPairs = kStep / 2, kPairBytes = 2 * kGroup;
  // Enough independent sums to hide the latency of a VNNI instruction.
  constexpr int kChains = R * NB * kSums < 8 ? 8 / (R * NB * kSums) : 1;
  Ints sums[kChains][NB][R][kSums] = {};
  const int64_t block = b.pairs * kPairBytes;
  int64_t k = 0;
  for (; k + kChains * kPairs <= b.pairs; k += kChains * kPairs) {
    VR_UNROLL
    for (int i = 0; i < kChains; ++i) {
      const int64_t first = k + i * kPairs;
      add_steps<R, NB>(sums[i], a, first, b.weights + first * kPairBytes, block);
    }
  }
  for (; k + kPairs <= b.pairs; k += kPairs) {
    add_steps<R, NB>(sums[0], a, k, b.weights + k * kPairBytes, block);
  }
  if (kPairs > 1 && k < b.pairs) {
    int8_t last[NB][kPairs * kPairBytes] = {};
    for (int i = 0; i < NB; ++i) {
      std::memcpy(last[i], b.weights + i * block + k * kPairBytes,
                  static_cast<size_t>((b.pairs - k) * kPairBytes));
    }
    add_steps<R, NB>(sums[0], a, k, last[0], sizeof(last[0]));
  }
  VR_UNROLL
  for (int i = 0; i < NB; ++i) {
    VR_UNROLL
    for (int v = 0; v < kGroupVectors; ++v) {
      const int64_t column = i * kGroup + v * kLanes<float>;
      const Vec<float> scale = load(b.scales + column), bias = load(b.bias + column);
      VR_UNROLL
      for (int r = 0; r < R; ++r) {
        Ints units = total(sums[0][i][r], v);
        VR_UNROLL
        for (int chain = 1; chain < kChains; ++chain) units += total(sums[chain][i][r], v);
        const Vec<float> sum = __builtin_convertvector(units, Vec<float>);
        store(c + r * ldc + column, fma(sum, broadcast(a.scales[r]) * scale, bias));
      }
    }
  }
}

// All rows times all blocks.
inline void int8_product(Int8Rows a, int64_t rows, Int8Columns b, int64_t blocks, float* c,
                         int64_t ldc) {
  for_each_tile<Tiles<kSums>>(rows, blocks, [&](int64_t r, auto R, int64_t block, auto NB) {
    const Int8Columns columns = {b.weights + block * b.pairs * 2 * kGroup, b.pairs,
                                 b.scales + block * kGroup, b.bias + block * kGroup};
    int8_tile<decltype(R)::kValue, decltype(NB)::kValue>(
        {a.values + r * a.ld, a.ld, a.scales + r}, columns, c + r * ldc + block * kGroup, ldc);
  });
}

}  // namespace varlen_rnn::VARLEN_RNN_ISA
