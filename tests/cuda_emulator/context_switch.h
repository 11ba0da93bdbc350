// One stack to another within an operating-system thread, without a system call: swapcontext saves the signal mask with
// two of them at every switch, and a kernel switches at every barrier of every thread.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)
#define EMULATOR_UCONTEXT 1
#endif
#if defined(EMULATOR_UCONTEXT)
#include <ucontext.h>
#endif

namespace emulator {

#if defined(EMULATOR_UCONTEXT)

struct Context {
  ucontext_t registers;
};
// The context will run entry(), which must not return, when it is switched to for the first time.
inline void prepare(Context& context, void* stack, size_t bytes, void (*entry)()) {
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = stack;
  context.registers.uc_stack.ss_size = bytes;
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, entry, 0);
}
inline void switch_context(Context& from, Context& to) { swapcontext(&from.registers, &to.registers); }

#else

struct Context {
  void* stack_pointer = nullptr;
};
extern "C" void emulator_switch_stack(void** save, void* load);
// What a called function must preserve (System V ABI) goes onto the old stack and comes from the new one.
asm(R"(
.pushsection .text
.hidden emulator_switch_stack
.globl emulator_switch_stack
.type emulator_switch_stack, @function
emulator_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulator_switch_stack, .-emulator_switch_stack
.popsection
)");
inline void prepare(Context& context, void* stack, size_t bytes, void (*entry)()) {
  const uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t{15};
  void** p = reinterpret_cast<void**>(top);
  *--p = nullptr;                         // where a return address would be, so that entry finds its stack aligned
  *--p = reinterpret_cast<void*>(entry);  // popped by ret
  for (int i = 0; i < 6; ++i) *--p = nullptr;
  context.stack_pointer = p;
}
inline void switch_context(Context& from, Context& to) { emulator_switch_stack(&from.stack_pointer, to.stack_pointer); }

#endif

}  // namespace emulator
