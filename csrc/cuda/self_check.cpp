#include "cuda/self_check.h"

#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <tuple>

#include "cuda/kernels.h"
#include "cuda/settings.h"

namespace varlen_rnn::cuda {

Settings& settings() {
  static Settings all;
  return all;
}

Forced& forced() {
  //~ forced
  static thread_local Forced of_thread;
  return of_thread;
}

namespace {

enum class Verdict { kBeingChecked, kGood, kBad };

std::tuple<int32_t, bool, bool, Dtype, int64_t, int, int> as_tuple(const Configuration& c) {
  //~ key
  return {c.device, c.is_lstm, c.is_backward, c.dtype, c.hidden_size, c.cluster_size, c.variant};
}
struct Less {
  bool operator()(const Configuration& a, const Configuration& b) const {
    return as_tuple(a) < as_tuple(b);
  }
};

struct State {
  std::mutex mutex;  // for what follows
  std::map<Configuration, Verdict, Less> verdicts;
  std::set<int32_t> devices_off;
  Checker checker = nullptr;
  Warner warner = nullptr;
};
State& state() {
  static State all;
  return all;
}

std::string to_string(const Configuration& c) {
  const char* dtype = c.dtype == Dtype::kFloat32    ? "TF32"
                      : c.dtype == Dtype::kBFloat16 ? "bfloat16"
                                                    : "float16";
  return "cuda:" + std::to_string(c.device) + ", " + (c.is_lstm ? "lstm" : "gru") + ", " + dtype +
         ", H = " + std::to_string(c.hidden_size) +
         (c.is_backward ? ", backward pass" : ", forward pass") + ", teams of " +
         std::to_string(c.cluster_size) + (c.cluster_size == 1 ? " block" : " blocks");
}

std::string to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::kBeingChecked:
      return "being checked";
    case Verdict::kGood:
      return "good";
    default:
      return "bad";
  }
}

// What a kernel left, as text, and then forgotten; "" if there is nothing.
std::string take(WaitStatus* status) {
  if (status == nullptr || __atomic_load_n(&status->expired, __ATOMIC_ACQUIRE) == 0) return "";
  const std::string text = "a wait had no end: exchange " + std::to_string(status->exchange) +
                           " did not complete (cluster " + std::to_string(status->cluster) +
                           ", rank " + std::to_string(status->rank) + ", parity " +
                           std::to_string(status->parity) + ")";
  //~ forget the status
  *status = WaitStatus{};
  return text;
}

}  // namespace

void set_checker(Checker checker, Warner warner) {
  const std::lock_guard<std::mutex> lock(state().mutex);
  state().checker = checker;
  state().warner = warner;
}

bool is_trusted(const Configuration& configuration, void* stream) {
  State& all = state();
  Checker checker;
  Warner warner;
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    //~ devices off
    if (all.devices_off.count(configuration.device) != 0) return false;
    if (!settings().self_check) return true;
    const auto known = all.verdicts.find(configuration);
    //~ known verdict
    if (known != all.verdicts.end()) return known->second == Verdict::kGood;
    checker = all.checker;
    warner = all.warner;
  }
  // Another thread may be capturing a graph, too. As for every thread that uses torch beside a capture:
  // in the mode "global", torch's default, CUDA refuses calls that might break it and ends the capture
  // with an error. Torch's allocator asks for the relaxed mode around what it does, and the checker
  // waits for its own stream only, as Tensor.cpu() does: neither is such a call.
  //~ capture
  if (checker == nullptr || is_capturing(stream)) return false;
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    const auto [known, is_new] = all.verdicts.emplace(configuration, Verdict::kBeingChecked);
    if (!is_new) return known->second == Verdict::kGood;
  }
  const std::optional<std::string> fault = checker(configuration);
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    if (!fault) {
      all.verdicts.erase(configuration);
      return false;
    }
    //~ verdict
    all.verdicts[configuration] = fault->empty() ? Verdict::kGood : Verdict::kBad;
  }
  if (fault->empty()) return true;
  warner("varlen_rnn: the self-check of a persistent CUDA kernel failed (" +
         to_string(configuration) + "): " + *fault +
         "; from now on the generic path runs there, with right results but slower. Please report "
         "this, with what varlen_rnn.build_info() says");
  return false;
}

std::vector<std::string> verdicts() {
  const std::lock_guard<std::mutex> lock(state().mutex);
  std::vector<std::string> lines;
  for (const auto& [configuration, verdict] : state().verdicts) {
    lines.push_back(to_string(configuration) + ": " + to_string(verdict));
  }
  for (const int32_t device : state().devices_off) {
    lines.push_back("cuda:" + std::to_string(device) + ": off since a wait had no end");
  }
  return lines;
}

void check_waits(int32_t device) {
  const std::lock_guard<std::mutex> lock(state().mutex);
  const std::string text = take(wait_status(device, /*make=*/false));
  // What was under way while the path was turned off may expire, too: that has been said.
  //~ said before
  if (text.empty() || !state().devices_off.insert(device).second) return;
  throw std::runtime_error(
      "varlen_rnn: in a persistent CUDA kernel of an earlier call on cuda:" +
      std::to_string(device) + " " + text +
      ". The results of calls since then are not valid (NaN where nothing was computed). From now "
      "on the generic path runs on this device. If the GPU was stopped meanwhile, as by a "
      "debugger, raise varlen_rnn._C_cuda.settings().wait_limit_s; otherwise please report this");
}

std::string take_expired_wait(int32_t device) {
  const std::lock_guard<std::mutex> lock(state().mutex);
  WaitStatus* status = wait_status(device, /*make=*/false);
  return take(status == nullptr ? nullptr : status + 1);
}

#ifdef VARLEN_RNN_EMULATE
void forget_verdicts() {
  const std::lock_guard<std::mutex> lock(state().mutex);
  state().verdicts.clear();
  state().devices_off.clear();
  WaitStatus* status = wait_status(0, /*make=*/true);
  status[0] = status[1] = WaitStatus{};
}
#endif

}  // namespace varlen_rnn::cuda
