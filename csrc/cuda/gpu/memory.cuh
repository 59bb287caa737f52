// Global and shared memory, and asynchronous copies from one to the other. Included by simt.cuh alone.
#pragma once

namespace varlen_rnn::simt {

// ---- global memory

template <size_t size>
struct Carrier;
template <>
struct Carrier<1> {
  using type = unsigned char;
};
template <>
struct Carrier<2> {
  using type = unsigned short;
};
template <>
struct Carrier<4> {
  using type = unsigned;
};
template <>
struct Carrier<8> {
  using type = uint2;
};
template <>
struct Carrier<16> {
  using type = uint4;
};

template <class U, class T>
VARLEN_RNN_DEVICE U bit_cast(T from) {
  static_assert(sizeof(U) == sizeof(T));
  U to;
  memcpy(&to, &from, sizeof(U));
  return to;
}

// ld.global.nc: memory that nobody writes while the kernel runs
template <class T>
VARLEN_RNN_DEVICE T load(const T* p) {
  using Word = typename Carrier<sizeof(T)>::type;
  return bit_cast<T>(__ldg(reinterpret_cast<const Word*>(p)));
}
// ld.global: memory that this kernel writes, too
template <class T>
VARLEN_RNN_DEVICE T load_fresh(const T* p) {
  using Word = typename Carrier<sizeof(T)>::type;
  return bit_cast<T>(*reinterpret_cast<const Word*>(p));
}
// st.global
template <class T>
VARLEN_RNN_DEVICE void store(T* p, T v) {
  using Word = typename Carrier<sizeof(T)>::type;
  *reinterpret_cast<Word*>(p) = bit_cast<Word>(v);
}

// membar.sys: what this thread stored before, host and device see before what it stores after
VARLEN_RNN_DEVICE void fence_system() { __threadfence_system(); }

// ---- shared memory: the one dynamic blob of a block

template <class T>
using Shared = T*;

template <class T>
VARLEN_RNN_DEVICE Shared<T> shared(size_t byte_offset) {
  extern __shared__ uint4 varlen_rnn_shared[];
  return reinterpret_cast<T*>(reinterpret_cast<char*>(varlen_rnn_shared) + byte_offset);
}
template <class U, class T>
VARLEN_RNN_DEVICE Shared<U> recast(Shared<T> p) {
  return reinterpret_cast<U*>(p);
}
VARLEN_RNN_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---- asynchronous copies from global to shared memory

// cp.async.cg (sm_75: a plain copy): 16 bytes, both sides aligned to 16
VARLEN_RNN_DEVICE void copy_async(Shared<uint32_t> dst, const void* src) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(dst)), "l"(src)
               : "memory");
#else
  *reinterpret_cast<uint4*>(dst) = *static_cast<const uint4*>(src);
#endif
}
// cp.async.commit_group: closes a group, all copies of this thread since the last one
VARLEN_RNN_DEVICE void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// cp.async.wait_group: until at most n groups of this thread are still under way
template <int n>
VARLEN_RNN_DEVICE void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
#endif
}

}  // namespace varlen_rnn::simt
