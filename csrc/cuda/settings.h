// What benchmarks and tests may choose; otherwise the ops choose for themselves. Calls read it while
// another thread may write.
#pragma once

#include <atomic>

namespace varlen_rnn::cuda {

struct Settings {
  std::atomic<bool> persistent{true};  // whether layers may take the persistent path
  std::atomic<int> cluster_size{0};    // blocks of a team, or 0 for what fits best
#ifdef VARLEN_RNN_EMULATE
  // Whether batch_sizes count as device memory, nobody's to read.
  std::atomic<bool> layouts_on_device{false};
#endif
};

Settings& settings();

}  // namespace varlen_rnn::cuda
