// The three number formats of the persistent kernels. In 32-bit words their matrix fragments are all
// alike (see mma in gpu/warp.cuh), so kernels count words, and only what makes or reads a word differs.
// Hidden units come in pairs: one word of 16-bit values, or two of TF32.
#pragma once

#include "cuda/simt.cuh"

namespace varlen_rnn::cuda {

using simt::Shared;
using simt::Words2;

template <class T>
struct Element16 {
  using Storage = T;
  static constexpr int kPerWord = 2;
  static constexpr int kWordsOfPair = 1;

  // Two columns of a row-major matrix as a word of a fragment.
  static VARLEN_RNN_DEVICE uint32_t matrix_word(T first, T second) {
    return simt::pack(first, second);
  }
  static VARLEN_RNN_DEVICE void vector_words(float first, float second, uint32_t (&words)[1]) {
    words[0] = simt::pack(simt::from_compute<T>(first), simt::from_compute<T>(second));
  }
  // What values are once they are stored.
  static VARLEN_RNN_DEVICE void round(float (&v)[2]) {
    uint32_t words[1];
    vector_words(v[0], v[1], words);
    unpack(words[0], v);
  }

  static VARLEN_RNN_DEVICE void unpack(uint32_t word, float (&v)[2]) {
    T first, second;
    simt::unpack(word, first, second);
    v[0] = simt::to_float(first);
    v[1] = simt::to_float(second);
  }
  static VARLEN_RNN_DEVICE void load_pair(const T* from, float (&v)[2]) {
    unpack(simt::load(reinterpret_cast<const uint32_t*>(from)), v);
  }
  static VARLEN_RNN_DEVICE void load_pair(Shared<const T> from, int index, float (&v)[2]) {
    unpack(*simt::recast<const uint32_t>(from + index), v);
  }
  static VARLEN_RNN_DEVICE void store_pair(T* to, const float (&v)[2]) {
    uint32_t words[1];
    vector_words(v[0], v[1], words);
    simt::store(reinterpret_cast<uint32_t*>(to), words[0]);
  }
};

struct Bf16 : Element16<simt::bf16> {
  static VARLEN_RNN_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
    simt::mma_bf16(d, a, b0, b1);
  }
};

struct F16 : Element16<simt::f16> {
  static VARLEN_RNN_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
    simt::mma_f16(d, a, b0, b1);
  }
};

// float32 in memory and in the states, TF32 in the product.
struct Tf32 {
  using Storage = float;
  static constexpr int kPerWord = 1;
  static constexpr int kWordsOfPair = 2;

  static VARLEN_RNN_DEVICE uint32_t matrix_word(float value) { return simt::to_tf32(value); }
  static VARLEN_RNN_DEVICE void vector_words(float first, float second, uint32_t (&words)[2]) {
    words[0] = simt::to_tf32(first);
    words[1] = simt::to_tf32(second);
  }
  static VARLEN_RNN_DEVICE void round(float (&)[2]) {}

  static VARLEN_RNN_DEVICE void load_pair(const float* from, float (&v)[2]) {
    const Words2 words = simt::load(reinterpret_cast<const Words2*>(from));
    v[0] = simt::word_as_float(words.w[0]);
    v[1] = simt::word_as_float(words.w[1]);
  }
  static VARLEN_RNN_DEVICE void load_pair(Shared<const float> from, int index, float (&v)[2]) {
    const Words2 words = *simt::recast<const Words2>(from + index);
    v[0] = simt::word_as_float(words.w[0]);
    v[1] = simt::word_as_float(words.w[1]);
  }
  static VARLEN_RNN_DEVICE void store_pair(float* to, const float (&v)[2]) {
    simt::store(reinterpret_cast<Words2*>(to),
                Words2{{simt::float_as_word(v[0]), simt::float_as_word(v[1])}});
  }
  static VARLEN_RNN_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
    simt::mma_tf32(d, a, b0, b1);
  }
};

}  // namespace varlen_rnn::cuda
