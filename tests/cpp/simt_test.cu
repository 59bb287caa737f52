// Every wrapper of csrc/cuda/simt.cuh against plain loops on the host, wherever it runs:
//
//   nvcc -std=c++17 -arch=native -I csrc tests/cpp/simt_test.cu
//   g++ -std=c++17 -O1 -x c++ -DVARLEN_RNN_EMULATE -I csrc tests/cpp/simt_test.cu
//
// The second is the emulator, and tests its checks, too.
#include "simt_memory.h"
#include "simt_numbers.h"
#include "simt_warps.h"

#ifdef VARLEN_RNN_EMULATE
#include "emulator_races.h"
#endif

namespace varlen_rnn {
namespace {

void run_cases(Report& report) {
#ifdef VARLEN_RNN_EMULATE
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    emulator::settings().seed = seed;
    emulator::forget_memory();
    test_memory(report);
    test_warps(report);
  }
  test_numbers(report);
  test_emulator(report);
#else
  test_numbers(report);
  test_memory(report);
  test_warps(report);
#endif
  report.run_case("trap", test_trap);
}

}  // namespace
}  // namespace varlen_rnn

int main() {
  varlen_rnn::Report report;
  try {
    varlen_rnn::run_cases(report);
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    report.finish();
    return 1;
  }
  return report.finish();
}
