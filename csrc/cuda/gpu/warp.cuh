// Warp collectives: all 32 lanes, in warp-uniform control flow. Included by simt.cuh alone.
#pragma once

#include "cuda/gpu/memory.cuh"

namespace varlen_rnn::simt {

// shfl.sync.idx: that lane's value
VARLEN_RNN_DEVICE uint32_t shuffle(uint32_t v, int lane) {
  return __shfl_sync(0xffffffffu, v, lane);
}
// shfl.sync.bfly
VARLEN_RNN_DEVICE uint32_t shuffle_xor(uint32_t v, unsigned mask) {
  return __shfl_xor_sync(0xffffffffu, v, static_cast<int>(mask));
}
VARLEN_RNN_DEVICE float shuffle_xor(float v, unsigned mask) {
  return __shfl_xor_sync(0xffffffffu, v, static_cast<int>(mask));
}

// ldmatrix.x4: lane 8 m + i gives row i of the m-th 8 x 8 matrix of 16-bit elements, 16 aligned
// bytes; r[m] is the word lane % 4 of that matrix's row lane / 4.
VARLEN_RNN_DEVICE void ldmatrix_x4(uint32_t (&r)[4], Shared<const uint32_t> row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

// Matrix products of a warp, d [16, 8] += a [16, K] b [K, 8], from sm_80 on. With g = lane / 4 and
// t = lane % 4, a lane holds
//                          d[0..1]         d[2..3]
//                          [g][2t..2t+1]   [g+8][2t..2t+1]
//   K = 16, 16-bit pairs:  a[0] [g][2t..]  a[1] [g+8][2t..]  a[2] [g][2t+8..]  a[3] [g+8][2t+8..]
//                          b0 [2t..][g]    b1 [2t+8..][g]
//   K = 8, tf32 words:     a[0] [g][t]     a[1] [g+8][t]     a[2] [g][t+4]     a[3] [g+8][t+4]
//                          b0 [t][g]       b1 [t+4][g]
#if __CUDA_ARCH__ >= 800
#define VARLEN_RNN_MMA(instruction, d, a, b0, b1)                                             \
  asm volatile(instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                               \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
#else
#define VARLEN_RNN_MMA(instruction, d, a, b0, b1) __trap()
#endif
// mma.m16n8k16 of bf16
VARLEN_RNN_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  VARLEN_RNN_MMA("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", d, a, b0, b1);
}
// mma.m16n8k16 of f16, accumulated in f32
VARLEN_RNN_DEVICE void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  VARLEN_RNN_MMA("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", d, a, b0, b1);
}
// mma.m16n8k8 of tf32
VARLEN_RNN_DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  VARLEN_RNN_MMA("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", d, a, b0, b1);
}
#undef VARLEN_RNN_MMA

}  // namespace varlen_rnn::simt
