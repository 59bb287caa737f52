// The generic path: any dtype, any size, any architecture. The products of W_ih and W_hh are matrix
// products of torch's; here stands what lies between them, one thread for each value.
//
// Where lengths lie on the device the host does not know how many segments a step has, only how many
// it may have; threads of the others find so and leave.
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/layout.cuh"

namespace varlen_rnn::cuda {
namespace {

using simt::compute_t;
using simt::from_compute;
using simt::load;
using simt::load_fresh;
using simt::store;
using simt::to_compute;

constexpr unsigned kThreads = 256;

template <class T>
VARLEN_RNN_DEVICE compute_t<T> value(const void* from, int64_t index) {
  return to_compute(load(static_cast<const T*>(from) + index));
}
// Of memory that this kernel writes, too.
template <class T>
VARLEN_RNN_DEVICE compute_t<T> fresh_value(const void* from, int64_t index) {
  return to_compute(load_fresh(static_cast<const T*>(from) + index));
}
template <class T>
VARLEN_RNN_DEVICE void put(void* to, int64_t index, compute_t<T> v) {
  store(static_cast<T*>(to) + index, from_compute<T>(v));
}
template <class C>
VARLEN_RNN_DEVICE void put_compute(void* to, int64_t index, C v) {
  store(static_cast<C*>(to) + index, v);
}

VARLEN_RNN_DEVICE int64_t thread_index() {
  return int64_t{simt::block()} * kThreads + simt::thread();
}

// Launches one thread for each of `count` values.
template <class P>
void launch_values(int64_t count, void (*kernel)(P), const P& p, void* stream) {
  if (count == 0) return;
  const unsigned blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  simt::launch({blocks, kThreads, 0, 1, stream}, kernel, p);
}

// Calls f with a value of the dtype's storage type.
template <class F>
void for_dtype(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::kFloat32:
      return f(float{});
    case Dtype::kFloat64:
      return f(double{});
    case Dtype::kBFloat16:
      return f(simt::bf16{});
    case Dtype::kFloat16:
      return f(simt::f16{});
  }
}

// ---- rows

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

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) zero_final_kernel(Rows p) {
  const DeviceLayout& l = p.layout;
  const int64_t index = thread_index();
  const int64_t segment = index / p.columns, column = index % p.columns;
  if (segment >= batch_size(l, 0)) return;
  const int64_t row = final_row_of(l, segment);
  if (row < 0) return;
  for (int d = 0; d < p.direction; ++d) {
    store(static_cast<T*>(p.to) + (d * l.num_rows + row) * p.columns + column, from_compute<T>(0));
  }
}

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) zero_surplus_kernel(Rows p) {
  const int64_t index = thread_index();
  if (index >= p.layout.num_tokens * p.columns) return;
  if (index / p.columns < count_tokens(p.layout)) return;
  store(static_cast<T*>(p.to) + index, from_compute<T>(0));
}

// ---- forward

// Which token a thread works on, in a step of `segments` segments at most, and which of its values.
struct At {
  bool there;
  int64_t segment, column, place, token, row;
  bool first, last;  // of its segment
};

VARLEN_RNN_DEVICE At find(const DeviceLayout& l, int direction, int64_t step, int64_t columns) {
  const int64_t index = thread_index();
  At at{};
  at.segment = index / columns;
  at.column = index % columns;
  at.there = at.segment < batch_size(l, step);
  if (!at.there) return at;
  at.place = checked(load(l.first_token + step) + at.segment, 0, l.num_tokens,
                     "varlen_rnn: batch_sizes must sum to at most N");
  at.token = token_of(l, direction, at.place);
  at.row = row_of(l, at.token);
  at.first = step == 0;
  at.last = batch_size(l, step + 1) <= at.segment;
  return at;
}

struct ForwardStepParams : GenericForward {
  int64_t step;
};

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) start_kernel(ForwardStepParams p) {
  using C = compute_t<T>;
  const int64_t H = p.hidden_size, P = p.output_size, widest = H > P ? H : P;
  const int64_t index = thread_index(), segment = index / widest, column = index % widest;
  if (segment >= p.layout.num_segments) return;
  // Rows of segments that are not there begin as zeros: they take part in products.
  const bool there = segment < batch_size(p.layout, 0);
  const int64_t row = there ? initial_row_of(p.layout, segment) : -1;
  if (column < P) {
    const bool given = p.h_0 != nullptr && row >= 0;
    put<T>(p.h, segment * P + column, given ? value<T>(p.h_0, row * P + column) : C(0));
  }
  if (p.is_lstm && column < H) {
    const bool given = p.c_0 != nullptr && row >= 0;
    put_compute<C>(p.c, segment * H + column, given ? value<T>(p.c_0, row * H + column) : C(0));
  }
}

// What a step gives of h: its token's output, and the row's final state.
template <class T>
VARLEN_RNN_DEVICE void emit(const GenericForward& p, const At& at, compute_t<T> h) {
  const int64_t P = p.output_size;
  put<T>(p.out, (at.row * p.num_directions + p.direction) * P + at.column, h);
  if (!at.last) return;
  const int64_t row = final_row_of(p.layout, at.segment);
  if (row >= 0) put<T>(p.h_n, row * P + at.column, h);
}

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) lstm_step_kernel(ForwardStepParams p) {
  using C = compute_t<T>;
  const int64_t H = p.hidden_size;
  const At at = find(p.layout, p.direction, p.step, H);
  if (!at.there) return;
  C gates[4];
  for (int gate = 0; gate < 4; ++gate) {
    const int64_t row = (at.token * p.num_directions + p.direction) * 4 + gate;
    gates[gate] = value<T>(p.inputs, row * H + at.column) +
                  value<T>(p.products, (at.segment * 4 + gate) * H + at.column);
  }
  const C i = simt::sigmoid(gates[0]), f = simt::sigmoid(gates[1]);
  const C g = simt::tanh(gates[2]), o = simt::sigmoid(gates[3]);
  const int64_t state = at.segment * H + at.column;
  const C c = f * fresh_value<C>(p.c, state) + i * g;
  const C h = o * simt::tanh(c);
  put_compute<C>(p.c, state, c);
  if (p.gates != nullptr) {
    const C activated[4] = {i, f, g, o};
    for (int gate = 0; gate < 4; ++gate) {
      put_compute<C>(p.gates, (at.place * 4 + gate) * H + at.column, activated[gate]);
    }
  }
  if (p.cells != nullptr) put_compute<C>(p.cells, at.place * H + at.column, c);
  if (at.last) {
    const int64_t row = final_row_of(p.layout, at.segment);
    if (row >= 0) put<T>(p.c_n, row * H + at.column, c);
  }
  if (p.hidden != nullptr) {
    put<T>(p.hidden, state, h);
  } else {
    put<T>(p.h, state, h);
    emit<T>(p, at, h);
  }
}

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) emit_kernel(ForwardStepParams p) {
  const At at = find(p.layout, p.direction, p.step, p.output_size);
  if (at.there) emit<T>(p, at, value<T>(p.h, at.segment * p.output_size + at.column));
}

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) gru_step_kernel(ForwardStepParams p) {
  using C = compute_t<T>;
  const int64_t H = p.hidden_size;
  const At at = find(p.layout, p.direction, p.step, H);
  if (!at.there) return;
  C x[3], from_h[3];
  for (int gate = 0; gate < 3; ++gate) {
    const int64_t row = (at.token * p.num_directions + p.direction) * 3 + gate;
    x[gate] = value<T>(p.inputs, row * H + at.column);
    from_h[gate] = value<T>(p.products, (at.segment * 3 + gate) * H + at.column);
  }
  if (p.bias_hn != nullptr) from_h[2] += value<T>(p.bias_hn, at.column);
  const C r = simt::sigmoid(x[0] + from_h[0]), z = simt::sigmoid(x[1] + from_h[1]);
  const C n = simt::tanh(x[2] + r * from_h[2]);
  const int64_t state = at.segment * H + at.column;
  const C h = n + z * (fresh_value<T>(p.h, state) - n);
  put<T>(p.h, state, h);
  if (p.gates != nullptr) {
    const C saved[4] = {r, z, n, from_h[2]};
    for (int gate = 0; gate < 4; ++gate) {
      put_compute<C>(p.gates, (at.place * 4 + gate) * H + at.column, saved[gate]);
    }
  }
  emit<T>(p, at, h);
}

// ---- backward

struct BackwardStepParams : GenericBackward {
  int64_t step;
};

// The gradient of this step's h but for what a projection adds.
template <class T>
VARLEN_RNN_DEVICE compute_t<T> gradient_of_h(const GenericBackward& p, const At& at) {
  using C = compute_t<T>;
  const int64_t P = p.output_size;
  C d_h = 0;
  if (!at.last) {
    d_h = value<T>(p.products, at.segment * P + at.column);
    if (!p.is_lstm) d_h += fresh_value<C>(p.direct, at.segment * P + at.column);
  } else if (p.d_h_n != nullptr) {
    const int64_t row = final_row_of(p.layout, at.segment);
    if (row >= 0) d_h = value<T>(p.d_h_n, row * P + at.column);
  }
  if (p.d_out != nullptr) {
    d_h += value<T>(p.d_out, (at.row * p.num_directions + p.direction) * P + at.column);
  }
  return d_h;
}

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) collect_kernel(BackwardStepParams p) {
  const At at = find(p.layout, p.direction, p.step, p.output_size);
  if (!at.there) return;
  const compute_t<T> d_h = gradient_of_h<T>(p, at);
  put<T>(p.step_projected, at.segment * p.output_size + at.column, d_h);
  put<T>(p.d_projected, at.token * p.output_size + at.column, d_h);
}

template <class T>
VARLEN_RNN_DEVICE void put_gates(const GenericBackward& p, const At& at,
                                 const compute_t<T> (&d)[4]) {
  const int64_t H = p.hidden_size;
  for (int column = 0; column < 4; ++column) {
    const int64_t row = (at.token * p.num_directions + p.direction) * 4 + column;
    put<T>(p.d_gates, row * H + at.column, d[column]);
    put<T>(p.step_gates, (at.segment * 4 + column) * H + at.column, d[column]);
  }
}

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) lstm_back_kernel(BackwardStepParams p) {
  using C = compute_t<T>;
  const int64_t H = p.hidden_size;
  const At at = find(p.layout, p.direction, p.step, H);
  if (!at.there) return;
  const int64_t state = at.segment * H + at.column;
  const C d_h = p.d_hidden != nullptr ? value<T>(p.d_hidden, state) : gradient_of_h<T>(p, at);
  C gates[4];
  for (int gate = 0; gate < 4; ++gate) {
    gates[gate] = value<C>(p.gates, (at.place * 4 + gate) * H + at.column);
  }
  const C i = gates[0], f = gates[1], g = gates[2], o = gates[3];
  C before = 0;
  if (!at.first) {
    const int64_t place = load(p.layout.first_token + p.step - 1) + at.segment;
    before = value<C>(p.cells, place * H + at.column);
  } else if (p.c_0 != nullptr) {
    const int64_t row = initial_row_of(p.layout, at.segment);
    if (row >= 0) before = value<T>(p.c_0, row * H + at.column);
  }
  C d_c = 0;
  if (!at.last) {
    d_c = fresh_value<C>(p.direct, state);
  } else if (p.d_c_n != nullptr) {
    const int64_t row = final_row_of(p.layout, at.segment);
    if (row >= 0) d_c = value<T>(p.d_c_n, row * H + at.column);
  }
  if (p.d_cells != nullptr) d_c += value<C>(p.d_cells, at.place * H + at.column);
  const C tanh_c = simt::tanh(value<C>(p.cells, at.place * H + at.column));
  d_c += d_h * o * (C(1) - tanh_c * tanh_c);
  const C d[4] = {d_c * g * i * (C(1) - i), d_c * before * f * (C(1) - f), d_c * i * (C(1) - g * g),
                  d_h * tanh_c * o * (C(1) - o)};
  put_gates<T>(p, at, d);
  put_compute<C>(p.direct, state, d_c * f);
}

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) gru_back_kernel(BackwardStepParams p) {
  using C = compute_t<T>;
  const int64_t H = p.hidden_size;
  const At at = find(p.layout, p.direction, p.step, H);
  if (!at.there) return;
  const C d_h = gradient_of_h<T>(p, at);
  C gates[4];
  for (int gate = 0; gate < 4; ++gate) {
    gates[gate] = value<C>(p.gates, (at.place * 4 + gate) * H + at.column);
  }
  const C r = gates[0], z = gates[1], n = gates[2], from_h = gates[3];
  C before = 0;
  if (!at.first) {
    const int64_t place = load(p.layout.first_token + p.step - 1) + at.segment;
    const int64_t row = row_of(p.layout, token_of(p.layout, p.direction, place));
    before = value<T>(p.out, (row * p.num_directions + p.direction) * H + at.column);
  } else if (p.h_0 != nullptr) {
    const int64_t row = initial_row_of(p.layout, at.segment);
    if (row >= 0) before = value<T>(p.h_0, row * H + at.column);
  }
  const C d_n = d_h * (C(1) - z) * (C(1) - n * n);
  const C d[4] = {d_n, d_n * from_h * r * (C(1) - r), d_h * (before - n) * z * (C(1) - z), d_n * r};
  put_gates<T>(p, at, d);
  put_compute<C>(p.direct, at.segment * H + at.column, d_h * z);
}

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) finish_kernel(BackwardStepParams p) {
  using C = compute_t<T>;
  const int64_t H = p.hidden_size, P = p.output_size, widest = H > P ? H : P;
  const int64_t index = thread_index(), segment = index / widest, column = index % widest;
  if (segment >= batch_size(p.layout, 0)) return;
  const int64_t row = initial_row_of(p.layout, segment);
  if (row < 0) return;
  if (column < P) {
    C d_h = value<T>(p.products, segment * P + column);
    if (!p.is_lstm) d_h += value<C>(p.direct, segment * P + column);
    put<T>(p.d_h_0, row * P + column, d_h);
  }
  if (p.is_lstm && column < H) {
    put<T>(p.d_c_0, row * H + column, value<C>(p.direct, segment * H + column));
  }
}

}  // namespace

// ---- launchers

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

void zero_final_rows(Dtype dtype, const DeviceLayout& layout, int64_t num_directions,
                     int64_t columns, void* states, void* stream) {
  for_dtype(dtype, [&](auto zero) {
    launch_values(
        layout.num_segments * columns, &zero_final_kernel<decltype(zero)>,
        Rows{layout, static_cast<int>(num_directions), nullptr, nullptr, columns, columns, states},
        stream);
  });
}

void zero_surplus_tokens(Dtype dtype, const DeviceLayout& layout, int64_t columns, void* tokens,
                         void* stream) {
  for_dtype(dtype, [&](auto zero) {
    launch_values(layout.num_tokens * columns, &zero_surplus_kernel<decltype(zero)>,
                  Rows{layout, 0, nullptr, nullptr, columns, columns, tokens}, stream);
  });
}

void generic_start(const GenericForward& p, void* stream) {
  const int64_t widest = p.hidden_size > p.output_size ? p.hidden_size : p.output_size;
  for_dtype(p.dtype, [&](auto zero) {
    launch_values(p.layout.num_segments * widest, &start_kernel<decltype(zero)>,
                  ForwardStepParams{p, 0}, stream);
  });
}

void generic_step(const GenericForward& p, int64_t step, int64_t segments, void* stream) {
  for_dtype(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_values(segments * p.hidden_size, p.is_lstm ? &lstm_step_kernel<T> : &gru_step_kernel<T>,
                  ForwardStepParams{p, step}, stream);
  });
}

void generic_emit(const GenericForward& p, int64_t step, int64_t segments, void* stream) {
  for_dtype(p.dtype, [&](auto zero) {
    launch_values(segments * p.output_size, &emit_kernel<decltype(zero)>,
                  ForwardStepParams{p, step}, stream);
  });
}

void generic_collect(const GenericBackward& p, int64_t step, int64_t segments, void* stream) {
  for_dtype(p.dtype, [&](auto zero) {
    launch_values(segments * p.output_size, &collect_kernel<decltype(zero)>,
                  BackwardStepParams{p, step}, stream);
  });
}

void generic_back(const GenericBackward& p, int64_t step, int64_t segments, void* stream) {
  for_dtype(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_values(segments * p.hidden_size, p.is_lstm ? &lstm_back_kernel<T> : &gru_back_kernel<T>,
                  BackwardStepParams{p, step}, stream);
  });
}

void generic_finish(const GenericBackward& p, void* stream) {
  const int64_t widest = p.hidden_size > p.output_size ? p.hidden_size : p.output_size;
  for_dtype(p.dtype, [&](auto zero) {
    launch_values(p.layout.num_segments * widest, &finish_kernel<decltype(zero)>,
                  BackwardStepParams{p, 0}, stream);
  });
}

}  // namespace varlen_rnn::cuda
