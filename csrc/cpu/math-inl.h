// exp, sigmoid and tanh: one polynomial and the same operations in every instruction set, so that
// all sets with fused multiply-add give the same bits.
//
// The largest errors in ULP, of every float and of 100 million doubles (tests/cpp/math_test.cpp):
//
//            exp    expm1   sigmoid   tanh
//   float    0.98   0.89    2.41      2.28
//   double   0.97   1.13    2.36      2.54
#pragma once

#include "cpu/simd-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

// expm1(r) = r + r^2 q(r) for |r| <= ln(2) / 2, q interpolated in Chebyshev points.
template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float kMax = 87.0f;        // exp(-kMax) is still a normal number
  static constexpr float kRound = 0x1.8p23f;  // adding and subtracting it rounds to an integer
  static constexpr int kMantissaBits = 23;
  static constexpr float kInverseLn2 = 0x1.715476p0f;
  static constexpr float kLn2High = 0x1.62e4p-1f;  // 16 bits: its products with exponents are exact
  static constexpr float kLn2Low = 0x1.7f7d1cp-20f;
  static constexpr float kQ[] = {0.50000000134658092f,    0.166666666816232314f,
                                 0.0416664649252859054f,  0.00833331092548090083f,
                                 0.00139336499963092504f, 0.000198909908246736538f};
};

template <>
struct ExpConstants<double> {
  static constexpr double kMax = 708.0;
  static constexpr double kRound = 0x1.8p52;
  static constexpr int kMantissaBits = 52;
  static constexpr double kInverseLn2 = 0x1.71547652b82fep0;
  static constexpr double kLn2High = 0x1.62e42feep-1;
  static constexpr double kLn2Low = 0x1.a39ef35793c76p-33;
  static constexpr double kQ[] = {0.5,
                                  0.16666666666666671,
                                  0.0416666666666666698,
                                  0.00833333333332613513,
                                  0.00138888888888837483,
                                  0.000198412698748206253,
                                  0.0000248015873255477412,
                                  2.75572554002064244e-6,
                                  2.75572736431102953e-7,
                                  2.51052170047207452e-8,
                                  2.09146869680868772e-9};
};

// exp(-y) and expm1(-y) for y >= 0 or NaN; from kMax on, those of kMax.
template <class T>
struct ExpNegative {
  Vec<T> exp;
  Vec<T> expm1;
};

template <class T>
VR_INLINE ExpNegative<T> exp_negative(Vec<T> y) {
  using C = ExpConstants<T>;
  const Vec<T> x = -(y > broadcast(C::kMax) ? broadcast(C::kMax) : y);
  const Vec<T> shifted = fma(x, broadcast(C::kInverseLn2), broadcast(C::kRound));
  const Vec<T> n = shifted - broadcast(C::kRound);
  Vec<T> r = fma(n, broadcast(-C::kLn2High), x);
  r = fma(n, broadcast(-C::kLn2Low), r);
  constexpr int kTerms = sizeof(C::kQ) / sizeof(C::kQ[0]);
  Vec<T> q = broadcast(C::kQ[kTerms - 1]);
  VR_UNROLL
  for (int i = kTerms - 2; i >= 0; --i) q = fma(q, r, broadcast(C::kQ[i]));
  const Vec<T> p = fma(r * r, q, r);
  // `shifted` ends in n as an integer; moved into the exponent and added to 1 it makes 2^n.
  typedef typename Vector<T>::Int Int;
  const Int exponent = (Int)shifted << C::kMantissaBits;
  const Vec<T> scale = (Vec<T>)(exponent + (Int)broadcast(T{1}));
  return {fma(scale, p, scale), fma(scale, p, scale - broadcast(T{1}))};
}

template <class T>
VR_INLINE Vec<T> absolute(Vec<T> x) {
  typedef typename Vector<T>::Int Int;
  return (Vec<T>)((Int)x & ~(Int)broadcast(T{-0.0}));
}

// 1 / (1 + exp(-x)). Below -kMax the result stays at exp(-kMax).
template <class T>
VR_INLINE Vec<T> sigmoid(Vec<T> x) {
  const Vec<T> one = broadcast(T{1});
  const Vec<T> e = exp_negative<T>(absolute<T>(x)).exp;
  return (x < Vec<T>{} ? e : one) / (one + e);
}

template <class T>
VR_INLINE Vec<T> tanh(Vec<T> x) {
  typedef typename Vector<T>::Int Int;
  const Vec<T> y = absolute<T>(x);
  const ExpNegative<T> e = exp_negative<T>(y + y);
  const Vec<T> magnitude = (Vec<T>{} - e.expm1) / (broadcast(T{1}) + e.exp);  // never -0
  return (Vec<T>)((Int)magnitude | ((Int)x & (Int)broadcast(T{-0.0})));
}

}  // namespace varlen_rnn::VARLEN_RNN_ISA
