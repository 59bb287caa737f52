// Reading a layout on the device. Index arrays come from tensors that nobody has read on the host, so
// what they say is checked where it is used.
#pragma once

#include "cuda/params.h"
#include "cuda/simt.cuh"

namespace varlen_rnn::cuda {

VARLEN_RNN_DEVICE int64_t checked(int64_t value, int64_t lowest, int64_t bound,
                                  const char* message) {
  if (value < lowest || value >= bound) simt::trap(message);
  return value;
}

VARLEN_RNN_DEVICE int64_t batch_size(const DeviceLayout& l, int64_t step) {
  if (step >= l.num_steps) return 0;
  return checked(simt::load(l.batch_sizes + step), 0, l.num_segments + 1,
                 "varlen_rnn: batch_sizes must be in [0, G]");
}

// Each of a grid's threads looks at some: derive_layout does, a layout's first kernel, so that later
// ones may rely on what this says.
VARLEN_RNN_DEVICE void check_batch_sizes(const DeviceLayout& l, int64_t index, int64_t stride) {
  for (int64_t step = index; step < l.num_steps; step += stride) {
    if (batch_size(l, step) < batch_size(l, step + 1)) {
      simt::trap("varlen_rnn: batch_sizes must not increase");
    }
  }
}

// N, as the device knows it.
VARLEN_RNN_DEVICE int64_t count_tokens(const DeviceLayout& l) {
  if (l.num_steps == 0) return 0;
  const int64_t last = l.num_steps - 1;
  return checked(simt::load(l.first_token + last) + simt::load(l.batch_sizes + last), 0,
                 l.num_tokens + 1, "varlen_rnn: batch_sizes must sum to at most N");
}

// The step of a place or token, and which of the step's segments it is of.
VARLEN_RNN_DEVICE int64_t step_of(const DeviceLayout& l, int64_t place) {
  int64_t low = 0, high = l.num_steps;  // first_token[low] <= place < first_token[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (simt::load(l.first_token + middle) <= place) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Steps that a segment has.
VARLEN_RNN_DEVICE int64_t length_of(const DeviceLayout& l, int64_t segment) {
  int64_t low = 0, high = l.num_steps;  // batch_sizes[s] > segment for s < low, not for s >= high
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (simt::load(l.batch_sizes + middle) > segment) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

VARLEN_RNN_DEVICE int64_t token_of(const DeviceLayout& l, int direction, int64_t place) {
  if (direction == 0) return place;
  return checked(simt::load(l.reverse + place), 0, l.num_tokens,
                 "varlen_rnn: reverse must be in [0, N)");
}

VARLEN_RNN_DEVICE int64_t row_of(const DeviceLayout& l, int64_t token) {
  const int64_t row = l.rows == nullptr ? token : simt::load(l.rows + token);
  return checked(row, 0, l.num_flat_rows, "varlen_rnn: rows must be in [0, R)");
}

// -1 for zeros.
VARLEN_RNN_DEVICE int64_t initial_row_of(const DeviceLayout& l, int64_t segment) {
  return checked(simt::load(l.initial_row + segment), -1, l.num_rows,
                 "varlen_rnn: initial_row must be in [-1, B)");
}

// -1 for none.
VARLEN_RNN_DEVICE int64_t final_row_of(const DeviceLayout& l, int64_t segment) {
  return simt::load(l.final_row + segment);  // this library's own numbers
}

}  // namespace varlen_rnn::cuda
