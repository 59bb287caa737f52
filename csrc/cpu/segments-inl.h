// Parts of a call's segments, and how a kernel walks over them.
//
// Segments are sorted by length. So workers that take every `stride`-th of them get nearly the same
// number of tokens; parts of a worker that lie behind each other have segments of nearly the same
// length; and at every step a part's active segments are its first ones.
#pragma once

#include "cpu/rows-inl.h"
#include "params.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

// Hands out aligned pieces of the scratch memory; with a null base it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    char* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return reinterpret_cast<T*>(piece);
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

VR_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Elements between rows of a scratch matrix with n columns. Whole vectors, and an odd number of
// cache lines, or rows of some sizes would all fall into the same cache set.
template <class T>
int64_t leading(int64_t n) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  return (ceil_div(n, kLine) / 2 * 2 + 1) * kLine;
}

struct Range {
  int64_t begin, end;
};

struct Part {
  const Layout& layout;
  int64_t direction;
  int64_t first;   // the part's first segment
  int64_t stride;  // from one of its segments to the next
  int64_t count;   // at most so many of them

  // The part's segments that have a token at step s: its first ones.
  int64_t active(int64_t s) const {
    if (s >= layout.num_steps) return 0;
    const int64_t beyond = layout.batch_sizes[s] - first;
    const int64_t rows = beyond <= 0 ? 0 : ceil_div(beyond, stride);
    return rows < count ? rows : count;
  }
  int64_t segment(int64_t i) const { return first + i * stride; }
  // The i-th segment's token at step s: its place in the direction's own order, in step order, and
  // its row.
  int64_t place(int64_t s, int64_t i) const { return layout.first_token[s] + segment(i); }
  int64_t token(int64_t s, int64_t i) const {
    const int64_t n = place(s, i);
    return direction == 0 ? n : layout.reverse[n];
  }
  int64_t row(int64_t s, int64_t i) const {
    const int64_t n = token(s, i);
    return layout.rows == nullptr ? n : layout.rows[n];
  }
};

// Calls run(i) for i in [0, n) on the call's threads.
template <class F>
void in_parallel(const Call& call, int64_t n, const F& run) {
  call.parallel_for(
      n,
      [](void* run, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) (*static_cast<const F*>(run))(i);
      },
      const_cast<void*>(static_cast<const void*>(&run)));
}

}  // namespace varlen_rnn::VARLEN_RNN_ISA
