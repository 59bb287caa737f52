// Every instruction set that was compiled is in this one binary; the choice is made once, at load.
#include "cpu/dispatch.h"

#include <atomic>
#include <cstring>

#ifdef VARLEN_RNN_HAVE_AVX2
#include "cpu/x86_features.h"
#endif
#ifdef VARLEN_RNN_HAVE_NEON
#include "cpu/arm_features.h"
#endif

namespace varlen_rnn {

#define VARLEN_RNN_DECLARE_INT8(isa)               \
  namespace isa {                                  \
  size_t lstm_int8_scratch(const Forward&);        \
  void lstm_int8(const Forward&);                  \
  size_t gru_int8_scratch(const Forward&);         \
  void gru_int8(const Forward&);                   \
  constexpr Kernels named(Kernels kernels) {       \
    kernels.name = #isa;                           \
    kernels.lstm_int8_scratch = lstm_int8_scratch; \
    kernels.lstm_int8 = lstm_int8;                 \
    kernels.gru_int8_scratch = gru_int8_scratch;   \
    kernels.gru_int8 = gru_int8;                   \
    return kernels;                                \
  }                                                \
  }

#define VARLEN_RNN_DECLARE(isa, vector_bytes)    \
  VARLEN_RNN_DECLARE_INT8(isa)                   \
  namespace isa {                                \
  size_t lstm_forward_scratch(const Forward&);   \
  void lstm_forward(const Forward&);             \
  size_t lstm_backward_scratch(const Backward&); \
  void lstm_backward(const Backward&);           \
  size_t gru_forward_scratch(const Forward&);    \
  void gru_forward(const Forward&);              \
  size_t gru_backward_scratch(const Backward&);  \
  void gru_backward(const Backward&);            \
  constexpr Kernels kKernels = named({           \
      "",                                        \
      vector_bytes,                              \
      lstm_forward_scratch,                      \
      lstm_forward,                              \
      lstm_backward_scratch,                     \
      lstm_backward,                             \
      gru_forward_scratch,                       \
      gru_forward,                               \
      gru_backward_scratch,                      \
      gru_backward,                              \
      nullptr,                                   \
      nullptr,                                   \
      nullptr,                                   \
      nullptr,                                   \
  });                                            \
  }

// A set that adds instructions for integers to another one, whose kernels it has for floats.
#define VARLEN_RNN_DECLARE_INTEGERS(isa, base)        \
  VARLEN_RNN_DECLARE_INT8(isa)                        \
  namespace isa {                                     \
  constexpr Kernels kKernels = named(base::kKernels); \
  }

#ifdef VARLEN_RNN_HAVE_BASELINE
VARLEN_RNN_DECLARE(baseline, 16)
#endif
#ifdef VARLEN_RNN_HAVE_AVX2
VARLEN_RNN_DECLARE(avx2, 32)
#endif
#ifdef VARLEN_RNN_HAVE_AVX2_VNNI
VARLEN_RNN_DECLARE_INTEGERS(avx2_vnni, avx2)
#endif
#ifdef VARLEN_RNN_HAVE_AVX512
VARLEN_RNN_DECLARE(avx512, 64)
#endif
#ifdef VARLEN_RNN_HAVE_AVX512_VNNI
VARLEN_RNN_DECLARE_INTEGERS(avx512_vnni, avx512)
#endif
#ifdef VARLEN_RNN_HAVE_NEON
VARLEN_RNN_DECLARE(neon, 16)
#endif
#ifdef VARLEN_RNN_HAVE_NEON_DOTPROD
VARLEN_RNN_DECLARE_INTEGERS(neon_dotprod, neon)
#endif
#ifdef VARLEN_RNN_HAVE_NEON_I8MM
VARLEN_RNN_DECLARE_INTEGERS(neon_i8mm, neon)
#endif

namespace {

int available_sets(const Kernels* table[kMaxInstructionSets]) {
  int count = 0;
#ifdef VARLEN_RNN_HAVE_BASELINE
  table[count++] = &baseline::kKernels;
#endif
#ifdef VARLEN_RNN_HAVE_AVX2
  if (has_avx2()) table[count++] = &avx2::kKernels;
#endif
#ifdef VARLEN_RNN_HAVE_AVX2_VNNI
  if (has_avx2_vnni()) table[count++] = &avx2_vnni::kKernels;
#endif
#ifdef VARLEN_RNN_HAVE_AVX512
  if (has_avx512()) table[count++] = &avx512::kKernels;
#endif
#ifdef VARLEN_RNN_HAVE_AVX512_VNNI
  if (has_avx512_vnni()) table[count++] = &avx512_vnni::kKernels;
#endif
#ifdef VARLEN_RNN_HAVE_NEON
  table[count++] = &neon::kKernels;
#endif
#ifdef VARLEN_RNN_HAVE_NEON_DOTPROD
  if (has_neon_dotprod()) table[count++] = &neon_dotprod::kKernels;
#endif
#ifdef VARLEN_RNN_HAVE_NEON_I8MM
  if (has_neon_i8mm()) table[count++] = &neon_i8mm::kKernels;
#endif
  return count;
}

std::atomic<const Kernels*>& in_use() {
  static std::atomic<const Kernels*> set = [] {
    const Kernels* table[kMaxInstructionSets];
    return table[available_sets(table) - 1];
  }();
  return set;
}

std::atomic<bool> waiting_allowed{true};

}  // namespace

void set_workers_may_wait(bool value) { waiting_allowed.store(value, std::memory_order_relaxed); }
bool workers_may_wait() { return waiting_allowed.load(std::memory_order_relaxed); }

int available_instruction_sets(const char* names[kMaxInstructionSets]) {
  const Kernels* table[kMaxInstructionSets];
  const int count = available_sets(table);
  for (int i = 0; i < count; ++i) names[i] = table[i]->name;
  return count;
}

int instruction_sets_for_floats(const char* names[kMaxInstructionSets]) {
  const Kernels* table[kMaxInstructionSets];
  const int sets = available_sets(table);
  const auto same = [](const Kernels& a, const Kernels& b) {
    return a.lstm_forward_scratch == b.lstm_forward_scratch && a.lstm_forward == b.lstm_forward &&
           a.lstm_backward_scratch == b.lstm_backward_scratch &&
           a.lstm_backward == b.lstm_backward && a.gru_forward_scratch == b.gru_forward_scratch &&
           a.gru_forward == b.gru_forward && a.gru_backward_scratch == b.gru_backward_scratch &&
           a.gru_backward == b.gru_backward;
  };
  int count = 0;
  for (int i = 0; i < sets; ++i) {
    bool own = true;
    for (int j = 0; j < i; ++j) own &= !same(*table[i], *table[j]);
    if (own) names[count++] = table[i]->name;
  }
  return count;
}

const Kernels& kernels() { return *in_use().load(std::memory_order_relaxed); }

ForwardKernel forward_kernel(bool is_lstm, WeightOrder order) {
  const Kernels& k = kernels();
  if (order == WeightOrder::kInt8) {
    if (is_lstm) return {k.lstm_int8_scratch, k.lstm_int8};
    return {k.gru_int8_scratch, k.gru_int8};
  }
  if (is_lstm) return {k.lstm_forward_scratch, k.lstm_forward};
  return {k.gru_forward_scratch, k.gru_forward};
}

bool use_instruction_set(const char* name) {
  const Kernels* table[kMaxInstructionSets];
  const int count = available_sets(table);
  for (int i = 0; i < count; ++i) {
    if (std::strcmp(table[i]->name, name) == 0) {
      in_use().store(table[i], std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace varlen_rnn
