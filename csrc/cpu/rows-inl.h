// One row of a tensor to and from the compute type: float64 to double, all others to float.
#pragma once

#include <cstring>

#include "cpu/simd-inl.h"
#include "params.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

inline size_t element_size(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

// Element `index` of a tensor of any dtype.
inline const void* at(const void* tensor, Dtype dtype, int64_t index) {
  return static_cast<const char*>(tensor) + index * static_cast<int64_t>(element_size(dtype));
}
inline void* at(void* tensor, Dtype dtype, int64_t index) {
  return static_cast<char*>(tensor) + index * static_cast<int64_t>(element_size(dtype));
}

// Calls f with a zero of the compute type.
template <class F>
auto with_compute_type(Dtype dtype, const F& f) {
  return dtype == Dtype::kFloat64 ? f(double{0}) : f(float{0});
}

VR_INLINE float float_from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
VR_INLINE uint32_t bits_from_float(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

// A vector of 16-bit numbers; of some of these conversions compilers make one scalar after another.
VR_INLINE Vec<float> from_bfloat16(const uint16_t* p) {
#ifdef __ARM_NEON
  return (Vec<float>)vshll_n_u16(vld1_u16(p), 16);
#else
  typedef uint16_t Narrow __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
  typedef uint32_t Wide __attribute__((vector_size(kVectorBytes)));
  return (Vec<float>)(__builtin_convertvector(*reinterpret_cast<const Narrow*>(p), Wide) << 16);
#endif
}

// Rounds to nearest, ties to even; NaN stays NaN.
VR_INLINE uint16_t to_bfloat16(float x) {
  const uint32_t bits = bits_from_float(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

#if defined(__AVX512F__)
VR_INLINE Vec<float> from_float16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// Rounds as to_bfloat16; what is too large becomes infinity.
VR_INLINE void to_float16(uint16_t* p, Vec<float> x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__F16C__)
VR_INLINE Vec<float> from_float16(const uint16_t* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
VR_INLINE void to_float16(uint16_t* p, Vec<float> x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__ARM_NEON)
VR_INLINE Vec<float> from_float16(const uint16_t* p) {
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
VR_INLINE void to_float16(uint16_t* p, Vec<float> x) {
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(x)));
}
#else
VR_INLINE Vec<float> from_float16(const uint16_t* p) {
  Vec<float> result;
  for (int i = 0; i < kLanes<float>; ++i) {
    // Shift exponent and mantissa into place, then correct the exponent's bias by a product, which
    // also normalises subnormal numbers. Infinity and NaN keep the largest exponent.
    const uint32_t sign = uint32_t{p[i] & 0x8000u} << 16;
    const uint32_t magnitude = p[i] & 0x7fffu;
    const float scaled = float_from_bits(magnitude << 13) * 0x1p112f;
    const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
    result[i] = float_from_bits(bits_from_float(scaled) | special | sign);
  }
  return result;
}
VR_INLINE void to_float16(uint16_t* p, Vec<float> x) {
  for (int i = 0; i < kLanes<float>; ++i) {
    const uint32_t bits = bits_from_float(x[i]);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t result;
    if (magnitude > 0x7f800000u) {
      result = 0x7e00u;
    } else if (magnitude >= 0x477ff000u) {
      result = 0x7c00u;
    } else if (magnitude < 0x38800000u) {
      // Subnormal: adding 0.5 puts the last kept bit where the sum's own rounding falls.
      result = bits_from_float(float_from_bits(magnitude) + 0.5f) - bits_from_float(0.5f);
    } else {
      result = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    }
    p[i] = static_cast<uint16_t>(result | sign);
  }
}
#endif

inline void load_row(double* to, const void* from, Dtype, int64_t n) {
  std::memcpy(to, from, static_cast<size_t>(n) * sizeof(double));
}
inline void store_row(void* to, const double* from, Dtype, int64_t n) {
  std::memcpy(to, from, static_cast<size_t>(n) * sizeof(double));
}

// to[i] = f(from + i) for n numbers, a vector at a time.
template <class F>
VR_INLINE void widen_row(float* to, const uint16_t* from, int64_t n, const F& f) {
  int64_t i = 0;
  for (; i + kLanes<float> <= n; i += kLanes<float>) store(to + i, f(from + i));
  if (i == n) return;
  uint16_t rest[kLanes<float>] = {};
  std::memcpy(rest, from + i, static_cast<size_t>(n - i) * sizeof(uint16_t));
  store_first(to + i, f(rest), n - i);
}

inline void load_row(float* to, const void* from, Dtype dtype, int64_t n) {
  const uint16_t* half = static_cast<const uint16_t*>(from);
  if (dtype == Dtype::kBFloat16) {
    widen_row(to, half, n, [](const uint16_t* p) { return from_bfloat16(p); });
  } else if (dtype == Dtype::kFloat16) {
    widen_row(to, half, n, [](const uint16_t* p) { return from_float16(p); });
  } else {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
  }
}

inline void store_row(void* to, const float* from, Dtype dtype, int64_t n) {
  uint16_t* half = static_cast<uint16_t*>(to);
  if (dtype == Dtype::kBFloat16) {
    for (int64_t i = 0; i < n; ++i) half[i] = to_bfloat16(from[i]);
  } else if (dtype == Dtype::kFloat16) {
    int64_t i = 0;
    for (; i + kLanes<float> <= n; i += kLanes<float>) to_float16(half + i, load(from + i));
    if (i == n) return;
    uint16_t rest[kLanes<float>];
    to_float16(rest, load_first(from + i, n - i));
    std::memcpy(half + i, rest, static_cast<size_t>(n - i) * sizeof(uint16_t));
  } else {
    std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
  }
}

// load_row, or zeros where there is no tensor.
template <class T>
void load_row_or_zeros(T* to, const void* from, Dtype dtype, int64_t index, int64_t n) {
  if (from == nullptr) {
    std::memset(to, 0, static_cast<size_t>(n) * sizeof(T));
  } else {
    load_row(to, at(from, dtype, index), dtype, n);
  }
}

}  // namespace varlen_rnn::VARLEN_RNN_ISA
