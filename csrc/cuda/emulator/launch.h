// Launches on the emulated machine. Included by launch.cuh alone.
#pragma once

#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <string>

#include "cuda/emulator/scheduler.h"

namespace varlen_rnn::emulator {

struct Settings {
  uint64_t seed =
      1;  // a new one starts the random sequence anew; else it goes on from launch to launch
  simt::Device device = {9, 0, 132, size_t{227} << 10, 16};
  int active_clusters = 4;
  bool is_capturing = false;  // whether launches go to a graph
  bool waits_expire =
      false;  // where everything waits, a wait for a mbarrier; else that is an error
  uint64_t lose_completion = 0;  // of the next launch with so many st_async the bytes of that one
};
inline Settings& settings() {
  static Settings settings;
  return settings;
}

inline void check_launch(const simt::Launch& launch) {
  const simt::Device& device = settings().device;
  const auto expect = [](bool holds, const std::string& what, size_t got) {
    if (holds) return;
    throw std::runtime_error("emulator: launch: expected " + what + ", got " + std::to_string(got));
  };
  expect(machine().current == nullptr, "no launch from a kernel", 1);
  expect(launch.threads > 0 && launch.threads <= 1024 && launch.threads % 32 == 0,
         "32, 64, ..., 1024 threads", launch.threads);
  expect(launch.cluster_size > 0 &&
             launch.cluster_size <= static_cast<unsigned>(device.max_cluster_size),
         "a cluster size from 1 to " + std::to_string(device.max_cluster_size),
         launch.cluster_size);
  expect(launch.blocks > 0 && launch.blocks % launch.cluster_size == 0,
         "a positive multiple of " + std::to_string(launch.cluster_size) + " blocks",
         launch.blocks);
  expect(launch.shared_bytes <= device.max_shared_bytes,
         "at most " + std::to_string(device.max_shared_bytes) + " bytes of shared memory",
         launch.shared_bytes);
}

}  // namespace varlen_rnn::emulator

namespace varlen_rnn::simt {

inline Device device_properties(int /*index*/) { return emulator::settings().device; }

template <class P>
void launch(const Launch& launch, void (*kernel)(P), const P& params) {
  emulator::check_launch(launch);
  static std::mutex one_at_a_time;  // of whichever thread's
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  emulator::Machine& machine = emulator::machine();
  if (machine.random.seed() != emulator::settings().seed) {
    machine.random = emulator::Random(emulator::settings().seed);
  }
  machine.num_blocks = launch.blocks;
  machine.num_threads = launch.threads;
  machine.cluster_size = launch.cluster_size;
  machine.waits_expire = emulator::settings().waits_expire;
  machine.lost = emulator::settings().lose_completion;
  machine.kernel = [kernel, &params] { kernel(params); };
  emulator::run_grid(launch.shared_bytes);
  if (machine.lost != 0 && machine.sent >= machine.lost) emulator::settings().lose_completion = 0;
}

template <class P>
int max_active_clusters(const Launch& launch, void (* /*kernel*/)(P)) {
  const Device& device = emulator::settings().device;
  const bool fits = launch.cluster_size <= static_cast<unsigned>(device.max_cluster_size) &&
                    launch.shared_bytes <= device.max_shared_bytes;
  return fits ? emulator::settings().active_clusters : 0;
}

}  // namespace varlen_rnn::simt
