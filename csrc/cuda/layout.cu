// What kernels want to know of a layout beside its arrays.
#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/layout.cuh"
#include "cuda/scan.cuh"

namespace varlen_rnn::cuda {
namespace {

constexpr unsigned kMostThreads = 1024;

struct Derive {
  DeviceLayout layout;
  const int64_t* final_segment;
  int64_t* first_token;
  int64_t* final_row;
};

// One block: a few elements a thread, unless rows lie one behind the other.
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kMostThreads, 1) derive_layout_kernel(Derive p) {
  const DeviceLayout& l = p.layout;
  const int64_t index = simt::thread(), stride = simt::num_threads();
  check_batch_sizes(l, index, stride);
  for (int64_t segment = index; segment < l.num_segments; segment += stride) {
    simt::store(p.final_row + segment, int64_t{-1});
  }
  const int64_t num_tokens = prefix_sums(
      l.num_steps, simt::shared<int64_t>(0), [&](int64_t step) { return batch_size(l, step); },
      [&](int64_t step, int64_t before) { simt::store(p.first_token + step, before); });
  checked(num_tokens, 0, l.num_tokens + 1, "varlen_rnn: batch_sizes must sum to at most N");
  // The sums' barriers stand between every -1 and what takes its place.
  for (int64_t row = index; row < l.num_rows; row += stride) {
    const int64_t segment = checked(simt::load(p.final_segment + row), -1, l.num_segments,
                                    "varlen_rnn: final_segment must be in [-1, G)");
    //~ final row
    if (segment >= 0) simt::store(p.final_row + segment, row);
  }
}

}  // namespace

void derive_layout(const DeviceLayout& layout, const int64_t* final_segment, int64_t* first_token,
                   int64_t* final_row, void* stream) {
  const int64_t most = std::max({layout.num_steps, layout.num_segments, layout.num_rows});
  const auto threads =
      static_cast<unsigned>(std::clamp<int64_t>((most + 31) / 32 * 32, 32, kMostThreads));
  simt::launch({1, threads, threads * sizeof(int64_t), 1, stream}, &derive_layout_kernel,
               Derive{layout, final_segment, first_token, final_row});
}

}  // namespace varlen_rnn::cuda
