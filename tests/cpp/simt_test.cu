// Every wrapper of csrc/cuda/simt.cuh against plain loops on the host, wherever it runs:
//
//   nvcc -std=c++17 -arch=native -I csrc tests/cpp/simt_test.cu
//   g++ -std=c++17 -O1 -x c++ -DVARLEN_RNN_EMULATE -I csrc tests/cpp/simt_test.cu
//
// The second is the emulator, and tests its checks, too. Arguments choose what runs, so that a fault on
// a GPU, which loses the context, and a hang each lose a process and no more:
//
//   simt_test                 all of these but the last
//   simt_test basics          memory, numbers, warps
//   simt_test clusters SIZE   mbarriers and stores between the blocks of clusters of that size
//   simt_test trap
//   simt_test one-block       st.async in a cluster of one block, which PTX leaves undefined: a probe
#include <cstdlib>

#include "simt_memory.h"
#include "simt_numbers.h"
#include "simt_warps.h"

#ifdef VARLEN_RNN_EMULATE
#include "emulator_races.h"
#endif

namespace varlen_rnn {
namespace {

constexpr unsigned kClusterSizes[] = {2, 4, 8, 16};

void test_basics(Report& report) {
  test_memory(report);
  test_warps(report);
  test_numbers(report);
}

void run_all(Report& report) {
#ifdef VARLEN_RNN_EMULATE
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    emulator::settings().seed = seed;
    emulator::forget_memory();
    test_memory(report);
    test_warps(report);
    for (const unsigned size : kClusterSizes) test_clusters(report, size);
  }
  test_numbers(report);
  test_emulator(report);
#else
  test_basics(report);
  for (const unsigned size : kClusterSizes) test_clusters(report, size);
#endif
  report.run_case("trap", test_trap);
}

// Whether the arguments name something to run.
bool run_chosen(Report& report, const std::vector<std::string>& words) {
  const std::string what = words.empty() ? "" : words[0];
  if (words.empty()) {
    run_all(report);
  } else if (what == "basics") {
    test_basics(report);
  } else if (what == "clusters" && words.size() == 2 && std::atoi(words[1].c_str()) > 1) {
    test_clusters(report, static_cast<unsigned>(std::atoi(words[1].c_str())));
  } else if (what == "trap") {
    report.run_case("trap", test_trap);
  } else if (what == "one-block") {
    test_clusters(report, 1);
  } else {
    return false;
  }
  return true;
}

}  // namespace
}  // namespace varlen_rnn

int main(int count, char** words) {
  varlen_rnn::Report report;
  try {
    if (!varlen_rnn::run_chosen(report, {words + 1, words + count})) {
      std::printf("simt_test: [basics | clusters SIZE | trap | one-block], SIZE of 2 or more\n");
      return 2;
    }
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    report.finish();
    return 1;
  }
  return report.finish();
}
