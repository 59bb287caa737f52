// The persistent forward pass of either cell. A block computes the gates of its own hidden units, in
// all slots, from the whole vectors h; then the units' new h goes to every block of the team.
#pragma once

#include "cuda/worker.cuh"

namespace varlen_rnn::cuda {

// A step's values of two units.
struct ForwardStep {
  float gates[4][2], cell[2], out[2];
};

template <class E>
VARLEN_RNN_DEVICE void initial_state(const void* states, const PersistentForward& p, int direction,
                                     int32_t row, int64_t unit, float (&v)[2]) {
  v[0] = v[1] = 0.0f;
  if (states == nullptr || row < 0) return;
  E::load_pair(static_cast<const typename E::Storage*>(states) +
                   (direction * p.num_rows + row) * p.hidden_size + unit,
               v);
}

// c stays in the block's state; gates i, f, g, o.
struct LstmForward {
  static constexpr int kGates = 4;

  template <class W>
  static VARLEN_RNN_DEVICE void prepare(const W&, const PersistentForward&) {}

  template <class E>
  static VARLEN_RNN_DEVICE void step(const float (&x)[4][2], const float (&h)[4][2],
                                     Shared<float> state, Shared<const float>, ForwardStep& s) {
    VARLEN_RNN_UNROLL
    for (int e = 0; e < 2; ++e) {
      const float i = simt::fast_sigmoid(x[0][e] + h[0][e]);
      const float f = simt::fast_sigmoid(x[1][e] + h[1][e]);
      const float g = simt::fast_tanh(x[2][e] + h[2][e]);
      const float o = simt::fast_sigmoid(x[3][e] + h[3][e]);
      const float c = f * state[e] + i * g;
      s.gates[0][e] = i;
      s.gates[1][e] = f;
      s.gates[2][e] = g;
      s.gates[3][e] = o;
      s.cell[e] = state[e] = c;
      s.out[e] = E::rounded(o * simt::fast_tanh(c));
    }
  }

  // A slot begins a segment: its h, and the state.
  template <class E>
  static VARLEN_RNN_DEVICE void start(const PersistentForward& p, int direction, int32_t row,
                                      int64_t unit, Shared<float> state, float (&h)[2]) {
    float c[2];
    initial_state<E>(p.h_0, p, direction, row, unit, h);
    initial_state<E>(p.c_0, p, direction, row, unit, c);
    state[0] = c[0];
    state[1] = c[1];
  }
};

// h stays in the block's state; gates r, z, n and W_hn h + b_hn.
struct GruForward {
  static constexpr int kGates = 3;

  template <class W>
  static VARLEN_RNN_DEVICE void prepare(const W& w, const PersistentForward& p) {
    using Storage = typename W::Storage;
    const Storage* from = static_cast<const Storage*>(p.bias_hn[w.direction]);
    const Shared<float> to = w.bias();
    for (int u = static_cast<int>(simt::thread()); u < w.team.units; u += w.team.threads) {
      const bool there = from != nullptr && w.first_unit + u < p.hidden_size;
      to[u] = there ? simt::to_float(simt::load(from + w.first_unit + u)) : 0.0f;
    }
  }

  template <class E>
  static VARLEN_RNN_DEVICE void step(const float (&x)[3][2], const float (&h)[3][2],
                                     Shared<float> state, Shared<const float> bias,
                                     ForwardStep& s) {
    VARLEN_RNN_UNROLL
    for (int e = 0; e < 2; ++e) {
      const float r = simt::fast_sigmoid(x[0][e] + h[0][e]);
      const float z = simt::fast_sigmoid(x[1][e] + h[1][e]);
      const float from_h = h[2][e] + bias[e];
      const float n = simt::fast_tanh(x[2][e] + r * from_h);
      s.gates[0][e] = r;
      s.gates[1][e] = z;
      s.gates[2][e] = n;
      s.gates[3][e] = from_h;
      s.out[e] = state[e] = E::rounded(n + z * (state[e] - n));
    }
  }

  template <class E>
  static VARLEN_RNN_DEVICE void start(const PersistentForward& p, int direction, int32_t row,
                                      int64_t unit, Shared<float> state, float (&h)[2]) {
    initial_state<E>(p.h_0, p, direction, row, unit, h);
    state[0] = h[0];
    state[1] = h[1];
  }
};

// W_ih x of a step, for every slot that has a token: [gates, kSlots, units].
template <class Cell, class W>
VARLEN_RNN_DEVICE void copy_inputs(const W& w, const PersistentForward& p, int step) {
  using Storage = typename W::Storage;
  if (step >= w.num_steps) return;
  const int warps = w.team.threads / 32;
  for (int i = static_cast<int>(simt::warp()); i < Cell::kGates * kSlots; i += warps) {
    const int gate = i / kSlots, slot = i % kSlots;
    const Turn turn = w.turn(step, slot);
    if (turn.place < 0) continue;
    const int64_t row =
        (int64_t{turn.token} * p.num_directions + w.direction) * Cell::kGates + gate;
    w.copy_row(w.inputs(step) + static_cast<size_t>(i * w.team.units * W::kSize),
               static_cast<const Storage*>(p.inputs) + row * p.hidden_size, p.hidden_size);
  }
}

template <class Cell, class E, class W>
VARLEN_RNN_DEVICE void save(const W& w, const PersistentForward& p, const Turn& turn, int64_t unit,
                            const ForwardStep& s) {
  using Storage = typename E::Storage;
  const int64_t H = p.hidden_size, d = w.direction;
  E::store_pair(
      static_cast<Storage*>(p.out) + (int64_t{turn.row} * p.num_directions + d) * H + unit, s.out);
  const int64_t place = d * p.num_tokens + turn.place;
  if (p.gates != nullptr) {
    for (int gate = 0; gate < 4; ++gate) {
      store_floats(p.gates + (place * 4 + gate) * H + unit, s.gates[gate]);
    }
  }
  if (p.cells != nullptr) store_floats(p.cells + place * H + unit, s.cell);
  if (turn.ends >= 0) {
    const int64_t at = (d * p.num_rows + turn.ends) * H + unit;
    E::store_pair(static_cast<Storage*>(p.h_n) + at, s.out);
    if (p.c_n != nullptr) E::store_pair(static_cast<Storage*>(p.c_n) + at, s.cell);
  }
}

template <class Cell, class E, int kTiles, int kResident, int kMaxWarps>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kMaxWarps * 32, 1) persistent_forward(PersistentForward p) {
  using W = Worker<E, kTiles, kResident>;
  using Storage = typename E::Storage;
  W w(p, /*walk_backwards=*/false);
  const int64_t H = p.hidden_size;
  const int units = p.team.units;
  if (w.num_steps == 0) return;

  // Row `gate * units + u` of the block is that of the gate of unit first_unit + u.
  const Storage* weight_hh = static_cast<const Storage*>(p.weight_hh[w.direction]);
  w.load_weights([&](int row, int word) -> uint32_t {
    const int gate = row / units, unit = w.first_unit + row % units;
    const int64_t column = int64_t{word} * E::kPerWord;
    if (gate >= Cell::kGates || unit >= H || column >= H) return 0;
    const Storage* from = weight_hh + (gate * H + unit) * H + column;
    if constexpr (E::kPerWord == 2) {
      return simt::load(reinterpret_cast<const uint32_t*>(from));
    } else {
      return E::matrix_word(simt::load(from));
    }
  });
  Cell::prepare(w, p);
  w.load_first_turns();
  for (int step = 0; step < kInputsAhead; ++step) {
    copy_inputs<Cell>(w, p, step);
    simt::copy_async_commit();
  }
  w.init_exchange();

  // Exchange `step` brings the h that the step starts from.
  w.expect(0, H);
  w.for_pairs([&](const Pair& pair) {
    const int64_t unit = w.unit(pair);
    if (unit >= H) return;
    float h[2];
    Cell::template start<E>(p, w.direction, w.turn(0, pair.slot).starts, unit,
                            w.state() + pair.slot * units + pair.unit, h);
    w.send(0, pair.slot, unit, h);
  });

  for (int step = 0; step < w.num_steps; ++step) {
    const bool goes_on = step + 1 < w.num_steps;
    if (goes_on) w.expect(step + 1, H);
    w.wait(step);
    w.multiply(step);
    simt::copy_async_wait<kInputsAhead - 1>();
    simt::sync_block();

    w.for_pairs([&](const Pair& pair) {
      const int64_t unit = w.unit(pair);
      if (unit >= H) return;
      const Turn turn = w.turn(step, pair.slot);
      const Shared<float> state = w.state() + pair.slot * units + pair.unit;
      ForwardStep s = {};
      if (turn.place >= 0) {
        float x[Cell::kGates][2], h[Cell::kGates][2];
        VARLEN_RNN_UNROLL
        for (int gate = 0; gate < Cell::kGates; ++gate) {
          E::load_pair(simt::shared<const Storage>(w.inputs(step)),
                       (gate * kSlots + pair.slot) * units + pair.unit, x[gate]);
          w.product(pair.slot, gate * units + pair.unit, h[gate]);
        }
        Cell::template step<E>(x, h, state, w.bias() + pair.unit, s);
      }
      if (goes_on) {
        float h[2] = {s.out[0], s.out[1]};
        const int32_t starts = w.turn(step + 1, pair.slot).starts;
        if (starts != Turn::kContinues) {
          Cell::template start<E>(p, w.direction, starts, unit, state, h);
        }
        w.send(step + 1, pair.slot, unit, h);
      }
      if (turn.place >= 0) save<Cell, E>(w, p, turn, unit, s);
    });

    copy_inputs<Cell>(w, p, step + kInputsAhead);
    w.copy_turns(step + kTurnsAhead);
    simt::copy_async_commit();
  }
  // Nobody sends to this block any more: the last exchange was waited for.
}

}  // namespace varlen_rnn::cuda
