// Which instruction set's kernels run, and on what kind of threads.
#pragma once

#include "params.h"

namespace varlen_rnn {

inline constexpr int kMaxInstructionSets = 5;

// Fills `names`, lowest first, with the sets that were compiled and that this CPU has; returns how
// many.
int available_instruction_sets(const char* names[kMaxInstructionSets]);

// Those among them whose kernels for floats are their own. The others add instructions for integers
// to a lower set, and have its very functions for floats.
int instruction_sets_for_floats(const char* names[kMaxInstructionSets]);

// The kernels in use: the highest available set, or the one that was forced.
const Kernels& kernels();

// A layer's forward pass on it.
struct ForwardKernel {
  size_t (*scratch)(const Forward&);
  void (*run)(const Forward&);
};
ForwardKernel forward_kernel(bool is_lstm, WeightOrder order);

// Forces a set; false, and nothing changes, if it is not available.
bool use_instruction_set(const char* name);

// Whether workers may wait for each other: only where all ranges of a ParallelFor run at the same
// time, as OpenMP's do, and not where a pool may queue some of them. True at first.
void set_workers_may_wait(bool value);
bool workers_may_wait();

}  // namespace varlen_rnn
