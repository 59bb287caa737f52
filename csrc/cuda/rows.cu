// Whole tensors' rows by a layout, before and after the steps of either path.
#include "cuda/rows.cuh"

namespace varlen_rnn::cuda {
namespace {

struct RowParams : TokenRows {
  Shape shape;
};

VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) scatter_kernel(RowParams p) {
  const int64_t token = row_index(p.shape);
  if (token >= p.layout.num_tokens || token >= count_tokens(p.layout)) return;
  copy_row(p.shape, offset(p.from, token * p.row_bytes),
           offset(p.to, row_of(p.layout, token) * p.pitch));
}

struct RepeatParams {
  const void* from;
  void* to;
  int64_t num_rows, row_bytes;
  Shape shape;
};

VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) repeat_kernel(RepeatParams p) {
  const int64_t row = row_index(p.shape);
  if (row < p.num_rows) copy_row(p.shape, p.from, offset(p.to, row * p.row_bytes));
}

// A place of one direction, of all directions' places one behind the other.
struct DirectedPlace {
  int direction;
  int64_t place, first;  // first: the direction's first one among all
  bool there;

  VARLEN_RNN_DEVICE DirectedPlace(const DeviceLayout& l, int num_directions, int64_t index)
      : direction(index >= l.num_tokens ? 1 : 0), first(direction * l.num_tokens) {
    place = index - first;
    there = direction < num_directions && place < l.num_tokens;
  }
};

// The first blocks gather tokens.
struct PreviousParams : PreviousRows {
  Shape token_shape, shape;
  unsigned token_blocks;
};

VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) previous_kernel(PreviousParams p) {
  if (simt::block() < p.token_blocks) return gather(p.tokens, p.token_shape);
  const DeviceLayout& l = p.layout;
  const DirectedPlace at(l, p.num_directions, row_index(p.shape, p.token_blocks));
  if (!at.there) return;
  const int direction = at.direction;
  const int64_t place = at.place;
  const void* from = nullptr;
  int64_t token = place;  // behind the N-th, where zeros go
  if (place < count_tokens(l)) {
    token = token_of(l, direction, place);
    const int64_t step = step_of(l, place), segment = place - load(l.first_token + step);
    if (step > 0) {
      //~ previous token
      const int64_t before = token_of(l, direction, load(l.first_token + step - 1) + segment);
      //~ previous output
      from = offset(p.out, (row_of(l, before) * p.num_directions + direction) * p.row_bytes);
    } else {
      const int64_t row = initial_row_of(l, segment);
      if (row >= 0 && p.h_0 != nullptr) {
        from = offset(p.h_0, (direction * l.num_rows + row) * p.row_bytes);
      }
    }
  }
  copy_row(p.shape, from, offset(p.to, (at.first + token) * p.row_bytes));
}

// Values side by side, for one access.
template <class T, int n>
struct alignas(sizeof(T) * n) Pack {
  T v[n];
};

struct HiddenParams : HiddenRows {
  Shape shape;
};

template <class T, int n>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) hidden_kernel(HiddenParams p) {
  using C = compute_t<T>;
  const DeviceLayout& l = p.layout;
  const DirectedPlace at(l, p.num_directions, row_index(p.shape));
  if (!at.there) return;
  const int64_t place = at.place, H = p.hidden_size;
  const bool there = place < count_tokens(l);
  const int64_t token = there ? token_of(l, at.direction, place) : place;
  const auto* o = static_cast<const C*>(p.gates) + ((at.first + place) * 4 + 3) * H;
  const auto* c = static_cast<const C*>(p.cells) + (at.first + place) * H;
  T* to = static_cast<T*>(p.to) + (at.first + token) * H;
  const int group = 1 << p.shape.group_bits, lane = static_cast<int>(simt::lane()) & (group - 1);
  for (int i = lane; i < p.shape.words; i += group) {
    Pack<T, n> h;
    if (there) {
      const auto gates = load(reinterpret_cast<const Pack<C, n>*>(o) + i);
      const auto cells = load(reinterpret_cast<const Pack<C, n>*>(c) + i);
      for (int e = 0; e < n; ++e) h.v[e] = from_compute<T>(gates.v[e] * simt::tanh(cells.v[e]));
    } else {
      for (int e = 0; e < n; ++e) h.v[e] = from_compute<T>(0);
    }
    store(reinterpret_cast<Pack<T, n>*>(to) + i, h);
  }
}

struct SurplusParams : Surplus {
  int word;
};

VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) zero_surplus_kernel(SurplusParams p) {
  //~ surplus
  const int64_t count = count_tokens(p.layout), surplus = p.layout.num_tokens - count;
  const int64_t stride = int64_t{simt::num_blocks()} * kThreads;
  for (int i = 0; i < p.count; ++i) {
    //~ first of the surplus
    void* const to = offset(p.to[i], count * p.row_bytes[i]);
    for_word(p.word, [&](auto word) {
      const int64_t words = surplus * (p.row_bytes[i] / static_cast<int64_t>(sizeof(word)));
      for (int64_t at = thread_index(); at < words; at += stride) {
        store(static_cast<decltype(word)*>(to) + at, word);
      }
    });
  }
}

template <class T>
void launch_hidden(const HiddenRows& rows, void* stream) {
  constexpr int n = 16 / sizeof(compute_t<T>);
  const int64_t H = rows.hidden_size;
  const uintptr_t apart = static_cast<uintptr_t>(H) * sizeof(compute_t<T>);
  const bool packed = word_of({address(rows.gates), address(rows.cells), apart}) == 16 &&
                      address(rows.to) % (n * sizeof(T)) == 0;
  const HiddenParams p{rows, shape_of(1, packed ? H / n : H)};
  launch_blocks(blocks_of(p.shape, rows.num_directions * rows.layout.num_tokens),
                packed ? &hidden_kernel<T, n> : &hidden_kernel<T, 1>, p, stream);
}

}  // namespace

void scatter_tokens(const TokenRows& rows, void* stream) {
  const RowParams p{rows, shape_of(rows)};
  launch_blocks(blocks_of(p.shape, rows.layout.num_tokens), &scatter_kernel, p, stream);
}

void repeat_row(const void* from, int64_t row_bytes, int64_t num_rows, void* to, void* stream) {
  const int word = word_of({address(from), address(to), static_cast<uintptr_t>(row_bytes)});
  const RepeatParams p{from, to, num_rows, row_bytes, shape_of(word, row_bytes)};
  launch_blocks(blocks_of(p.shape, num_rows), &repeat_kernel, p, stream);
}

void gather_previous(const PreviousRows& rows, void* stream) {
  const int word = word_of({address(rows.out), address(rows.h_0), address(rows.to),
                            static_cast<uintptr_t>(rows.row_bytes)});
  PreviousParams p{rows, {}, shape_of(word, rows.row_bytes), 0};
  p.token_blocks = blocks_to_gather(rows.tokens, p.token_shape);
  launch_blocks(p.token_blocks + blocks_of(p.shape, rows.num_directions * rows.layout.num_tokens),
                &previous_kernel, p, stream);
}

void gather_hidden(Dtype dtype, const HiddenRows& rows, void* stream) {
  for_dtype(dtype, [&](auto zero) { launch_hidden<decltype(zero)>(rows, stream); });
}

void zero_surplus_tokens(const Surplus& surplus, void* stream) {
  uintptr_t all = 0;
  int64_t most = 0;
  for (int i = 0; i < surplus.count; ++i) {
    all |= address(surplus.to[i]) | static_cast<uintptr_t>(surplus.row_bytes[i]);
    most = std::max(most, surplus.row_bytes[i]);
  }
  const SurplusParams p{surplus, word_of({all})};
  // Few threads: there may be nothing to do.
  launch_blocks(std::min<int64_t>(shared_blocks(surplus.layout.num_tokens * (most / p.word)), 512),
                &zero_surplus_kernel, p, stream);
}

}  // namespace varlen_rnn::cuda
