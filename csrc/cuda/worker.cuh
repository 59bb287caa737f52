// What all persistent kernels do alike, seen from one thread: a block of the team keeps its part of
// the weights, multiplies it by the team's vectors (of every slot: h in the forward pass, the gates'
// gradients in the backward pass), and sends its part of the next vectors to every block.
//
// README.md has the picture. The protocol in short: exchange m fills the vectors of buffer m % 2 and
// completes a phase of mbarrier m % 2. Nobody can send exchange m + 1 before it has got all of
// exchange m, this block's part included, which this block sends only after the sync_block behind its
// products of exchange m - 1: so two buffers are enough, and no barrier of the cluster is needed.
// A block alone stores its vectors where it wants them, and waits for itself: a sync_block.
//
// A lane works for one slot all the time: lanes l, l + 8, l + 16 and l + 24 for slot l, each on two of
// the eight units of a chunk, which are the warp's.
#pragma once

#include "cuda/element.cuh"
#include "cuda/params.h"
#include "cuda/simt.cuh"
#include "cuda/team.h"

namespace varlen_rnn::cuda {

template <class E, int kTiles, int kResident, int kParts, bool kAlone>
struct Worker {
  using Storage = typename E::Storage;
  static constexpr int kSize = static_cast<int>(sizeof(Storage));
  static constexpr int kWords = E::kWordsOfPair;

  const Persistent& params;
  const Team& team;
  int num_steps;
  int direction;
  int hidden_size;
  int first_unit;  // of this block
  int num_units;   // of this block that there are
  int slot;        // that this lane works for
  int quarter;     // of a chunk that is this lane's: two units
  uint32_t weights[kResident][2][4];

  VARLEN_RNN_DEVICE Worker(const Persistent& p, bool walk_backwards)
      : params(p), team(p.team), backwards_(walk_backwards) {
    const int index = static_cast<int>(kAlone ? simt::block() : simt::cluster());
    direction = index / p.num_teams;
    const int32_t* range = p.first_step + index % p.num_teams;
    const int among_teams = simt::load(range);
    num_steps = simt::load(range + 1) - among_teams;
    first_step_ = direction * p.capacity + among_teams;
    hidden_size = static_cast<int>(p.hidden_size);
    first_unit = rank() * team.units;
    num_units = hidden_size - first_unit < team.units ? hidden_size - first_unit : team.units;
    slot = static_cast<int>(simt::lane()) % kSlots;
    quarter = static_cast<int>(simt::lane()) / kSlots;
  }

  // f(turn, unit) for this lane's two units of every chunk of its warp, of kTurns at most: `unit` is
  // the first one's number in the block. Whole warps come, or none of a warp.
  template <int kTurns, class F>
  VARLEN_RNN_DEVICE void for_pairs(F f) const {
    const int warps = team.threads / 32;
    VARLEN_RNN_UNROLL
    for (int turn = 0; turn < kTurns; ++turn) {
      const int chunk = (static_cast<int>(simt::warp()) + turn * warps) * kChunk;
      if (chunk < num_units) f(turn, chunk + quarter * 2);
    }
  }

  // ---- weights

  VARLEN_RNN_DEVICE int first_row() const {
    return group() * 32 + static_cast<int>(simt::lane()) / 4;
  }
  // matrix(word, a): of this lane's rows, `first_row` and those 8, 16 and 24 behind it, the words `word`.
  // Rows of the block's matrix have row_words; products of rows beyond it are read by nobody.
  template <class Matrix>
  VARLEN_RNN_DEVICE void load_weights(int row_words, Matrix matrix) {
    const int first = part() * kTiles * 8 + static_cast<int>(simt::lane()) % 4;
    const auto fragment = [&](int tile, uint32_t (&a)[2][4]) {
      VARLEN_RNN_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int word = first + tile * 8 + half * 4;
        uint32_t rows[4] = {};
        if (word < row_words) matrix(word, rows);
        //~ registers of a fragment
        a[0][2 * half] = rows[0];
        a[0][2 * half + 1] = rows[1];
        a[1][2 * half] = rows[2];
        a[1][2 * half + 1] = rows[3];
      }
    };
    VARLEN_RNN_UNROLL
    for (int tile = 0; tile < kResident; ++tile) fragment(tile, weights[tile]);
    for (int tile = kResident; tile < kTiles; ++tile) {
      uint32_t a[2][4];
      fragment(tile, a);
      for (int m = 0; m < 2; ++m) {
        *shared_fragment(tile, m) = simt::Words4{{a[m][0], a[m][1], a[m][2], a[m][3]}};
      }
    }
  }

  // ---- the exchange

  VARLEN_RNN_DEVICE void init_exchange() const {
    if (!kAlone && simt::thread() == 0) {
      simt::mbarrier_init(barrier(0), 1);
      simt::mbarrier_init(barrier(1), 1);
      simt::mbarrier_fence_init();
      *expired() = 0;
    }
    const Shared<uint32_t> all = vectors(0);
    for (int i = static_cast<int>(simt::thread()); i < 2 * kSlots * team.pitch; i += team.threads) {
      //~ zeros
      all[i] = 0;
    }
    simt::sync_block();
    //~ mbarriers are there
    if (!kAlone) simt::sync_cluster();
  }
  // Before this block's own part is sent: how much the exchange will bring.
  VARLEN_RNN_DEVICE void expect(int exchange, int values) const {
    if (!kAlone && simt::thread() == 0) {
      simt::mbarrier_arrive_expect(barrier(exchange),
                                   static_cast<unsigned>(kSlots * values * kSize));
    }
  }
  VARLEN_RNN_DEVICE void wait(int exchange) const {
    if constexpr (kAlone) {
      simt::sync_block();
    } else {
      //~ parity
      const unsigned parity = static_cast<unsigned>(exchange >> 1) & 1u;
      //~ wait limit
      if (!simt::mbarrier_wait(barrier(exchange), parity, params.wait_limit)) {
        give_up(exchange, parity);
      }
    }
  }
  // Whether a warp of this block gave this exchange up: behind a sync_block, and the same for all.
  VARLEN_RNN_DEVICE bool gave_up(int exchange) const {
    return !kAlone && *expired() == static_cast<uint32_t>(exchange) + 1;
  }
  // Then nothing is sent any more, and no block may go while another one could still send to it.
  VARLEN_RNN_DEVICE void leave() const {
    simt::copy_async_wait<0>();
    if (!kAlone) simt::sync_cluster();
  }
  // Two values of this lane's slot to every block: `at` is the first one's place in the vector. All
  // lanes of a warp send at a time.
  VARLEN_RNN_DEVICE void send(int exchange, int at, const float (&v)[2]) const {
    uint32_t words[kWords];
    E::vector_words(v[0], v[1], words);
    const Shared<uint32_t> row = vectors(exchange) + slot * team.pitch;
    if constexpr (kAlone) {
      VARLEN_RNN_UNROLL
      for (int i = 0; i < kWords; ++i) row[at / E::kPerWord + i] = words[i];
    } else {
      // Each of a slot's four lanes gets all of the chunk, and sends it to every fourth block.
      uint32_t chunk[kWords][4];
      VARLEN_RNN_UNROLL
      for (int i = 0; i < 4 * kWords; ++i) {
        //~ lanes of a chunk
        chunk[i / 4][i % 4] = simt::shuffle(words[i % kWords], slot + i / kWords * kSlots);
      }
      const Shared<uint32_t> to = row + (at - quarter * 2) / E::kPerWord;
      //~ ranks
      for (int rank = quarter; rank < team.cluster_size; rank += 4) {
        VARLEN_RNN_UNROLL
        for (int i = 0; i < kWords; ++i) {
          simt::st_async(to + 4 * i, barrier(exchange), static_cast<unsigned>(rank), chunk[i]);
        }
      }
    }
  }

  // Of a GRU's forward pass: b_hn of the block's units.
  VARLEN_RNN_DEVICE Shared<float> bias() const {
    return simt::shared<float>(static_cast<size_t>(team.bias));
  }

  // ---- the product

  // This warp's rows times its part of the vectors' columns, into sums.
  VARLEN_RNN_DEVICE void multiply(int exchange) const {
    const int lane = static_cast<int>(simt::lane());
    //~ rows of ldmatrix
    const Shared<const uint32_t> from = Shared<const uint32_t>(vectors(exchange)) +
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
    const Shared<float> to =
        sums() + (part() * kSlots + lane % 4 * 2) * sum_pitch() + group() * 32 + lane / 4;
    VARLEN_RNN_UNROLL
    for (int m = 0; m < 2; ++m) {
      VARLEN_RNN_UNROLL
      for (int r = 0; r < 4; ++r) {
        //~ rows of the sums
        to[r % 2 * sum_pitch() + m * 16 + r / 2 * 8] = d[m][0][r] + d[m][1][r];
      }
    }
  }

  // The product's rows `row` and `row` + 1 of this lane's slot.
  VARLEN_RNN_DEVICE void product(int row, float (&v)[2]) const {
    const Shared<const float> from = Shared<const float>(sums()) + slot * sum_pitch() + row;
    Tf32::load_pair(from, 0, v);
    //~ other parts
    VARLEN_RNN_UNROLL
    for (int k = 1; k < k_parts(); ++k) {
      float of_part[2];
      Tf32::load_pair(from, k * kSlots * sum_pitch(), of_part);
      v[0] += of_part[0];
      v[1] += of_part[1];
    }
  }

  // ---- what is loaded ahead

  // Turns of a step's slots are kept in shared memory.
  VARLEN_RNN_DEVICE Shared<const Turn> turn(int step) const {
    return simt::recast<const Turn>(Shared<const uint32_t>(turn_words(step))) + slot;
  }
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
    simt::copy_async(turn_words(step) + piece * 4,
                     reinterpret_cast<const char*>(turns_of(step)) + piece * 16);
  }
  // The turn of a step that nobody has loaded.
  VARLEN_RNN_DEVICE Turn global_turn(int step) const {
    const simt::Words4* from = reinterpret_cast<const simt::Words4*>(turns_of(step) + slot);
    const simt::Words4 a = simt::load(from), b = simt::load(from + 1);
    return {static_cast<int32_t>(a.w[0]), static_cast<int32_t>(a.w[1]),
            static_cast<int32_t>(a.w[2]), static_cast<int32_t>(a.w[3]),
            static_cast<int32_t>(b.w[0]), {}};
  }
  // Where the inputs of a step lie, by its place in the ring.
  //~ ring of inputs
  VARLEN_RNN_DEVICE int inputs(int ring) const { return team.inputs + ring * team.input_bytes; }
  // The eight values of a chunk, or those of its pieces of 16 bytes from `first` on, every `every`-th.
  template <class T>
  VARLEN_RNN_DEVICE void copy_chunk(int to, const T* from, int first = 0, int every = 1) const {
    constexpr int kPieces = kChunk * static_cast<int>(sizeof(T)) / 16;
    for (int piece = first; piece < kPieces; piece += every) {
      simt::copy_async(simt::shared<uint32_t>(static_cast<size_t>(to + piece * 16)),
                       reinterpret_cast<const char*>(from) + piece * 16);
    }
  }

 private:
  VARLEN_RNN_DEVICE int rank() const { return kAlone ? 0 : static_cast<int>(simt::cluster_rank()); }
  VARLEN_RNN_DEVICE int k_parts() const { return kParts == 0 ? team.k_parts : kParts; }
  VARLEN_RNN_DEVICE int part() const { return static_cast<int>(simt::warp()) % k_parts(); }
  VARLEN_RNN_DEVICE int group() const { return static_cast<int>(simt::warp()) / k_parts(); }

  VARLEN_RNN_DEVICE Shared<uint64_t> barrier(int exchange) const {
    //~ barrier
    return simt::shared<uint64_t>(0) + (exchange & 1);
  }
  // The last exchange that a warp gave up, and one more; or 0.
  VARLEN_RNN_DEVICE Shared<uint32_t> expired() const { return simt::shared<uint32_t>(kExpiredAt); }
  // Of an exchange: [kSlots, pitch].
  VARLEN_RNN_DEVICE Shared<uint32_t> vectors(int exchange) const {
    //~ vectors
    return simt::shared<uint32_t>(static_cast<size_t>(team.vectors)) +
           (exchange & 1) * kSlots * team.pitch;
  }
  VARLEN_RNN_DEVICE int sum_pitch() const { return 32 * team.row_groups + 4; }
  // Products, [k_parts, kSlots, sum_pitch].
  VARLEN_RNN_DEVICE Shared<float> sums() const {
    return simt::shared<float>(static_cast<size_t>(team.sums));
  }
  VARLEN_RNN_DEVICE Shared<uint32_t> turn_words(int step) const {
    constexpr int kWordsOfTurn = sizeof(Turn) / 4;
    //~ ring of turns
    return simt::shared<uint32_t>(static_cast<size_t>(team.turns)) +
           (step & (kTurnRing - 1)) * kSlots * kWordsOfTurn;
  }
  VARLEN_RNN_DEVICE const Turn* turns_of(int step) const {
    const int at = first_step_ + (backwards_ ? num_steps - 1 - step : step);
    return params.turns + int64_t{at} * kSlots;
  }
  // A lane's words of a tile that is not in registers.
  VARLEN_RNN_DEVICE Shared<simt::Words4> shared_fragment(int tile, int m) const {
    const int index = static_cast<int>(simt::warp()) * (kTiles - kResident) + tile - kResident;
    //~ place of a fragment
    return simt::shared<simt::Words4>(static_cast<size_t>(team.weights)) + (index * 2 + m) * 32 +
           simt::lane();
  }
  VARLEN_RNN_DEVICE void give_up(int exchange, unsigned parity) const {
    if (simt::lane() == 0) {
      //~ expired word
      *expired() = static_cast<uint32_t>(exchange) + 1;
      simt::store(reinterpret_cast<simt::Words4*>(params.status),
                  simt::Words4{{static_cast<uint32_t>(exchange), simt::cluster(),
                                static_cast<uint32_t>(rank()), parity}});
      simt::fence_system();
      simt::store(&params.status->expired, uint32_t{1});
    }
    simt::sync_warp();  // what follows is the whole warp's
  }

  bool backwards_;  // the steps are walked from the last to the first
  int first_step_;  // of this team and direction in turns
};

// Gates, cells and other arrays that are float32 whatever the dtype.
VARLEN_RNN_DEVICE void store_floats(float* to, const float (&v)[2]) { Tf32::store_pair(to, v); }

// The inputs of three steps lie in a ring: the place behind one, and the one before it.
static_assert(kInputRing == 3 && kInputsAhead == 2);
VARLEN_RNN_DEVICE int next_in_ring(int ring) { return ring == 2 ? 0 : ring + 1; }
VARLEN_RNN_DEVICE int last_in_ring(int ring) { return ring == 0 ? 2 : ring - 1; }

}  // namespace varlen_rnn::cuda
