// The kernels with int8 weights of every instruction set against the same arithmetic in plain loops; without
// torch, to run under sanitizers, and on the calls of kernels_test that are of float32 and not projected.
#include "cpu/int8.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "cpu/dispatch.h"
#include "problem.h"

namespace varlen_rnn {
namespace {

constexpr int64_t kNumCalls = 768;
constexpr int64_t kWorkers[] = {1, 2, 7};
constexpr int64_t kUnits = kInt8Units;

// A matrix [gates * H, K] of small integers, and what the kernels take of it.
struct Weight {
  int64_t H, K;
  std::vector<int64_t> integers;  // [gates * H, K]
  std::vector<float> scale_of, bias_of;
  std::unique_ptr<int8_t[]> packed;  // exactly as large as the kernels may read
  std::unique_ptr<float[]> scale, bias;

  Weight(Random& random, int64_t gates, int64_t units, int64_t size) : H(units), K(size) {
    const int64_t rows = gates * H, pairs = (K + 1) / 2, groups = (H + kUnits - 1) / kUnits;
    const int64_t columns = groups * gates * kUnits;
    packed.reset(new int8_t[static_cast<size_t>(columns * pairs * 2)]());
    scale.reset(new float[static_cast<size_t>(columns)]());
    bias.reset(new float[static_cast<size_t>(columns)]());
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t gate = row / H, unit = row % H;
      const int64_t block = unit / kUnits * gates + gate, column = unit % kUnits;
      // Of some rows all weights are as large as can be.
      const bool largest = random.one_in(8);
      const float row_scale = static_cast<float>((1 + random.uniform(0.9)) / (127 * std::sqrt(K)));
      scale_of.push_back(scale[block * kUnits + column] = row_scale);
      bias_of.push_back(bias[block * kUnits + column] = static_cast<float>(random.uniform(1)));
      for (int64_t k = 0; k < K; ++k) {
        integers.push_back(largest ? 127 : random.below(255) - 127);
        packed[((block * pairs + k / 2) * kUnits + column) * 2 + k % 2] =
            static_cast<int8_t>(integers.back());
      }
    }
  }

  Values times(const Values& v) const {
    const float most = static_cast<float>(activation_max(K));
    float magnitude = 0;
    for (double x : v) magnitude = std::fmax(magnitude, std::fabs(static_cast<float>(x)));
    std::vector<int64_t> q;
    for (double x : v) {
      const float scaled = magnitude == 0 ? 0 : static_cast<float>(x) * (most / magnitude);
      q.push_back(static_cast<int64_t>(std::nearbyint(scaled)));
    }
    const double token_scale = magnitude / most;
    Values result;
    for (size_t row = 0; row < scale_of.size(); ++row) {
      int64_t sum = 0;
      for (int64_t k = 0; k < K; ++k) sum += q[k] * integers[row * K + k];
      result.push_back(static_cast<double>(sum) * token_scale * scale_of[row] + bias_of[row]);
    }
    return result;
  }
};

struct Weights2 {
  Weight ih, hh;
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

using Outputs = std::array<Tensor, 3>;  // out, h_n, c_n

Outputs run(const Problem& q, const std::vector<Weights2>& weights, int64_t workers) {
  const auto sizes = q.result_sizes();
  Outputs r;
  for (int i = 0; i < 3; ++i) r[i] = Tensor(Dtype::kFloat32, sizes[i], q.shifted);
  const auto optional = [](const std::vector<int64_t>& v) {
    return v.empty() ? nullptr : v.data();
  };
  Forward f{};
  f.order = WeightOrder::kInt8;
  f.units = kUnits;
  Layout& layout = f.call.layout;
  layout.num_rows = q.B;
  layout.num_flat_rows = q.R;
  layout.num_tokens = q.N;
  layout.num_steps = q.S;
  layout.num_segments = q.G;
  layout.batch_sizes = q.batch_sizes.data();
  layout.first_token = q.first_token.data();
  layout.rows = optional(q.rows);
  layout.reverse = optional(q.reverse);
  layout.initial_row = q.initial_row.data();
  layout.final_row = q.final_row.data();
  f.call.dtype = Dtype::kFloat32;
  f.call.input_size = q.I;
  f.call.hidden_size = f.call.output_size = q.H;
  f.call.num_directions = q.D;
  f.call.num_workers = workers;
  f.call.barrier_cycles = q.teams ? 0 : 3000;
  f.call.parallel_for = workers > 1 && q.threads ? threaded_for : plain_for;
  for (int64_t d = 0; d < q.D; ++d) {
    const Weight &ih = weights[d].ih, &hh = weights[d].hh;
    f.weights[d] = {ih.packed.get(), hh.packed.get(), ih.bias.get(), hh.bias.get(),
                    nullptr,         ih.scale.get(),  hh.scale.get()};
  }
  f.x = q.x.data();
  f.x_stride = q.x_stride;
  f.h_0 = q.h_0.data();
  f.c_0 = q.c_0.data();
  f.out = r[0].data();
  f.h_n = r[1].data();
  f.c_n = r[2].data();
  const Kernels& k = kernels();
  const size_t bytes = q.lstm ? k.lstm_int8_scratch(f) : k.gru_int8_scratch(f);
  const std::unique_ptr<void, void (*)(void*)> scratch(std::aligned_alloc(64, bytes), std::free);
  std::memset(scratch.get(), 0xff, bytes);
  f.call.scratch = scratch.get();
  q.lstm ? k.lstm_int8(f) : k.gru_int8(f);
  return r;
}

// Says what is wrong with results, or nothing. Each step starts from the h that the kernel stored at the step
// before, so that both round the same numbers to integers.
std::string compare(const Problem& q, const std::vector<Weights2>& weights, const Outputs& r) {
  const Values x = q.x.values(), h_0 = q.h_0.values(), c_0 = q.c_0.values();
  const Values out = r[0].values(), h_n = r[1].values(), c_n = r[2].values();
  const int64_t H = q.H;
  std::vector<bool> written[3];
  for (int i = 0; i < 3; ++i) written[i].resize(static_cast<size_t>(r[i].size()));
  std::string wrong;
  const auto expect = [&](int which, const Values& got, int64_t index, double expected) {
    written[which][static_cast<size_t>(index)] = true;
    if (wrong.empty() && !(std::fabs(got[index] - expected) <= 2e-6 * (1 + std::fabs(expected)))) {
      wrong = std::string(kNames[which]) + "[" + std::to_string(index) + "] is " +
              std::to_string(got[index]) + ", not " + std::to_string(expected);
    }
  };
  for (int64_t d = 0; d < q.D; ++d) {
    for (int64_t j = 0; j < q.G; ++j) {
      const auto initial = [&](const Values& state) {
        const int64_t row = d * q.B + q.initial_row[j];
        if (state.empty() || q.initial_row[j] < 0) return Values(static_cast<size_t>(H));
        return Values(state.begin() + row * H, state.begin() + (row + 1) * H);
      };
      Values h = initial(h_0), c = initial(c_0);
      const int64_t length = q.lengths[j], last = q.final_row[j];
      for (int64_t t = 0; t < length; ++t) {
        const int64_t row = q.row(q.first_token[d == 0 ? t : length - 1 - t] + j);
        const auto token = x.begin() + row * q.x_stride;
        const Values from_x = weights[d].ih.times(Values(token, token + q.I));
        const Values from_h = weights[d].hh.times(h);
        for (int64_t u = 0; u < H; ++u) {
          const auto sum = [&](int64_t gate) {
            return from_x[gate * H + u] + from_h[gate * H + u];
          };
          double next;
          if (q.lstm) {
            c[u] = sigmoid(sum(1)) * c[u] + sigmoid(sum(0)) * std::tanh(sum(2));
            next = sigmoid(sum(3)) * std::tanh(c[u]);
          } else {
            const double z = sigmoid(sum(1));
            const double n = std::tanh(from_x[2 * H + u] + sigmoid(sum(0)) * from_h[2 * H + u]);
            next = (1 - z) * n + z * h[u];
          }
          const int64_t index = (row * q.D + d) * H + u;
          expect(0, out, index, next);
          if (t == length - 1 && last >= 0) {
            expect(1, h_n, (d * q.B + last) * H + u, next);
            if (q.lstm) expect(2, c_n, (d * q.B + last) * H + u, c[u]);
          }
        }
        const auto stored = out.begin() + (row * q.D + d) * H;
        h.assign(stored, stored + H);
      }
    }
  }
  for (int i = 0; i < 3; ++i) {
    for (int64_t e = 0; e < r[i].size(); ++e) {
      if (wrong.empty() && !written[i][static_cast<size_t>(e)] && !r[i].untouched(e)) {
        wrong = std::string(kNames[i]) + " was written where it should not be";
      }
    }
  }
  return wrong;
}

int run_all(const std::vector<int64_t>& numbers) {
  int passed = 0, failed = 0;
  Digest digest;
  const char* names[kMaxInstructionSets];
  const int sets = available_instruction_sets(names);
  for (int64_t number : numbers) {
    const Problem q(number);
    if (q.dtype != Dtype::kFloat32 || q.projected) continue;
    Random random(number);
    std::vector<Weights2> weights;
    for (int64_t d = 0; d < q.D; ++d) {
      weights.push_back({Weight(random, q.gates, q.H, q.I), Weight(random, q.gates, q.H, q.H)});
    }
    Outputs fused;
    for (int set = 0; set < sets; ++set) {
      std::string wrong = use_instruction_set(names[set]) ? "" : "not available";
      Outputs first = run(q, weights, kWorkers[0]);
      if (wrong.empty()) wrong = compare(q, weights, first);
      for (int64_t workers : kWorkers) {
        const Outputs again = run(q, weights, workers);
        for (int i = 0; i < 3 && wrong.empty(); ++i) {
          if (!(again[i] == first[i])) {
            wrong =
                std::string(kNames[i]) + " differs with " + std::to_string(workers) + " workers";
          }
          if (fused[0].size() > 0 && !(first[i] == fused[i])) {
            wrong = std::string(kNames[i]) + " is not the same as on a lower instruction set";
          }
        }
      }
      if (std::string(names[set]) != "baseline") fused = std::move(first);
      wrong.empty() ? ++passed : ++failed;
      if (!wrong.empty()) {
        std::printf("call %lld, %s, %s: %s\n", static_cast<long long>(number), names[set],
                    q.lstm ? "LSTM" : "GRU", wrong.c_str());
      }
    }
    digest.add(fused);
  }
  digest.print();
  std::printf("sets:");
  for (int set = 0; set < sets; ++set) std::printf(" %s", names[set]);
  std::printf("\n%d passed, %d failed\n", passed, failed);
  return failed > 0;
}

}  // namespace
}  // namespace varlen_rnn

int main(int argc, char** argv) {
  return varlen_rnn::run_all(varlen_rnn::chosen_calls(argc, argv, varlen_rnn::kNumCalls));
}
