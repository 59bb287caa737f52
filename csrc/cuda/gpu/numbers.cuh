// Numbers on the GPU: words, conversions, activations. Included by simt.cuh alone.
#pragma once

namespace varlen_rnn::simt {

VARLEN_RNN_DEVICE uint32_t float_as_word(float v) { return __float_as_uint(v); }
VARLEN_RNN_DEVICE float word_as_float(uint32_t word) { return __uint_as_float(word); }

VARLEN_RNN_DEVICE float to_float(bf16 v) { return word_as_float(uint32_t{v.bits} << 16); }
// cvt.f32.f16
VARLEN_RNN_DEVICE float to_float(f16 v) { return __half2float(__ushort_as_half(v.bits)); }
VARLEN_RNN_DEVICE float to_float(float v) { return v; }

template <class T>
VARLEN_RNN_DEVICE compute_t<T> to_compute(T v) {
  return to_float(v);
}
template <>
VARLEN_RNN_DEVICE double to_compute(double v) {
  return v;
}

// Rounds to nearest even; NaN stays NaN, and what is too large becomes infinity.
template <class T>
VARLEN_RNN_DEVICE T from_compute(compute_t<T> v) {
  return v;
}
// cvt.rn.bf16.f32 (sm_75: integer operations)
template <>
VARLEN_RNN_DEVICE bf16 from_compute<bf16>(float v) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(v))};
}
// cvt.rn.f16.f32
template <>
VARLEN_RNN_DEVICE f16 from_compute<f16>(float v) {
  return {__half_as_ushort(__float2half_rn(v))};
}

// Two 16-bit values in a word, the first in the low half, as matrix fragments want them.
VARLEN_RNN_DEVICE uint32_t pack(bf16 low, bf16 high) {
  return uint32_t{low.bits} | uint32_t{high.bits} << 16;
}
VARLEN_RNN_DEVICE uint32_t pack(f16 low, f16 high) {
  return uint32_t{low.bits} | uint32_t{high.bits} << 16;
}
template <class T>
VARLEN_RNN_DEVICE void unpack(uint32_t word, T& low, T& high) {
  low.bits = static_cast<uint16_t>(word);
  high.bits = static_cast<uint16_t>(word >> 16);
}

// cvt.rna.tf32.f32 (sm_75: integer operations): to nearest, ties away from zero; the low 13 bits of
// the result are zero. Infinities and NaN are kept.
VARLEN_RNN_DEVICE uint32_t to_tf32(float v) {
#if __CUDA_ARCH__ >= 800
  uint32_t word;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(v));
#else
  uint32_t word = float_as_word(v);
  const uint32_t magnitude = word & 0x7fffffffu;
  if (magnitude > 0x7f800000u) word |= 0x00400000u;
  if (magnitude < 0x7f800000u) word += 0x1000u;
#endif
  return word & 0xffffe000u;
}

VARLEN_RNN_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
VARLEN_RNN_DEVICE double sigmoid(double x) { return 1.0 / (1.0 + ::exp(-x)); }
VARLEN_RNN_DEVICE float tanh(float x) { return tanhf(x); }
VARLEN_RNN_DEVICE double tanh(double x) { return ::tanh(x); }
// ex2.approx.ftz.f32 and rcp.approx.ftz.f32: two instructions and no steps for subnormal numbers
VARLEN_RNN_DEVICE float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
VARLEN_RNN_DEVICE float fast_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Absolute error about 1e-6; never NaN but for NaN: 1 / infinity is 0.
VARLEN_RNN_DEVICE float fast_sigmoid(float x) {
  return fast_reciprocal(1.0f + fast_exp2(-1.44269504f * x));
}
VARLEN_RNN_DEVICE float fast_tanh(float x) {
  return 2.0f * fast_reciprocal(1.0f + fast_exp2(-2.88539008f * x)) - 1.0f;
}

}  // namespace varlen_rnn::simt
