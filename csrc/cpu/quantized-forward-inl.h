// The forward pass of a layer with int8 weights: a chunk's input product, then step by step the
// product of the hidden state and the cell. The cell is a template parameter, as quantized.cpp has
// them.
#pragma once

#include "cpu/plan-inl.h"
#include "cpu/quantized-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

struct QuantizedWorkspace {
  int64_t groups, columns;      // U, and all columns of them
  int64_t input_ld, hidden_ld;  // of quantised rows
  int64_t g_ld, units_ld;       // of floats
  float input_max, hidden_max;  // of quantised activations
  Plan plan;
  int64_t chunk_tokens;
  int64_t* counters;
  char* workers;
  size_t worker_bytes;
  char* teams;
  size_t team_bytes;

  struct Own {   // of one worker
    int16_t* x;  // [chunk_tokens, input_ld]
    float* x_scale;
    float* from_x;  // [chunk_tokens, g_ld]     the input's product
    int16_t* h;     // [max_rows, hidden_ld]
    float* h_scale;
    float* from_h;  // [max_rows, a group's columns]
    float* c;       // [max_rows, units_ld]
  };
  struct Shared {       // by a team
    float *h, *h_next;  // [max_rows, units_ld]
  };

  // The input's product of a chunk should stay in the second-level cache.
  static constexpr int64_t kChunkBytes = 256 * 1024;

  void arrange(const QuantizedForward& p, int64_t gates, Arena& arena) {
    const Call& call = p.call;
    const int64_t H = call.hidden_size, I = call.input_size;
    groups = ceil_div(H, kGroup);
    columns = gates * kGroup;
    input_ld = leading<int16_t>(ceil_div(I, kGroup) * kGroup);
    hidden_ld = leading<int16_t>(ceil_div(H, kGroup) * kGroup);
    g_ld = leading<float>(groups * columns);
    units_ld = leading<float>(groups * kGroup);
    input_max = static_cast<float>(quantized_activation_max(I));
    hidden_max = static_cast<float>(quantized_activation_max(H));
    // Widening included, as many multiply-adds a cycle as of floats: so the model for floats holds.
    plan = make_plan(call, {groups, 1, gates * kGroupVectors, I, H, true});
    chunk_tokens = kChunkBytes / (g_ld * static_cast<int64_t>(sizeof(float)));
    if (chunk_tokens < plan.max_rows) chunk_tokens = plan.max_rows;
    if (chunk_tokens > call.layout.num_tokens) chunk_tokens = call.layout.num_tokens;
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
    own.x = arena.take<int16_t>(chunk_tokens * input_ld);
    own.x_scale = arena.take<float>(chunk_tokens);
    own.from_x = arena.take<float>(chunk_tokens * g_ld);
    own.h = arena.take<int16_t>(plan.max_rows * hidden_ld);
    own.h_scale = arena.take<float>(plan.max_rows);
    own.from_h = arena.take<float>(plan.max_rows * columns);
    own.c = arena.take<float>(plan.max_rows * units_ld);
    return own;
  }

  Shared shared(Arena& arena) const {
    Shared shared;
    shared.h = arena.take<float>(plan.max_rows * units_ld);
    shared.h_next = arena.take<float>(plan.max_rows * units_ld);
    return shared;
  }
};

// One part, or of a part the units that this thread of the team takes.
template <class Cell>
void quantized_part(const QuantizedForward& p, const QuantizedWorkspace& space, int64_t worker,
                    int64_t team_index, Team& team, const Part& part) {
  const Call& call = p.call;
  const int64_t H = call.hidden_size, I = call.input_size;
  const int64_t d = part.direction, D = call.num_directions;
  const int64_t first_state = d * call.layout.num_rows;
  Arena own_arena(space.workers + worker * static_cast<int64_t>(space.worker_bytes));
  Arena shared_arena(space.teams + team_index * static_cast<int64_t>(space.team_bytes));
  const QuantizedWorkspace::Own own = space.own(own_arena);
  QuantizedWorkspace::Shared shared = space.shared(shared_arena);

  const Range groups = team.share(space.groups);
  const int64_t first = groups.begin * kGroup;
  const int64_t end = groups.end * kGroup < H ? groups.end * kGroup : H;
  const auto bytes = static_cast<size_t>(end - first) * sizeof(float);
  const QuantizedWeights& w = p.weights[d];
  const auto columns_of = [&](const int8_t* weights, int64_t K, const float* scale,
                              const float* bias, int64_t group) -> QuantizedColumns {
    const int64_t column = group * space.columns, pairs = ceil_div(K, 2);
    return {weights + column * 2 * pairs, pairs, scale + column, bias + column};
  };

  const int64_t padded = (groups.end - groups.begin) * kGroup;
  for (int64_t i = 0; i < part.active(0); ++i) {
    const int64_t row = call.layout.initial_row[part.segment(i)];
    const int64_t state = (first_state + row) * H + first;
    float* h = shared.h + i * space.units_ld + first;
    float* c = own.c + i * space.units_ld + first;
    std::memset(h, 0, static_cast<size_t>(padded) * sizeof(float));
    std::memset(c, 0, static_cast<size_t>(padded) * sizeof(float));
    if (row >= 0 && p.h_0 != nullptr) std::memcpy(h, p.h_0 + state, bytes);
    if (row >= 0 && p.c_0 != nullptr) std::memcpy(c, p.c_0 + state, bytes);
  }
  team.wait();

  int64_t chunk_end = 0, chunk_row = 0;
  for (int64_t s = 0; part.active(s) > 0; ++s) {
    const int64_t active = part.active(s), staying = part.active(s + 1);
    if (s == chunk_end) {
      int64_t tokens = 0;
      while (part.active(chunk_end) > 0 && tokens + part.active(chunk_end) <= space.chunk_tokens) {
        for (int64_t i = 0; i < part.active(chunk_end); ++i, ++tokens) {
          own.x_scale[tokens] =
              quantize_row(own.x + tokens * space.input_ld,
                           p.x + part.row(chunk_end, i) * p.x_stride, I, space.input_max);
        }
        ++chunk_end;
      }
      const int64_t column = groups.begin * space.columns;
      quantized_product({own.x, space.input_ld, own.x_scale}, tokens,
                        columns_of(w.weight_ih, I, w.scale_ih, w.bias_ih, groups.begin),
                        (groups.end - groups.begin) * Cell::kGates, own.from_x + column,
                        space.g_ld);
      chunk_row = 0;
    }

    // Each worker of a team for itself: this takes less time than another barrier.
    for (int64_t i = 0; i < active; ++i) {
      own.h_scale[i] = quantize_row(own.h + i * space.hidden_ld, shared.h + i * space.units_ld, H,
                                    space.hidden_max);
    }
    for (int64_t group = groups.begin; group < groups.end; ++group) {
      const QuantizedRows rows = {own.h, space.hidden_ld, own.h_scale};
      const QuantizedColumns columns = columns_of(w.weight_hh, H, w.scale_hh, w.bias_hh, group);
      // All gates in one tile where registers hold their sums: so 3 blocks are not 2 and 1.
      constexpr bool kOneTile = Cell::kGates * kSums <= kVectorRegisters / 2;
      if (kOneTile && active == 1) {
        quantized_tile<1, kOneTile ? Cell::kGates : 1>(rows, columns, own.from_h, space.columns);
      } else {
        quantized_product(rows, active, columns, Cell::kGates, own.from_h, space.columns);
      }
      for (int64_t i = 0; i < active; ++i) {
        const int64_t unit = i * space.units_ld + group * kGroup;
        const float* from_x = own.from_x + (chunk_row + i) * space.g_ld + group * space.columns;
        Cell::step(from_x, own.from_h + i * space.columns, shared.h + unit, own.c + unit,
                   shared.h_next + unit);
      }
    }

    for (int64_t i = 0; i < active; ++i) {
      const float* h = shared.h_next + i * space.units_ld + first;
      std::memcpy(p.out + (part.row(s, i) * D + d) * H + first, h, bytes);
      const int64_t row = i < staying ? -1 : call.layout.final_row[part.segment(i)];
      if (row < 0) continue;
      const int64_t state = (first_state + row) * H + first;
      std::memcpy(p.h_n + state, h, bytes);
      if (p.c_n != nullptr) std::memcpy(p.c_n + state, own.c + i * space.units_ld + first, bytes);
    }
    chunk_row += active;
    float* h = shared.h;
    shared.h = shared.h_next;
    shared.h_next = h;
    team.wait();
  }
}

template <class Cell>
size_t quantized_scratch(const QuantizedForward& p) {
  QuantizedWorkspace space;
  Arena arena(nullptr);
  space.arrange(p, Cell::kGates, arena);
  return arena.used();
}

template <class Cell>
void quantized_forward(const QuantizedForward& p) {
  QuantizedWorkspace space;
  Arena arena(p.call.scratch);
  space.arrange(p, Cell::kGates, arena);
  for_each_part(p.call, space.plan, space.counters,
                [&](int64_t worker, int64_t team_index, Team& team, const Part& part) {
                  quantized_part<Cell>(p, space, worker, team_index, team, part);
                });
}

}  // namespace varlen_rnn::VARLEN_RNN_ISA
