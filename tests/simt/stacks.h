// Stacks to run on, and the switch from one to another.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace simt {

struct Stack {
  char *bottom = nullptr;
  size_t bytes = 0;
  void *pointer = nullptr; // where it was left
  void *fake = nullptr;    // AddressSanitizer's
};

// Comes back when someone switches to `from`; never, when it is abandoned. A stack that was just taken starts
// in the function it was taken for, which must call enter_stack first and not return.
void switch_stack(Stack &from, Stack &to, bool abandoned);

// `host`: the stack that was switched from if that is not of a pool, to learn its bounds; else null.
void enter_stack(Stack *host);

// Stacks are used again, the last one given back first: it is still in the processor's cache.
class StackPool {
public:
  Stack *take(void (*function)()); // std::bad_alloc
  void give_back(Stack &stack) { idle.push_back(&stack); }
  void abandon_all();

private:
  std::vector<std::unique_ptr<Stack>> all;
  std::vector<Stack *> idle;
};

} // namespace simt
