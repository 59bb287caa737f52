// Which team a layer gets: how many blocks share W_hh, and where each of them keeps its part.
//
// A block owns some hidden units: in the forward pass the rows of W_hh that make their gates, in the
// backward pass the columns that make their gradients. Rows go in groups of 32 to warps; the columns
// of a row are split into k_parts of `tiles` tiles, a split that depends on the cell, H and the
// dtype alone: sums are the same to the bit whatever the cluster's size is.
#pragma once

#include <algorithm>
#include <iterator>
#include <vector>

#include "cuda/params.h"

namespace varlen_rnn::cuda {

// A compiled kernel: how it keeps a warp's part of the weights, how many warps' registers fit, how many
// parts a row has (0: any number), and whether it is for teams of one block, which exchange nothing.
struct Variant {
  int tiles, resident, max_warps, k_parts;
  bool alone;
};

// Of the forward and of the backward pass. A tile is 8 registers of every lane; 8 warps have 255 of
// them, 12 have 168, 16 have 128, and the backward pass needs some more for itself. (Of at most 12
// tiles it never has more than 8 warps.)
constexpr Variant kForwardVariants[] = {
    {4, 4, 16, 1, true},   {8, 8, 16, 1, true},    {12, 11, 12, 1, true},  {4, 4, 8, 1, false},
    {8, 8, 8, 1, false},   {12, 11, 12, 1, false}, {12, 10, 12, 2, false}, {12, 6, 16, 2, false},
    {16, 16, 8, 1, false}, {16, 16, 8, 2, false},  {16, 10, 12, 2, false}, {16, 10, 12, 4, false},
    {16, 6, 16, 1, false}, {16, 6, 16, 2, false},  {16, 6, 16, 4, false},  {24, 10, 12, 2, false}};
constexpr Variant kBackwardVariants[] = {
    {4, 4, 8, 1, true},    {8, 8, 8, 1, true},    {12, 12, 8, 1, true},  {12, 12, 8, 2, true},
    {16, 12, 8, 1, true},  {16, 12, 8, 2, true},  {24, 8, 12, 2, true},  {4, 4, 8, 1, false},
    {8, 8, 8, 1, false},   {12, 12, 8, 1, false}, {12, 12, 8, 2, false}, {16, 12, 8, 1, false},
    {16, 12, 8, 2, false}, {16, 12, 8, 4, false}, {16, 12, 8, 8, false}, {16, 12, 8, 0, false},
    {16, 8, 12, 4, false}, {16, 8, 12, 0, false}, {24, 7, 12, 2, false}};

// Warps that a cell's forward pass has at most. A block that holds a GRU has three rows a unit, an LSTM's
// four, and with 16 tiles it never has more than 12 warps: so it gets more registers.
constexpr int forward_warps(const Variant& v, bool is_lstm) {
  const bool is_fewer = !is_lstm && (v.alone || v.tiles == 16) && v.max_warps > 12;
  return is_fewer ? 12 : v.max_warps;
}

constexpr int kForwardKernels = static_cast<int>(std::size(kForwardVariants));
constexpr int kBackwardKernels = static_cast<int>(std::size(kBackwardVariants));
inline std::vector<Variant> variants_of(bool is_backward) {
  if (is_backward) return {std::begin(kBackwardVariants), std::end(kBackwardVariants)};
  return {std::begin(kForwardVariants), std::end(kForwardVariants)};
}

constexpr int kTurnRing = 8;    // turns of this many steps are kept, a power of two
constexpr int kTurnsAhead = 5;  // steps between the load of turns and their use
constexpr int kInputRing = 3;   // inputs of this many steps are kept
constexpr int kInputsAhead = 2;

struct Problem {
  bool is_lstm, is_backward;
  int64_t hidden_size;
  int element_size;  // bytes: 2, or 4 for TF32
};

struct Limits {
  int max_cluster_size;
  int64_t max_shared_bytes;
};

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The first bytes of shared memory: two mbarriers, and whether one was given up.
constexpr int kControlBytes = 64;
constexpr int kExpiredAt = 16;

// Where a team's arrays lie in shared memory. Rows of inputs begin at 16-byte pieces, an odd number of
// them apart, if they are spread: eight rows in different banks.
inline void lay_out(const Problem& p, bool spread, Team& t) {
  const auto pitch_of_row = [&](int bytes) { return (bytes / 16 | (spread ? 1 : 0)) * 16; };
  t.input_pitch = pitch_of_row(t.units * p.element_size);
  t.float_pitch = pitch_of_row(t.units * 4);
  int64_t offset = kControlBytes;
  const auto place = [&](int64_t bytes) {
    const int64_t at = offset;
    offset += ceil_div(bytes, 128) * 128;
    return static_cast<int>(at);
  };
  t.turns = place(kTurnRing * kSlots * static_cast<int64_t>(sizeof(Turn)));
  t.vectors = place(int64_t{2} * kSlots * t.pitch * 4);
  t.sums = place(int64_t{t.k_parts} * kSlots * (32 * t.row_groups + 4) * 4);
  t.bias = place(p.is_lstm || p.is_backward ? 0 : t.units * 4);
  // Forward W_ih x of the gates; backward the saved gates and, of an LSTM, two cell states and the
  // cell state's gradient in float32, then the output's gradient and, of a GRU, an output.
  const int floats = !p.is_backward ? 0 : p.is_lstm ? 7 : 4;
  const int stored = p.is_backward ? (p.is_lstm ? 1 : 2) : (p.is_lstm ? 4 : 3);
  t.input_bytes = kSlots * (floats * t.float_pitch + stored * t.input_pitch);
  t.inputs = place(int64_t{kInputRing} * t.input_bytes);
  t.weights = place(int64_t{t.threads / 32} * (t.tiles - t.resident) * 2 * 512);
  t.shared_bytes = static_cast<int>(offset);
}

// The split of the columns: tiles of a part, and parts. Parts have at most 16 tiles, the registers of
// 8 warps, unless 24 save a whole part.
inline void split_columns(const Problem& p, int& tiles, int& k_parts) {
  const int64_t gates = p.is_lstm ? 4 : 3;
  const int64_t columns = p.hidden_size * (p.is_backward ? gates : 1);
  const int64_t total = ceil_div(columns * p.element_size, 32);
  k_parts = static_cast<int>(total > 32 && total <= 48 ? 2 : ceil_div(total, 16));
  tiles = static_cast<int>(ceil_div(ceil_div(total, k_parts), 4) * 4);
  if (tiles == 20) tiles = 24;
}

// Every team that fits the device, best first: those with most weights in registers (all but 4 tiles
// at least), and of these and the others the small clusters.
inline std::vector<Team> possible_teams(const Problem& p, const Limits& limits) {
  std::vector<Team> teams;
  const int64_t H = p.hidden_size, gates = p.is_lstm ? 4 : 3;
  if (H % kChunk != 0) return teams;  // rows must be made of 16-byte pieces
  int tiles, k_parts;
  split_columns(p, tiles, k_parts);
  const std::vector<Variant> variants = variants_of(p.is_backward);
  const bool has_parts = std::any_of(variants.begin(), variants.end(), [&](const Variant& v) {
    return v.tiles == tiles && v.k_parts == k_parts;
  });
  for (int cluster_size = 1; cluster_size <= limits.max_cluster_size; cluster_size *= 2) {
    const int64_t units = ceil_div(ceil_div(H, cluster_size), kChunk) * kChunk;
    if ((cluster_size - 1) * units >= H)
      continue;  // a block that owns nothing would wait for nobody
    const int64_t rows = p.is_backward ? units : gates * units;
    const int64_t row_groups = ceil_div(rows, 32), warps = row_groups * k_parts;
    for (int v = 0; v < static_cast<int>(variants.size()); ++v) {
      const Variant& variant = variants[static_cast<size_t>(v)];
      const int most_warps = p.is_backward ? variant.max_warps : forward_warps(variant, p.is_lstm);
      if (variant.tiles != tiles || warps > most_warps) continue;
      if (variant.k_parts != (has_parts ? k_parts : 0) || variant.alone != (cluster_size == 1))
        continue;
      Team t{};
      t.variant = v;
      t.cluster_size = cluster_size;
      t.units = static_cast<int>(units);
      t.row_groups = static_cast<int>(row_groups);
      t.k_parts = k_parts;
      t.tiles = tiles;
      t.resident = variant.resident;
      // 4 words more than a multiple of 32: the rows of a fragment lie in different banks.
      t.pitch = k_parts * tiles * 8 + 4;
      t.threads = static_cast<int>(32 * warps);
      for (const bool spread : {true, false}) {
        lay_out(p, spread, t);
        if (t.shared_bytes > limits.max_shared_bytes) continue;
        teams.push_back(t);
        break;
      }
    }
  }
  std::stable_sort(teams.begin(), teams.end(), [](const Team& a, const Team& b) {
    const bool a_streams = a.tiles - a.resident > 4, b_streams = b.tiles - b.resident > 4;
    return a_streams != b_streams ? b_streams : a.cluster_size < b.cluster_size;
  });
  return teams;
}

}  // namespace varlen_rnn::cuda
