// Who a thread is, how it stops, and barriers of all threads of a warp, block or cluster. Included by simt.cuh alone.
#pragma once

namespace varlen_rnn::simt {

// ---- failures

// A failed check: a device-side assertion, whose message, block and thread the host prints. What
// printf says is lost where the kernel is stopped.
VARLEN_RNN_DEVICE void trap(const char* message) {
  __assert_fail(message, "varlen_rnn", 0, "a kernel");
  __trap();  // is not reached, which the compiler does not know
}

// ---- identity

VARLEN_RNN_DEVICE unsigned thread() { return threadIdx.x; }
VARLEN_RNN_DEVICE unsigned lane() { return threadIdx.x & 31u; }
VARLEN_RNN_DEVICE unsigned warp() { return threadIdx.x >> 5; }
VARLEN_RNN_DEVICE unsigned num_threads() { return blockDim.x; }
VARLEN_RNN_DEVICE unsigned block() { return blockIdx.x; }
VARLEN_RNN_DEVICE unsigned num_blocks() { return gridDim.x; }

// Where there are no clusters (below sm_90), and in a launch without, every block is one.
// mov.u32 %clusterid.x
VARLEN_RNN_DEVICE unsigned cluster() {
#if __CUDA_ARCH__ >= 900
  unsigned r;
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(r));
  return r;
#else
  return blockIdx.x;
#endif
}
// mov.u32 %cluster_ctarank
VARLEN_RNN_DEVICE unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
  unsigned r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
#else
  return 0;
#endif
}
// mov.u32 %cluster_nctarank
VARLEN_RNN_DEVICE unsigned cluster_size() {
#if __CUDA_ARCH__ >= 900
  unsigned r;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(r));
  return r;
#else
  return 1;
#endif
}

// ---- barriers of threads

// bar.sync 0
VARLEN_RNN_DEVICE void sync_block() { __syncthreads(); }
// bar.warp.sync of all lanes
VARLEN_RNN_DEVICE void sync_warp() { __syncwarp(); }
// barrier.cluster: what any thread of the cluster wrote before, all of them see after
VARLEN_RNN_DEVICE void sync_cluster() {
#if __CUDA_ARCH__ >= 900
  __syncwarp();  // .aligned: all lanes together
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}

}  // namespace varlen_rnn::simt
