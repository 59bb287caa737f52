// Gradients of input and weights: large products of all tokens' gate gradients, after the
// recurrence has found these.
//
//   d_x = d_gates W_ih      d_W_ih = d_gates^T x      d_W_hh = d_gates^T h_{t-1}
//
// A token's rows of x and of h_{t-1} are read where they lie, through the layout. Of the weights'
// gradients every worker computes rows of its own, for all tokens: no sum depends on how many
// workers there are.
#pragma once

#include "cpu/pack-inl.h"
#include "cpu/segments-inl.h"
#include "cpu/tile-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

// Rows of a tile of a weight's gradient.
inline constexpr int kOuterRows = Tiles<kProductVectors>::kRows;
// Tokens whose products are summed up before they are added to the gradient.
inline constexpr int64_t kChunk = 512;
// And of these, tokens whose products make one chain: shorter than kSpan, because sums over tokens
// are compared with a library's that adds up a product a step.
inline constexpr int64_t kTokenSpan = 32;

// c[r][v] = sum over k of a[k][r] * b[k][v].
template <class T>
__attribute__((noinline)) void outer_tile(const T* a, const T* b, int64_t count, T* c) {
  for (int64_t first = 0; first < count; first += kTokenSpan) {
    const int64_t last = count - first < kTokenSpan ? count : first + kTokenSpan;
    Vec<T> sums[kOuterRows][kProductVectors];
    VR_UNROLL
    for (int r = 0; r < kOuterRows; ++r) {
      VR_UNROLL
      for (int v = 0; v < kProductVectors; ++v) sums[r][v] = Vec<T>{};
    }
    for (int64_t k = first; k < last; ++k) {
      Vec<T> columns[kProductVectors];
      VR_UNROLL
      for (int v = 0; v < kProductVectors; ++v) {
        columns[v] = load(b + k * kProductWidth<T> + v * kLanes<T>);
      }
      VR_UNROLL
      for (int r = 0; r < kOuterRows; ++r) {
        const Vec<T> x = broadcast(a[k * kOuterRows + r]);
        VR_UNROLL
        for (int v = 0; v < kProductVectors; ++v) sums[r][v] = fma(x, columns[v], sums[r][v]);
      }
    }
    VR_UNROLL
    for (int r = 0; r < kOuterRows; ++r) {
      VR_UNROLL
      for (int v = 0; v < kProductVectors; ++v) {
        T* to = c + r * kProductWidth<T> + v * kLanes<T>;
        store(to, first == 0 ? sums[r][v] : load(to) + sums[r][v]);
      }
    }
  }
}

// Adds the sum of `count` rows, `ld` apart, to `to`, in columns [begin, end): sums of short spans are
// added up in `sum`. `span` and `sum` have room for a row each.
template <class T>
void add_rows(T* to, T* span, T* sum, const T* rows, int64_t ld, int64_t count, int64_t begin,
              int64_t end) {
  constexpr int64_t kRows = 16;
  for (int64_t j = begin; j < end; ++j) sum[j] = T{0};
  for (int64_t first = 0; first < count; first += kRows) {
    const int64_t last = count - first < kRows ? count : first + kRows;
    for (int64_t j = begin; j < end; ++j) span[j] = rows[first * ld + j];
    for (int64_t k = first + 1; k < last; ++k) {
      for (int64_t j = begin; j < end; ++j) span[j] += rows[k * ld + j];
    }
    for (int64_t j = begin; j < end; ++j) sum[j] += span[j];
  }
  for (int64_t j = begin; j < end; ++j) to[j] += sum[j];
}

// One weight's gradient. Column j of the left factor belongs to row (j - first + shift) mod rows.
template <class T>
struct OuterProduct {
  void* to;  // [rows, columns], storage
  T* sums;   // the same in the compute type: `to` itself where that is the dtype
  int64_t rows, columns, first, shift;

  int64_t row(int64_t j) const {
    const int64_t i = j - first;
    return i < 0 || i >= rows ? -1 : i + shift < rows ? i + shift : i + shift - rows;
  }
};

// Columns of a left factor that one worker takes, packed for a chunk of tokens: tile after tile,
// each [count][kOuterRows] and a cache line, or all tiles would begin in the same cache set.
template <class T>
struct LeftColumns {
  Range tiles;
  int64_t count;  // of tokens
  T* packed;

  static int64_t tile_size(int64_t count) {
    return count * kOuterRows + 64 / static_cast<int64_t>(sizeof(T));
  }

  // `rows` has `num_columns` columns, and its rows `ld` apart.
  void pack(const T* rows, int64_t ld, int64_t num_columns) {
    for (int64_t k = 0; k < count; ++k) {
      for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
        T* to = packed + (tile - tiles.begin) * tile_size(count) + k * kOuterRows;
        const T* from = rows + k * ld + tile * kOuterRows;
        const int64_t left = num_columns - tile * kOuterRows;
        if (left >= kOuterRows) {
          std::memcpy(to, from, kOuterRows * sizeof(T));
        } else {
          for (int r = 0; r < kOuterRows; ++r) to[r] = r < left ? from[r] : T{0};
        }
      }
    }
  }

  // Adds the products with the rows `right` to the worker's rows of the gradient; the first time
  // it puts them there. A null pointer is a row of zeros. `panel` has room for count *
  // kProductWidth values.
  void multiply(const void* const* right, Dtype dtype, const OuterProduct<T>& product, bool add,
                T* panel) const {
    constexpr int kWidth = kProductWidth<T>;
    for (int64_t column = 0; column < product.columns; column += kWidth) {
      const int64_t left = product.columns - column;
      for (int64_t k = 0; k < count; ++k) {
        T* to = panel + k * kWidth;
        const T* from =
            static_cast<const T*>(right[k] == nullptr ? nullptr : at(right[k], dtype, column));
        if (from != nullptr && left >= kWidth && element_size(dtype) == sizeof(T)) {
          VR_UNROLL
          for (int v = 0; v < kWidth; v += kLanes<T>) store(to + v, load(from + v));
          continue;
        }
        for (int v = 0; v < kWidth; v += kLanes<T>) store(to + v, Vec<T>{});
        if (from != nullptr) load_row(to, from, dtype, left < kWidth ? left : kWidth);
      }
      for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
        T sums[kOuterRows * kWidth];
        outer_tile<T>(packed + (tile - tiles.begin) * tile_size(count), panel, count, sums);
        for (int r = 0; r < kOuterRows; ++r) {
          const int64_t row = product.row(tile * kOuterRows + r);
          if (row < 0) continue;
          T* to = product.sums + row * product.columns + column;
          for (int v = 0; v < kWidth && v < left; v += kLanes<T>) {
            const Vec<T> sum = load(sums + r * kWidth + v);
            store_first(to + v, add ? load_first(to + v, left - v) + sum : sum, left - v);
          }
        }
      }
    }
  }

  // Rounds the worker's rows of the gradient to storage.
  void finish(const OuterProduct<T>& product, Dtype dtype) const {
    if (product.to == product.sums) return;
    for (int64_t j = tiles.begin * kOuterRows; j < tiles.end * kOuterRows; ++j) {
      const int64_t row = product.row(j);
      if (row < 0) continue;
      store_row(at(product.to, dtype, row * product.columns), product.sums + row * product.columns,
                dtype, product.columns);
    }
  }
};

}  // namespace varlen_rnn::VARLEN_RNN_ISA
