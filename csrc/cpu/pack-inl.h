// Weights into blocks of `width` columns, each [K][width]: the order in which a tile reads them.
//
// Packing is done in every call of a module of more than a step and a few rows; it reads and writes each weight once, a vector at a
// time: to find out whether a cached pack is still valid costs more, since nothing tells of a write
// through `parameter.data`. Who knows that weights stay packs them once: varlen_rnn.freeze.
#pragma once

#include "cpu/rows-inl.h"
#include "cpu/simd-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

template <class T>
VR_INLINE T load_one(const void* tensor, Dtype dtype, int64_t index) {
  T value;
  load_row(&value, at(tensor, dtype, index), dtype, 1);
  return value;
}

// `count` elements of a row, the other lanes zero.
template <class T>
VR_INLINE Vec<T> load_lanes(const void* tensor, Dtype dtype, int64_t index, int64_t count) {
  if (count == kLanes<T> && element_size(dtype) == sizeof(T)) {
    return load(static_cast<const T*>(tensor) + index);
  }
  T lanes[kLanes<T>] = {};
  load_row(lanes, at(tensor, dtype, index), dtype, count);
  return load(lanes);
}

// Lane l of the first result: a[l] where l has no `bit`, else b[l - bit]. Of the second: a[l +
// bit], else b[l].
template <class T, int bit, int... l>
VR_INLINE void exchange(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, l...>) {
  constexpr int kN = kLanes<T>;
  using First = std::integer_sequence<int, ((l & bit) == 0 ? l : l - bit + kN)...>;
  using Second = std::integer_sequence<int, ((l & bit) == 0 ? l + bit : l + kN)...>;
  const Vec<T> first = shuffle<Vec<T>>(a, b, First{});
  b = shuffle<Vec<T>>(a, b, Second{});
  a = first;
}

template <class T, int bit = kLanes<T> / 2>
VR_INLINE void transpose(Vec<T> (&rows)[kLanes<T>]) {
  VR_UNROLL
  for (int i = 0; i < kLanes<T>; ++i) {
    if ((i & bit) == 0) exchange<T, bit>(rows[i], rows[i + bit], LaneIndices<T>{});
  }
  if constexpr (bit > 1) transpose<T, bit / 2>(rows);
}

// Packs a block whose column j is row source(first_column + j) of `matrix` [.., K], or zeros if
// that is -1: to[k][j] = matrix[source(first_column + j)][k].
template <class T, class Source>
void pack_rows_as_columns(T* to, int64_t K, int width, int64_t first_column, const void* matrix,
                          Dtype dtype, const Source& source) {
  constexpr int kN = kLanes<T>;
  for (int j = 0; j < width; j += kN) {
    int64_t rows[kN];
    for (int i = 0; i < kN; ++i) rows[i] = source(first_column + j + i);
    for (int64_t k = 0; k < K; k += kN) {
      const int64_t count = K - k < kN ? K - k : kN;
      Vec<T> tile[kN];
      VR_UNROLL
      for (int i = 0; i < kN; ++i) {
        tile[i] = rows[i] < 0 ? Vec<T>{} : load_lanes<T>(matrix, dtype, rows[i] * K + k, count);
      }
      transpose<T>(tile);
      if (count == kN) {
        VR_UNROLL
        for (int i = 0; i < kN; ++i) store(to + (k + i) * width + j, tile[i]);
      } else {
        for (int64_t i = 0; i < count; ++i) store(to + (k + i) * width + j, tile[i]);
      }
    }
  }
}

// Packs a block whose column j is column source(first_column + j) of weights that are packed already,
// in blocks of `from_width` columns; zeros if that is -1.
template <class E, class Source>
void pack_anew(E* to, int64_t K, int width, int64_t first_column, const E* from, int64_t from_width,
               const Source& source) {
  for (int j = 0; j < width; ++j) {
    const int64_t c = source(first_column + j);
    const E* column = c < 0 ? nullptr : from + c / from_width * K * from_width + c % from_width;
    for (int64_t k = 0; k < K; ++k) {
      to[k * width + j] = column == nullptr ? E{0} : column[k * from_width];
    }
  }
}

// Packs a block of `matrix` [K, columns] that begins at column `first`: to[k][j] =
// matrix[source(k)][first + j], and zeros beyond the last column.
template <class T, class Source>
void pack_columns(T* to, int64_t K, int width, int64_t first, const void* matrix, Dtype dtype,
                  int64_t columns, const Source& source) {
  const int64_t count = columns - first < width ? columns - first : width;
  for (int64_t k = 0; k < K; ++k) {
    load_row(to + k * width, at(matrix, dtype, source(k) * columns + first), dtype, count);
    for (int64_t j = count; j < width; ++j) to[k * width + j] = T{0};
  }
}

}  // namespace varlen_rnn::VARLEN_RNN_ISA
