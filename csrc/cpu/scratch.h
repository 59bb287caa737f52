// Memory that one call needs and frees again.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdlib>
#include <new>

namespace varlen_rnn {

class Scratch {
 public:
  explicit Scratch(size_t bytes) {
    const size_t alignment = bytes < kLarge ? 64 : kHugePage;
    memory_ = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    if (memory_ == nullptr && bytes > 0) throw std::bad_alloc();
#ifdef __linux__
    // The system hands out fresh memory page by page, at the first write to each: a fault for every
    // 2 MB costs far less than one for every 4 KB. It is free to ignore the advice.
    if (bytes >= kLarge) madvise(memory_, bytes, MADV_HUGEPAGE);
#endif
  }
  ~Scratch() { std::free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* data() const { return memory_; }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;
  static constexpr size_t kLarge = 4 * kHugePage;

  void* memory_;
};

}  // namespace varlen_rnn
