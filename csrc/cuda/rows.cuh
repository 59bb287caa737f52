// How kernels share out the rows of whole tensors.
//
// A row is the work of a group of lanes, a power of two of them: as many as the row has words, and a warp
// at most. So what concerns a token is found once a row. A word is the largest of 16, 8, 4 and 2 bytes
// that addresses and sizes allow.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "cuda/generic.cuh"

namespace varlen_rnn::cuda {

using simt::Words2;
using simt::Words4;

constexpr int64_t kMostBlocks = 1 << 12;  // of what any number of threads can do

// How rows are shared out.
struct Shape {
  int word;        // bytes
  int words;       // of a row
  int group_bits;  // lanes of a group: 1 << group_bits
};

// The largest word that divides all of these addresses and sizes.
inline int word_of(std::initializer_list<uintptr_t> all) {
  uintptr_t bits = 16;
  for (uintptr_t number : all) bits |= number;
  return static_cast<int>(bits & (~bits + 1));
}
inline uintptr_t address(const void* p) { return reinterpret_cast<uintptr_t>(p); }

inline Shape shape_of(int word, int64_t row_bytes) {
  Shape shape{word, static_cast<int>(row_bytes / word), 0};
  //~ lanes of a row
  while (shape.group_bits < 5 && 1 << shape.group_bits < shape.words) ++shape.group_bits;
  return shape;
}

inline int64_t blocks_of(const Shape& shape, int64_t num_rows) {
  return ((num_rows << shape.group_bits) + kThreads - 1) / kThreads;
}

// The row of a thread's group, after some blocks of other work.
VARLEN_RNN_DEVICE int64_t row_index(const Shape& shape, unsigned others = 0) {
  return (thread_index() - int64_t{others} * kThreads) >> shape.group_bits;
}

// Calls f with a value of a word's type.
template <class F>
VARLEN_RNN_DEVICE void for_word(int word, F f) {
  switch (word) {
    case 16:
      return f(Words4{});
    case 8:
      return f(Words2{});
    case 4:
      return f(uint32_t{});
    default:
      return f(uint16_t{});
  }
}

// A row by the lanes of its group; zeros without a `from`.
VARLEN_RNN_DEVICE void copy_row(const Shape& shape, const void* from, void* to) {
  const int group = 1 << shape.group_bits, lane = static_cast<int>(simt::lane()) & (group - 1);
  for_word(shape.word, [&](auto word) {
    using W = decltype(word);
    for (int i = lane; i < shape.words; i += group) {
      store(static_cast<W*>(to) + i, from == nullptr ? W{} : load(static_cast<const W*>(from) + i));
    }
  });
}

VARLEN_RNN_DEVICE const void* offset(const void* p, int64_t bytes) {
  return static_cast<const char*>(p) + bytes;
}
VARLEN_RNN_DEVICE void* offset(void* p, int64_t bytes) { return static_cast<char*>(p) + bytes; }

VARLEN_RNN_DEVICE void gather(const TokenRows& p, const Shape& shape) {
  const int64_t token = row_index(shape);
  if (token >= p.layout.num_tokens) return;
  const void* from = nullptr;
  //~ token
  if (token < count_tokens(p.layout)) from = offset(p.from, row_of(p.layout, token) * p.pitch);
  copy_row(shape, from, offset(p.to, token * p.row_bytes));
}

inline Shape shape_of(const TokenRows& rows) {
  return shape_of(word_of({address(rows.from), address(rows.to), static_cast<uintptr_t>(rows.pitch),
                           static_cast<uintptr_t>(rows.row_bytes)}),
                  rows.row_bytes);
}

// The blocks that gather tokens, and how.
inline unsigned blocks_to_gather(const TokenRows& tokens, Shape& shape) {
  if (tokens.to == nullptr) return 0;
  shape = shape_of(tokens);
  return static_cast<unsigned>(blocks_of(shape, tokens.layout.num_tokens));
}

template <class P>
void launch_blocks(int64_t blocks, void (*kernel)(P), const P& p, void* stream) {
  if (blocks > 0) simt::launch({static_cast<unsigned>(blocks), kThreads, 0, 1, stream}, kernel, p);
}

// Blocks that share `units` of work, four a thread where there are many.
inline int64_t shared_blocks(int64_t units) {
  return std::min((units + kThreads * 4 - 1) / (kThreads * 4), kMostBlocks);
}

}  // namespace varlen_rnn::cuda
