// Cases of simt_test.cu: identity, global and shared memory, barriers of threads, launches and
// asynchronous copies.
#pragma once

#include "simt_harness.h"

namespace varlen_rnn {

struct IdentityParams {
  uint32_t* out;  // [threads of the grid, 9]
};
VARLEN_RNN_KERNEL identity_kernel(IdentityParams p) {
  uint32_t* out = p.out + 9 * (simt::block() * simt::num_threads() + simt::thread());
  simt::store(out, uint32_t{simt::thread()});
  simt::store(out + 1, uint32_t{simt::lane()});
  simt::store(out + 2, uint32_t{simt::warp()});
  simt::store(out + 3, uint32_t{simt::num_threads()});
  simt::store(out + 4, uint32_t{simt::block()});
  simt::store(out + 5, uint32_t{simt::num_blocks()});
  simt::store(out + 6, uint32_t{simt::cluster()});
  simt::store(out + 7, uint32_t{simt::cluster_rank()});
  simt::store(out + 8, uint32_t{simt::cluster_size()});
}

inline void test_identity(unsigned cluster_size) {
  const unsigned threads = 96;
  const unsigned blocks = 3 * cluster_size;
  const Buffer<uint32_t> out(size_t{9} * threads * blocks);
  run({blocks, threads, 0, cluster_size, nullptr}, identity_kernel, {out.data()});
  for (unsigned i = 0; i < threads * blocks; ++i) {
    const unsigned thread = i % threads;
    const unsigned block = i / threads;
    const uint32_t want[9] = {thread,      thread % 32, thread / 32,          threads,
                              block,       blocks,      block / cluster_size, block % cluster_size,
                              cluster_size};
    for (unsigned k = 0; k < 9; ++k) expect_same("identity", 9 * i + k, out[9 * i + k], want[k]);
  }
}

template <class T>
struct CopyParams {
  const T* in;
  T* through;
  T* out;
};
// One thread reads with load_fresh what another one has stored.
template <class T>
VARLEN_RNN_KERNEL access_kernel(CopyParams<T> p) {
  const unsigned i = simt::thread();
  simt::store(p.through + i, simt::load(p.in + i));
  simt::sync_block();
  simt::store(p.out + i, simt::load_fresh(p.through + (simt::num_threads() - 1 - i)));
}

template <class T>
void test_access() {
  const size_t threads = 256;
  std::mt19937 random(2);
  const Buffer<T> in(threads);
  auto* bytes = reinterpret_cast<unsigned char*>(in.data());
  for (size_t i = 0; i < threads * sizeof(T); ++i) bytes[i] = static_cast<unsigned char>(random());
  const Buffer<T> through(threads);
  const Buffer<T> out(threads);
  run({1, threads, 0, 1, nullptr}, access_kernel<T>, {in.data(), through.data(), out.data()});
  for (size_t i = 0; i < threads; ++i) {
    expect_same("load, store", i, through[i], in[i]);
    expect_same("load_fresh", i, out[i], in[threads - 1 - i]);
  }
}

struct SharedParams {
  uint32_t* out;  // [256]
};
// Words go in one by one from offset 32 on; 16-byte vectors, a const pointer and halves come out.
VARLEN_RNN_KERNEL shared_kernel(SharedParams p) {
  const unsigned i = simt::thread();
  simt::Shared<uint32_t> words = simt::shared<uint32_t>(32);
  *(words + i) = 0x10001u * i;
  simt::sync_block();
  const simt::Shared<const simt::Words4> vectors = simt::recast<simt::Words4>(words);
  const simt::Words4 vector = vectors[i / 4];
  simt::Shared<const simt::bf16> halves = simt::recast<const simt::bf16>(words);
  halves += 2 * i + 1;
  const uint32_t sum = vector.w[i % 4] + (vectors + i / 4)->w[0] + halves->bits;
  simt::sync_block();
  simt::shared<uint32_t>(32)[simt::num_threads() - 1 - i] = sum;
  simt::sync_block();
  simt::store(p.out + i, words[i]);
}

inline void test_shared() {
  const Buffer<uint32_t> out(256);
  run({2, 256, 32 + 1024, 1, nullptr}, shared_kernel, {out.data()});
  for (uint32_t i = 0; i < 256; ++i) {
    const uint32_t from = 255 - i;
    expect_same("shared", i, out[i], 0x10001u * from + 0x10001u * (from / 4 * 4) + from);
  }
}

// Rounds of writing one's own word and reading another's: of the warp, of the block.
VARLEN_RNN_KERNEL barrier_kernel(SharedParams p) {
  const unsigned i = simt::thread();
  simt::Shared<uint32_t> words = simt::shared<uint32_t>(0);
  uint32_t sum = 0;
  for (uint32_t round = 0; round < 8; ++round) {
    words[i] = 1000 * round + i;
    simt::sync_warp();
    sum += words[i ^ 1];
    simt::sync_warp();
    words[i] = 2000 * round + i;
    simt::sync_block();
    sum += words[(i + 40 * round) % simt::num_threads()];
    simt::sync_block();
  }
  simt::store(p.out + i, sum);
}

inline void test_barriers() {
  const Buffer<uint32_t> out(256);
  run({1, 256, 1024, 1, nullptr}, barrier_kernel, {out.data()});
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t want = 0;
    for (uint32_t round = 0; round < 8; ++round) {
      want += 1000 * round + (i ^ 1) + 2000 * round + (i + 40 * round) % 256;
    }
    expect_same("barriers", i, out[i], want);
  }
}

struct ClusterParams {
  uint32_t* through;  // [threads of the grid]
  uint32_t* out;
};
// Through global memory: every thread reads its namesake in the next block of the cluster.
VARLEN_RNN_KERNEL cluster_kernel(ClusterParams p) {
  const unsigned i = simt::block() * simt::num_threads() + simt::thread();
  const unsigned next = (simt::cluster_rank() + 1) % simt::cluster_size();
  const unsigned other =
      (simt::cluster() * simt::cluster_size() + next) * simt::num_threads() + simt::thread();
  uint32_t sum = 0;
  for (uint32_t round = 0; round < 4; ++round) {
    simt::store(p.through + i, 100000 * round + i);
    simt::sync_cluster();
    sum += simt::load_fresh(p.through + other);
    simt::sync_cluster();
  }
  simt::store(p.out + i, sum);
}

inline void test_sync_cluster(unsigned cluster_size) {
  const unsigned threads = 64;
  const unsigned blocks = 2 * cluster_size;
  const Buffer<uint32_t> through(threads * blocks);
  const Buffer<uint32_t> out(threads * blocks);
  run({blocks, threads, 0, cluster_size, nullptr}, cluster_kernel, {through.data(), out.data()});
  for (unsigned i = 0; i < threads * blocks; ++i) {
    const unsigned block = i / threads;
    const unsigned next = block / cluster_size * cluster_size + (block + 1) % cluster_size;
    const unsigned other = next * threads + i % threads;
    expect_same("sync_cluster", i, out[i], 600000 + 4 * other);
  }
}

struct AsyncParams {
  const uint32_t* in;  // [3, threads, 4]
  uint32_t* out;       // [2, threads]
};
// Three groups of a copy each: the first is read while two are under way, the others at the end.
VARLEN_RNN_KERNEL copy_async_kernel(AsyncParams p) {
  const unsigned i = simt::thread();
  const unsigned n = simt::num_threads();
  simt::Shared<uint32_t> stages = simt::shared<uint32_t>(0);
  for (unsigned stage = 0; stage < 3; ++stage) {
    const unsigned at = 4 * (stage * n + i);
    simt::copy_async(stages + at, p.in + at);
    simt::copy_async_commit();
  }
  const unsigned other = n - 1 - i;
  simt::copy_async_wait<2>();
  simt::sync_block();
  simt::store(p.out + i, stages[4 * other] + stages[4 * other + 3]);
  simt::copy_async_wait<0>();
  simt::sync_block();
  simt::store(p.out + n + i, stages[4 * (n + other) + 1] + stages[4 * (2 * n + other) + 2]);
}

inline void test_copy_async() {
  const unsigned threads = 128;
  Buffer<uint32_t> in(3 * threads * 4);
  for (uint32_t i = 0; i < in.size(); ++i) in[i] = i * i + 7;
  const Buffer<uint32_t> out(2 * threads);
  run({1, threads, 3 * threads * 16, 1, nullptr}, copy_async_kernel, {in.data(), out.data()});
  for (unsigned i = 0; i < threads; ++i) {
    const unsigned other = threads - 1 - i;
    const auto at = [&](unsigned stage, unsigned k) {
      return in[4 * (stage * threads + other) + k];
    };
    expect_same("copy_async", i, out[i], at(0, 0) + at(0, 3));
    expect_same("copy_async", threads + i, out[threads + i], at(1, 1) + at(2, 2));
  }
}

inline void test_launch() {
  const simt::Device device = simt::device_properties(0);
  expect(device.major >= 7 && device.multiprocessors > 0 && device.max_shared_bytes >= 49152,
         "device_properties: no such device");
  const Buffer<uint32_t> out(9);
  simt::Launch launch = {1, 32, device.max_shared_bytes, 1, nullptr};
  expect(simt::max_active_clusters(launch, shared_kernel) > 0, "max_active_clusters: got 0");
  launch.shared_bytes = device.max_shared_bytes + 1;
  expect(simt::max_active_clusters(launch, shared_kernel) == 0, "max_active_clusters: expected 0");
  launch = {1, 2048, 0, 1, nullptr};
  std::string message;
  try {
    run(launch, identity_kernel, {out.data()});
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  expect(message.find("aunch") != std::string::npos, "a launch of 2048 threads: got " + message);
}

inline void test_memory(Report& report) {
  report.run_case("identity", [] { test_identity(1); });
  report.run_case("load, store: 1 byte", test_access<uint8_t>);
  report.run_case("load, store: 2 bytes", test_access<simt::bf16>);
  report.run_case("load, store: 4 bytes", test_access<float>);
  report.run_case("load, store: 8 bytes", test_access<int64_t>);
  report.run_case("load, store: double", test_access<double>);
  report.run_case("load, store: Words2", test_access<simt::Words2>);
  report.run_case("load, store: Words4", test_access<simt::Words4>);
  report.run_case("shared, recast", test_shared);
  report.run_case("sync_warp, sync_block", test_barriers);
  report.run_case("copy_async", test_copy_async);
  report.run_case("launch", test_launch);
  if (simt::device_properties(0).max_cluster_size < 8) {
    report.skip("identity, sync_cluster in clusters", "needs sm_90");
    return;
  }
  for (const unsigned cluster_size : {2u, 8u}) {
    const std::string name = " in clusters of " + std::to_string(cluster_size);
    report.run_case("identity" + name, [&] { test_identity(cluster_size); });
    report.run_case("sync_cluster" + name, [&] { test_sync_cluster(cluster_size); });
  }
}

}  // namespace varlen_rnn
