// Cases of simt_test.cu, emulator only: every mistake that the emulator is there to catch is made,
// and must be named.
#pragma once

#include "simt_harness.h"
#include "simt_memory.h"

namespace varlen_rnn {

constexpr unsigned kThreads = 64;
constexpr size_t kSharedBytes = 1024;
constexpr uint64_t kSeeds = 20;

struct CheckParams {
  float* global;  // [kThreads, 4]  in, 64-byte aligned
  float* out;     // [kThreads of the grid]
};

// What the kernel throws under every seed in turn: the first message, if all contain text.
inline void expect_failure(const std::string& text, unsigned cluster_size,
                           void (*kernel)(CheckParams)) {
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    emulator::settings().seed = seed;
    emulator::forget_memory();
    const Buffer<float> global(4 * kThreads);
    const Buffer<float> out(kThreads * cluster_size);
    std::string message = "nothing";
    try {
      run({cluster_size, kThreads, kSharedBytes, cluster_size, nullptr}, kernel,
          {global.data(), out.data()});
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    expect(message.find(text) != std::string::npos,
           "expected \"" + text + "\" under seed " + std::to_string(seed) + ", got " + message);
    expect(message.find("seed " + std::to_string(seed)) != std::string::npos,
           "the seed is missing: " + message);
  }
}

inline void test_access_checks(Report& report) {
  const auto fails = [&](const char* name, const char* text, void (*kernel)(CheckParams)) {
    report.run_case(name, [&] { expect_failure(text, 1, kernel); });
  };
  fails("shared access past the end", "shared access out of bounds: 4 bytes at offset 1024",
        [](CheckParams) { simt::shared<float>(0)[kSharedBytes / 4] = 0.0f; });
  fails("shared access half past the end", "shared access out of bounds: 16 bytes",
        [](CheckParams) { simt::shared<simt::Words4>(kSharedBytes - 8)->w[0] = 0; });
  fails("shared access before the start", "shared access out of bounds",
        [](CheckParams p) { simt::store(p.out, simt::shared<float>(0)[-1]); });
  fails("shared access through no address", "shared access out of bounds", [](CheckParams p) {
    const simt::Shared<float> nowhere;
    simt::store(p.out, *nowhere);
  });
  fails("misaligned shared access", "misaligned shared access: 16 bytes at offset 8",
        [](CheckParams) { simt::recast<simt::Words4>(simt::shared<float>(8))->w[0] = 0; });
  fails("misaligned ldmatrix", "misaligned shared access: 16 bytes at offset 8", [](CheckParams) {
    uint32_t r[4];
    simt::ldmatrix_x4(r, simt::shared<uint32_t>(8));
  });
  fails("ldmatrix past the end", "shared access out of bounds", [](CheckParams) {
    uint32_t r[4];
    simt::ldmatrix_x4(r, simt::shared<uint32_t>(kSharedBytes - 30 * 16) + 4 * simt::lane());
  });
  fails("load past the end", "load: global access out of bounds: 4 bytes",
        [](CheckParams p) { simt::store(p.out, simt::load(p.global + 4 * kThreads)); });
  fails("load_fresh before the start", "load_fresh: global access out of bounds",
        [](CheckParams p) { simt::store(p.out, simt::load_fresh(p.global - 1)); });
  fails("store past the end", "store: global access out of bounds: 4 bytes",
        [](CheckParams p) { simt::store(p.out + kThreads, 0.0f); });
  fails("null pointer", "load: global access out of bounds",
        [](CheckParams p) { simt::store(p.out, simt::load(static_cast<const float*>(nullptr))); });
  fails("misaligned load", "load: misaligned global address: 16 bytes", [](CheckParams p) {
    const auto words = simt::load(reinterpret_cast<const simt::Words4*>(p.global + 1));
    simt::store(p.out, simt::word_as_float(words.w[0]));
  });
  fails("misaligned store", "store: misaligned global address: 8 bytes", [](CheckParams p) {
    simt::store(reinterpret_cast<simt::Words2*>(p.out + 1), simt::Words2{{0, 0}});
  });
  fails(
      "copy_async from nowhere", "copy_async: global access out of bounds: 16 bytes",
      [](CheckParams p) { simt::copy_async(simt::shared<uint32_t>(0), p.global + 4 * kThreads); });
  fails("copy_async from a misaligned address", "copy_async: misaligned global address",
        [](CheckParams p) { simt::copy_async(simt::shared<uint32_t>(0), p.global + 2); });
  fails("copy_async to a misaligned address", "misaligned shared access: 16 bytes at offset 4",
        [](CheckParams p) { simt::copy_async(simt::shared<uint32_t>(4), p.global); });
}

inline void test_collective_checks(Report& report) {
  const auto fails = [&](const char* name, const char* text, void (*kernel)(CheckParams)) {
    report.run_case(name, [&] { expect_failure(text, 1, kernel); });
  };
  fails("two collectives at a time", "divergent collective", [](CheckParams) {
    if (simt::lane() < 16) {
      simt::shuffle_xor(1u, 1);
    } else {
      simt::sync_warp();
    }
  });
  fails("a collective in two places", "divergent collective", [](CheckParams) {
    if (simt::lane() == 7) {
      simt::shuffle_xor(1u, 1);
    } else {
      simt::shuffle_xor(1u, 2);
    }
  });
  fails("a lane exits before a collective", "deadlock; block 0, threads", [](CheckParams) {
    if (simt::thread() == 40) return;
    uint32_t r[4];
    simt::ldmatrix_x4(r, simt::shared<uint32_t>(0));
  });
  fails("a lane waits elsewhere", ": shuffle_xor at", [](CheckParams) {
    if (simt::thread() == 3) simt::sync_block();
    simt::shuffle_xor(1u, 1);
    if (simt::thread() != 3) simt::sync_block();
  });
  fails("wrong shuffle mask", "shuffle_xor: expected a mask below 32, got 32",
        [](CheckParams) { simt::shuffle_xor(1u, 32); });
  fails("trap", "no such thing, thread 9 of block 0 (rank 0 of cluster 0)", [](CheckParams) {
    if (simt::thread() == 9) simt::trap("no such thing");
    simt::sync_block();
  });
}

// A barrier for one arrival, ready for all of the cluster.
inline simt::Shared<uint64_t> make_mbarrier(unsigned arrivals = 1) {
  const simt::Shared<uint64_t> bar = simt::shared<uint64_t>(0);
  if (simt::thread() == 0) {
    simt::mbarrier_init(bar, arrivals);
    simt::mbarrier_fence_init();
  }
  simt::sync_cluster();
  return bar;
}

constexpr uint32_t kWord[1] = {7};
inline simt::Shared<uint32_t> target() { return simt::shared<uint32_t>(512); }

inline void test_mbarrier_checks(Report& report) {
  const auto fails = [&](const char* name, const char* text, void (*kernel)(CheckParams)) {
    report.run_case(name, [&] { expect_failure(text, 2, kernel); });
  };
  fails("an arrival too many", "more than 1 arrivals in one phase", [](CheckParams) {
    const auto bar = make_mbarrier();
    if (simt::thread() < 2) simt::mbarrier_arrive_expect(bar, 4);
  });
  fails("an arrival too few", "lacks 1 arrivals and 0 bytes", [](CheckParams) {
    const auto bar = make_mbarrier(2);
    if (simt::thread() == 0) simt::mbarrier_arrive_expect(bar, 0);
    simt::mbarrier_wait(bar, 0);
  });
  fails("fewer bytes than expected", "lacks 0 arrivals and 4 bytes", [](CheckParams) {
    const auto bar = make_mbarrier();
    if (simt::thread() == 0) {
      simt::mbarrier_arrive_expect(bar, 8);
      simt::st_async(target(), bar, 1 - simt::cluster_rank(), kWord);
    }
    simt::mbarrier_wait(bar, 0);
  });
  fails("more bytes than expected", "bytes", [](CheckParams) {
    const auto bar = make_mbarrier();
    if (simt::thread() == 0) {
      const uint32_t words[2] = {1, 2};
      simt::mbarrier_arrive_expect(bar, 4);
      simt::st_async(target(), bar, 1 - simt::cluster_rank(), words);
    }
    simt::mbarrier_wait(bar, 0);
  });
  fails("bytes pending at exit", "bytes pending on the mbarrier at offset 0", [](CheckParams) {
    const auto bar = make_mbarrier();
    if (simt::thread() == 0) simt::mbarrier_arrive_expect(bar, 8);
  });
  fails("a second initialisation", "mbarrier_init: the mbarrier at offset 0 is in use",
        [](CheckParams) { make_mbarrier(), make_mbarrier(); });
  fails("no initialisation", "no mbarrier at offset 8", [](CheckParams) {
    make_mbarrier();
    simt::mbarrier_wait(simt::shared<uint64_t>(8), 0);
  });
  fails("an overwritten mbarrier", "no mbarrier at offset 0 of rank", [](CheckParams) {
    const auto bar = make_mbarrier();
    simt::recast<uint32_t>(bar)[0] = 3;
    simt::mbarrier_arrive_expect(bar, 0);
  });
  fails("a misaligned mbarrier", "misaligned shared access: 8 bytes at offset 4",
        [](CheckParams) { simt::mbarrier_init(simt::shared<uint64_t>(4), 1); });
  fails("no mbarrier_fence_init", "is used before its mbarrier_fence_init", [](CheckParams) {
    const auto bar = simt::shared<uint64_t>(0);
    if (simt::thread() == 0) simt::mbarrier_init(bar, 1);
    simt::sync_cluster();
    simt::st_async(target(), bar, 1 - simt::cluster_rank(), kWord);
  });
  fails("wrong parity", "deadlock; block 0, threads 0-63: mbarrier_wait at emulator_checks.h",
        [](CheckParams) {
          const auto bar = make_mbarrier();
          if (simt::thread() == 0) simt::mbarrier_arrive_expect(bar, 0);
          simt::mbarrier_wait(bar, 0);
          simt::mbarrier_wait(bar, 1);
        });
  fails("no parity", "mbarrier_wait: expected parity 0 or 1, got 2",
        [](CheckParams) { simt::mbarrier_wait(make_mbarrier(), 2); });
  fails("no such rank", "st_async: expected a rank below 2, got 2",
        [](CheckParams) { simt::st_async(target(), make_mbarrier(), 2, kWord); });
  fails("st_async past the end", "shared access out of bounds: 4 bytes at offset 1024",
        [](CheckParams) {
          simt::st_async(simt::shared<uint32_t>(kSharedBytes), make_mbarrier(), 0, kWord);
        });
  fails("misaligned st_async", "misaligned shared access: 16 bytes at offset 520", [](CheckParams) {
    const uint32_t words[4] = {};
    simt::st_async(target() + 2, make_mbarrier(), 0, words);
  });
  // Seen by the sender, by the store that comes late, or at the exit.
  fails("st_async to a block that exits", "rank 1", [](CheckParams) {
    const auto bar = make_mbarrier();
    if (simt::cluster_rank() == 0) simt::st_async(target(), bar, 1, kWord);
  });
  fails("a block waits for a cluster that waits for it", "sync_cluster at", [](CheckParams) {
    const auto bar = make_mbarrier();
    if (simt::block() == 0) simt::mbarrier_wait(bar, 0);
    simt::sync_cluster();
  });
}

}  // namespace varlen_rnn
