// What all persistent kernels do alike, seen from one thread: a block of the team keeps its part of
// the weights, multiplies it by the team's vectors (of every slot: h in the forward pass, the gates'
// gradients in the backward pass), and sends its part of the next vectors to every block.
//
// README.md has the picture. The protocol in short: exchange m fills the vectors of buffer m % 2 and
// completes a phase of mbarrier m % 2. Nobody can send exchange m + 1 before it has got all of
// exchange m, this block's part included, which this block sends only after the sync_block behind its
// products of exchange m - 1: so two buffers are enough, and no barrier of the cluster is needed.
#pragma once

#include "cuda/element.cuh"
#include "cuda/params.h"
#include "cuda/simt.cuh"
#include "cuda/team.h"

namespace varlen_rnn::cuda {

// Two neighbouring hidden units in a slot: what a thread computes at a time.
struct Pair {
  int slot, unit;  // unit: of this block
};

template <class E, int kTiles, int kResident>
struct Worker {
  using Storage = typename E::Storage;
  static constexpr int kSize = static_cast<int>(sizeof(Storage));
  static constexpr int kWords = E::kWordsOfPair;

  const Team& team;
  const Turn* const& turns;  // [D, capacity, kSlots]
  int first_step;            // of this team and direction in turns
  int num_steps;
  int direction;
  bool backwards;  // the steps are walked from the last to the first
  int first_unit;  // of this block
  uint32_t weights[kResident][2][4];

  VARLEN_RNN_DEVICE Worker(const Persistent& p, bool walk_backwards)
      : team(p.team), turns(p.turns), backwards(walk_backwards) {
    const int index = static_cast<int>(simt::cluster());
    direction = index / p.num_teams;
    const int32_t* range = p.first_step + index % p.num_teams;
    const int among_teams = simt::load(range);
    num_steps = simt::load(range + 1) - among_teams;
    first_step = direction * p.capacity + among_teams;
    first_unit = static_cast<int>(simt::cluster_rank()) * team.units;
  }

  // ---- memory

  VARLEN_RNN_DEVICE Shared<uint64_t> barrier(int exchange) const {
    return simt::shared<uint64_t>(0) + (exchange & 1);
  }
  // Of an exchange: [kSlots, pitch].
  VARLEN_RNN_DEVICE Shared<uint32_t> vectors(int exchange) const {
    return simt::shared<uint32_t>(team.vectors) + (exchange & 1) * kSlots * team.pitch;
  }
  VARLEN_RNN_DEVICE int sum_pitch() const { return 32 * team.row_groups + 4; }
  // Products, [k_parts, kSlots, sum_pitch].
  VARLEN_RNN_DEVICE Shared<float> sums() const { return simt::shared<float>(team.sums); }
  // [kSlots, units], and behind it [units].
  VARLEN_RNN_DEVICE Shared<float> state() const { return simt::shared<float>(team.state); }
  VARLEN_RNN_DEVICE Shared<float> bias() const { return state() + kSlots * team.units; }
  VARLEN_RNN_DEVICE size_t inputs(int step) const {
    return static_cast<size_t>(team.inputs + step % kInputRing * team.input_bytes);
  }
  VARLEN_RNN_DEVICE Shared<uint32_t> turn_words(int step) const {
    constexpr int kWordsOfTurn = sizeof(Turn) / 4;
    return simt::shared<uint32_t>(team.turns) + (step & (kTurnRing - 1)) * kSlots * kWordsOfTurn;
  }
  VARLEN_RNN_DEVICE Turn turn(int step, int slot) const {
    return simt::recast<const Turn>(Shared<const uint32_t>(turn_words(step)))[slot];
  }

  // ---- pairs: f(pair) for all of this thread's

  template <class F>
  VARLEN_RNN_DEVICE void for_pairs(F f) const {
    const int pairs = team.units / 2;
    for (int i = static_cast<int>(simt::thread()); i < pairs * kSlots; i += team.threads) {
      f(Pair{i / pairs, i % pairs * 2});
    }
  }
  // The pair's first unit of H.
  VARLEN_RNN_DEVICE int64_t unit(const Pair& pair) const { return first_unit + pair.unit; }

  // ---- weights

  // matrix(row, word): the block's rows in words of the element, 0 where there is nothing.
  template <class Matrix>
  VARLEN_RNN_DEVICE void load_weights(Matrix matrix) {
    const int lane = static_cast<int>(simt::lane());
    const int row = group() * 32 + lane / 4;
    const int word = part() * kTiles * 8 + lane % 4;
    const auto fragment = [&](int tile, int m, uint32_t (&a)[4]) {
      VARLEN_RNN_UNROLL
      for (int r = 0; r < 4; ++r) {
        a[r] = matrix(row + m * 16 + r % 2 * 8, word + tile * 8 + r / 2 * 4);
      }
    };
    VARLEN_RNN_UNROLL
    for (int tile = 0; tile < kResident; ++tile) {
      fragment(tile, 0, weights[tile][0]);
      fragment(tile, 1, weights[tile][1]);
    }
    for (int tile = kResident; tile < kTiles; ++tile) {
      for (int m = 0; m < 2; ++m) {
        simt::Words4 a;
        fragment(tile, m, a.w);
        *shared_fragment(tile, m) = a;
      }
    }
  }

  // ---- the exchange

  VARLEN_RNN_DEVICE void init_exchange() const {
    if (simt::thread() == 0) {
      simt::mbarrier_init(barrier(0), 1);
      simt::mbarrier_init(barrier(1), 1);
      simt::mbarrier_fence_init();
    }
    const Shared<uint32_t> all = vectors(0);
    for (int i = static_cast<int>(simt::thread()); i < 2 * kSlots * team.pitch; i += team.threads) {
      all[i] = 0;
    }
    simt::sync_block();
    simt::sync_cluster();
  }
  // Before this block's own part is sent: how much the exchange will bring.
  VARLEN_RNN_DEVICE void expect(int exchange, int64_t values) const {
    if (simt::thread() == 0) {
      simt::mbarrier_arrive_expect(barrier(exchange),
                                   static_cast<unsigned>(kSlots * values * kSize));
    }
  }
  VARLEN_RNN_DEVICE void wait(int exchange) const {
    simt::mbarrier_wait(barrier(exchange), static_cast<unsigned>(exchange >> 1) & 1u);
  }
  // Two values of a slot's vector, from index `at` on, to every block.
  VARLEN_RNN_DEVICE void send(int exchange, int slot, int64_t at, const float (&v)[2]) const {
    uint32_t words[kWords];
    E::vector_words(v[0], v[1], words);
    const Shared<uint32_t> to = vectors(exchange) + slot * team.pitch + at / E::kPerWord;
    const unsigned size = static_cast<unsigned>(team.cluster_size);
    unsigned rank = simt::cluster_rank();
    for (unsigned i = 0; i < size; ++i) {
      simt::st_async<kWords>(to, barrier(exchange), rank, words);
      rank = rank + 1 == size ? 0 : rank + 1;
    }
  }

  // ---- the product

  // This warp's rows times its part of the vectors' columns, into sums.
  VARLEN_RNN_DEVICE void multiply(int exchange) const {
    const int lane = static_cast<int>(simt::lane());
    Shared<const uint32_t> from = Shared<const uint32_t>(vectors(exchange)) +
                                  lane % 8 * team.pitch + lane / 8 * 4 + part() * kTiles * 8;
    float d[2][2][4] = {};  // [16 rows each][even or odd tiles]
    VARLEN_RNN_UNROLL
    for (int tile = 0; tile < kTiles; tile += 2) {
      uint32_t b[4];
      simt::ldmatrix_x4(b, from + tile * 8);
      VARLEN_RNN_UNROLL
      for (int z = 0; z < 2; ++z) {
        VARLEN_RNN_UNROLL
        for (int m = 0; m < 2; ++m) {
          if (tile + z < kResident) {
            E::mma(d[m][z], weights[tile + z < kResident ? tile + z : 0][m], b[2 * z],
                   b[2 * z + 1]);
          } else {
            const simt::Words4 a = *shared_fragment(tile + z, m);
            E::mma(d[m][z], a.w, b[2 * z], b[2 * z + 1]);
          }
        }
      }
    }
    const Shared<float> to = sums() + part() * kSlots * sum_pitch() + group() * 32 + lane / 4;
    VARLEN_RNN_UNROLL
    for (int m = 0; m < 2; ++m) {
      VARLEN_RNN_UNROLL
      for (int r = 0; r < 4; ++r) {
        const int slot = lane % 4 * 2 + r % 2;
        to[slot * sum_pitch() + m * 16 + r / 2 * 8] = d[m][0][r] + d[m][1][r];
      }
    }
  }

  // The product's rows `row` and `row` + 1 of a slot.
  VARLEN_RNN_DEVICE void product(int slot, int row, float (&v)[2]) const {
    v[0] = v[1] = 0.0f;
    for (int k = 0; k < team.k_parts; ++k) {
      const Words2 words = *simt::recast<const Words2>(
          Shared<const float>(sums() + (k * kSlots + slot) * sum_pitch() + row));
      v[0] += simt::word_as_float(words.w[0]);
      v[1] += simt::word_as_float(words.w[1]);
    }
  }

  // ---- what is loaded ahead

  // Before the first step: the turns of the first kTurnsAhead steps.
  VARLEN_RNN_DEVICE void load_first_turns() const {
    for (int step = 0; step < kTurnsAhead; ++step) copy_turns(step);
    simt::copy_async_commit();
    simt::copy_async_wait<0>();
    simt::sync_block();
  }
  VARLEN_RNN_DEVICE void copy_turns(int step) const {
    constexpr int kPieces = kSlots * sizeof(Turn) / 16;
    const int piece = static_cast<int>(simt::thread());
    if (step >= num_steps || piece >= kPieces) return;
    const int at = first_step + (backwards ? num_steps - 1 - step : step);
    const Turn* from = turns + int64_t{at} * kSlots;
    simt::copy_async(turn_words(step) + piece * 4,
                     reinterpret_cast<const char*>(from) + piece * 16);
  }
  // One row of values, from H's unit first_unit on: a warp copies this block's units of it.
  template <class T>
  VARLEN_RNN_DEVICE void copy_row(size_t to, const T* row, int64_t hidden_size) const {
    constexpr int kPerPiece = 16 / static_cast<int>(sizeof(T));
    for (int at = static_cast<int>(simt::lane()) * kPerPiece;
         at < team.units && first_unit + at < hidden_size; at += 32 * kPerPiece) {
      simt::copy_async(simt::shared<uint32_t>(to + at * sizeof(T)), row + first_unit + at);
    }
  }

 private:
  VARLEN_RNN_DEVICE int part() const { return static_cast<int>(simt::warp()) % team.k_parts; }
  VARLEN_RNN_DEVICE int group() const { return static_cast<int>(simt::warp()) / team.k_parts; }
  // A lane's words of a tile that is not in registers.
  VARLEN_RNN_DEVICE Shared<simt::Words4> shared_fragment(int tile, int m) const {
    const int index = static_cast<int>(simt::warp()) * (kTiles - kResident) + tile - kResident;
    return simt::shared<simt::Words4>(team.weights) + (index * 2 + m) * 32 + simt::lane();
  }
};

// Gates, cells and other arrays that are float32 whatever the dtype.
VARLEN_RNN_DEVICE void store_floats(float* to, const float (&v)[2]) { Tf32::store_pair(to, v); }

}  // namespace varlen_rnn::cuda
