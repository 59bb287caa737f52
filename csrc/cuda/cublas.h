// The few functions of cuBLAS that products.cpp calls, found at run time: builds know no cuBLAS, and
// take the one that torch has loaded. Names and numbers are cublas_api.h's and library_types.h's,
// which are the same from CUDA 11 on.
#pragma once

namespace varlen_rnn::cuda {

// cublasOperation_t: of matrices whose columns lie one behind the other.
enum CublasOperation { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 };
// cudaDataType_t
enum CudaDataType { CUDA_R_32F = 0, CUDA_R_64F = 1, CUDA_R_16F = 2, CUDA_R_16BF = 14 };
// cublasComputeType_t
enum CublasComputeType {
  CUBLAS_COMPUTE_32F = 68,            // TF32 only where the handle's mode says so
  CUBLAS_COMPUTE_32F_FAST_TF32 = 77,  // float32 as TF32
  CUBLAS_COMPUTE_64F = 70,
};
// cublasMath_t
enum CublasMath {
  CUBLAS_DEFAULT_MATH = 0,
  CUBLAS_TF32_TENSOR_OP_MATH = 3,
  CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION = 16,  // sums of 16-bit products stay float32
};
enum { CUBLAS_GEMM_DEFAULT = -1 };  // cublasGemmAlgo_t

struct Cublas {
  // torch's handle for this thread, with its current stream and workspace; 0 for success
  int (*get_handle)(void** handle) = nullptr;
  // cublasGetMathMode, cublasSetMathMode
  int (*get_math_mode)(void* handle, int* mode) = nullptr;
  int (*set_math_mode)(void* handle, int mode) = nullptr;
  // cublasGemmStridedBatchedEx: c [m, n] = alpha a [m, k] b [k, n] + beta c
  int (*gemm)(void* handle, int op_a, int op_b, int m, int n, int k, const void* alpha,
              const void* a, int type_a, int lda, long long stride_a, const void* b, int type_b,
              int ldb, long long stride_b, const void* beta, void* c, int type_c, int ldc,
              long long stride_c, int count, int compute, int algorithm) = nullptr;

  bool is_there() const { return get_handle && get_math_mode && set_math_mode && gemm; }
};

// Of the process: what is not found is null.
const Cublas& cublas();

}  // namespace varlen_rnn::cuda
