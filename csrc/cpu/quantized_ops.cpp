// The ops of layers with int8 weights: check everything, allocate, fill the kernels' structs, run.
#include <array>
#include <tuple>

#include "cpu/call.h"

namespace varlen_rnn {
namespace {

// For each direction the weights in the order of QuantizedWeights; without a second direction it has
// none.
using QuantizedTensors = std::array<std::array<OptionalTensor, 6>, 2>;

struct CheckedQuantized {
  Tensor x;  // with columns side by side
  QuantizedTensors weights;

  CheckedQuantized(const char* op, int64_t num_gates, const Tensor& input, int64_t hidden_size,
                   const QuantizedTensors& given, Call& call)
      : x(input) {
    const Place place(x);
    check_dtype(op, "x", x, ScalarType::Float);
    STD_TORCH_CHECK(x.dim() == 2 && x.size(1) > 0, op, ": x must be [R, I] with I > 0, got ",
                    to_string(x.sizes()));
    STD_TORCH_CHECK(hidden_size > 0, op, ": hidden_size must be positive, got ", hidden_size);
    const int64_t I = x.size(1), H = hidden_size;
    STD_TORCH_CHECK(quantized_activation_max(std::max(I, H)) >= kQuantizedMax, op,
                    ": I and H must be at most ", INT32_MAX / (kQuantizedMax * kQuantizedMax),
                    ", got I = ", I, ", H = ", H);
    if (x.stride(1) != 1 && I > 1) x = torch::stable::contiguous(x);
    call.dtype = Dtype::kFloat32;
    call.num_directions = given[1][0].has_value() ? 2 : 1;
    call.input_size = I;
    call.hidden_size = call.output_size = H;
    const int64_t U = (H - 1) / kQuantizedUnits + 1;
    for (int64_t d = 0; d < 2; ++d) {
      static constexpr const char* kNames[2][6] = {
          {"weight_ih", "weight_hh", "scale_ih", "scale_hh", "bias_ih", "bias_hh"},
          {"weight_ih_reverse", "weight_hh_reverse", "scale_ih_reverse", "scale_hh_reverse",
           "bias_ih_reverse", "bias_hh_reverse"}};
      for (int kind = 0; kind < 6; ++kind) {
        const bool expected = d < call.num_directions;
        const char* name = kNames[d][kind];
        STD_TORCH_CHECK(given[d][kind].has_value() == expected, op, ": ", name,
                        expected ? " must be there, got None" : " must be None, got a tensor");
        const bool is_weight = kind < 2;
        const int64_t pairs = ((kind == 0 ? I : H) - 1) / 2 + 1;
        weights[d][kind] =
            is_weight ? checked_optional(op, name, given[d][kind], ScalarType::Char, place,
                                         "[U, gates, K / 2, 16, 2]",
                                         {U, num_gates, pairs, kQuantizedUnits, 2})
                      : checked_optional(op, name, given[d][kind], ScalarType::Float, place,
                                         "[U, gates, 16]", {U, num_gates, kQuantizedUnits});
      }
    }
  }

  QuantizedWeights pointers(int64_t d) const {
    const auto number = [&](int kind) {
      return static_cast<const float*>(pointer(weights[d][kind]));
    };
    return {static_cast<const int8_t*>(pointer(weights[d][0])),
            static_cast<const int8_t*>(pointer(weights[d][1])),
            number(2),
            number(3),
            number(4),
            number(5)};
  }
};

struct QuantizedResult {
  Tensor out, h_n;
  OptionalTensor c_n;
};

QuantizedResult run(const char* op, int64_t num_gates, const Tensor& x, const OptionalTensor& h_0,
                    const OptionalTensor& c_0, const QuantizedTensors& weights, int64_t hidden_size,
                    const Tensor& batch_sizes, const OptionalTensor& rows,
                    const OptionalTensor& reverse, const Tensor& initial_row,
                    const Tensor& final_segment) {
  const bool is_lstm = num_gates == 4;
  const Place place(x);
  QuantizedForward p{};
  Call& call = p.call;
  const CheckedQuantized input(op, num_gates, x, hidden_size, weights, call);
  const int64_t D = call.num_directions, H = call.hidden_size;
  for (int64_t d = 0; d < D; ++d) p.weights[d] = input.pointers(d);
  const CheckedLayout checked(op, place, x.size(0), D, batch_sizes, rows, reverse, initial_row,
                              final_segment);
  call.layout = checked.layout;
  const int64_t B = call.layout.num_rows;
  const auto state = [&](const char* name, const OptionalTensor& given) {
    return checked_optional(op, name, given, ScalarType::Float, place, "[D, B, H]", {D, B, H});
  };
  const OptionalTensor h = state("h_0", h_0), c = state("c_0", c_0);

  QuantizedResult result{
      torch::stable::new_empty(x, {x.size(0), D * H}), states_like(x, h, {D, B, H}), {}};
  if (is_lstm) result.c_n = states_like(x, c, {D, B, H});
  zero_padding(checked, result.out);
  if (call.layout.num_tokens == 0) return result;

  p.x = input.x.const_data_ptr<float>();
  p.x_stride = input.x.stride(0);
  p.h_0 = static_cast<const float*>(pointer(h));
  p.c_0 = static_cast<const float*>(pointer(c));
  p.out = result.out.mutable_data_ptr<float>();
  p.h_n = result.h_n.mutable_data_ptr<float>();
  if (result.c_n) p.c_n = result.c_n->mutable_data_ptr<float>();
  const double flops = 2.0 * static_cast<double>(call.layout.num_tokens * D * num_gates * H) *
                       static_cast<double>(call.input_size + H);
  const QuantizedKernels& k = quantized_kernels();
  run_kernel(p, flops, is_lstm ? k.lstm_scratch : k.gru_scratch, is_lstm ? k.lstm : k.gru);
  return result;
}

std::tuple<Tensor, Tensor, Tensor> quantized_lstm(
    const Tensor& x, const OptionalTensor& h_0, const OptionalTensor& c_0, const Tensor& weight_ih,
    const Tensor& weight_hh, const Tensor& scale_ih, const Tensor& scale_hh, const Tensor& bias_ih,
    const Tensor& bias_hh, const OptionalTensor& weight_ih_reverse,
    const OptionalTensor& weight_hh_reverse, const OptionalTensor& scale_ih_reverse,
    const OptionalTensor& scale_hh_reverse, const OptionalTensor& bias_ih_reverse,
    const OptionalTensor& bias_hh_reverse, int64_t hidden_size, const Tensor& batch_sizes,
    const OptionalTensor& rows, const OptionalTensor& reverse, const Tensor& initial_row,
    const Tensor& final_segment) {
  QuantizedResult r = run("varlen_rnn::quantized_lstm", 4, x, h_0, c_0,
                          {{{weight_ih, weight_hh, scale_ih, scale_hh, bias_ih, bias_hh},
                            {weight_ih_reverse, weight_hh_reverse, scale_ih_reverse,
                             scale_hh_reverse, bias_ih_reverse, bias_hh_reverse}}},
                          hidden_size, batch_sizes, rows, reverse, initial_row, final_segment);
  return {r.out, r.h_n, *r.c_n};
}

std::tuple<Tensor, Tensor> quantized_gru(
    const Tensor& x, const OptionalTensor& h_0, const Tensor& weight_ih, const Tensor& weight_hh,
    const Tensor& scale_ih, const Tensor& scale_hh, const Tensor& bias_ih, const Tensor& bias_hh,
    const OptionalTensor& weight_ih_reverse, const OptionalTensor& weight_hh_reverse,
    const OptionalTensor& scale_ih_reverse, const OptionalTensor& scale_hh_reverse,
    const OptionalTensor& bias_ih_reverse, const OptionalTensor& bias_hh_reverse,
    int64_t hidden_size, const Tensor& batch_sizes, const OptionalTensor& rows,
    const OptionalTensor& reverse, const Tensor& initial_row, const Tensor& final_segment) {
  QuantizedResult r = run("varlen_rnn::quantized_gru", 3, x, h_0, {},
                          {{{weight_ih, weight_hh, scale_ih, scale_hh, bias_ih, bias_hh},
                            {weight_ih_reverse, weight_hh_reverse, scale_ih_reverse,
                             scale_hh_reverse, bias_ih_reverse, bias_hh_reverse}}},
                          hidden_size, batch_sizes, rows, reverse, initial_row, final_segment);
  return {r.out, r.h_n};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(varlen_rnn, CPU, m) {
  m.impl("quantized_lstm", TORCH_BOX(&quantized_lstm));
  m.impl("quantized_gru", TORCH_BOX(&quantized_gru));
}

}  // namespace varlen_rnn
