// What math_test.cpp calls of math_functions.cpp, which is compiled once for each instruction set.
#pragma once

#include <cstdint>

namespace varlen_rnn {

enum { kExp, kExpm1, kSigmoid, kTanh, kNumMathFunctions };  // the first two are of -x
inline constexpr const char* kMathFunctionNames[] = {"exp", "expm1", "sigmoid", "tanh"};

// y[i] = function(x[i]); `count` is a multiple of 16.
#define VARLEN_RNN_DECLARE(isa)                                                  \
  namespace isa {                                                                \
  void math_of_floats(int function, const float* x, float* y, int64_t count);    \
  void math_of_doubles(int function, const double* x, double* y, int64_t count); \
  }
VARLEN_RNN_DECLARE(baseline)
VARLEN_RNN_DECLARE(avx2)
VARLEN_RNN_DECLARE(avx512)
VARLEN_RNN_DECLARE(neon)
#undef VARLEN_RNN_DECLARE

}  // namespace varlen_rnn
