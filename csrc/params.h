// Plain structs between tensors and kernels. Nothing here, and nothing that reads it, knows torch.
//
// Legend: B rows of the batch, N valid tokens, R rows of the flat tensor, S steps, G segments (runs
// of valid tokens, longest first), D directions, I input size, H hidden size, P output size (H
// without a projection). Tokens are numbered in step order, as in PackedSequence.data. "storage" is
// the tensors' dtype, "compute" is double for float64 and float for all others. Strides are in
// elements, not bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace varlen_rnn {

enum class Dtype { kFloat32, kFloat64, kBFloat16, kFloat16 };

// Covers [0, n) by calls body(context, begin, end), perhaps in parallel; returns when all are done.
// Calls that are made in parallel run at the same time: none waits for another to end before it
// begins.
using ParallelFor = void (*)(int64_t n, void (*body)(void* context, int64_t begin, int64_t end),
                             void* context);

// Which token comes at which step: varlen_rnn/layout/, with all index arrays checked.
struct Layout {
  int64_t num_rows;            // B
  int64_t num_flat_rows;       // R
  int64_t num_tokens;          // N
  int64_t num_steps;           // S
  int64_t num_segments;        // G = batch_sizes[0]
  int64_t num_places;          // of gates and cells in each direction, at least N
  const int64_t* batch_sizes;  // [S]  in: non-increasing, sums to N
  const int64_t* first_token;  // [S]  in: sum of the batch_sizes before each step
  const int64_t* rows;         // [N]  in: token -> row of the flat tensor, null for the identity
  const int64_t* reverse;      // [N]  in: n-th token of the reverse direction, or null
  const int64_t* initial_row;  // [G]  in: row of h_0, c_0, or -1 for zeros
  const int64_t* final_row;    // [G]  in: row of h_n, c_n, or -1 for none
};

// Sizes and machinery that every call has.
struct Call {
  Dtype dtype;
  int64_t input_size;      // I
  int64_t hidden_size;     // H
  int64_t output_size;     // P
  int64_t num_directions;  // D
  Layout layout;
  int64_t num_workers;    // how many workers the work is split over, each with scratch of its own
  double barrier_cycles;  // price of a barrier: workers split a row's units only if that is cheaper
  ParallelFor parallel_for;
  void* scratch;  // as many bytes as the kernel's scratch function says, 64-byte aligned
};

// How weights lie in memory. All but matrices are packed already: U blocks of a few units each, all
// gates side by side, padded with zeros; inference only.
enum class WeightOrder {
  kMatrix,
  kPacked,         // [U, K, gates, units], compute
  kBFloat16Pairs,  // [U, K / 2, gates, units, 2], widened to float; K padded to an even number
  kInt8,           // [U, gates, K / 2, 16, 2], times a scale for each column; P = H
};

struct Weights {
  const void* weight_ih;  // [4H or 3H, I]  in, storage; packed if K is I
  const void* weight_hh;  // [4H or 3H, P]  in, storage; packed if K is P
  const void* bias_ih;    // [4H or 3H]     in, storage, or null; packed [U, gates, units], compute
  const void* bias_hh;    // [4H or 3H]     in, storage, or null; packed [U, gates, units], compute
  const void* weight_hr;  // [P, H]         in, storage, or null (always null for GRU); packed
                          //                [blocks, H, 4 * units], compute
  const float* scale_ih;  // [U, gates, units]  in, of int8 weights
  const float* scale_hh;  // [U, gates, units]  in, of int8 weights
};

struct Forward {
  Call call;
  WeightOrder order;
  int64_t units;       // of a packed block; kernels read in place what has as many as theirs
  Weights weights[2];  // one for each direction
  bool float_cells;    // whether c_0 and c_n are float, and not 16 bits as the storage
  bool backwards;      // whether the first step reads weights from their end; to alternate
  const void* x;       // [R, I]        in, storage; rows that no token points at are never read
  int64_t x_stride;    //               elements from one row of x to the next
  const void* h_0;     // [D, B, P]     in, storage, or null for zeros
  const void* c_0;     // [D, B, H]     in, storage, or null for zeros (always null for GRU)
  void* out;           // [R, D * P]    out, storage; only the tokens' rows are written
  void* h_n;           // [D, B, P]     out, storage; only the segments' final rows are written
  void* c_n;           // [D, B, H]     out, storage; the same (null for GRU)
  void* gates;         // [D, places, 4H]  saved, compute, in the direction's order; null for
                       //               inference. LSTM: i, f, g, o. GRU: r, z, n, W_hn h + b_hn.
  void* cells;         // [D, places, H]   saved, compute: c_t, or null (always null for GRU)
};

// Gradients of one direction's weights, each shaped as the weight; all null if they are not wanted.
struct WeightGradients {
  void* weight_ih;  // out, storage
  void* weight_hh;  // out, storage
  void* bias_ih;    // out, storage, also where there is no bias
  void* bias_hh;    // out, storage, also where there is no bias
  void* weight_hr;  // out, storage, or null without projection
};

struct Backward {
  Call call;
  Weights weights[2];   // one for each direction, matrices; biases are not read
  const void* d_out;    // [R, D * P]    in, storage, or null for zeros
  const void* d_h_n;    // [D, B, P]     in, storage, or null for zeros
  const void* d_c_n;    // [D, B, H]     in, storage, or null for zeros (always null for GRU)
  const void* d_cells;  // [D, places, H]   in, compute, in the direction's order, or null for zeros
  const void* x;        // [R, I]        in, storage; rows that no token points at are never read
  int64_t x_stride;     //               elements from one row of x to the next
  const void* h_0;      // [D, B, P]     in, storage, or null for zeros
  const void* c_0;      // [D, B, H]     in, storage, or null for zeros (always null for GRU)
  const void* out;      // [R, D * P]    in, storage: the forward pass's result
  const void* gates;    // [D, places, 4H]  in, compute: as the forward pass saved them
  const void* cells;    // [D, places, H]   in, compute (null for GRU)
  void* d_x;            // [R, I]        out, storage, or null if it is not wanted; only the tokens'
                        //               rows are written
  void* d_h_0;  // [D, B, P]     out, storage; only rows that a segment starts from are written
  void* d_c_0;  // [D, B, H]     out, storage; the same (null for GRU)
  WeightGradients d_weights[2];  // one for each direction
};

// The kernels of one instruction set. Scratch functions tell how many bytes the call needs.
struct Kernels {
  const char* name;
  int vector_bytes;  // of a register: how many units packed blocks have
  size_t (*lstm_forward_scratch)(const Forward&);
  void (*lstm_forward)(const Forward&);
  size_t (*lstm_backward_scratch)(const Backward&);
  void (*lstm_backward)(const Backward&);
  size_t (*gru_forward_scratch)(const Forward&);
  void (*gru_forward)(const Forward&);
  size_t (*gru_backward_scratch)(const Backward&);
  void (*gru_backward)(const Backward&);
  size_t (*lstm_int8_scratch)(const Forward&);
  void (*lstm_int8)(const Forward&);
  size_t (*gru_int8_scratch)(const Forward&);
  void (*gru_int8)(const Forward&);
};

}  // namespace varlen_rnn
