// Memory that kernels work in, for the time of one call.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace varlen_rnn {

// Owns what std::aligned_alloc gave.
struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<void, Free>;

inline constexpr size_t kHugePage = size_t{2} << 20;

// Asks for huge pages under a large block: at the first write a fault for every 2 MB costs far less
// than one for every 4 KB. Only whole huge pages inside the block are meant.
inline void use_huge_pages(void* memory, size_t bytes, size_t least = 4 * kHugePage) {
#ifdef __linux__
  if (bytes < least) return;
  const size_t start = reinterpret_cast<size_t>(memory);
  const size_t first = (start + kHugePage - 1) / kHugePage * kHugePage;
  const size_t last = (start + bytes) / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)memory;
  (void)bytes;
  (void)least;
#endif
}

// One block of at most kKept bytes stays from call to call. The system hands out fresh memory page
// by page, at the first write to each, and clears it: that can take longer than all of a call's
// arithmetic.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : block_(kept().exchange(nullptr)) {
    bytes += sizeof(Block);
    if (block_ != nullptr && block_->bytes >= bytes) return;
    std::free(block_);
    bytes = (bytes + alignof(Block) - 1) / alignof(Block) * alignof(Block);
    void* memory = std::aligned_alloc(alignof(Block), bytes);
    if (memory == nullptr) throw std::bad_alloc();
    use_huge_pages(memory, bytes);
    block_ = new (memory) Block{bytes};
  }
  ~Scratch() {
    Block* none = nullptr;
    if (block_->bytes <= kKept && kept().compare_exchange_strong(none, block_)) return;
    std::free(block_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* data() const { return block_ + 1; }

 private:
  struct alignas(64) Block {  // the memory follows
    size_t bytes;
  };
  static constexpr size_t kKept = size_t{64} << 20;  // more than 1024 units' weights, packed

  // Of calls that run at the same time only one finds the block, and without a lock: a lock could
  // be taken when the process forks.
  static std::atomic<Block*>& kept() {
    static std::atomic<Block*> block{nullptr};
    return block;
  }

  Block* block_;
};

}  // namespace varlen_rnn
