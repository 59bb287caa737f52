// cuBLAS on the emulated machine: plain loops, and a record of what was asked for. Included by
// products.cpp and module.cpp alone.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/cublas.h"
#include "cuda/emulator/memory.h"
#include "cuda/emulator/numbers.h"

namespace varlen_rnn::emulator {

// A product, as its caller sees it: m rows of n sums over k.
struct Product {
  int m, n, k, count;
  int type;         // cudaDataType_t
  bool is_tf32;     // whether float32 may be TF32
  bool is_reduced;  // whether sums of 16-bit products may be 16-bit
};

struct Blas {
  bool is_there = true;
  int status = 0;                             // of every product: not 0 for a failure
  int math_mode = cuda::CUBLAS_DEFAULT_MATH;  // of the handle: what torch's own products have
  std::vector<Product> products;
};
inline Blas& blas() {
  static Blas blas;
  return blas;
}

inline double element(const void* data, int type, int64_t index) {
  switch (type) {
    case cuda::CUDA_R_32F:
      return static_cast<const float*>(data)[index];
    case cuda::CUDA_R_64F:
      return static_cast<const double*>(data)[index];
    case cuda::CUDA_R_16BF:
      return bf16_to_float(static_cast<const uint16_t*>(data)[index]);
    default:
      return f16_to_float(static_cast<const uint16_t*>(data)[index]);
  }
}

inline void set_element(void* data, int type, int64_t index, double v) {
  switch (type) {
    case cuda::CUDA_R_32F:
      static_cast<float*>(data)[index] = static_cast<float>(v);
      break;
    case cuda::CUDA_R_64F:
      static_cast<double*>(data)[index] = v;
      break;
    case cuda::CUDA_R_16BF:
      static_cast<uint16_t*>(data)[index] = float_to_bf16(static_cast<float>(v));
      break;
    default:
      static_cast<uint16_t*>(data)[index] = float_to_f16(static_cast<float>(v));
  }
}

// A matrix by columns, each of whose elements must lie where kernels may read.
inline bool is_allowed(const void* data, int type, int rows, int columns, int ld) {
  if (ld < rows || rows <= 0 || columns <= 0) return false;
  const uintptr_t size = type == cuda::CUDA_R_64F ? 8 : type == cuda::CUDA_R_32F ? 4 : 2;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t elements = uintptr_t(columns - 1) * uintptr_t(ld) + uintptr_t(rows);
  return begin % size == 0 && global_memory().contains(begin, begin + elements * size);
}

// As cublasGemmStridedBatchedEx, with sums in double.
inline int gemm(void*, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a,
                int type_a, int lda, long long stride_a, const void* b, int type_b, int ldb,
                long long stride_b, const void* beta, void* c, int type_c, int ldc,
                long long stride_c, int count, int compute, int /*algorithm*/) {
  constexpr int kInvalidValue = 7;  // CUBLAS_STATUS_INVALID_VALUE
  if (blas().status != 0) return blas().status;
  const bool is_double = type_c == cuda::CUDA_R_64F;
  if (is_double != (compute == cuda::CUBLAS_COMPUTE_64F)) return kInvalidValue;
  const auto scalar = [&](const void* p) {
    return is_double ? *static_cast<const double*>(p) : *static_cast<const float*>(p);
  };
  const auto at = [](const void* data, int type, long long elements) {
    const int size = type == cuda::CUDA_R_64F ? 8 : type == cuda::CUDA_R_32F ? 4 : 2;
    return const_cast<char*>(static_cast<const char*>(data)) + elements * size;
  };
  const bool trans_a = op_a == cuda::CUBLAS_OP_T, trans_b = op_b == cuda::CUBLAS_OP_T;
  const int mode = blas().math_mode;
  blas().products.push_back({n, m, k, count, type_c,
                             compute == cuda::CUBLAS_COMPUTE_32F_FAST_TF32 ||
                                 (mode & 15) == cuda::CUBLAS_TF32_TENSOR_OP_MATH,
                             (mode & 16) == 0});
  for (int i = 0; i < count; ++i) {
    const void* a_i = at(a, type_a, i * stride_a);
    const void* b_i = at(b, type_b, i * stride_b);
    void* c_i = at(c, type_c, i * stride_c);
    if (!is_allowed(a_i, type_a, trans_a ? k : m, trans_a ? m : k, lda)) return kInvalidValue;
    if (!is_allowed(b_i, type_b, trans_b ? n : k, trans_b ? k : n, ldb)) return kInvalidValue;
    if (!is_allowed(c_i, type_c, m, n, ldc)) return kInvalidValue;
    for (int64_t column = 0; column < n; ++column) {
      for (int64_t row = 0; row < m; ++row) {
        double sum = 0;
        for (int64_t l = 0; l < k; ++l) {
          sum += element(a_i, type_a, trans_a ? l + row * lda : row + l * lda) *
                 element(b_i, type_b, trans_b ? column + l * ldb : l + column * ldb);
        }
        sum *= scalar(alpha);
        const int64_t index = row + column * ldc;
        if (scalar(beta) != 0) sum += scalar(beta) * element(c_i, type_c, index);
        set_element(c_i, type_c, index, sum);
      }
    }
  }
  return 0;
}

inline constexpr cuda::Cublas kCublas = {[](void** handle) {
                                           *handle = &blas();
                                           return 0;
                                         },
                                         [](void*, int* mode) {
                                           *mode = blas().math_mode;
                                           return 0;
                                         },
                                         [](void*, int mode) {
                                           blas().math_mode = mode;
                                           return 0;
                                         },
                                         &gemm};

}  // namespace varlen_rnn::emulator
