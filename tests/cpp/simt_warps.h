// Cases of simt_test.cu: warp collectives, mbarriers and stores into other blocks of the cluster.
#pragma once

#include <cmath>

#include "simt_harness.h"
#include "simt_numbers.h"

namespace varlen_rnn {

struct ShuffleParams {
  uint32_t* out;  // [32 masks or lanes, threads, 3]
};
VARLEN_RNN_KERNEL shuffle_kernel(ShuffleParams p) {
  const unsigned i = simt::thread();
  for (unsigned mask = 0; mask < 32; ++mask) {
    uint32_t* out = p.out + 3 * (mask * simt::num_threads() + i);
    simt::store(out, simt::shuffle_xor(uint32_t{77 * i}, mask));
    simt::store(out + 1,
                simt::float_as_word(simt::shuffle_xor(0.5f * static_cast<float>(i), mask)));
    // Lanes may ask for different ones.
    const int lane = static_cast<int>((mask + i) % 32);
    simt::store(out + 2, simt::shuffle(uint32_t{77 * i}, lane));
  }
}

inline void test_shuffle() {
  const unsigned threads = 64;
  const Buffer<uint32_t> out(32 * threads * 3);
  run({1, threads, 0, 1, nullptr}, shuffle_kernel, {out.data()});
  for (unsigned i = 0; i < 32 * threads; ++i) {
    const unsigned from = i % threads ^ i / threads;
    expect_same("shuffle_xor", 3 * i, out[3 * i], 77 * from);
    expect_same("shuffle_xor(float)", 3 * i + 1, out[3 * i + 1],
                word_of(0.5f * static_cast<float>(from)));
    const unsigned lane = (i / threads + i % threads) % 32;
    expect_same("shuffle", 3 * i + 2, out[3 * i + 2], 77 * (i % threads / 32 * 32 + lane));
  }
}

constexpr unsigned kRows = 40;
constexpr unsigned kRowWords = 12;  // 48 bytes: aligned to 16, not to the row's size

struct LdmatrixParams {
  const uint32_t* in;   // [kRows, kRowWords]
  const uint32_t* row;  // [threads]
  uint32_t* out;        // [threads, 4]
};
VARLEN_RNN_KERNEL ldmatrix_kernel(LdmatrixParams p) {
  const unsigned i = simt::thread();
  simt::Shared<uint32_t> matrix = simt::shared<uint32_t>(16);
  for (unsigned k = i; k < kRows * kRowWords; k += simt::num_threads()) {
    matrix[k] = simt::load(p.in + k);
  }
  simt::sync_block();
  uint32_t r[4];
  simt::ldmatrix_x4(r, matrix + kRowWords * simt::load(p.row + i));
  simt::store(reinterpret_cast<simt::Words4*>(p.out) + i, simt::Words4{{r[0], r[1], r[2], r[3]}});
}

inline void test_ldmatrix() {
  const unsigned threads = 64;
  std::mt19937 random(3);
  Buffer<uint32_t> in(kRows * kRowWords);
  for (size_t i = 0; i < in.size(); ++i) in[i] = random();
  Buffer<uint32_t> row(threads);
  for (size_t i = 0; i < threads; ++i) row[i] = random() % kRows;
  const Buffer<uint32_t> out(4 * threads);
  run({1, threads, 16 + 4 * kRows * kRowWords, 1, nullptr}, ldmatrix_kernel,
      {in.data(), row.data(), out.data()});
  for (unsigned i = 0; i < threads; ++i) {
    for (unsigned m = 0; m < 4; ++m) {
      const unsigned giver = i / 32 * 32 + 8 * m + i % 32 / 4;
      expect_same("ldmatrix_x4", 4 * i + m, out[4 * i + m], in[kRowWords * row[giver] + i % 4]);
    }
  }
}

enum class Operand { kBf16, kF16, kTf32 };

struct MmaParams {
  const uint32_t* a;  // [warps, 32, 4]
  const uint32_t* b;  // [warps, 32, 2]
  float* d;           // [warps, 32, 4]  in and out
};
template <Operand operand>
VARLEN_RNN_KERNEL mma_kernel(MmaParams p) {
  const unsigned i = simt::thread();
  uint32_t a[4];
  float d[4];
  for (unsigned k = 0; k < 4; ++k) {
    a[k] = simt::load(p.a + 4 * i + k);
    d[k] = simt::load_fresh(p.d + 4 * i + k);
  }
  const uint32_t b0 = simt::load(p.b + 2 * i);
  const uint32_t b1 = simt::load(p.b + 2 * i + 1);
  for (int repeat = 0; repeat < 2; ++repeat) {
    if constexpr (operand == Operand::kBf16) {
      simt::mma_bf16(d, a, b0, b1);
    } else if constexpr (operand == Operand::kF16) {
      simt::mma_f16(d, a, b0, b1);
    } else {
      simt::mma_tf32(d, a, b0, b1);
    }
  }
  for (unsigned k = 0; k < 4; ++k) simt::store(p.d + 4 * i + k, d[k]);
}

// Multiples of 1/4 below 8: every sum is exact in float, in any order.
template <Operand operand>
void test_mma() {
  constexpr bool kPairs = operand != Operand::kTf32;
  constexpr unsigned K = kPairs ? 16 : 8;
  const unsigned warps = 3;
  std::mt19937 random(4);
  const auto value = [&] { return 0.25f * (static_cast<float>(random() % 63) - 31.0f); };
  const auto bits = [](float v) -> uint32_t {
    if (operand == Operand::kTf32) return word_of(v);
    return operand == Operand::kBf16 ? encode<simt::bf16>(v) : encode<simt::f16>(v);
  };
  Buffer<uint32_t> a(warps * 128);
  Buffer<uint32_t> b(warps * 64);
  Buffer<float> d(warps * 128);
  std::vector<float> want(d.size());
  for (unsigned w = 0; w < warps; ++w) {
    float A[16][K];
    float B[K][8];
    for (auto& row : A) {
      for (float& v : row) v = value();
    }
    for (auto& row : B) {
      for (float& v : row) v = value();
    }
    for (unsigned lane = 0; lane < 32; ++lane) {
      const unsigned g = lane / 4;
      const unsigned t = lane % 4;
      const unsigned i = 32 * w + lane;
      // Word by word as the table in gpu/warp.cuh says.
      const auto word_a = [&](unsigned row, unsigned k) {
        return kPairs ? bits(A[row][2 * k]) | bits(A[row][2 * k + 1]) << 16 : bits(A[row][k]);
      };
      const auto word_b = [&](unsigned k) {
        return kPairs ? bits(B[2 * k][g]) | bits(B[2 * k + 1][g]) << 16 : bits(B[k][g]);
      };
      a[4 * i] = word_a(g, t);
      a[4 * i + 1] = word_a(g + 8, t);
      a[4 * i + 2] = word_a(g, t + 4);
      a[4 * i + 3] = word_a(g + 8, t + 4);
      b[2 * i] = word_b(t);
      b[2 * i + 1] = word_b(t + 4);
      for (unsigned j = 0; j < 4; ++j) {
        const unsigned row = g + (j < 2 ? 0 : 8);
        const unsigned column = 2 * t + j % 2;
        float product = 0;
        for (unsigned k = 0; k < K; ++k) product += A[row][k] * B[k][column];
        d[4 * i + j] = value();
        want[4 * i + j] = d[4 * i + j] + 2 * product;
      }
    }
  }
  run({1, 32 * warps, 0, 1, nullptr}, mma_kernel<operand>, {a.data(), b.data(), d.data()});
  for (size_t i = 0; i < d.size(); ++i) expect_same("mma", i, d[i], want[i]);
}

constexpr unsigned kExchanges = 5;

struct ExchangeParams {
  uint32_t* out;  // [threads of the grid]
};
// The exchange of a recurrence: in every round, each thread sends n words to every block of the
// cluster, and then sums what all ranks sent to its place. Two buffers with an mbarrier each are
// enough, with no barrier of threads: who sends round r + 2 has got round r + 1 of all threads,
// which they sent after reading round r, and thread 0 after expecting round r + 2.
template <int n>
VARLEN_RNN_KERNEL exchange_kernel(ExchangeParams p) {
  const unsigned i = simt::thread();
  const unsigned threads = simt::num_threads();
  const unsigned ranks = simt::cluster_size();
  const unsigned stage_words = ranks * threads * n;
  simt::Shared<uint64_t> bars = simt::shared<uint64_t>(0);
  simt::Shared<uint32_t> buffer = simt::shared<uint32_t>(16);
  if (i == 0) {
    for (unsigned stage = 0; stage < 2; ++stage) simt::mbarrier_init(bars + stage, 1);
    simt::mbarrier_fence_init();
    for (unsigned stage = 0; stage < 2; ++stage) {
      simt::mbarrier_arrive_expect(bars + stage, 4 * stage_words);
    }
  }
  simt::sync_cluster();
  uint32_t sum = simt::block() * threads + i;
  for (unsigned round = 0; round < kExchanges; ++round) {
    const unsigned stage = round % 2;
    uint32_t words[n];
    for (int k = 0; k < n; ++k) words[k] = sum + static_cast<uint32_t>(k);
    for (unsigned rank = 0; rank < ranks; ++rank) {
      simt::st_async(buffer + (stage * stage_words + (simt::cluster_rank() * threads + i) * n),
                     bars + stage, rank, words);
    }
    simt::mbarrier_wait(bars + stage, round / 2 % 2);
    for (unsigned rank = 0; rank < ranks; ++rank) {
      for (int k = 0; k < n; ++k) {
        sum += buffer[stage * stage_words + (rank * threads + i) * n + static_cast<unsigned>(k)];
      }
    }
    if (i == 0 && round + 2 < kExchanges) {
      simt::mbarrier_arrive_expect(bars + stage, 4 * stage_words);
    }
  }
  simt::store(p.out + simt::block() * threads + i, sum);
  simt::sync_cluster();
}

template <int n>
void test_exchange(unsigned cluster_size) {
  const unsigned threads = 64;
  const unsigned blocks = 2 * cluster_size;
  const Buffer<uint32_t> out(threads * blocks);
  const size_t shared_bytes = 16 + size_t{2} * 4 * cluster_size * threads * n;
  run({blocks, threads, shared_bytes, cluster_size, nullptr}, exchange_kernel<n>, {out.data()});
  std::vector<uint32_t> sums(threads * blocks);
  for (uint32_t i = 0; i < sums.size(); ++i) sums[i] = i;
  for (unsigned round = 0; round < kExchanges; ++round) {
    const std::vector<uint32_t> sent = sums;
    for (unsigned i = 0; i < sums.size(); ++i) {
      const unsigned first = i / threads / cluster_size * cluster_size;
      for (unsigned rank = 0; rank < cluster_size; ++rank) {
        const uint32_t word = sent[(first + rank) * threads + i % threads];
        for (uint32_t k = 0; k < n; ++k) sums[i] += word + k;
      }
    }
  }
  for (size_t i = 0; i < sums.size(); ++i) expect_same("exchange", i, out[i], sums[i]);
}

struct ExpiryParams {
  uint32_t* out;  // [threads of the grid, 2]
  uint32_t limit;
};
// A wait for bytes that nobody has sent ends, and one behind it, for the same bytes, with success.
VARLEN_RNN_KERNEL expiry_kernel(ExpiryParams p) {
  const unsigned i = simt::thread(), ranks = simt::cluster_size();
  simt::Shared<uint64_t> bar = simt::shared<uint64_t>(0);
  simt::Shared<uint32_t> words = simt::shared<uint32_t>(16);
  if (i == 0) {
    simt::mbarrier_init(bar, 1);
    simt::mbarrier_fence_init();
    simt::mbarrier_arrive_expect(bar, 16);
  }
  simt::sync_cluster();
  const bool early = simt::mbarrier_wait(bar, 0, p.limit);
  simt::sync_cluster();
  const uint32_t sent[4] = {7, 8, 9, simt::cluster_rank()};
  if (i == 0) simt::st_async(words, bar, (simt::cluster_rank() + 1) % ranks, sent);
  const bool late = simt::mbarrier_wait(bar, 0);
  simt::store(p.out + 2 * (simt::block() * simt::num_threads() + i), uint32_t{early});
  simt::store(p.out + 2 * (simt::block() * simt::num_threads() + i) + 1,
              late ? uint32_t{words[3]} : ranks);
}

inline void test_expiry(unsigned cluster_size) {
  const unsigned threads = 64, blocks = 2 * cluster_size;
  const Buffer<uint32_t> out(size_t{2} * threads * blocks);
#ifdef VARLEN_RNN_EMULATE
  emulator::settings().waits_expire = true;
#endif
  run({blocks, threads, 32, cluster_size, nullptr}, expiry_kernel,
      {out.data(), simt::wait_limit(0.02)});
#ifdef VARLEN_RNN_EMULATE
  emulator::settings().waits_expire = false;
#endif
  for (unsigned i = 0; i < threads * blocks; ++i) {
    expect_same("a wait that expires", i, out[2 * i], 0u);
    const unsigned rank = i / threads % cluster_size;
    expect_same("the wait behind it", i, out[2 * i + 1], (rank + cluster_size - 1) % cluster_size);
  }
}

// The clock of a wait alone, on the host: readings a millisecond apart.
inline void test_patience() {
  constexpr uint64_t kMillisecond = 1'000'000;
  const uint32_t limit = simt::wait_limit(5);
  const auto lasts = [&](int away_at, uint64_t away) {
    simt::Patience patience;
    uint64_t now = 987'654'321 * kMillisecond;
    int readings = 0;
    while (!patience.ends(static_cast<uint32_t>(now), limit))
      now += ++readings == away_at ? away : kMillisecond;
    return readings;
  };
  const int usual = lasts(0, 0);
  expect(usual >= 4300 && usual <= 5100, "a wait lasts about its limit");
  const int after_pause = lasts(100, 1'000'000 * kMillisecond);
  expect(after_pause >= 3700 && after_pause < usual, "a pause counts a part");
  simt::Patience patience;
  expect(patience.ends(kMillisecond, 0), "no time at all is over at once");
  expect(simt::wait_limit(HUGE_VAL) == simt::kForever, "a limit of infinity is none");
  expect(simt::wait_limit(1e9) == simt::kForever, "nor is one that is too large");
  for (uint64_t reading = 1; reading < 100'000; ++reading) {
    expect(!patience.ends(static_cast<uint32_t>(reading * kMillisecond), simt::kForever),
           "forever has no end");
  }
}

VARLEN_RNN_KERNEL trap_kernel(ShuffleParams p) {
  if (simt::thread() == 5) simt::trap("simt_test: this trap is a test");
  simt::store(p.out + simt::thread(), 0u);
}

// Last of all: on a GPU, the context is lost.
inline void test_trap() {
  const Buffer<uint32_t> out(32);
  std::string message;
  try {
    run({1, 32, 0, 1, nullptr}, trap_kernel, {out.data()});
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  expect(!message.empty(), "trap: the kernel went on");
#ifdef VARLEN_RNN_EMULATE
  expect(message.find("this trap is a test, thread 5 of block 0") != std::string::npos,
         "trap: got " + message);
#endif
}

inline void test_warps(Report& report) {
  const simt::Device device = simt::device_properties(0);
  report.run_case("shuffle, shuffle_xor", test_shuffle);
  report.run_case("Patience", test_patience);
  report.run_case("ldmatrix_x4", test_ldmatrix);
  if (device.major >= 8) {
    report.run_case("mma_bf16", test_mma<Operand::kBf16>);
    report.run_case("mma_f16", test_mma<Operand::kF16>);
    report.run_case("mma_tf32", test_mma<Operand::kTf32>);
  } else {
    report.skip("mma_bf16, mma_f16, mma_tf32", "needs sm_80");
  }
}

// st.async is defined in clusters of two blocks and more.
inline void test_clusters(Report& report, unsigned size) {
  const std::string name = " words, clusters of " + std::to_string(size);
  if (static_cast<int>(size) > simt::device_properties(0).max_cluster_size) {
    report.skip("st_async:" + name, "this device has no such clusters");
    return;
  }
  report.run_case("st_async: 1" + name, [&] { test_exchange<1>(size); });
  report.run_case("st_async: 2" + name, [&] { test_exchange<2>(size); });
  report.run_case("st_async: 4" + name, [&] { test_exchange<4>(size); });
  if (size < 2) return;
  report.run_case("mbarrier_wait: a limit, clusters of " + std::to_string(size),
                  [&] { test_expiry(size); });
}

}  // namespace varlen_rnn
