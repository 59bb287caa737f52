// How a call's segments are shared out, and how a kernel walks over them.
//
// Segments are independent of each other, so they are split over parts and no
// thread ever waits for another. A part takes every `stride`-th segment:
// segments are sorted by length, so all parts get nearly the same number of
// tokens, and at every step a part's active segments are its first ones.
#pragma once

#include "cpu/rows-inl.h"
#include "params.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

// Hands out aligned pieces of the scratch memory; with a null base it only
// counts.
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

// Elements between rows of a scratch matrix with n columns. Whole vectors, and
// an odd number of cache lines, or rows of some sizes would all fall into the
// same cache set.
template <class T>
int64_t leading(int64_t n) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  return (ceil_div(n, kLine) / 2 * 2 + 1) * kLine;
}

// More rows than this gain nothing: the weights' traffic is spread thin, and
// the state should stay in cache.
inline constexpr int64_t kMaxPartRows = 64;

struct Partition {
  int64_t parts;     // of each direction
  int64_t max_rows;  // segments of the largest part

  explicit Partition(const Call& call) {
    const int64_t segments = call.layout.num_segments;
    const int64_t workers = ceil_div(call.num_workers, call.num_directions);
    const int64_t wanted = ceil_div(ceil_div(segments, kMaxPartRows), workers) * workers;
    parts = wanted < segments ? wanted : segments;
    max_rows = parts == 0 ? 0 : ceil_div(segments, parts);
  }
};

struct Part {
  const Layout& layout;
  int64_t direction;
  int64_t first;   // the part's first segment
  int64_t stride;  // from one of its segments to the next

  // The part's segments that have a token at step s: its first ones.
  int64_t active(int64_t s) const {
    if (s >= layout.num_steps) return 0;
    const int64_t beyond = layout.batch_sizes[s] - first;
    return beyond <= 0 ? 0 : ceil_div(beyond, stride);
  }
  int64_t segment(int64_t i) const { return first + i * stride; }
  // The i-th segment's token at step s: its place in the direction's own order,
  // in step order, and its row.
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

// Calls run(worker, part) for every part of every direction, spread over the
// workers. Neighbouring workers take different directions, so that each core
// needs one direction's weights.
template <class F>
void for_each_part(const Call& call, const F& run) {
  const Partition partition(call);
  struct Context {
    const Call& call;
    const Partition& partition;
    const F& run;
  } context = {call, partition, run};
  call.parallel_for(
      call.num_workers,
      [](void* pointer, int64_t worker) {
        const Context& context = *static_cast<Context*>(pointer);
        const Call& call = context.call;
        const int64_t tasks = context.partition.parts * call.num_directions;
        for (int64_t t = worker; t < tasks; t += call.num_workers) {
          context.run(worker, Part{call.layout, t % call.num_directions, t / call.num_directions,
                                   context.partition.parts});
        }
      },
      &context);
}

// Calls run(i) for i in [0, n) on the call's threads.
template <class F>
void in_parallel(const Call& call, int64_t n, const F& run) {
  call.parallel_for(
      n, [](void* run, int64_t i) { (*static_cast<const F*>(run))(i); },
      const_cast<void*>(static_cast<const void*>(&run)));
}

}  // namespace varlen_rnn::VARLEN_RNN_ISA
