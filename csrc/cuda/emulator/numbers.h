// Conversions between float and the narrow types, as the hardware rounds, in integer operations.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace varlen_rnn::emulator {

inline uint32_t float_as_word(float v) {
  uint32_t word;
  std::memcpy(&word, &v, 4);
  return word;
}
inline float word_as_float(uint32_t word) {
  float v;
  std::memcpy(&v, &word, 4);
  return v;
}

constexpr uint32_t kInfinity = 0x7f800000u;
constexpr uint16_t kNarrowNaN = 0x7fff;

inline float bf16_to_float(uint16_t bits) { return word_as_float(uint32_t{bits} << 16); }

inline uint16_t float_to_bf16(float v) {
  const uint32_t word = float_as_word(v);
  if ((word & 0x7fffffffu) > kInfinity) return kNarrowNaN;
  return static_cast<uint16_t>((word + 0x7fffu + (word >> 16 & 1u)) >> 16);
}

inline float f16_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  const uint32_t exponent = bits >> 10 & 0x1fu;
  const uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0x1f) return word_as_float(sign | kInfinity | mantissa << 13);
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return word_as_float(sign | float_as_word(magnitude));
  }
  return word_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
}

inline uint16_t float_to_f16(float v) {
  const uint32_t word = float_as_word(v);
  const uint32_t sign = word >> 16 & 0x8000u;
  const uint32_t magnitude = word & 0x7fffffffu;
  if (magnitude > kInfinity) return kNarrowNaN;
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520
  if (magnitude < 0x38800000u) {  // 2^-14: adding 1/2 rounds to a multiple of 2^-24
    const uint32_t rounded = float_as_word(word_as_float(magnitude) + 0.5f) - 0x3f000000u;
    return static_cast<uint16_t>(sign | rounded);
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return static_cast<uint16_t>(sign | (rounded - (uint32_t{112} << 23)) >> 13);
}

inline uint32_t float_to_tf32(float v) {
  uint32_t word = float_as_word(v);
  const uint32_t magnitude = word & 0x7fffffffu;
  if (magnitude > kInfinity) word |= 0x00400000u;
  if (magnitude < kInfinity) word += 0x1000u;
  return word & 0xffffe000u;
}

}  // namespace varlen_rnn::emulator
