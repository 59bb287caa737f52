// The ops of layers whose weights are packed already: check everything, allocate, fill the kernels'
// struct, run.
#include <array>
#include <tuple>

#include "cpu/call.h"
#include "cpu/int8.h"

namespace varlen_rnn {
namespace {

// For each direction the tensors of varlen_rnn.ops.packed.KINDS; without a second one it has none.
using FrozenTensors = std::array<std::array<OptionalTensor, 7>, 2>;
enum { kWih, kWhh, kBih, kBhh, kSih, kShh, kWhr };
constexpr const char* kNames[2][7] = {
    {"weight_ih", "weight_hh", "bias_ih", "bias_hh", "scale_ih", "scale_hh", "weight_hr"},
    {"weight_ih_reverse", "weight_hh_reverse", "bias_ih_reverse", "bias_hh_reverse",
     "scale_ih_reverse", "scale_hh_reverse", "weight_hr_reverse"}};

struct CheckedFrozen {
  Tensor x;               // with columns side by side
  FrozenTensors weights;  // contiguous

  CheckedFrozen(const char* op, int64_t num_gates, const Tensor& input, int64_t hidden_size,
                int64_t output_size, const FrozenTensors& given, Forward& p)
      : x(input) {
    const Place place(x);
    Call& call = p.call;
    STD_TORCH_CHECK(x.dim() == 2 && x.size(1) > 0, op, ": x must be [R, I] with I > 0, got ",
                    to_string(x.sizes()));
    STD_TORCH_CHECK(hidden_size > 0 && output_size > 0, op,
                    ": hidden_size and output_size must be positive, got ", hidden_size, " and ",
                    output_size);
    const int64_t I = x.size(1), H = hidden_size, P = output_size;
    call.dtype = storage_dtype(op, x);
    call.num_directions = given[1][kWih].has_value() ? 2 : 1;
    call.input_size = I;
    call.hidden_size = H;
    call.output_size = P;
    const bool projected = given[0][kWhr].has_value();
    STD_TORCH_CHECK(projected || P == H, op, ": output_size must be hidden_size = ", H,
                    " without weight_hr, got ", P);
    if (x.stride(1) != 1 && I > 1) x = torch::stable::contiguous(x);

    const ScalarType compute = compute_dtype(x.scalar_type());
    const ScalarType packed = given[0][kWih]->scalar_type();
    p.order = packed == ScalarType::Char       ? WeightOrder::kInt8
              : packed == ScalarType::BFloat16 ? WeightOrder::kBFloat16Pairs
                                               : WeightOrder::kPacked;
    const bool is_int8 = p.order == WeightOrder::kInt8;
    if (is_int8) {
      check_dtype(op, "x", x, ScalarType::Float);
      STD_TORCH_CHECK(activation_max(std::max(I, H)) >= kInt8Max, op, ": I and H must be at most ",
                      INT32_MAX / (kInt8Max * kInt8Max), ", got I = ", I, ", H = ", H);
      STD_TORCH_CHECK(!projected, op, ": weight_hr must be None with int8 weights, got a tensor");
    } else if (p.order == WeightOrder::kBFloat16Pairs) {
      STD_TORCH_CHECK(compute == ScalarType::Float, op,
                      ": weight_ih must not be BFloat16 where x is Double, got it");
    }
    const Tensor& bias = *given[0][kBih];
    STD_TORCH_CHECK(bias.dim() == 3 && bias.size(2) > 0, op,
                    ": bias_ih must be [U, gates, units], got ", to_string(bias.sizes()));
    const int64_t units = p.units = is_int8 ? kInt8Units : bias.size(2), U = (H - 1) / units + 1;
    const auto half = [](int64_t K) { return (K - 1) / 2 + 1; };
    const int64_t width = 4 * units;
    for (int64_t d = 0; d < 2; ++d) {
      const bool there = d < call.num_directions;
      const auto check = [&](int kind, bool expected, ScalarType dtype, const char* symbols,
                             std::initializer_list<int64_t> shape) {
        const char* name = kNames[d][kind];
        expected = expected && there;
        STD_TORCH_CHECK(given[d][kind].has_value() == expected, op, ": ", name,
                        expected ? " must be there, got None" : " must be None, got a tensor");
        weights[d][kind] = checked_optional(op, name, given[d][kind], dtype, place, symbols, shape);
      };
      for (int kind : {kWih, kWhh}) {
        const int64_t K = kind == kWih ? I : P;
        if (is_int8) {
          check(kind, true, packed, "[U, gates, K / 2, 16, 2]", {U, num_gates, half(K), units, 2});
        } else if (p.order == WeightOrder::kBFloat16Pairs) {
          check(kind, true, packed, "[U, K / 2, gates, units, 2]",
                {U, half(K), num_gates, units, 2});
        } else {
          check(kind, true, compute, "[U, K, gates, units]", {U, K, num_gates, units});
        }
      }
      for (int kind : {kBih, kBhh}) {
        check(kind, true, compute, "[U, gates, units]", {U, num_gates, units});
      }
      for (int kind : {kSih, kShh}) {
        check(kind, is_int8, ScalarType::Float, "[U, gates, 16]", {U, num_gates, units});
      }
      check(kWhr, projected, compute, "[blocks, H, 4 * units]", {(P - 1) / width + 1, H, width});
    }
  }

  Weights pointers(int64_t d) const {
    const auto& [ih, hh, b_ih, b_hh, s_ih, s_hh, hr] = weights[d];
    return {pointer(ih),
            pointer(hh),
            pointer(b_ih),
            pointer(b_hh),
            pointer(hr),
            static_cast<const float*>(pointer(s_ih)),
            static_cast<const float*>(pointer(s_hh))};
  }
};

ForwardResult run(const char* op, int64_t num_gates, const Tensor& x, const OptionalTensor& h_0,
                  const OptionalTensor& c_0, const FrozenTensors& weights, int64_t hidden_size,
                  int64_t output_size, const Tensor& batch_sizes, const OptionalTensor& rows,
                  const OptionalTensor& reverse, const Tensor& initial_row,
                  const Tensor& final_segment) {
  Forward p{};
  const CheckedFrozen input(op, num_gates, x, hidden_size, output_size, weights, p);
  for (int64_t d = 0; d < p.call.num_directions; ++d) p.weights[d] = input.pointers(d);
  return forward_of_layer(op, num_gates, false, p, input.x, h_0, c_0, batch_sizes, rows, reverse,
                          initial_row, final_segment);
}

std::tuple<Tensor, Tensor, Tensor> lstm_frozen(
    const Tensor& x, const OptionalTensor& h_0, const OptionalTensor& c_0, const Tensor& weight_ih,
    const Tensor& weight_hh, const Tensor& bias_ih, const Tensor& bias_hh,
    const OptionalTensor& scale_ih, const OptionalTensor& scale_hh, const OptionalTensor& weight_hr,
    const OptionalTensor& weight_ih_reverse, const OptionalTensor& weight_hh_reverse,
    const OptionalTensor& bias_ih_reverse, const OptionalTensor& bias_hh_reverse,
    const OptionalTensor& scale_ih_reverse, const OptionalTensor& scale_hh_reverse,
    const OptionalTensor& weight_hr_reverse, int64_t hidden_size, int64_t output_size,
    const Tensor& batch_sizes, const OptionalTensor& rows, const OptionalTensor& reverse,
    const Tensor& initial_row, const Tensor& final_segment) {
  ForwardResult r =
      run("varlen_rnn::lstm_frozen", 4, x, h_0, c_0,
          {{{weight_ih, weight_hh, bias_ih, bias_hh, scale_ih, scale_hh, weight_hr},
            {weight_ih_reverse, weight_hh_reverse, bias_ih_reverse, bias_hh_reverse,
             scale_ih_reverse, scale_hh_reverse, weight_hr_reverse}}},
          hidden_size, output_size, batch_sizes, rows, reverse, initial_row, final_segment);
  return {r.out, r.h_n, *r.c_n};
}

std::tuple<Tensor, Tensor> gru_frozen(
    const Tensor& x, const OptionalTensor& h_0, const Tensor& weight_ih, const Tensor& weight_hh,
    const Tensor& bias_ih, const Tensor& bias_hh, const OptionalTensor& scale_ih,
    const OptionalTensor& scale_hh, const OptionalTensor& weight_ih_reverse,
    const OptionalTensor& weight_hh_reverse, const OptionalTensor& bias_ih_reverse,
    const OptionalTensor& bias_hh_reverse, const OptionalTensor& scale_ih_reverse,
    const OptionalTensor& scale_hh_reverse, int64_t hidden_size, int64_t output_size,
    const Tensor& batch_sizes, const OptionalTensor& rows, const OptionalTensor& reverse,
    const Tensor& initial_row, const Tensor& final_segment) {
  ForwardResult r =
      run("varlen_rnn::gru_frozen", 3, x, h_0, {},
          {{{weight_ih, weight_hh, bias_ih, bias_hh, scale_ih, scale_hh, {}},
            {weight_ih_reverse,
             weight_hh_reverse,
             bias_ih_reverse,
             bias_hh_reverse,
             scale_ih_reverse,
             scale_hh_reverse,
             {}}}},
          hidden_size, output_size, batch_sizes, rows, reverse, initial_row, final_segment);
  return {r.out, r.h_n};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(varlen_rnn, CPU, m) {
  m.impl("lstm_frozen", TORCH_BOX(&lstm_frozen));
  m.impl("gru_frozen", TORCH_BOX(&gru_frozen));
}

}  // namespace varlen_rnn
