// What a pass begins with, in one launch: rows, sums of biases, and pieces of memory.
#include <stdexcept>

#include "cuda/rows.cuh"

namespace varlen_rnn::cuda {
namespace {

VARLEN_RNN_DEVICE void set_pieces(const Pieces& p, int64_t index, int64_t stride) {
  for (int i = 0; i < p.count; ++i) {
    const Piece& piece = p.all[i];
    for_word(piece.word, [&](auto word) {
      using W = decltype(word);
      const int64_t words = piece.bytes / static_cast<int64_t>(sizeof(W));
      const auto set = [&](auto unit, int64_t at) {
        using U = decltype(unit);
        if (piece.from != nullptr) unit = load(static_cast<const U*>(piece.from) + at);
        store(static_cast<U*>(piece.to) + at, unit);
      };
      for (int64_t at = index; at < words; at += stride) set(word, at);
      const int64_t tail = words * static_cast<int64_t>(sizeof(W) / 2) + index;
      //~ tail
      if (tail < piece.bytes / 2) set(uint16_t{}, tail);
    });
  }
}

template <class T>
VARLEN_RNN_DEVICE void add_biases_of(const Biases& p, int64_t index, int64_t stride) {
  for (; index < p.num_directions * p.rows; index += stride) {
    const bool second = index >= p.rows;
    const int64_t row = second ? index - p.rows : index;
    //~ direction of a bias
    compute_t<T> sum = value<T>(second ? p.bias_ih[1] : p.bias_ih[0], row);
    if (row < p.both) sum += value<T>(second ? p.bias_hh[1] : p.bias_hh[0], row);
    put<T>(p.to, index, sum);
  }
}

VARLEN_RNN_DEVICE void add_biases(const Biases& p, int64_t index, int64_t stride) {
  if (p.to == nullptr) return;
  switch (p.dtype) {
    case Dtype::kFloat32:
      return add_biases_of<float>(p, index, stride);
    case Dtype::kFloat64:
      return add_biases_of<double>(p, index, stride);
    case Dtype::kBFloat16:
      return add_biases_of<simt::bf16>(p, index, stride);
    case Dtype::kFloat16:
      return add_biases_of<simt::f16>(p, index, stride);
  }
}

// The first blocks have a row a group, the others share the rest.
struct ForwardStartParams : ForwardStart {
  Shape shape;
  unsigned row_blocks;
};

VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) forward_start_kernel(ForwardStartParams p) {
  if (simt::block() < p.row_blocks) return gather(p.tokens, p.shape);
  const int64_t index = thread_index() - int64_t{p.row_blocks} * kThreads;
  const int64_t stride = int64_t{simt::num_blocks() - p.row_blocks} * kThreads;
  set_pieces(p.pieces, index, stride);
  add_biases(p.biases, index, stride);
}

struct BackwardStartParams : BackwardStart {
  Shape h_shape, c_shape;
  unsigned row_blocks;
};

VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) backward_start_kernel(BackwardStartParams p) {
  const DeviceLayout& l = p.layout;
  if (simt::block() >= p.row_blocks) {
    const int64_t index = thread_index() - int64_t{p.row_blocks} * kThreads;
    return set_pieces(p.pieces, index, int64_t{simt::num_blocks() - p.row_blocks} * kThreads);
  }
  const int64_t index = row_index(p.h_shape);
  if (index >= p.num_directions * l.num_rows) return;
  const int64_t row = index >= l.num_rows ? index - l.num_rows : index;
  const bool is_final = p.final_segment != nullptr && load(p.final_segment + row) >= 0;
  const auto copy = [&](const Shape& shape, const void* from, void* to) {
    const int64_t at = index * shape.words * shape.word;
    copy_row(shape, is_final || from == nullptr ? nullptr : offset(from, at), offset(to, at));
  };
  copy(p.h_shape, p.d_h_n, p.d_h_0);
  if (p.d_c_0 != nullptr) copy(p.c_shape, p.d_c_n, p.d_c_0);
}

int64_t units_of(const Pieces& pieces) {
  int64_t most = 0;
  for (int i = 0; i < pieces.count; ++i) {
    most = std::max(most, (pieces.all[i].bytes + pieces.all[i].word - 1) / pieces.all[i].word);
  }
  return most;
}

}  // namespace

void Pieces::add(void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;
  if (count == kMost) throw std::logic_error("varlen_rnn: too many pieces");
  all[count++] = {to, from, bytes, word_of({address(to), address(from)})};
}

void set_pieces(const Pieces& pieces, void* stream) { start_forward({{}, {}, pieces}, stream); }

void start_forward(const ForwardStart& start, void* stream) {
  ForwardStartParams p{start, {}, 0};
  p.row_blocks = blocks_to_gather(start.tokens, p.shape);
  int64_t units = units_of(start.pieces);
  const Biases& biases = start.biases;
  if (biases.to != nullptr) units = std::max(units, biases.num_directions * biases.rows);
  launch_blocks(p.row_blocks + shared_blocks(units), &forward_start_kernel, p, stream);
}

void start_backward(const BackwardStart& start, void* stream) {
  const uintptr_t h_bytes = static_cast<uintptr_t>(start.h_bytes);
  const uintptr_t c_bytes = static_cast<uintptr_t>(start.c_bytes);
  const int h_word = word_of({address(start.d_h_n), address(start.d_h_0), h_bytes});
  const int c_word = word_of({address(start.d_c_n), address(start.d_c_0), c_bytes});
  BackwardStartParams p{start, shape_of(h_word, start.h_bytes), shape_of(c_word, start.c_bytes), 0};
  if (start.d_c_0 != nullptr) {  // one group for both
    p.h_shape.group_bits = std::max(p.h_shape.group_bits, p.c_shape.group_bits);
    p.c_shape.group_bits = p.h_shape.group_bits;
  }
  const int64_t rows = start.num_directions * start.layout.num_rows;
  p.row_blocks = static_cast<unsigned>(blocks_of(p.h_shape, rows));
  launch_blocks(p.row_blocks + shared_blocks(units_of(start.pieces)), &backward_start_kernel, p,
                stream);
}

}  // namespace varlen_rnn::cuda
