// The CPU backend's thread pool: how a loop is shared among the cores of the process.
//
// Which thread runs which piece is left to chance, so a loop body must write only what belongs to its own
// indices; then a result never depends on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>

namespace ddpo3d_fast {

// Threads used by parallel_for, the caller included. By default the cores this process may run on.
int num_threads();
void set_num_threads(int count); // std::invalid_argument unless 1 <= count <= 1024

namespace detail {
// Runs task(context, i) once for every i in [0, count), on several threads; an exception of a task reaches
// the caller. Nested calls, and calls while another thread of the program uses the pool, run on the calling
// thread alone.
void run_tasks(int64_t count, void (*task)(void *context, int64_t index), void *context);
} // namespace detail

// body(begin, end) over [0, n) in pieces of at most `grain`, cut at multiples of `grain` whatever the number
// of threads.
template <class Body> void parallel_for(int64_t n, int64_t grain, Body &&body) {
  if (n <= 0)
    return;
  struct Context {
    Body &body;
    int64_t n, grain;
  } context{body, n, grain};
  detail::run_tasks((n + grain - 1) / grain,
                    [](void *pointer, int64_t piece) {
                      Context &c = *static_cast<Context *>(pointer);
                      c.body(piece * c.grain, std::min(c.n, (piece + 1) * c.grain));
                    },
                    &context);
}

// body(i) for every i in [0, n), one at a time: for few, heavy indices.
template <class Body> void parallel_for(int64_t n, Body &&body) {
  parallel_for(n, 1, [&](int64_t begin, int64_t) { body(begin); });
}

} // namespace ddpo3d_fast
