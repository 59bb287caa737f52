// Workers that share a part of a call: each computes units of its own for all of the part's rows,
// and they meet at a barrier every step, because every unit of a step reads all of the one before.
//
// A thread pool may give a call fewer threads than there are workers, or just one inside another
// parallel region: then one thread stands for several workers. It takes all their units and arrives
// with their weight, so that nobody waits for a worker that does not run.
#pragma once

#include <sched.h>

#include "cpu/segments-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

class Team {
 public:
  // Members [begin, end) of `size`, all on this thread. `arrived` is the team's own counter, which
  // began at 0.
  Team(int64_t begin, int64_t end, int64_t size, int64_t* arrived)
      : begin_(begin), end_(end), size_(size), arrived_(arrived) {}

  // This thread's share of [0, n), in multiples of `grain` but for the end.
  Range share(int64_t n, int64_t grain = 1) const {
    const int64_t grains = ceil_div(n, grain);
    const int64_t first = grains * begin_ / size_ * grain, last = grains * end_ / size_ * grain;
    return {first < n ? first : n, last < n ? last : n};
  }

  // Returns when every member has called it as often as this one. What members wrote before is
  // visible then.
  void wait() {
    if (end_ - begin_ == size_) return;
    rounds_ += 1;
    const int64_t target = rounds_ * size_;
    __atomic_add_fetch(arrived_, end_ - begin_, __ATOMIC_ACQ_REL);
    // Spins, because a step takes microseconds, but lets others run where threads outnumber cores.
    for (int spins = 0; __atomic_load_n(arrived_, __ATOMIC_ACQUIRE) < target; ++spins) {
      if (spins >= kSpins) sched_yield();
      pause();
    }
  }

 private:
  static constexpr int kSpins = 2000;

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  int64_t begin_, end_, size_;
  int64_t* arrived_;
  int64_t rounds_ = 0;
};

}  // namespace varlen_rnn::VARLEN_RNN_ISA
