// exp, expm1, sigmoid and tanh of math-inl.h on every instruction set that this CPU has: the errors in ULP (the
// distance of neighbouring numbers at the true value) against libm in a wider type, and what is promised exactly.
// Sets with fused multiply-add must agree in every bit.
//
// float: every 107th bit pattern, or all of them (`math_test --all`, ten minutes); double: random ones; and of
// both all numbers beside each border where a function changes its ways.
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "math_functions.h"
#ifdef VARLEN_RNN_HAVE_AVX2
#include "cpu/x86_features.h"
#endif

namespace varlen_rnn {
namespace {

// kBounds are the functions' largest errors in ULP, in the order of kMathFunctionNames: those that math-inl.h
// states, rounded up to a tenth.
template <class T>
struct Traits;

template <>
struct Traits<float> {
  using Bits = uint32_t;
  using Wide = double;
  static constexpr const char* kName = "float";
  static constexpr float kMax = 87;
  static constexpr double kBounds[] = {1.0, 0.9, 2.5, 2.3};
};

template <>
struct Traits<double> {
  using Bits = uint64_t;
  using Wide = long double;
  static constexpr const char* kName = "double";
  static constexpr double kMax = 708;
  static constexpr double kBounds[] = {1.0, 1.2, 2.4, 2.6};
};

template <class T>
typename Traits<T>::Bits to_bits(T x) {
  typename Traits<T>::Bits bits;
  std::memcpy(&bits, &x, sizeof(T));
  return bits;
}

template <class T>
T from_bits(typename Traits<T>::Bits bits) {
  T x;
  std::memcpy(&x, &bits, sizeof(T));
  return x;
}

struct Set {
  const char* name;
  bool fused;
  void (*of_floats)(int, const float*, float*, int64_t);
  void (*of_doubles)(int, const double*, double*, int64_t);

  void apply(int f, const float* x, float* y, int64_t n) const { of_floats(f, x, y, n); }
  void apply(int f, const double* x, double* y, int64_t n) const { of_doubles(f, x, y, n); }
};

// As in dispatch.cpp: what was compiled and what this CPU has.
std::vector<Set> available_sets() {
  std::vector<Set> sets;
#ifdef VARLEN_RNN_HAVE_BASELINE
  sets.push_back({"baseline", false, baseline::math_of_floats, baseline::math_of_doubles});
#endif
#ifdef VARLEN_RNN_HAVE_AVX2
  if (has_avx2()) {
    sets.push_back({"avx2", true, avx2::math_of_floats, avx2::math_of_doubles});
  }
#endif
#ifdef VARLEN_RNN_HAVE_AVX512
  if (has_avx512()) {
    sets.push_back({"avx512", true, avx512::math_of_floats, avx512::math_of_doubles});
  }
#endif
#ifdef VARLEN_RNN_HAVE_NEON
  sets.push_back({"neon", true, neon::math_of_floats, neon::math_of_doubles});
#endif
  return sets;
}

template <class Wide>
Wide truth(int function, Wide x) {
  if (function == kExp) return std::exp(-x);
  if (function == kExpm1) return std::expm1(-x);
  if (function == kSigmoid) return 1 / (1 + std::exp(-x));
  return std::tanh(x);
}

// The distance of neighbouring T at `value`.
template <class T, class Wide>
Wide ulp_at(Wide value) {
  constexpr int kLowest = std::numeric_limits<T>::min_exponent - 1;
  const int exponent = value == 0 ? kLowest : std::ilogb(value);
  return std::ldexp(Wide{1},
                    (exponent < kLowest ? kLowest : exponent) - std::numeric_limits<T>::digits + 1);
}

template <class T>
class Test {
 public:
  explicit Test(const std::vector<Set>& sets) : sets_(sets), worst_(sets.size()) {
    for (const Set& set : sets) {
      T x[kBatch], y[kBatch];
      for (T& value : x) value = kMax;
      set.apply(kExp, x, y, kBatch);
      floor_.push_back(y[0]);
    }
  }

  void add(T x) {
    batch_[size_++] = x;
    if (size_ == kBatch) flush();
  }

  void add_near(T x, int64_t neighbours) {
    using Bits = typename Traits<T>::Bits;
    for (int64_t i = -neighbours; i <= neighbours; ++i) {
      add(from_bits<T>(to_bits(x) + static_cast<Bits>(i)));
      add(from_bits<T>(to_bits(-x) + static_cast<Bits>(i)));
    }
  }

  // Prints the largest errors; says whether nothing was wrong.
  bool finish() {
    while (size_ > 0) add(0);
    bool good = wrong_ == 0;
    for (size_t s = 0; s < sets_.size(); ++s) {
      for (int f = 0; f < kNumMathFunctions; ++f) {
        const bool within = worst_[s][f].error <= Traits<T>::kBounds[f];
        std::printf("%-8s %-6s %-7s %.4f ULP at %.17g%s\n", sets_[s].name, Traits<T>::kName,
                    kMathFunctionNames[f], worst_[s][f].error, static_cast<double>(worst_[s][f].x),
                    within ? "" : ": TOO MUCH");
        good = good && within;
      }
    }
    return good;
  }

 private:
  using Wide = typename Traits<T>::Wide;
  static constexpr T kMax = Traits<T>::kMax;
  static constexpr int64_t kBatch = 1024;
  struct Worst {
    double error = 0;
    T x = 0;
  };

  void flush() {
    for (int f = 0; f < kNumMathFunctions; ++f) check_batch(f);
    size_ = 0;
  }

  void check_batch(int f) {
    T x[kBatch], results[2][kBatch];
    Wide expected[kBatch], ulp[kBatch];
    for (int64_t i = 0; i < kBatch; ++i) {
      // exp(-y) and expm1(-y) are for y >= 0 and NaN.
      x[i] = batch_[i] < 0 && (f == kExp || f == kExpm1) ? -batch_[i] : batch_[i];
      expected[i] = truth<Wide>(f, x[i]);
      ulp[i] = ulp_at<T>(expected[i]);
    }
    const T* first_fused = nullptr;
    for (size_t s = 0; s < sets_.size(); ++s) {
      T* y = results[first_fused != nullptr];
      sets_[s].apply(f, x, y, kBatch);
      for (int64_t i = 0; i < kBatch; ++i) {
        const char* problem = check(s, f, x[i], y[i], expected[i], ulp[i]);
        // Which NaN a NaN becomes is the compiler's choice, by the order of operands.
        if (first_fused != nullptr && !std::isnan(x[i]) &&
            to_bits(y[i]) != to_bits(first_fused[i])) {
          problem = "not the bits of another set with fused multiply-add";
        }
        if (problem == nullptr || ++wrong_ > 20) continue;
        std::printf("%s %s %s(%.17g = 0x%llx) is %.17g: %s\n", sets_[s].name, Traits<T>::kName,
                    kMathFunctionNames[f], static_cast<double>(x[i]),
                    static_cast<unsigned long long>(to_bits(x[i])), static_cast<double>(y[i]),
                    problem);
      }
      if (sets_[s].fused && first_fused == nullptr) first_fused = y;
    }
  }

  // What is wrong with y = f(x), or null; remembers the largest error.
  const char* check(size_t s, int f, T x, T y, Wide expected, Wide ulp) {
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    if (std::isnan(x)) return std::isnan(y) ? nullptr : "not NaN";
    const T lowest = f == kExpm1 || f == kTanh ? -1 : 0, highest = f == kExpm1 ? 0 : 1;
    if (!(y >= lowest && y <= highest)) return "out of range";
    // exp stays where it is from kMax on, and with it sigmoid: the least that they become.
    if ((f == kExp && x > kMax) || (f == kSigmoid && x < -kMax)) {
      return to_bits(y) == to_bits(floor_[s]) ? nullptr : "not exp(-kMax)";
    }
    if (f == kSigmoid && x == kInfinity && y != 1) return "not 1";
    if (f == kTanh && std::fabs(x) == kInfinity && std::fabs(y) != 1) return "not 1 or -1";
    if (f == kTanh && std::signbit(x) != std::signbit(y)) return "of the other sign";
    if (f == kTanh && x == 0 && y != 0) return "not 0";
    const double error = static_cast<double>(std::fabs(y - expected) / ulp);
    if (error > worst_[s][f].error) worst_[s][f] = {error, x};
    return nullptr;
  }

  const std::vector<Set>& sets_;
  std::vector<std::array<Worst, kNumMathFunctions>> worst_;
  std::vector<T> floor_;  // exp(-kMax), of each set
  T batch_[kBatch];
  int64_t size_ = 0, wrong_ = 0;
};

// Where a function might change its ways.
template <class T>
void add_borders(Test<T>& test) {
  using Limits = std::numeric_limits<T>;
  constexpr T kMax = Traits<T>::kMax;
  const T borders[] = {0,
                       Limits::denorm_min(),
                       Limits::min(),
                       Limits::epsilon(),
                       1,
                       kMax / 2,
                       kMax,
                       2 * kMax,
                       Limits::max(),
                       Limits::infinity(),
                       Limits::quiet_NaN()};  // and beside infinity other NaN
  for (T border : borders) test.add_near(border, 2000);
  // exp rounds x / ln(2) to an integer, tanh 2 x / ln(2): borders are half-way between integers.
  for (T n = 0.5; n * std::log(T{2}) < kMax + 1; n += T{0.5}) {
    test.add_near(n * std::log(T{2}), 100);
    test.add_near(n * std::log(T{2}) / 2, 100);
  }
}

bool test_floats(const std::vector<Set>& sets, bool all) {
  Test<float> test(sets);
  add_borders(test);
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += all ? 1 : 107) {
    test.add(from_bits<float>(static_cast<uint32_t>(bits)));
  }
  return test.finish();
}

bool test_doubles(const std::vector<Set>& sets, bool many) {
  if (std::numeric_limits<long double>::digits <= std::numeric_limits<double>::digits) {
    std::printf("double: not tested, as nothing wider is at hand\n");
    return true;
  }
  Test<double> test(sets);
  add_borders(test);
  std::mt19937_64 random(0);
  for (int i = 0; i < (many ? 50 : 1) * 1000 * 1000; ++i) {
    const uint64_t bits = random();
    test.add(from_bits<double>(bits));
    // Most of those are far too large or small to matter: the same with an exponent in [-54, 9].
    constexpr uint64_t kExponent = uint64_t{0x7ff} << 52;
    const uint64_t exponent = 1023 - 54 + (bits >> 52) % 64;
    test.add(from_bits<double>((bits & ~kExponent) | exponent << 52));
  }
  return test.finish();
}

}  // namespace
}  // namespace varlen_rnn

int main(int argc, char** argv) {
  const bool all = argc == 2 && std::strcmp(argv[1], "--all") == 0;
  if (argc > 1 && !all) return std::printf("usage: %s [--all]\n", argv[0]), 2;
  const std::vector<varlen_rnn::Set> sets = varlen_rnn::available_sets();
  const bool floats = varlen_rnn::test_floats(sets, all);
  const bool doubles = varlen_rnn::test_doubles(sets, all);
  return floats && doubles ? 0 : 1;
}
