// What the generic path's kernels have in common: one thread for each value.
//
// Where lengths lie on the device the host does not know how many segments a step has, only how many
// it may have; threads of the others find so and leave.
#pragma once

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/layout.cuh"

namespace varlen_rnn::cuda {

using simt::compute_t;
using simt::from_compute;
using simt::load;
using simt::load_fresh;
using simt::store;
using simt::to_compute;

constexpr unsigned kThreads = 256;

template <class T>
VARLEN_RNN_DEVICE compute_t<T> value(const void* from, int64_t index) {
  return to_compute(load(static_cast<const T*>(from) + index));
}
// Of memory that this kernel writes, too.
template <class T>
VARLEN_RNN_DEVICE compute_t<T> fresh_value(const void* from, int64_t index) {
  return to_compute(load_fresh(static_cast<const T*>(from) + index));
}
template <class T>
VARLEN_RNN_DEVICE void put(void* to, int64_t index, compute_t<T> v) {
  store(static_cast<T*>(to) + index, from_compute<T>(v));
}
template <class C>
VARLEN_RNN_DEVICE void put_compute(void* to, int64_t index, C v) {
  store(static_cast<C*>(to) + index, v);
}

// Of a [D, B, columns] array of states; 0 without it or without a row.
template <class T>
VARLEN_RNN_DEVICE compute_t<T> state_value(const DeviceLayout& l, const void* states, int direction,
                                           int64_t row, int64_t columns, int64_t column) {
  if (states == nullptr || row < 0) return 0;
  return value<T>(states, (direction * l.num_rows + row) * columns + column);
}

VARLEN_RNN_DEVICE int64_t thread_index() {
  return int64_t{simt::block()} * kThreads + simt::thread();
}

// Launches one thread for each of `count` values.
template <class P>
void launch_values(int64_t count, void (*kernel)(P), const P& p, void* stream) {
  if (count == 0) return;
  const unsigned blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  simt::launch({blocks, kThreads, 0, 1, stream}, kernel, p);
}

// Calls f with a value of the dtype's storage type.
template <class F>
void for_dtype(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::kFloat32:
      return f(float{});
    case Dtype::kFloat64:
      return f(double{});
    case Dtype::kBFloat16:
      return f(simt::bf16{});
    case Dtype::kFloat16:
      return f(simt::f16{});
  }
}

// A step of at most `segments` segments in each direction.
template <class Pass>
struct StepParams : Pass {
  int64_t step;
  int64_t segments;
};

// Which token a thread works on, and which of its values.
struct At {
  bool there;
  int direction;
  int64_t segment, column, token, row;
  int64_t state;     // row of [D, G, *]
  int64_t place;     // row of [D, N, *]
  bool first, last;  // of its segment
};

template <class Pass>
VARLEN_RNN_DEVICE At find(const StepParams<Pass>& p, int64_t columns) {
  const DeviceLayout& l = p.layout;
  int64_t index = thread_index();
  At at{};
  if (index >= p.segments * columns) {
    at.direction = 1;
    index -= p.segments * columns;
  }
  at.segment = index / columns;
  at.column = index % columns;
  at.there = at.direction < p.num_directions && at.segment < batch_size(l, p.step);
  if (!at.there) return at;
  const int64_t place = checked(load(l.first_token + p.step) + at.segment, 0, l.num_tokens,
                                "varlen_rnn: batch_sizes must sum to at most N");
  at.token = token_of(l, at.direction, place);
  at.row = row_of(l, at.token);
  at.state = at.direction * l.num_segments + at.segment;
  at.place = at.direction * l.num_tokens + place;
  at.first = p.step == 0;
  //~ last step
  at.last = batch_size(l, p.step + 1) <= at.segment;
  return at;
}

}  // namespace varlen_rnn::cuda
