// The guard of the persistent path: a configuration is checked before it is used for the first time,
// and a wait without end turns the path off.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../params.h"

namespace varlen_rnn::cuda {

// What has a verdict of its own: one kernel on one device, and how its work is shared.
struct Configuration {
  int32_t device;
  bool is_lstm;
  bool is_backward;
  Dtype dtype;  // float32: as TF32
  int64_t hidden_size;
  int cluster_size;  // these two of the team
  int variant;
};

// Runs a small batch on both paths: what differs, "" for nothing, or nullopt if nobody could be asked.
using Checker = std::optional<std::string> (*)(const Configuration& configuration);
// Says something to the user; may throw.
using Warner = void (*)(const std::string& text);
// Until there is a checker, and where there is none (a process without Python), nothing is trusted.
void set_checker(Checker checker, Warner warner);

// Whether a configuration may be used. The first call that asks, unless its stream is being captured,
// has it checked; the others, meanwhile, are told no. Holds no lock while the checker runs.
bool is_trusted(const Configuration& configuration, void* stream);

// A line for each configuration that was asked for: "cuda:0, lstm, bfloat16, H = 256, forward pass,
// teams of 4 blocks: good".
std::vector<std::string> verdicts();

// Fails, once, if a kernel of an earlier call left because a wait had no end; from then on nothing is
// trusted on this device. Reads memory of the host's and waits for nobody.
void check_waits(int32_t device);
// The same for kernels of forced calls, as text: "" if there was no such wait. Forgets it.
std::string take_expired_wait(int32_t device);

#ifdef VARLEN_RNN_EMULATE
// As in a new process.
void forget_verdicts();
#endif

}  // namespace varlen_rnn::cuda
