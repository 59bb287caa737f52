// Barriers of threads, mbarriers, and what arrives later: stores into other blocks of the cluster
// (st_async) and copies from global memory (copy_async).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "cuda/emulator/machine.h"
#include "cuda/emulator/memory.h"

namespace varlen_rnn::emulator {

// What shared memory holds before anything is written: NaN in every floating-point type.
constexpr int kNaNByte = 0xff;

// ---- barriers of threads

inline void release_if_complete(ThreadBarrier& barrier) {
  if (barrier.waiting.empty() || barrier.waiting.size() != barrier.live) return;
  for (Fiber* fiber : barrier.waiting) make_ready(*fiber);
  barrier.waiting.clear();
}
inline void sync(ThreadBarrier& barrier, const Waiting& waiting) {
  yield_at_random();
  barrier.waiting.push_back(&current());
  release_if_complete(barrier);
  suspend(waiting);
}

// ---- mbarriers

// The 8 bytes in shared memory hold this and an index, so that a stray write shows.
constexpr uint64_t kMbarrierMagic = uint64_t{0x6d626172} << 32;

inline Mbarrier* find_mbarrier(Cta& cta, int64_t offset) {
  uint64_t word = 0;
  std::memcpy(&word, shared_address(cta, offset, 8, 8), 8);
  const uint64_t index = word ^ kMbarrierMagic;
  if (index >= cta.mbarriers.size() || cta.mbarriers[index].offset != offset) return nullptr;
  return &cta.mbarriers[index];
}
inline Mbarrier& get_mbarrier(Cta& cta, int64_t offset) {
  Mbarrier* mbarrier = find_mbarrier(cta, offset);
  if (mbarrier == nullptr) {
    fail("no mbarrier at offset " + std::to_string(offset) + " of rank " +
         std::to_string(cta.rank) + ": never initialised, or overwritten");
  }
  return *mbarrier;
}

inline void complete_if_due(Mbarrier& mbarrier) {
  if (mbarrier.pending > 0 || mbarrier.bytes > 0) return;
  if (mbarrier.bytes < 0) {
    fail("mbarrier at offset " + std::to_string(mbarrier.offset) + " got " +
         std::to_string(-mbarrier.bytes) + " bytes more than its phase expected");
  }
  ++mbarrier.phase;
  mbarrier.pending = mbarrier.arrivals;
  for (Fiber* fiber : mbarrier.waiting) make_ready(*fiber);
  mbarrier.waiting.clear();
}

inline void mbarrier_init(int64_t offset, unsigned arrivals) {
  yield_at_random();
  Fiber& fiber = current();
  Cta& cta = *fiber.cta;
  if (arrivals == 0 || arrivals >= 1u << 20) {
    fail("mbarrier_init: expected 1 to 2^20 - 1 arrivals, got " + std::to_string(arrivals));
  }
  if (find_mbarrier(cta, offset) != nullptr) {
    fail("mbarrier_init: the mbarrier at offset " + std::to_string(offset) + " is in use");
  }
  const uint64_t word = kMbarrierMagic ^ cta.mbarriers.size();
  std::memcpy(shared_address(cta, offset, 8, 8), &word, 8);
  cta.mbarriers.push_back({offset, arrivals, arrivals, 0, 0, &fiber, {}});
}

inline void mbarrier_fence_init() {
  Fiber& fiber = current();
  for (Mbarrier& mbarrier : fiber.cta->mbarriers) {
    if (mbarrier.unfenced == &fiber) mbarrier.unfenced = nullptr;
  }
}

// The transaction count of the hardware is that small.
constexpr int64_t kMaxBytes = (int64_t{1} << 20) - 1;

inline void mbarrier_arrive_expect(int64_t offset, unsigned bytes) {
  yield_at_random();
  Mbarrier& mbarrier = get_mbarrier(*current().cta, offset);
  if (mbarrier.pending == 0) {
    fail("mbarrier_arrive_expect: more than " + std::to_string(mbarrier.arrivals) +
         " arrivals in one phase of the mbarrier at offset " + std::to_string(offset));
  }
  mbarrier.bytes += bytes;
  if (mbarrier.bytes > kMaxBytes) {
    fail("mbarrier_arrive_expect: more than 2^20 - 1 bytes expected by the mbarrier at offset " +
         std::to_string(offset));
  }
  --mbarrier.pending;
  complete_if_due(mbarrier);
}

constexpr const char* kMbarrierWait = "mbarrier_wait";

// Where nobody can go on: gives up the waits of a warp, if one waits for a mbarrier.
inline bool expire_a_wait() {
  Machine& m = machine();
  const unsigned first = m.random.below(static_cast<unsigned>(m.warps.size()));
  for (size_t i = 0; i < m.warps.size(); ++i) {
    Warp& warp = m.warps[(first + i) % m.warps.size()];
    bool found = false;
    for (unsigned lane = 0; lane < 32; ++lane) {
      Fiber& fiber = warp.lanes[lane];
      if (fiber.done || fiber.waiting.what != kMbarrierWait) continue;
      Mbarrier& mbarrier = get_mbarrier(*fiber.cta, fiber.waiting.offset);
      const auto at = std::find(mbarrier.waiting.begin(), mbarrier.waiting.end(), &fiber);
      if (at == mbarrier.waiting.end()) continue;
      mbarrier.waiting.erase(at);
      fiber.expired = found = true;
      make_ready(fiber);
    }
    if (found) return m.has_expired = true;
  }
  return false;
}

// False if nothing else could go on, and the machine lets waits expire.
inline bool mbarrier_wait(int64_t offset, unsigned parity, Site site) {
  if (parity > 1) fail("mbarrier_wait: expected parity 0 or 1, got " + std::to_string(parity));
  yield_at_random();
  Fiber& fiber = current();
  // A fiber that is woken late may find the next phase complete, too, and wait on: so may hardware.
  while (true) {
    Mbarrier& mbarrier = get_mbarrier(*fiber.cta, offset);
    if ((mbarrier.phase & 1) != parity) return true;
    if (fiber.expired) {
      fiber.expired = false;
      return false;
    }
    mbarrier.waiting.push_back(&fiber);
    suspend({kMbarrierWait, site, offset, parity});
  }
}

// ---- stores into other blocks

inline void check_alive(const Cta& cta, const char* what) {
  if (cta.barrier.live == 0) {
    fail(std::string(what) + ": access to shared memory of rank " + std::to_string(cta.rank) +
         ", a block that has exited");
  }
}

inline void st_async(int64_t offset, int64_t mbarrier, unsigned rank, const uint32_t* words,
                     unsigned n) {
  yield_at_random();
  Machine& m = machine();
  const Fiber& fiber = current();
  if (m.cluster_size < 2) fail("st_async: expected a cluster of several blocks, got one");
  if (rank >= m.cluster_size) {
    fail("st_async: expected a rank below " + std::to_string(m.cluster_size) + ", got " +
         std::to_string(rank));
  }
  Cta& to = m.ctas[rank];
  check_alive(to, "st_async");
  const unsigned bytes = 4 * n;
  void* address = shared_address(to, offset, bytes, bytes);
  if (get_mbarrier(to, mbarrier).unfenced != nullptr && &to != fiber.cta) {
    fail("st_async: the mbarrier at offset " + std::to_string(mbarrier) + " of rank " +
         std::to_string(rank) + " is used before its mbarrier_fence_init");
  }
  // From now on the new words may be there any time, so nobody may count on the old ones.
  std::memset(address, kNaNByte, bytes);
  Message message = {&to, offset, mbarrier, bytes, {}, &fiber, ++m.sent == m.lost};
  std::memcpy(message.words, words, bytes);
  m.messages.push_back(message);
}

// Called by the scheduler.
inline void deliver_random_message() {
  Machine& m = machine();
  std::swap(m.messages[m.random.below(static_cast<unsigned>(m.messages.size()))],
            m.messages.back());
  const Message message = m.messages.back();
  m.messages.pop_back();
  try {
    check_alive(*message.to, "st_async");
    std::memcpy(shared_address(*message.to, message.offset, message.bytes, message.bytes),
                message.words, message.bytes);
    if (message.is_lost) return;
    Mbarrier& mbarrier = get_mbarrier(*message.to, message.mbarrier);
    mbarrier.bytes -= message.bytes;
    complete_if_due(mbarrier);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(std::string(error.what()) + ", by a st_async of " +
                             where(*message.sender));
  }
}

// A thread's exit: what waited for it no longer does, and the last one ends the block.
inline void exit_thread(Fiber& fiber) {
  Machine& m = machine();
  Cta& cta = *fiber.cta;
  ++m.exited;
  --cta.barrier.live;
  --m.cluster_barrier.live;
  release_if_complete(cta.barrier);
  release_if_complete(m.cluster_barrier);
  if (cta.barrier.live > 0 || m.has_expired) return;
  for (const Mbarrier& mbarrier : cta.mbarriers) {
    if (mbarrier.bytes != 0) {
      fail("the block exits with " + std::to_string(mbarrier.bytes) +
           " bytes pending on the mbarrier at offset " + std::to_string(mbarrier.offset));
    }
  }
}

// ---- copies from global memory

// The words land with the wait that covers them, the latest time there is; they are read from
// global memory then, or now.
inline void copy_async(int64_t offset, const void* source) {
  yield_at_random();
  Fiber& fiber = current();
  check_global("copy_async", source, 16);
  std::memset(shared_address(*fiber.cta, offset, 16, 16), kNaNByte, 16);
  Copy copy = {offset, source, machine().random.below(2) == 0, {}, fiber.closed_groups};
  if (copy.sampled) std::memcpy(copy.words, source, 16);
  fiber.copies.push_back(copy);
}
inline void copy_async_commit() { ++current().closed_groups; }
inline void copy_async_wait(unsigned n) {
  yield_at_random();
  Fiber& fiber = current();
  size_t kept = 0;
  for (const Copy& copy : fiber.copies) {
    if (copy.group + n < fiber.closed_groups) {
      std::memcpy(shared_address(*fiber.cta, copy.offset, 16, 16),
                  copy.sampled ? copy.words : copy.source, 16);
    } else {
      fiber.copies[kept++] = copy;
    }
  }
  fiber.copies.resize(kept);
}

}  // namespace varlen_rnn::emulator
