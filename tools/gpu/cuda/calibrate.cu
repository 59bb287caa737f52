// What the primitives of the persistent kernels cost on this GPU; one JSON line a measurement.
//
//   nvcc -std=c++17 -O3 -arch=native -I csrc tools/gpu/cuda/calibrate.cu -o calibrate
//   g++ -std=c++17 -O1 -x c++ -DVARLEN_RNN_EMULATE -I csrc tools/gpu/cuda/calibrate.cu
//
//   calibrate [barriers | products | exchange SIZE]
//
// SIZE: blocks of a cluster; without arguments everything. The second command's program runs the same
// loops in the emulator, checks what they compute, and measures nothing.
//
// Every loop is timed twice, with few and with many rounds in one launch: the difference, over the
// rounds between, is free of the launch. Cycles are those of the multiprocessor's own clock.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

#include "timing.h"

namespace varlen_rnn {
namespace {

constexpr int kSizes[] = {2, 4, 8, 16};
constexpr int64_t kHiddenSizes[] = {128, 256, 512};

uint32_t counted(unsigned rounds) { return rounds; }
uint32_t sent(unsigned rounds) { return rounds % (kLargest + 1); }
uint32_t summed(unsigned rounds) {
  const float sum = 4.0f * kChains * static_cast<float>(rounds);
  uint32_t word;
  std::memcpy(&word, &sum, sizeof(word));
  return word;
}

template <class P>
void time_loop(const char* what, const simt::Launch& launch, void (*kernel)(P), const P& params,
               Expected expected, const std::string& more = "") {
  const Cost cost = cost_of(launch, kernel, params, expected);
  std::printf(
      "{\"what\": \"%s\", \"cluster_size\": %u, \"blocks\": %u, \"threads\": %u%s, "
      "\"ns\": %.4g, \"cycles\": %.4g}\n",
      what, launch.cluster_size, launch.blocks, launch.threads, more.c_str(), cost.ns, cost.cycles);
  std::fflush(stdout);  // the next one may hang
}

void time_barriers(const simt::Device& device) {
  const simt::Launch alone{static_cast<unsigned>(device.multiprocessors), kThreads, 0, 1, nullptr};
  time_loop("block barrier", alone, block_barriers, Loop{}, counted);
#ifndef VARLEN_RNN_EMULATE
  time_loop("grid barrier", alone, grid_barriers, Loop{}, counted);
#endif
  for (const int size : kSizes) {
    if (size > device.max_cluster_size) continue;
    const auto blocks = static_cast<unsigned>(size);
    const simt::Launch launch{blocks, kThreads, 0, blocks, nullptr};
    time_loop("cluster barrier", launch, cluster_barriers, Loop{}, counted);
  }
}

void time_products(const simt::Device& device) {
  if (device.major < 8) return;
  for (const unsigned warps : {8u, 16u}) {
    const simt::Launch launch{static_cast<unsigned>(device.multiprocessors), 32 * warps,
                              512 * warps, 1, nullptr};
    const std::string macs = ", \"macs_a_round\": " + std::to_string(kMacs * kChains * warps);
    time_loop("products", launch, products, Loop{}, summed, macs);
  }
}

template <class Way>
void time_exchange(const cuda::Team& team, int64_t hidden_size, unsigned clusters,
                   size_t more_shared_bytes) {
  const auto size = static_cast<unsigned>(team.cluster_size);
  const simt::Launch launch{clusters * size, static_cast<unsigned>(team.threads),
                            static_cast<size_t>(team.shared_bytes) + more_shared_bytes, size,
                            nullptr};
  const Array<int32_t> first_step(clusters + 1);
  const Array<cuda::WaitStatus> status(1);
  ExchangeLoop params{};
  params.team.team = team;
  params.team.num_directions = 1;
  params.team.num_teams = static_cast<int>(clusters);
  params.team.hidden_size = hidden_size;
  params.team.first_step = first_step.data();
  params.team.wait_limit = simt::wait_limit(2);
  params.team.status = status.data();
  const std::string more = ", \"H\": " + std::to_string(hidden_size);
  time_loop(Way::kName, launch, exchanges<Way>, params, sent, more);
  if (status.read()[0].expired != 0) throw std::runtime_error("an exchange did not complete");
}

// Of the forward pass of an LSTM in 16 bits: alone, and on as many clusters as there is room for.
void time_exchanges(const simt::Device& device, int size) {
  if (size > device.max_cluster_size) return;
  const cuda::Limits limits{device.max_cluster_size, static_cast<int64_t>(device.max_shared_bytes)};
  for (const int64_t H : kHiddenSizes) {
    for (const cuda::Team& team : cuda::possible_teams({true, false, H, 2}, limits)) {
      if (team.cluster_size != size) continue;
      const auto blocks = static_cast<unsigned>(size);
      const simt::Launch launch{blocks, static_cast<unsigned>(team.threads),
                                static_cast<size_t>(team.shared_bytes), blocks, nullptr};
      const int active = simt::max_active_clusters(launch, exchanges<Kernels>);
      if (active == 0) continue;
      for (const unsigned clusters : {1u, static_cast<unsigned>(active)}) {
        time_exchange<Kernels>(team, H, clusters, 0);
        time_exchange<SmallStores>(team, H, clusters, 0);
#ifndef VARLEN_RNN_EMULATE
        time_exchange<AcquiringWait>(team, H, clusters, 0);
        const size_t staged = size_t{2} * cuda::kSlots * static_cast<size_t>(team.units) * 2;
        if (team.shared_bytes + staged > device.max_shared_bytes) continue;
        time_exchange<BulkCopies>(team, H, clusters, staged);
#endif
      }
      break;
    }
  }
}

bool run(const std::string& what, int size) {
  const simt::Device device = simt::device_properties(-1);
  if (what != "" && what != "barriers" && what != "products" && what != "exchange") return false;
  if (what == "" || what == "barriers") time_barriers(device);
  if (what == "" || what == "products") time_products(device);
  for (const int each : kSizes) {
    if (what == "" || (what == "exchange" && size == each)) time_exchanges(device, each);
  }
  return true;
}

}  // namespace
}  // namespace varlen_rnn

int main(int count, char** words) {
  try {
    if (varlen_rnn::run(count > 1 ? words[1] : "", count > 2 ? std::atoi(words[2]) : 0)) return 0;
    std::fprintf(stderr, "calibrate: [barriers | products | exchange SIZE]\n");
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "calibrate: %s\n", error.what());
    return 1;
  }
}
