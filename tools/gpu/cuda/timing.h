// How calibrate.cu times a loop and checks what it computed; in the emulator, only the latter.
#pragma once

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/launch.cuh"
#include "exchange.cuh"

namespace varlen_rnn {

// Memory of the device, zero at first.
template <class T>
class Array {
 public:
  explicit Array(size_t n) : n_(n) {
#ifdef VARLEN_RNN_EMULATE
    data_ = new T[n]();
    emulator::register_memory(data_, n * sizeof(T));
#else
    simt::check(cudaMalloc(&data_, n * sizeof(T)), "cudaMalloc");
    simt::check(cudaMemset(data_, 0, n * sizeof(T)), "cudaMemset");
#endif
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() {
#ifdef VARLEN_RNN_EMULATE
    delete[] data_;
#else
    cudaFree(data_);
#endif
  }

  T* data() const { return data_; }
  std::vector<T> read() const {
    std::vector<T> values(n_);
#ifdef VARLEN_RNN_EMULATE
    std::copy(data_, data_ + n_, values.begin());
#else
    simt::check(cudaMemcpy(values.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost),
                "cudaMemcpy");
#endif
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t n_;
};

// The word that every thread must have computed in so many rounds.
using Expected = uint32_t (*)(unsigned rounds);

struct Cost {
  double ns, cycles;  // a round
};

inline Loop& loop_of(Loop& loop) { return loop; }
inline Loop& loop_of(ExchangeLoop& params) { return params.loop; }

inline void check_words(const Array<uint32_t>& words, unsigned rounds, Expected expected) {
  const std::vector<uint32_t> all = words.read();
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i] == expected(rounds)) continue;
    throw std::runtime_error("thread " + std::to_string(i) + ": after " + std::to_string(rounds) +
                             " rounds expected word " + std::to_string(expected(rounds)) +
                             ", got " + std::to_string(all[i]));
  }
}

#ifdef VARLEN_RNN_EMULATE

template <class P>
Cost cost_of(const simt::Launch& launch, void (*kernel)(P), P params, Expected expected) {
  for (const unsigned rounds : {1u, 2u, 7u}) {
    const Array<uint32_t> words(size_t{launch.blocks} * launch.threads);
    const Array<unsigned long long> cycles(launch.blocks);
    loop_of(params) = {rounds, words.data(), cycles.data()};
    simt::launch(launch, kernel, params);
    check_words(words, rounds, expected);
  }
  return {};
}

#else

// Seconds that a launch takes, by events.
template <class Start>
double seconds_of(const Start& start) {
  cudaEvent_t events[2];
  for (cudaEvent_t& event : events) simt::check(cudaEventCreate(&event), "cudaEventCreate");
  simt::check(cudaEventRecord(events[0]), "cudaEventRecord");
  start();
  simt::check(cudaEventRecord(events[1]), "cudaEventRecord");
  simt::check(cudaEventSynchronize(events[1]), "cudaEventSynchronize");
  float milliseconds = 0;
  simt::check(cudaEventElapsedTime(&milliseconds, events[0], events[1]), "cudaEventElapsedTime");
  for (cudaEvent_t& event : events) cudaEventDestroy(event);
  return milliseconds / 1e3;
}

template <class P>
void launch_for(const simt::Launch& launch, void (*kernel)(P), P& params) {
  if (reinterpret_cast<void*>(kernel) != reinterpret_cast<void*>(grid_barriers)) {
    simt::launch(launch, kernel, params);
    return;
  }
  void* arguments[] = {&params};
  simt::check(
      cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(launch.blocks),
                                  dim3(launch.threads), arguments, launch.shared_bytes, nullptr),
      "cudaLaunchCooperativeKernel");
}

template <class P>
Cost cost_of(const simt::Launch& launch, void (*kernel)(P), P params, Expected expected) {
  constexpr unsigned kFew = 2000, kMany = 10000, kRepeats = 9;
  const Array<uint32_t> words(size_t{launch.blocks} * launch.threads);
  const Array<unsigned long long> cycles(launch.blocks);
  double seconds[2], counts[2];
  for (const bool many : {false, true}) {
    const unsigned rounds = many ? kMany : kFew;
    loop_of(params) = {rounds, words.data(), cycles.data()};
    std::vector<double> times, most;
    for (unsigned repeat = 0; repeat <= kRepeats; ++repeat) {
      const double s = seconds_of([&] { launch_for(launch, kernel, params); });
      const std::vector<unsigned long long> counted = cycles.read();
      if (repeat == 0) continue;  // loads the kernel
      times.push_back(s);
      most.push_back(static_cast<double>(*std::max_element(counted.begin(), counted.end())));
    }
    check_words(words, rounds, expected);
    std::sort(times.begin(), times.end());
    std::sort(most.begin(), most.end());
    seconds[many] = times[times.size() / 2];
    counts[many] = most[most.size() / 2];
  }
  constexpr double rounds = kMany - kFew;
  return {(seconds[1] - seconds[0]) * 1e9 / rounds, (counts[1] - counts[0]) / rounds};
}

#endif

}  // namespace varlen_rnn
