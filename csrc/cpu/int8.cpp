// LSTM and GRU with int8 weights on one instruction set, for inference; compiled once for each of
// them. The cells are those of lstm.cpp and gru.cpp; both products are int8-inl.h's.
#include "cpu/int8-layer-inl.h"
#include "cpu/math-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {
namespace {

// A cell's step for one row and the units of one group: `x` and `h` are the products of the input
// and of the previous state, a group's columns each.
struct Int8Lstm {
  static constexpr int kGates = 4;
  static void step(const float* x, const float* h, const float*, float* c, float* h_next) {
    for (int u = 0; u < kGroup; u += kLanes<float>) {
      const auto gate = [&](int g) { return load(x + g * kGroup + u) + load(h + g * kGroup + u); };
      const Vec<float> i = sigmoid<float>(gate(0)), f = sigmoid<float>(gate(1));
      const Vec<float> g = tanh<float>(gate(2)), o = sigmoid<float>(gate(3));
      const Vec<float> c_next = fma(f, load(c + u), i * g);
      store(c + u, c_next);
      store(h_next + u, o * tanh<float>(c_next));
    }
  }
};

struct Int8Gru {
  static constexpr int kGates = 3;
  static void step(const float* x, const float* h, const float* h_previous, float*, float* h_next) {
    for (int u = 0; u < kGroup; u += kLanes<float>) {
      const auto gate = [&](int g) { return load(x + g * kGroup + u) + load(h + g * kGroup + u); };
      const Vec<float> r = sigmoid<float>(gate(0)), z = sigmoid<float>(gate(1));
      const Vec<float> n = tanh<float>(fma(r, load(h + 2 * kGroup + u), load(x + 2 * kGroup + u)));
      store(h_next + u, fma(z, load(h_previous + u) - n, n));
    }
  }
};

}  // namespace

size_t lstm_int8_scratch(const Forward& p) { return forward_scratch<Int8Layer<Int8Lstm>>(p); }
void lstm_int8(const Forward& p) { forward<Int8Layer<Int8Lstm>>(p); }
size_t gru_int8_scratch(const Forward& p) { return forward_scratch<Int8Layer<Int8Gru>>(p); }
void gru_int8(const Forward& p) { forward<Int8Layer<Int8Gru>>(p); }

}  // namespace varlen_rnn::VARLEN_RNN_ISA
