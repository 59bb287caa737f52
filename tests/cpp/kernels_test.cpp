// The kernels of every instruction set against a naive implementation in double; without torch, to run under
// sanitizers. Every tensor is a heap block of exactly its size, and all padding and all that a kernel has to
// write begins as NaN, so that reading beyond a tensor, padding or what was never written shows.
//
// A case is one random call on one instruction set. `kernels_test 5 17` runs calls 5 and 17 alone.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "cpu/dispatch.h"
#include "packed.h"
#include "problem.h"

namespace varlen_rnn {
namespace {

constexpr int64_t kNumCalls = 192;
constexpr int64_t kWorkers[] = {1, 2, 7};

struct Scratch {
  std::unique_ptr<void, void (*)(void*)> memory;
  explicit Scratch(size_t bytes) : memory(std::aligned_alloc(64, bytes), std::free) {
    std::memset(memory.get(), 0xff, bytes);
  }
};

// Forward, and with `training` also backward; filled as the ops do, but for outputs, which are all NaN.
Results run(const Kernels& kernels, const Problem& q, int64_t workers, bool training,
            const Packed* packed = nullptr) {
  Results r;
  const auto sizes = q.result_sizes();
  for (int i = 0; i < (training ? kNumResults : kGates); ++i) {
    r[i] = Tensor(i == kGates || i == kCells ? q.compute : q.dtype, sizes[i], q.shifted);
  }
  const auto optional = [](const std::vector<int64_t>& v) {
    return v.empty() ? nullptr : v.data();
  };
  Layout layout{};
  layout.num_rows = q.B;
  layout.num_flat_rows = q.R;
  layout.num_tokens = layout.num_places = q.N;
  layout.num_steps = q.S;
  layout.num_segments = q.G;
  layout.batch_sizes = q.batch_sizes.data();
  layout.first_token = q.first_token.data();
  layout.rows = optional(q.rows);
  layout.reverse = optional(q.reverse);
  layout.initial_row = q.initial_row.data();
  layout.final_row = q.final_row.data();
  const ParallelFor parallel_for = workers > 1 && q.threads ? threaded_for : plain_for;
  // Barriers that cost nothing make teams of workers wherever the kernels can.
  const double barrier_cycles = q.teams ? 0 : 3000;
  const Call call = {q.dtype,        q.I,          q.H,    q.P, q.D, layout, workers,
                     barrier_cycles, parallel_for, nullptr};

  Forward f{};
  f.call = call;
  for (int64_t d = 0; d < q.D; ++d) {
    f.weights[d] = {q.weight_ih[d].data(),
                    q.weight_hh[d].data(),
                    q.bias_ih[d].data(),
                    q.bias_hh[d].data(),
                    q.weight_hr[d].data(),
                    nullptr,
                    nullptr};
    if (packed != nullptr) f.weights[d] = packed->pointers(d);
  }
  if (packed != nullptr) {
    f.order = packed->order;
    f.units = packed->units;
  }
  f.backwards = workers > 1;  // the order of reading weights must not matter
  f.x = q.x.data();
  f.x_stride = q.x_stride;
  f.h_0 = q.h_0.data();
  f.c_0 = q.c_0.data();
  f.out = r[kOut].data();
  f.h_n = r[kHN].data();
  f.c_n = r[kCN].data();
  f.gates = r[kGates].data();
  f.cells = r[kCells].data();
  {
    const Scratch scratch(q.lstm ? kernels.lstm_forward_scratch(f)
                                 : kernels.gru_forward_scratch(f));
    f.call.scratch = scratch.memory.get();
    q.lstm ? kernels.lstm_forward(f) : kernels.gru_forward(f);
  }
  if (!training) return r;

  Backward b{};
  b.call = call;
  b.d_out = q.d_out.data();
  b.d_h_n = q.d_h_n.data();
  b.d_c_n = q.d_c_n.data();
  b.d_cells = q.d_cells.data();
  b.x = f.x;
  b.x_stride = f.x_stride;
  b.h_0 = f.h_0;
  b.c_0 = f.c_0;
  b.out = f.out;
  b.gates = f.gates;
  b.cells = f.cells;
  b.d_x = r[kDX].data();
  b.d_h_0 = r[kDH0].data();
  b.d_c_0 = r[kDC0].data();
  for (int64_t d = 0; d < q.D; ++d) {
    b.weights[d] = f.weights[d];
    const auto part = [&](int index) { return r[index].part(d, q.D); };
    b.d_weights[d] = {part(kDWeightIh), part(kDWeightHh), part(kDBiasIh), part(kDBiasHh),
                      part(kDWeightHr)};
  }
  const Scratch scratch(q.lstm ? kernels.lstm_backward_scratch(b)
                               : kernels.gru_backward_scratch(b));
  b.call.scratch = scratch.memory.get();
  q.lstm ? kernels.lstm_backward(b) : kernels.gru_backward(b);
  return r;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// matrix * v + bias; no bias if it is empty.
Values times(const Values& matrix, const Values& v, const Values& bias) {
  Values result(matrix.size() / v.size());
  for (size_t m = 0; m < result.size(); ++m) {
    const double* row = &matrix[m * v.size()];
    double sum = bias.empty() ? 0 : bias[m];
    for (size_t k = 0; k < v.size(); ++k) sum += row[k] * v[k];
    result[m] = sum;
  }
  return result;
}

// v * matrix, of which only the first v.size() rows are there.
Values times_transposed(const Values& v, const Values& matrix) {
  Values result(matrix.size() / v.size());
  for (size_t m = 0; m < v.size(); ++m) {
    const double* row = &matrix[m * result.size()];
    for (size_t k = 0; k < result.size(); ++k) result[k] += v[m] * row[k];
  }
  return result;
}

// Row `row` of a matrix of n columns; zeros if there is no matrix or the row is negative.
Values get(const Values& matrix, int64_t row, int64_t n) {
  if (matrix.empty() || row < 0) return Values(static_cast<size_t>(n));
  return Values(matrix.begin() + row * n, matrix.begin() + (row + 1) * n);
}

void put(Values& matrix, int64_t row, const Values& values) {
  if (matrix.empty()) return;
  std::copy(values.begin(), values.end(),
            matrix.begin() + row * static_cast<int64_t>(values.size()));
}

// Adds column * row to the d-th of the matrices stacked in `matrices`.
void add_outer(Values& matrices, int64_t d, const Values& column, const Values& row) {
  if (matrices.empty()) return;
  double* to = &matrices[d * column.size() * row.size()];
  for (double c : column) {
    for (double x : row) *to++ += c * x;
  }
}

// What a call's results should be, one segment after the other; NaN where nothing is to be written. Each step
// starts from the h that the kernel stored at the step before, so that an error is that of one step, also
// where h is rounded to 16 bits, and does not depend on which way a tie fell.
std::array<Values, kNumResults> naive(const Problem& q, const Tensor& kernel_out) {
  const int64_t D = q.D, H = q.H, P = q.P;
  std::array<Values, kNumResults> r;
  const auto sizes = q.result_sizes();
  for (int i = 0; i < kNumResults; ++i) {
    const bool sum = i >= kDWeightIh;  // over all tokens
    r[i].assign(static_cast<size_t>(sizes[i]), sum ? 0 : std::numeric_limits<double>::quiet_NaN());
  }
  const Values all_x = q.x.values(), h_0 = q.h_0.values(), c_0 = q.c_0.values();
  const Values d_out = q.d_out.values(), d_h_n = q.d_h_n.values(), d_c_n = q.d_c_n.values();
  const Values d_cells = q.d_cells.values(), out = kernel_out.values();

  for (int64_t d = 0; d < D; ++d) {
    const Values w_ih = q.weight_ih[d].values(), w_hh = q.weight_hh[d].values();
    const Values b_ih = q.bias_ih[d].values(), b_hh = q.bias_hh[d].values();
    const Values w_hr = q.weight_hr[d].values();
    for (int64_t j = 0; j < q.G; ++j) {
      const int64_t length = q.lengths[j];
      const int64_t initial = q.initial_row[j] < 0 ? -1 : d * q.B + q.initial_row[j];
      const int64_t last = q.final_row[j] < 0 ? -1 : d * q.B + q.final_row[j];
      const auto place = [&](int64_t t) { return d * q.N + q.first_token[t] + j; };
      const auto token = [&](int64_t t) { return q.first_token[d == 0 ? t : length - 1 - t] + j; };

      Values h = get(h_0, initial, P), c = get(c_0, initial, H);
      std::vector<Values> before, hiddens;  // h_{t-1} and, not projected, h_t
      for (int64_t t = 0; t < length; ++t) {
        const auto x = all_x.begin() + q.row(token(t)) * q.x_stride;
        const Values from_x = times(w_ih, Values(x, x + q.I), b_ih), from_h = times(w_hh, h, b_hh);
        before.push_back(h);
        Values gates(4 * H), hidden(H);
        for (int64_t u = 0; u < H; ++u) {
          const auto sum = [&](int64_t gate) {
            return from_x[gate * H + u] + from_h[gate * H + u];
          };
          double* gate = &gates[u];
          if (q.lstm) {
            gate[0] = sigmoid(sum(0));
            gate[H] = sigmoid(sum(1));
            gate[2 * H] = std::tanh(sum(2));
            gate[3 * H] = sigmoid(sum(3));
            c[u] = gate[H] * c[u] + gate[0] * gate[2 * H];
            hidden[u] = gate[3 * H] * std::tanh(c[u]);
          } else {
            gate[0] = sigmoid(sum(0));
            gate[H] = sigmoid(sum(1));
            gate[3 * H] = from_h[2 * H + u];
            gate[2 * H] = std::tanh(from_x[2 * H + u] + gate[0] * gate[3 * H]);
            hidden[u] = (1 - gate[H]) * gate[2 * H] + gate[H] * h[u];
          }
        }
        put(r[kGates], place(t), gates);
        put(r[kCells], place(t), c);
        hiddens.push_back(hidden);
        const int64_t out_row = q.row(token(t)) * D + d;
        put(r[kOut], out_row, q.projected ? times(w_hr, hidden, {}) : hidden);
        h = get(out, out_row, P);
      }
      if (last >= 0) put(r[kHN], last, h);
      if (last >= 0) put(r[kCN], last, c);

      Values d_h = get(d_h_n, last, P), d_c = get(d_c_n, last, H);
      for (int64_t t = length - 1; t >= 0; --t) {
        const Values d_from_out = get(d_out, q.row(token(t)) * D + d, P);
        for (int64_t u = 0; u < P; ++u) d_h[u] += d_from_out[u];
        if (q.projected) add_outer(r[kDWeightHr], d, d_h, hiddens[t]);
        const Values d_hidden = q.projected ? times_transposed(d_h, w_hr) : d_h;
        const Values gates = get(r[kGates], place(t), 4 * H);
        const Values& h_before = before[t];
        const Values c_now = get(r[kCells], place(t), H);
        const Values c_before = t == 0 ? get(c_0, initial, H) : get(r[kCells], place(t - 1), H);
        const Values d_from_cell = get(d_cells, place(t), H);
        Values d_gates(4 * H), d_direct(P);  // d_direct: what reaches h_{t-1} past weight_hh
        for (int64_t u = 0; u < H; ++u) {
          double* d_gate = &d_gates[u];
          if (q.lstm) {
            const double i = gates[u], f = gates[H + u], g = gates[2 * H + u], o = gates[3 * H + u];
            const double tanh_c = std::tanh(c_now[u]);
            d_c[u] += d_from_cell[u] + d_hidden[u] * o * (1 - tanh_c * tanh_c);
            d_gate[0] = d_c[u] * g * i * (1 - i);
            d_gate[H] = d_c[u] * c_before[u] * f * (1 - f);
            d_gate[2 * H] = d_c[u] * i * (1 - g * g);
            d_gate[3 * H] = d_hidden[u] * tanh_c * o * (1 - o);
            d_c[u] *= f;
          } else {
            const double r_ = gates[u], z = gates[H + u], n = gates[2 * H + u];
            const double d_n = d_hidden[u] * (1 - z) * (1 - n * n);
            d_gate[0] = d_n * gates[3 * H + u] * r_ * (1 - r_);
            d_gate[H] = d_hidden[u] * (h_before[u] - n) * z * (1 - z);
            d_gate[2 * H] = d_n;
            d_gate[3 * H] = d_n * r_;
            d_direct[u] = d_hidden[u] * z;
          }
        }
        // On the input's side and on the hidden side; for GRU they differ in n.
        Values d_input(d_gates.begin(), d_gates.begin() + q.gates * H);
        if (!q.lstm) d_gates.erase(d_gates.begin() + 2 * H, d_gates.begin() + 3 * H);
        const auto x = all_x.begin() + q.row(token(t)) * q.x_stride;
        add_outer(r[kDWeightIh], d, d_input, Values(x, x + q.I));
        add_outer(r[kDWeightHh], d, d_gates, h_before);
        add_outer(r[kDBiasIh], d, d_input, {1});
        add_outer(r[kDBiasHh], d, d_gates, {1});
        const Values d_x = times_transposed(d_input, w_ih);
        for (int64_t i = 0; i < q.I && q.wants_x; ++i) {
          double& sum = r[kDX][q.row(token(t)) * q.I + i];
          sum = (d == 0 ? 0 : sum) + d_x[i];
        }
        d_h = times_transposed(d_gates, w_hh);
        for (int64_t u = 0; u < P; ++u) d_h[u] += d_direct[u];
      }
      if (initial >= 0) put(r[kDH0], initial, d_h);
      if (initial >= 0) put(r[kDC0], initial, d_c);
    }
  }
  return r;
}

// Says what is wrong with a result, or nothing.
std::string compare_to_naive(int index, const Tensor& actual, const Values& expected,
                             Dtype compute) {
  // In rounding units of the largest value. A sum of n rounded products errs by about the root of n, here up
  // to 28, most of which averages out in later sums; the largest error seen is 17.
  constexpr double kUnits = 64;
  double largest = 0;
  for (double value : expected) largest = std::fmax(largest, std::fabs(value));  // skips NaN
  const double computing = kUnits * std::ldexp(largest, -format_of(compute).mantissa - 1);
  const Format& stored = format_of(actual.dtype());
  const Values values = actual.values();
  for (int64_t i = 0; i < actual.size(); ++i) {
    double allowed = 0;
    if (std::isnan(expected[i])) {
      if (actual.untouched(i)) continue;
    } else if (index != kHN) {  // which is a copy of the stored h
      // Rounded to nearest when stored: half a unit in the last place.
      const double magnitude =
          std::fmax(std::fabs(expected[i]), std::ldexp(1, stored.min_exponent));
      const double storing = std::ldexp(magnitude, -stored.mantissa - 1);
      allowed = computing + (actual.dtype() == compute ? 0 : storing);
    }
    if (!(std::fabs(values[i] - expected[i]) <= allowed)) {
      char text[128];
      std::snprintf(text, sizeof(text), "%s[%lld] is %.17g, not %.17g", kNames[index],
                    static_cast<long long>(i), values[i], expected[i]);
      return text;
    }
  }
  return "";
}

// The first result that is not the same in every bit, followed by `where`; or nothing.
std::string compare_bits(const Results& actual, const Results& expected, const std::string& where) {
  for (int i = 0; i < kNumResults; ++i) {
    const bool inference = i >= kGates && actual[kGates].size() == 0;
    if (!inference && !(actual[i] == expected[i])) return std::string(kNames[i]) + where;
  }
  return "";
}

// Says what is wrong with a call on the instruction set in use. `fused` holds the results of the first set
// with fused multiply-add, once there are any.
std::string check(const Problem& q, Results& fused) {
  Results results = run(kernels(), q, kWorkers[0], true);
  std::string wrong;
  if (fused[kOut].size() > 0) {
    wrong = compare_bits(results, fused, " is not the same as on a lower instruction set");
  } else {
    const auto expected = naive(q, results[kOut]);
    for (int i = 0; i < kNumResults && wrong.empty(); ++i) {
      wrong = compare_to_naive(i, results[i], expected[i], q.compute);
    }
  }
  for (int64_t workers : kWorkers) {
    for (bool training : {true, false}) {
      if (!wrong.empty() || (training && workers == kWorkers[0])) continue;
      wrong = compare_bits(run(kernels(), q, workers, training), results,
                           " is not the same with " + std::to_string(workers) + " workers" +
                               (training ? "" : " in inference"));
    }
  }
  for (const Packed& packed : packed_in_every_way(q, kernels().vector_bytes)) {
    if (!wrong.empty()) break;
    wrong = compare_bits(run(kernels(), q, kWorkers[1], false, &packed), results,
                         " is not the same with packed weights");
  }
  if (std::string(kernels().name) != "baseline") fused = std::move(results);
  return wrong;
}

int run_all(const std::vector<int64_t>& numbers) {
  int passed = 0, failed = 0;
  Digest digest;
  const char* names[kMaxInstructionSets];
  const int sets = instruction_sets_for_floats(names);
  for (int64_t number : numbers) {
    const Problem q(number);
    Results fused;
    for (int set = 0; set < sets; ++set) {
      const std::string wrong = use_instruction_set(names[set])
                                    ? check(q, fused)
                                    : "the instruction set is not available";
      wrong.empty() ? ++passed : ++failed;
      if (wrong.empty()) continue;
      std::printf("call %lld, %s, %s, %s", static_cast<long long>(number), names[set],
                  q.lstm ? q.projected ? "LSTM with projection" : "LSTM" : "GRU",
                  format_of(q.dtype).name);
      const int64_t sizes[] = {q.D, q.I, q.H, q.P, q.B, q.R, q.N, q.S, q.G};
      for (int i = 0; i < 9; ++i) {
        std::printf(", %c = %lld", "DIHPBRNSG"[i], static_cast<long long>(sizes[i]));
      }
      std::printf(": %s\n", wrong.c_str());
    }
    digest.add(fused);
  }
  digest.print();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed > 0;
}

}  // namespace
}  // namespace varlen_rnn

int main(int argc, char** argv) {
  return varlen_rnn::run_all(varlen_rnn::chosen_calls(argc, argv, varlen_rnn::kNumCalls));
}
