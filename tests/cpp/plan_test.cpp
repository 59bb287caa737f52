// How plan-inl.h splits work over workers: what must hold for every call, whatever the model of its costs says, and
// the choices that any sound model makes. Parts are handed out, but nothing is computed.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "cpu/plan-inl.h"

namespace varlen_rnn::VARLEN_RNN_ISA {
namespace {

constexpr int kNumCases = 1000;
constexpr double kBarrier = 3000, kNever = std::numeric_limits<double>::infinity();

struct Case {
  std::vector<int64_t> batch_sizes;
  int64_t num_workers, num_directions;
  StepSize size;
  double barrier_cycles;

  int64_t num_segments() const { return batch_sizes.empty() ? 0 : batch_sizes[0]; }
  Call call() const {
    Call call{};
    call.num_workers = num_workers;
    call.num_directions = num_directions;
    call.barrier_cycles = barrier_cycles;
    call.layout.batch_sizes = batch_sizes.data();
    call.layout.num_steps = static_cast<int64_t>(batch_sizes.size());
    call.layout.num_segments = num_segments();
    return call;
  }
  Plan plan() const { return make_plan(call(), size); }
  bool by_units() const { return plan().team_size > 1; }
};

// As of an LSTM with four units a block.
StepSize step_size(int64_t input_size, int64_t hidden_size, int64_t grain = 2) {
  StepSize size{};
  size.blocks = ceil_div(hidden_size, 4);
  size.grain = grain;
  size.vectors = 2;
  size.input = input_size;
  size.hidden = hidden_size;
  size.by_units = true;
  return size;
}

int checked = 0, failed = 0;

void require(bool condition, const char* what, const Case& c) {
  ++checked;
  if (condition || ++failed > 10) return;
  std::printf(
      "not true: %s; %lld workers, %lld directions, %lld blocks, I = %lld, H = %lld, "
      "barrier %g, by units: %d, batch sizes",
      what, static_cast<long long>(c.num_workers), static_cast<long long>(c.num_directions),
      static_cast<long long>(c.size.blocks), static_cast<long long>(c.size.input),
      static_cast<long long>(c.size.hidden), c.barrier_cycles, c.by_units());
  for (int64_t rows : c.batch_sizes) std::printf(" %lld", static_cast<long long>(rows));
  std::printf("\n");
}

// Of a team's parts, each begins with segments no longer than the last ones of the part before; and
// all teams have the same number of tokens, but for one token at every step.
void check_that_work_is_even(const Case& c, const Plan& plan, const Layout& layout) {
  std::vector<int64_t> tokens(static_cast<size_t>(plan.ways), 0);
  for (int64_t i = 0; i < plan.parts; ++i) {
    const Part part = plan.part(layout, 0, i);
    int64_t s = 0;
    for (; part.active(s) > 0; ++s) tokens[static_cast<size_t>(i % plan.ways)] += part.active(s);
    if (i < plan.ways) continue;
    const Part before = plan.part(layout, 0, i - plan.ways);
    require(s == 0 || before.active(s - 1) == before.active(0),
            "a team's parts have ever shorter segments", c);
  }
  if (tokens.empty()) return;
  const auto [least, most] = std::minmax_element(tokens.begin(), tokens.end());
  require(*most - *least <= layout.num_steps, "teams have even shares of the tokens", c);
}

void check_plan(const Case& c) {
  const Plan plan = c.plan();
  const bool by_units = plan.team_size > 1;
  require(plan.team_size >= 1, "a team has workers", c);
  require(!by_units || c.size.by_units, "units are split only where they can be", c);
  require(!by_units || plan.team_size * c.num_directions <= c.num_workers,
          "there is a team for every direction", c);
  require(!by_units || plan.team_size <= c.size.blocks / c.size.grain,
          "there is a grain of blocks for a worker", c);
  int64_t counter = 0;
  for (int64_t i = 0; i < plan.team_size && by_units; ++i) {
    const Range blocks =
        Team(i, i + 1, plan.team_size, &counter).share(c.size.blocks, c.size.grain);
    require(blocks.begin < blocks.end, "every worker of a team has units", c);
  }
  require(by_units || plan.parts * c.num_directions >=
                          std::min(c.num_workers, c.num_segments() * c.num_directions),
          "every worker has a part, as far as there are segments", c);
  require(plan.max_rows <= kMaxPartRows, "no part has more than kMaxPartRows rows", c);

  // At every step all parts' active segments, which are a part's first ones, are the step's.
  const Call call = c.call();
  int64_t max_rows = 0;
  for (int64_t i = 0; i < plan.parts; ++i) {
    max_rows = std::max(max_rows, plan.part(call.layout, 0, i).active(0));
  }
  require(max_rows == plan.max_rows, "max_rows is that of the largest part", c);
  check_that_work_is_even(c, plan, call.layout);
  for (int64_t s = 0; s <= call.layout.num_steps; ++s) {
    std::vector<int64_t> segments, expected(s == call.layout.num_steps ? 0 : c.batch_sizes[s]);
    for (int64_t p = 0; p < plan.parts; ++p) {
      const Part part = plan.part(call.layout, 0, p);
      for (int64_t i = 0; i < part.active(s); ++i) segments.push_back(part.segment(i));
    }
    std::sort(segments.begin(), segments.end());
    for (size_t i = 0; i < expected.size(); ++i) expected[i] = static_cast<int64_t>(i);
    require(segments == expected, "the parts have a step's segments, each once", c);
  }
}

void in_one_call(int64_t n, void (*body)(void*, int64_t, int64_t), void* context) {
  body(context, 0, n);
}

// Pieces as torch makes them for fewer threads than workers: a thread may be of two teams.
template <int64_t kThreads>
void on_threads(int64_t n, void (*body)(void*, int64_t, int64_t), void* context) {
  const int64_t piece = ceil_div(n, kThreads);
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < n; i += piece) {
    threads.emplace_back([=] { body(context, i, std::min(i + piece, n)); });
  }
  for (std::thread& thread : threads) thread.join();
}

void check_for_each_part(const Case& c, ParallelFor parallel_for) {
  const Plan plan = c.plan();
  Call call = c.call();
  call.parallel_for = parallel_for;
  struct Task {
    std::set<int64_t> teams;
    std::multiset<int64_t> members;
  };
  std::mutex mutex;
  std::map<std::pair<int64_t, int64_t>, Task> tasks;       // of a direction and a part
  std::map<int64_t, std::set<std::thread::id>> on_worker;  // who uses a worker's scratch
  std::set<int64_t> teams;
  std::vector<int64_t> counters(static_cast<size_t>(c.num_workers * 8), -1);
  bool strides = true;
  std::set<int64_t> firsts, expected_firsts;
  for (int64_t i = 0; i < plan.parts; ++i) {
    expected_firsts.insert(plan.part(call.layout, 0, i).first);
  }
  for_each_part(call, plan, counters.data(),
                [&](int64_t worker, int64_t team_index, Team& team, const Part& part) {
                  {
                    const std::lock_guard<std::mutex> lock(mutex);
                    Task& task = tasks[{part.direction, part.first}];
                    firsts.insert(part.first);
                    task.teams.insert(team_index);
                    const Range members = team.share(plan.team_size);
                    for (int64_t i = members.begin; i < members.end; ++i) task.members.insert(i);
                    on_worker[worker].insert(std::this_thread::get_id());
                    teams.insert(team_index);
                    strides = strides && part.stride == plan.ways;
                  }
                  for (int i = 0; i < 3; ++i) team.wait();  // forever, if not the whole team comes
                });
  std::multiset<int64_t> whole_team;
  for (int64_t i = 0; i < plan.team_size; ++i) whole_team.insert(i);
  for (const auto& [key, task] : tasks) {
    require(task.teams.size() == 1, "one team takes a part", c);
    require(task.members == whole_team, "every member of the team takes the part, once", c);
  }
  const auto num_tasks = static_cast<int64_t>(tasks.size());
  const int64_t num_teams = c.num_workers / plan.team_size;
  require(num_tasks == plan.parts * c.num_directions, "every part of every direction is taken", c);
  require(firsts == expected_firsts, "the parts are the plan's", c);
  require(strides, "a part's segments are as many apart as there are ways", c);
  require(static_cast<int64_t>(teams.size()) == std::min(num_teams, num_tasks), "no team is idle",
          c);
  require(teams.empty() || *teams.rbegin() < num_teams, "a team has scratch of its own", c);
  for (const auto& [worker, threads] : on_worker) {
    require(threads.size() == 1 && worker < c.num_workers, "a worker has scratch of its own", c);
  }
}

// Any call: few segments or many, around the largest part's number; sizes of one block and of dozens.
Case random_case(std::mt19937_64& random) {
  const auto below = [&](int64_t n) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(n));
  };
  Case c{};
  const int64_t ranges[] = {1, 2, 9, 70, 300};
  int64_t rows = 1 + below(ranges[below(5)]);
  for (int64_t s = 1 + below(6); s > 0; --s) {
    c.batch_sizes.push_back(rows);
    if (below(2) == 0) rows = 1 + below(rows);
  }
  c.num_workers = 1 + below(below(2) == 0 ? 4 : 17);
  c.num_directions = 1 + below(2);
  c.size = step_size(1 + below(300), 1 + below(below(2) == 0 ? 32 : 600), 1 + below(2));
  c.size.vectors = 2 + below(2);
  c.size.by_units = below(8) > 0;
  const double barriers[] = {0, 100, kBarrier, kNever};
  c.barrier_cycles = barriers[below(4)];
  return c;
}

void check_choices() {
  // Prices from nothing to infinity: from some price on, rows.
  std::mt19937_64 random(1);
  for (int i = 0; i < kNumCases; ++i) {
    Case c = random_case(random);
    bool by_units = true;
    for (double barrier : {0.0, 1e2, 1e3, 1e4, 1e5, 1e6, kNever}) {
      c.barrier_cycles = barrier;
      require(by_units || !c.by_units(), "a dearer barrier never leads from rows to units", c);
      by_units = c.by_units();
    }
    require(!by_units, "nothing is worth an endless barrier", c);
  }
  for (int64_t steps : {1, 100}) {
    for (int64_t directions : {1, 2}) {
      for (int64_t team : {2, 3, 8}) {
        Case c{std::vector<int64_t>(static_cast<size_t>(steps), 1), team * directions, directions,
               step_size(16, 64), 0};
        require(c.plan().team_size == team, "all work on one row where a barrier costs nothing", c);
        c.num_workers = 2 * directions;
        c.barrier_cycles = kBarrier;
        c.size = step_size(512, 512);
        require(c.by_units(), "units are split for one row and large weights", c);
        c.size = step_size(8, 8);
        require(!c.by_units(), "a small step is over before a barrier", c);
      }
    }
    for (int64_t hidden_size : {32, 256, 1024}) {
      for (int64_t workers : {2, 4}) {
        const Case c{std::vector<int64_t>(static_cast<size_t>(steps), kMaxPartRows * workers),
                     workers, 1, step_size(hidden_size, hidden_size), kBarrier};
        require(!c.by_units(), "rows are split where there are many", c);
      }
    }
  }
}

int run_all() {
  std::mt19937_64 random(0);
  int by_units = 0;
  for (int i = 0; i < kNumCases; ++i) {
    const Case c = random_case(random);
    check_plan(c);
    if (failed > 0) break;  // what is below might hang
    check_for_each_part(c, in_one_call);
    check_for_each_part(c, on_threads<2>);
    check_for_each_part(c, on_threads<3>);
    by_units += c.by_units();
  }
  check_choices();
  const Case empty{{}, 3, 2, step_size(4, 4), 0};
  check_plan(empty);
  check_for_each_part(empty, in_one_call);
  require(empty.plan().parts == 0, "nothing to do is no part", empty);
  std::printf("%d of %d calls split by units; %d checks, %d failed\n", by_units, kNumCases, checked,
              failed);
  return failed > 0 || by_units < kNumCases / 10 || by_units > kNumCases * 9 / 10;
}

}  // namespace
}  // namespace varlen_rnn::VARLEN_RNN_ISA

int main() {
  alarm(120);  // a hang fails
  return varlen_rnn::VARLEN_RNN_ISA::run_all();
}
