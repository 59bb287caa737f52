// Stacks and context switches: what a fiber needs of the machine. glibc's swapcontext makes a
// system call at every switch, for the signal mask, hence our own few instructions for x86-64.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__)
#define VARLEN_RNN_SWITCH_X86_64
#else
#include <ucontext.h>
#endif

namespace varlen_rnn::emulator {

// Stacks with a guard page below, kept for the next launch: pages touched once stay mapped.
class StackPool {
 public:
  static constexpr size_t kBytes = size_t{256} << 10;

  char* take() {
    if (free_.empty()) return map();
    char* stack = free_.back();
    free_.pop_back();
    return stack;
  }
  void give(char* stack) { free_.push_back(stack); }

 private:
  static char* map() {
    const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* p = mmap(nullptr, guard + kBytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || mprotect(p, guard, PROT_NONE) != 0) throw std::bad_alloc();
    return static_cast<char*>(p) + guard;
  }

  std::vector<char*> free_;
};

inline StackPool& stack_pool() {
  static StackPool pool;
  return pool;
}

#ifdef VARLEN_RNN_SWITCH_X86_64

struct Registers {
  void* stack_pointer = nullptr;
};

// Pushes what a called function must preserve (System V ABI), leaves the stack at *from, and takes
// up the one at to.
__attribute__((naked, noinline)) inline void switch_stacks(void** /*from*/, void* /*to*/) {
  asm volatile(
      "pushq %rbp\n\t"
      "pushq %rbx\n\t"
      "pushq %r12\n\t"
      "pushq %r13\n\t"
      "pushq %r14\n\t"
      "pushq %r15\n\t"
      "subq $8, %rsp\n\t"
      "stmxcsr (%rsp)\n\t"
      "fnstcw 4(%rsp)\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq %rsi, %rsp\n\t"
      "ldmxcsr (%rsp)\n\t"
      "fldcw 4(%rsp)\n\t"
      "addq $8, %rsp\n\t"
      "popq %r15\n\t"
      "popq %r14\n\t"
      "popq %r13\n\t"
      "popq %r12\n\t"
      "popq %rbx\n\t"
      "popq %rbp\n\t"
      "ret");
}

inline void switch_registers(Registers& from, Registers& to) {
  switch_stacks(&from.stack_pointer, to.stack_pointer);
}

inline void prepare_registers(Registers& registers, char* stack, void (*entry)()) {
  constexpr size_t kSaved = 7;  // one word for both control words, six registers
  // Stacks lie whole pages apart: different starts keep their tops out of each other's cache lines.
  const size_t shift = reinterpret_cast<uintptr_t>(stack) / 4096 % 32 * 128;
  uint64_t* top = reinterpret_cast<uint64_t*>(stack + StackPool::kBytes - shift);
  top[-1] = 0;  // entry's return address: where unwinding and backtraces end
  top[-2] = reinterpret_cast<uint64_t>(entry);
  uint64_t* bottom = top - 2 - kSaved;
  for (size_t i = 0; i < kSaved; ++i) bottom[i] = 0;
  uint32_t mxcsr = 0;
  uint16_t x87 = 0;
  asm volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(mxcsr), "=m"(x87));
  bottom[0] = uint64_t{mxcsr} | uint64_t{x87} << 32;
  registers.stack_pointer = bottom;
}

#else

struct Registers {
  ucontext_t context;
};

inline void switch_registers(Registers& from, Registers& to) {
  swapcontext(&from.context, &to.context);
}

inline void prepare_registers(Registers& registers, char* stack, void (*entry)()) {
  getcontext(&registers.context);
  registers.context.uc_stack.ss_sp = stack;
  registers.context.uc_stack.ss_size = StackPool::kBytes;
  registers.context.uc_link = nullptr;
  makecontext(&registers.context, entry, 0);
}

#endif

// A point of execution: registers, and the bounds of the stack, which the address sanitizer wants.
struct Context {
  Registers registers;
  const void* stack = nullptr;
  size_t stack_bytes = 0;
};

// Lets the next switch to this context call entry, which never returns, on an empty stack.
inline void prepare_context(Context& context, char* stack, void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(stack, StackPool::kBytes);
#endif
  prepare_registers(context.registers, stack, entry);
  context.stack = stack;
  context.stack_bytes = StackPool::kBytes;
}

// The first thing that an entry does; from is the context that switched to it.
inline void enter_context([[maybe_unused]] Context& from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &from.stack, &from.stack_bytes);
#endif
}

inline void switch_context(Context& from, Context& to) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, to.stack, to.stack_bytes);
  switch_registers(from.registers, to.registers);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
  switch_registers(from.registers, to.registers);
#endif
}

}  // namespace varlen_rnn::emulator
