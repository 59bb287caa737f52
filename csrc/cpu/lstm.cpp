// LSTM on one instruction set; compiled once for each of them.
//
//   i, f, o = sigmoid(...), g = tanh(...)   of W_ih x_t + b_ih + W_hh h_{t-1} + b_hh
//   c_t = f * c_{t-1} + i * g
//   h_t = o * tanh(c_t), or W_hr (o * tanh(c_t)) with a projection
#include "cpu/backward-inl.h"
#include "cpu/float-layer-inl.h"
#include "cpu/math-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {
namespace {

struct Lstm {
  static constexpr int kGates = 4;
  static constexpr bool kKeepsStateGradient = false;
  // A block is two vectors, (i, f) and (g, o) of half a vector of units each: narrow enough for
  // tall tiles.
  template <class T>
  static constexpr int kUnits = kLanes<T> / 2;

  static constexpr bool has_hidden_bias(int64_t) { return false; }

  template <class T, int R, int NB, bool training, class Matrix>
  static __attribute__((noinline)) void step(const StepArgs<T>& args, Matrix matrix, const T*,
                                             int64_t row, int64_t block) {
    constexpr int kUnitsT = kUnits<T>, kWidth = 2 * kLanes<T>;
    Vec<T> sums[R][NB * 2];
    matrix.template times<R, NB>(sums, args.h + row * args.ldh, args.ldh, block);
    const T* g = args.g + row * args.ldg + block * kWidth;
    VR_UNROLL
    for (int r = 0; r < R; ++r) {
      VR_UNROLL
      for (int v = 0; v < NB * 2; ++v) sums[r][v] += load(g + r * args.ldg + v * kLanes<T>);
    }

    // Two (row, block) pairs at a time fill whole vectors: all their i, all their f, and so on. An
    // odd one is paired with itself.
    VR_UNROLL
    for (int pair = 0; pair < R * NB; pair += 2) {
      const int other = pair + 1 < R * NB ? pair + 1 : pair;
      const int r0 = pair / NB, b0 = pair % NB, r1 = other / NB, b1 = other % NB;
      const Vec<T> if0 = sums[r0][2 * b0], if1 = sums[r1][2 * b1];
      const Vec<T> go0 = sums[r0][2 * b0 + 1], go1 = sums[r1][2 * b1 + 1];
      const int64_t unit0 = (block + b0) * kUnitsT, unit1 = (block + b1) * kUnitsT;
      T* c0 = args.c + (row + r0) * args.ldc + unit0;
      T* c1 = args.c + (row + r1) * args.ldc + unit1;

      const Vec<T> i = sigmoid<T>(first_halves<T>(if0, if1));
      const Vec<T> f = sigmoid<T>(second_halves<T>(if0, if1));
      const Vec<T> g_ = tanh<T>(first_halves<T>(go0, go1));
      const Vec<T> o = sigmoid<T>(second_halves<T>(go0, go1));
      const Vec<T> c = fma(f, load_halves<T>(c0, c1), i * g_);
      const Vec<T> h = o * tanh<T>(c);

      store_halves<T>(c0, c1, c);
      store_halves<T>(args.h_next + (row + r0) * args.ld_next + unit0,
                      args.h_next + (row + r1) * args.ld_next + unit1, h);
      if constexpr (training) {
        const int64_t H = args.hidden_size;
        T* gates0 = args.gates + (row + r0) * args.ld_gates + unit0;
        T* gates1 = args.gates + (row + r1) * args.ld_gates + unit1;
        T* cells0 = args.cells + (row + r0) * args.ld_cells + unit0;
        T* cells1 = args.cells + (row + r1) * args.ld_cells + unit1;
        const Vec<T> values[4] = {i, f, g_, o};
        VR_UNROLL
        for (int gate = 0; gate < 4; ++gate) {
          store_halves_first<T>(gates0 + gate * H, gates1 + gate * H, values[gate], H - unit0,
                                H - unit1);
        }
        store_halves_first<T>(cells0, cells1, c, H - unit0, H - unit1);
      }
    }
  }

  // d_gates holds i, f, g, o, as the weights do.
  static constexpr int64_t input_row(int64_t j, int64_t) { return j; }
  static constexpr int64_t hidden_column(int64_t) { return 0; }

  template <class T>
  static void differentiate(const TokenArgs<T>& args) {
    const int64_t H = args.hidden_size;
    const Vec<T> one = broadcast(T{1});
    for (int64_t u = 0; u < args.num_units; u += kLanes<T>) {
      const int64_t left = args.num_units - u;
      const Vec<T> i = load_first(args.gates + u, left);
      const Vec<T> f = load_first(args.gates + H + u, left);
      const Vec<T> g = load_first(args.gates + 2 * H + u, left);
      const Vec<T> o = load_first(args.gates + 3 * H + u, left);
      const Vec<T> tanh_c = tanh<T>(load_first(args.c + u, left));
      const Vec<T> d_h = load_first(args.d_h + u, left);
      const Vec<T> d_o = d_h * tanh_c;
      const Vec<T> d_c = fma(d_h * o, one - tanh_c * tanh_c, load_first(args.d_c + u, left));
      const Vec<T> d_f = d_c * load_first(args.c_previous + u, left);
      store_first(args.d_gates + u, d_c * g * i * (one - i), left);
      store_first(args.d_gates + H + u, d_f * f * (one - f), left);
      store_first(args.d_gates + 2 * H + u, d_c * i * (one - g * g), left);
      store_first(args.d_gates + 3 * H + u, d_o * o * (one - o), left);
      store_first(args.d_c + u, d_c * f, left);
      if (args.hidden != nullptr) store_first(args.hidden + u, o * tanh_c, left);
    }
  }
};

}  // namespace

size_t lstm_forward_scratch(const Forward& p) { return float_scratch<Lstm>(p); }
void lstm_forward(const Forward& p) { float_forward<Lstm>(p); }

size_t lstm_backward_scratch(const Backward& p) {
  return with_compute_type(p.call.dtype,
                           [&](auto zero) { return backward_scratch<Lstm, decltype(zero)>(p); });
}

void lstm_backward(const Backward& p) {
  with_compute_type(p.call.dtype, [&](auto zero) { return backward<Lstm, decltype(zero)>(p); });
}

}  // namespace varlen_rnn::VARLEN_RNN_ISA
