// Cases of simt_test.cu: conversions and functions, against a search in the table of all values of
// the narrow type, and against double.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "simt_harness.h"

namespace varlen_rnn {

inline float float_of(uint32_t word) {
  float v;
  std::memcpy(&v, &word, 4);
  return v;
}
inline uint32_t word_of(float v) {
  uint32_t word;
  std::memcpy(&word, &v, 4);
  return word;
}

// Sign, exponent and mantissa, as the formats define them.
inline float decode(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
  const int exponent = static_cast<int>(bits >> mantissa_bits & ((1u << exponent_bits) - 1));
  const float sign = bits >> (exponent_bits + mantissa_bits) != 0 ? -1.0f : 1.0f;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa != 0 ? std::numeric_limits<float>::quiet_NaN()
                         : sign * std::numeric_limits<float>::infinity();
  }
  const int scale = std::max(exponent, 1) - bias - mantissa_bits;
  const uint32_t implicit = exponent > 0 ? 1u << mantissa_bits : 0;
  return sign * std::ldexp(static_cast<float>(mantissa + implicit), scale);
}

template <class T>
struct Narrow;
template <>
struct Narrow<simt::bf16> {
  static constexpr int kExponent = 8;
  static constexpr int kMantissa = 7;
};
template <>
struct Narrow<simt::f16> {
  static constexpr int kExponent = 5;
  static constexpr int kMantissa = 10;
};

// The nearest of all values, the even one of two; infinity stands for the next power of two.
template <class T>
uint16_t encode(float v) {
  using N = Narrow<T>;
  const uint16_t infinity = ((1 << N::kExponent) - 1) << N::kMantissa;
  static const std::vector<double> values = [&] {
    std::vector<double> all;
    for (uint32_t bits = 0; bits < infinity; ++bits) {
      all.push_back(decode(bits, N::kExponent, N::kMantissa));
    }
    all.push_back(std::ldexp(1.0, 1 << (N::kExponent - 1)));
    return all;
  }();
  const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  const double magnitude = std::fabs(static_cast<double>(v));
  if (magnitude >= values.back()) return sign | infinity;
  const size_t above = static_cast<size_t>(
      std::upper_bound(values.begin(), values.end(), magnitude) - values.begin());
  const double to_below = magnitude - values[above - 1];
  const double to_above = values[above] - magnitude;
  const bool up = to_above < to_below || (to_above == to_below && above % 2 == 0);
  return sign | static_cast<uint16_t>(up ? above : above - 1);
}

// Borders of the formats with their neighbours, ties, and random words.
inline std::vector<float> sample_floats() {
  std::vector<float> all;
  const float borders[] = {0.0f,       0x1p-149f, 0x1p-133f,  0x1p-134f,   0x1p-126f,
                           0x1p-25f,   0x1p-24f,  0x1p-15f,   0x1p-14f,    1.0f,
                           0x1.002p0f, 0x1.01p0f, 0x1.001p0f, 0x1.003p0f,  0x1.03p0f,
                           65504.0f,   65520.0f,  65536.0f,   0x1.ffp127f, 0x1.fep127f};
  for (const float border : borders) {
    for (int step = -2; step <= 2; ++step) {
      const uint32_t word = word_of(border) + static_cast<uint32_t>(step);
      all.push_back(float_of(word));
      all.push_back(-float_of(word));
    }
  }
  all.push_back(std::numeric_limits<float>::infinity());
  all.push_back(-std::numeric_limits<float>::infinity());
  all.push_back(std::numeric_limits<float>::quiet_NaN());
  all.push_back(-std::numeric_limits<float>::quiet_NaN());
  std::mt19937 random(1);
  while (all.size() < 16384) {
    const uint32_t word = random();
    all.push_back(float_of(word));
    all.push_back(float_of(0x33000000u + word % 0x15000000u));  // 2^-25 to 2^17: what f16 resolves
    // Ties of bf16, f16 and tf32.
    all.push_back(float_of((word & 0xffff0000u) | 0x8000u));
    all.push_back(float_of((0x38000000u + (word & 0x0fffe000u)) | 0x1000u));
  }
  return all;
}

template <class T>
struct ConvertParams {
  const T* narrow;  // [65536]
  const float* wide;
  unsigned num_wide;
  float* widened;  // [65536]
  T* narrowed;
};
template <class T>
VARLEN_RNN_KERNEL convert_kernel(ConvertParams<T> p) {
  const unsigned step = simt::num_threads() * simt::num_blocks();
  const unsigned first = simt::block() * simt::num_threads() + simt::thread();
  for (unsigned i = first; i < 65536; i += step) {
    const T narrow = simt::load(p.narrow + i);
    // to_float and to_compute agree, or the result is 1234.
    const float v = simt::to_float(narrow);
    const bool same = simt::float_as_word(v) == simt::float_as_word(simt::to_compute(narrow));
    simt::store(p.widened + i, same ? v : 1234.0f);
  }
  for (unsigned i = first; i < p.num_wide; i += step) {
    simt::store(p.narrowed + i, simt::from_compute<T>(simt::load(p.wide + i)));
  }
}

template <class T>
void test_conversions() {
  using N = Narrow<T>;
  Buffer<T> narrow(65536);
  for (uint32_t i = 0; i < 65536; ++i) narrow[i].bits = static_cast<uint16_t>(i);
  const Buffer<float> wide(sample_floats());
  Buffer<float> widened(65536);
  Buffer<T> narrowed(wide.size());
  run({8, 256, 0, 1, nullptr}, convert_kernel<T>,
      {narrow.data(), wide.data(), static_cast<unsigned>(wide.size()), widened.data(),
       narrowed.data()});
  for (uint32_t i = 0; i < 65536; ++i) {
    const float want = decode(i, N::kExponent, N::kMantissa);
    if (std::isnan(want) && std::isnan(widened[i])) continue;
    expect_same("to_float", i, widened[i], want);
  }
  for (size_t i = 0; i < wide.size(); ++i) {
    if (std::isnan(wide[i])) {
      expect(std::isnan(decode(narrowed[i].bits, N::kExponent, N::kMantissa)), "NaN is lost");
    } else {
      expect_same("from_compute", i, narrowed[i].bits, encode<T>(wide[i]));
    }
  }
}

struct WordParams {
  const float* in;
  unsigned n;
  uint32_t* tf32;
  uint32_t* words;  // 5 for each input
};
VARLEN_RNN_KERNEL word_kernel(WordParams p) {
  for (unsigned i = simt::thread(); i < p.n; i += simt::num_threads()) {
    const float v = simt::load(p.in + i);
    const uint32_t word = simt::float_as_word(v);
    simt::store(p.tf32 + i, simt::to_tf32(v));
    simt::bf16 low_b;
    simt::bf16 high_b;
    simt::unpack(word, low_b, high_b);
    simt::f16 low_f;
    simt::f16 high_f;
    simt::unpack(word, low_f, high_f);
    uint32_t* words = p.words + 5 * i;
    simt::store(words, uint32_t{low_b.bits} + 3 * high_f.bits);
    simt::store(words + 1, simt::pack(low_b, high_b));
    simt::store(words + 2, simt::pack(high_f, low_f));
    simt::store(words + 3, simt::float_as_word(simt::to_compute(simt::word_as_float(word))));
    simt::store(words + 4, simt::float_as_word(simt::from_compute<float>(simt::to_float(v))));
  }
}

inline void test_words() {
  const Buffer<float> in(sample_floats());
  Buffer<uint32_t> tf32(in.size());
  Buffer<uint32_t> words(5 * in.size());
  run({1, 128, 0, 1, nullptr}, word_kernel,
      {in.data(), static_cast<unsigned>(in.size()), tf32.data(), words.data()});
  for (size_t i = 0; i < in.size(); ++i) {
    const uint32_t word = word_of(in[i]);
    if (std::isnan(in[i])) {
      expect(std::isnan(float_of(tf32[i])), "to_tf32 loses NaN");
    } else {
      // 10 mantissa bits: half an integer rounds away from zero.
      int exponent = 0;
      const double mantissa = std::frexp(static_cast<double>(in[i]), &exponent);
      const int bits = std::min(11, exponent + 126 + 10);  // fewer below the normal numbers
      const double rounded = std::ldexp(std::round(std::ldexp(mantissa, bits)), exponent - bits);
      expect_same("to_tf32", i, tf32[i],
                  word_of(std::isinf(in[i]) ? in[i] : static_cast<float>(rounded)));
    }
    const uint32_t low = word & 0xffff;
    const uint32_t high = word >> 16;
    expect_same("unpack", i, words[5 * i], low + 3 * high);
    expect_same("pack(bf16)", i, words[5 * i + 1], word);
    expect_same("pack(f16)", i, words[5 * i + 2], high | low << 16);
    expect_same("word_as_float", i, words[5 * i + 3], word);
    expect_same("from_compute<float>", i, words[5 * i + 4], word);
  }
}

struct FunctionParams {
  const float* in;
  unsigned n;
  float* out;    // sigmoid, tanh, fast_sigmoid, fast_tanh of each input
  double* wide;  // sigmoid, tanh
};
VARLEN_RNN_KERNEL function_kernel(FunctionParams p) {
  for (unsigned i = simt::thread(); i < p.n; i += simt::num_threads()) {
    const float x = simt::load(p.in + i);
    simt::store(p.out + 4 * i, simt::sigmoid(x));
    simt::store(p.out + 4 * i + 1, simt::tanh(x));
    simt::store(p.out + 4 * i + 2, simt::fast_sigmoid(x));
    simt::store(p.out + 4 * i + 3, simt::fast_tanh(x));
    const double x_wide = simt::to_compute(static_cast<double>(x));
    simt::store(p.wide + 2 * i, simt::from_compute<double>(simt::sigmoid(x_wide)));
    simt::store(p.wide + 2 * i + 1, simt::tanh(x_wide));
  }
}

inline void test_functions() {
  std::vector<float> inputs = sample_floats();
  for (int i = -2000; i <= 2000; ++i) inputs.push_back(static_cast<float>(i) * 0.05f);
  const Buffer<float> in(inputs);
  Buffer<float> out(4 * in.size());
  Buffer<double> wide(2 * in.size());
  run({1, 256, 0, 1, nullptr}, function_kernel,
      {in.data(), static_cast<unsigned>(in.size()), out.data(), wide.data()});
  const auto check = [](const char* name, float x, double got, double want, double relative,
                        double absolute) {
    const bool good = std::isnan(x)
                          ? std::isnan(got)
                          : std::fabs(got - want) <= relative * std::fabs(want) + absolute;
    expect(good, std::string(name) + " of " + std::to_string(x) + ": got " + std::to_string(got) +
                     ", expected " + std::to_string(want));
  };
  for (size_t i = 0; i < in.size(); ++i) {
    const float x = in[i];
    const double sigmoid = 1.0 / (1.0 + std::exp(-static_cast<double>(x)));
    const double tanh = std::tanh(static_cast<double>(x));
    check("sigmoid", x, out[4 * i], sigmoid, 5e-7, 1e-38);
    check("tanh", x, out[4 * i + 1], tanh, 5e-7, 0);
    check("fast_sigmoid", x, out[4 * i + 2], sigmoid, 0, 1e-6);
    check("fast_tanh", x, out[4 * i + 3], tanh, 0, 2e-6);
    check("sigmoid(double)", x, wide[2 * i], sigmoid, 1e-15, 0);
    check("tanh(double)", x, wide[2 * i + 1], tanh, 1e-15, 0);
  }
}

inline void test_numbers(Report& report) {
  report.run_case("bf16 conversions", test_conversions<simt::bf16>);
  report.run_case("f16 conversions", test_conversions<simt::f16>);
  report.run_case("words, pack, tf32", test_words);
  report.run_case("sigmoid, tanh", test_functions);
}

}  // namespace varlen_rnn
