// What kernels_test needs to call a kernel: tensors on the heap, and random calls.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "params.h"

namespace varlen_rnn {

using Values = std::vector<double>;

struct Format {
  const char* name;
  int bytes;
  int mantissa;      // explicit bits
  int min_exponent;  // of the smallest normal number
};

inline const Format& format_of(Dtype dtype) {
  static constexpr Format kFormats[] = {{"float32", 4, 23, -126},
                                        {"float64", 8, 52, -1022},
                                        {"bfloat16", 2, 7, -126},
                                        {"float16", 2, 10, -14}};
  return kFormats[static_cast<int>(dtype)];
}

// A 16-bit number; infinity reads as NaN.
inline double decode(uint16_t bits, const Format& format) {
  const int exponent = (bits & 0x7fff) >> format.mantissa;
  if (exponent == 0x7fff >> format.mantissa) return std::numeric_limits<double>::quiet_NaN();
  const int implicit = exponent > 0 ? 1 << format.mantissa : 0;
  const double magnitude =
      std::ldexp(implicit | (bits & ((1 << format.mantissa) - 1)),
                 std::max(exponent, 1) - 1 + format.min_exponent - format.mantissa);
  return bits & 0x8000 ? -magnitude : magnitude;
}

// Rounds towards zero; what is not a normal number becomes 0.
inline uint16_t encode(double x, const Format& format) {
  int exponent;
  const double fraction = std::frexp(std::fabs(x), &exponent);  // in [0.5, 1)
  const int biased = exponent - format.min_exponent;
  if (biased <= 0) return 0;
  const int kept = static_cast<int>(std::ldexp(2 * fraction - 1, format.mantissa));
  return static_cast<uint16_t>((x < 0 ? 0x8000 : 0) | biased << format.mantissa | kept);
}

// Exactly `size` elements on the heap, at first with all bits set: NaN in every dtype. Without elements it is
// a null pointer. A shifted tensor begins one element into its block: an element's alignment must do.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Dtype dtype, int64_t size, bool shifted)
      : dtype_(dtype), size_(size), start_(shifted ? format_of(dtype).bytes : 0) {
    bytes_.assign(static_cast<size_t>(start_ + size * format_of(dtype).bytes), 0xff);
  }

  Dtype dtype() const { return dtype_; }
  int64_t size() const { return size_; }
  const void* data() const { return size_ == 0 ? nullptr : bytes_.data() + start_; }
  void* data() { return size_ == 0 ? nullptr : bytes_.data() + start_; }
  // Where the d-th of D equal parts begins.
  void* part(int64_t d, int64_t D) {
    return size_ == 0 ? nullptr
                      : bytes_.data() + start_ + d * (size_ / D) * format_of(dtype_).bytes;
  }
  bool operator==(const Tensor& other) const { return bytes_ == other.bytes_; }
  const std::vector<unsigned char>& bytes() const { return bytes_; }

  bool untouched(int64_t i) const {
    const unsigned char* first = element(i);
    return std::all_of(first, first + format_of(dtype_).bytes,
                       [](int byte) { return byte == 0xff; });
  }

  void set(int64_t i, double value) {
    unsigned char* to = const_cast<unsigned char*>(element(i));
    const float single = static_cast<float>(value);
    if (dtype_ == Dtype::kFloat64) {
      std::memcpy(to, &value, 8);
    } else if (dtype_ == Dtype::kFloat32) {
      std::memcpy(to, &single, 4);
    } else {
      const uint16_t half = encode(value, format_of(dtype_));
      std::memcpy(to, &half, 2);
    }
  }

  Values values() const {
    Values result(static_cast<size_t>(size_));
    for (int64_t i = 0; i < size_; ++i) {
      float single;
      uint16_t half;
      if (dtype_ == Dtype::kFloat64) {
        std::memcpy(&result[i], element(i), 8);
      } else if (dtype_ == Dtype::kFloat32) {
        std::memcpy(&single, element(i), 4);
        result[i] = single;
      } else {
        std::memcpy(&half, element(i), 2);
        result[i] = decode(half, format_of(dtype_));
      }
    }
    return result;
  }

 private:
  const unsigned char* element(int64_t i) const {
    return bytes_.data() + start_ + i * format_of(dtype_).bytes;
  }

  Dtype dtype_ = Dtype::kFloat32;
  int64_t size_ = 0, start_ = 0;
  std::vector<unsigned char> bytes_;
};

// The numbers of the calls to run: those on the command line, or all.
inline std::vector<int64_t> chosen_calls(int argc, char** argv, int64_t count) {
  std::vector<int64_t> numbers;
  for (int i = 1; i < argc; ++i) numbers.push_back(std::atoll(argv[i]));
  for (int64_t n = 0; n < count && argc == 1; ++n) numbers.push_back(n);
  return numbers;
}

inline void plain_for(int64_t n, void (*body)(void*, int64_t, int64_t), void* context) {
  body(context, 0, n);
}

// At most 3 threads, so that of 7 workers some share one, and of two teams of 3 both.
inline void threaded_for(int64_t n, void (*body)(void*, int64_t, int64_t), void* context) {
  const int64_t count = std::min<int64_t>(n, 3);
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < count; ++t) {
    threads.emplace_back([=] { body(context, n * t / count, n * (t + 1) / count); });
  }
  for (std::thread& thread : threads) thread.join();
}

// One number for all bytes of many tensors (FNV-1a): two machines with the same one had the same results.
class Digest {
 public:
  template <class Tensors>
  void add(const Tensors& tensors) {
    for (const Tensor& tensor : tensors) {
      for (unsigned char byte : tensor.bytes()) value_ = (value_ ^ byte) * 0x100000001b3;
    }
  }
  void print() const {
    std::printf("digest with fused multiply-add: %016llx\n",
                static_cast<unsigned long long>(value_));
  }

 private:
  uint64_t value_ = 0xcbf29ce484222325;
};

class Random {
 public:
  explicit Random(int64_t seed) : engine_(static_cast<uint64_t>(seed)) {}
  int64_t below(int64_t n) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(n)); }
  bool one_in(int64_t n) { return below(n) == 0; }
  double uniform(double largest) {
    return largest * (std::ldexp(static_cast<double>(engine_()), -63) - 1);
  }

 private:
  std::mt19937_64 engine_;  // and none of std's distributions, which differ between libraries
};

// All that the kernels write; weights' gradients are stacked over directions.
enum {
  kOut,
  kHN,
  kCN,
  kGates,
  kCells,
  kDX,
  kDH0,
  kDC0,
  kDWeightIh,
  kDWeightHh,
  kDBiasIh,
  kDBiasHh,
  kDWeightHr,
  kNumResults
};
inline constexpr const char* kNames[] = {
    "out",   "h_n",         "c_n",         "gates",     "cells",     "d_x",        "d_h_0",
    "d_c_0", "d_weight_ih", "d_weight_hh", "d_bias_ih", "d_bias_hh", "d_weight_hr"};
using Results = std::array<Tensor, kNumResults>;

// A random call; letters as in params.h.
struct Problem {
  Dtype dtype, compute;
  bool lstm, projected, threads, teams, shifted, wants_x, wants_weights;
  int64_t D, I, H, P, B, R, N = 0, S, G;
  int64_t gates;  // 4 of LSTM, 3 of GRU
  int64_t x_stride;
  std::vector<int64_t> lengths, batch_sizes, first_token, rows, reverse, initial_row, final_row;
  Tensor weight_ih[2], weight_hh[2], bias_ih[2], bias_hh[2], weight_hr[2];
  Tensor x, h_0, c_0, d_out, d_h_n, d_c_n, d_cells;

  explicit Problem(int64_t number) {
    Random random(number);
    constexpr Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kFloat64, Dtype::kBFloat16,
                                 Dtype::kFloat16};
    dtype = kDtypes[number % 4];
    compute = dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32;
    lstm = number / 4 % 3 > 0;
    projected = number / 4 % 3 == 2;
    gates = lstm ? 4 : 3;
    D = 1 + number / 12 % 2;
    threads = random.one_in(2);
    teams = random.one_in(2);
    shifted = random.one_in(2);
    wants_x = !random.one_in(4);
    wants_weights = !random.one_in(4);

    // Sizes around every edge of vectors and blocks; or wide ones, for several blocks a tile. Few segments; or
    // many, for several parts and tiles; or both wide and many, so that a chunk is a single step.
    const bool wide = random.one_in(5), many = random.one_in(wide ? 5 : 2);
    constexpr int64_t kSizes[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33};
    constexpr int64_t kWide[] = {47, 64, 65, 97, 130};
    const auto size = [&] { return kSizes[random.below(14)]; };
    H = wide ? many ? 200 : kWide[random.below(5)] : size();
    I = size();
    P = projected ? size() : H;
    x_stride = I + (random.one_in(2) ? random.below(5) : 0);
    B = wide && many ? 50 : many ? 60 + random.below(80) : 1 + random.below(8);
    const bool one_step = random.one_in(8);  // where kernels may read matrices in place
    lay_out(random, one_step ? 1 : wide && many ? 2 : wide ? 3 : many ? 12 : 8);

    const double scale = 1 / std::sqrt(H);
    const double small =
        random.one_in(4) ? 0x1p-10 : 1;  // tanh is to be exact in relation to a small sum
    const bool biased = number / 24 % 2 == 0, stateful = number / 48 % 2 == 0;
    const auto tensor = [&](int64_t elements, double largest) {
      Tensor result(dtype, elements, shifted);
      for (int64_t i = 0; i < elements; ++i) result.set(i, random.uniform(largest));
      return result;
    };
    const auto sometimes = [&](int64_t elements, double largest) {
      return random.one_in(4) ? Tensor() : tensor(elements, largest);
    };
    for (int64_t d = 0; d < D; ++d) {
      weight_ih[d] = tensor(gates * H * I, scale);
      weight_hh[d] = tensor(gates * H * P, scale);
      if (biased) {
        bias_ih[d] = tensor(gates * H, scale);
        bias_hh[d] = tensor(gates * H, scale);
        // Some gates beyond where exp would overflow or underflow.
        for (int64_t u = 0; u < H; ++u) {
          if (!random.one_in(16)) continue;
          const int64_t gate = random.below(gates);
          bias_ih[d].set(gate * H + u, random.one_in(2) ? -1000 : 1000);
        }
      }
      if (projected) weight_hr[d] = tensor(P * H, scale);
    }
    x = Tensor(dtype, (R - 1) * x_stride + I, shifted);
    for (int64_t n = 0; n < N; ++n) {
      for (int64_t i = 0; i < I; ++i) x.set(row(n) * x_stride + i, random.uniform(small));
    }
    if (stateful) h_0 = sometimes(D * B * P, small);
    if (stateful && lstm) c_0 = sometimes(D * B * H, small);
    d_out = sometimes(R * D * P, 1);
    d_h_n = sometimes(D * B * P, 1);
    if (lstm) d_c_n = sometimes(D * B * H, 1);
    if (lstm && random.one_in(2)) {
      d_cells = Tensor(compute, D * N * H, shifted);
      for (int64_t i = 0; i < D * N * H; ++i) d_cells.set(i, random.uniform(1));
    }
  }

  int64_t row(int64_t token) const { return rows.empty() ? token : rows[token]; }

  // Segments of B rows, most rows with one, others with none or, after resets, with several.
  void lay_out(Random& random, int64_t longest) {
    struct Segment {
      int64_t length, initial_row, final_row;
    };
    std::vector<Segment> segments;
    for (int64_t b = 0; b < B; ++b) {
      const int64_t count = random.one_in(4) ? random.below(4) : 1;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t initial = i == 0 && !random.one_in(6) ? b : -1;
        const int64_t last = i == count - 1 && !random.one_in(6) ? b : -1;
        segments.push_back({1 + random.below(longest), initial, last});
      }
    }
    if (segments.empty()) segments.push_back({longest, 0, B - 1});
    std::stable_sort(segments.begin(), segments.end(),
                     [](const Segment& a, const Segment& b) { return a.length > b.length; });
    for (size_t i = segments.size() - 1; i > 0; --i) {  // any order of rows among equal lengths
      const size_t j = static_cast<size_t>(random.below(static_cast<int64_t>(i) + 1));
      if (segments[i].length == segments[j].length) std::swap(segments[i], segments[j]);
    }
    G = static_cast<int64_t>(segments.size());
    S = segments[0].length;
    for (const Segment& segment : segments) {
      lengths.push_back(segment.length);
      initial_row.push_back(segment.initial_row);
      final_row.push_back(segment.final_row);
    }
    for (int64_t s = 0; s < S; ++s) {
      first_token.push_back(N);
      const auto longer = [s](int64_t length) { return length > s; };
      batch_sizes.push_back(std::count_if(lengths.begin(), lengths.end(), longer));
      N += batch_sizes.back();
    }
    for (int64_t s = 0; s < S && D == 2; ++s) {
      for (int64_t j = 0; j < batch_sizes[s]; ++j) {
        reverse.push_back(first_token[lengths[j] - 1 - s] + j);
      }
    }
    const bool identity = random.one_in(3);
    R = identity ? N : N + random.below(20);
    for (int64_t r = 0; r < R; ++r) rows.push_back(r);
    for (int64_t r = R - 1; r > 0; --r) std::swap(rows[r], rows[random.below(r + 1)]);
    rows.resize(identity ? 0 : N);
    for (auto* array : {&batch_sizes, &first_token, &rows, &reverse, &initial_row, &final_row}) {
      array->shrink_to_fit();  // exactly their size, as tensors are
    }
  }

  std::array<int64_t, kNumResults> result_sizes() const {
    const int64_t cells = lstm, hr = projected, d_x = wants_x, weights = wants_weights * D * gates;
    return {R * D * P,
            D * B * P,
            cells * D * B * H,
            D * N * 4 * H,
            cells * D * N * H,
            d_x * R * I,
            D * B * P,
            cells * D * B * H,
            weights * H * I,
            weights * H * P,
            weights * H,
            weights * H,
            wants_weights * hr * D * P * H};
  }
};

}  // namespace varlen_rnn
