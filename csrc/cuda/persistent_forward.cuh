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

// c is the state; gates i, f, g, o.
struct LstmForward {
  static constexpr int kGates = 4;
  static constexpr bool kHasCells = true;
  // Chunks of a warp: its 32 rows are the gates of one.
  template <int k_parts>
  static constexpr int kTurns = 1;

  template <class E, class W>
  static VARLEN_RNN_DEVICE void load_bias(const W&, const PersistentForward&) {}

  template <class E>
  static VARLEN_RNN_DEVICE void step(const float (&x)[4][2], const float (&h)[4][2],
                                     Shared<const float>, float (&state)[2], ForwardStep& s) {
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
      s.out[e] = o * simt::fast_tanh(c);
    }
    E::round(s.out);
  }

  // A slot begins a segment: its h, and the state.
  template <class E>
  static VARLEN_RNN_DEVICE void start(const PersistentForward& p, int direction, int32_t row,
                                      int64_t unit, float (&state)[2], float (&h)[2]) {
    initial_state<E>(p.h_0, p, direction, row, unit, h);
    //~ c of a start
    initial_state<E>(p.c_0, p, direction, row, unit, state);
  }
};

// h is the state; gates r, z, n and W_hn h + b_hn.
struct GruForward {
  static constexpr int kGates = 3;
  static constexpr bool kHasCells = false;
  // A warp's 32 rows are the gates of a chunk and a third; two warps share a row's parts.
  template <int k_parts>
  static constexpr int kTurns = k_parts == 1 ? 2 : 1;

  // b_hn of the block's units; the next sync_block shows it.
  template <class E, class W>
  static VARLEN_RNN_DEVICE void load_bias(const W& w, const PersistentForward& p) {
    using Storage = typename E::Storage;
    const Storage* from = static_cast<const Storage*>(p.bias_hn[w.direction]);
    for (int u = static_cast<int>(simt::thread()); u < w.num_units; u += w.team.threads) {
      w.bias()[u] = from == nullptr ? 0.0f : simt::to_float(simt::load(from + w.first_unit + u));
    }
  }

  // bias: of these two units.
  template <class E>
  static VARLEN_RNN_DEVICE void step(const float (&x)[3][2], const float (&h)[3][2],
                                     Shared<const float> bias, float (&state)[2], ForwardStep& s) {
    float b_hn[2];
    Tf32::load_pair(bias, 0, b_hn);
    VARLEN_RNN_UNROLL
    for (int e = 0; e < 2; ++e) {
      const float r = simt::fast_sigmoid(x[0][e] + h[0][e]);
      const float z = simt::fast_sigmoid(x[1][e] + h[1][e]);
      //~ b_hn
      const float from_h = h[2][e] + b_hn[e];
      const float n = simt::fast_tanh(x[2][e] + r * from_h);
      s.gates[0][e] = r;
      s.gates[1][e] = z;
      s.gates[2][e] = n;
      s.gates[3][e] = from_h;
      s.out[e] = n + z * (state[e] - n);
    }
    E::round(s.out);
    state[0] = s.out[0];
    state[1] = s.out[1];
  }

  template <class E>
  static VARLEN_RNN_DEVICE void start(const PersistentForward& p, int direction, int32_t row,
                                      int64_t unit, float (&state)[2], float (&h)[2]) {
    initial_state<E>(p.h_0, p, direction, row, unit, h);
    //~ state of a start
    state[0] = h[0];
    state[1] = h[1];
  }
};

// W_ih x of a step, of the warp's chunks: [gates, kSlots, input_pitch]. A lane copies one gate's.
template <class Cell, int kTurns, class W>
VARLEN_RNN_DEVICE void copy_inputs(const W& w, const PersistentForward& p, int step, int ring) {
  using Storage = typename W::Storage;
  const int gate = w.quarter, H = w.hidden_size;
  if (step >= w.num_steps || gate >= Cell::kGates) return;
  const Turn turn = *w.turn(step);
  if (turn.place < 0) return;
  const Storage* from = static_cast<const Storage*>(p.inputs) +
                        int64_t{turn.token} * (p.num_directions * Cell::kGates * H) +
                        ((w.direction * Cell::kGates + gate) * H + w.first_unit);
  const int to = w.inputs(ring) + (gate * kSlots + w.slot) * w.team.input_pitch;
  w.template for_pairs<kTurns>([&](int, int unit) {
    const int chunk = unit - 2 * w.quarter;
    w.copy_chunk(to + chunk * W::kSize, from + chunk);
  });
}

template <class Cell, class E, class W>
VARLEN_RNN_DEVICE void save(const W& w, const PersistentForward& p, const Turn& turn, int unit,
                            const ForwardStep& s) {
  using Storage = typename E::Storage;
  const int H = w.hidden_size, d = w.direction;
  E::store_pair(
      static_cast<Storage*>(p.out) + int64_t{turn.row} * (p.num_directions * H) + (d * H + unit),
      s.out);
  if (p.gates != nullptr) {
    float* gates = p.gates + d * p.num_tokens * (4 * H) + int64_t{turn.place} * (4 * H) + unit;
    VARLEN_RNN_UNROLL
    for (int gate = 0; gate < 4; ++gate) store_floats(gates + gate * H, s.gates[gate]);
    if constexpr (Cell::kHasCells) {
      store_floats(p.cells + d * p.num_tokens * H + int64_t{turn.place} * H + unit, s.cell);
    }
  }
  if (turn.ends >= 0) {
    const int64_t at = d * p.num_rows * H + int64_t{turn.ends} * H + unit;
    E::store_pair(static_cast<Storage*>(p.h_n) + at, s.out);
    if constexpr (Cell::kHasCells) E::store_pair(static_cast<Storage*>(p.c_n) + at, s.cell);
  }
}

// NaN for what these steps would have computed.
template <class Cell, class E, int kTurns, class W>
VARLEN_RNN_DEVICE void abandon(const W& w, const PersistentForward& p, int step) {
  const float nan = simt::word_as_float(0x7fc00000u);
  ForwardStep s;
  for (int e = 0; e < 2; ++e) {
    for (float (&gate)[2] : s.gates) gate[e] = nan;
    s.cell[e] = s.out[e] = nan;
  }
  for (; step < w.num_steps; ++step) {
    const Turn turn = w.global_turn(step);
    w.template for_pairs<kTurns>([&](int, int unit) {
      if (turn.place >= 0) save<Cell, E>(w, p, turn, w.first_unit + unit, s);
    });
  }
}

template <class Cell, int kIndex>
constexpr int kForwardWarps = forward_warps(kForwardVariants[kIndex], Cell::kGates == 4);

template <class Cell, class E, int kIndex>
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(32 * (kForwardWarps<Cell, kIndex>), 1)
    persistent_forward(PersistentForward p) {
  constexpr Variant v = kForwardVariants[kIndex];
  constexpr int kTurns = Cell::template kTurns<v.k_parts>;
  //~ worker
  using W = Worker<E, v.tiles, v.resident, v.k_parts, v.alone>;
  using Storage = typename E::Storage;
  W w(p, /*walk_backwards=*/false);
  const int H = w.hidden_size, units = p.team.units;
  if (w.num_steps == 0) return;

  // Row `gate * units + u` of the block is that of the gate of unit first_unit + u.
  const Storage* rows[4];
  for (int r = 0; r < 4; ++r) {
    const int row = w.first_row() + 8 * r, gate = row / units, unit = row % units;
    const bool there = gate < Cell::kGates && unit < w.num_units;
    const int64_t at = there ? gate * int64_t{H} + w.first_unit + unit : 0;
    rows[r] = static_cast<const Storage*>(p.weight_hh[w.direction]) + at * H;
  }
  w.load_weights(H / E::kPerWord, [&](int word, uint32_t (&a)[4]) {
    VARLEN_RNN_UNROLL
    for (int r = 0; r < 4; ++r) {
      if constexpr (E::kPerWord == 2) {
        a[r] = simt::load(reinterpret_cast<const uint32_t*>(rows[r]) + word);
      } else {
        a[r] = E::matrix_word(simt::load(rows[r] + word));
      }
    }
  });
  Cell::template load_bias<E>(w, p);
  w.load_first_turns();
  for (int step = 0; step < kInputsAhead; ++step) {
    copy_inputs<Cell, kTurns>(w, p, step, step);
    simt::copy_async_commit();
  }
  w.init_exchange();

  // Exchange `step` brings the h that the step starts from.
  float state[kTurns][2] = {};
  w.expect(0, H);
  w.template for_pairs<kTurns>([&](int turn, int unit) {
    float h[2];
    Cell::template start<E>(p, w.direction, w.turn(0)->starts, w.first_unit + unit, state[turn], h);
    w.send(0, w.first_unit + unit, h);
  });

  Turn turn = *w.turn(0);
  int ring = 0;
  for (int step = 0; step < w.num_steps; ++step) {
    const bool goes_on = step + 1 < w.num_steps;
    //~ expected bytes
    if (goes_on) w.expect(step + 1, H);
    //~ wait
    w.wait(step);
    w.multiply(step);
    //~ inputs are there
    simt::copy_async_wait<kInputsAhead - 1>();
    //~ sums are there
    simt::sync_block();
    //~ gave up
    if (w.gave_up(step)) {
      //~ abandon
      abandon<Cell, E, kTurns>(w, p, step);
      return w.leave();
    }

    if constexpr (kForwardWarps<Cell, kIndex> > 12)
      turn = *w.turn(step);  // no registers to keep it in
    Turn next{};
    if (goes_on) next = *w.turn(step + 1);
    w.template for_pairs<kTurns>([&](int t, int unit) {
      ForwardStep s = {};
      if (turn.place >= 0) {
        float x[Cell::kGates][2], h[Cell::kGates][2];
        VARLEN_RNN_UNROLL
        for (int gate = 0; gate < Cell::kGates; ++gate) {
          const int row = w.inputs(ring) + (gate * kSlots + w.slot) * p.team.input_pitch;
          E::load_pair(simt::shared<const Storage>(static_cast<size_t>(row)), unit, x[gate]);
          w.product(gate * units + unit, h[gate]);
        }
        Cell::template step<E>(x, h, w.bias() + unit, state[t], s);
      }
      if (goes_on) {
        float h[2] = {s.out[0], s.out[1]};
        //~ next start
        if (next.starts != Turn::kContinues) {
          Cell::template start<E>(p, w.direction, next.starts, w.first_unit + unit, state[t], h);
        }
        w.send(step + 1, w.first_unit + unit, h);
      }
      if (turn.place >= 0) save<Cell, E>(w, p, turn, w.first_unit + unit, s);
    });

    //~ inputs ahead
    copy_inputs<Cell, kTurns>(w, p, step + kInputsAhead, last_in_ring(ring));
    w.copy_turns(step + kTurnsAhead);
    simt::copy_async_commit();
    turn = next;
    ring = next_in_ring(ring);
  }
  // Nobody sends to this block any more: the last exchange was waited for.
}

}  // namespace varlen_rnn::cuda
