#include "cuda/products.h"

#ifdef VARLEN_RNN_EMULATE
#include "cuda/emulator/cublas.h"
#endif

namespace varlen_rnn::cuda {

#ifdef VARLEN_RNN_EMULATE

const Cublas& cublas() {
  static const Cublas none;
  return emulator::blas().is_there ? emulator::kCublas : none;
}

#else

// Looked for by way of torch's CUDA library: the cuBLAS whose handle it has.
const Cublas& cublas() {
  static const Cublas found = [] {
    Cublas all;
    const auto find = [](auto& function, const char* name) {
      function = reinterpret_cast<std::decay_t<decltype(function)> >(torch_cuda_symbol(name));
    };
    find(all.get_handle, "torch_get_current_cuda_blas_handle");
    find(all.get_math_mode, "cublasGetMathMode");
    find(all.set_math_mode, "cublasSetMathMode");
    find(all.gemm, "cublasGemmStridedBatchedEx");
    return all;
  }();
  return found;
}

#endif

namespace {

CudaDataType type_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return CUDA_R_32F;
    case Dtype::kFloat64:
      return CUDA_R_64F;
    case Dtype::kBFloat16:
      return CUDA_R_16BF;
    case Dtype::kFloat16:
      return CUDA_R_16F;
  }
  return CUDA_R_32F;
}

CublasComputeType compute_of(const Layer& layer) {
  switch (layer.call.dtype) {
    case Dtype::kFloat64:
      return CUBLAS_COMPUTE_64F;
    case Dtype::kFloat32:
      //~ precision
      return layer.allow_tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    default:
      return CUBLAS_COMPUTE_32F;
  }
}

void check(int status, const char* call) {
  STD_TORCH_CHECK(status == 0, "varlen_rnn: ", call, " must succeed, got status ", status);
}

// Of a [rows, columns] or [D, rows, columns] tensor.
Operand operand_of(const Tensor& t) {
  const int64_t batched = t.dim() - 2, rows = t.size(batched), columns = t.size(batched + 1);
  const int64_t down = t.stride(batched), across = t.stride(batched + 1);
  Operand o{device_pointer(t), false, rows, columns, 0, batched == 1 ? t.stride(0) : 0};
  o.transposed = columns > 1 && across != 1;
  o.pitch = o.transposed ? across : down;
  if ((o.transposed ? columns : rows) == 1) o.pitch = o.transposed ? rows : columns;
  return o;
}

// Whether cuBLAS can read it where it is.
bool is_readable(const Tensor& t) {
  const Operand o = operand_of(t);
  const int64_t batched = t.dim() - 2;
  const int64_t along = o.transposed ? o.rows : o.columns;
  const bool side_by_side = along == 1 || t.stride(batched + (o.transposed ? 0 : 1)) == 1;
  return side_by_side && o.pitch >= along && o.pitch <= INT32_MAX && o.rows <= INT32_MAX &&
         o.columns <= INT32_MAX && o.rows > 0 && o.columns > 0;
}

// out = a b (+ out) by cuBLAS; false if it cannot.
bool multiply(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& out, bool add) {
  if (!cublas().is_there() || !is_readable(a) || !is_readable(b) || !is_readable(out)) return false;
  Gemm(layer).multiply(1, operand_of(a), operand_of(b), operand_of(out), add);
  return true;
}

bool is_float32(const Layer& layer) { return layer.call.dtype == Dtype::kFloat32; }

}  // namespace

Gemm::Gemm(const Layer& layer) : type_(type_of(layer.call.dtype)), compute_(compute_of(layer)) {
  const Cublas& blas = cublas();
  check(blas.get_handle(&handle_), "torch_get_current_cuda_blas_handle");
  check(blas.get_math_mode(handle_, &mode_), "cublasGetMathMode");
  const bool is_16_bit = type_ == CUDA_R_16F || type_ == CUDA_R_16BF;
  check(blas.set_math_mode(handle_, is_16_bit ? CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION
                                              : CUBLAS_DEFAULT_MATH),
        "cublasSetMathMode");
}

//~ mode
Gemm::~Gemm() { cublas().set_math_mode(handle_, mode_); }

// Row by row our out is its transpose column by column: out^T = b^T a^T.
void Gemm::multiply(int64_t count, const Operand& a, const Operand& b, const Operand& out,
                    bool add) {
  const float float_one = 1, float_beta = add ? 1 : 0;
  const double one = 1, beta = add ? 1 : 0;
  const bool is_double = compute_ == CUBLAS_COMPUTE_64F;
  const auto op = [](const Operand& o) { return o.transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
  const auto as_int = [](int64_t size) { return static_cast<int>(size); };
  check(cublas().gemm(handle_, op(b), op(a), as_int(b.columns), as_int(a.rows), as_int(a.columns),
                      is_double ? static_cast<const void*>(&one) : &float_one, b.data, type_,
                      as_int(b.pitch), b.stride, a.data, type_, as_int(a.pitch), a.stride,
                      is_double ? static_cast<const void*>(&beta) : &float_beta, out.data, type_,
                      as_int(out.pitch), out.stride, as_int(count), compute_, CUBLAS_GEMM_DEFAULT),
        "cublasGemmStridedBatchedEx");
}

StepProducts::StepProducts(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& out)
    : operands_{operand_of(a), operand_of(b), operand_of(out)},
      a_(a),
      b_(b),
      out_(out),
      some_a_(a),
      some_out_(out) {
  const bool readable = is_readable(a) && is_readable(b) && is_readable(out);
  if (cublas().is_there() && readable) gemm_.emplace(layer);
}

void StepProducts::run(int64_t segments) {
  if (gemm_) {
    operands_[0].rows = operands_[2].rows = segments;
    gemm_->multiply(b_.size(0), operands_[0], operands_[1], operands_[2], /*add=*/false);
    return;
  }
  if (segments != segments_) {
    segments_ = segments;
    some_a_ = slice(a_, 1, 0, segments);
    some_out_ = slice(out_, 1, 0, segments);
  }
  bmm_out(some_a_, b_, some_out_);
}

void product(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& out) {
  if (!is_float32(layer) || !multiply(layer, a, b, out, /*add=*/false)) mm_out(a, b, out);
}

Tensor linear(const Layer& layer, const Tensor& tokens, const Tensor& weight,
              const OptionalTensor& biases, void* stream) {
  const Tensor out = torch::stable::new_empty(tokens, {tokens.size(0), weight.size(0)});
  if (is_float32(layer) && cublas().is_there()) {
    if (biases)
      repeat_row(device_pointer(*biases), bytes_of(*biases), out.size(0), device_pointer(out),
                 stream);
    if (multiply(layer, tokens, transposed(weight), out, biases.has_value())) return out;
  }
  //~ linear
  linear_out(tokens, weight, biases, out);
  return out;
}

}  // namespace varlen_rnn::cuda
