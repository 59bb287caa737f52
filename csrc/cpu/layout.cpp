// The ops that make layouts, each in one pass over the tokens: varlen_rnn/layout.py has the same in
// plain PyTorch, which is their specification.
#include <algorithm>
#include <tuple>
#include <vector>

#include "torch_stable.h"

namespace varlen_rnn {
namespace {

const int64_t* checked_values(const char* op, const char* name, const Tensor& tensor,
                              const char* symbols) {
  check_dtype(op, name, tensor, ScalarType::Long);
  STD_TORCH_CHECK(tensor.dim() == 1, op, ": ", name, " must be ", symbols, ", got ",
                  to_string(tensor.sizes()));
  return tensor.const_data_ptr<int64_t>();
}

// batch_sizes [S], rows [N], and segments [G], each segment's row of the batch.
std::tuple<Tensor, Tensor, Tensor> layout_from_lengths(const Tensor& any_lengths, int64_t num_steps,
                                                       bool batch_first) {
  const char* op = "varlen_rnn::layout_from_lengths";
  const Tensor owner = dense(any_lengths);
  const int64_t* lengths = checked_values(op, "lengths", owner, "[B]");
  const int64_t num_rows = owner.numel();
  int64_t num_tokens = 0, longest = 0;
  for (int64_t b = 0; b < num_rows; ++b) {
    STD_TORCH_CHECK(lengths[b] >= 0 && lengths[b] <= num_steps, op,
                    ": lengths must be in [0, T] = ", "[0, ", num_steps, "], got ", lengths[b],
                    " at index ", b);
    num_tokens += lengths[b];
    longest = std::max(longest, lengths[b]);
  }

  // Rows longer than s: those of length s + 1, and those longer than s + 1.
  const Tensor batch_sizes = new_unfilled(owner, {longest});
  int64_t* longer = batch_sizes.mutable_data_ptr<int64_t>();
  std::fill_n(longer, longest, 0);
  for (int64_t b = 0; b < num_rows; ++b) {
    if (lengths[b] > 0) longer[lengths[b] - 1] += 1;
  }
  for (int64_t s = longest - 1; s > 0; --s) longer[s - 1] += longer[s];

  const Tensor segments = new_unfilled(owner, {longest == 0 ? 0 : longer[0]});
  int64_t* segment_rows = segments.mutable_data_ptr<int64_t>();
  // Rows of a length come after all that are longer, and among each other in the batch's order.
  std::vector<int64_t> place(longer, longer + longest);
  place.push_back(0);
  for (int64_t b = 0; b < num_rows; ++b) {
    if (lengths[b] > 0) segment_rows[place[lengths[b]]++] = b;
  }

  const Tensor rows = new_unfilled(owner, {num_tokens});
  int64_t* row = rows.mutable_data_ptr<int64_t>();
  for (int64_t s = 0; s < longest; ++s) {
    for (int64_t j = 0; j < longer[s]; ++j) {
      *row++ = batch_first ? segment_rows[j] * num_steps + s : s * num_rows + segment_rows[j];
    }
  }
  return {batch_sizes, rows, segments};
}

// For every token (step, segment) the token (length - 1 - step, segment): [N].
Tensor reverse_order(const Tensor& any_batch_sizes) {
  const char* op = "varlen_rnn::reverse_order";
  const Tensor owner = dense(any_batch_sizes);
  const int64_t* batch_sizes = checked_values(op, "batch_sizes", owner, "[S]");
  const int64_t num_steps = owner.numel();
  std::vector<int64_t> first_token(static_cast<size_t>(num_steps) + 1, 0);
  for (int64_t s = 0; s < num_steps; ++s) {
    STD_TORCH_CHECK(batch_sizes[s] >= 1 && (s == 0 || batch_sizes[s] <= batch_sizes[s - 1]), op,
                    ": batch_sizes must be positive and not increase, got ", batch_sizes[s],
                    " at index ", s);
    first_token[s + 1] = first_token[s] + batch_sizes[s];
  }
  const Tensor reverse = new_unfilled(owner, {first_token[num_steps]});
  int64_t* tokens = reverse.mutable_data_ptr<int64_t>();
  int64_t length = num_steps;
  for (int64_t j = 0; num_steps > 0 && j < batch_sizes[0]; ++j) {
    while (batch_sizes[length - 1] <= j) --length;
    for (int64_t s = 0; s < length; ++s)
      tokens[first_token[s] + j] = first_token[length - 1 - s] + j;
  }
  return reverse;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(varlen_rnn, CPU, m) {
  m.impl("layout_from_lengths", TORCH_BOX(&layout_from_lengths));
  m.impl("reverse_order", TORCH_BOX(&reverse_order));
}

}  // namespace varlen_rnn
