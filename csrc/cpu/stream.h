// Sequences that are fed a step, or a few steps, at a time: their states, and all layers' weights.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/layers.h"

namespace varlen_rnn {

class Stream {
 public:
  // Which rows a call is about; all of them, in their order, without an array.
  struct Which {
    const int64_t* numbers;
    int64_t count;
  };

  // Copies the weights, which are packed.
  Stream(const LayerSizes& sizes, std::vector<Weights> layers, int64_t num_rows);

  // The next `num_steps` steps of rows: x [count, num_steps, I], out [count, num_steps, P].
  void run(Which which, const void* x, int64_t num_steps, void* out, const Pool& pool);
  // States of rows: h [L, count, P] of the dtype, c [L, count, H] of the type that is computed in.
  void read(Which which, void* h, void* c);
  void load(Which which, const void* h, const void* c);
  void reset(Which which);
  // Reads the states of all rows for the stream that takes this one's place: later calls of this one
  // fail, as if another thread were in a call.
  void retire(void* h, void* c);
  void revive() { in_use_.store(false, std::memory_order_release); }  // takes it back

  int64_t num_rows() const { return num_rows_; }
  double flops(int64_t num_tokens) const { return sizes_.flops(layers_.size(), num_tokens); }

 private:
  // Fails where another thread is in a call, and keeps others out.
  class Use;

  void copy_weights();
  void choose(Which which);
  void copy_states(void* h, void* c);
  template <class F>
  void for_each_state(const F& f);

  LayerSizes sizes_;
  int64_t num_rows_;
  std::vector<Weights> layers_;
  Memory weights_;
  std::vector<char> h_, c_;  // [L, num_rows, P], [L, num_rows, H]
  std::atomic<bool> in_use_{false};
  std::vector<int64_t> chosen_;  // the rows of a call
  std::vector<char> seen_;       // [num_rows]  all zero between calls
  bool backwards_ = false;       // how the next step begins
  LayerRunner runner_{true};
};

}  // namespace varlen_rnn
