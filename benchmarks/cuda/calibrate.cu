// What the primitives of the persistent kernels cost on this GPU; one JSON line a measurement.
//
//   nvcc -std=c++17 -O3 -arch=native -I csrc benchmarks/cuda/calibrate.cu -o calibrate && ./calibrate
//   g++ -std=c++17 -O1 -x c++ -DVARLEN_RNN_EMULATE -I csrc benchmarks/cuda/calibrate.cu
//
// The second runs the same loops in the emulator, checks what they compute, and measures nothing.
//
// Every loop is timed twice, with few and with many rounds in one launch: the difference, over the
// rounds between, is free of the launch. Cycles are those of the multiprocessor's own clock.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/launch.cuh"
#include "loops.cuh"

namespace varlen_rnn {
namespace {

using Kernel = void (*)(Loop);

struct Memory {
  Loop loop;

  explicit Memory(unsigned blocks, unsigned threads) {
    const size_t words = size_t{blocks} * threads;
#ifdef VARLEN_RNN_EMULATE
    loop.words = new uint32_t[words];
    loop.cycles = new unsigned long long[blocks];
    emulator::register_memory(loop.words, words * sizeof(uint32_t));
    emulator::register_memory(loop.cycles, blocks * sizeof(unsigned long long));
#else
    simt::check(cudaMalloc(&loop.words, words * sizeof(uint32_t)), "cudaMalloc");
    simt::check(cudaMalloc(&loop.cycles, blocks * sizeof(unsigned long long)), "cudaMalloc");
#endif
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
#ifdef VARLEN_RNN_EMULATE
    emulator::forget_memory();
    delete[] loop.words;
    delete[] loop.cycles;
#else
    cudaFree(loop.words);
    cudaFree(loop.cycles);
#endif
  }
};

template <class T>
std::vector<T> to_host(const T* from, size_t n) {
  std::vector<T> values(n);
#ifdef VARLEN_RNN_EMULATE
  std::copy(from, from + n, values.begin());
#else
  simt::check(cudaMemcpy(values.data(), from, n * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
#endif
  return values;
}

float as_float(uint32_t word) {
  float v;
  std::memcpy(&v, &word, sizeof(v));
  return v;
}

// What every thread must have computed: the rounds, in `products` in each of its four elements of
// every sum.
bool is_right(Kernel kernel, uint32_t word, unsigned rounds) {
  if (kernel != products) return word == rounds;
  return as_float(word) == 4.0f * kChains * static_cast<float>(rounds);
}

void check_words(Kernel kernel, const simt::Launch& launch, const Loop& loop) {
  const auto words = to_host(loop.words, size_t{launch.blocks} * launch.threads);
  for (size_t i = 0; i < words.size(); ++i) {
    if (is_right(kernel, words[i], loop.rounds)) continue;
    throw std::runtime_error("thread " + std::to_string(i) + " of " + std::to_string(loop.rounds) +
                             " rounds computed word " + std::to_string(words[i]));
  }
}

#ifdef VARLEN_RNN_EMULATE

void try_loop(const char* what, Kernel kernel, const simt::Launch& launch) {
  for (const unsigned rounds : {1u, 2u, 7u}) {
    Memory memory(launch.blocks, launch.threads);
    memory.loop.rounds = rounds;
    simt::launch(launch, kernel, memory.loop);
    check_words(kernel, launch, memory.loop);
  }
  std::printf("%s, clusters of %u: right\n", what, launch.cluster_size);
}

int run_all() {
  for (const unsigned cluster_size : {1u, 2u, 4u, 8u, 16u}) {
    try_loop("exchange", exchange,
             {2 * cluster_size, kThreads, kBarrierBytes + 2 * kBytes, cluster_size, nullptr});
    try_loop("cluster barrier", cluster_barriers, {2 * cluster_size, 64, 0, cluster_size, nullptr});
  }
  try_loop("block barrier", block_barriers, {2, kThreads, 0, 1, nullptr});
  try_loop("products", products, {2, 256, 8 * 512, 1, nullptr});
  std::printf("calibrate: all loops compute what they should\n");
  return 0;
}

#else

struct Cost {
  double ns, cycles;  // a round
};

class Timer {
 public:
  Timer() {
    simt::check(cudaEventCreate(&start_), "cudaEventCreate");
    simt::check(cudaEventCreate(&end_), "cudaEventCreate");
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  ~Timer() {
    cudaEventDestroy(start_);
    cudaEventDestroy(end_);
  }

  template <class Launch>
  double seconds(const Launch& launch) {
    simt::check(cudaEventRecord(start_), "cudaEventRecord");
    launch();
    simt::check(cudaEventRecord(end_), "cudaEventRecord");
    simt::check(cudaEventSynchronize(end_), "cudaEventSynchronize");
    float milliseconds = 0;
    simt::check(cudaEventElapsedTime(&milliseconds, start_, end_), "cudaEventElapsedTime");
    return milliseconds / 1e3;
  }

 private:
  cudaEvent_t start_, end_;
};

void launch_cooperatively(const simt::Launch& launch, Kernel kernel, const Loop& loop) {
  void* arguments[] = {const_cast<Loop*>(&loop)};
  simt::check(
      cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(launch.blocks),
                                  dim3(launch.threads), arguments, launch.shared_bytes, nullptr),
      "cudaLaunchCooperativeKernel");
}

template <class Start>
Cost cost_of(const simt::Launch& launch, Kernel kernel, const Start& start) {
  constexpr unsigned kFew = 2000, kMany = 10000, kRepeats = 9;
  Memory memory(launch.blocks, launch.threads);
  Timer timer;
  double seconds[2], cycles[2];
  for (const bool many : {false, true}) {
    memory.loop.rounds = many ? kMany : kFew;
    std::vector<double> times, counts;
    for (unsigned repeat = 0; repeat <= kRepeats; ++repeat) {
      const double s = timer.seconds([&] { start(launch, kernel, memory.loop); });
      const auto counted = to_host(memory.loop.cycles, launch.blocks);
      if (repeat == 0) continue;  // loads the kernel
      times.push_back(s);
      counts.push_back(static_cast<double>(*std::max_element(counted.begin(), counted.end())));
    }
    check_words(kernel, launch, memory.loop);
    std::sort(times.begin(), times.end());
    std::sort(counts.begin(), counts.end());
    seconds[many] = times[times.size() / 2];
    cycles[many] = counts[counts.size() / 2];
  }
  constexpr double rounds = kMany - kFew;
  return {(seconds[1] - seconds[0]) * 1e9 / rounds, (cycles[1] - cycles[0]) / rounds};
}

void simple_launch(const simt::Launch& launch, Kernel kernel, const Loop& loop) {
  simt::launch(launch, kernel, loop);
}

void print_cost(const char* what, const simt::Launch& launch, const Cost& cost) {
  std::printf(
      "{\"what\": \"%s\", \"cluster_size\": %u, \"blocks\": %u, \"threads\": %u, \"ns\": %.4g, "
      "\"cycles\": %.4g}\n",
      what, launch.cluster_size, launch.blocks, launch.threads, cost.ns, cost.cycles);
}

void time_barriers_of_clusters(const simt::Device& device) {
  const size_t large = std::min(device.max_shared_bytes, size_t{200} << 10);
  for (unsigned size = 1; size <= static_cast<unsigned>(device.max_cluster_size); size *= 2) {
    const int active =
        simt::max_active_clusters(simt::Launch{size, kThreads, large, size, nullptr}, exchange);
    std::printf(
        "{\"what\": \"active clusters\", \"cluster_size\": %u, \"threads\": %u, "
        "\"shared_bytes\": %zu, \"count\": %d}\n",
        size, kThreads, large, active);
    if (size == 1 || active == 0) continue;
    for (const unsigned clusters : {1u, static_cast<unsigned>(active)}) {
      const simt::Launch launch{clusters * size, kThreads, large, size, nullptr};
      print_cost("exchange", launch, cost_of(launch, exchange, simple_launch));
      print_cost("cluster barrier", launch, cost_of(launch, cluster_barriers, simple_launch));
    }
  }
}

int run_all() {
  int index = 0, cooperative = 0;
  simt::check(cudaGetDevice(&index), "cudaGetDevice");
  const simt::Device device = simt::device_properties(index);
  const unsigned multiprocessors = static_cast<unsigned>(device.multiprocessors);
  cudaDeviceProp properties;
  simt::check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
  std::printf(
      "{\"what\": \"device\", \"name\": \"%s\", \"capability\": \"%d.%d\", "
      "\"multiprocessors\": %u, \"shared_bytes\": %zu}\n",
      properties.name, device.major, device.minor, multiprocessors, device.max_shared_bytes);

  const simt::Launch alone{multiprocessors, kThreads, 0, 1, nullptr};
  print_cost("block barrier", alone, cost_of(alone, block_barriers, simple_launch));
  simt::check(cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, index),
              "cudaDeviceGetAttribute");
  if (cooperative != 0) {
    print_cost("grid barrier", alone, cost_of(alone, grid_barriers, launch_cooperatively));
  }
  if (device.max_cluster_size > 1) time_barriers_of_clusters(device);
  if (device.major >= 8) {
    for (const unsigned warps : {8u, 16u}) {
      const simt::Launch launch{multiprocessors, 32 * warps, 512 * warps, 1, nullptr};
      const Cost cost = cost_of(launch, products, simple_launch);
      std::printf(
          "{\"what\": \"products\", \"warps\": %u, \"ns\": %.4g, \"cycles\": %.4g, "
          "\"macs_per_cycle\": %.4g}\n",
          warps, cost.ns, cost.cycles, static_cast<double>(kMacs * kChains * warps) / cost.cycles);
    }
  }
  return 0;
}

#endif

}  // namespace
}  // namespace varlen_rnn

int main() {
  try {
    return varlen_rnn::run_all();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "calibrate: %s\n", error.what());
    return 1;
  }
}
