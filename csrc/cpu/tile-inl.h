// The product at the heart of every kernel: rows times packed weights, in tiles that stay in
// registers.
//
// Weights are packed into blocks of `width` columns, each [K][width], so that a tile reads them in
// one stream. A tile is `R` rows by `NB` blocks.
//
// The order of summation is a rule: k goes in spans of kSpan; within a span one chain of fused
// multiply-adds from zero, k ascending; spans are added up in order; what the sum starts from (a
// bias, or the input's product) is added last. It holds whatever the tile, the thread or the
// vector's width, so that results are the same bits in every batch, on any number of threads and on
// every instruction set that has fused multiply-add. Spans keep the rounding error of long sums
// where a library's product has it: in one chain every addition would round at the magnitude of the
// whole sum.
#pragma once

#include "cpu/simd-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

inline constexpr int64_t kSpan = 64;

// Packed weights of the type that is computed in: [block][K][NV vectors].
template <class T>
struct Floats {
  using Compute = T;
  using Element = T;
  static constexpr int kStep = 1;  // values of K that lie side by side
  static VR_INLINE void load(Vec<T> (&values)[1], const T* w) {
    values[0] = VARLEN_RNN_ISA::load(w);
  }
};

// bfloat16, two values of K side by side in the 32 bits of a column: [block][K / 2][NV vectors]. One
// instruction widens a vector of them.
struct BFloat16Pairs {
  using Compute = float;
  using Element = uint32_t;
  static constexpr int kStep = 2;
  static VR_INLINE void load(Vec<float> (&values)[2], const uint32_t* w) {
    typedef uint32_t Words
        __attribute__((vector_size(kVectorBytes), may_alias, aligned(sizeof(uint32_t))));
    const auto words = *reinterpret_cast<const Words*>(w);
    values[0] = (Vec<float>)(words << 16);
    values[1] = (Vec<float>)(words & 0xffff0000u);
  }
};

// From one block of packed weights to the next: elements.
template <class W>
VR_INLINE int64_t block_size(int64_t K, int vectors) {
  return (K + W::kStep - 1) / W::kStep * vectors * kLanes<typename W::Compute>;
}

// acc[r][v] += a[r][k] * w[k][v] for k in [0, count): one chain for each element. `a` has rows
// `lda` apart; block b begins at w + b * block.
template <class W, int R, int NB, int NV, class T>
VR_INLINE void multiply_add(Vec<T> (&acc)[R][NB * NV], const T* a, int64_t lda,
                            const typename W::Element* w, int64_t block, int64_t count) {
  constexpr int kGroup = 3;  // rows that share a pointer: x86 addresses p, p + lda and p + 2 * lda
  constexpr int kGroups = (R + kGroup - 1) / kGroup;
  const T* rows[kGroups];
  VR_UNROLL
  for (int g = 0; g < kGroups; ++g) rows[g] = a + g * kGroup * lda;
  const auto step = [&](int values) {
    Vec<T> weights[NB * NV][W::kStep];
    VR_UNROLL
    for (int v = 0; v < NB * NV; ++v) {
      W::load(weights[v], w + (v / NV) * block + (v % NV) * kLanes<T>);
    }
    w += NV * kLanes<T>;
    VR_UNROLL
    for (int i = 0; i < W::kStep; ++i) {
      if (i == values) return;
      VR_UNROLL
      for (int r = 0; r < R; ++r) {
        const Vec<T> x = broadcast(rows[r / kGroup][(r % kGroup) * lda + i]);
        VR_UNROLL
        for (int v = 0; v < NB * NV; ++v) acc[r][v] = fma(x, weights[v][i], acc[r][v]);
      }
    }
    VR_UNROLL
    for (int g = 0; g < kGroups; ++g) rows[g] += W::kStep;
  };
  int64_t k = 0;
  for (; k + W::kStep <= count; k += W::kStep) step(W::kStep);
  if (W::kStep > 1 && k < count) step(1);
}

// Adds spans from k on to `total`, S whole ones at a time: a tile of few rows and blocks has too few
// chains of its own to hide a multiply-add's latency, and spans are independent of each other.
template <class W, int R, int NB, int NV, int S, class T>
VR_INLINE void add_spans(Vec<T> (&total)[R][NB * NV], const T* a, int64_t lda,
                         const typename W::Element* w, int64_t K, int64_t& k) {
  constexpr int kVectors = NB * NV;
  const int64_t block = block_size<W>(K, NV);
  for (; K - k >= S * kSpan; k += S * kSpan) {
    Vec<T> sums[S][R][kVectors];
    VR_UNROLL
    for (int i = 0; i < S; ++i) {
      VR_UNROLL
      for (int r = 0; r < R; ++r) {
        VR_UNROLL
        for (int v = 0; v < kVectors; ++v) sums[i][r][v] = Vec<T>{};
      }
    }
    for (int64_t j = k; j < k + kSpan; j += W::kStep) {
      VR_UNROLL
      for (int i = 0; i < S; ++i) {
        Vec<T> weights[kVectors][W::kStep];
        VR_UNROLL
        for (int v = 0; v < kVectors; ++v) {
          W::load(weights[v],
                  w + v / NV * block + ((j + i * kSpan) / W::kStep * NV + v % NV) * kLanes<T>);
        }
        VR_UNROLL
        for (int step = 0; step < W::kStep; ++step) {
          VR_UNROLL
          for (int r = 0; r < R; ++r) {
            const Vec<T> x = broadcast(a[r * lda + j + i * kSpan + step]);
            VR_UNROLL
            for (int v = 0; v < kVectors; ++v) {
              sums[i][r][v] = fma(x, weights[v][step], sums[i][r][v]);
            }
          }
        }
      }
    }
    VR_UNROLL
    for (int i = 0; i < S; ++i) {
      VR_UNROLL
      for (int r = 0; r < R; ++r) {
        VR_UNROLL
        for (int v = 0; v < kVectors; ++v) total[r][v] += sums[i][r][v];
      }
    }
  }
}

// sums[r][v] = sum over k of a[r][k] * w[k][v], in spans.
template <class W, int R, int NB, int NV, class T>
VR_INLINE void multiply(Vec<T> (&sums)[R][NB * NV], const T* a, int64_t lda,
                        const typename W::Element* w, int64_t K) {
  constexpr int kVectors = NB * NV;
  Vec<T> total[R][kVectors] = {};
  int64_t first = 0;
  if constexpr (R * kVectors * 4 <= kVectorRegisters / 2) {
    add_spans<W, R, NB, NV, 4>(total, a, lda, w, K, first);
  }
  if constexpr (R * kVectors * 2 <= kVectorRegisters / 2) {
    add_spans<W, R, NB, NV, 2>(total, a, lda, w, K, first);
  }
  for (int64_t k = first; k < K; k += kSpan) {
    VR_UNROLL
    for (int r = 0; r < R; ++r) {
      VR_UNROLL
      for (int v = 0; v < kVectors; ++v) sums[r][v] = Vec<T>{};
    }
    multiply_add<W, R, NB, NV>(sums, a + k, lda, w + k / W::kStep * NV * kLanes<T>,
                               block_size<W>(K, NV), K - k < kSpan ? K - k : kSpan);
    if (K <= kSpan) return;
    VR_UNROLL
    for (int r = 0; r < R; ++r) {
      VR_UNROLL
      for (int v = 0; v < kVectors; ++v) total[r][v] += sums[r][v];
    }
  }
  VR_UNROLL
  for (int r = 0; r < R; ++r) {
    VR_UNROLL
    for (int v = 0; v < kVectors; ++v) sums[r][v] = total[r][v];
  }
}

// How rows and blocks of NV vectors are cut into tiles.
template <int NV>
struct Tiles {
  // The most rows: accumulators fill the registers that a block's weights and one broadcast value
  // leave.
  static constexpr int kRows = (kVectorRegisters - kVectorRegisters / 4) / NV;
  // How many blocks a tile of R rows takes: enough independent chains to hide a multiply-add's
  // latency.
  template <int R>
  static constexpr int kBlocks =
      kVectorRegisters / 2 < R * NV ? 1 : kVectorRegisters / 2 / (R * NV);
};

template <int value>
struct Constant {
  static constexpr int kValue = value;
};

// Calls f(Constant<rows>) for 1 <= rows <= R.
template <int R, class F>
VR_INLINE void with_constant(int64_t rows, const F& f) {
  if (rows == R) return f(Constant<R>{});
  if constexpr (R > 1) with_constant<R - 1>(rows, f);
}

// Calls f(0, R, block, NB) for blocks [b, blocks): as many as go by NB, then by half of it, and so
// on.
template <int NB, class R, class F>
VR_INLINE void for_each_block(int64_t b, int64_t blocks, R rows, const F& f) {
  for (; b + NB <= blocks; b += NB) f(int64_t{0}, rows, b, Constant<NB>{});
  if constexpr (NB > 1) for_each_block<NB / 2>(b, blocks, rows, f);
}

// Calls f(row, R, block, NB) for tiles that cover rows [0, rows) and blocks [0, blocks); R and NB
// are Constants. Rows are spread evenly: 7 rows make tiles of 4 and 3, not of 6 and 1. Blocks are
// the outer loop, so that a block's weights stay in the first-level cache for all its rows.
template <class Shape, class F>
VR_INLINE void for_each_tile(int64_t rows, int64_t blocks, const F& f) {
  if (rows == 0) return;
  constexpr int kRows = Shape::kRows;
  const int64_t tiles = (rows + kRows - 1) / kRows;
  const int64_t height = rows / tiles, taller = rows % tiles;
  if (tiles == 1) {
    with_constant<kRows>(rows, [&](auto R) {
      for_each_block<Shape::template kBlocks<decltype(R)::kValue>>(0, blocks, R, f);
    });
    return;
  }
  for (int64_t b = 0; b < blocks; ++b) {
    int64_t row = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t tile_rows = height + (t < taller);
      with_constant<kRows>(tile_rows, [&](auto R) { f(row, R, b, Constant<1>{}); });
      row += tile_rows;
    }
  }
}

// Packed weights of one matrix, in blocks of NV vectors of columns.
template <class W, int NV>
struct Packed {
  using T = typename W::Compute;
  using Shape = Tiles<NV>;
  static constexpr int kVectors = NV;

  const typename W::Element* weights;
  int64_t K;

  template <int R, int NB>
  VR_INLINE void times(Vec<T> (&sums)[R][NB * NV], const T* a, int64_t lda, int64_t block) const {
    multiply<W, R, NB, NV>(sums, a, lda, weights + block * block_size<W>(K, NV), K);
  }
};

// What `product` adds to its sums.
template <class T>
struct Start {
  const T* values;  // null for nothing
  int64_t stride;   // from one row to the next; 0 if it is the same for all rows
};

inline constexpr int kProductVectors = 2;
template <class T>
inline constexpr int kProductWidth = kProductVectors * kLanes<T>;

template <class Matrix, class T, int R, int NB>
__attribute__((noinline)) void product_tile(const T* a, int64_t lda, Matrix matrix, int64_t block,
                                            Start<T> start, T* c, int64_t ldc) {
  constexpr int kVectors = NB * Matrix::kVectors;
  Vec<T> sums[R][kVectors];
  matrix.template times<R, NB>(sums, a, lda, block);
  VR_UNROLL
  for (int r = 0; r < R; ++r) {
    VR_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const int64_t column = v * kLanes<T>;
      if (start.values != nullptr) sums[r][v] += load(start.values + r * start.stride + column);
      store(c + r * ldc + column, sums[r][v]);
    }
  }
}

// c[r][:] = start[r][:] + a[r][0..K) times blocks [first, first + blocks) of a matrix; `start` and c
// begin at the first of them.
template <class Matrix, class T>
void product(const T* a, int64_t lda, int64_t rows, Matrix matrix, int64_t first, int64_t blocks,
             Start<T> start, T* c, int64_t ldc) {
  constexpr int kWidth = Matrix::kVectors * kLanes<T>;
  using Shape = typename Matrix::Shape;
  for_each_tile<Shape>(rows, blocks, [&](int64_t r, auto R, int64_t b, auto NB) {
    const Start<T> from = {
        start.values == nullptr ? nullptr : start.values + r * start.stride + b * kWidth,
        start.stride};
    product_tile<Matrix, T, decltype(R)::kValue, decltype(NB)::kValue>(
        a + r * lda, lda, matrix, first + b, from, c + r * ldc + b * kWidth, ldc);
  });
}

// The same with all blocks of kProductWidth columns of packed weights.
template <class T>
void product(const T* a, int64_t lda, int64_t rows, const T* w, int64_t K, int64_t blocks,
             Start<T> start, T* c, int64_t ldc) {
  product(a, lda, rows, Packed<Floats<T>, kProductVectors>{w, K}, 0, blocks, start, c, ldc);
}

}  // namespace varlen_rnn::VARLEN_RNN_ISA
