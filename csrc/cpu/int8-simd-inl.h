// What every instruction set has its own instructions for: 16-bit activations times int8 weights.
//
// Each set says how many values of a row it takes at a time (kStep), how many vectors of sums the 16
// units of a group have (kSums), and how a row's values lie in memory; `add_step` multiplies, and
// `total` makes sums of units of it. Weights lie the same for all, as params.h says.
#pragma once

#include <cstring>

#include "cpu/int8.h"
#include "cpu/simd-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

using Ints = Vector<float>::Int;

inline constexpr int kGroup = static_cast<int>(kInt8Units);
inline constexpr int kGroupVectors = kGroup / kLanes<float>;
static_assert(kGroupVectors * kLanes<float> == kGroup);

#if defined(__ARM_FEATURE_MATMUL_INT8) || defined(__ARM_FEATURE_DOTPROD)
// Instructions for 8 bits, exact for activations of 16: a value is 256 * upper + lower, both signed
// (kActivationMax), and each half has sums of its own. A row's step is 8 upper bytes, then
// 8 lower ones. Both sets need weights by unit, which zips make of pairs.
inline constexpr int kStep = 8;
inline constexpr int kSums = 2 * kGroupVectors;

using RowStep = int8x16_t;
VR_INLINE RowStep load_step(const int16_t* a) { return vreinterpretq_s8_s16(vld1q_s16(a)); }

// 16 values of a row into 16 places.
VR_INLINE void store_values(int16_t* to, const Ints (&values)[kGroupVectors]) {
  for (int i = 0; i < 2; ++i) {
    const int16x8_t v = vmovn_high_s32(vmovn_s32(values[2 * i]), values[2 * i + 1]);
    const int8x8_t upper = vrshrn_n_s16(v, 8), lower = vmovn_s16(v);
    vst1q_s8(reinterpret_cast<int8_t*>(to + 8 * i), vcombine_s8(upper, lower));
  }
}

// The pairs of 8 units, the first or the second ones.
VR_INLINE int16x8_t load_pairs(const int8_t* w, int64_t pair, int part) {
  return vreinterpretq_s16_s8(vld1q_s8(w + pair * 2 * kGroup + part * kGroup));
}

VR_INLINE Ints total(Ints upper, Ints lower) {
  return vaddq_s32(vshlq_n_s32(upper, 8), lower);  // modulo 2^32, where the whole fits
}
#endif

#if defined(__ARM_FEATURE_MATMUL_INT8)
// One instruction multiplies both halves of 8 values with 2 units: sums are (upper, upper, lower,
// lower) of them.
template <int R>
VR_INLINE void add_step(Ints (&sums)[R][kSums], const int8_t* w, const RowStep (&rows)[R]) {
  VR_UNROLL
  for (int part = 0; part < 2; ++part) {
    const int16x8_t w0 = load_pairs(w, 0, part), w1 = load_pairs(w, 1, part);
    const int16x8_t w2 = load_pairs(w, 2, part), w3 = load_pairs(w, 3, part);
    const int32x4_t a = vreinterpretq_s32_s16(vzip1q_s16(w0, w1));  // 4 values of 4 units
    const int32x4_t b = vreinterpretq_s32_s16(vzip2q_s16(w0, w1));
    const int32x4_t c = vreinterpretq_s32_s16(vzip1q_s16(w2, w3));
    const int32x4_t d = vreinterpretq_s32_s16(vzip2q_s16(w2, w3));
    const int32x4_t units[4] = {vzip1q_s32(a, c), vzip2q_s32(a, c), vzip1q_s32(b, d),
                                vzip2q_s32(b, d)};
    VR_UNROLL
    for (int r = 0; r < R; ++r) {
      VR_UNROLL
      for (int i = 0; i < 4; ++i) {
        Ints& sum = sums[r][4 * part + i];
        sum = vmmlaq_s32(sum, rows[r], vreinterpretq_s8_s32(units[i]));
      }
    }
  }
}
VR_INLINE Ints total(const Ints (&sums)[kSums], int v) {
  const int64x2_t a = vreinterpretq_s64_s32(sums[2 * v]);
  const int64x2_t b = vreinterpretq_s64_s32(sums[2 * v + 1]);
  return total(vreinterpretq_s32_s64(vzip1q_s64(a, b)), vreinterpretq_s32_s64(vzip2q_s64(a, b)));
}

#elif defined(__ARM_FEATURE_DOTPROD)
// Values 4 * half to 4 * half + 3; sums of the upper bytes come first.
template <int half, int R>
VR_INLINE void add_half(Ints (&sums)[R][kSums], const int8_t* w, const RowStep (&rows)[R]) {
  VR_UNROLL
  for (int part = 0; part < 2; ++part) {
    const int16x8_t a = load_pairs(w, 2 * half, part), b = load_pairs(w, 2 * half + 1, part);
    const int16x8_t units[2] = {vzip1q_s16(a, b), vzip2q_s16(a, b)};  // 4 values of 4 units
    VR_UNROLL
    for (int r = 0; r < R; ++r) {
      VR_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int8x16_t values = vreinterpretq_s8_s16(units[i]);
        Ints &upper = sums[r][2 * part + i], &lower = sums[r][kGroupVectors + 2 * part + i];
        upper = vdotq_laneq_s32(upper, values, rows[r], half);
        lower = vdotq_laneq_s32(lower, values, rows[r], 2 + half);
      }
    }
  }
}
template <int R>
VR_INLINE void add_step(Ints (&sums)[R][kSums], const int8_t* w, const RowStep (&rows)[R]) {
  add_half<0>(sums, w, rows);
  add_half<1>(sums, w, rows);
}
VR_INLINE Ints total(const Ints (&sums)[kSums], int v) {
  return total(sums[v], sums[kGroupVectors + v]);
}

#else
// A row's values in their order, a pair at a time, into one sum for each unit.
inline constexpr int kStep = 2;
inline constexpr int kSums = kGroupVectors;

VR_INLINE Ints total(const Ints (&sums)[kSums], int v) { return sums[v]; }

// Two values of a row as one number.
VR_INLINE uint32_t pair_at(const int16_t* a) {
  uint32_t pair;
  std::memcpy(&pair, a, sizeof(pair));
  return pair;
}

#if defined(__ARM_NEON)
using RowStep = int16x4_t;  // of which the first two count
VR_INLINE RowStep load_step(const int16_t* a) { return vcreate_s16(pair_at(a)); }
VR_INLINE void store_values(int16_t* to, const Ints (&values)[kGroupVectors]) {
  for (int i = 0; i < kGroupVectors; ++i) vst1_s16(to + 4 * i, vmovn_s32(values[i]));
}
template <int R>
VR_INLINE void add_step(Ints (&sums)[R][kSums], const int8_t* w, const RowStep (&rows)[R]) {
  const int8x16_t near = vld1q_s8(w), far = vld1q_s8(w + kGroup);
  const int8x16_t first = vuzp1q_s8(near, far), second = vuzp2q_s8(near, far);
  const int16x8_t firsts[2] = {vmovl_s8(vget_low_s8(first)), vmovl_high_s8(first)};
  const int16x8_t seconds[2] = {vmovl_s8(vget_low_s8(second)), vmovl_high_s8(second)};
  VR_UNROLL
  for (int r = 0; r < R; ++r) {
    VR_UNROLL
    for (int i = 0; i < 2; ++i) {
      Ints &near_sum = sums[r][2 * i], &far_sum = sums[r][2 * i + 1];
      near_sum = vmlal_lane_s16(near_sum, vget_low_s16(firsts[i]), rows[r], 0);
      far_sum = vmlal_high_lane_s16(far_sum, firsts[i], rows[r], 0);
      near_sum = vmlal_lane_s16(near_sum, vget_low_s16(seconds[i]), rows[r], 1);
      far_sum = vmlal_high_lane_s16(far_sum, seconds[i], rows[r], 1);
    }
  }
}

#else
VR_INLINE void store_values(int16_t* to, const Ints (&values)[kGroupVectors]) {
  typedef int16_t Narrow __attribute__((vector_size(kVectorBytes / 2), may_alias, aligned(2)));
  VR_UNROLL
  for (int i = 0; i < kGroupVectors; ++i) {
    *reinterpret_cast<Narrow*>(to + i * kLanes<float>) = __builtin_convertvector(values[i], Narrow);
  }
}

// The pairs of one vector of sums, and a row's pair in each of its lanes.
#if defined(__AVX512F__)
using Pairs = __m512i;
VR_INLINE Pairs load_pairs(const int8_t* w) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)));
}
VR_INLINE Pairs load_step(const int16_t* a) {
  return _mm512_set1_epi32(static_cast<int32_t>(pair_at(a)));
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
VR_INLINE Pairs load_step(const int16_t* a) {
  return _mm256_set1_epi32(static_cast<int32_t>(pair_at(a)));
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
VR_INLINE Pairs load_step(const int16_t* a) { return {a[0] - Ints{}, a[1] - Ints{}}; }
VR_INLINE Ints add_products(Ints sums, Pairs w, Pairs a) {
  return sums + w.first * a.first + w.second * a.second;
}
#endif

using RowStep = Pairs;
template <int R>
VR_INLINE void add_step(Ints (&sums)[R][kSums], const int8_t* w, const RowStep (&rows)[R]) {
  VR_UNROLL
  for (int v = 0; v < kSums; ++v) {
    const Pairs pairs = load_pairs(w + v * 2 * kLanes<float>);
    VR_UNROLL
    for (int r = 0; r < R; ++r) sums[r][v] = add_products(sums[r][v], pairs, rows[r]);
  }
}
#endif
#endif

}  // namespace varlen_rnn::VARLEN_RNN_ISA
