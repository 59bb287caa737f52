// The plan of the persistent kernels: which slot of which team takes which segment, and when.
//
// Segments come sorted, longest first. They are dealt out to the slots back and forth (0, 1, .., n - 1,
// n - 1, .., 1, 0, 0, ..), and a slot runs its segments one after the other: its chain. Two chains
// never differ by more than the longest segment, so a chain has at most N / slots + S steps. In every
// step of a team some slot has a token, so all teams together have at most N. Arrays of these sizes
// hold any plan without the host knowing a length.
#include "cuda/kernels.h"
#include "cuda/launch.cuh"
#include "cuda/layout.cuh"

namespace varlen_rnn::cuda {
namespace {

using simt::load;
using simt::load_fresh;
using simt::store;

constexpr unsigned kThreads = 256;
constexpr unsigned kMostThreads = 1024;  // of a block
constexpr unsigned kIdleThreads = 32;    // that write one slot's idle turns

// The slot that takes a segment, and in which round. Slots are numbered across the teams, so that few
// segments spread over many teams.
VARLEN_RNN_DEVICE int64_t slot_of(int64_t segment, int64_t num_slots) {
  const int64_t round = segment / num_slots, at = segment % num_slots;
  //~ back and forth
  return round % 2 == 0 ? at : num_slots - 1 - at;
}

VARLEN_RNN_DEVICE int32_t steps_of_team(const Plan& p, int team) {
  int32_t steps = 0;
  for (int lane = 0; lane < kSlots; ++lane) {
    const int32_t load_of_slot = load_fresh(p.load + lane * p.num_teams + team);
    //~ longest slot
    if (load_of_slot > steps) steps = load_of_slot;
  }
  return steps;
}

// Where each segment begins in its chain, how long each chain is, and where each team's steps lie
// among all. One block: the teams' sums need every chain.
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kMostThreads, 1) lay_chains(Plan p) {
  const int index = static_cast<int>(simt::thread()),
            stride = static_cast<int>(simt::num_threads());
  const int num_slots = p.num_teams * kSlots;
  const int64_t num_segments = batch_size(p.layout, 0);
  for (int slot = index; slot < num_slots; slot += stride) {
    int64_t steps = 0;
    for (int64_t round = 0; round * num_slots < num_segments; ++round) {
      const int64_t segment = round * num_slots + (round % 2 == 0 ? slot : num_slots - 1 - slot);
      if (segment >= num_segments) continue;
      store(p.chain_start + segment, static_cast<int32_t>(steps));
      steps += length_of(p.layout, segment);
    }
    store(p.load + slot, static_cast<int32_t>(checked(steps, 0, p.capacity + 1,
                                                      "varlen_rnn: a chain beyond its capacity")));
  }
  simt::sync_block();
  const simt::Shared<int32_t> steps = simt::shared<int32_t>(0);
  for (int team = index; team < p.num_teams; team += stride) steps[team] = steps_of_team(p, team);
  simt::sync_block();
  for (int team = index; team <= p.num_teams; team += stride) {
    int64_t first_step = 0;
    //~ earlier teams
    for (int earlier = 0; earlier < team; ++earlier) first_step += steps[earlier];
    store(p.first_step + team,
          static_cast<int32_t>(checked(first_step, 0, p.capacity + 1,
                                       "varlen_rnn: more steps than the turns' capacity")));
  }
}

VARLEN_RNN_DEVICE Turn* turn_of(const Plan& p, int direction, int64_t slot, int64_t step) {
  const int64_t team = slot % p.num_teams, lane = slot / p.num_teams;
  const int64_t at = checked(load(p.first_step + team) + step, 0, p.capacity,
                             "varlen_rnn: batch_sizes must not increase");
  return p.turns + (int64_t{direction} * p.capacity + at) * kSlots + lane;
}

VARLEN_RNN_DEVICE void store_turn(Turn* to, const Turn& turn) {
  simt::Words4 half;
  half.w[0] = static_cast<uint32_t>(turn.place);
  half.w[1] = static_cast<uint32_t>(turn.token);
  half.w[2] = static_cast<uint32_t>(turn.row);
  half.w[3] = static_cast<uint32_t>(turn.starts);
  store(reinterpret_cast<simt::Words4*>(to), half);
  half = {{static_cast<uint32_t>(turn.ends), 0, 0, 0}};
  store(reinterpret_cast<simt::Words4*>(to) + 1, half);
}

// Every token's turn, and the turns of slots that are idle while others of their team go on.
VARLEN_RNN_KERNEL VARLEN_RNN_BOUNDS(kThreads, 1) deal_turns(Plan p) {
  const DeviceLayout& l = p.layout;
  const int64_t num_slots = int64_t{p.num_teams} * kSlots, num_tokens = count_tokens(l);
  const int64_t index = int64_t{simt::block()} * kThreads + simt::thread();
  const int64_t stride = int64_t{simt::num_blocks()} * kThreads;

  for (int64_t place = index; place < num_tokens; place += stride) {
    const int64_t step = step_of(l, place), segment = place - load(l.first_token + step);
    checked(segment, 0, batch_size(l, 0), "varlen_rnn: batch_sizes must not increase");
    const int64_t slot = slot_of(segment, num_slots);
    Turn turn{};
    turn.place = static_cast<int32_t>(place);
    turn.starts = Turn::kContinues;
    turn.ends = Turn::kContinues;
    if (step == 0) turn.starts = static_cast<int32_t>(initial_row_of(l, segment));
    //~ last step
    if (batch_size(l, step + 1) <= segment) {
      turn.ends = static_cast<int32_t>(final_row_of(l, segment));
    }
    for (int direction = 0; direction < p.num_directions; ++direction) {
      const int64_t token = token_of(l, direction, place);
      turn.token = static_cast<int32_t>(token);
      turn.row = static_cast<int32_t>(row_of(l, token));
      store_turn(turn_of(p, direction, slot, load(p.chain_start + segment) + step), turn);
    }
  }

  Turn idle{};
  idle.place = -1;
  idle.starts = Turn::kNowhere;
  idle.ends = Turn::kContinues;
  for (int64_t slot = index / kIdleThreads; slot < num_slots; slot += stride / kIdleThreads) {
    const int32_t* range = p.first_step + slot % p.num_teams;
    const int64_t num_steps = load(range + 1) - load(range);
    for (int64_t step = load(p.load + slot) + index % kIdleThreads; step < num_steps;
         step += kIdleThreads) {
      for (int direction = 0; direction < p.num_directions; ++direction) {
        //~ idle turn
        store_turn(turn_of(p, direction, slot, step), idle);
      }
    }
  }
}

}  // namespace

void make_plan(const Plan& p, void* stream) {
  const unsigned teams = static_cast<unsigned>(p.num_teams), slots = teams * kSlots;
  const unsigned threads = slots < kMostThreads ? (slots + 31) / 32 * 32 : kMostThreads;
  simt::launch({1, threads, teams * sizeof(int32_t), 1, stream}, &lay_chains, p);
  const int64_t work = p.layout.num_tokens + int64_t{slots} * kIdleThreads;
  const unsigned blocks = static_cast<unsigned>(work / kThreads + 1);
  simt::launch({blocks < 1024 ? blocks : 1024, kThreads, 0, 1, stream}, &deal_turns, p);
}

}  // namespace varlen_rnn::cuda
