// What simt_test.cu needs in both builds: memory that host and kernels see, launches that wait, and
// the list of failures.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/launch.cuh"

namespace varlen_rnn {

// Memory of n elements, and nothing behind it; every byte is 0xff at first.
template <class T>
class Buffer {
 public:
  explicit Buffer(size_t n) : n_(n) {
#ifdef VARLEN_RNN_EMULATE
    data_ = static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t{64}));
    emulator::register_memory(data_, n * sizeof(T));
#else
    // Not managed memory: pages that move could hide which side has not written yet.
    simt::check(cudaHostAlloc(&data_, n * sizeof(T), cudaHostAllocMapped), "cudaHostAlloc");
#endif
    std::memset(static_cast<void*>(data_), 0xff, n * sizeof(T));
  }
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    std::memcpy(static_cast<void*>(data_), values.data(), n_ * sizeof(T));
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
#ifdef VARLEN_RNN_EMULATE
    ::operator delete(data_, std::align_val_t{64});
#else
    cudaFreeHost(data_);
#endif
  }

  T* data() const { return data_; }
  size_t size() const { return n_; }
  T& operator[](size_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  size_t n_;
};

// Launches, and waits for the end.
template <class P>
void run(const simt::Launch& launch, void (*kernel)(P), const P& params) {
  simt::launch(launch, kernel, params);
#ifndef VARLEN_RNN_EMULATE
  simt::check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
#endif
}

class Report {
 public:
  // One case: fails with what the body throws, or with its first expectation that does not hold.
  template <class Body>
  void run_case(const std::string& name, const Body& body) {
    ++cases_;
    try {
      body();
    } catch (const std::exception& error) {
      failures_.push_back(name + ": " + error.what());
    }
  }
  void skip(const std::string& name, const char* why) {
    std::printf("skipped: %s (%s)\n", name.c_str(), why);
  }
  int finish() const {
    for (const std::string& failure : failures_) std::printf("FAILED: %s\n", failure.c_str());
    const int failed = static_cast<int>(failures_.size());
    std::printf("simt_test: %d cases passed", cases_ - failed);
    if (failed > 0) std::printf(", %d failed", failed);
    std::printf("\n");
    return failed == 0 ? 0 : 1;
  }

 private:
  int cases_ = 0;
  std::vector<std::string> failures_;
};

inline void expect(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what);
}

// Equal as bytes.
template <class T>
void expect_same(const char* what, size_t i, T got, T want) {
  if (std::memcmp(&got, &want, sizeof(T)) == 0) return;
  std::string text = std::string(what) + "[" + std::to_string(i) + "]: got 0x";
  const auto append = [&](const T& value) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(&value);
    for (size_t b = sizeof(T); b > 0; --b) {
      char digits[3];
      std::snprintf(digits, sizeof(digits), "%02x", bytes[b - 1]);
      text += digits;
    }
  };
  append(got);
  text += ", expected 0x";
  append(want);
  throw std::runtime_error(text);
}

}  // namespace varlen_rnn
