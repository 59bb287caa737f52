// Layers with int8 weights: rows are quantised, multiplied as integers, and cells are run on floats.
// A block is a group of 16 units. A Cell has kGates and step, as int8.cpp has them.
#pragma once

#include "cpu/forward-inl.h"
#include "cpu/int8-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

template <class Cell>
struct Int8Layer {
  using Compute = float;
  static constexpr int kUnits = kGroup;
  static constexpr int kWidth = Cell::kGates * kGroup;
  static constexpr int64_t kGrain = 1, kMostPieces = INT64_MAX;

  struct Rows {
    int16_t* x;  // [chunk_tokens, ldx]
    float* x_scale;
    int16_t* h;  // [max_rows, ldh]
    float* h_scale;
    float* from_h;  // [max_rows, kWidth]
  };

  const Weights* weights;
  int64_t I, H, ldx, ldh;
  float input_max, hidden_max;  // of quantised activations

  // Widening included, there are as many multiply-adds a cycle as of floats: so the model of what a
  // step of floats costs holds.
  void arrange(const Forward& p, int64_t, Arena&) {
    weights = p.weights;
    I = p.call.input_size;
    H = p.call.hidden_size;
    ldx = leading<int16_t>(ceil_div(I, kGroup) * kGroup);
    ldh = leading<int16_t>(ceil_div(H, kGroup) * kGroup);
    input_max = static_cast<float>(activation_max(I));
    hidden_max = static_cast<float>(activation_max(H));
  }

  Rows rows(Arena& arena, int64_t chunk_tokens, int64_t max_rows) const {
    Rows rows;
    rows.x = arena.take<int16_t>(chunk_tokens * ldx);
    rows.x_scale = arena.take<float>(chunk_tokens);
    rows.h = arena.take<int16_t>(max_rows * ldh);
    rows.h_scale = arena.take<float>(max_rows);
    rows.from_h = arena.take<float>(max_rows * kWidth);
    return rows;
  }

  void pack(const Forward&) const {}

  static int64_t block_bytes(int64_t K) { return K * kWidth; }

  void load_token(const Rows& rows, int64_t i, const void* x) const {
    rows.x_scale[i] = quantize_row(rows.x + i * ldx, static_cast<const float*>(x), I, input_max);
  }

  void multiply_input(const Rows& rows, int64_t d, int64_t tokens, Range range, float* g,
                      int64_t ldg) const {
    const Weights& w = weights[d];
    int8_product({rows.x, ldx, rows.x_scale}, tokens,
                 columns(w.weight_ih, I, w.scale_ih, w.bias_ih, range.begin),
                 (range.end - range.begin) * Cell::kGates, g + range.begin * kWidth, ldg);
  }

  // Each worker of a team for itself: this takes less time than another barrier.
  void begin_step(const Rows& rows, const StepArgs<float>& args, int64_t active) const {
    for (int64_t i = 0; i < active; ++i) {
      rows.h_scale[i] = quantize_row(rows.h + i * ldh, args.h + i * args.ldh, H, hidden_max);
    }
  }

  void step(const Rows& rows, int64_t d, const StepArgs<float>& args, int64_t active,
            Range range) const {
    const Weights& w = weights[d];
    const Int8Rows h = {rows.h, ldh, rows.h_scale};
    for (int64_t group = range.begin; group < range.end; ++group) {
      const Int8Columns group_columns = columns(w.weight_hh, H, w.scale_hh, w.bias_hh, group);
      // All gates in one tile where registers hold their sums: so 3 blocks are not 2 and 1.
      constexpr bool kOneTile = Cell::kGates * kSums <= kVectorRegisters / 2;
      if (kOneTile && active == 1) {
        int8_tile<1, kOneTile ? Cell::kGates : 1>(h, group_columns, rows.from_h, kWidth);
      } else {
        int8_product(h, active, group_columns, Cell::kGates, rows.from_h, kWidth);
      }
      for (int64_t i = 0; i < active; ++i) {
        const int64_t unit = group * kGroup;
        Cell::step(args.g + i * args.ldg + group * kWidth, rows.from_h + i * kWidth,
                   args.h + i * args.ldh + unit, args.c + i * args.ldc + unit,
                   args.h_next + i * args.ld_next + unit);
      }
    }
  }

  void project(int64_t, const float*, int64_t, int64_t, float*, int64_t) const {}

 private:
  Int8Columns columns(const void* w, int64_t K, const float* scale, const void* bias,
                      int64_t group) const {
    const int64_t column = group * kWidth, pairs = ceil_div(K, 2);
    return {static_cast<const int8_t*>(w) + column * 2 * pairs, pairs, scale + column,
            static_cast<const float*>(bias) + column};
  }
};

}  // namespace varlen_rnn::VARLEN_RNN_ISA
