// Rows of floats times int8 weights, by exact integer products.
//
// A row is quantised to 16 bits, symmetrically, by its own largest magnitude. A 16-bit activation
// times an int8 weight, summed in 32 bits, never overflows (quantized_activation_max), so the order
// of summation is free and every instruction set, batch and split of the work gives the same sums.
#pragma once

#include <cstring>

#include "cpu/quantized.h"
#include "cpu/tile-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

using Ints = Vector<float>::Int;

inline constexpr int kGroup = static_cast<int>(kQuantizedUnits);
inline constexpr int kGroupVectors = kGroup / kLanes<float>;
static_assert(kGroupVectors * kLanes<float> == kGroup);

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
  typedef int16_t Narrow __attribute__((vector_size(kVectorBytes / 2), may_alias, aligned(2)));
  for (int64_t i = 0; i < padded; i += kLanes<float>) {
    // Added to this number, a value is rounded to an integer in the lowest bits of the mantissa.
    const Vec<float> shifted =
        load_first(x + i, n - i) * broadcast(row.inverse) + broadcast(0x1.8p23f);
    *reinterpret_cast<Narrow*>(to + i) = __builtin_convertvector((Ints)shifted, Narrow);
  }
  return row.scale;
}

// What a row of 16-bit activations meets in a block [K / 2, 16, 2]: a vector of weights in pairs.
#if defined(__AVX512F__)
using Pairs = __m512i;
VR_INLINE Pairs load_pairs(const int8_t* w) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
}
VR_INLINE Pairs broadcast_pair(const int16_t* a) {
  int32_t pair;
  std::memcpy(&pair, a, sizeof(pair));
  return _mm512_set1_epi32(pair);
}
VR_INLINE Ints add_products(Ints sums, Pairs w, Pairs a) {
#ifdef __AVX512VNNI__
  return (Ints)_mm512_dpwssd_epi32((Pairs)sums, w, a);
#else
  return sums + (Ints)_mm512_madd_epi16(w, a);
#endif
}
#elif defined(__AVX2__)
using Pairs = __m256i;
VR_INLINE Pairs load_pairs(const int8_t* w) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w)));
}
VR_INLINE Pairs broadcast_pair(const int16_t* a) {
  int32_t pair;
  std::memcpy(&pair, a, sizeof(pair));
  return _mm256_set1_epi32(pair);
}
VR_INLINE Ints add_products(Ints sums, Pairs w, Pairs a) {
#ifdef __AVXVNNI__
  return (Ints)_mm256_dpwssd_avx_epi32((Pairs)sums, w, a);
#else
  return sums + (Ints)_mm256_madd_epi16(w, a);
#endif
}
#else
struct Pairs {
  Ints first, second;
};
VR_INLINE Pairs load_pairs(const int8_t* w) {
  // The second of a pair is the upper byte.
  typedef int16_t Narrow __attribute__((vector_size(kVectorBytes / 2), may_alias, aligned(1)));
  const Ints both = __builtin_convertvector(*reinterpret_cast<const Narrow*>(w), Ints);
  return {both << 24 >> 24, both >> 8};
}
VR_INLINE Pairs broadcast_pair(const int16_t* a) { return {a[0] - Ints{}, a[1] - Ints{}}; }
VR_INLINE Ints add_products(Ints sums, Pairs w, Pairs a) {
  return sums + w.first * a.first + w.second * a.second;
}
#endif

// Rows to multiply: 16-bit integers and their scales.
struct QuantizedRows {
  const int16_t* values;  // [rows, ld]: K of them, then zeros
  int64_t ld;
  const float* scales;  // [rows]
};

// The columns of some blocks.
struct QuantizedColumns {
  const int8_t* weights;  // [blocks, pairs, 16, 2]
  int64_t pairs;
  const float* scales;  // [blocks, 16]
  const float* bias;    // [blocks, 16]
};

// sums[r][v] += a[r] * w[v] for the k-th pair of values.
template <int R, int kVectors>
VR_INLINE void add_pair(Ints (&sums)[R][kVectors], const QuantizedRows& a,
                        const QuantizedColumns& b, int64_t k) {
  constexpr int kPairBytes = 2 * kLanes<float>;  // of one vector
  const int8_t* w = b.weights + k * 2 * kGroup;
  Pairs rows[R];
  VR_UNROLL
  for (int r = 0; r < R; ++r) rows[r] = broadcast_pair(a.values + r * a.ld + 2 * k);
  VR_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    const int64_t block = v / kGroupVectors * b.pairs * 2 * kGroup;
    const Pairs pairs = load_pairs(w + block + v % kGroupVectors * kPairBytes);
    VR_UNROLL
    for (int r = 0; r < R; ++r) sums[r][v] = add_products(sums[r][v], pairs, rows[r]);
  }
}

// c[r][j] = bias[j] + (sum of row r times column j) * (scale of r * scale of j)
template <int R, int NB>
__attribute__((noinline)) void quantized_tile(QuantizedRows a, QuantizedColumns b, float* c,
                                              int64_t ldc) {
  constexpr int kVectors = NB * kGroupVectors;
  // Enough independent sums to hide the latency of a VNNI instruction.
  constexpr int kChains = R * kVectors < 8 ? 8 / (R * kVectors) : 1;
  Ints sums[kChains][R][kVectors] = {};
  int64_t k = 0;
  for (; k + kChains <= b.pairs; k += kChains) {
    VR_UNROLL
    for (int i = 0; i < kChains; ++i) add_pair<R, kVectors>(sums[i], a, b, k + i);
  }
  for (; k < b.pairs; ++k) add_pair<R, kVectors>(sums[0], a, b, k);
  VR_UNROLL
  for (int v = 0; v < kVectors; ++v) {
    const int64_t column = v * kLanes<float>;
    const Vec<float> scale = load(b.scales + column), bias = load(b.bias + column);
    VR_UNROLL
    for (int r = 0; r < R; ++r) {
      Ints total = sums[0][r][v];
      VR_UNROLL
      for (int i = 1; i < kChains; ++i) total += sums[i][r][v];
      const Vec<float> sum = __builtin_convertvector(total, Vec<float>);
      store(c + r * ldc + column, fma(sum, broadcast(a.scales[r]) * scale, bias));
    }
  }
}

// All rows times all blocks.
inline void quantized_product(QuantizedRows a, int64_t rows, QuantizedColumns b, int64_t blocks,
                              float* c, int64_t ldc) {
  for_each_tile<kGroupVectors>(rows, blocks, [&](int64_t r, auto R, int64_t block, auto NB) {
    const QuantizedColumns columns = {b.weights + block * b.pairs * 2 * kGroup, b.pairs,
                                      b.scales + block * kGroup, b.bias + block * kGroup};
    quantized_tile<decltype(R)::kValue, decltype(NB)::kValue>(
        {a.values + r * a.ld, a.ld, a.scales + r}, columns, c + r * ldc + block * kGroup, ldc);
  });
}

}  // namespace varlen_rnn::VARLEN_RNN_ISA
