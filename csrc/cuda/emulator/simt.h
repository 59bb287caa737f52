// The surface of simt.cuh on the emulated machine; what each function means is said in gpu/. Included
// by simt.cuh alone.
//
// Wrappers that wait take the line that called them as a last, hidden argument, for messages and to
// see that all lanes of a warp are in the same collective.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "cuda/emulator/barriers.h"
#include "cuda/emulator/machine.h"
#include "cuda/emulator/memory.h"
#include "cuda/emulator/numbers.h"
#include "cuda/emulator/warp.h"

namespace varlen_rnn::simt {

using emulator::Site;

// ---- numbers

using emulator::float_as_word;
using emulator::word_as_float;

inline float to_float(bf16 v) { return emulator::bf16_to_float(v.bits); }
inline float to_float(f16 v) { return emulator::f16_to_float(v.bits); }
inline float to_float(float v) { return v; }

template <class T>
compute_t<T> to_compute(T v) {
  return to_float(v);
}
template <>
inline double to_compute(double v) {
  return v;
}

template <class T>
T from_compute(compute_t<T> v) {
  return v;
}
template <>
inline bf16 from_compute<bf16>(float v) {
  return {emulator::float_to_bf16(v)};
}
template <>
inline f16 from_compute<f16>(float v) {
  return {emulator::float_to_f16(v)};
}

inline uint32_t pack(bf16 low, bf16 high) { return uint32_t{low.bits} | uint32_t{high.bits} << 16; }
inline uint32_t pack(f16 low, f16 high) { return uint32_t{low.bits} | uint32_t{high.bits} << 16; }
template <class T>
void unpack(uint32_t word, T& low, T& high) {
  low.bits = static_cast<uint16_t>(word);
  high.bits = static_cast<uint16_t>(word >> 16);
}

inline uint32_t to_tf32(float v) { return emulator::float_to_tf32(v); }

inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }
inline double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }
inline float tanh(float x) { return std::tanh(x); }
inline double tanh(double x) { return std::tanh(x); }
inline float fast_sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }
inline float fast_tanh(float x) { return 2.0f / (1.0f + std::exp(-2.0f * x)) - 1.0f; }

// ---- failures

[[noreturn]] inline void trap(const char* message) { emulator::fail(message); }

// ---- identity

inline unsigned thread() { return emulator::current().thread; }
inline unsigned lane() { return emulator::current().thread & 31u; }
inline unsigned warp() { return emulator::current().thread >> 5; }
inline unsigned num_threads() { return emulator::machine().num_threads; }
inline unsigned block() { return emulator::machine().block_of(*emulator::current().cta); }
inline unsigned num_blocks() { return emulator::machine().num_blocks; }
inline unsigned cluster() { return emulator::machine().cluster; }
inline unsigned cluster_rank() { return emulator::current().cta->rank; }
inline unsigned cluster_size() { return emulator::machine().cluster_size; }

// ---- global memory

template <class T>
T load(const T* p) {
  return emulator::load_global("load", p);
}
template <class T>
T load_fresh(const T* p) {
  return emulator::load_global("load_fresh", p);
}
template <class T>
void store(T* p, T v) {
  emulator::store_global(p, v);
}

inline void fence_system() {}

// ---- shared memory

template <class T>
using Shared = emulator::SharedPointer<T>;

template <class T>
Shared<T> shared(size_t byte_offset) {
  return Shared<T>(static_cast<int64_t>(byte_offset));
}
template <class U, class T>
Shared<U> recast(Shared<T> p) {
  return Shared<U>(p.offset());
}

// ---- barriers of threads

inline void sync_block(Site site = Site::here()) {
  emulator::sync(emulator::current().cta->barrier, {"sync_block", site});
}
inline void sync_warp(Site site = Site::here()) { emulator::sync_warp(site); }
inline void sync_cluster(Site site = Site::here()) {
  emulator::sync(emulator::machine().cluster_barrier, {"sync_cluster", site});
}

// ---- warp collectives

inline uint32_t shuffle(uint32_t v, int lane, Site site = Site::here()) {
  return emulator::shuffle(v, lane, site);
}
inline uint32_t shuffle_xor(uint32_t v, unsigned mask, Site site = Site::here()) {
  return emulator::shuffle_xor(v, mask, site);
}
inline float shuffle_xor(float v, unsigned mask, Site site = Site::here()) {
  return word_as_float(emulator::shuffle_xor(float_as_word(v), mask, site));
}
inline void ldmatrix_x4(uint32_t (&r)[4], Shared<const uint32_t> row, Site site = Site::here()) {
  emulator::ldmatrix_x4(r, row.offset(), site);
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                     Site site = Site::here()) {
  emulator::mma_bf16(d, a, b0, b1, site);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                    Site site = Site::here()) {
  emulator::mma_f16(d, a, b0, b1, site);
}
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                     Site site = Site::here()) {
  emulator::mma_tf32(d, a, b0, b1, site);
}

// ---- mbarriers and stores into other blocks of the cluster

inline void mbarrier_init(Shared<uint64_t> bar, unsigned arrivals) {
  emulator::mbarrier_init(bar.offset(), arrivals);
}
inline void mbarrier_fence_init() { emulator::mbarrier_fence_init(); }
inline void mbarrier_arrive_expect(Shared<uint64_t> bar, unsigned bytes) {
  emulator::mbarrier_arrive_expect(bar.offset(), bytes);
}
inline bool mbarrier_wait(Shared<uint64_t> bar, unsigned parity, uint32_t /*limit*/ = kForever,
                          Site site = Site::here()) {
  return emulator::all_lanes(emulator::mbarrier_wait(bar.offset(), parity, site), site);
}
template <int n>
void st_async(Shared<uint32_t> dst, Shared<uint64_t> bar, unsigned rank, const uint32_t (&v)[n]) {
  static_assert(n == 1 || n == 2 || n == 4, "st.async stores 1, 2 or 4 words");
  emulator::st_async(dst.offset(), bar.offset(), rank, v, n);
}

// ---- asynchronous copies from global to shared memory

inline void copy_async(Shared<uint32_t> dst, const void* src) {
  emulator::copy_async(dst.offset(), src);
}
inline void copy_async_commit() { emulator::copy_async_commit(); }
template <int n>
void copy_async_wait() {
  emulator::copy_async_wait(n);
}

}  // namespace varlen_rnn::simt
