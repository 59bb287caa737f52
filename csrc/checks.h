// What the ops check of their arguments whatever the device: the input, the weights, the states.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "torch_stable.h"

namespace varlen_rnn {

inline Dtype storage_dtype(const char* op, const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      STD_TORCH_CHECK(false, op, ": dtype must be float32, float64, bfloat16 or float16, got ",
                      torch::headeronly::toString(x.scalar_type()));
  }
}

// What values of a dtype are computed and saved in.
inline ScalarType compute_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// batch_sizes on the host, with its sums. Where they end in 0, other arrays of the layout are as large
// as they may have to be, and only their first N or G elements count.
struct HostSteps {
  std::vector<int64_t> batch_sizes;  // [S], positive
  std::vector<int64_t> first_token;  // [S]
  int64_t num_tokens = 0;            // N
  bool at_capacity;

  HostSteps(const char* op, const Tensor& tensor, int64_t capacity)
      : at_capacity(tensor.numel() > 0 &&
                    tensor.const_data_ptr<int64_t>()[tensor.numel() - 1] == 0) {
    const int64_t* values = tensor.const_data_ptr<int64_t>();
    for (int64_t s = 0; s < tensor.numel(); ++s) {
      STD_TORCH_CHECK(values[s] >= (at_capacity ? 0 : 1) && (s == 0 || values[s] <= values[s - 1]),
                      op, ": batch_sizes must be positive and not increase, got ", values[s],
                      " at index ", s);
      STD_TORCH_CHECK(values[s] <= capacity - num_tokens, op,
                      ": batch_sizes must sum to N = ", capacity, ", got more");
      if (values[s] == 0) continue;
      batch_sizes.push_back(values[s]);
      first_token.push_back(num_tokens);
      num_tokens += values[s];
    }
    STD_TORCH_CHECK(at_capacity || num_tokens == capacity, op,
                    ": batch_sizes must sum to N = ", capacity, ", got ", num_tokens);
  }

  int64_t num_steps() const { return static_cast<int64_t>(batch_sizes.size()); }
  int64_t num_segments() const { return batch_sizes.empty() ? 0 : batch_sizes[0]; }
};

// An argument that may be missing, contiguous.
inline OptionalTensor checked_optional(const char* op, const char* name,
                                       const OptionalTensor& tensor, ScalarType dtype, Place place,
                                       const char* symbols, std::initializer_list<int64_t> shape) {
  if (!tensor.has_value()) return tensor;
  check_dtype(op, name, *tensor, dtype);
  check_place(op, name, *tensor, place);
  check_shape(op, name, *tensor, symbols, shape);
  return dense(*tensor);
}

// A layer's weights as the ops are given them: for each direction weight_ih, weight_hh, bias_ih,
// bias_hh, weight_hr. Without a second direction it has none.
using WeightTensors = std::array<std::array<OptionalTensor, 5>, 2>;
enum { kWeightIh, kWeightHh, kBiasIh, kBiasHh, kWeightHr };

// What both passes check alike: the input, and the weights. Fills in the call's dtype and sizes.
struct CheckedInput {
  Tensor x;               // with columns side by side
  WeightTensors weights;  // contiguous

  CheckedInput(const char* op, int64_t num_gates, const Tensor& input, const WeightTensors& given,
               Call& call)
      : x(input) {
    const ScalarType dtype = x.scalar_type();
    const Place place(x);
    STD_TORCH_CHECK(x.dim() == 2, op, ": x must be [R, I], got ", to_string(x.sizes()));
    const Tensor& weight_hh = *given[0][kWeightHh];
    STD_TORCH_CHECK(weight_hh.dim() == 2, op, ": weight_hh must have 2 dimensions, got ",
                    to_string(weight_hh.sizes()));
    call.dtype = storage_dtype(op, x);
    const int64_t D = call.num_directions = given[1][kWeightHh].has_value() ? 2 : 1;
    const int64_t I = call.input_size = x.size(1);
    const int64_t H = call.hidden_size = weight_hh.size(0) / num_gates;
    const int64_t P = call.output_size = weight_hh.size(1), rows = num_gates * H;
    STD_TORCH_CHECK(H > 0 && P > 0 && I > 0, op, ": sizes must be positive, got I = ", I,
                    ", H = ", H, ", P = ", P);
    const bool projected = given[0][kWeightHr].has_value();
    STD_TORCH_CHECK(given[0][kBiasIh].has_value() == given[0][kBiasHh].has_value(), op,
                    ": bias_ih and bias_hh must both be there or both be None");
    if (x.stride(1) != 1 && I > 1) x = torch::stable::contiguous(x);
    for (int64_t d = 0; d < 2; ++d) {
      static constexpr const char* kNames[2][5] = {
          {"weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"},
          {"weight_ih_reverse", "weight_hh_reverse", "bias_ih_reverse", "bias_hh_reverse",
           "weight_hr_reverse"}};
      const auto check = [&](int kind, const char* symbols, std::initializer_list<int64_t> shape) {
        const bool expected = d < D && given[0][kind].has_value();
        STD_TORCH_CHECK(given[d][kind].has_value() == expected, op, ": ", kNames[d][kind],
                        expected ? " must be there, got None" : " must be None, got a tensor");
        weights[d][kind] =
            checked_optional(op, kNames[d][kind], given[d][kind], dtype, place, symbols, shape);
      };
      check(kWeightIh, "[gates * H, I]", {rows, I});
      check(kWeightHh, "[gates * H, P]", {rows, projected ? P : H});
      check(kBiasIh, "[gates * H]", {rows});
      check(kBiasHh, "[gates * H]", {rows});
      check(kWeightHr, "[P, H]", {P, H});
    }
  }

  Weights pointers(int64_t d) const {
    const auto& [ih, hh, b_ih, b_hh, hr] = weights[d];
    return {pointer(ih), pointer(hh), pointer(b_ih), pointer(b_hh), pointer(hr), nullptr, nullptr};
  }
};

}  // namespace varlen_rnn
