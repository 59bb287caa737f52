// Vectors of one instruction set: the compiler's vector extension, and the few operations that it
// lacks.
//
// This file and the other -inl.h files are compiled once for each instruction set, into the
// namespace VARLEN_RNN_ISA. They use nothing of the standard library that could become a shared
// inline function: the linker keeps one copy of such a function, perhaps one with instructions that
// an older CPU does not have.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define VR_INLINE inline __attribute__((always_inline))
#ifdef __clang__
#define VR_UNROLL _Pragma("unroll")
#else
#define VR_UNROLL _Pragma("GCC unroll 32")
#endif

namespace varlen_rnn::VARLEN_RNN_ISA {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
inline constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
inline constexpr int kVectorRegisters = 16;
#elif defined(__ARM_NEON)
inline constexpr int kVectorBytes = 16;
inline constexpr int kVectorRegisters = 32;
#else
inline constexpr int kVectorBytes = 16;
inline constexpr int kVectorRegisters = 16;
#endif

template <class T>
struct Types;
template <>
struct Types<float> {
  using Int = int32_t;
};
template <>
struct Types<double> {
  using Int = int64_t;
};

template <class T>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
struct Vector {
  typedef T Full __attribute__((vector_size(kVectorBytes), may_alias));
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), may_alias, aligned(sizeof(T))));
  typedef T Half __attribute__((vector_size(kVectorBytes / 2), may_alias));
  typedef T UnalignedHalf
      __attribute__((vector_size(kVectorBytes / 2), may_alias, aligned(sizeof(T))));
  typedef typename Types<T>::Int Int __attribute__((vector_size(kVectorBytes), may_alias));
};

template <class T>
using Vec = typename Vector<T>::Full;
template <class T>
using Half = typename Vector<T>::Half;

template <class T>
VR_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Vector<T>::Unaligned*>(p);
}

template <class T>
VR_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Vector<T>::Unaligned*>(p) = v;
}

// The first `count` lanes, the others zero; reads nothing beyond them.
template <class T>
VR_INLINE Vec<T> load_first(const T* p, int64_t count) {
  if (count >= kLanes<T>) return load(p);
  T lanes[kLanes<T>] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}

template <class T>
VR_INLINE void store_first(T* p, Vec<T> v, int64_t count) {
  if (count >= kLanes<T>) return store(p, v);
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}

template <class T>
VR_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};  // x - 0 is x for every x, -0 and NaN included
}

// a * b + c, rounded once wherever the instruction set can.
VR_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__ARM_NEON)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

VR_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_pd(a, b, c);
#elif defined(__ARM_NEON)
  return vfmaq_f64(c, a, b);
#else
  return a * b + c;
#endif
}

template <class T>
using LaneIndices = std::make_integer_sequence<int, kLanes<T>>;
template <class T>
using HalfIndices = std::make_integer_sequence<int, kLanes<T> / 2>;

// Lanes of a, and counted behind these of b.
template <class To, class From, int... i>
VR_INLINE To shuffle(From a, From b, std::integer_sequence<int, i...>) {
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, i...);
#else  // GCC 11
  constexpr int kN = sizeof(From) / sizeof(a[0]);
  return To{(i < kN ? a : b)[i % kN]...};
#endif
}

template <class T, int... i>
VR_INLINE Vec<T> join(Half<T> a, Half<T> b, std::integer_sequence<int, i...> indices) {
  return shuffle<Vec<T>>(a, b, indices);
}

template <class T, int... i>
VR_INLINE Half<T> half(Vec<T> v, std::integer_sequence<int, i...> indices) {
  return shuffle<Half<T>>(v, v, indices);
}

template <class T, int... i>
VR_INLINE Half<T> second_half(Vec<T> v, std::integer_sequence<int, i...>) {
  return shuffle<Half<T>>(v, v, std::integer_sequence<int, (i + kLanes<T> / 2)...>{});
}

// The first halves of a and b, and their second halves.
template <class T>
VR_INLINE Vec<T> first_halves(Vec<T> a, Vec<T> b) {
  return join<T>(half<T>(a, HalfIndices<T>{}), half<T>(b, HalfIndices<T>{}), LaneIndices<T>{});
}

template <class T>
VR_INLINE Vec<T> second_halves(Vec<T> a, Vec<T> b) {
  return join<T>(second_half<T>(a, HalfIndices<T>{}), second_half<T>(b, HalfIndices<T>{}),
                 LaneIndices<T>{});
}

// One vector from and to two places, half a vector each.
template <class T>
VR_INLINE Vec<T> load_halves(const T* p, const T* q) {
  typedef typename Vector<T>::UnalignedHalf U;
  return join<T>(*reinterpret_cast<const U*>(p), *reinterpret_cast<const U*>(q), LaneIndices<T>{});
}

template <class T>
VR_INLINE void store_halves(T* p, T* q, Vec<T> v) {
  typedef typename Vector<T>::UnalignedHalf U;
  *reinterpret_cast<U*>(p) = half<T>(v, HalfIndices<T>{});
  *reinterpret_cast<U*>(q) = second_half<T>(v, HalfIndices<T>{});
}

// The first `p_count` lanes of one half and the first `q_count` of the other.
template <class T>
VR_INLINE void store_halves_first(T* p, T* q, Vec<T> v, int64_t p_count, int64_t q_count) {
  constexpr int kHalf = kLanes<T> / 2;
  if (p_count >= kHalf && q_count >= kHalf) return store_halves<T>(p, q, v);
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int64_t i = 0; i < kHalf && i < p_count; ++i) p[i] = lanes[i];
  for (int64_t i = 0; i < kHalf && i < q_count; ++i) q[i] = lanes[kHalf + i];
}

}  // namespace varlen_rnn::VARLEN_RNN_ISA
