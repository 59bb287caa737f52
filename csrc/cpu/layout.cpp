// The ops that make layouts, each in one pass over the tokens: varlen_rnn/layout/ has the same in
// plain PyTorch, which is their specification.
#include <algorithm>
#include <tuple>
#include <vector>

#include "layout_arguments.h"

namespace varlen_rnn {
namespace {

Tensor new_indices(int64_t size) { return unfilled(aoti_torch_dtype_int64(), {size}); }

// The same, with room for `size`, of which all behind the first `used` have a value of no meaning.
Tensor new_indices(int64_t used, int64_t size, int64_t beyond) {
  const Tensor tensor = new_indices(std::max(used, size));
  int64_t* values = tensor.mutable_data_ptr<int64_t>();
  std::fill(values + used, values + tensor.numel(), beyond);
  return tensor;
}

// Where the positions of a batch lie in the flat tensor of R rows.
struct Positions {
  int64_t num_rows, num_steps, num_flat_rows;
  const int64_t* lengths;  // [B], or null: T each
  const int64_t* first;    // [B]: rows back to back
  bool is_flat;            // whether `first` counts, and this is no padded batch
  bool batch_first;

  explicit Positions(const RowArrays& given)
      : num_rows(given.num_rows),
        num_steps(given.num_steps),
        num_flat_rows(given.num_flat_rows),
        lengths(static_cast<const int64_t*>(pointer(given.lengths))),
        first(static_cast<const int64_t*>(pointer(given.first))),
        is_flat(given.first.has_value()),
        batch_first(given.batch_first) {}

  int64_t length(int64_t b) const { return lengths != nullptr ? lengths[b] : num_steps; }
  int64_t begin(int64_t b) const { return is_flat ? first[b] : batch_first ? b * num_steps : b; }
  int64_t stride() const { return is_flat || batch_first ? 1 : num_rows; }

  void check(const char* op) const {
    for (int64_t b = 0; b < num_rows; ++b) {
      STD_TORCH_CHECK(length(b) >= 0 && length(b) <= num_steps, op,
                      ": lengths must be in [0, T] = ", "[0, ", num_steps, "], got ", length(b),
                      " at index ", b);
      const int64_t last = num_flat_rows - length(b);
      STD_TORCH_CHECK(!is_flat || (first[b] >= 0 && first[b] <= last), op,
                      ": first must be in [0, R - length] = ", "[0, ", last, "], got ", begin(b),
                      " at index ", b);
    }
  }
};

struct Segment {
  int64_t begin;  // the first token's flat row; with a mask its place in Segments::tokens
  int64_t length, initial_row, final_row;
};

// The segments of all rows, back to back.
struct Segments {
  std::vector<Segment> list;
  std::vector<int64_t> tokens;  // with a mask: their flat rows, back to back
  int64_t stride;               // from one of a segment's tokens to the next, counted as `begin`
  int64_t num_tokens = 0, longest = 0;

  Segments(const Positions& positions, const bool* mask, const bool* resets)
      : stride(mask != nullptr ? 1 : positions.stride()) {
    list.reserve(static_cast<size_t>(positions.num_rows));
    for (int64_t b = 0; b < positions.num_rows; ++b) {
      int64_t begin = positions.begin(b), length = positions.length(b);
      if (mask != nullptr) {
        const auto before = static_cast<int64_t>(tokens.size());
        for (int64_t t = 0; t < length; ++t) {
          const int64_t row = begin + t * positions.stride();
          if (mask[row]) tokens.push_back(row);
        }
        begin = before;
        length = static_cast<int64_t>(tokens.size()) - before;
      }
      add_row(b, begin, length, resets);
    }
  }

  int64_t flat_row(int64_t begin, int64_t step) const {
    const int64_t place = begin + step * stride;
    return tokens.empty() ? place : tokens[place];
  }

  // The tokens of row b, cut before every reset.
  void add_row(int64_t b, int64_t begin, int64_t length, const bool* resets) {
    Segment segment{begin, length, b, b};
    int64_t start = 0;
    for (int64_t t = 0; resets != nullptr && t < length; ++t) {
      if (!resets[flat_row(begin, t)]) continue;
      if (t > start) add({segment.begin, t - start, segment.initial_row, -1});
      segment = {begin + t * stride, length - t, -1, b};
      start = t;
    }
    if (length > 0) add(segment);
  }

  void add(const Segment& segment) {
    list.push_back(segment);
    num_tokens += segment.length;
    longest = std::max(longest, segment.length);
  }
};

// For every token (step, segment) the token (length - 1 - step, segment): [N], where N may be a
// capacity.
Tensor reverse_of(const char* op, const Tensor& batch_sizes, int64_t num_tokens) {
  const HostSteps steps(op, batch_sizes, num_tokens);
  const Tensor reverse = new_indices(steps.num_tokens, num_tokens, 0);
  int64_t* tokens = reverse.mutable_data_ptr<int64_t>();
  int64_t length = steps.num_steps();
  for (int64_t j = 0; j < steps.num_segments(); ++j) {
    while (steps.batch_sizes[length - 1] <= j) --length;
    for (int64_t s = 0; s < length; ++s) {
      tokens[steps.first_token[s] + j] = steps.first_token[length - 1 - s] + j;
    }
  }
  return reverse;
}

// batch_sizes [S], rows [N], reverse [N] (or [0] for one direction), initial_row [G], final_segment
// [B]; at capacity as large as any batch of these shapes may need, so that nobody has to know the
// values to know the sizes, and batch_sizes with at least one 0 at the end.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> layout_from_rows(
    const Tensor& all_positions, const OptionalTensor& lengths, const OptionalTensor& first,
    const OptionalTensor& mask, const OptionalTensor& resets, bool batch_first, bool bidirectional,
    bool at_capacity) {
  const char* op = "varlen_rnn::layout_from_rows";
  const RowArrays given(op, all_positions, lengths, first, mask, resets, batch_first);
  const int64_t num_rows = given.num_rows, num_steps = given.num_steps, R = given.num_flat_rows;
  const Positions positions(given);
  positions.check(op);
  const Segments segments(positions, static_cast<const bool*>(pointer(given.mask)),
                          static_cast<const bool*>(pointer(given.resets)));
  const int64_t longest = segments.longest;

  // Segments longer than s: those of length s + 1, and those longer than s + 1.
  const int64_t most_steps = at_capacity ? num_steps + 1 : 0;
  const Tensor batch_sizes = new_indices(longest, most_steps, 0);
  int64_t* longer = batch_sizes.mutable_data_ptr<int64_t>();
  std::fill_n(longer, longest, 0);
  for (const Segment& segment : segments.list) longer[segment.length - 1] += 1;
  for (int64_t s = longest - 1; s > 0; --s) longer[s - 1] += longer[s];

  // Segments of a length come after all that are longer, and among each other in the order of rows.
  const auto num_segments = static_cast<int64_t>(segments.list.size());
  // Without resets every row is one segment at most.
  const int64_t most_segments = !at_capacity ? 0 : resets.has_value() ? R : std::min(num_rows, R);
  const Tensor initial_row = new_indices(num_segments, most_segments, -1);
  const Tensor final_segment = new_indices(0, num_rows, -1);
  int64_t* initial = initial_row.mutable_data_ptr<int64_t>();
  int64_t* finals = final_segment.mutable_data_ptr<int64_t>();
  std::vector<int64_t> place(longer, longer + longest), begin(segments.list.size());
  place.push_back(0);
  for (const Segment& segment : segments.list) {
    const int64_t j = place[segment.length]++;
    begin[j] = segment.begin;
    initial[j] = segment.initial_row;
    if (segment.final_row >= 0) finals[segment.final_row] = j;
  }

  const Tensor rows = new_indices(segments.num_tokens, at_capacity ? R : 0, 0);
  int64_t* row = rows.mutable_data_ptr<int64_t>();
  for (int64_t s = 0; s < longest; ++s) {
    for (int64_t j = 0; j < longer[s]; ++j) *row++ = segments.flat_row(begin[j], s);
  }
  const Tensor reverse = bidirectional ? reverse_of(op, batch_sizes, rows.numel()) : new_indices(0);
  return {batch_sizes, rows, reverse, initial_row, final_segment};
}

Tensor reverse_order(const Tensor& batch_sizes, const Tensor& tokens_there) {
  const char* op = "varlen_rnn::reverse_order";
  STD_TORCH_CHECK(tokens_there.dim() == 2, op, ": tokens must be [N, 0], got ",
                  to_string(tokens_there.sizes()));
  check_dtype(op, "batch_sizes", batch_sizes, ScalarType::Long);
  STD_TORCH_CHECK(batch_sizes.dim() == 1, op, ": batch_sizes must be [S], got ",
                  to_string(batch_sizes.sizes()));
  return reverse_of(op, dense(batch_sizes), tokens_there.size(0));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(varlen_rnn, CPU, m) {
  m.impl("layout_from_rows", TORCH_BOX(&layout_from_rows));
  m.impl("reverse_order", TORCH_BOX(&reverse_order));
}

}  // namespace varlen_rnn
