// How a call's work is split over its workers, by a model of what a step costs.
//
// By rows: every worker takes segments of its own and never waits for another. By units: the
// workers of a team take units of their own for all rows of a part, and meet at a barrier every
// step. Rows are better where there are enough of them; units where rows are few (B = 1 leaves all
// workers but one idle), or where the weights do not fit into one core's cache.
#pragma once

#include "cpu/team-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {

// What a step multiplies: rows times `blocks` blocks of `vectors` vectors, over `input` values that
// need no barrier and `hidden` values that do. A worker of a team takes a multiple of `grain` blocks.
struct StepSize {
  int64_t blocks, grain, vectors, input, hidden;
  bool by_units;  // whether the kernel can split units at all
};

struct Plan {
  int64_t team_size;  // workers of a part; 1 where the work is split by rows
  int64_t ways;       // of each direction's segments, a team taking every ways-th
  int64_t parts;      // of each direction: a multiple of ways
  int64_t max_rows;   // segments of the largest part

  // Consecutive parts are of different ways.
  Part part(const Layout& layout, int64_t direction, int64_t index) const {
    const int64_t first = index % ways + index / ways * max_rows * ways;
    return {layout, direction, first, ways, max_rows};
  }
};

// The model's constants, in cycles of one core.
struct Costs {
  static constexpr double kFma = 0.5;          // of one vector
  static constexpr double kNearBytes = 32;     // a cycle, weights that stay in a core's own cache
  static constexpr double kFarBytes = 12;      // a cycle, weights that come from the shared cache
  static constexpr double kNear = 512 * 1024;  // bytes of weights that stay
};

// Cycles of a step over `rows` rows and a share of all units.
inline double step_cycles(const StepSize& size, int64_t rows, double share) {
  const double blocks = static_cast<double>(size.blocks) * share;
  const double hidden = static_cast<double>(size.hidden), input = static_cast<double>(size.input);
  const double bytes = static_cast<double>(size.vectors * kVectorBytes);
  const bool near = blocks * bytes * hidden <= Costs::kNear;
  const double multiply = static_cast<double>(rows * size.vectors) * Costs::kFma;
  const double load = bytes / (near ? Costs::kNearBytes : Costs::kFarBytes);
  return blocks * (hidden * (multiply > load ? multiply : load) + input * multiply);
}

// More rows than this gain nothing: the weights' traffic is spread thin, and the state should stay
// in cache.
inline constexpr int64_t kMaxPartRows = 64;

inline Plan make_plan(const Call& call, const StepSize& size) {
  const Layout& layout = call.layout;
  const int64_t segments = layout.num_segments;
  const int64_t workers = ceil_div(call.num_workers, call.num_directions);
  Plan plan{};
  plan.team_size = call.num_workers / call.num_directions;
  if (plan.team_size > size.blocks / size.grain) plan.team_size = size.blocks / size.grain;
  if (plan.team_size > 1 && size.by_units) {
    double by_rows = 0, by_units = 0;
    for (int64_t s = 0; s < layout.num_steps; ++s) {
      const int64_t rows = layout.batch_sizes[s];
      by_rows += step_cycles(size, ceil_div(rows, workers), 1);
      by_units +=
          step_cycles(size, rows, 1 / static_cast<double>(plan.team_size)) + call.barrier_cycles;
    }
    if (by_rows <= by_units) plan.team_size = 1;
  } else {
    plan.team_size = 1;
  }
  if (segments == 0) return plan;
  const int64_t teams = plan.team_size > 1 ? 1 : workers;
  plan.ways = teams < segments ? teams : segments;
  const int64_t rows = ceil_div(segments, plan.ways);
  plan.max_rows = ceil_div(rows, ceil_div(rows, kMaxPartRows));
  plan.parts = ceil_div(rows, plan.max_rows) * plan.ways;
  return plan;
}

// Calls run(worker, team_index, team, part) for every part of every direction: once for each thread
// of the team that takes it. `counters` are a cache line for each worker. Neighbouring teams take
// different directions, so that each core needs one direction's weights.
template <class F>
void for_each_part(const Call& call, const Plan& plan, int64_t* counters, const F& run) {
  constexpr int64_t kLine = 64 / sizeof(int64_t);
  const int64_t teams = call.num_workers / plan.team_size;
  for (int64_t t = 0; t < teams; ++t) counters[t * kLine] = 0;
  struct Context {
    const Call& call;
    const Plan& plan;
    int64_t* counters;
    const F& run;
  } context = {call, plan, counters, run};
  call.parallel_for(
      teams * plan.team_size,
      [](void* pointer, int64_t begin, int64_t end) {
        const Context& context = *static_cast<Context*>(pointer);
        const Call& call = context.call;
        const int64_t size = context.plan.team_size, parts = context.plan.parts;
        const int64_t teams = call.num_workers / size, tasks = parts * call.num_directions;
        for (int64_t worker = begin; worker < end;) {
          const int64_t index = worker / size;
          const int64_t team_end = (index + 1) * size < end ? (index + 1) * size : end;
          Team team(worker - index * size, team_end - index * size, size,
                    context.counters + index * kLine);
          for (int64_t t = index; t < tasks; t += teams) {
            const int64_t direction = t % call.num_directions, part = t / call.num_directions;
            context.run(worker, index, team, context.plan.part(call.layout, direction, part));
          }
          worker = team_end;
        }
      },
      &context);
}

}  // namespace varlen_rnn::VARLEN_RNN_ISA
