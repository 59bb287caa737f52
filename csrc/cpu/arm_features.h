// What an Arm CPU and its operating system run beyond what every 64-bit one does.
#pragma once

#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace varlen_rnn {

#if defined(__linux__)

// Both are options of Armv8.2, and where the compiler may use one, it may use that version's atomics.
// The bits are HWCAP_ATOMICS, HWCAP_ASIMDDP and HWCAP2_I8MM; older headers lack the last.
inline bool has_neon_dotprod() {
  constexpr unsigned long kNeeded = 1UL << 8 | 1UL << 20;
  return (getauxval(AT_HWCAP) & kNeeded) == kNeeded;
}
inline bool has_neon_i8mm() {
  return (getauxval(AT_HWCAP) & 1UL << 8) && (getauxval(AT_HWCAP2) & 1UL << 13);
}

#elif defined(__APPLE__)

inline bool has_arm_feature(const char* name) {
  int value = 0;
  size_t size = sizeof(value);
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
inline bool has_neon_dotprod() { return has_arm_feature("hw.optional.arm.FEAT_DotProd"); }
inline bool has_neon_i8mm() { return has_arm_feature("hw.optional.arm.FEAT_I8MM"); }

#endif

}  // namespace varlen_rnn
