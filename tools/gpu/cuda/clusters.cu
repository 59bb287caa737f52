// How many teams of each persistent kernel this GPU holds at a time, by cell, format, pass and size: one
// JSON line each. Linked with the kernels themselves; it launches none.
#include <cstdio>
#include <exception>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"

namespace varlen_rnn::cuda {
namespace {

constexpr int64_t kHiddenSizes[] = {32, 64, 96, 128, 192, 256, 320, 384, 512, 640, 768};

struct Format {
  const char* name;
  int element_size;
  PersistentKernels (*kernels[2])();  // of the GRU, of the LSTM
};
constexpr Format kFormats[] = {{"bfloat16", 2, {persistent_gru_bf16, persistent_lstm_bf16}},
                               {"float16", 2, {persistent_gru_f16, persistent_lstm_f16}},
                               {"tf32", 4, {persistent_gru_tf32, persistent_lstm_tf32}}};

void print_team(const Format& format, bool is_lstm, bool is_backward, int64_t hidden_size,
                const Team& team) {
  const simt::Launch launch{
      static_cast<unsigned>(team.cluster_size), static_cast<unsigned>(team.threads),
      static_cast<size_t>(team.shared_bytes), static_cast<unsigned>(team.cluster_size), nullptr};
  const PersistentKernels kernels = format.kernels[is_lstm]();
  const int active = is_backward ? kernels.backward[team.variant].active_clusters(launch)
                                 : kernels.forward[team.variant].active_clusters(launch);
  std::printf(
      "{\"what\": \"active clusters\", \"cell\": \"%s\", \"dtype\": \"%s\", \"pass\": \"%s\", "
      "\"H\": %d, \"cluster_size\": %d, \"tiles\": %d, \"resident\": %d, \"threads\": %d, "
      "\"shared_bytes\": %d, \"count\": %d}\n",
      is_lstm ? "lstm" : "gru", format.name, is_backward ? "backward" : "forward",
      static_cast<int>(hidden_size), team.cluster_size, team.tiles, team.resident, team.threads,
      team.shared_bytes, active);
}

void print_all() {
  const simt::Device device = simt::device_properties(-1);
  std::printf(
      "{\"what\": \"device\", \"capability\": \"%d.%d\", \"multiprocessors\": %d, "
      "\"shared_bytes\": %zu, \"max_cluster_size\": %d}\n",
      device.major, device.minor, device.multiprocessors, device.max_shared_bytes,
      device.max_cluster_size);
  const Limits limits{device.max_cluster_size, static_cast<int64_t>(device.max_shared_bytes)};
  for (const Format& format : kFormats) {
    for (const bool is_lstm : {true, false}) {
      for (const bool is_backward : {false, true}) {
        for (const int64_t H : kHiddenSizes) {
          const Problem problem{is_lstm, is_backward, H, format.element_size};
          for (const Team& team : possible_teams(problem, limits)) {
            print_team(format, is_lstm, is_backward, H, team);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace varlen_rnn::cuda

int main() {
  try {
    varlen_rnn::cuda::print_all();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "clusters: %s\n", error.what());
    return 1;
  }
}
