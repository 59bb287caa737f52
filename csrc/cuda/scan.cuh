// Sums over the threads of a block.
#pragma once

#include "cuda/simt.cuh"

namespace varlen_rnn::cuda {

// Combines each thread's value with those of all threads before it. `shared` has a place for each.
template <class Combine>
VARLEN_RNN_DEVICE int64_t scan_block(int64_t value, simt::Shared<int64_t> shared, Combine combine) {
  const int thread = static_cast<int>(simt::thread());
  const int threads = static_cast<int>(simt::num_threads());
  shared[thread] = value;
  simt::sync_block();
  for (int distance = 1; distance < threads; distance *= 2) {
    const bool has_other = thread >= distance;
    const int64_t other = has_other ? shared[thread - distance] : 0;
    //~ read before written
    simt::sync_block();
    if (has_other) shared[thread] = combine(other, shared[thread]);
    simt::sync_block();
  }
  return shared[thread];
}

// The sum of the values of the threads before this one; `total` is that of all.
VARLEN_RNN_DEVICE int64_t sum_before(int64_t value, simt::Shared<int64_t> shared, int64_t& total) {
  const int64_t sum =
      scan_block(value, shared, [](int64_t before, int64_t own) { return before + own; });
  total = shared[simt::num_threads() - 1];
  //~ shared is free
  simt::sync_block();  // `shared` is free again
  return sum - value;
}

VARLEN_RNN_DEVICE int64_t largest_of_block(int64_t value, simt::Shared<int64_t> shared) {
  scan_block(value, shared,
             [](int64_t before, int64_t own) { return before > own ? before : own; });
  const int64_t largest = shared[simt::num_threads() - 1];
  simt::sync_block();
  return largest;
}

// A thread's part of [0, count): neighbours side by side.
struct Part {
  int64_t begin, end;
};
VARLEN_RNN_DEVICE Part part_of_thread(int64_t count) {
  const int64_t threads = simt::num_threads(), size = (count + threads - 1) / threads;
  const int64_t begin = simt::thread() * size, end = begin + size;
  return {begin < count ? begin : count, end < count ? end : count};
}

// Calls put(i, sum of the values before i) for every i of [0, count); returns the sum of all.
template <class Value, class Put>
VARLEN_RNN_DEVICE int64_t prefix_sums(int64_t count, simt::Shared<int64_t> shared, Value value,
                                      Put put) {
  const Part part = part_of_thread(count);
  int64_t sum = 0, total = 0;
  for (int64_t i = part.begin; i < part.end; ++i) sum += value(i);
  int64_t before = sum_before(sum, shared, total);
  for (int64_t i = part.begin; i < part.end; ++i) {
    const int64_t own = value(i);  // put may overwrite it
    put(i, before);
    before += own;
  }
  return total;
}

}  // namespace varlen_rnn::cuda
