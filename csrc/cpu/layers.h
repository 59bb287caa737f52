// All layers of one direction in one call, over rows of equal length: where a call is short, what
// surrounds the kernels takes longer than they do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/scratch.h"
#include "params.h"

namespace varlen_rnn {

// Threads that a call may be split over.
struct Pool {
  int64_t num_threads;
  bool may_wait;  // for each other
  ParallelFor parallel_for;
};

struct LayerSizes {
  bool is_lstm;
  Dtype dtype;        // of inputs and outputs
  WeightOrder order;  // packed in blocks of `units`, or matrices
  int64_t units;
  int64_t input_size, hidden_size, output_size;
  bool float_cells;  // as in Forward

  int64_t flops(size_t layer) const;  // of a token
  double flops(size_t num_layers, int64_t num_tokens) const;
  size_t element() const;       // bytes of x, out and h
  size_t cell_element() const;  // bytes of c
};

struct Rows {
  const void* x;  // [count, num_steps, I], or with `by_step` [num_steps, count, I]
  void* out;      // [count, num_steps, P], likewise
  int64_t count, num_steps;
  bool by_step;
  // States are [L, num_states, *]: row i starts from numbers[i], and ends there. Initial ones may be
  // null for zeros, and may be the final ones.
  const int64_t* numbers;
  int64_t num_states;
  const void *h_0, *c_0;
  void *h_n, *c_n;
  bool backwards;  // as in Forward
};

class LayerRunner {
 public:
  // One that is kept keeps what calls work in, and they allocate nothing once they have been as large.
  explicit LayerRunner(bool is_kept) : is_kept_(is_kept) {}
  void run(const LayerSizes& sizes, const Weights* layers, size_t num_layers, const Rows& rows,
           const Pool& pool);

 private:
  void* scratch(size_t bytes);

  bool is_kept_;
  std::vector<int64_t> batch_sizes_, first_token_, flat_rows_;
  std::vector<char> between_[2];  // outputs of layers for the next ones
  Memory own_scratch_;
  size_t own_bytes_ = 0;
  std::optional<Scratch> scratch_;  // of one that is not kept
};

}  // namespace varlen_rnn
