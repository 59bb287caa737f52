// Layers with floats for weights: which of them run, how their weights are packed, and their steps.
//
// A Cell has kGates, kUnits<T> (units of a block), has_hidden_bias(gate), and
// step<T, R, NB, training>(args, matrix, hidden_bias, row, block) for a tile of R rows and NB
// blocks.
#pragma once

#include "cpu/forward-inl.h"
#include "cpu/matrices-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

// Matrix is how the weights of weight_ih and weight_hh are read.
template <class Cell, class Matrix, bool training>
struct FloatLayer {
  using T = typename Matrix::T;
  using Compute = T;
  static constexpr int kUnits = Cell::template kUnits<T>;
  static constexpr int kWidth = Cell::kGates * kUnits;
  // Workers of a team write whole cache lines of h, at least of the widest vectors.
  static constexpr int64_t kGrain = 2;
  static constexpr int64_t kMostPieces = Matrix::kMostPieces;

  struct Rows {
    T* x;  // [chunk_tokens, ldx]
  };

  Dtype dtype;
  int64_t I, H, P, blocks, output_blocks, ldx;
  bool packs;  // in this call, and not before
  Matrix w_ih[2], w_hh[2];
  T* w_hr[2];
  T* bias[2];         // [blocks][kWidth]  what is added to the input's product
  T* hidden_bias[2];  // [blocks][kWidth]  what is added to the hidden state's, or zeros

  void arrange(const Forward& p, int64_t num_blocks, Arena& arena) {
    dtype = p.call.dtype;
    I = p.call.input_size;
    H = p.call.hidden_size;
    P = p.call.output_size;
    blocks = num_blocks;
    ldx = leading<T>(I);
    packs = p.order == WeightOrder::kMatrix || p.units != kUnits;
    const bool projected = p.weights[0].weight_hr != nullptr;
    output_blocks = projected ? ceil_div(P, kProductWidth<T>) : 0;
    for (int64_t d = 0; d < p.call.num_directions; ++d) {
      w_ih[d] = Matrix::take(p.weights[d].weight_ih, I, H, blocks, packs, arena);
      w_hh[d] = Matrix::take(p.weights[d].weight_hh, P, H, blocks, packs, arena);
      w_hr[d] = projected && !packs ? static_cast<T*>(const_cast<void*>(p.weights[d].weight_hr))
                                    : arena.template take<T>(output_blocks * kProductWidth<T> * H);
      bias[d] = arena.template take<T>(blocks * kWidth);
      hidden_bias[d] = arena.template take<T>(blocks * kWidth);
    }
  }

  Rows rows(Arena& arena, int64_t chunk_tokens, int64_t) const {
    return {arena.template take<T>(chunk_tokens * ldx)};
  }

  void pack(const Forward& p) const {
    const int64_t matrices = packs && Matrix::kPacks ? blocks : 0;
    const int64_t projections = packs ? output_blocks : 0;
    const int64_t per_direction = 1 + 2 * matrices + projections;
    in_parallel(p.call, p.call.num_directions * per_direction, [&](int64_t i) {
      const int64_t d = i / per_direction;
      const Weights& weights = p.weights[d];
      int64_t b = i % per_direction;
      if (b == 0) return pack_biases(p, d);
      b -= 1;
      if (b < matrices) return w_ih[d].template pack<Cell>(p, weights.weight_ih, H, b);
      b -= matrices;
      if (b < matrices) return w_hh[d].template pack<Cell>(p, weights.weight_hh, H, b);
      b -= matrices;
      pack_projection(p, weights.weight_hr, w_hr[d] + b * H * kProductWidth<T>, b);
    });
  }

  // Of K values of all columns.
  static int64_t block_bytes(int64_t K) {
    return K * kWidth * static_cast<int64_t>(sizeof(typename Matrix::Element)) / Matrix::kStep;
  }

  void load_token(const Rows& rows, int64_t i, const void* x) const {
    load_row(rows.x + i * ldx, x, dtype, I);
  }

  void multiply_input(const Rows& rows, int64_t d, int64_t tokens, Range range, T* g,
                      int64_t ldg) const {
    const int64_t column = range.begin * kWidth;
    product(rows.x, ldx, tokens, w_ih[d], range.begin, range.end - range.begin,
            {bias[d] + column, 0}, g + column, ldg);
  }

  void begin_step(const Rows&, const StepArgs<T>&, int64_t) const {}

  void step(const Rows&, int64_t d, const StepArgs<T>& args, int64_t active, Range range) const {
    for_each_tile<typename Matrix::Shape>(
        active, range.end - range.begin, [&](int64_t r, auto R, int64_t b, auto NB) {
          Cell::template step<T, decltype(R)::kValue, decltype(NB)::kValue, training>(
              args, w_hh[d], hidden_bias[d], r, range.begin + b);
        });
  }

  void project(int64_t d, const T* hidden, int64_t ldu, int64_t active, T* h, int64_t ldp) const {
    product<T>(hidden, ldu, active, w_hr[d], H, output_blocks, {nullptr, 0}, h, ldp);
  }

 private:
  void pack_biases(const Forward& p, int64_t d) const {
    const Weights& weights = p.weights[d];
    if (!packs) {
      const T *input = static_cast<const T*>(weights.bias_ih),
              *hidden = static_cast<const T*>(weights.bias_hh);
      for (int64_t first = 0; first < blocks * kWidth; first += kUnits) {
        const bool is_hidden = Cell::has_hidden_bias(first % kWidth / kUnits);
        for (int64_t c = first; c < first + kUnits; ++c) {
          bias[d][c] = is_hidden ? input[c] : input[c] + hidden[c];
          hidden_bias[d][c] = is_hidden ? hidden[c] : T{0};
        }
      }
      return;
    }
    const auto at_column = [&](const void* given, int64_t block, int64_t gate, int64_t u) -> T {
      const int64_t unit = block * kUnits + u;
      if (given == nullptr || unit >= H) return T{0};
      if (p.order == WeightOrder::kMatrix) return load_one<T>(given, dtype, gate * H + unit);
      return static_cast<const T*>(
          given)[(unit / p.units * Cell::kGates + gate) * p.units + unit % p.units];
    };
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t gate = 0; gate < Cell::kGates; ++gate) {
        const bool is_hidden = Cell::has_hidden_bias(gate);
        for (int64_t u = 0; u < kUnits; ++u) {
          const int64_t column = block * kWidth + gate * kUnits + u;
          const T hidden = at_column(weights.bias_hh, block, gate, u);
          const T input = at_column(weights.bias_ih, block, gate, u);
          bias[d][column] = is_hidden ? input : input + hidden;
          hidden_bias[d][column] = is_hidden ? hidden : T{0};
        }
      }
    }
  }

  void pack_projection(const Forward& p, const void* weight, T* to, int64_t block) const {
    constexpr int kColumns = kProductWidth<T>;
    const auto source = [this](int64_t c) { return c < P ? c : -1; };
    if (p.order == WeightOrder::kMatrix) {
      pack_rows_as_columns(to, H, kColumns, block * kColumns, weight, dtype, source);
    } else {
      pack_anew(to, H, kColumns, block * kColumns, static_cast<const T*>(weight), 4 * p.units,
                source);
    }
  }
};

// Calls f with a null pointer to the layer that runs a call.
template <class Cell, class T, class F>
auto with_layer(const Forward& p, const F& f) {
  constexpr int kVectors = kCellWidth<Cell, T> / kLanes<T>;
  using Own = PackedMatrix<Floats<T>, kVectors>;
  if (p.gates != nullptr) return f(static_cast<FloatLayer<Cell, Own, true>*>(nullptr));
  if constexpr (std::is_same_v<T, float>) {
    if (p.order == WeightOrder::kBFloat16Pairs) {
      using Pairs = PackedMatrix<BFloat16Pairs, kVectors>;
      return f(static_cast<FloatLayer<Cell, Pairs, false>*>(nullptr));
    }
  }
  using There = MatrixInPlace<Cell, T>;
  if (There::reads(p)) return f(static_cast<FloatLayer<Cell, There, false>*>(nullptr));
  return f(static_cast<FloatLayer<Cell, Own, false>*>(nullptr));
}

template <class Cell>
size_t float_scratch(const Forward& p) {
  return with_compute_type(p.call.dtype, [&](auto zero) {
    return with_layer<Cell, decltype(zero)>(
        p, [&](auto* layer) { return forward_scratch<std::remove_pointer_t<decltype(layer)>>(p); });
  });
}

template <class Cell>
void float_forward(const Forward& p) {
  with_compute_type(p.call.dtype, [&](auto zero) {
    with_layer<Cell, decltype(zero)>(
        p, [&](auto* layer) { forward<std::remove_pointer_t<decltype(layer)>>(p); });
  });
}

}  // namespace varlen_rnn::VARLEN_RNN_ISA
