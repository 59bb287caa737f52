// The forward pass of either cell: for a chunk of steps the input's product, then step by step the
// hidden state's product with the cell fused into its epilogue. Chunks keep the input's product in
// cache, so that inference needs no [N, gates * H] buffer at all.
//
// Every other step reads its weights from the end to the beginning. A cache that holds a part of them
// holds what was read last: so this part is found again, where the same order in every step would
// find nothing.
//
// A Layer says how rows are multiplied with weights, and runs cells: float-layer-inl.h,
// int8-layer-inl.h. Of a block of units it has kUnits and kWidth, all their gates' columns; workers
// of a team take a multiple of kGrain blocks. Up to kMostPieces bytes of weights are read in pieces.
#pragma once

#include "cpu/plan-inl.h"
#include "cpu/tile-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

// One step of one part. Rows are the part's active segments; ld* are the elements from one to the
// next.
template <class T>
struct StepArgs {
  const T* h;  // [rows, P]                  in
  int64_t ldh;
  const T* g;  // [rows, blocks * kWidth]    in: the input's product and bias
  int64_t ldg;
  T* c;  // [rows, H]                        in/out: cell state of LSTM
  int64_t ldc;
  T* h_next;  // [rows, H]                   out: new state, not projected
  int64_t ld_next;
  T* gates;  // [rows, 4H]                   saved
  int64_t ld_gates;
  T* cells;  // [rows, H]                    saved
  int64_t ld_cells;
  int64_t hidden_size;
};

template <class Layer>
struct ForwardWorkspace {
  using T = typename Layer::Compute;
  Layer layer;
  int64_t blocks;  // of units
  int64_t ldg, ldu, ldp;
  bool projected;
  Plan plan;
  int64_t chunk_tokens;
  int64_t* counters;
  char* workers;
  size_t worker_bytes;
  char* teams;
  size_t team_bytes;

  struct Own {  // of one worker
    typename Layer::Rows rows;
    T *g, *c;
  };
  struct Shared {  // by a team
    T *h, *h_next, *hidden;
  };

  // The input's product of a chunk should stay in the second-level cache.
  static constexpr int64_t kChunkBytes = 256 * 1024;

  void arrange(const Forward& p, Arena& arena) {
    const Call& call = p.call;
    projected = p.weights[0].weight_hr != nullptr;
    blocks = ceil_div(call.hidden_size, Layer::kUnits);
    ldg = leading<T>(blocks * Layer::kWidth);
    ldu = leading<T>(blocks * Layer::kUnits);
    ldp = projected ? leading<T>(ceil_div(call.output_size, kProductWidth<T>) * kProductWidth<T>)
                    : ldu;
    plan = make_plan(call, {blocks, Layer::kGrain, Layer::kWidth / kLanes<T>, call.input_size,
                            call.output_size, !projected});
    chunk_tokens = kChunkBytes / (ldg * static_cast<int64_t>(sizeof(T)));
    if (chunk_tokens < plan.max_rows) chunk_tokens = plan.max_rows;
    if (chunk_tokens > call.layout.num_tokens) chunk_tokens = call.layout.num_tokens;
    layer.arrange(p, blocks, arena);
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
    own.rows = layer.rows(arena, chunk_tokens, plan.max_rows);
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

// Calls f(blocks) for pieces of a range, which are small enough for a cache of some megabytes to keep
// many of them; for all at once where they fit the core's own cache, are more than `most`, or where
// rows are so many that multiplying takes longer than loading weights. `bytes` are a block's.
template <class F>
VR_INLINE void for_each_piece(Range range, int64_t rows, int64_t bytes, int64_t most,
                              bool backwards, const F& f) {
  constexpr int64_t kPiece = 2, kFewRows = 16, kNear = static_cast<int64_t>(Costs::kNear);
  const int64_t count = range.end - range.begin, all = count * bytes;
  if (rows > kFewRows || all <= kNear || all > most) return f(range);
  for (int64_t i = 0; i < count; i += kPiece) {
    const int64_t first = backwards ? (count - 1 - i) / kPiece * kPiece : i;
    const int64_t end = first + kPiece < count ? first + kPiece : count;
    f(Range{range.begin + first, range.begin + end});
  }
}

// One part, or of a part the units that this thread of the team takes.
template <class Layer>
void forward_part(const Forward& p, const ForwardWorkspace<Layer>& space, int64_t worker,
                  int64_t team_index, Team& team, const Part& part) {
  using T = typename Layer::Compute;
  const Call& call = p.call;
  const Dtype dtype = call.dtype;
  const Dtype cell_dtype = p.float_cells ? Dtype::kFloat32 : dtype;
  const Layer& layer = space.layer;
  const int64_t H = call.hidden_size, P = call.output_size;
  const int64_t d = part.direction, first_state = d * call.layout.num_rows;
  Arena own_arena(space.workers + worker * static_cast<int64_t>(space.worker_bytes));
  Arena shared_arena(space.teams + team_index * static_cast<int64_t>(space.team_bytes));
  const typename ForwardWorkspace<Layer>::Own own = space.own(own_arena);
  typename ForwardWorkspace<Layer>::Shared shared = space.shared(shared_arena);

  constexpr int kUnits = Layer::kUnits;
  const Range blocks = team.share(space.blocks, Layer::kGrain);
  const Range units = {blocks.begin * kUnits, blocks.end * kUnits < H ? blocks.end * kUnits : H};
  const Range outputs = space.projected ? Range{0, P} : units;
  const int64_t num_units = units.end - units.begin, num_outputs = outputs.end - outputs.begin;

  for (int64_t i = 0; i < part.active(0); ++i) {
    const int64_t row = call.layout.initial_row[part.segment(i)];
    const int64_t state = first_state + row;
    load_row_or_zeros(shared.h + i * space.ldp + outputs.begin, row < 0 ? nullptr : p.h_0, dtype,
                      state * P + outputs.begin, num_outputs);
    if (p.c_n != nullptr) {
      load_row_or_zeros(own.c + i * space.ldu + units.begin, row < 0 ? nullptr : p.c_0, cell_dtype,
                        state * H + units.begin, num_units);
    }
  }
  team.wait();

  const int64_t block_bytes = layer.block_bytes(layer.I + P);
  int64_t chunk_end = 0, g_row = 0;
  bool multiplies = false;  // the input, in the step itself
  for (int64_t s = 0; part.active(s) > 0; ++s) {
    const int64_t active = part.active(s), staying = part.active(s + 1);
    if (s == chunk_end) {
      int64_t tokens = 0;
      while (part.active(chunk_end) > 0 && tokens + part.active(chunk_end) <= space.chunk_tokens) {
        for (int64_t i = 0; i < part.active(chunk_end); ++i, ++tokens) {
          layer.load_token(own.rows, tokens, at(p.x, dtype, part.row(chunk_end, i) * p.x_stride));
        }
        ++chunk_end;
      }
      // Of a single step, piece by piece, below.
      if (tokens > active) layer.multiply_input(own.rows, d, tokens, blocks, own.g, space.ldg);
      multiplies = tokens == active;
      g_row = 0;
    }

    StepArgs<T> step{};
    step.h = shared.h;
    step.ldh = space.ldp;
    step.g = own.g + g_row * space.ldg;
    step.ldg = space.ldg;
    step.c = own.c;
    step.ldc = space.ldu;
    step.h_next = space.projected ? shared.hidden : shared.h_next;
    step.ld_next = space.projected ? space.ldu : space.ldp;
    step.hidden_size = H;
    if (p.gates != nullptr) {
      const int64_t place = d * call.layout.num_places + part.place(s, 0);
      step.gates = static_cast<T*>(p.gates) + place * 4 * H;
      step.ld_gates = part.stride * 4 * H;
      if (p.cells != nullptr) step.cells = static_cast<T*>(p.cells) + place * H;
      step.ld_cells = part.stride * H;
    }
    layer.begin_step(own.rows, step, active);
    for_each_piece(blocks, active, block_bytes, Layer::kMostPieces, (s + p.backwards) % 2 == 1,
                   [&](Range piece) {
                     if (multiplies)
                       layer.multiply_input(own.rows, d, active, piece, own.g, space.ldg);
                     layer.step(own.rows, d, step, active, piece);
                   });
    multiplies = false;
    if (space.projected) {
      layer.project(d, shared.hidden, space.ldu, active, shared.h_next, space.ldp);
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
        store_row(at(p.c_n, cell_dtype, state * H + units.begin),
                  own.c + i * space.ldu + units.begin, cell_dtype, num_units);
      }
    }
    g_row += active;
    T* h = shared.h;
    shared.h = shared.h_next;
    shared.h_next = h;
    team.wait();
  }
}

template <class Layer>
size_t forward_scratch(const Forward& p) {
  ForwardWorkspace<Layer> space;
  Arena arena(nullptr);
  space.arrange(p, arena);
  return arena.used();
}

template <class Layer>
void forward(const Forward& p) {
  ForwardWorkspace<Layer> space;
  Arena arena(p.call.scratch);
  space.arrange(p, arena);
  space.layer.pack(p);
  for_each_part(p.call, space.plan, space.counters,
                [&](int64_t worker, int64_t team_index, Team& team, const Part& part) {
                  forward_part(p, space, worker, team_index, team, part);
                });
}

}  // namespace varlen_rnn::VARLEN_RNN_ISA
