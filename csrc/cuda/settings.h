// What benchmarks and tests may choose; otherwise the ops choose for themselves.
#pragma once

namespace varlen_rnn::cuda {

struct Settings {
  bool persistent = true;  // whether layers may take the persistent path
  int cluster_size = 0;    // blocks of a team, or 0 for what fits best
#ifdef VARLEN_RNN_EMULATE
  bool layouts_on_device = false;  // whether batch_sizes count as device memory, nobody's to read
#endif
};

Settings& settings();

}  // namespace varlen_rnn::cuda
