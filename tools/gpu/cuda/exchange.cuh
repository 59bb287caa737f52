// The exchange of the persistent kernels, by their own Worker, and other ways to move the same bytes,
// as loops that calibrate.cu times. In round t every value that is sent is t, up to kLargest.
#pragma once

#include "cuda/worker.cuh"
#include "loops.cuh"

namespace varlen_rnn {

struct ExchangeLoop {
  cuda::Persistent team;  // what Worker reads: the team, H, and where the teams' steps begin
  Loop loop;
};

constexpr unsigned kLargest = 128;  // a bfloat16, and so is every integer below

// Of the forward pass of an LSTM, whose warps have a chunk each. The exchange is the same for any tiles.
using ExchangeWorker = cuda::Worker<cuda::Bf16, 4, 4, 1, false>;
constexpr int kTurns = 1;

// Where Worker has these.
VARLEN_RNN_DEVICE Shared<uint32_t> vectors_of(const ExchangeWorker& w, int exchange) {
  return simt::shared<uint32_t>(static_cast<size_t>(w.team.vectors)) +
         (exchange & 1) * cuda::kSlots * w.team.pitch;
}
VARLEN_RNN_DEVICE Shared<uint64_t> barrier_of(int exchange) {
  return simt::shared<uint64_t>(0) + (exchange & 1);
}

// What the kernels do.
struct Kernels {
  static constexpr const char* kName = "exchange";
  static VARLEN_RNN_DEVICE void send(const ExchangeWorker& w, int exchange, const float (&v)[2]) {
    w.for_pairs<kTurns>([&](int, int unit) { w.send(exchange, w.first_unit + unit, v); });
  }
  static VARLEN_RNN_DEVICE void wait(const ExchangeWorker& w, int exchange) { w.wait(exchange); }
};

// Every lane stores its own word in every block.
struct SmallStores : Kernels {
  static constexpr const char* kName = "exchange, 4-byte stores";
  static VARLEN_RNN_DEVICE void send(const ExchangeWorker& w, int exchange, const float (&v)[2]) {
    uint32_t own[1];
    cuda::Bf16::vector_words(v[0], v[1], own);
    const unsigned size = static_cast<unsigned>(w.team.cluster_size);
    w.for_pairs<kTurns>([&](int, int unit) {
      const Shared<uint32_t> to =
          vectors_of(w, exchange) + w.slot * w.team.pitch + (w.first_unit + unit) / 2;
      unsigned rank = simt::cluster_rank();
      for (unsigned i = 0; i < size; ++i) {
        simt::st_async<1>(to, barrier_of(exchange), rank, own);
        rank = rank + 1 == size ? 0 : rank + 1;
      }
    });
  }
};

#ifndef VARLEN_RNN_EMULATE

// The kernels' stores, and the form of waiting that acquires by itself.
struct AcquiringWait : Kernels {
  static constexpr const char* kName = "exchange, acquiring wait";
  static VARLEN_RNN_DEVICE void wait(const ExchangeWorker&, int exchange) {
#if __CUDA_ARCH__ >= 900
    uint32_t done;
    do {
      asm volatile(
          "{\n\t"
          ".reg .pred done;\n\t"
          "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n\t"
          "selp.u32 %0, 1, 0, done;\n\t"
          "}"
          : "=r"(done)
          : "r"(simt::shared_address(barrier_of(exchange))),
            "r"(static_cast<unsigned>(exchange >> 1) & 1u)
          : "memory");
    } while (done == 0);
    __syncwarp();
#else
    __trap();
#endif
  }
};

// Every thread writes its words into a row of its own block, and one thread a slot and block copies the
// row's part there in bulk.
struct BulkCopies : Kernels {
  static constexpr const char* kName = "exchange, bulk copies";
  static VARLEN_RNN_DEVICE void send(const ExchangeWorker& w, int exchange, const float (&v)[2]) {
    // Behind all else in shared memory, one row for each buffer: a row is written again only after
    // exchange + 1 is complete, whose bytes every block sends after it has got these.
    const size_t behind = static_cast<size_t>(w.team.shared_bytes);
    const int words = w.team.units / 2, slots = cuda::kSlots;
    const Shared<uint32_t> staged = simt::shared<uint32_t>(behind) + (exchange & 1) * slots * words;
    uint32_t own[1];
    cuda::Bf16::vector_words(v[0], v[1], own);
    w.for_pairs<kTurns>([&](int, int unit) { staged[w.slot * words + unit / 2] = own[0]; });
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    simt::sync_block();
    const int slot = static_cast<int>(simt::thread()) % slots;
    for (int rank = static_cast<int>(simt::thread()) / slots; rank < w.team.cluster_size;
         rank += w.team.threads / slots) {
      copy(vectors_of(w, exchange) + slot * w.team.pitch + w.first_unit / 2, staged + slot * words,
           4 * static_cast<unsigned>(words), barrier_of(exchange), static_cast<unsigned>(rank));
    }
  }
  static VARLEN_RNN_DEVICE void copy(Shared<uint32_t> to, Shared<uint32_t> from, unsigned bytes,
                                     Shared<uint64_t> barrier, unsigned rank) {
#if __CUDA_ARCH__ >= 900
    asm volatile(
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes "
        "[%0], [%1], %2, [%3];" ::"r"(simt::remote_address(to, rank)),
        "r"(simt::shared_address(from)), "r"(bytes), "r"(simt::remote_address(barrier, rank))
        : "memory");
#else
    __trap();
#endif
  }
};

#endif

// A step's exchange and nothing else.
template <class Way>
VARLEN_RNN_KERNEL exchanges(ExchangeLoop p) {
  const ExchangeWorker w(p.team, false);
  w.init_exchange();
  const unsigned long long start = clock();
  float value = 0;
  for (int t = 0; t < static_cast<int>(p.loop.rounds); ++t) {
    w.expect(t, w.hidden_size);
    const float next = value == kLargest ? 0 : value + 1;
    const float v[2] = {next, next};
    Way::send(w, t, v);
    Way::wait(w, t);
    float got[2];
    const int thread = static_cast<int>(simt::thread());
    cuda::Bf16::unpack(
        vectors_of(w, t)[thread % cuda::kSlots * w.team.pitch + thread % (w.hidden_size / 2)], got);
    value = got[0];
    simt::sync_block();  // as the kernels do between their products and the next vectors
    if (w.gave_up(t)) {
      w.leave();
      break;
    }
  }
  finish(p.loop, start, static_cast<uint32_t>(value));
}

}  // namespace varlen_rnn
