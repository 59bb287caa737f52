// How many workers a call's work is worth, and what they cost.
#pragma once

#include <algorithm>
#include <cstdint>

namespace varlen_rnn {

// Less work than this on a worker is done sooner than a thread is woken.
inline constexpr double kMinimalFlops = 1e6;
// A barrier of two cores, measured as 0.6 microseconds at 4 GHz.
inline constexpr double kBarrierCycles = 3000;

// A weight's way to the core takes as long as its multiplication with so many rows.
inline constexpr double kRowsALoad = 4;

// `rows` is the number that share a step, on average.
inline int64_t num_workers(double flops, double rows, int64_t num_threads) {
  const double worth = flops * std::max(1.0, kRowsALoad / rows) / kMinimalFlops;
  const double wanted = std::min(static_cast<double>(num_threads), worth);
  return std::max<int64_t>(1, static_cast<int64_t>(wanted));
}

// A ParallelFor for work that is done sooner than threads are woken.
inline void serial_for(int64_t n, void (*body)(void*, int64_t, int64_t), void* context) {
  body(context, 0, n);
}

}  // namespace varlen_rnn
