// The thread pool behind parallel.h: workers that sleep between loops and take pieces from a shared counter.
#include "parallel.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include <unistd.h>
#ifdef __linux__
#include <sched.h>
#endif

namespace ddpo3d_fast {
namespace {

int available_cores() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0)
    return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

thread_local bool inside_task = false;

class Pool {
public:
  explicit Pool(int threads) : process(getpid()), wanted(threads) {
    try {
      for (int i = 1; i < threads; ++i)
        workers.emplace_back([this] { work(); });
    } catch (const std::system_error &) {
      // The system grants no more threads: those there are do the work.
    }
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      closing = true;
      ++generation;
    }
    wake.notify_all();
    for (std::thread &worker : workers)
      worker.join();
  }

  void run(int64_t tasks, void (*function)(void *, int64_t), void *data) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      task = function;
      context = data;
      count = tasks;
      next.store(0, std::memory_order_relaxed);
      failure = nullptr;
      open = true;
      generation.fetch_add(1, std::memory_order_release);
    }
    wake.notify_all();
    take_tasks();
    // Only workers that took part are waited for: on a busy machine the others may not have woken yet.
    std::unique_lock<std::mutex> lock(mutex);
    open = false;
    done.wait(lock, [this] { return active == 0; });
    if (failure)
      std::rethrow_exception(failure);
  }

  const pid_t process; // a fork has no workers: the child makes a pool of its own
  const int wanted;    // threads asked for, the caller included

private:
  static constexpr int kSpins = 200; // some 10 us: about what a sleep and a wake cost

  void take_tasks() {
    inside_task = true;
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
      try {
        task(context, i);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex);
        if (!failure)
          failure = std::current_exception();
        next.store(count, std::memory_order_relaxed);
      }
    }
    inside_task = false;
  }

  void work() {
    uint64_t seen = 0;
    for (;;) {
      for (int spins = 0; generation.load(std::memory_order_acquire) == seen && spins < kSpins; ++spins)
        pause_briefly();
      std::unique_lock<std::mutex> lock(mutex);
      wake.wait(lock, [&] { return generation.load(std::memory_order_acquire) != seen; });
      seen = generation.load(std::memory_order_acquire);
      if (closing)
        return;
      if (!open)
        continue; // too late: the loop has ended
      ++active;
      lock.unlock();
      take_tasks();
      lock.lock();
      if (--active == 0)
        done.notify_one();
    }
  }

  std::vector<std::thread> workers;
  std::mutex mutex;
  std::condition_variable wake, done;
  std::atomic<uint64_t> generation{0};
  std::atomic<int64_t> next{0};
  int active = 0;    // workers inside the current loop
  bool open = false; // the current loop may still be joined
  bool closing = false;
  int64_t count = 0;
  void (*task)(void *, int64_t) = nullptr;
  void *context = nullptr;
  std::exception_ptr failure;
};

std::mutex pool_mutex; // held by whoever uses the pool
Pool *pool = nullptr;  // never destroyed at exit: its threads may outlive static destructors
std::atomic<int> threads{0};

} // namespace

int num_threads() {
  int count = threads.load();
  if (count == 0)
    threads.store(count = available_cores());
  return count;
}

void set_num_threads(int count) {
  if (count < 1 || count > 1024)
    throw std::invalid_argument("num_threads: expected 1 to 1024, got " + std::to_string(count));
  threads.store(count);
}

namespace detail {

void run_tasks(int64_t count, void (*task)(void *, int64_t), void *context) {
  std::unique_lock<std::mutex> lock(pool_mutex, std::defer_lock);
  const int wanted = num_threads();
  if (wanted == 1 || count == 1 || inside_task || !lock.try_lock()) {
    for (int64_t i = 0; i < count; ++i)
      task(context, i);
    return;
  }
  if (pool && pool->process != getpid())
    pool = nullptr; // forked: the old pool's threads are the parent's
  if (pool && pool->wanted != wanted) {
    delete pool;
    pool = nullptr;
  }
  if (!pool)
    pool = new Pool(wanted);
  pool->run(count, task, context);
}

} // namespace detail
} // namespace ddpo3d_fast
