// Cases of simt_test.cu, emulator only: the scheduler must show races; launches and their counters.
#pragma once

#include "emulator_checks.h"

namespace varlen_rnn {

// The kernel ends, but some results (out[i] == i is right) are wrong under at least so many seeds.
inline void expect_wrong(uint64_t at_least, unsigned cluster_size, void (*kernel)(CheckParams)) {
  uint64_t wrong = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    emulator::settings().seed = seed;
    Buffer<float> global(4 * kThreads);
    for (unsigned i = 0; i < 4 * kThreads; ++i) global[i] = static_cast<float>(i / 4);
    const Buffer<float> out(kThreads * cluster_size);
    run({cluster_size, kThreads, kSharedBytes, cluster_size, nullptr}, kernel,
        {global.data(), out.data()});
    bool right = true;
    for (unsigned i = 0; i < out.size(); ++i) right = right && out[i] == static_cast<float>(i);
    if (!right) ++wrong;
  }
  expect(wrong >= at_least, "wrong results under " + std::to_string(wrong) + " of " +
                                std::to_string(kSeeds) + " seeds, expected " +
                                std::to_string(at_least));
}

inline void test_races(Report& report) {
  const auto wrong = [&](const char* name, uint64_t at_least, unsigned cluster_size,
                         void (*kernel)(CheckParams)) {
    report.run_case(name, [&] { expect_wrong(at_least, cluster_size, kernel); });
  };
  wrong("fresh shared memory is NaN", kSeeds, 1, [](CheckParams p) {
    simt::store(p.out + simt::thread(),
                0.0f * simt::shared<float>(0)[simt::thread()] + static_cast<float>(simt::thread()));
  });
  wrong("no sync_block", kSeeds, 1, [](CheckParams p) {
    const unsigned i = simt::thread();
    const auto words = simt::shared<float>(0);
    words[kThreads - 1 - i] = static_cast<float>(kThreads - 1 - i);
    simt::store(p.out + i, words[i]);
  });
  wrong("sync_warp for sync_block", kSeeds / 2, 1, [](CheckParams p) {
    const unsigned i = simt::thread();
    const auto words = simt::shared<float>(0);
    words[kThreads - 1 - i] = static_cast<float>(kThreads - 1 - i);
    simt::sync_warp();
    simt::store(p.out + i, words[i]);
  });
  wrong("sync_block for sync_cluster", kSeeds / 4, 2, [](CheckParams p) {
    const unsigned i = simt::block() * kThreads + simt::thread();
    const unsigned other = (1 - simt::block()) * kThreads + simt::thread();
    simt::store(p.out + other, static_cast<float>(other) - 1.0f);
    simt::sync_block();
    simt::store(p.out + i, simt::load_fresh(p.out + i) + 1.0f);
  });
  wrong("no copy_async_wait", kSeeds, 1, [](CheckParams p) {
    const unsigned i = simt::thread();
    simt::copy_async(simt::shared<uint32_t>(0) + 4 * i, p.global + 4 * i);
    simt::copy_async_commit();
    simt::sync_block();
    simt::store(p.out + i, simt::shared<float>(0)[4 * i]);
    simt::copy_async_wait<0>();
  });
  wrong("copy_async_wait for too few", kSeeds, 1, [](CheckParams p) {
    const unsigned i = simt::thread();
    simt::copy_async(simt::shared<uint32_t>(0) + 4 * i, p.global + 4 * i);
    simt::copy_async_commit();
    simt::copy_async_wait<1>();
    simt::store(p.out + i, simt::shared<float>(0)[4 * i]);
  });
  wrong("no copy_async_commit", kSeeds, 1, [](CheckParams p) {
    const unsigned i = simt::thread();
    simt::copy_async(simt::shared<uint32_t>(0) + 4 * i, p.global + 4 * i);
    simt::copy_async_wait<0>();
    simt::store(p.out + i, simt::shared<float>(0)[4 * i]);
  });
  wrong("no sync_block after copy_async_wait", kSeeds / 2, 1, [](CheckParams p) {
    const unsigned i = simt::thread();
    const unsigned other = kThreads - 1 - i;
    simt::copy_async(simt::shared<uint32_t>(0) + 4 * other, p.global + 4 * other);
    simt::copy_async_commit();
    simt::copy_async_wait<0>();
    simt::store(p.out + i, simt::shared<float>(0)[4 * i]);
  });
  wrong("no mbarrier_wait", kSeeds, 2, [](CheckParams p) {
    const auto bar = make_mbarrier();
    const unsigned i = simt::thread();
    if (i == 0) simt::mbarrier_arrive_expect(bar, 4 * kThreads);
    const unsigned rank = 1 - simt::cluster_rank();
    const float v = static_cast<float>(rank * kThreads + i);
    const uint32_t words[1] = {simt::float_as_word(v)};
    simt::st_async(target() + i, bar, rank, words);
    simt::store(p.out + simt::block() * kThreads + i, simt::recast<float>(target())[i]);
    simt::mbarrier_wait(bar, 0);
  });
}

// The order in which threads come to a counter, under a seed.
inline std::vector<float> arrival_order(uint64_t seed) {
  emulator::settings().seed = seed + 1;
  const Buffer<float> global(std::vector<float>(4 * kThreads, 0.0f));
  const Buffer<float> out(kThreads);
  const auto kernel = [](CheckParams p) {
    const float arrived = simt::load_fresh(p.global);
    simt::store(p.global, arrived + 1.0f);
    simt::store(p.out + static_cast<int>(arrived), static_cast<float>(simt::thread()));
  };
  // The next launch starts the sequence of this seed anew.
  for (int repeat = 0; repeat < 2; ++repeat) {
    global[0] = 0.0f;
    run({1, kThreads, 0, 1, nullptr}, +kernel, {global.data(), out.data()});
    emulator::settings().seed = seed;
  }
  return {out.data(), out.data() + kThreads};
}

inline void test_launches(Report& report) {
  report.run_case("a seed's order", [] {
    expect(arrival_order(8) == arrival_order(8), "one seed, two orders");
    expect(arrival_order(8) != arrival_order(10), "two seeds, one order");
  });
  const auto refuses = [&](const std::string& text, const simt::Launch& launch) {
    report.run_case("launch: " + text, [&] {
      const Buffer<uint32_t> out(9);
      std::string message = "nothing";
      try {
        run(launch, identity_kernel, {out.data()});
      } catch (const std::runtime_error& error) {
        message = error.what();
      }
      expect(message == "emulator: launch: expected " + text, "got " + message);
    });
  };
  refuses("32, 64, ..., 1024 threads, got 33", {1, 33, 0, 1, nullptr});
  refuses("a positive multiple of 2 blocks, got 3", {3, 32, 0, 2, nullptr});
  refuses("a cluster size from 1 to 16, got 32", {32, 32, 0, 32, nullptr});
  refuses("at most 232448 bytes of shared memory, got 232449", {1, 32, 232449, 1, nullptr});
  report.run_case("a device without clusters", [] {
    const simt::Device device = emulator::settings().device;
    emulator::settings().device.max_cluster_size = 1;
    const int active = simt::max_active_clusters({2, 32, 0, 2, nullptr}, identity_kernel);
    emulator::settings().device = device;
    expect(active == 0, "expected no active clusters");
  });
  report.run_case("overlapping regions", [] {
    emulator::forget_memory();
    const std::vector<float> values(64);
    const auto inside = [&](size_t first, size_t last) {
      return emulator::global_memory().contains(reinterpret_cast<uintptr_t>(&values[first]),
                                                reinterpret_cast<uintptr_t>(&values[last] + 1));
    };
    emulator::register_memory(&values[8], 8 * sizeof(float));
    emulator::register_memory(&values[8], 8 * sizeof(float));
    emulator::register_memory(&values[16], 8 * sizeof(float));
    emulator::register_memory(&values[4], 40 * sizeof(float));
    emulator::register_memory(&values[50], 4 * sizeof(float));
    expect(inside(8, 15) && inside(4, 43) && inside(20, 30) && inside(50, 53), "expected inside");
    expect(!inside(3, 4) && !inside(43, 44) && !inside(49, 50) && !inside(53, 54), "expected out");
    emulator::forget_memory();
    expect(!inside(8, 8), "expected nothing");
    emulator::register_memory(&values[8], 8 * sizeof(float));
    emulator::register_memory(&values[16], 8 * sizeof(float));
    expect(!inside(15, 16), "one access in two regions");
  });
  report.run_case("counters", [] {
    const emulator::Counters before = emulator::counters();
    test_barriers();
    const emulator::Counters& after = emulator::counters();
    expect(after.launches == before.launches + 1 && after.fibers == before.fibers + 256 &&
               after.switches >= before.switches + 256,
           "the counters do not count");
  });
}

inline void test_emulator(Report& report) {
  test_access_checks(report);
  test_collective_checks(report);
  test_mbarrier_checks(report);
  test_races(report);
  test_launches(report);
}

}  // namespace varlen_rnn
