// Whole tensors' rows by a layout, before and after the steps of either path.
#include <algorithm>

#include "cuda/generic.cuh"

namespace varlen_rnn::cuda {
namespace {

constexpr int64_t kMostSurplus = 1 << 18;  // threads that look for rows to clear

struct Rows {
  DeviceLayout layout;
  int direction;
  const void* from;
  const void* h_0;
  int64_t stride, columns;
  void* to;
};

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) gather_kernel(Rows p) {
  const int64_t index = thread_index();
  if (index >= p.layout.num_tokens * p.columns) return;
  const int64_t token = index / p.columns, column = index % p.columns;
  T v = from_compute<T>(0);
  if (token < count_tokens(p.layout)) {
    v = load(static_cast<const T*>(p.from) + row_of(p.layout, token) * p.stride + column);
  }
  store(static_cast<T*>(p.to) + index, v);
}

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) scatter_kernel(Rows p) {
  const int64_t index = thread_index();
  const int64_t token = index / p.columns, column = index % p.columns;
  if (token >= count_tokens(p.layout)) return;
  store(static_cast<T*>(p.to) + row_of(p.layout, token) * p.columns + column,
        load(static_cast<const T*>(p.from) + index));
}

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) previous_kernel(Rows p) {
  const DeviceLayout& l = p.layout;
  const int64_t index = thread_index();
  if (index >= l.num_tokens * p.columns) return;
  const int64_t place = index / p.columns, column = index % p.columns;
  T v = from_compute<T>(0);
  int64_t token = place;  // behind the N-th, where zeros go
  if (place < count_tokens(l)) {
    token = token_of(l, p.direction, place);
    const int64_t step = step_of(l, place), segment = place - load(l.first_token + step);
    if (step > 0) {
      const int64_t before = token_of(l, p.direction, load(l.first_token + step - 1) + segment);
      v = load(static_cast<const T*>(p.from) + row_of(l, before) * p.stride + column);
    } else {
      const int64_t row = initial_row_of(l, segment);
      if (row >= 0 && p.h_0 != nullptr) {
        v = load(static_cast<const T*>(p.h_0) + row * p.columns + column);
      }
    }
  }
  store(static_cast<T*>(p.to) + token * p.columns + column, v);
}

struct Hidden {
  DeviceLayout layout;
  int direction;
  int64_t hidden_size;
  const void* gates;
  const void* cells;
  void* to;
};

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) hidden_kernel(Hidden p) {
  using C = compute_t<T>;
  const int64_t H = p.hidden_size, index = thread_index();
  if (index >= p.layout.num_tokens * H) return;
  const int64_t place = index / H, column = index % H;
  C h = 0;
  int64_t token = place;
  if (place < count_tokens(p.layout)) {
    token = token_of(p.layout, p.direction, place);
    h = value<C>(p.gates, (place * 4 + 3) * H + column) * simt::tanh(value<C>(p.cells, index));
  }
  put<T>(p.to, token * H + column, h);
}

struct Biases {
  const void* bias_ih;
  const void* bias_hh;
  int64_t count, both;
  void* to;
};

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) biases_kernel(Biases p) {
  const int64_t index = thread_index();
  if (index >= p.count) return;
  compute_t<T> sum = value<T>(p.bias_ih, index);
  if (index < p.both) sum += value<T>(p.bias_hh, index);
  put<T>(p.to, index, sum);
}

struct FinalRows {
  const int64_t* final_segment;
  int64_t num_rows, num_segments;
  int64_t* final_row;
};

VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) final_rows_kernel(FinalRows p) {
  const int64_t row = thread_index();
  if (row >= p.num_rows) return;
  const int64_t segment = checked(simt::load(p.final_segment + row), -1, p.num_segments,
                                  "varlen_rnn: final_segment must be in [-1, G)");
  if (segment >= 0) store(p.final_row + segment, row);
}

struct States {
  DeviceLayout layout;
  int64_t num_directions, columns;
  void* to;
};

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) zero_final_kernel(States p) {
  const DeviceLayout& l = p.layout;
  const int64_t index = thread_index();
  const int64_t segment = index / p.columns, column = index % p.columns;
  check_batch_sizes(l, index, int64_t{simt::num_blocks()} * kThreads);
  if (segment >= batch_size(l, 0)) return;
  const int64_t row = final_row_of(l, segment);
  if (row < 0) return;
  for (int64_t d = 0; d < p.num_directions; ++d) {
    store(static_cast<T*>(p.to) + (d * l.num_rows + row) * p.columns + column, from_compute<T>(0));
  }
}

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) zero_surplus_kernel(Rows p) {
  const int64_t first = count_tokens(p.layout) * p.columns, end = p.layout.num_tokens * p.columns;
  const int64_t stride = int64_t{simt::num_blocks()} * kThreads;
  for (int64_t index = first + thread_index(); index < end; index += stride) {
    store(static_cast<T*>(p.to) + index, from_compute<T>(0));
  }
}

}  // namespace

void gather_tokens(Dtype dtype, const DeviceLayout& layout, const void* from, int64_t stride,
                   int64_t columns, void* to, void* stream) {
  for_dtype(dtype, [&](auto zero) {
    launch_values(layout.num_tokens * columns, &gather_kernel<decltype(zero)>,
                  Rows{layout, 0, from, nullptr, stride, columns, to}, stream);
  });
}

void scatter_tokens(Dtype dtype, const DeviceLayout& layout, const void* from, int64_t columns,
                    void* to, void* stream) {
  for_dtype(dtype, [&](auto zero) {
    launch_values(layout.num_tokens * columns, &scatter_kernel<decltype(zero)>,
                  Rows{layout, 0, from, nullptr, columns, columns, to}, stream);
  });
}

void gather_previous(Dtype dtype, const DeviceLayout& layout, int direction, const void* out,
                     int64_t stride, const void* h_0, int64_t columns, void* to, void* stream) {
  for_dtype(dtype, [&](auto zero) {
    launch_values(layout.num_tokens * columns, &previous_kernel<decltype(zero)>,
                  Rows{layout, direction, out, h_0, stride, columns, to}, stream);
  });
}

void gather_hidden(Dtype dtype, const DeviceLayout& layout, int direction, int64_t hidden_size,
                   const void* gates, const void* cells, void* to, void* stream) {
  for_dtype(dtype, [&](auto zero) {
    launch_values(layout.num_tokens * hidden_size, &hidden_kernel<decltype(zero)>,
                  Hidden{layout, direction, hidden_size, gates, cells, to}, stream);
  });
}

void add_biases(Dtype dtype, const void* bias_ih, const void* bias_hh, int64_t count, int64_t both,
                void* to, void* stream) {
  for_dtype(dtype, [&](auto zero) {
    launch_values(count, &biases_kernel<decltype(zero)>, Biases{bias_ih, bias_hh, count, both, to},
                  stream);
  });
}

void find_final_rows(const int64_t* final_segment, int64_t num_rows, int64_t num_segments,
                     int64_t* final_row, void* stream) {
  launch_values(num_rows, &final_rows_kernel,
                FinalRows{final_segment, num_rows, num_segments, final_row}, stream);
}

void zero_final_rows(Dtype dtype, const DeviceLayout& layout, int64_t num_directions,
                     int64_t columns, void* states, void* stream) {
  for_dtype(dtype, [&](auto zero) {
    launch_values(layout.num_segments * columns, &zero_final_kernel<decltype(zero)>,
                  States{layout, num_directions, columns, states}, stream);
  });
}

void zero_surplus_tokens(Dtype dtype, const DeviceLayout& layout, int64_t columns, void* tokens,
                         void* stream) {
  for_dtype(dtype, [&](auto zero) {
    // Few threads: there may be nothing to do.
    launch_values(std::min(layout.num_tokens * columns, kMostSurplus),
                  &zero_surplus_kernel<decltype(zero)>,
                  Rows{layout, 0, nullptr, nullptr, columns, columns, tokens}, stream);
  });
}

}  // namespace varlen_rnn::cuda
