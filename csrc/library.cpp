// The library's table of contents: every op's schema. Shapes are in params.h and
// varlen_rnn/layout/. No size is a number: torch.jit.trace would make it a constant. Where no other
// tensor has it, one without elements says it: positions [B, T, 0] or [R, 0], tokens [N, 0].
#include <torch/csrc/stable/library.h>

// The layout, and what float32 may be computed in (ignored on the CPU).
#define VARLEN_RNN_LAYOUT                                                                         \
  "Tensor batch_sizes, Tensor? rows, Tensor? reverse, Tensor initial_row, Tensor final_segment, " \
  "bool allow_tf32"

// Weights one by one: Tensor[] would make autograd several times as slow.
#define VARLEN_RNN_LSTM                                                                        \
  "Tensor x, Tensor? h_0, Tensor? c_0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, "  \
  "Tensor? bias_hh, Tensor? weight_hr, Tensor? weight_ih_reverse, Tensor? weight_hh_reverse, " \
  "Tensor? bias_ih_reverse, Tensor? bias_hh_reverse, Tensor? "                                 \
  "weight_hr_reverse, " VARLEN_RNN_LAYOUT

#define VARLEN_RNN_GRU                                                           \
  "Tensor x, Tensor? h_0, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, " \
  "Tensor? bias_hh, Tensor? weight_ih_reverse, Tensor? weight_hh_reverse, "      \
  "Tensor? bias_ih_reverse, Tensor? bias_hh_reverse, " VARLEN_RNN_LAYOUT

// Packed weights, in the order of varlen_rnn.ops.packed.KINDS; the last of an LSTM's is weight_hr.
#define VARLEN_RNN_FROZEN(hr, hr_reverse)                                                    \
  "Tensor weight_ih, Tensor weight_hh, Tensor bias_ih, Tensor bias_hh, Tensor? scale_ih, "   \
  "Tensor? scale_hh, " hr                                                                    \
  "Tensor? weight_ih_reverse, Tensor? weight_hh_reverse, Tensor? bias_ih_reverse, "          \
  "Tensor? bias_hh_reverse, Tensor? scale_ih_reverse, Tensor? scale_hh_reverse, " hr_reverse \
  "int hidden_size, int output_size, "                                                       \
  "Tensor batch_sizes, Tensor? rows, Tensor? reverse, Tensor initial_row, Tensor final_segment"

// The emulated CUDA ops are a library of their own.
#ifndef VARLEN_RNN_LIBRARY
#define VARLEN_RNN_LIBRARY varlen_rnn
#endif
#define VARLEN_RNN_DEFINE(name, m) STABLE_TORCH_LIBRARY(name, m)

VARLEN_RNN_DEFINE(VARLEN_RNN_LIBRARY, m) {
  m.def(
      "layout_from_rows(Tensor positions, Tensor? lengths, Tensor? first, Tensor? mask, "
      "Tensor? resets, bool batch_first, bool bidirectional, bool at_capacity) -> "
      "(Tensor batch_sizes, Tensor rows, Tensor reverse, Tensor initial_row, Tensor "
      "final_segment)");
  m.def("reverse_order(Tensor batch_sizes, Tensor tokens) -> Tensor");

  m.def("lstm_inference(" VARLEN_RNN_LSTM ") -> (Tensor out, Tensor h_n, Tensor c_n)");
  m.def("lstm_forward(" VARLEN_RNN_LSTM
        ") -> (Tensor out, Tensor h_n, Tensor c_n, Tensor cells, Tensor gates)");
  m.def(
      "lstm_backward(Tensor? d_out, Tensor? d_h_n, Tensor? d_c_n, Tensor? d_cells, Tensor x, "
      "Tensor? h_0, Tensor? c_0, Tensor weight_ih, Tensor weight_hh, Tensor? weight_hr, "
      "Tensor? weight_ih_reverse, Tensor? weight_hh_reverse, "
      "Tensor? weight_hr_reverse, " VARLEN_RNN_LAYOUT
      ", Tensor out, Tensor gates, Tensor cells, bool needs_x, bool needs_weights) -> (Tensor d_x, "
      "Tensor d_h_0, Tensor d_c_0, Tensor d_weight_ih, Tensor d_weight_hh, Tensor d_bias_ih, "
      "Tensor d_bias_hh, Tensor d_weight_hr, Tensor d_weight_ih_reverse, Tensor "
      "d_weight_hh_reverse, Tensor d_bias_ih_reverse, Tensor d_bias_hh_reverse, Tensor "
      "d_weight_hr_reverse)");

  m.def("gru_inference(" VARLEN_RNN_GRU ") -> (Tensor out, Tensor h_n)");
  m.def("gru_forward(" VARLEN_RNN_GRU ") -> (Tensor out, Tensor h_n, Tensor gates)");
  m.def(
      "gru_backward(Tensor? d_out, Tensor? d_h_n, Tensor x, Tensor? h_0, Tensor weight_ih, "
      "Tensor weight_hh, Tensor? weight_ih_reverse, Tensor? weight_hh_reverse, " VARLEN_RNN_LAYOUT
      ", Tensor out, Tensor gates, bool needs_x, bool needs_weights) -> (Tensor d_x, Tensor d_h_0, "
      "Tensor d_weight_ih, Tensor d_weight_hh, Tensor d_bias_ih, Tensor d_bias_hh, Tensor "
      "d_weight_ih_reverse, Tensor d_weight_hh_reverse, Tensor d_bias_ih_reverse, Tensor "
      "d_bias_hh_reverse)");

  m.def("lstm_frozen(Tensor x, Tensor? h_0, Tensor? c_0, " VARLEN_RNN_FROZEN(
      "Tensor? weight_hr, ", "Tensor? weight_hr_reverse, ") ") -> (Tensor out, Tensor h_n, Tensor "
                                                            "c_n)");
  m.def("gru_frozen(Tensor x, Tensor? h_0, " VARLEN_RNN_FROZEN(
      "",
      "") ") -> (Tensor out, Tensor "
          "h_n)");
}
