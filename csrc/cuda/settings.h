// What benchmarks and tests may choose; otherwise the ops choose for themselves. Calls read it while
// another thread may write.
#pragma once

#include <atomic>
#include <cstddef>

namespace varlen_rnn::cuda {

struct Settings {
  std::atomic<bool> persistent{true};  // whether layers may take the persistent path
  std::atomic<int> cluster_size{0};    // blocks of a team, or 0 for what fits best
  std::atomic<bool> self_check{true};  // whether that needs a self-check first
  // How long a kernel waits for an exchange. That takes microseconds; a GPU that several processes
  // share, each for milliseconds, may be away for longer. Time that a kernel is stopped hardly counts
  // (simt::Patience). Infinity: no limit.
  std::atomic<double> wait_limit_s{5.0};
#ifdef VARLEN_RNN_EMULATE
  // Whether batch_sizes count as device memory, nobody's to read.
  std::atomic<bool> layouts_on_device{false};
#endif
};

Settings& settings();

// What the calls of one thread take, whatever the settings say: for self-checks and tests. Whoever
// forces a path asks for expired waits himself (self_check.h).
enum class Path { kAny, kPersistent, kGeneric };
struct Forced {
  Path path = Path::kAny;
  int max_teams = 0;  // of each direction; 0: as many as fit
};
Forced& forced();  // of this thread

// Whether calls on this thread may keep what they derive from layouts, and take what is kept: false at
// first. Who says true makes sure that a layout's arrays are never changed.
bool& keeps_plans();
// Forgets all that is kept.
void clear_plans();
size_t num_kept_layouts();

}  // namespace varlen_rnn::cuda
