// The ways in which a layer's matrices are read: packed in this call or before, or where they lie.
#pragma once

#include <type_traits>

#include "cpu/pack-inl.h"
#include "cpu/tile-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

template <class Cell, class T>
inline constexpr int kCellWidth = Cell::kGates * Cell::template kUnits<T>;

// The row of weight_ih, weight_hh or a bias that packed column c comes from, or -1 for padding.
template <class Cell, class T>
int64_t source_row(int64_t c, int64_t hidden_size) {
  constexpr int kUnits = Cell::template kUnits<T>;
  const int64_t block = c / kCellWidth<Cell, T>, j = c % kCellWidth<Cell, T>;
  const int64_t unit = block * kUnits + j % kUnits;
  return unit < hidden_size ? j / kUnits * hidden_size + unit : -1;
}

// Packed in this call, or before. A block is all gates of a cell's units: NV vectors.
template <class W, int NV>
struct PackedMatrix : Packed<W, NV> {
  using Element = typename W::Element;
  using T = typename W::Compute;
  static constexpr int kStep = W::kStep;
  static constexpr int64_t kMostPieces = INT64_MAX;
  static constexpr bool kPacks = true;
  static constexpr int kWidth = NV * kLanes<T>;

  static PackedMatrix take(const void* given, int64_t K, int64_t, int64_t blocks, bool packs,
                           Arena& arena) {
    const Element* weights = packs ? arena.take<Element>(blocks * block_size<W>(K, NV))
                                   : static_cast<const Element*>(given);
    return {{weights, K}};
  }

  // Packs block b of `given`, which are this matrix's weights in another order.
  template <class Cell>
  void pack(const Forward& p, const void* given, int64_t hidden_size, int64_t b) const {
    const int64_t K = this->K;
    Element* to = const_cast<Element*>(this->weights) + b * block_size<W>(K, NV);
    const auto source = [=](int64_t c) { return source_row<Cell, T>(c, hidden_size); };
    if (p.order != WeightOrder::kMatrix) {
      const auto column = [=](int64_t c) {  // among those of p.units units a block
        const int64_t row = source(c), unit = row % hidden_size;
        if (row < 0) return row;
        return (unit / p.units * Cell::kGates + row / hidden_size) * p.units + unit % p.units;
      };
      pack_anew(to, block_size<W>(K, 1) / kLanes<T>, kWidth, b * kWidth,
                static_cast<const Element*>(given), Cell::kGates * p.units, column);
    } else if constexpr (std::is_same_v<Element, T>) {
      pack_rows_as_columns(to, K, kWidth, b * kWidth, given, p.call.dtype, source);
    }
  }
};

// sums[r] = sum over k of a[r][k] * columns[..][k], in spans.
template <class T, int R>
__attribute__((noinline)) void multiply_columns(Vec<T> (&sums)[R], const T* a, int64_t lda,
                                                const T* const (&columns)[kLanes<T>], int64_t K) {
  constexpr int kN = kLanes<T>;
  Vec<T> total[R] = {};
  for (int64_t first = 0; first < K; first += kSpan) {
    const int64_t end = K - first < kSpan ? K : first + kSpan;
    VR_UNROLL
    for (int r = 0; r < R; ++r) sums[r] = Vec<T>{};
    int64_t k = first;
    for (; k + kN <= end; k += kN) {
      Vec<T> tile[kN];
      VR_UNROLL
      for (int i = 0; i < kN; ++i) tile[i] = load(columns[i] + k);
      transpose<T>(tile);
      VR_UNROLL
      for (int i = 0; i < kN; ++i) {
        VR_UNROLL
        for (int r = 0; r < R; ++r) {
          sums[r] = fma(broadcast(a[r * lda + k + i]), tile[i], sums[r]);
        }
      }
    }
    if (k < end) {
      Vec<T> tile[kN];
      for (int i = 0; i < kN; ++i) tile[i] = load_first(columns[i] + k, end - k);
      transpose<T>(tile);
      for (int64_t i = 0; k + i < end; ++i) {
        VR_UNROLL
        for (int r = 0; r < R; ++r) {
          sums[r] = fma(broadcast(a[r * lda + k + i]), tile[i], sums[r]);
        }
      }
    }
    if (K <= kSpan) return;
    VR_UNROLL
    for (int r = 0; r < R; ++r) total[r] += sums[r];
  }
  VR_UNROLL
  for (int r = 0; r < R; ++r) sums[r] = total[r];
}

// A matrix [gates * H, K] that is read where it lies, as the columns that it would be packed into,
// and transposed in registers. For few rows and one step, which use each weight once: packing would
// write them, and read them again.
template <class Cell, class Compute>
struct MatrixInPlace {
  using T = Compute;
  using Element = T;
  static constexpr int kStep = 1;
  // Beyond, what the cache keeps is worth less than rows that follow each other.
  static constexpr int64_t kMostPieces = int64_t{8} << 20;
  static constexpr bool kPacks = false;
  static constexpr int kVectors = kCellWidth<Cell, T> / kLanes<T>;
  struct Shape {
    static constexpr int kRows = kVectorRegisters / 4;  // beside a transposed tile
    template <int R>
    static constexpr int kBlocks = 1;
  };

  const T* matrix;
  int64_t K, hidden_size;

  static bool reads(const Forward& p) {
    const Layout& layout = p.call.layout;
    return p.order == WeightOrder::kMatrix && p.weights[0].weight_hr == nullptr &&
           element_size(p.call.dtype) == sizeof(T) && layout.num_steps == 1 &&
           layout.num_tokens <= Shape::kRows;
  }

  static MatrixInPlace take(const void* given, int64_t K, int64_t hidden_size, int64_t, bool,
                            Arena&) {
    return {static_cast<const T*>(given), K, hidden_size};
  }

  template <class>
  void pack(const Forward&, const void*, int64_t, int64_t) const {}

  template <int R, int NB>
  VR_INLINE void times(Vec<T> (&sums)[R][NB * kVectors], const T* a, int64_t lda,
                       int64_t block) const {
    static_assert(NB == 1);
    VR_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const T* columns[kLanes<T>];
      for (int i = 0; i < kLanes<T>; ++i) {
        const int64_t row =
            source_row<Cell, T>(block * kCellWidth<Cell, T> + v * kLanes<T> + i, hidden_size);
        columns[i] = matrix + (row < 0 ? 0 : row) * K;  // what is padding is not used
      }
      Vec<T> products[R];
      multiply_columns(products, a, lda, columns, K);
      VR_UNROLL
      for (int r = 0; r < R; ++r) sums[r][v] = products[r];
    }
  }
};

}  // namespace varlen_rnn::VARLEN_RNN_ISA
