// The functions of math-inl.h over arrays; compiled once for each instruction set, as kernels are.
#include "math_functions.h"

#include "cpu/math-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {
namespace {

template <class T>
void apply(int function, const T* x, T* y, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const Vec<T> v = load(x + i);
    if (function == kExp) store(y + i, exp_negative<T>(v).exp);
    if (function == kExpm1) store(y + i, exp_negative<T>(v).expm1);
    if (function == kSigmoid) store(y + i, sigmoid<T>(v));
    if (function == kTanh) store(y + i, tanh<T>(v));
  }
}

}  // namespace

void math_of_floats(int function, const float* x, float* y, int64_t count) {
  apply(function, x, y, count);
}

void math_of_doubles(int function, const double* x, double* y, int64_t count) {
  apply(function, x, y, count);
}

}  // namespace varlen_rnn::VARLEN_RNN_ISA
