// All that ops.cpp calls of the .cu files. Every function launches on a stream and returns at once;
// a CUDA error is an exception that names the call.
#pragma once

#include <cstdint>
#include <string>

#include "../params.h"
#include "cuda/device.h"
#include "cuda/params.h"
#include "cuda/team.h"

namespace varlen_rnn::cuda {

// device.cu
simt::Device device_properties(int index);
// Makes a device the current one of this library's CUDA runtime.
void use_device(int index);
// Why this library cannot run on a device: what CUDA says of the first call that fails, or "". Leaves
// the device the current one.
std::string why_not_on(int index);
// Whether work on a stream is being recorded for a CUDA graph, so that nobody may wait for it.
bool is_capturing(void* stream);
// What kernels leave where a wait had no end, in memory that a device and the host see, zeros at first:
// for calls, and behind it for calls whose path is forced. One a device; null if there is none yet and
// none is to be made.
WaitStatus* wait_status(int index, bool make);

// device_layout.cu: two launches, three with a mask or resets.
void make_device_layout(const DeviceRows& p, void* stream);

// layout.cu
// first_token [S], and from the segment that each row ends with, or -1, [B], the row that each segment
// is the last one of, or -1: final_row [G]. Checks what batch_sizes say, so that later kernels may
// rely on it. Of `layout` it reads batch_sizes alone.
void derive_layout(const DeviceLayout& layout, const int64_t* final_segment, int64_t* first_token,
                   int64_t* final_row, void* stream);

// plan.cu
void make_plan(const Plan& p, void* stream);

// persistent_*.cu: the kernels of one cell and one format, tables in the order of team.h's lists.
template <class P>
struct PersistentKernel {
  void (*run)(const simt::Launch&, const P&);
  int (*active_clusters)(const simt::Launch&);  // at a time, 0 if it cannot run
};
struct PersistentKernels {
  const PersistentKernel<PersistentForward>* forward;
  const PersistentKernel<PersistentBackward>* backward;
};
PersistentKernels persistent_lstm_bf16();
PersistentKernels persistent_lstm_f16();
PersistentKernels persistent_lstm_tf32();
PersistentKernels persistent_gru_bf16();
PersistentKernels persistent_gru_f16();
PersistentKernels persistent_gru_tf32();

// rows.cu: any dtype, any size. Sizes are in bytes, so most of it knows no dtype.

// Memory that is set in one launch: `bytes` as they are at `from`, or zeros where that is null.
struct Piece {
  void* to;
  const void* from;
  int64_t bytes;
  int word;  // bytes of an access
};
struct Pieces {
  static constexpr int kMost = 12;
  int count = 0;
  Piece all[kMost];

  void add(void* to, const void* from, int64_t bytes);
};
void set_pieces(const Pieces& pieces, void* stream);

// Rows of a tensor [R, *] that are `pitch` apart, and those of tokens [N, *] side by side: gathered by the
// layout's rows, with zeros from the N-th token on, or scattered.
struct TokenRows {
  DeviceLayout layout;
  const void* from;
  void* to;
  int64_t row_bytes, pitch;
};
// From tokens [N, *]: to [R, *] has only its tokens' rows written.
void scatter_tokens(const TokenRows& rows, void* stream);
// to [num_rows, *]: each as `from`.
void repeat_row(const void* from, int64_t row_bytes, int64_t num_rows, void* to, void* stream);

// b_ih + b_hh, the latter of the first `both` elements only.
struct Biases {
  Dtype dtype;
  int num_directions;      // D
  int64_t rows;            // gates * H
  int64_t both;            // LSTM gates * H; GRU 2 * H
  const void* bias_ih[2];  // [rows]      in
  const void* bias_hh[2];  // [rows]      in
  void* to;                // [D * rows]  out, or null for none
};

// What a layer's forward pass begins with, in one launch: tokens to gather (none where `to` is null),
// sums of biases and pieces.
struct ForwardStart {
  TokenRows tokens;
  Biases biases;
  Pieces pieces;
};
void start_forward(const ForwardStart& start, void* stream);

// What its backward pass begins with, in one launch: the gradients of the initial states, which are those
// of the final states for rows without a segment and zeros for the others, and pieces.
struct BackwardStart {
  DeviceLayout layout;
  int num_directions;            // D
  const int64_t* final_segment;  // [B]        in, -1 for none, or null: no row has one
  int64_t h_bytes, c_bytes;      // of a row
  const void* d_h_n;             // [D, B, *]  in, or null for zeros
  const void* d_c_n;             // [D, B, *]  in, or null for zeros
  void* d_h_0;                   // [D, B, *]  out
  void* d_c_0;                   // [D, B, *]  out, or null
  Pieces pieces;
};
void start_backward(const BackwardStart& start, void* stream);

// The output that each token of each direction started from: that of the token before it, or of h_0,
// or zeros, which is also what stands from the N-th token on.
struct PreviousRows {
  DeviceLayout layout;
  TokenRows tokens;    // to gather in the same launch (none where `to` is null)
  int num_directions;  // D
  int64_t row_bytes;   // of P values
  const void* out;     // [R, D, P]  in
  const void* h_0;     // [D, B, P]  in, or null for zeros
  void* to;            // [D, N, P]  out, by token
};
void gather_previous(const PreviousRows& rows, void* stream);

// o tanh(c) of each direction's tokens, zeros from the N-th on.
struct HiddenRows {
  DeviceLayout layout;
  int num_directions;   // D
  int64_t hidden_size;  // H
  const void* gates;    // [D, N, 4 * H]  in, compute
  const void* cells;    // [D, N, H]      in, compute
  void* to;             // [D, N, H]      out, storage, by token
};
void gather_hidden(Dtype dtype, const HiddenRows& rows, void* stream);

// The rows from the N-th token on become zeros, of `count` arrays [N, *].
struct Surplus {
  DeviceLayout layout;
  int count;
  void* to[3];
  int64_t row_bytes[3];
};
void zero_surplus_tokens(const Surplus& surplus, void* stream);

// A layer a step at a time, both directions at once: any dtype, any size.
struct Generic {
  DeviceLayout layout;
  Dtype dtype;
  bool is_lstm;
  int num_directions;   // D
  int64_t hidden_size;  // H
  int64_t output_size;  // P
};

// generic_forward.cu
struct GenericForward : Generic {
  const void* inputs;      // [N, D * gates * H]   in, storage: W_ih x and the biases, by token
  const void* products;    // [D, G, gates * H]    in, storage: W_hh h of this step's segments
  const void* bias_hn[2];  // [H]                  in, storage, or null: GRU's b_hh of the gate n
  const void* h_0;         // [D, B, P]            in, storage, or null for zeros
  const void* c_0;         // [D, B, H]            in, storage, or null for zeros
  void* h;                 // [D, G, P]            in and out, storage: every segment's state
  void* c;                 // [D, G, H]            in and out, compute (LSTM)
  void* hidden;  // [D, G, H]            out, storage: o tanh(c) for the projection, or null
  void* out;     // [R, D * P]           out, storage
  void* h_n;     // [D, B, P]            out, storage
  void* c_n;     // [D, B, H]            out, storage
  void* gates;   // [D, N, 4 * H]        out, compute, or null
  void* cells;   // [D, N, H]            out, compute, or null
};
// h and c of all segments before the first step.
void generic_start(const GenericForward& p, void* stream);
// One step of at most `segments` segments. With a projection it ends in `hidden`, and emit follows.
void generic_step(const GenericForward& p, int64_t step, int64_t segments, void* stream);
// With a projection: what h holds now goes to out and h_n.
void generic_emit(const GenericForward& p, int64_t step, int64_t segments, void* stream);

// generic_backward.cu
struct GenericBackward : Generic {
  const void* d_out;     // [R, D * P]        in, storage, or null for zeros
  const void* d_h_n;     // [D, B, P]         in, storage, or null for zeros
  const void* d_c_n;     // [D, B, H]         in, storage, or null for zeros
  const void* d_cells;   // [D, N, H]         in, compute, or null for zeros
  const void* h_0;       // [D, B, P]         in, storage, or null for zeros
  const void* c_0;       // [D, B, H]         in, storage, or null for zeros
  const void* out;       // [R, D * P]        in, storage (GRU)
  const void* gates;     // [D, N, 4 * H]     in, compute
  const void* cells;     // [D, N, H]         in, compute (LSTM)
  const void* products;  // [D, G, P]         in, storage: W_hh^T of the next step's gradients
  const void* d_hidden;  // [D, G, H]         in, storage: W_hr^T d_projected, or null
  void* d_projected;     // [D, N, P]         out, storage, by token: gradients of h, or null
  void* step_projected;  // [D, G, P]         out, storage: the same of this step
  void* direct;          // [D, G, H]         in and out, compute: LSTM d_c; GRU z d_h
  void* d_gates;         // [N, D * 4 * H]    out, storage: as in PersistentBackward
  void* step_gates;      // [D, G, 4 * H]     out, storage: the same of this step
  void* d_h_0;           // [D, B, P]         out, storage
  void* d_c_0;           // [D, B, H]         out, storage
};
// With a projection, before `back`: the gradients of this step's h.
void generic_collect(const GenericBackward& p, int64_t step, int64_t segments, void* stream);
void generic_back(const GenericBackward& p, int64_t step, int64_t segments, void* stream);
// After the first step: gradients of the initial states.
void generic_finish(const GenericBackward& p, void* stream);

}  // namespace varlen_rnn::cuda
