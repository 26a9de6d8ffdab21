// Stacks to run on, and the switch from one to another, for x86-64 and aarch64.
#include "stacks.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <new>

#include "sanitizer.h"

// Saves the registers that a call preserves on this stack, its pointer in *from, and goes on where `to` was
// left.
extern "C" void simt_switch_stack(void **from, void *to);

#if defined(__x86_64__)
__asm__(".text\n"
        ".globl simt_switch_stack\n"
        ".hidden simt_switch_stack\n"
        ".type simt_switch_stack, @function\n"
        "simt_switch_stack:\n"
        "  pushq %rbp\n"
        "  pushq %rbx\n"
        "  pushq %r12\n"
        "  pushq %r13\n"
        "  pushq %r14\n"
        "  pushq %r15\n"
        "  movq %rsp, (%rdi)\n"
        "  movq %rsi, %rsp\n"
        "  popq %r15\n"
        "  popq %r14\n"
        "  popq %r13\n"
        "  popq %r12\n"
        "  popq %rbx\n"
        "  popq %rbp\n"
        "  ret\n"
        ".size simt_switch_stack, . - simt_switch_stack\n");
#elif defined(__aarch64__)
__asm__(".text\n"
        ".globl simt_switch_stack\n"
        ".hidden simt_switch_stack\n"
        ".type simt_switch_stack, %function\n"
        "simt_switch_stack:\n"
        "  sub sp, sp, #160\n"
        "  stp x19, x20, [sp]\n"
        "  stp x21, x22, [sp, #16]\n"
        "  stp x23, x24, [sp, #32]\n"
        "  stp x25, x26, [sp, #48]\n"
        "  stp x27, x28, [sp, #64]\n"
        "  stp x29, x30, [sp, #80]\n"
        "  stp d8, d9, [sp, #96]\n"
        "  stp d10, d11, [sp, #112]\n"
        "  stp d12, d13, [sp, #128]\n"
        "  stp d14, d15, [sp, #144]\n"
        "  mov x9, sp\n"
        "  str x9, [x0]\n"
        "  mov sp, x1\n"
        "  ldp x19, x20, [sp]\n"
        "  ldp x21, x22, [sp, #16]\n"
        "  ldp x23, x24, [sp, #32]\n"
        "  ldp x25, x26, [sp, #48]\n"
        "  ldp x27, x28, [sp, #64]\n"
        "  ldp x29, x30, [sp, #80]\n"
        "  ldp d8, d9, [sp, #96]\n"
        "  ldp d10, d11, [sp, #112]\n"
        "  ldp d12, d13, [sp, #128]\n"
        "  ldp d14, d15, [sp, #144]\n"
        "  add sp, sp, #160\n"
        "  ret\n"
        ".size simt_switch_stack, . - simt_switch_stack\n");
#else
#error "the SIMT host emulator switches stacks on x86-64 and aarch64"
#endif

namespace simt {
namespace {

#ifdef SIMT_ASAN
constexpr size_t stack_bytes = 256 << 10;
#else
constexpr size_t stack_bytes = 64 << 10;
#endif

// As if the stack had been left at the first instruction of the function.
void prepare(Stack &stack, void (*function)()) {
  char *top = stack.bottom + stack.bytes;
  // Frames of a stack that was abandoned: a few, those of whom the function called to switch.
  ASAN_UNPOISON_MEMORY_REGION(top - 4096, 4096);
#if defined(__x86_64__)
  constexpr int slots = 8, way_in = 6; // six registers, the way in, no way out
#else
  constexpr int slots = 20, way_in = 11; // x19 to x30, d8 to d15
#endif
  void **frame = reinterpret_cast<void **>(top) - slots;
  std::fill_n(frame, slots, nullptr);
  frame[way_in] = reinterpret_cast<void *>(function);
  stack.pointer = frame;
}

} // namespace

void switch_stack(Stack &from, Stack &to, bool abandoned) {
#ifdef SIMT_ASAN
  __sanitizer_start_switch_fiber(abandoned ? nullptr : &from.fake, to.bottom, to.bytes);
#endif
  static_cast<void>(abandoned);
  simt_switch_stack(&from.pointer, to.pointer);
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(from.fake, nullptr, nullptr);
#endif
}

void enter_stack(Stack *host) {
  static_cast<void>(host);
#ifdef SIMT_ASAN
  const void *bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &bytes);
  if (host) {
    host->bottom = static_cast<char *>(const_cast<void *>(bottom));
    host->bytes = bytes;
  }
#endif
}

Stack *StackPool::take(void (*function)()) {
  if (idle.empty()) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    void *memory =
        mmap(nullptr, page + stack_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
      throw std::bad_alloc();
    char *bottom = static_cast<char *>(memory) + page; // the page below stops who goes too deep
    if (mprotect(bottom, stack_bytes, PROT_READ | PROT_WRITE) != 0)
      throw std::bad_alloc();
    // Tops at different offsets, so that the stacks of a block do not compete for the same lines of the
    // cache.
    const size_t offset = all.size() % 32 * 128;
    all.push_back(std::make_unique<Stack>());
    all.back()->bottom = bottom;
    all.back()->bytes = stack_bytes - offset;
    idle.push_back(all.back().get());
  }
  Stack *stack = idle.back();
  idle.pop_back();
  prepare(*stack, function);
  return stack;
}

void StackPool::abandon_all() {
  idle.clear();
  for (const auto &stack : all) {
    ASAN_UNPOISON_MEMORY_REGION(stack->bottom, stack->bytes);
    idle.push_back(stack.get());
  }
}

} // namespace simt
