// Runs the threads of a launch as fibres: each has a stack of its own and is left where it waits for others.
// Nothing here is preemptive, so a launch is repeatable: the seed decides who runs next.
#include <algorithm>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include <cuda_runtime.h>

#include "reports.h"
#include "shared_memory.h"
#include "simt/control.h"
#include "stacks.h"

dim3 blockDim, gridDim;

namespace simt {

Thread *current = nullptr;
int steps_until_switch = 0;

namespace {

constexpr size_t max_interleaved_blocks = 8;
constexpr size_t max_interleaved_threads = 1024;
constexpr int steps_in_order = 1024;              // atomics until a thread that runs in order lets others run
constexpr uint64_t max_idle_switches = 16u << 20; // without a thread that ends or passes a barrier

} // namespace

// 32 lanes, one bit each.
struct Warp {
  Thread *threads;
  unsigned live;    // have not ended
  unsigned ready;   // can run; the running thread is not among them
  unsigned waiting; // in a warp operation
};

struct Block {
  uint3 index;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  unsigned alive = 0;                    // threads that have not ended
  unsigned waiting = 0;                  // threads at the barrier
  const Thread *first_waiting = nullptr; // the one that came first
  unsigned predicates = 0;               // of those waiting, how many are true
  int result = 0;                        // of the last barrier
  SharedMemory shared;
};

namespace {

struct Scheduler {
  std::mutex one_launch_at_a_time;

  // Who runs next.
  bool random = false;
  BlockOrder block_order = BlockOrder::in_order;
  uint64_t random_state = 0;
  unsigned stay = 0; // of 256: the chance of going on with the same warp

  Launch launch = {};
  std::vector<std::unique_ptr<Block>> blocks; // those that may be alive at a time
  size_t num_resident = 0;                    // of them in this launch
  size_t num_unfinished = 0;                  // of them
  std::vector<uint32_t> order;                // of the grid's blocks, empty: as they are counted
  uint64_t next_block = 0, num_blocks = 0;    // in that order
  std::vector<Warp *> ready;                  // those with a lane that can run
  size_t position = 0;                        // in it, of the warp that was picked last
  unsigned lane = 0;                          // that follows the one picked last
  const Warp *last_warp = nullptr;
  uint64_t idle_switches = 0;
  std::string failure;

  Stack host;
  bool host_is_leaving = false;
  Stack *running = nullptr;
  StackPool stacks;

  uint64_t draw() { // splitmix64
    uint64_t z = random_state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  uint64_t draw_below(uint64_t bound) { return (draw() >> 32) * bound >> 32; }
};

Scheduler s;

const char dynamic_key = 0; // of the dynamic shared memory

// ---- Failures

[[noreturn]] void leave_for_host() {
  s.stacks.give_back(*s.running);
  switch_stack(*s.running, s.host, true);
  std::terminate();
}

// Ends the launch: the other fibres are abandoned where they are.
[[noreturn]] void fail_launch(const std::string &what) {
  s.failure = "kernel '" + std::string(s.launch.name) + "': " + what;
  leave_for_host();
}

[[noreturn]] void fail_thread(const std::string &what, Place place) {
  fail_launch(what + ", block " + text(current->block_index) + ", thread " + text(current->index) + ", at " +
              text(place));
}

[[noreturn]] void report_deadlock() {
  for (size_t b = 0; b < s.num_resident; b++) {
    const Block &block = *s.blocks[b];
    if (block.alive == 0)
      continue;
    std::vector<std::pair<const Thread *, int>> groups; // first thread of a kind, their number
    for (const Warp &warp : block.warps)
      for (unsigned lane = 0; lane < 32; lane++) {
        if (!(warp.live >> lane & 1))
          continue;
        const Thread &thread = warp.threads[lane];
        const auto same = [&](const auto &group) {
          const Thread &other = *group.first;
          return other.operation == thread.operation && other.mask == thread.mask &&
                 other.place.line == thread.place.line && other.place.file == thread.place.file;
        };
        const auto found = std::find_if(groups.begin(), groups.end(), same);
        if (found == groups.end())
          groups.push_back({&thread, 1});
        else
          found->second++;
      }
    std::string what = "deadlock in block " + text(block.index) + ":";
    for (size_t i = 0; i < groups.size(); i++) {
      if (i == 4) {
        what += " and others";
        break;
      }
      what += (i ? ", " : " ") + std::to_string(groups[i].second) + " threads from " +
              text(groups[i].first->index) + " on wait in " + waiting_at(*groups[i].first);
    }
    fail_launch(what);
  }
  std::terminate();
}

// ---- Who runs next

void make_ready(Thread &thread) {
  Warp &warp = *thread.warp;
  if (!warp.ready)
    s.ready.push_back(&warp);
  warp.ready |= 1u << thread.lane;
}

// Takes the next thread out of those that can run; null if there is none.
Thread *pick() {
  if (s.ready.empty())
    return nullptr;
  if (s.random) {
    const uint64_t bits = s.draw();
    const bool can_stay = s.position < s.ready.size() && s.ready[s.position] == s.last_warp;
    if (!can_stay || (bits & 255) >= s.stay)
      s.position = size_t((bits >> 32) * s.ready.size() >> 32);
    s.lane = unsigned(bits >> 8 & 31);
  } else {
    if (s.position < s.ready.size() && (s.lane == 32 || !(s.ready[s.position]->ready >> s.lane)))
      s.position++, s.lane = 0;
    if (s.position >= s.ready.size())
      s.position = 0, s.lane = 0;
  }
  Warp &warp = *s.ready[s.position];
  const unsigned later = warp.ready >> s.lane << s.lane;
  const unsigned lane = unsigned(__builtin_ctz(later ? later : warp.ready));
  warp.ready &= ~(1u << lane);
  s.last_warp = &warp;
  s.lane = lane + 1;
  if (!warp.ready) {
    s.ready.erase(s.ready.begin() + ptrdiff_t(s.position));
    s.lane = 0; // of the warp that is in this position now
  }
  return &warp.threads[lane];
}

void run_threads();

// Lets another thread run; comes back when this one is picked.
void suspend() {
  Thread *next = pick();
  if (!next)
    report_deadlock();
  if (next == current)
    return;
  if (!next->stack)
    next->stack = s.stacks.take(run_threads);
  Stack &mine = *s.running;
  current = next;
  s.running = next->stack;
  switch_stack(mine, *next->stack, false);
}

// Gives the block the next index of the grid; false if there is none left.
bool admit(Block &block) {
  if (s.next_block == s.num_blocks)
    return false;
  const dim3 grid = s.launch.grid, shape = s.launch.block;
  const uint64_t i = s.order.empty() ? s.next_block : s.order[s.next_block];
  s.next_block++;
  block.index = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
  const unsigned num_threads = shape.x * shape.y * shape.z;
  block.threads.resize(num_threads);
  block.warps.resize((num_threads + 31) / 32);
  block.alive = num_threads;
  block.waiting = block.predicates = 0;
  uint3 index = {0, 0, 0};
  for (unsigned t = 0; t < num_threads; t++) {
    Thread &thread = block.threads[t];
    thread = {};
    thread.index = index;
    thread.block_index = block.index;
    thread.lane = t % 32;
    thread.block = &block;
    thread.warp = &block.warps[t / 32];
    if (++index.x == shape.x) {
      index.x = 0;
      if (++index.y == shape.y)
        index.y = 0, index.z++;
    }
  }
  for (unsigned w = 0; w < block.warps.size(); w++) {
    const unsigned lanes = std::min(num_threads - w * 32, 32u);
    const unsigned live = lanes == 32 ? ~0u : (1u << lanes) - 1;
    block.warps[w] = {&block.threads[w * 32], live, live, 0};
    s.ready.push_back(&block.warps[w]);
  }
  block.shared.clear();
  block.shared.allocate(&dynamic_key, s.launch.dynamic_shared_bytes, 16);
  return true;
}

void open_barrier(Block &block) {
  switch (block.first_waiting->operation) {
  case Operation::syncthreads_count:
    block.result = int(block.predicates);
    break;
  case Operation::syncthreads_and:
    block.result = block.predicates == block.waiting;
    break;
  default:
    block.result = block.predicates != 0;
  }
  block.waiting = block.predicates = 0;
  s.idle_switches = 0;
  for (Warp &warp : block.warps) {
    warp.ready = warp.live;
    if (warp.ready)
      s.ready.push_back(&warp);
  }
}

[[noreturn]] void fail_meeting(const Thread &a, const Thread &b) {
  fail_launch("lanes " + std::to_string(a.lane) + " and " + std::to_string(b.lane) +
              " of a warp meet in different operations, block " + text(a.block_index) + ": thread " +
              text(a.index) + " in " + waiting_at(a) + ", thread " + text(b.index) + " in " + waiting_at(b));
}

// Lets the lanes of the mask go on if all of them that live wait with this mask.
void release_lanes(Warp &warp, unsigned mask) {
  const unsigned lanes = mask & warp.live;
  if ((warp.waiting & lanes) != lanes)
    return;
  const Thread &first = warp.threads[__builtin_ctz(lanes)];
  unsigned votes = 0;
  for (unsigned rest = lanes; rest; rest &= rest - 1) {
    const Thread &thread = warp.threads[__builtin_ctz(rest)];
    if (thread.mask != mask)
      return;
    if (thread.operation != first.operation || thread.size != first.size)
      fail_meeting(first, thread);
    votes |= unsigned(thread.value & 1) << thread.lane;
  }
  for (unsigned rest = lanes; rest; rest &= rest - 1) {
    Thread &thread = warp.threads[__builtin_ctz(rest)];
    switch (first.operation) {
    case Operation::ballot:
      thread.result = votes;
      break;
    case Operation::any:
      thread.result = votes != 0;
      break;
    case Operation::all:
      thread.result = votes == lanes;
      break;
    default:
      thread.result = lanes >> thread.source_lane & 1 ? warp.threads[thread.source_lane].value : ~uint64_t(0);
    }
    make_ready(thread);
  }
  warp.waiting &= ~lanes;
  s.idle_switches = 0;
}

// The thread that runs has ended: others may have waited for it alone.
void end_thread() {
  Block &block = *current->block;
  Warp &warp = *current->warp;
  warp.live &= ~(1u << current->lane);
  block.alive--;
  s.idle_switches = 0;
  for (unsigned rest = warp.waiting; rest; rest &= rest - 1)
    if (const unsigned lane = unsigned(__builtin_ctz(rest)); warp.waiting >> lane & 1)
      release_lanes(warp, warp.threads[lane].mask);
  if (block.alive == 0)
    s.num_unfinished -= !admit(block);
  else if (block.waiting == block.alive)
    open_barrier(block);
}

// What a stack runs: threads, one after another, as long as none is left waiting.
void run_threads() {
  enter_stack(s.host_is_leaving ? &s.host : nullptr);
  s.host_is_leaving = false;
  for (;;) {
    std::string thrown;
    try {
      s.launch.body(s.launch.call);
    } catch (const std::exception &error) {
      thrown = std::string("exception: ") + error.what();
    } catch (...) {
      thrown = "exception";
    }
    if (!thrown.empty())
      fail_launch(thrown + ", block " + text(current->block_index) + ", thread " + text(current->index));
    end_thread();
    Thread *next = pick();
    if (!next && s.num_unfinished)
      report_deadlock();
    if (!next)
      leave_for_host();
    current = next;
    if (!next->stack) {
      next->stack = s.running;
      continue;
    }
    Stack &mine = *s.running;
    s.stacks.give_back(mine);
    s.running = next->stack;
    switch_stack(mine, *next->stack, true);
  }
}

int draw_steps() { return s.random ? 1 + int(s.draw() & 3) : steps_in_order; }

} // namespace

// ---- What threads call

void switch_threads(Place place) {
  steps_until_switch = draw_steps();
  if (++s.idle_switches > max_idle_switches / (s.random ? 1 : 256))
    fail_thread("no thread gets on: endless wait", place);
  current->place = place;
  make_ready(*current);
  suspend();
}

int wait_for_block(Operation operation, bool predicate, Place place) {
  Thread &thread = *current;
  Block &block = *thread.block;
  thread.operation = operation;
  thread.place = place;
  thread.size = 0;
  thread.mask = 0;
  if (block.waiting == 0)
    block.first_waiting = &thread;
  const Thread &first = *block.first_waiting;
  if (first.operation != operation || first.place.line != place.line || first.place.file != place.file)
    fail_launch("divergent barriers in block " + text(block.index) + ": thread " + text(first.index) +
                " waits in " + waiting_at(first) + ", thread " + text(thread.index) + " in " +
                waiting_at(thread));
  block.waiting++;
  block.predicates += predicate;
  if (block.waiting == block.alive)
    open_barrier(block);
  suspend();
  return block.result;
}

uint64_t wait_for_warp(Operation operation, unsigned mask, uint64_t value, unsigned size,
                       unsigned source_lane, Place place) {
  Thread &thread = *current;
  Warp &warp = *thread.warp;
  const unsigned bit = 1u << thread.lane;
  thread.operation = operation;
  thread.place = place;
  thread.size = uint8_t(size);
  thread.source_lane = uint8_t(source_lane & 31);
  thread.mask = mask;
  thread.value = value;
  if (!(mask & bit))
    fail_thread("lane " + std::to_string(thread.lane) + " is not in the mask " + hexadecimal(mask) +
                    " of its " + name_of(operation),
                place);
  if (const unsigned others = mask & warp.waiting) { // one will do: it was compared with one before it
    const Thread &other = warp.threads[__builtin_ctz(others)];
    if (other.mask & bit && (other.mask != mask || other.operation != operation || other.size != size))
      fail_meeting(other, thread);
  }
  warp.waiting |= bit;
  release_lanes(warp, mask);
  suspend();
  return thread.result;
}

void fail(const char *what, Place place) { fail_thread(what, place); }

void *shared_allocation(const void *key, size_t bytes, size_t alignment) {
  SharedMemory &memory = current->block->shared;
  if (void *address = memory.find(key))
    return address;
  const size_t all = memory.used() + bytes;
  if (all - s.launch.dynamic_shared_bytes > max_static_shared_bytes)
    fail_launch("more than " + std::to_string(max_static_shared_bytes) + " bytes of static shared memory");
  if (all > max_shared_bytes)
    fail_launch("more than " + std::to_string(max_shared_bytes) + " bytes of shared memory");
  if (memory.count() == SharedMemory::max_allocations)
    fail_launch("more than " + std::to_string(SharedMemory::max_allocations) + " shared variables");
  return memory.allocate(key, bytes, alignment);
}

void *dynamic_shared() { return current->block->shared.find(&dynamic_key); }

// ---- What the host calls

void set_order(uint64_t seed, BlockOrder blocks) {
  std::lock_guard<std::mutex> lock(s.one_launch_at_a_time);
  // Some seeds let the warps run closely side by side, some let one run far ahead of the others.
  const unsigned chances[] = {0, 128, 224, 250};
  s.stay = chances[seed % 4];
  s.random = seed != 0 || blocks == BlockOrder::interleaved;
  s.block_order = blocks;
  s.random_state = seed;
}

void run(const Launch &launch) {
  std::lock_guard<std::mutex> lock(s.one_launch_at_a_time);
  s.launch = launch;
  blockDim = launch.block;
  gridDim = launch.grid;
  const size_t num_threads = size_t(launch.block.x) * launch.block.y * launch.block.z;
  s.num_blocks = uint64_t(launch.grid.x) * launch.grid.y;
  if (s.num_blocks * launch.grid.z > UINT32_MAX) // no overflow: x < 2³¹, y and z < 2¹⁶
    throw std::runtime_error("kernel '" + std::string(launch.name) + "': too many blocks to emulate");
  s.num_blocks *= launch.grid.z;
  s.next_block = 0;
  s.order.clear();
  if (s.block_order != BlockOrder::in_order) {
    s.order.resize(s.num_blocks);
    std::iota(s.order.begin(), s.order.end(), 0u);
    for (size_t i = s.order.size(); i > 1; i--)
      std::swap(s.order[i - 1], s.order[s.draw_below(i)]);
  }
  size_t resident = 1;
  if (s.block_order == BlockOrder::interleaved)
    resident = std::clamp(max_interleaved_threads / num_threads, size_t(2), max_interleaved_blocks);
  s.num_resident = s.num_unfinished = size_t(std::min<uint64_t>(resident, s.num_blocks));
  s.ready.clear();
  s.position = s.lane = 0;
  s.last_warp = nullptr;
  s.idle_switches = 0;
  s.failure.clear();
  steps_until_switch = draw_steps();
  while (s.blocks.size() < s.num_resident)
    s.blocks.push_back(std::make_unique<Block>());
  for (size_t b = 0; b < s.num_resident; b++)
    admit(*s.blocks[b]);

  Thread *first = pick();
  first->stack = s.running = s.stacks.take(run_threads);
  current = first;
  s.host_is_leaving = true;
  switch_stack(s.host, *s.running, false);
  current = nullptr;
  if (s.failure.empty())
    return;
  s.stacks.abandon_all();
  throw std::runtime_error(s.failure);
}

} // namespace simt
