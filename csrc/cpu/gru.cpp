// GRU on one instruction set; compiled once for each of them.
//
//   r, z = sigmoid(W_i x_t + b_i + W_h h_{t-1} + b_h)
//   n = tanh(W_in x_t + b_in + r * (W_hn h_{t-1} + b_hn))
//   h_t = (1 - z) * n + z * h_{t-1}
#include "cpu/backward-inl.h"
#include "cpu/float-layer-inl.h"
#include "cpu/math-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {
namespace {

struct Gru {
  static constexpr int kGates = 3;
  static constexpr bool kKeepsStateGradient = true;
  // A block is three vectors, r, z and n of a vector of units each.
  template <class T>
  static constexpr int kUnits = kLanes<T>;

  // b_hn is inside the product with r, so it cannot be added to the input's side as b_hr and b_hz
  // are.
  static constexpr bool has_hidden_bias(int64_t gate) { return gate == 2; }

  template <class T, int R, int NB, bool training, class Matrix>
  static __attribute__((noinline)) void step(const StepArgs<T>& args, Matrix matrix,
                                             const T* hidden_bias, int64_t row, int64_t block) {
    constexpr int kWidth = 3 * kLanes<T>;
    Vec<T> sums[R][NB * 3];
    matrix.template times<R, NB>(sums, args.h + row * args.ldh, args.ldh, block);

    VR_UNROLL
    for (int j = 0; j < R * NB; ++j) {
      const int k = j / NB, b = j % NB;
      const int64_t unit = (block + b) * kLanes<T>;
      const T* g = args.g + (row + k) * args.ldg + (block + b) * kWidth;
      const Vec<T> r = sigmoid<T>(sums[k][3 * b] + load(g));
      const Vec<T> z = sigmoid<T>(sums[k][3 * b + 1] + load(g + kLanes<T>));
      const Vec<T> h_n =
          sums[k][3 * b + 2] + load(hidden_bias + (block + b) * kWidth + 2 * kLanes<T>);
      const Vec<T> n = tanh<T>(fma(r, h_n, load(g + 2 * kLanes<T>)));
      const Vec<T> h = fma(z, load(args.h + (row + k) * args.ldh + unit) - n, n);
      store(args.h_next + (row + k) * args.ld_next + unit, h);
      if constexpr (training) {
        const int64_t H = args.hidden_size;
        T* gates = args.gates + (row + k) * args.ld_gates + unit;
        const Vec<T> values[4] = {r, z, n, h_n};
        VR_UNROLL
        for (int gate = 0; gate < 4; ++gate) {
          store_first(gates + gate * H, values[gate], H - unit);
        }
      }
    }
  }

  // d_gates holds n on the input's side, r, z, n on the hidden side: the first three go through
  // weight_ih, the last three through weight_hh.
  static constexpr int64_t input_row(int64_t j, int64_t H) { return j < H ? 2 * H + j : j - H; }
  static constexpr int64_t hidden_column(int64_t H) { return H; }

  template <class T>
  static void differentiate(const TokenArgs<T>& args) {
    const int64_t H = args.hidden_size;
    const Vec<T> one = broadcast(T{1});
    for (int64_t u = 0; u < args.num_units; u += kLanes<T>) {
      const int64_t left = args.num_units - u;
      const Vec<T> r = load_first(args.gates + u, left);
      const Vec<T> z = load_first(args.gates + H + u, left);
      const Vec<T> n = load_first(args.gates + 2 * H + u, left);
      const Vec<T> h_n = load_first(args.gates + 3 * H + u, left);
      const Vec<T> d_h = load_first(args.d_h + u, left);
      const Vec<T> d_z = d_h * (load_first(args.h_previous + u, left) - n);
      const Vec<T> d_n = d_h * (one - z) * (one - n * n);
      store_first(args.d_gates + u, d_n, left);
      store_first(args.d_gates + H + u, d_n * h_n * r * (one - r), left);
      store_first(args.d_gates + 2 * H + u, d_z * z * (one - z), left);
      store_first(args.d_gates + 3 * H + u, d_n * r, left);
      store_first(args.d_h + u, d_h * z, left);
    }
  }
};

}  // namespace

size_t gru_forward_scratch(const Forward& p) { return float_scratch<Gru>(p); }
void gru_forward(const Forward& p) { float_forward<Gru>(p); }

size_t gru_backward_scratch(const Backward& p) {
  return with_compute_type(p.call.dtype,
                           [&](auto zero) { return backward_scratch<Gru, decltype(zero)>(p); });
}

void gru_backward(const Backward& p) {
  with_compute_type(p.call.dtype, [&](auto zero) { return backward<Gru, decltype(zero)>(p); });
}

}  // namespace varlen_rnn::VARLEN_RNN_ISA
