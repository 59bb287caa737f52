// Layouts of rows whose lengths, mask or resets lie on the device: two kernels, three with a mask or
// resets. varlen_rnn/layout/index_arrays.py is their specification. No value is known on the host, and
// none is trusted: what comes from the caller is checked where it is read.
//
//   walk_rows      a block a row: how many tokens it has, and where its segments begin among them
//   sort_segments  one block: the segments' order, longest first, and so batch_sizes
//   write_layout   a thread an element: what the arrays hold
#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/layout.cuh"
#include "cuda/scan.cuh"

namespace varlen_rnn::cuda {
namespace {

using simt::load;
using simt::load_fresh;
using simt::store;

constexpr unsigned kRowThreads = 256, kSortThreads = 512, kWriteThreads = 256;
constexpr unsigned kMostBlocks = 1024;
constexpr int64_t kFewSegments = 256;  // which are sorted by comparing each with each
constexpr int kDigitBits = 4, kDigits = 1 << kDigitBits;

VARLEN_RNN_DEVICE int64_t length_of_row(const DeviceRows& p, int64_t row) {
  if (p.lengths == nullptr) return p.num_steps;
  return checked(load(p.lengths + row), 0, p.num_steps + 1,
                 "varlen_rnn: lengths must be in [0, T]");
}

// Where a row begins in arrays that have its positions side by side.
VARLEN_RNN_DEVICE int64_t begin_of_row(const DeviceRows& p, int64_t row) {
  if (p.first == nullptr) return row * p.num_steps;
  return checked(load(p.first + row), 0, p.num_flat_rows - length_of_row(p, row) + 1,
                 "varlen_rnn: first must be in [0, R - length]");
}

// The flat row of a position.
VARLEN_RNN_DEVICE int64_t flat_row(const DeviceRows& p, int64_t row, int64_t begin, int64_t step) {
  return p.first != nullptr || p.batch_first ? begin + step : step * p.num_rows + row;
}

VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kRowThreads, 1) walk_rows(DeviceRows p) {
  const simt::Shared<int64_t> sums = simt::shared<int64_t>(0);
  const simt::Shared<int64_t> begins_anew = sums + simt::num_threads();
  for (int64_t row = simt::block(); row < p.num_rows; row += simt::num_blocks()) {
    const int64_t begin = begin_of_row(p, row);
    const Part part = part_of_thread(length_of_row(p, row));
    const auto is_token = [&](int64_t flat) {
      return p.mask == nullptr || load(p.mask + flat) != 0;
    };
    const auto is_reset = [&](int64_t flat) {
      return p.resets != nullptr && load(p.resets + flat) != 0;
    };
    int64_t tokens = 0, resets = 0, first_reset = 0;
    for (int64_t step = part.begin; step < part.end; ++step) {
      const int64_t flat = flat_row(p, row, begin, step);
      if (!is_token(flat)) continue;
      const bool reset = is_reset(flat);
      if (tokens == 0) first_reset = reset;
      tokens += 1;
      resets += reset;
    }
    int64_t num_tokens = 0, num_resets = 0;
    int64_t number = sum_before(tokens, sums, num_tokens);
    //~ first reset
    if (number == 0 && tokens > 0) *begins_anew = first_reset;
    if (num_tokens == 0 && simt::thread() == 0) *begins_anew = 0;
    // The row's first token begins a segment, reset or not; each later reset begins one more.
    int64_t segment = sum_before(resets, sums, num_resets);
    segment -= *begins_anew;  // written before the sum's barriers, so read behind them
    for (int64_t step = part.begin; step < part.end; ++step) {
      const int64_t flat = flat_row(p, row, begin, step);
      if (!is_token(flat)) continue;
      if (p.tokens != nullptr) store(p.tokens + begin + number, flat);
      const bool reset = is_reset(flat);
      segment += reset;
      if (p.starts != nullptr && (reset || number == 0)) store(p.starts + begin + segment, number);
      number += 1;
    }
    if (simt::thread() == 0) {
      store(p.tokens_of_row + row, num_tokens);
      if (p.resets != nullptr) {
        const int64_t anew = *begins_anew;
        store(p.segments_of_row + row, num_tokens == 0 ? 0 : num_resets - anew + 1);
        store(p.begins_anew + row, anew);
      }
    }
  }
}

VARLEN_RNN_DEVICE int64_t tokens_of_row(const DeviceRows& p, int64_t row) {
  return p.tokens_of_row == nullptr ? length_of_row(p, row) : load(p.tokens_of_row + row);
}

// The segments in the order of rows, with their lengths. Without resets every row is one, perhaps of
// no token: those end up behind all others.
VARLEN_RNN_DEVICE int64_t list_segments(const DeviceRows& p, simt::Shared<int64_t> shared) {
  const int64_t index = simt::thread(), stride = simt::num_threads();
  if (p.resets == nullptr) {
    for (int64_t row = index; row < p.num_rows; row += stride) {
      begin_of_row(p, row);  // looks whether it may be read at all
      store(p.length_of_segment + row, tokens_of_row(p, row));
    }
    return p.num_rows;
  }
  const int64_t total = prefix_sums(
      p.num_rows, shared, [&](int64_t row) { return load(p.segments_of_row + row); },
      [&](int64_t row, int64_t before) { store(p.first_segment + row, before); });
  checked(total, 0, p.num_segments + 1, "varlen_rnn: first must be such that no row overlaps");
  simt::sync_block();
  for (int64_t segment = index; segment < total; segment += stride) {
    int64_t row = 0, end = p.num_rows;  // the last one that begins at the segment or before it
    while (end - row > 1) {
      const int64_t middle = (row + end) / 2;
      (load_fresh(p.first_segment + middle) <= segment ? row : end) = middle;
    }
    const int64_t at = segment - load_fresh(p.first_segment + row);
    const int64_t* starts = p.starts + begin_of_row(p, row);
    const int64_t tokens = tokens_of_row(p, row);
    const bool is_last = at + 1 == load(p.segments_of_row + row);
    const int64_t start = checked(load(starts + at), 0, tokens,
                                  "varlen_rnn: first must be such that no row overlaps");
    const int64_t next = is_last ? tokens
                                 : checked(load(starts + at + 1), start + 1, tokens,
                                           "varlen_rnn: first must be such that no row overlaps");
    store(p.row_of_segment + segment, row);
    store(p.start_of_segment + segment, start);
    store(p.length_of_segment + segment, next - start);
  }
  return total;
}

// The segments by their lengths, descending, and those of one length as they are: to p.order.
VARLEN_RNN_DEVICE void sort_few(const DeviceRows& p, int64_t count) {
  for (int64_t segment = simt::thread(); segment < count; segment += simt::num_threads()) {
    const int64_t length = load_fresh(p.length_of_segment + segment);
    int64_t rank = 0;
    for (int64_t other = 0; other < count; ++other) {
      const int64_t its = load_fresh(p.length_of_segment + other);
      //~ rank
      rank += its > length || (its == length && other < segment);
    }
    store(p.order + rank, segment);
  }
}

// The same by their digits, the lowest first. Every thread has a part of the segments, counts its
// digits, and finds where they go behind those of all threads before it.
VARLEN_RNN_DEVICE void sort_many(const DeviceRows& p, int64_t count, int64_t longest,
                                 simt::Shared<int64_t> shared) {
  const int thread = static_cast<int>(simt::thread());
  const int threads = static_cast<int>(simt::num_threads());
  const auto places = simt::recast<uint32_t>(shared + threads);  // [digits, threads]
  const Part part = part_of_thread(count);
  int64_t *from = p.other_order, *to = p.other_order;
  // An even number of passes, so that the last one ends in p.order.
  //~ digits
  for (int shift = 0; longest >> shift > 0 || shift % (2 * kDigitBits) != 0; shift += kDigitBits) {
    to = shift % (2 * kDigitBits) == 0 ? p.other_order : p.order;
    from = shift % (2 * kDigitBits) == 0 ? p.order : p.other_order;
    const auto segment_at = [&](int64_t i) { return shift == 0 ? i : load_fresh(from + i); };
    const auto place_of = [&](int64_t segment) {
      //~ key of a digit
      const int64_t key = longest - load_fresh(p.length_of_segment + segment);
      return (key >> shift & (kDigits - 1)) * threads + thread;
    };
    for (int digit = 0; digit < kDigits; ++digit) places[digit * threads + thread] = 0;
    for (int64_t i = part.begin; i < part.end; ++i) places[place_of(segment_at(i))] += 1;
    simt::sync_block();
    prefix_sums(
        int64_t{kDigits} * threads, shared, [&](int64_t i) { return int64_t{places[i]}; },
        [&](int64_t i, int64_t before) { places[i] = static_cast<uint32_t>(before); });
    simt::sync_block();
    for (int64_t i = part.begin; i < part.end; ++i) {
      const int64_t segment = segment_at(i), at = place_of(segment);
      store(to + places[at], segment);
      places[at] += 1;
    }
    simt::sync_block();
  }
}

VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kSortThreads, 1) sort_segments(DeviceRows p) {
  const simt::Shared<int64_t> shared = simt::shared<int64_t>(0);
  const int64_t index = simt::thread(), stride = simt::num_threads();
  const int64_t count = list_segments(p, shared);
  int64_t longest = 0;  // of those that this thread has listed
  for (int64_t segment = index; segment < count; segment += stride) {
    const int64_t length = load_fresh(p.length_of_segment + segment);
    if (length > longest) longest = length;
  }
  longest = largest_of_block(longest, shared);
  if (count <= kFewSegments) {
    sort_few(p, count);
  } else {
    sort_many(p, count, longest, shared);
  }
  //~ order is there
  simt::sync_block();
  for (int64_t step = index; step < longest; step += stride) {
    int64_t low = 0, high = count;  // of the segments in order, `low` have this step for sure
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      const int64_t segment = load_fresh(p.order + middle);
      if (load_fresh(p.length_of_segment + segment) > step) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    store(p.batch_sizes + step, low);
  }
  simt::sync_block();
  const int64_t num_tokens = prefix_sums(
      longest, shared, [&](int64_t step) { return load_fresh(p.batch_sizes + step); },
      [&](int64_t step, int64_t before) { store(p.first_token + step, before); });
  checked(num_tokens, 0, p.num_flat_rows + 1,
          "varlen_rnn: first must be such that no row overlaps");
  if (index == 0) {
    store(p.totals, longest);
    store(p.totals + 1, longest > 0 ? load_fresh(p.batch_sizes) : 0);
    store(p.totals + 2, num_tokens);
  }
}

VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kWriteThreads, 1) write_layout(DeviceRows p) {
  const int64_t index = int64_t{simt::block()} * kWriteThreads + simt::thread();
  const int64_t stride = int64_t{simt::num_blocks()} * kWriteThreads;
  const int64_t longest = load(p.totals), num_segments = load(p.totals + 1);
  const int64_t num_tokens = load(p.totals + 2);
  const auto row_of = [&](int64_t segment) {
    return p.row_of_segment == nullptr ? segment : load(p.row_of_segment + segment);
  };
  const auto start_of = [&](int64_t segment) {
    return p.start_of_segment == nullptr ? 0 : load(p.start_of_segment + segment);
  };

  for (int64_t token = index; token < p.num_flat_rows; token += stride) {
    int64_t flat = 0, opposite = 0;
    if (token < num_tokens) {
      int64_t step = 0, end = longest;  // first_token[step] <= token
      while (end - step > 1) {
        const int64_t middle = (step + end) / 2;
        (load(p.first_token + middle) <= token ? step : end) = middle;
      }
      const int64_t rank = token - load(p.first_token + step);
      const int64_t segment = load(p.order + rank), row = row_of(segment);
      const int64_t begin = begin_of_row(p, row), number = start_of(segment) + step;
      flat =
          p.tokens != nullptr ? load(p.tokens + begin + number) : flat_row(p, row, begin, number);
      const int64_t last = load(p.length_of_segment + segment) - 1;
      if (p.reverse != nullptr) opposite = load(p.first_token + last - step) + rank;
    }
    store(p.rows + token, flat);
    if (p.reverse != nullptr) store(p.reverse + token, opposite);
  }

  for (int64_t rank = index; rank < p.num_segments; rank += stride) {
    int64_t initial = -1;
    if (rank < num_segments) {
      const int64_t segment = load(p.order + rank), row = row_of(segment);
      const int64_t start = start_of(segment);
      const bool anew = p.begins_anew != nullptr && load(p.begins_anew + row) != 0;
      if (start == 0 && !anew) initial = row;
      if (start + load(p.length_of_segment + segment) == tokens_of_row(p, row)) {
        store(p.final_segment + row, rank);
      }
    }
    store(p.initial_row + rank, initial);
  }
  for (int64_t row = index; row < p.num_rows; row += stride) {
    //~ empty row
    if (tokens_of_row(p, row) == 0) store(p.final_segment + row, int64_t{-1});
  }
  for (int64_t step = longest + index; step < p.num_steps; step += stride) {
    //~ steps behind
    store(p.batch_sizes + step, int64_t{0});
  }
}

unsigned threads_for(int64_t work, unsigned most) {
  return static_cast<unsigned>(std::clamp<int64_t>((work + 31) / 32 * 32, 32, most));
}

}  // namespace

void make_device_layout(const DeviceRows& p, void* stream) {
  if (p.mask != nullptr || p.resets != nullptr) {
    const unsigned blocks = static_cast<unsigned>(std::clamp<int64_t>(p.num_rows, 1, kMostBlocks));
    const unsigned threads = threads_for(p.num_steps, kRowThreads);
    simt::launch({blocks, threads, (threads + 1) * sizeof(int64_t), 1, stream}, &walk_rows, p);
  }
  const int64_t most_segments = p.resets == nullptr ? p.num_rows : p.num_flat_rows;
  const unsigned threads = threads_for(std::max(most_segments, p.num_steps), kSortThreads);
  const size_t digits = most_segments <= kFewSegments ? 0 : kDigits;
  const size_t shared_bytes = threads * (sizeof(int64_t) + digits * sizeof(uint32_t));
  simt::launch({1, threads, shared_bytes, 1, stream}, &sort_segments, p);
  const int64_t elements =
      std::max({p.num_flat_rows, p.num_steps, p.num_segments, p.num_rows, int64_t{1}});
  const int64_t blocks = (elements + kWriteThreads - 1) / kWriteThreads;
  simt::launch(
      {static_cast<unsigned>(std::min<int64_t>(blocks, kMostBlocks)), kWriteThreads, 0, 1, stream},
      &write_layout, p);
}

}  // namespace varlen_rnn::cuda
