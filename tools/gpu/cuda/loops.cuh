// The loops that calibrate.cu times; each also computes something that can be checked.
#pragma once

#include <cstdint>

#include "cuda/simt.cuh"

#ifndef VARLEN_RNN_EMULATE
#include <cooperative_groups.h>
#endif

namespace varlen_rnn {

using simt::Shared;

constexpr unsigned kThreads = 256;

struct Loop {
  unsigned rounds;
  uint32_t* words;             // [blocks, threads]  out: what a loop computed, so that it must run
  unsigned long long* cycles;  // [blocks]           out
};

#ifdef VARLEN_RNN_EMULATE
inline unsigned long long clock() { return 0; }
#else
VARLEN_RNN_DEVICE unsigned long long clock() { return clock64(); }
#endif

VARLEN_RNN_DEVICE void finish(const Loop& p, unsigned long long start, uint32_t word) {
  simt::store(p.words + simt::block() * simt::num_threads() + simt::thread(), word);
  if (simt::thread() == 0) simt::store(p.cycles + simt::block(), clock() - start);
}

VARLEN_RNN_KERNEL cluster_barriers(Loop p) {
  const unsigned long long start = clock();
  for (unsigned t = 0; t < p.rounds; ++t) simt::sync_cluster();
  finish(p, start, p.rounds);
}

VARLEN_RNN_KERNEL block_barriers(Loop p) {
  const unsigned long long start = clock();
  for (unsigned t = 0; t < p.rounds; ++t) simt::sync_block();
  finish(p, start, p.rounds);
}

// Products of a step: A in registers, B from shared memory by ldmatrix, four sums a warp. B is 0 but
// for ones in its first row, which a row of A picks with a 1, so that every sum counts the rounds.
constexpr int kChains = 4;
constexpr unsigned long long kMacs = 16 * 8 * 16;

VARLEN_RNN_KERNEL products(Loop p) {
  const Shared<uint32_t> b = simt::shared<uint32_t>(0);
  // Four 8 x 8 matrices of 16-bit elements a warp, b[m][n][k] with k pairwise in words.
  const unsigned first = simt::warp() * 128;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned at = i * 32 + simt::lane();
    b[first + at] = i % 2 == 0 && at % 4 == 0 ? 0x00003f80u : 0u;
  }
  simt::sync_block();
  const uint32_t one = simt::lane() % 4 == 0 ? 0x00003f80u : 0u;
  const uint32_t a[4] = {one, one, 0, 0};
  float d[kChains][4] = {};
  const unsigned long long start = clock();
  for (unsigned t = 0; t < p.rounds; ++t) {
    uint32_t r[4];
    simt::ldmatrix_x4(r, b + first + simt::lane() * 4);
    VARLEN_RNN_UNROLL
    for (int chain = 0; chain < kChains; ++chain) {
      simt::mma_bf16(d[chain], a, r[chain % 2 * 2], r[chain % 2 * 2 + 1]);
    }
  }
  float sum = 0;
  VARLEN_RNN_UNROLL
  for (int chain = 0; chain < kChains; ++chain) {
    VARLEN_RNN_UNROLL
    for (int i = 0; i < 4; ++i) sum += d[chain][i];
  }
  finish(p, start, simt::float_as_word(sum));
}

#ifndef VARLEN_RNN_EMULATE
VARLEN_RNN_KERNEL grid_barriers(Loop p) {
  const auto grid = cooperative_groups::this_grid();
  const unsigned long long start = clock();
  for (unsigned t = 0; t < p.rounds; ++t) grid.sync();
  finish(p, start, p.rounds);
}
#endif

}  // namespace varlen_rnn
