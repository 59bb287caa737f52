// The forward pass of either cell: for a chunk of steps the input's product, then step by step the
// hidden state's product with the cell fused into its epilogue. Chunks keep the input's product in
// cache, so that inference needs no [N, gates * H] buffer at all.
//
// A Cell has kGates, kUnits<T> (units of a block), has_hidden_bias(gate), and
// step<T, R, NB, training>(args, row, block) for a tile of R rows and NB blocks.
#pragma once

#include "cpu/pack-inl.h"
#include "cpu/plan-inl.h"
#include "cpu/tile-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

// One step of one part. Rows are the part's active segments; ld* are the elements from one to the
// next.
template <class T>
struct StepArgs {
  const T* h;  // [rows, P]                        in
  int64_t ldh;
  const T* w;  // [blocks][P][kGates * kUnits]     in: packed weight_hh
  int64_t output_size;
  const T* g;  // [rows, blocks * kGates * kUnits] in: the input's product and bias
  int64_t ldg;
  const T* hidden_bias;  // [blocks * kUnits]      in: b_hn of GRU
  T* c;                  // [rows, H]              in/out: cell state of LSTM
  int64_t ldc;
  T* h_next;  // [rows, H]                         out: new state, not projected
  int64_t ld_next;
  T* gates;  // [rows, 4H]                         saved
  int64_t ld_gates;
  T* cells;  // [rows, H]                          saved
  int64_t ld_cells;
  int64_t hidden_size;
};

template <class Cell, class T>
inline constexpr int kCellWidth = Cell::kGates * Cell::template kUnits<T>;

// The row of weight_ih, weight_hh or a bias that packed column c comes from, or -1 for padding.
template <class Cell, class T>
int64_t source_row(int64_t c, int64_t hidden_size) {
  constexpr int kUnits = Cell::template kUnits<T>;
  const int64_t block = c / kCellWidth<Cell, T>, j = c % kCellWidth<Cell, T>;
  const int64_t unit = block * kUnits + j % kUnits;
  return unit < hidden_size ? j / kUnits * hidden_size + unit : -1;
}

template <class T>
struct ForwardWorkspace {
  int64_t blocks;         // of units
  int64_t columns;        // blocks * kGates * kUnits
  int64_t input_blocks;   // of kProductWidth columns
  int64_t output_blocks;  // the same for the projection
  int64_t ldx, ldg, ldu, ldp;
  bool projected;
  Plan plan;
  int64_t chunk_tokens;
  T* w_ih[2];
  T* w_hh[2];
  T* w_hr[2];
  T* bias[2];
  T* hidden_bias[2];
  int64_t* counters;
  char* workers;
  size_t worker_bytes;
  char* teams;
  size_t team_bytes;

  struct Own {  // of one worker
    T *x, *g, *c;
  };
  struct Shared {  // by a team
    T *h, *h_next, *hidden;
  };

  // An even number of blocks of units is a whole number of the input product's.
  static constexpr int64_t kGrain = 2;
  // The input's product of a chunk should stay in the second-level cache.
  static constexpr int64_t kChunkBytes = 256 * 1024;

  template <class Cell>
  void arrange(const Forward& p, Arena& arena) {
    const Call& call = p.call;
    constexpr int kUnits = Cell::template kUnits<T>;
    projected = p.weights[0].weight_hr != nullptr;
    blocks = ceil_div(call.hidden_size, kUnits);
    columns = blocks * kCellWidth<Cell, T>;
    input_blocks = ceil_div(columns, kProductWidth<T>);
    output_blocks = ceil_div(call.output_size, kProductWidth<T>);
    ldx = leading<T>(call.input_size);
    ldg = leading<T>(input_blocks * kProductWidth<T>);
    ldu = leading<T>(blocks * kUnits);
    ldp = projected ? leading<T>(output_blocks * kProductWidth<T>) : ldu;
    plan = make_plan(call, {blocks, kGrain, kCellWidth<Cell, T> / kLanes<T>, call.input_size,
                            call.output_size, !projected});
    chunk_tokens = kChunkBytes / (ldg * static_cast<int64_t>(sizeof(T)));
    if (chunk_tokens < plan.max_rows) chunk_tokens = plan.max_rows;
    if (chunk_tokens > call.layout.num_tokens) chunk_tokens = call.layout.num_tokens;
    for (int64_t d = 0; d < call.num_directions; ++d) {
      w_ih[d] = arena.take<T>(input_blocks * kProductWidth<T> * call.input_size);
      w_hh[d] = arena.take<T>(columns * call.output_size);
      w_hr[d] = arena.take<T>(projected ? output_blocks * kProductWidth<T> * call.hidden_size : 0);
      bias[d] = arena.take<T>(input_blocks * kProductWidth<T>);
      hidden_bias[d] = arena.take<T>(blocks * kUnits);
    }
    counters = arena.take<int64_t>(call.num_workers * 8);
    Arena worker(nullptr), team(nullptr);
    own(worker);
    shared(team);
    worker_bytes = worker.used();
    team_bytes = team.used();
    workers = arena.take<char>(call.num_workers * static_cast<int64_t>(worker_bytes));
    teams = arena.take<char>(call.num_workers / plan.team_size * static_cast<int64_t>(team_bytes));
  }

  Own own(Arena& arena) const {
    Own own;
    own.x = arena.take<T>(chunk_tokens * ldx);
    own.g = arena.take<T>(chunk_tokens * ldg);
    own.c = arena.take<T>(plan.max_rows * ldu);
    return own;
  }

  Shared shared(Arena& arena) const {
    Shared shared;
    shared.h = arena.take<T>(plan.max_rows * ldp);
    shared.h_next = arena.take<T>(plan.max_rows * ldp);
    shared.hidden = arena.take<T>(projected ? plan.max_rows * ldu : 0);
    return shared;
  }
};

template <class Cell, class T>
void pack_forward(const Forward& p, const ForwardWorkspace<T>& space) {
  const Call& call = p.call;
  const Dtype dtype = call.dtype;
  const int64_t H = call.hidden_size, P = call.output_size, I = call.input_size;
  const int64_t hr_blocks = space.projected ? space.output_blocks : 0;
  const int64_t per_direction = space.input_blocks + space.blocks + hr_blocks;
  in_parallel(call, call.num_directions * per_direction, [&](int64_t i) {
    const int64_t d = i / per_direction;
    const Weights& weights = p.weights[d];
    constexpr int kWidth = kProductWidth<T>;
    constexpr int kCell = kCellWidth<Cell, T>;
    const auto gate_column = [H](int64_t c) { return source_row<Cell, T>(c, H); };
    int64_t b = i % per_direction;
    if (b < space.input_blocks) {
      pack_rows_as_columns(space.w_ih[d] + b * I * kWidth, I, kWidth, b * kWidth, weights.weight_ih,
                           dtype, gate_column);
      for (int64_t c = b * kWidth; c < (b + 1) * kWidth; ++c) {
        const int64_t row = gate_column(c);
        T value{0};
        if (row >= 0 && weights.bias_ih != nullptr) {
          value = load_one<T>(weights.bias_ih, dtype, row);
          if (!Cell::has_hidden_bias(row / H)) value += load_one<T>(weights.bias_hh, dtype, row);
        }
        space.bias[d][c] = value;
      }
      return;
    }
    b -= space.input_blocks;
    if (b < space.blocks) {
      pack_rows_as_columns(space.w_hh[d] + b * P * kCell, P, kCell, b * kCell, weights.weight_hh,
                           dtype, gate_column);
      constexpr int kUnits = Cell::template kUnits<T>;
      for (int64_t u = b * kUnits; u < (b + 1) * kUnits; ++u) {
        const bool present = u < H && weights.bias_hh != nullptr && Cell::has_hidden_bias(2);
        space.hidden_bias[d][u] = present ? load_one<T>(weights.bias_hh, dtype, 2 * H + u) : T{0};
      }
      return;
    }
    b -= space.blocks;
    pack_rows_as_columns(space.w_hr[d] + b * H * kWidth, H, kWidth, b * kWidth, weights.weight_hr,
                         dtype, [P](int64_t c) { return c < P ? c : -1; });
  });
}

// One part, or of a part the units that this thread of the team takes.
template <class Cell, class T, bool training>
void forward_part(const Forward& p, const ForwardWorkspace<T>& space, int64_t worker,
                  int64_t team_index, Team& team, const Part& part) {
  const Call& call = p.call;
  const Dtype dtype = call.dtype;
  const int64_t H = call.hidden_size, P = call.output_size, I = call.input_size;
  const int64_t d = part.direction, first_state = d * call.layout.num_rows;
  Arena own_arena(space.workers + worker * static_cast<int64_t>(space.worker_bytes));
  Arena shared_arena(space.teams + team_index * static_cast<int64_t>(space.team_bytes));
  const typename ForwardWorkspace<T>::Own own = space.own(own_arena);
  typename ForwardWorkspace<T>::Shared shared = space.shared(shared_arena);

  constexpr int kVectors = kCellWidth<Cell, T> / kLanes<T>;
  constexpr int kUnits = Cell::template kUnits<T>;
  const Range blocks = team.share(space.blocks, space.kGrain);
  const Range units = {blocks.begin * kUnits, blocks.end * kUnits < H ? blocks.end * kUnits : H};
  const Range inputs = {blocks.begin * kVectors / kProductVectors,
                        ceil_div(blocks.end * kVectors, kProductVectors)};
  const Range outputs = space.projected ? Range{0, P} : units;
  const int64_t num_units = units.end - units.begin, num_outputs = outputs.end - outputs.begin;

  for (int64_t i = 0; i < part.active(0); ++i) {
    const int64_t row = call.layout.initial_row[part.segment(i)];
    const int64_t state = first_state + row;
    load_row_or_zeros(shared.h + i * space.ldp + outputs.begin, row < 0 ? nullptr : p.h_0, dtype,
                      state * P + outputs.begin, num_outputs);
    if (p.c_n != nullptr) {
      load_row_or_zeros(own.c + i * space.ldu + units.begin, row < 0 ? nullptr : p.c_0, dtype,
                        state * H + units.begin, num_units);
    }
  }
  team.wait();

  int64_t chunk_end = 0, g_row = 0;
  for (int64_t s = 0; part.active(s) > 0; ++s) {
    const int64_t active = part.active(s), staying = part.active(s + 1);
    if (s == chunk_end) {
      int64_t tokens = 0;
      while (part.active(chunk_end) > 0 && tokens + part.active(chunk_end) <= space.chunk_tokens) {
        for (int64_t i = 0; i < part.active(chunk_end); ++i, ++tokens) {
          const void* row = at(p.x, dtype, part.row(chunk_end, i) * p.x_stride);
          load_row(own.x + tokens * space.ldx, row, dtype, I);
        }
        ++chunk_end;
      }
      const int64_t column = inputs.begin * kProductWidth<T>;
      product<T>(own.x, space.ldx, tokens, space.w_ih[d] + column * I, I, inputs.end - inputs.begin,
                 {space.bias[d] + column, 0}, own.g + column, space.ldg);
      g_row = 0;
    }

    StepArgs<T> step{};
    step.h = shared.h;
    step.ldh = space.ldp;
    step.w = space.w_hh[d];
    step.output_size = P;
    step.g = own.g + g_row * space.ldg;
    step.ldg = space.ldg;
    step.hidden_bias = space.hidden_bias[d];
    step.c = own.c;
    step.ldc = space.ldu;
    step.h_next = space.projected ? shared.hidden : shared.h_next;
    step.ld_next = space.projected ? space.ldu : space.ldp;
    step.hidden_size = H;
    if (training) {
      const int64_t place = d * call.layout.num_places + part.place(s, 0);
      step.gates = static_cast<T*>(p.gates) + place * 4 * H;
      step.ld_gates = part.stride * 4 * H;
      if (p.cells != nullptr) step.cells = static_cast<T*>(p.cells) + place * H;
      step.ld_cells = part.stride * H;
    }
    for_each_tile<kVectors>(
        active, blocks.end - blocks.begin, [&](int64_t r, auto R, int64_t b, auto NB) {
          Cell::template step<T, decltype(R)::kValue, decltype(NB)::kValue, training>(
              step, r, blocks.begin + b);
        });
    if (space.projected) {
      product<T>(shared.hidden, space.ldu, active, space.w_hr[d], H, space.output_blocks,
                 {nullptr, 0}, shared.h_next, space.ldp);
    }

    for (int64_t i = 0; i < active; ++i) {
      T* h = shared.h_next + i * space.ldp + outputs.begin;
      const int64_t index = (part.row(s, i) * call.num_directions + d) * P + outputs.begin;
      store_row(at(p.out, dtype, index), h, dtype, num_outputs);
      if (element_size(dtype) == 2) {
        load_row(h, at(p.out, dtype, index), dtype, num_outputs);  // the state is what was stored
      }
    }
    for (int64_t i = staying; i < active; ++i) {
      const int64_t row = call.layout.final_row[part.segment(i)];
      if (row < 0) continue;
      const int64_t state = first_state + row;
      store_row(at(p.h_n, dtype, state * P + outputs.begin),
                shared.h_next + i * space.ldp + outputs.begin, dtype, num_outputs);
      if (p.c_n != nullptr) {
        store_row(at(p.c_n, dtype, state * H + units.begin), own.c + i * space.ldu + units.begin,
                  dtype, num_units);
      }
    }
    g_row += active;
    T* h = shared.h;
    shared.h = shared.h_next;
    shared.h_next = h;
    team.wait();
  }
}

template <class Cell, class T>
size_t forward_scratch(const Forward& p) {
  ForwardWorkspace<T> space;
  Arena arena(nullptr);
  space.template arrange<Cell>(p, arena);
  return arena.used();
}

template <class Cell, class T>
void forward(const Forward& p) {
  ForwardWorkspace<T> space;
  Arena arena(p.call.scratch);
  space.template arrange<Cell>(p, arena);
  pack_forward<Cell>(p, space);
  for_each_part(p.call, space.plan, space.counters,
                [&](int64_t worker, int64_t team_index, Team& team, const Part& part) {
                  if (p.gates != nullptr) {
                    forward_part<Cell, T, true>(p, space, worker, team_index, team, part);
                  } else {
                    forward_part<Cell, T, false>(p, space, worker, team_index, team, part);
                  }
                });
}

}  // namespace varlen_rnn::VARLEN_RNN_ISA
