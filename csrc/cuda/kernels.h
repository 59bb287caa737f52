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

// rows.cu: any dtype.

// to [N, columns] = from [R, columns] by the layout's rows, zeros from the N-th token on. Rows of
// `from` are `stride` elements apart.
void gather_tokens(Dtype dtype, const DeviceLayout& layout, const void* from, int64_t stride,
                   int64_t columns, void* to, void* stream);
// The reverse: to [R, columns] has only its tokens' rows written.
void scatter_tokens(Dtype dtype, const DeviceLayout& layout, const void* from, int64_t columns,
                    void* to, void* stream);
// The output that each token of a direction started from, to [N, columns] by token: that of the token
// before it, or of h_0 [B, columns], or zeros. `out` begins at the direction's columns of its rows,
// which are `stride` elements apart.
void gather_previous(Dtype dtype, const DeviceLayout& layout, int direction, const void* out,
                     int64_t stride, const void* h_0, int64_t columns, void* to, void* stream);
// o tanh(c) of a direction's tokens, to [N, H] by token, zeros from the N-th on. gates [N, 4 * H] and
// cells [N, H] are compute.
void gather_hidden(Dtype dtype, const DeviceLayout& layout, int direction, int64_t hidden_size,
                   const void* gates, const void* cells, void* to, void* stream);
// to [count] = bias_ih + bias_hh, the latter of the first `both` elements only.
void add_biases(Dtype dtype, const void* bias_ih, const void* bias_hh, int64_t count, int64_t both,
                void* to, void* stream);
// From the segment that each row ends with, or -1, [B], to the row that each segment is the last one
// of: [G], all -1 before.
void find_final_rows(const int64_t* final_segment, int64_t num_rows, int64_t num_segments,
                     int64_t* final_row, void* stream);
// Zeros in the rows of [D, B, columns] that a segment ends in.
void zero_final_rows(Dtype dtype, const DeviceLayout& layout, int64_t num_directions,
                     int64_t columns, void* states, void* stream);
// The rows of [N, columns] from the N-th token on become zeros.
void zero_surplus_tokens(Dtype dtype, const DeviceLayout& layout, int64_t columns, void* tokens,
                         void* stream);

// One direction of a layer, a step at a time: any dtype, any size.
struct Generic {
  DeviceLayout layout;
  Dtype dtype;
  bool is_lstm;
  int direction;
  int num_directions;   // D
  int64_t hidden_size;  // H
  int64_t output_size;  // P
};

// generic_forward.cu
struct GenericForward : Generic {
  const void* inputs;    // [N, D * gates * H]  in, storage: W_ih x and the biases, by token
  const void* products;  // [G_s, gates * H]    in, storage: W_hh h of this step's segments
  const void* bias_hn;   // [H]                 in, storage, or null: GRU's b_hh of the gate n
  const void* h_0;       // [B, P]              in, storage, or null for zeros: of this direction
  const void* c_0;       // [B, H]              in, storage, or null for zeros
  void* h;               // [G, P]              in and out, storage: every segment's state
  void* c;               // [G, H]              in and out, compute (LSTM)
  void* hidden;          // [G_s, H]            out, storage: o tanh(c) for the projection, or null
  void* out;             // [R, D * P]          out, storage
  void* h_n;             // [B, P]              out, storage
  void* c_n;             // [B, H]              out, storage
  void* gates;           // [N, 4 * H]          out, compute, or null
  void* cells;           // [N, H]              out, compute, or null
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
  const void* d_h_n;     // [B, P]            in, storage, or null for zeros: of this direction
  const void* d_c_n;     // [B, H]            in, storage, or null for zeros
  const void* d_cells;   // [N, H]            in, compute, or null for zeros
  const void* h_0;       // [B, P]            in, storage, or null for zeros
  const void* c_0;       // [B, H]            in, storage, or null for zeros
  const void* out;       // [R, D * P]        in, storage (GRU)
  const void* gates;     // [N, 4 * H]        in, compute
  const void* cells;     // [N, H]            in, compute (LSTM)
  const void* products;  // [G, P]            in, storage: W_hh^T of the next step's gradients
  const void* d_hidden;  // [G_s, H]          in, storage: W_hr^T d_projected, or null
  void* d_projected;     // [N, P]            out, storage, by token: gradients of h, or null
  void* step_projected;  // [G_s, P]          out, storage: the same of this step
  void* direct;          // [G, H]            in and out, compute: LSTM d_c; GRU z d_h
  void* d_gates;         // [N, D * 4 * H]    out, storage: as in PersistentBackward
  void* step_gates;      // [G_s, 4 * H]      out, storage: the same of this step
  void* d_h_0;           // [B, P]            out, storage
  void* d_c_0;           // [B, H]            out, storage
};
// With a projection, before `back`: the gradients of this step's h.
void generic_collect(const GenericBackward& p, int64_t step, int64_t segments, void* stream);
void generic_back(const GenericBackward& p, int64_t step, int64_t segments, void* stream);
// After the first step: gradients of the initial states.
void generic_finish(const GenericBackward& p, void* stream);

}  // namespace varlen_rnn::cuda
