// Warp collectives: the last of the 32 lanes computes for all.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

#include "cuda/emulator/machine.h"
#include "cuda/emulator/memory.h"
#include "cuda/emulator/numbers.h"

namespace varlen_rnn::emulator {

// compute(warp) turns warp.in into warp.out. A lane may be in the next collective, and have written
// its inputs, before another has read its results of this one: hence two arrays.
template <class F>
void collective(const char* name, Site site, const F& compute) {
  Fiber& fiber = current();
  Warp& warp = *fiber.warp;
  if (warp.arrived == 0) {
    warp.collective = name;
    warp.site = site;
  } else if (warp.collective != name || !(warp.site == site)) {
    fail(std::string("divergent collective: ") + name + " at " + to_string(site) +
         " while other lanes of the warp are in " + warp.collective + " at " +
         to_string(warp.site));
  }
  const uint32_t bit = 1u << (fiber.thread & 31u);
  warp.arrived |= bit;
  if (warp.arrived != Warp::kAllLanes) {
    suspend({name, site});
    return;
  }
  compute(warp);
  warp.arrived = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (bit != 1u << lane) make_ready(warp.lanes[lane]);
  }
}

inline void sync_warp(Site site) {
  static constexpr const char* kName = "sync_warp";
  yield_at_random();
  collective(kName, site, [](Warp&) {});
}

inline bool all_lanes(bool v, Site site) {
  static constexpr const char* kName = "all_lanes";
  Fiber& fiber = current();
  const unsigned lane = fiber.thread & 31u;
  fiber.warp->in[lane][0] = v ? 1 : 0;
  collective(kName, site, [](Warp& warp) {
    uint32_t all = 1;
    for (unsigned from = 0; from < 32; ++from) all &= warp.in[from][0];
    for (unsigned to = 0; to < 32; ++to) warp.out[to][0] = all;
  });
  return fiber.warp->out[lane][0] != 0;
}

inline uint32_t shuffle(uint32_t v, int from, Site site) {
  static constexpr const char* kName = "shuffle";
  Fiber& fiber = current();
  const unsigned lane = fiber.thread & 31u;
  if (from < 0 || from > 31) fail("shuffle: expected a lane below 32, got " + std::to_string(from));
  fiber.warp->in[lane][0] = v;
  fiber.warp->in[lane][1] = static_cast<uint32_t>(from);
  collective(kName, site, [](Warp& warp) {
    for (unsigned to = 0; to < 32; ++to) warp.out[to][0] = warp.in[warp.in[to][1]][0];
  });
  return fiber.warp->out[lane][0];
}

inline uint32_t shuffle_xor(uint32_t v, unsigned mask, Site site) {
  static constexpr const char* kName = "shuffle_xor";
  Fiber& fiber = current();
  const unsigned lane = fiber.thread & 31u;
  if (mask > 31) fail("shuffle_xor: expected a mask below 32, got " + std::to_string(mask));
  fiber.warp->in[lane][0] = v;
  fiber.warp->in[lane][1] = mask;
  collective(kName, site, [](Warp& warp) {
    for (unsigned to = 0; to < 32; ++to) {
      warp.out[to][0] = warp.in[to ^ warp.in[to][1]][0];
    }
  });
  return fiber.warp->out[lane][0];
}

inline void ldmatrix_x4(uint32_t (&r)[4], int64_t row, Site site) {
  static constexpr const char* kName = "ldmatrix_x4";
  Fiber& fiber = current();
  const unsigned lane = fiber.thread & 31u;
  const void* address = shared_address(*fiber.cta, row, 16, 16);
  std::memcpy(fiber.warp->in[lane], &address, sizeof(address));
  collective(kName, site, [](Warp& warp) {
    for (unsigned giver = 0; giver < 32; ++giver) {
      const void* from = nullptr;
      std::memcpy(&from, warp.in[giver], sizeof(from));
      uint32_t words[4];
      std::memcpy(words, from, 16);
      for (unsigned i = 0; i < 4; ++i) warp.out[giver % 8 * 4 + i][giver / 8] = words[i];
    }
  });
  std::memcpy(r, fiber.warp->out[lane], 16);
}

// The fragments of gpu/warp.cuh's table: rows r of a and columns of b by lane / 4, elements of k by
// lane % 4. kPairs: words hold two 16-bit elements.
template <int K, bool kPairs, class ToFloat>
void compute_mma(Warp& warp, const ToFloat& to_float) {
  float a[16][K];
  float b[K][8];
  const auto fill = [&](float* at, int stride, uint32_t word) {
    if (kPairs) {
      at[0] = to_float(word & 0xffffu);
      at[stride] = to_float(word >> 16);
    } else {
      at[0] = to_float(word);
    }
  };
  constexpr unsigned kWidth = kPairs ? 2 : 1;
  for (unsigned lane = 0; lane < 32; ++lane) {
    const unsigned g = lane / 4;
    const unsigned k = lane % 4 * kWidth;
    const uint32_t* words = warp.in[lane];
    for (unsigned i = 0; i < 4; ++i) {
      fill(&a[g + i % 2 * 8][k + i / 2 * 4 * kWidth], 1, words[i]);
    }
    for (unsigned i = 0; i < 2; ++i) fill(&b[k + i * 4 * kWidth][g], 8, words[4 + i]);
  }
  for (unsigned row = 0; row < 16; ++row) {
    float d[8];
    const unsigned lane = row % 8 * 4;
    for (unsigned n = 0; n < 8; ++n) {
      std::memcpy(&d[n], &warp.out[lane + n / 2][row / 8 * 2 + n % 2], 4);
    }
    for (int k = 0; k < K; ++k) {
      for (unsigned n = 0; n < 8; ++n) d[n] += a[row][k] * b[k][n];
    }
    for (unsigned n = 0; n < 8; ++n) {
      std::memcpy(&warp.out[lane + n / 2][row / 8 * 2 + n % 2], &d[n], 4);
    }
  }
}

template <int K, bool kPairs, class ToFloat>
void mma(const char* name, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
         Site site, const ToFloat& to_float) {
  Fiber& fiber = current();
  Warp& warp = *fiber.warp;
  const unsigned lane = fiber.thread & 31u;
  std::memcpy(warp.in[lane], a, 16);
  warp.in[lane][4] = b0;
  warp.in[lane][5] = b1;
  std::memcpy(warp.d[lane], d, 16);
  collective(name, site, [&](Warp& all) {
    std::memcpy(all.out, all.d, sizeof(all.out));
    compute_mma<K, kPairs>(all, to_float);
    float first;
    std::memcpy(&first, &all.out[0][0], 4);
    first += mma_error();
    std::memcpy(&all.out[0][0], &first, 4);
  });
  std::memcpy(d, warp.out[lane], 16);
}

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site site) {
  static constexpr const char* kName = "mma_bf16";
  mma<16, true>(kName, d, a, b0, b1, site,
                [](uint32_t bits) { return bf16_to_float(static_cast<uint16_t>(bits)); });
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site site) {
  static constexpr const char* kName = "mma_f16";
  mma<16, true>(kName, d, a, b0, b1, site,
                [](uint32_t bits) { return f16_to_float(static_cast<uint16_t>(bits)); });
}
// The hardware ignores the low 13 bits of tf32 words.
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site site) {
  static constexpr const char* kName = "mma_tf32";
  mma<8, false>(kName, d, a, b0, b1, site,
                [](uint32_t bits) { return word_as_float(bits & 0xffffe000u); });
}

}  // namespace varlen_rnn::emulator
