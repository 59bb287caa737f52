// The persistent path: which team a layer gets, the plan, and one launch for both directions.
#include <map>
#include <mutex>
#include <tuple>

#include "cuda/layer.h"
#include "cuda/self_check.h"
#include "cuda/settings.h"

namespace varlen_rnn::cuda {
namespace {

// There is no team for a call whose path is forced.
void expect_none_is_forced() {
  STD_TORCH_CHECK(forced().path != Path::kPersistent,
                  "varlen_rnn: force_path must be \"persistent\" only where a team fits the layer, "
                  "got a layer without one");
}

}  // namespace

#if VARLEN_RNN_PERSISTENT

namespace {

struct Choice {
  Team team;
  PersistentKernels kernels;
  int active_clusters;  // 0 if there is no team
};

PersistentKernels kernels_of(bool is_lstm, Dtype dtype) {
  switch (dtype) {
    case Dtype::kBFloat16:
      return is_lstm ? persistent_lstm_bf16() : persistent_gru_bf16();
    case Dtype::kFloat16:
      return is_lstm ? persistent_lstm_f16() : persistent_gru_f16();
    case Dtype::kFloat32:
      return is_lstm ? persistent_lstm_tf32() : persistent_gru_tf32();
    default:
      return {};
  }
}

simt::Launch launch_of(const Team& team, int teams, void* stream) {
  return {static_cast<unsigned>(teams * team.cluster_size), static_cast<unsigned>(team.threads),
          static_cast<size_t>(team.shared_bytes), static_cast<unsigned>(team.cluster_size), stream};
}

Choice choose(const Problem& problem, Dtype dtype, int32_t device, int wanted) {
  const simt::Device properties = device_properties(device);
  if (properties.major < 9) return {};
  const Limits limits{properties.max_cluster_size,
                      static_cast<int64_t>(properties.max_shared_bytes)};
  const PersistentKernels kernels = kernels_of(problem.is_lstm, dtype);
  for (const Team& team : possible_teams(problem, limits)) {
    if (wanted != 0 && team.cluster_size != wanted) continue;
    const simt::Launch launch = launch_of(team, 1, nullptr);
    const int active = problem.is_backward ? kernels.backward[team.variant].active_clusters(launch)
                                           : kernels.forward[team.variant].active_clusters(launch);
    if (active > 0) return {team, kernels, active};
  }
  return {};
}

Choice fitting_choice(const Layer& layer, bool is_backward, int32_t device) {
  const Dtype dtype = layer.call.dtype;
  const bool fits = dtype == Dtype::kBFloat16 || dtype == Dtype::kFloat16 ||
                    (dtype == Dtype::kFloat32 && layer.allow_tf32);
  const DeviceLayout& l = layer.layout.layout;
  // Turns, and where they lie, are int32.
  const int64_t most = std::max(layer.call.num_directions * l.num_tokens, l.num_flat_rows);
  if (!fits || most >= INT32_MAX || layer.projected()) return {};
  const Problem problem{layer.is_lstm, is_backward, layer.call.hidden_size,
                        dtype == Dtype::kFloat32 ? 4 : 2};
  const int wanted = settings().cluster_size;
  using Key = std::tuple<int32_t, Dtype, bool, bool, int64_t, int>;
#ifdef VARLEN_RNN_EMULATE  // whose device changes
  return choose(problem, dtype, device, wanted);
#endif
  static std::mutex mutex;
  static std::map<Key, Choice> choices;
  const Key key{device, dtype, layer.is_lstm, is_backward, problem.hidden_size, wanted};
  const std::lock_guard<std::mutex> lock(mutex);
  const auto known = choices.find(key);
  if (known != choices.end()) return known->second;
  return choices[key] = choose(problem, dtype, device, wanted);
}

Choice choice_of(const Layer& layer, bool is_backward, int32_t device, void* stream) {
  const Path path = forced().path;
  if (path == Path::kGeneric) return {};
  if (path == Path::kPersistent) {
    const Choice choice = fitting_choice(layer, is_backward, device);
    if (choice.active_clusters == 0) expect_none_is_forced();
    return choice;
  }
  //~ waits
  check_waits(device);
  if (!settings().persistent) return {};
  const Choice choice = fitting_choice(layer, is_backward, device);
  if (choice.active_clusters == 0) return {};
  const Team& team = choice.team;
  const Configuration configuration{device,           layer.is_lstm,          is_backward,
                                    layer.call.dtype, layer.call.hidden_size, team.cluster_size,
                                    team.variant};
  //~ guard
  if (!is_trusted(configuration, stream)) return {};
  return choice;
}

using SharedPlan = std::shared_ptr<const PlanTensors>;

// Teams for each direction: as many as the device holds at a time, and no more than there are
// segments.
SharedPlan plan_of(const Layer& layer, const Choice& choice, void* stream) {
  const int64_t D = layer.call.num_directions;
  const DeviceLayout& l = layer.layout.layout;
  int64_t teams =
      std::max<int64_t>(1, std::min<int64_t>(choice.active_clusters / D, l.num_segments));
  //~ number of teams
  if (forced().max_teams > 0) teams = std::min<int64_t>(teams, forced().max_teams);
  return layer.layout.derived->plan(l, D, teams, stream);
}

// What the kernel reads as vectors, aligned for that: to live until after its launch, for what torch
// frees it gives to the next who asks.
struct AlignedWeights {
  Tensor weight_hh[2];

  //~ aligned weights
  explicit AlignedWeights(const Layer& layer)
      : weight_hh{aligned(layer.weight(0, kWeightHh)),
                  aligned(layer.weight(layer.call.num_directions - 1, kWeightHh))} {}
};

void fill_in(const Layer& layer, const Choice& choice, int32_t device, const PlanTensors& plan,
             const AlignedWeights& weights, Persistent& p) {
  p.team = choice.team;
  p.num_directions = plan.directions;
  p.num_teams = plan.teams;
  p.capacity = plan.capacity;
  p.num_rows = layer.layout.layout.num_rows;
  p.num_tokens = layer.layout.layout.num_tokens;
  p.hidden_size = layer.call.hidden_size;
  p.first_step = plan.first_step();
  p.turns = plan.turns();
  for (int64_t d = 0; d < layer.call.num_directions; ++d) {
    p.weight_hh[d] = device_pointer(weights.weight_hh[d]);
  }
  p.wait_limit = simt::wait_limit(settings().wait_limit_s);
  //~ status
  p.status = wait_status(device, /*make=*/true) + (forced().path != Path::kAny);
#ifdef VARLEN_RNN_EMULATE
  emulator::register_memory(p.status, sizeof(*p.status));
#endif
}

}  // namespace

bool run_persistent(const Layer& layer, const ForwardTensors& t, int32_t device, void* stream) {
  const Choice choice = choice_of(layer, /*is_backward=*/false, device, stream);
  if (choice.active_clusters == 0) return false;
  const SharedPlan plan = plan_of(layer, choice, stream);
  const AlignedWeights weights(layer);
  PersistentForward p{};
  fill_in(layer, choice, device, *plan, weights, p);
  const OptionalTensor h_0 = aligned(t.h_0), c_0 = aligned(t.c_0);
  const Tensor inputs = aligned(t.inputs);
  const int64_t H = layer.call.hidden_size;
  for (int64_t d = 0; d < layer.call.num_directions && !layer.is_lstm; ++d) {
    const OptionalTensor& bias = layer.bias_hh(d);
    if (bias.has_value()) p.bias_hn[d] = advance(device_pointer(*bias), 2 * H, *bias);
  }
  p.inputs = device_pointer(inputs);
  p.h_0 = device_pointer(h_0);
  p.c_0 = device_pointer(c_0);
  p.out = device_pointer(t.out);
  p.h_n = device_pointer(t.h_n);
  p.c_n = device_pointer(t.c_n);
  p.gates = static_cast<float*>(device_pointer(t.gates));
  p.cells = static_cast<float*>(device_pointer(t.cells));
  choice.kernels.forward[choice.team.variant].run(
      launch_of(choice.team, p.num_teams * p.num_directions, stream), p);
  return true;
}

bool run_persistent(const Layer& layer, const BackwardTensors& t, int32_t device, void* stream) {
  const Choice choice = choice_of(layer, /*is_backward=*/true, device, stream);
  if (choice.active_clusters == 0) return false;
  const SharedPlan plan = plan_of(layer, choice, stream);
  const AlignedWeights weights(layer);
  PersistentBackward p{};
  fill_in(layer, choice, device, *plan, weights, p);
  const OptionalTensor d_out = aligned(t.d_out), d_h_n = aligned(t.d_h_n);
  const OptionalTensor d_c_n = aligned(t.d_c_n), d_cells = aligned(t.d_cells);
  const OptionalTensor h_0 = aligned(t.h_0), c_0 = aligned(t.c_0), cells = aligned(t.cells);
  const Tensor out = aligned(t.out), gates = aligned(t.gates);
  p.d_out = device_pointer(d_out);
  p.d_h_n = device_pointer(d_h_n);
  p.d_c_n = device_pointer(d_c_n);
  p.d_cells = static_cast<const float*>(device_pointer(d_cells));
  p.h_0 = device_pointer(h_0);
  p.c_0 = device_pointer(c_0);
  p.out = device_pointer(out);
  p.gates = static_cast<const float*>(device_pointer(gates));
  p.cells = static_cast<const float*>(device_pointer(cells));
  p.d_gates = device_pointer(t.d_gates);
  p.d_h_0 = device_pointer(t.d_h_0);
  p.d_c_0 = device_pointer(t.d_c_0);
  choice.kernels.backward[choice.team.variant].run(
      launch_of(choice.team, p.num_teams * p.num_directions, stream), p);
  return true;
}

#else  // no architecture of this build has clusters

bool run_persistent(const Layer&, const ForwardTensors&, int32_t, void*) {
  expect_none_is_forced();
  return false;
}
bool run_persistent(const Layer&, const BackwardTensors&, int32_t, void*) {
  expect_none_is_forced();
  return false;
}

#endif

}  // namespace varlen_rnn::cuda
