// What a launch says, and what hosts ask about a device. Knows no CUDA: torch's side reads it, too.
#pragma once

#include <cstddef>
#include <cstdint>

namespace varlen_rnn::simt {

struct Launch {
  unsigned blocks;
  unsigned threads;
  size_t shared_bytes;
  unsigned cluster_size;  // 1: no clusters
  void* stream;           // a cudaStream_t
};

struct Device {
  int major;
  int minor;
  int multiprocessors;
  size_t max_shared_bytes;  // that a block can have
  int max_cluster_size;     // 1: no clusters
};

// Limits of waits, in units of 2^16 nanoseconds.
constexpr uint32_t kForever = UINT32_MAX;  // none
inline uint32_t wait_limit(double seconds) {
  const double units = seconds * 1e9 / 65536;
  return units < kForever ? static_cast<uint32_t>(units) : kForever;
}

}  // namespace varlen_rnn::simt
