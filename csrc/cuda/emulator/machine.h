// The emulated machine: one cluster of blocks at a time, a fiber for every thread, one OS thread.
// Fibers run until they suspend or yield; scheduler.h says which comes next.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/emulator/fiber.h"

namespace varlen_rnn::emulator {

// Seeded once, and then one sequence through all launches.
class Random {
 public:
  explicit Random(uint64_t seed) : seed_(seed), state_(seed) {}
  uint64_t seed() const { return seed_; }
  // splitmix64
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  // In [0, n).
  unsigned below(unsigned n) { return static_cast<unsigned>((next() >> 32) * n >> 32); }

 private:
  uint64_t seed_;
  uint64_t state_;
};

// Since the start of the program.
struct Counters {
  uint64_t launches = 0;
  uint64_t fibers = 0;
  uint64_t switches = 0;
};
inline Counters& counters() {
  static Counters counters;
  return counters;
}

// What every matrix instruction adds to its first result: no fault of a kernel's, but one of hardware.
inline float& mma_error() {
  static float error = 0;
  return error;
}

// The line of kernel code that called a wrapper: the default argument of its last parameter.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  bool operator==(const Site& other) const { return line == other.line && file == other.file; }
};
inline std::string to_string(const Site& site) {
  const std::string file = site.file;
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line);
}

struct Cta;
struct Warp;

// What a suspended fiber waits for.
struct Waiting {
  const char* what;
  Site site;
  int64_t offset = -1;  // of an mbarrier
  unsigned parity = 0;
};

// A copy_async under way. Its group is closed once the fiber's closed_groups exceeds it.
struct Copy {
  int64_t offset;
  const void* source;
  bool sampled;
  uint32_t words[4];
  uint64_t group;
};

struct Fiber {
  Context context;
  char* stack = nullptr;
  Cta* cta = nullptr;
  Warp* warp = nullptr;
  unsigned thread = 0;
  bool done = false;
  bool expired = false;  // gave a wait up, which returns then
  Waiting waiting = {};
  std::vector<Copy> copies;
  uint64_t closed_groups = 0;
};

struct Warp {
  static constexpr unsigned kAllLanes = 0xffffffffu;
  Fiber* lanes = nullptr;  // 32 of them
  uint32_t ready = 0;
  int position = -1;  // in Cluster::runnable, -1: not there
  // The collective under way, its inputs and its results.
  uint32_t arrived = 0;
  const char* collective = nullptr;
  Site site = {};
  uint32_t in[32][6];
  float d[32][4];
  uint32_t out[32][4];
};

struct Mbarrier {
  int64_t offset;
  unsigned arrivals;
  unsigned pending;
  int64_t bytes;  // expected and not yet there; below zero: there and not yet expected
  uint64_t phase;
  const Fiber* unfenced;  // who initialised it, until mbarrier_fence_init
  std::vector<Fiber*> waiting;
};

// A barrier of all threads that have not exited.
struct ThreadBarrier {
  unsigned live = 0;
  std::vector<Fiber*> waiting;
};

struct Cta {
  unsigned rank = 0;
  std::vector<unsigned char> shared;
  ThreadBarrier barrier;
  std::vector<Mbarrier> mbarriers;
};

// A st_async under way, or one whose bytes the mbarrier will not count.
struct Message {
  Cta* to;
  int64_t offset;
  int64_t mbarrier;
  unsigned bytes;
  uint32_t words[4];
  const Fiber* sender;
  bool is_lost;
};

struct Machine {
  Random random{1};
  unsigned num_blocks = 0;
  unsigned num_threads = 0;
  unsigned cluster_size = 1;
  unsigned cluster = 0;  // the one that runs
  std::function<void()> kernel;
  std::vector<Cta> ctas;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<unsigned> runnable;  // warps with a ready lane
  ThreadBarrier cluster_barrier;
  std::vector<Message> messages;
  uint64_t sent = 0;  // messages, of this launch
  uint64_t lost = 0;  // which of them no mbarrier counts, 0: none
  bool waits_expire = false;
  bool has_expired = false;  // whether a wait of this launch did
  unsigned exited = 0;
  Fiber* current = nullptr;
  Context scheduler;
  std::exception_ptr error;

  unsigned block_of(const Cta& cta) const { return cluster * cluster_size + cta.rank; }
};

inline Machine& machine() {
  static Machine machine;
  return machine;
}

inline std::string where(const Fiber& fiber) {
  const Machine& m = machine();
  return "thread " + std::to_string(fiber.thread) + " of block " +
         std::to_string(m.block_of(*fiber.cta)) + " (rank " + std::to_string(fiber.cta->rank) +
         " of cluster " + std::to_string(m.cluster) + ")";
}

[[noreturn]] inline void fail(const std::string& what) {
  const Machine& m = machine();
  const std::string who = m.current != nullptr ? ", " + where(*m.current) : "";
  throw std::runtime_error("emulator: " + what + who + ", seed " + std::to_string(m.random.seed()) +
                           ", launch " + std::to_string(counters().launches));
}

inline Fiber& current() {
  Fiber* fiber = machine().current;
  if (fiber == nullptr) fail("a device function was called outside a kernel");
  return *fiber;
}

inline void make_ready(Fiber& fiber) {
  Machine& m = machine();
  Warp& warp = *fiber.warp;
  warp.ready |= 1u << (fiber.thread & 31u);
  if (warp.position < 0) {
    warp.position = static_cast<int>(m.runnable.size());
    m.runnable.push_back(static_cast<unsigned>(&warp - m.warps.data()));
  }
}

// Back to the scheduler. A failed launch leaves suspended fibers where they are and reuses their
// stacks, so no frame up to here may own anything.
inline void leave() {
  Machine& m = machine();
  Fiber& fiber = *m.current;
  switch_context(fiber.context, m.scheduler);
}

// Until make_ready.
inline void suspend(const Waiting& waiting) {
  Fiber& fiber = current();
  fiber.waiting = waiting;
  leave();
}

// Now and then lets others run, so that what lies between two wrappers is not one step.
inline void yield_at_random() {
  Fiber& fiber = current();
  if (machine().random.below(8) != 0) return;
  make_ready(fiber);
  leave();
}

}  // namespace varlen_rnn::emulator
