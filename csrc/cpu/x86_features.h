// What an x86 CPU and its operating system run, in the groups that instruction sets are made of.
#pragma once

#include <cpuid.h>

namespace varlen_rnn {

// The compiler's builtin also asks whether the operating system saves the wide registers. But not
// every compiler's knows F16C and AVX-VNNI (clang 14); these work in the registers of AVX2.

inline bool has_avx2() {
  unsigned a, b, c, d;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

inline bool has_avx2_vnni() {
  unsigned last, a, b, c, d;
  return has_avx2() && __get_cpuid_count(7, 0, &last, &b, &c, &d) && last >= 1 &&
         __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}

inline bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

inline bool has_avx512_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

}  // namespace varlen_rnn
