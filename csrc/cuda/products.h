// Matrix products of a layer. Those of its steps are direct calls of cuBLAS, without torch's dispatcher
// and without views; so are all of float32, which follow the switch of TF32 that RNNs have and not that of
// torch's products. The others are torch's, and all are where no cuBLAS is found.
#pragma once

#include "cuda/cublas.h"
#include "cuda/layer.h"

namespace varlen_rnn::cuda {

// out = a b
void product(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& out);

// tokens weight^T and the biases [rows of weight], if any
Tensor linear(const Layer& layer, const Tensor& tokens, const Tensor& weight,
              const OptionalTensor& biases, void* stream);

// Row-major matrices [rows, columns] of a tensor, or the transposed ones of such.
struct Operand {
  void* data;
  bool transposed;
  int64_t rows, columns;
  int64_t pitch;   // elements from row to row (transposed: from column to column)
  int64_t stride;  // elements from one matrix to the next
};

// Torch's handle, with the mode that a layer's products want for as long as this lives: until then
// this thread may call no product of torch's.
class Gemm {
 public:
  explicit Gemm(const Layer& layer);
  ~Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;

  // out = a b (+ out) of `count` matrices each
  void multiply(int64_t count, const Operand& a, const Operand& b, const Operand& out, bool add);

 private:
  CudaDataType type_;
  CublasComputeType compute_;
  void* handle_ = nullptr;
  int mode_ = 0;  // of torch's
};

// Products of steps: out [D, G, n] = a [D, G, k] b [D, k, n] of the first segments of each direction.
class StepProducts {
 public:
  StepProducts(const Layer& layer, const Tensor& a, const Tensor& b, const Tensor& out);

  void run(int64_t segments);

 private:
  std::optional<Gemm> gemm_;
  Operand operands_[3];  // a, b, out
  // Without cuBLAS: views, made anew only where the number of segments changes.
  Tensor a_, b_, out_, some_a_, some_out_;
  int64_t segments_ = -1;
};

}  // namespace varlen_rnn::cuda
