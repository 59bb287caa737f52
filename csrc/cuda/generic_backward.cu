// The generic path's backward steps: what lies between torch's products of W_hh.
#include "cuda/generic.cuh"

namespace varlen_rnn::cuda {
namespace {

using BackwardStep = StepParams<GenericBackward>;

// The gradient of this step's h but for what a projection adds.
template <class T>
VARLEN_RNN_DEVICE compute_t<T> gradient_of_h(const GenericBackward& p, const At& at) {
  using C = compute_t<T>;
  const int64_t P = p.output_size;
  C d_h = 0;
  if (!at.last) {
    d_h = value<T>(p.products, at.state * P + at.column);
    if (!p.is_lstm) d_h += fresh_value<C>(p.direct, at.state * P + at.column);
  } else {
    d_h = state_value<T>(p.layout, p.d_h_n, at.direction, final_row_of(p.layout, at.segment), P,
                         at.column);
  }
  if (p.d_out != nullptr) {
    d_h += value<T>(p.d_out, (at.row * p.num_directions + at.direction) * P + at.column);
  }
  return d_h;
}

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) collect_kernel(BackwardStep p) {
  const At at = find(p, p.output_size);
  if (!at.there) return;
  const compute_t<T> d_h = gradient_of_h<T>(p, at);
  put<T>(p.step_projected, at.state * p.output_size + at.column, d_h);
  const int64_t token = at.direction * p.layout.num_tokens + at.token;
  put<T>(p.d_projected, token * p.output_size + at.column, d_h);
}

template <class T>
VARLEN_RNN_DEVICE void put_gates(const GenericBackward& p, const At& at,
                                 const compute_t<T> (&d)[4]) {
  const int64_t H = p.hidden_size;
  for (int column = 0; column < 4; ++column) {
    const int64_t row = (at.token * p.num_directions + at.direction) * 4 + column;
    put<T>(p.d_gates, row * H + at.column, d[column]);
    put<T>(p.step_gates, (at.state * 4 + column) * H + at.column, d[column]);
  }
}

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) lstm_back_kernel(BackwardStep p) {
  using C = compute_t<T>;
  const int64_t H = p.hidden_size;
  const At at = find(p, H);
  if (!at.there) return;
  const int64_t state = at.state * H + at.column;
  const C d_h = p.d_hidden != nullptr ? value<T>(p.d_hidden, state) : gradient_of_h<T>(p, at);
  C gates[4];
  for (int gate = 0; gate < 4; ++gate) {
    gates[gate] = value<C>(p.gates, (at.place * 4 + gate) * H + at.column);
  }
  const C i = gates[0], f = gates[1], g = gates[2], o = gates[3];
  C before = 0;
  if (!at.first) {
    const int64_t place = load(p.layout.first_token + p.step - 1) + at.segment;
    before = value<C>(p.cells, (at.direction * p.layout.num_tokens + place) * H + at.column);
  } else {
    before = state_value<T>(p.layout, p.c_0, at.direction, initial_row_of(p.layout, at.segment), H,
                            at.column);
  }
  C d_c = 0;
  if (!at.last) {
    d_c = fresh_value<C>(p.direct, state);
  } else {
    //~ d_c_n
    d_c = state_value<T>(p.layout, p.d_c_n, at.direction, final_row_of(p.layout, at.segment), H,
                         at.column);
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
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) gru_back_kernel(BackwardStep p) {
  using C = compute_t<T>;
  const int64_t H = p.hidden_size;
  const At at = find(p, H);
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
    const int64_t row = row_of(p.layout, token_of(p.layout, at.direction, place));
    before = value<T>(p.out, (row * p.num_directions + at.direction) * H + at.column);
  } else {
    before = state_value<T>(p.layout, p.h_0, at.direction, initial_row_of(p.layout, at.segment), H,
                            at.column);
  }
  const C d_n = d_h * (C(1) - z) * (C(1) - n * n);
  const C d[4] = {d_n, d_n * from_h * r * (C(1) - r), d_h * (before - n) * z * (C(1) - z), d_n * r};
  put_gates<T>(p, at, d);
  put_compute<C>(p.direct, at.state * H + at.column, d_h * z);
}

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) finish_kernel(BackwardStep p) {
  using C = compute_t<T>;
  const int64_t H = p.hidden_size, P = p.output_size, widest = H > P ? H : P;
  const DeviceLayout& l = p.layout;
  const int64_t index = thread_index(), state = index / widest, column = index % widest;
  const int direction = state >= l.num_segments ? 1 : 0;
  const int64_t segment = state - direction * l.num_segments;
  if (direction >= p.num_directions || segment >= batch_size(l, 0)) return;
  const int64_t row = initial_row_of(l, segment);
  if (row < 0) return;
  const int64_t to = direction * l.num_rows + row;
  if (column < P) {
    C d_h = value<T>(p.products, state * P + column);
    if (!p.is_lstm) d_h += value<C>(p.direct, state * P + column);
    put<T>(p.d_h_0, to * P + column, d_h);
  }
  if (p.is_lstm && column < H) {
    put<T>(p.d_c_0, to * H + column, value<C>(p.direct, state * H + column));
  }
}

}  // namespace

void generic_collect(const GenericBackward& p, int64_t step, int64_t segments, void* stream) {
  for_dtype(p.dtype, [&](auto zero) {
    launch_values(p.num_directions * segments * p.output_size, &collect_kernel<decltype(zero)>,
                  BackwardStep{p, step, segments}, stream);
  });
}

void generic_back(const GenericBackward& p, int64_t step, int64_t segments, void* stream) {
  for_dtype(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_values(p.num_directions * segments * p.hidden_size,
                  p.is_lstm ? &lstm_back_kernel<T> : &gru_back_kernel<T>,
                  BackwardStep{p, step, segments}, stream);
  });
}

void generic_finish(const GenericBackward& p, void* stream) {
  const int64_t widest = p.hidden_size > p.output_size ? p.hidden_size : p.output_size;
  for_dtype(p.dtype, [&](auto zero) {
    launch_values(p.num_directions * p.layout.num_segments * widest, &finish_kernel<decltype(zero)>,
                  BackwardStep{p, 0, p.layout.num_segments}, stream);
  });
}

}  // namespace varlen_rnn::cuda
