// Which fiber runs next: a random one, while now and then a warp or a block is frozen for a random
// time and stores between blocks are held back, so that missing barriers and waits show.
#pragma once

#include <algorithm>
#include <cstring>
#include <exception>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cuda/emulator/barriers.h"
#include "cuda/emulator/machine.h"

namespace varlen_rnn::emulator {

// What every waiting fiber waits for, equal ones together.
inline std::string describe_waiting() {
  Machine& m = machine();
  std::map<std::pair<unsigned, std::string>, std::string> threads;
  for (size_t i = 0; i < m.fibers.size(); ++i) {
    const Fiber& fiber = m.fibers[i];
    if (fiber.done) continue;
    const Waiting& waiting = fiber.waiting;
    std::string what = std::string(waiting.what) + " at " + to_string(waiting.site);
    if (waiting.offset >= 0) {
      what += " (offset " + std::to_string(waiting.offset) + ", parity " +
              std::to_string(waiting.parity);
      const Mbarrier* mbarrier = find_mbarrier(*fiber.cta, waiting.offset);
      if (mbarrier != nullptr) {
        what += ", phase " + std::to_string(mbarrier->phase) + " lacks " +
                std::to_string(mbarrier->pending) + " arrivals and " +
                std::to_string(mbarrier->bytes) + " bytes";
      }
      what += ")";
    }
    std::string& list = threads[{m.block_of(*fiber.cta), what}];
    const auto waits_alike = [&](size_t other, bool inside) {
      return inside && m.fibers[other].cta == fiber.cta && !m.fibers[other].done &&
             std::strcmp(m.fibers[other].waiting.what, waiting.what) == 0 &&
             m.fibers[other].waiting.site == waiting.site &&
             m.fibers[other].waiting.offset == waiting.offset &&
             m.fibers[other].waiting.parity == waiting.parity;
    };
    const bool goes_on = waits_alike(i - 1, i > 0);
    if (!goes_on) list += (list.empty() ? "" : ", ") + std::to_string(fiber.thread);
    if (goes_on && !waits_alike(i + 1, i + 1 < m.fibers.size())) {
      list += "-" + std::to_string(fiber.thread);
    }
  }
  std::string text;
  for (const auto& [key, list] : threads) {
    text += "; block " + std::to_string(key.first) + ", threads " + list + ": " + key.second;
  }
  return text;
}

// The mood of the scheduler, drawn anew after a random number of turns.
struct Mood {
  unsigned turns = 0;
  unsigned frozen_begin = 0;  // warps
  unsigned frozen_end = 0;
  unsigned delivery = 0;  // one message in this many turns, 0: none
};

inline Mood random_mood() {
  Machine& m = machine();
  const auto num_warps = static_cast<unsigned>(m.warps.size());
  const unsigned warps_per_cta = num_warps / m.cluster_size;
  Mood mood;
  mood.turns = 1u << m.random.below(13);
  constexpr unsigned kDelivery[] = {0, 1, 4, 64};
  mood.delivery = kDelivery[m.random.below(4)];
  switch (m.random.below(4)) {
    case 0:
      break;
    case 1:
      mood.frozen_begin = m.random.below(num_warps);
      mood.frozen_end = mood.frozen_begin + 1;
      break;
    default:
      mood.frozen_begin = m.random.below(m.cluster_size) * warps_per_cta;
      mood.frozen_end = mood.frozen_begin + warps_per_cta;
      break;
  }
  return mood;
}

// A runnable warp that is not frozen, or null.
inline Warp* random_warp(const Mood& mood) {
  Machine& m = machine();
  const auto n = static_cast<unsigned>(m.runnable.size());
  if (n == 0) return nullptr;
  const unsigned start = m.random.below(n);
  for (unsigned i = 0; i < n; ++i) {
    const unsigned w = m.runnable[(start + i) % n];
    if (w < mood.frozen_begin || w >= mood.frozen_end) return &m.warps[w];
  }
  return nullptr;
}

inline void run_lane(Warp& warp, unsigned lane) {
  Machine& m = machine();
  warp.ready &= ~(1u << lane);
  m.current = &warp.lanes[lane];
  ++counters().switches;
  switch_context(m.scheduler, m.current->context);
  m.current = nullptr;
  if (m.error != nullptr) std::rethrow_exception(std::exchange(m.error, nullptr));
}

// Runs ready lanes in random order: mostly all of them, as a warp does.
inline void run_warp(Warp& warp) {
  Machine& m = machine();
  do {
    const unsigned turn = m.random.below(32);
    const uint32_t turned = turn == 0 ? warp.ready : warp.ready >> turn | warp.ready << (32 - turn);
    run_lane(warp, (static_cast<unsigned>(__builtin_ctz(turned)) + turn) % 32);
  } while (warp.ready != 0 && m.random.below(16) != 0);
  if (warp.ready != 0) return;
  const auto position = static_cast<size_t>(warp.position);
  m.runnable[position] = m.runnable.back();
  m.warps[m.runnable[position]].position = warp.position;
  m.runnable.pop_back();
  warp.position = -1;
}

// Until all threads of the cluster have exited and every message has arrived.
inline void run_to_end() {
  Machine& m = machine();
  Mood mood;
  while (m.exited < m.fibers.size() || !m.messages.empty()) {
    if (mood.turns == 0) mood = random_mood();
    --mood.turns;
    if (!m.messages.empty() && mood.delivery > 0 && m.random.below(mood.delivery) == 0) {
      deliver_random_message();
      continue;
    }
    Warp* warp = random_warp(mood);
    if (warp != nullptr) {
      run_warp(*warp);
    } else if (!m.messages.empty() && (m.runnable.empty() || m.random.below(4) != 0)) {
      deliver_random_message();
    } else if (!m.runnable.empty()) {
      mood.frozen_end = mood.frozen_begin;
    } else if (!m.waits_expire || !expire_a_wait()) {
      fail("deadlock" + describe_waiting());
    }
  }
}

inline void fiber_main() {
  Machine& m = machine();
  enter_context(m.scheduler);
  try {
    m.kernel();
    exit_thread(*m.current);
  } catch (...) {
    m.error = std::current_exception();
  }
  m.current->done = true;
  leave();
}

inline void prepare_cluster(size_t shared_bytes) {
  Machine& m = machine();
  const auto num_fibers = static_cast<unsigned>(m.fibers.size());
  m.ctas.assign(m.cluster_size, Cta());
  for (unsigned rank = 0; rank < m.cluster_size; ++rank) {
    m.ctas[rank].rank = rank;
    m.ctas[rank].barrier.live = m.num_threads;
    m.ctas[rank].shared.assign(shared_bytes, kNaNByte);
  }
  m.warps.assign(num_fibers / 32, Warp());
  m.runnable.clear();
  m.messages.clear();
  m.cluster_barrier = {num_fibers, {}};
  m.exited = 0;
  for (unsigned i = 0; i < num_fibers; ++i) {
    Fiber& fiber = m.fibers[i];
    char* stack = fiber.stack;
    fiber = Fiber();
    fiber.stack = stack;
    fiber.cta = &m.ctas[i / m.num_threads];
    fiber.warp = &m.warps[i / 32];
    fiber.thread = i % m.num_threads;
    if (i % 32 == 0) fiber.warp->lanes = &fiber;
    prepare_context(fiber.context, stack, fiber_main);
    make_ready(fiber);
  }
  counters().fibers += num_fibers;
}

inline void run_grid(size_t shared_bytes) {
  Machine& m = machine();
  ++counters().launches;
  m.sent = 0;
  m.has_expired = false;
  m.fibers.assign(size_t{m.cluster_size} * m.num_threads, Fiber());
  for (Fiber& fiber : m.fibers) fiber.stack = stack_pool().take();
  struct GiveStacks {
    ~GiveStacks() {
      for (const Fiber& fiber : machine().fibers) stack_pool().give(fiber.stack);
      machine().fibers.clear();
      machine().current = nullptr;
    }
  } give_stacks;
  std::vector<unsigned> order(m.num_blocks / m.cluster_size);
  for (unsigned i = 0; i < order.size(); ++i) {
    const unsigned j = m.random.below(i + 1);
    order[i] = order[j];
    order[j] = i;
  }
  for (const unsigned cluster : order) {
    m.cluster = cluster;
    prepare_cluster(shared_bytes);
    run_to_end();
  }
}

}  // namespace varlen_rnn::emulator
