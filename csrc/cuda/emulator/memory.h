// Memory and its checks: global memory lies in registered regions, shared memory behind a pointer
// that knows its block's bounds.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "cuda/emulator/machine.h"

namespace varlen_rnn::emulator {

// The memory that kernels may touch. Regions may overlap or repeat; one access lies within one of
// them, so that a step from a tensor into its neighbour is an error.
class GlobalMemory {
 public:
  void add(uintptr_t begin, uintptr_t end) {
    if (begin == end) return;
    const auto at = std::lower_bound(
        regions_.begin(), regions_.end(), begin,
        [](const Region& region, uintptr_t address) { return region.begin < address; });
    regions_.insert(at, {begin, end, 0});
    uintptr_t reach = 0;
    for (Region& region : regions_) {
      reach = std::max(reach, region.end);
      region.reach = reach;
    }
    last_ = 0;
  }
  void clear() { regions_.clear(); }

  bool contains(uintptr_t begin, uintptr_t end) {
    if (last_ < regions_.size() && regions_[last_].begin <= begin && end <= regions_[last_].end) {
      return true;
    }
    size_t i = static_cast<size_t>(std::upper_bound(regions_.begin(), regions_.end(), begin,
                                                    [](uintptr_t address, const Region& region) {
                                                      return address < region.begin;
                                                    }) -
                                   regions_.begin());
    while (i > 0 && regions_[i - 1].reach >= end) {
      --i;
      if (end <= regions_[i].end) {
        last_ = i;
        return true;
      }
    }
    return false;
  }

 private:
  struct Region {
    uintptr_t begin;
    uintptr_t end;
    uintptr_t reach;  // the largest end up to here
  };
  std::vector<Region> regions_;  // by begin
  size_t last_ = 0;              // where the last access was found
};

// That of a thread's op.
inline GlobalMemory& global_memory() {
  static thread_local GlobalMemory memory;
  return memory;
}
inline void register_memory(const void* begin, size_t bytes) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(begin);
  global_memory().add(address, address + bytes);
}
inline void forget_memory() { global_memory().clear(); }

inline void check_global(const char* what, const void* p, size_t bytes) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p);
  current();
  if (address % bytes != 0) {
    fail(std::string(what) + ": misaligned global address: " + std::to_string(bytes) +
         " bytes at " + std::to_string(address));
  }
  if (!global_memory().contains(address, address + bytes)) {
    fail(std::string(what) + ": global access out of bounds: " + std::to_string(bytes) +
         " bytes at " + std::to_string(address) + " lie in no registered region");
  }
}

template <class T>
T load_global(const char* what, const T* p) {
  static_assert(sizeof(T) <= 16 && (sizeof(T) & (sizeof(T) - 1)) == 0);
  const void* from = p;
  check_global(what, from, sizeof(T));
  T v;
  std::memcpy(&v, from, sizeof(T));
  return v;
}
template <class T>
void store_global(T* p, T v) {
  static_assert(sizeof(T) <= 16 && (sizeof(T) & (sizeof(T) - 1)) == 0);
  void* to = p;
  check_global("store", to, sizeof(T));
  std::memcpy(to, &v, sizeof(T));
}

// The address of bytes of a block's shared memory.
inline void* shared_address(Cta& cta, int64_t offset, size_t bytes, size_t alignment) {
  const auto size = static_cast<int64_t>(cta.shared.size());
  if (offset < 0 || offset + static_cast<int64_t>(bytes) > size) {
    fail("shared access out of bounds: " + std::to_string(bytes) + " bytes at offset " +
         std::to_string(offset) + " of " + std::to_string(size) + " bytes");
  }
  if (offset % static_cast<int64_t>(alignment) != 0) {
    fail("misaligned shared access: " + std::to_string(bytes) + " bytes at offset " +
         std::to_string(offset) + ", aligned to " + std::to_string(alignment));
  }
  void* address = cta.shared.data() + offset;
  // The same bytes are seen as several types: keeps the compiler from reordering such accesses.
  asm volatile("" : "+r"(address)::"memory");
  return address;
}

// An offset into the shared memory of the block that uses it. Moving it is free, as with a pointer;
// every access is checked.
template <class T>
class SharedPointer {
 public:
  SharedPointer() = default;
  explicit SharedPointer(int64_t offset) : offset_(offset) {}
  template <class U, class = std::enable_if_t<std::is_convertible_v<U*, T*>>>
  SharedPointer(SharedPointer<U> other) : offset_(other.offset()) {}

  int64_t offset() const { return offset_; }

  T& operator[](int64_t i) const {
    return *static_cast<T*>(
        shared_address(*current().cta, (*this + i).offset_, sizeof(T), alignof(T)));
  }
  T& operator*() const { return (*this)[0]; }
  T* operator->() const { return &(*this)[0]; }

  SharedPointer& operator+=(int64_t n) {
    offset_ += n * static_cast<int64_t>(sizeof(T));
    return *this;
  }
  SharedPointer& operator-=(int64_t n) { return *this += -n; }
  SharedPointer& operator++() { return *this += 1; }
  SharedPointer& operator--() { return *this -= 1; }
  friend SharedPointer operator+(SharedPointer p, int64_t n) { return p += n; }
  friend SharedPointer operator+(int64_t n, SharedPointer p) { return p += n; }
  friend SharedPointer operator-(SharedPointer p, int64_t n) { return p -= n; }
  friend int64_t operator-(SharedPointer a, SharedPointer b) {
    return (a.offset_ - b.offset_) / static_cast<int64_t>(sizeof(T));
  }
  friend bool operator==(SharedPointer a, SharedPointer b) { return a.offset_ == b.offset_; }
  friend bool operator!=(SharedPointer a, SharedPointer b) { return a.offset_ != b.offset_; }
  friend bool operator<(SharedPointer a, SharedPointer b) { return a.offset_ < b.offset_; }

 private:
  int64_t offset_ = INT64_MIN / 2;  // as invalid as an uninitialised pointer
};

}  // namespace varlen_rnn::emulator
