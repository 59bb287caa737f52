// The generic path's forward steps: what lies between torch's products of W_hh.
#include "cuda/generic.cuh"

namespace varlen_rnn::cuda {
namespace {

using ForwardStep = StepParams<GenericForward>;

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) start_kernel(ForwardStep p) {
  using C = compute_t<T>;
  const int64_t H = p.hidden_size, P = p.output_size, widest = H > P ? H : P;
  const DeviceLayout& l = p.layout;
  const int64_t index = thread_index(), state = index / widest, column = index % widest;
  if (state >= p.num_directions * l.num_segments) return;
  const int direction = state >= l.num_segments ? 1 : 0;
  const int64_t segment = state - direction * l.num_segments;
  // Rows of segments that are not there begin as zeros: they take part in products.
  const bool there = segment < batch_size(l, 0);
  const int64_t row = there ? initial_row_of(l, segment) : -1;
  if (column < P) {
    put<T>(p.h, state * P + column, state_value<T>(l, p.h_0, direction, row, P, column));
  }
  if (p.is_lstm && column < H) {
    put_compute<C>(p.c, state * H + column, state_value<T>(l, p.c_0, direction, row, H, column));
  }
}

// What a step gives of h: its token's output, and the row's final state.
template <class T>
VARLEN_RNN_DEVICE void emit(const GenericForward& p, const At& at, compute_t<T> h) {
  const int64_t P = p.output_size;
  put<T>(p.out, (at.row * p.num_directions + at.direction) * P + at.column, h);
  if (!at.last) return;
  const int64_t row = final_row_of(p.layout, at.segment);
  if (row >= 0) put<T>(p.h_n, (at.direction * p.layout.num_rows + row) * P + at.column, h);
}

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) lstm_step_kernel(ForwardStep p) {
  using C = compute_t<T>;
  const int64_t H = p.hidden_size;
  const At at = find(p, H);
  if (!at.there) return;
  C gates[4];
  for (int gate = 0; gate < 4; ++gate) {
    const int64_t row = (at.token * p.num_directions + at.direction) * 4 + gate;
    gates[gate] = value<T>(p.inputs, row * H + at.column) +
                  value<T>(p.products, (at.state * 4 + gate) * H + at.column);
  }
  const C i = simt::sigmoid(gates[0]), f = simt::sigmoid(gates[1]);
  const C g = simt::tanh(gates[2]), o = simt::sigmoid(gates[3]);
  const int64_t state = at.state * H + at.column;
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
    if (row >= 0) put<T>(p.c_n, (at.direction * p.layout.num_rows + row) * H + at.column, c);
  }
  if (p.hidden != nullptr) {
    put<T>(p.hidden, state, h);
  } else {
    put<T>(p.h, state, h);
    emit<T>(p, at, h);
  }
}

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) emit_kernel(ForwardStep p) {
  const At at = find(p, p.output_size);
  if (at.there) emit<T>(p, at, value<T>(p.h, at.state * p.output_size + at.column));
}

template <class T>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) gru_step_kernel(ForwardStep p) {
  using C = compute_t<T>;
  const int64_t H = p.hidden_size;
  const At at = find(p, H);
  if (!at.there) return;
  C x[3], from_h[3];
  for (int gate = 0; gate < 3; ++gate) {
    const int64_t row = (at.token * p.num_directions + at.direction) * 3 + gate;
    x[gate] = value<T>(p.inputs, row * H + at.column);
    from_h[gate] = value<T>(p.products, (at.state * 3 + gate) * H + at.column);
  }
  const void* bias_hn = at.direction == 0 ? p.bias_hn[0] : p.bias_hn[1];
  if (bias_hn != nullptr) from_h[2] += value<T>(bias_hn, at.column);
  const C r = simt::sigmoid(x[0] + from_h[0]), z = simt::sigmoid(x[1] + from_h[1]);
  const C n = simt::tanh(x[2] + r * from_h[2]);
  const int64_t state = at.state * H + at.column;
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

}  // namespace

void generic_start(const GenericForward& p, void* stream) {
  const int64_t widest = p.hidden_size > p.output_size ? p.hidden_size : p.output_size;
  for_dtype(p.dtype, [&](auto zero) {
    launch_values(p.num_directions * p.layout.num_segments * widest, &start_kernel<decltype(zero)>,
                  ForwardStep{p, 0, p.layout.num_segments}, stream);
  });
}

void generic_step(const GenericForward& p, int64_t step, int64_t segments, void* stream) {
  for_dtype(p.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_values(p.num_directions * segments * p.hidden_size,
                  p.is_lstm ? &lstm_step_kernel<T> : &gru_step_kernel<T>,
                  ForwardStep{p, step, segments}, stream);
  });
}

void generic_emit(const GenericForward& p, int64_t step, int64_t segments, void* stream) {
  for_dtype(p.dtype, [&](auto zero) {
    launch_values(p.num_directions * segments * p.output_size, &emit_kernel<decltype(zero)>,
                  ForwardStep{p, step, segments}, stream);
  });
}

}  // namespace varlen_rnn::cuda
