// Plain structs between the CUDA ops and their kernels. Nothing here knows torch or CUDA.
//
// The legend is that of ../params.h. A "place" numbers tokens in a direction's own order, a "token"
// in step order; in the forward direction they are the same. All pointers are device memory. On the
// device nobody knows N, S and G but through batch_sizes: the numbers here are capacities, what
// arrays have room for. G_s is the capacity of step s.
#pragma once

#include <cstdint>

namespace varlen_rnn::cuda {

struct DeviceLayout {
  int64_t num_rows;            // B
  int64_t num_flat_rows;       // R
  int64_t num_tokens;          // N, capacity
  int64_t num_steps;           // S, capacity
  int64_t num_segments;        // G, capacity
  const int64_t* batch_sizes;  // [S]  non-increasing, zeros at the end where there are fewer steps
  const int64_t* first_token;  // [S]  sum of the batch_sizes before each step
  const int64_t* rows;         // [N]  token -> row of the flat tensor, null for the identity
  const int64_t* reverse;      // [N]  place of the reverse direction -> token, or null
  const int64_t* initial_row;  // [G]  row of h_0, c_0, or -1 for zeros
  const int64_t* final_row;    // [G]  row of h_n, c_n, or -1 for none
};

// A batch whose rows are known to the device alone, and the layout to be made of it, with arrays as
// large as they may have to be. T is R where `first` is given.
struct DeviceRows {
  int64_t num_rows;        // B
  int64_t num_steps;       // T
  int64_t num_flat_rows;   // R, and the capacity of N
  int64_t num_segments;    // G, capacity: R with resets, else B or R, whichever is less
  bool batch_first;        // of a padded batch
  const int64_t* lengths;  // [B]  in, or null: T each
  const int64_t* first;    // [B]  in: flat row that each row begins at, or null for a padded batch
  const uint8_t* mask;     // [R]  in, or null
  const uint8_t* resets;   // [R]  in, or null
  int64_t* batch_sizes;    // [T]  out, zeros behind the last step
  int64_t* rows;           // [R]  out, zeros behind the last token
  int64_t* reverse;        // [R]  out, the same, or null
  int64_t* initial_row;    // [G]  out, -1 behind the last segment
  int64_t* final_segment;  // [B]  out
  // Scratch, null where it is not used.
  int64_t* totals;             // [3]  steps, segments, tokens
  int64_t* first_token;        // [T]  as in DeviceLayout
  int64_t* length_of_segment;  // [B], with resets [R]; segments in the order of rows
  int64_t* order;              // the same: segments, the longest first
  int64_t* other_order;        // the same
  int64_t* tokens_of_row;      // [B]  with a mask or resets
  int64_t* tokens;            // [R]  with a mask: flat rows of each row's tokens, from its begin on
  int64_t* starts;            // [R]  with resets, these four: of each row's segments among its
                              //      tokens, from its begin on
  int64_t* segments_of_row;   // [B]
  int64_t* first_segment;     // [B]
  int64_t* begins_anew;       // [B]  1 if a reset stands at the row's first token
  int64_t* row_of_segment;    // [R]  with resets, both
  int64_t* start_of_segment;  // [R]
};

// What a slot does in a step of its team.
struct alignas(16) Turn {
  static constexpr int32_t kContinues = -2;  // in the middle of a segment
  static constexpr int32_t kNowhere = -1;    // starts from zeros, or ends where no row wants it

  int32_t place;   // -1: the slot is idle
  int32_t token;   // whose input it takes
  int32_t row;     // of out and d_out
  int32_t starts;  // row of h_0, c_0 if this is a segment's first token, or kNowhere; or kContinues
  int32_t ends;    // row of h_n, c_n if it is the last one, or kNowhere; or kContinues
  int32_t unused[3];
};

// Sequences that a team works on side by side: the n of a matrix instruction.
constexpr int kSlots = 8;
// Hidden units come in chunks: of a chunk a warp computes all slots, a lane two neighbouring units of one.
constexpr int kChunk = 8;

// Which slot takes which segment: longest first, dealt out back and forth.
struct Plan {
  DeviceLayout layout;
  int num_directions;    // D
  int num_teams;         // of each direction
  int capacity;          // steps that all teams may have together at most
  int32_t* chain_start;  // [G]                    scratch: a segment's first step in its slot
  int32_t* load;         // [num_teams * kSlots]   scratch: steps of each slot
  int32_t* first_step;   // [num_teams + 1]        out: of each team among all teams' steps
  Turn* turns;           // [D, capacity, kSlots]  out: of all teams' steps, one team behind another
};

// How the blocks of a cluster share the work; made by team.h.
struct Team {
  int variant;       // the kernel, in team.h's list
  int cluster_size;  // blocks
  int units;         // of the H hidden units that each block owns, a multiple of kChunk
  int row_groups;    // 32 rows of the block's matrix each
  int k_parts;       // warps that share a row, each with its part of the columns
  int tiles;         // columns of a warp's part, in tiles of 32 bytes
  int resident;      // tiles of a part that are kept in registers, the others in shared memory
  int pitch;         // words from one slot's vector to the next
  int threads;       // 32 * row_groups * k_parts
  int input_pitch;   // bytes from one row of a step's inputs to the next: of values in storage,
  int float_pitch;   // and of float32
  // Offsets in shared memory, in bytes.
  int turns, vectors, sums, bias, inputs, weights;
  int input_bytes;   // of one step's inputs
  int shared_bytes;  // in all
};

// What a kernel leaves where a wait had no end: in memory that host and device see, zeros before.
// Several blocks may write it, each the first four words at once and then `expired`.
struct alignas(16) WaitStatus {
  uint32_t exchange;  // that did not complete
  uint32_t cluster;   // of the grid, and the block's rank in it
  uint32_t rank;
  uint32_t parity;   // of the mbarrier's phase
  uint32_t expired;  // 1 if there was one
};

// What both passes have.
struct Persistent {
  Team team;
  int num_directions;         // D
  int num_teams;              // of each direction
  int capacity;               // as in Plan
  int64_t num_rows;           // B
  int64_t num_tokens;         // N, capacity
  int64_t hidden_size;        // H, a multiple of 8
  const int32_t* first_step;  // [num_teams + 1]
  const Turn* turns;          // [D, capacity, kSlots]
  const void* weight_hh[2];   // [gates * H, H]      in, storage
  uint32_t wait_limit;        // of an exchange, as simt::wait_limit says it
  WaitStatus* status;         // out, if one takes longer
};

struct PersistentForward : Persistent {
  const void* inputs;      // [N, D * gates * H]  in, storage: W_ih x and the biases, by token
  const void* bias_hn[2];  // [H]                 in, storage, or null: GRU's b_hh of the gate n
  const void* h_0;         // [D, B, H]           in, storage, or null for zeros
  const void* c_0;         // [D, B, H]           in, storage, or null for zeros
  void* out;               // [R, D * H]          out, storage
  void* h_n;               // [D, B, H]           out, storage
  void* c_n;               // [D, B, H]           out, storage (null for GRU)
  float* gates;            // [D, N, 4 * H]       out, or null for inference
  float* cells;            // [D, N, H]           out with gates (null for GRU)
};

struct PersistentBackward : Persistent {
  const void* d_out;     // [R, D * H]          in, storage, or null for zeros
  const void* d_h_n;     // [D, B, H]           in, storage, or null for zeros
  const void* d_c_n;     // [D, B, H]           in, storage, or null for zeros
  const float* d_cells;  // [D, N, H]           in, or null for zeros
  const void* h_0;       // [D, B, H]           in, storage, or null for zeros (GRU)
  const void* c_0;       // [D, B, H]           in, storage, or null for zeros (LSTM)
  const void* out;       // [R, D * H]          in, storage (GRU)
  const float* gates;    // [D, N, 4 * H]       in
  const float* cells;    // [D, N, H]           in (LSTM)
  void* d_gates;         // [N, D * 4 * H]      out, storage, by token: LSTM i, f, g, o; GRU n, r,
                         //                     z and then n once more, of W_hn h + b_hn
  void* d_h_0;           // [D, B, H]           out, storage; rows that a segment starts from
  void* d_c_0;           // [D, B, H]           out, storage; the same (null for GRU)
};

}  // namespace varlen_rnn::cuda
