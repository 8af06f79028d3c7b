// The threads of the CPU operators. Every parallel region is opened here, at most one for an
// operator's work.
//
// The end of a region waits for all threads of PyTorch's pool, also for one that has not had a core
// yet, for milliseconds where other processes keep the cores busy. So steps that need all results
// of the one before share a region, as phases: between these a thread waits only for tasks that
// another one has begun, and does the rest itself.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <ctime>
#include <exception>
#include <limits>
#include <thread>

// at::parallel_for is inline, and serial unless the compiler's OpenMP is on. Clang's calls LLVM's
// runtime, which would be a second pool of threads beside PyTorch's. So without OpenMP a region is
// opened by the function that GCC calls for one. Weak: null where PyTorch's runtime has none.
#if !defined(INTRA_OP_PARALLEL) && defined(__GNUC__)
#define RRD_GOMP
extern "C" {
__attribute__((weak)) void GOMP_parallel(void (*body)(void*), void* data, unsigned, unsigned);
__attribute__((weak)) int omp_get_thread_num();
}
#endif

namespace rrd::cpu {

// Nanoseconds of one core's work, by rough estimates: what is less stays on the calling thread.
constexpr double kWorthThreads = 1e5;

// Estimates: a multiply-add of a product in cache, in float32 with AVX-512; a gathered element; an
// element that is normalised and written.
constexpr double kMultiplyAdd = 0.01, kGathered = 0.7, kWritten = 2;

constexpr int64_t kSamples = 16;  // in a task, where a sample is little work

// How many tasks of `each` items there are.
inline int64_t ranges(int64_t items, int64_t each) { return (items + each - 1) / each; }

// What the threads of one region share: how many tasks of all phases are taken, and done.
struct Progress {
  std::atomic<int64_t> taken{0}, done{0};
};

using Clock = std::chrono::steady_clock;

// For how long this thread has had a core.
inline Clock::duration time_on_core() {
#ifdef CLOCK_THREAD_CPUTIME_ID
  timespec time;
  if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) == 0) {
    return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
  }
#endif
  return Clock::now().time_since_epoch();
}

// One thread's way through the phases, which are the same on each.
class Worker {
 public:
  Worker(Progress& progress, bool timed) : progress_(progress), timed_(timed) {}

  // A phase: body(task) for those of `tasks` that no other thread has taken. Returns when all are
  // done. The phases before are done then, so a task's number tells its phase from theirs.
  template <typename Body>
  void run(int64_t tasks, const Body& body) {
    const auto start = timed_ ? Clock::now() : Clock::time_point();
    const auto core_start = timed_ ? time_on_core() : Clock::duration();
    const int64_t end = first_ + tasks;
    int64_t own = 0;
    for (int64_t task = progress_.taken; task < end;) {
      if (!progress_.taken.compare_exchange_weak(task, task + 1)) continue;
      body(task - first_);
      ++own;
      ++progress_.done;
      task = progress_.taken;
    }
    const auto worked = timed_ ? time_on_core() - core_start : Clock::duration();
    while (progress_.done < end) std::this_thread::yield();
    // Where it did all, what it lost was its own core.
    if (timed_ && own != 0 && own != tasks) lost += Clock::now() - start - worked * tasks / own;
    first_ = end;
  }

  // The same for ranges of up to `each` items: body(begin, end).
  template <typename Body>
  void run_ranges(int64_t items, int64_t each, const Body& body) {
    run(ranges(items, each),
        [&](int64_t range) { body(range * each, std::min(items, (range + 1) * each)); });
  }

  // After an error: no thread takes a task, or waits for one.
  void stop() { progress_.taken = progress_.done = std::numeric_limits<int64_t>::max() / 2; }

  // How much longer the phases took than this thread would have taken alone on a core, by the tasks
  // that it did.
  Clock::duration lost{};

 private:
  Progress& progress_;
  const bool timed_;
  int64_t first_ = 0;
};

// Calls body(thread) on up to `threads` threads of PyTorch's pool; thread 0 is the calling one.
template <typename Body>
void on_threads(int64_t threads, const Body& body) {
#ifdef RRD_GOMP
  struct Region {
    const int64_t threads;
    const Body& body;
    std::atomic_flag failed = ATOMIC_FLAG_INIT;
    std::exception_ptr error{};
  } region{threads, body};
  if (GOMP_parallel == nullptr || omp_get_thread_num == nullptr) return body(0);
  const auto run = [](void* data) {
    auto& region = *static_cast<Region*>(data);
    const int64_t thread = omp_get_thread_num();
    if (thread >= region.threads) return;
    try {
      region.body(thread);
    } catch (...) {
      if (!region.failed.test_and_set()) region.error = std::current_exception();
    }
  };
  // 0: the whole pool, as in PyTorch's own regions; for a smaller region libgomp ends threads.
  GOMP_parallel(run, &region, 0, 0);
  if (region.error) std::rethrow_exception(region.error);
#else
  at::parallel_for(0, threads, 1, [&](int64_t thread, int64_t) { body(thread); });
#endif
}

// Time for which the operators stay on their calling threads: kPayBack times what a region has lost
// to threads without a core, against the calling thread alone on one. So losses add at most
// 1 / kPayBack to what one thread takes. Results do not change: tasks are the same for any number
// of threads.
inline std::atomic<Clock::rep> owed{0};
constexpr int kPayBack = 4;
constexpr std::chrono::milliseconds kLoss{1};  // less is no sign of it

// Calls body(worker) on the calling thread, and on others where `work` is worth it, but on at most
// `tasks`, the number of tasks in the largest phase. Which thread does what must not matter.
template <typename Body>
void in_phases(double work, int64_t tasks, const Body& body) {
  Progress progress;
  const auto on_this_thread = [&](bool timed) {
    Worker worker(progress, timed);
    try {
      body(worker);
    } catch (...) {
      worker.stop();
      throw;
    }
    return worker.lost;
  };
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), tasks);
  if (work < kWorthThreads || threads <= 1 || at::in_parallel_region()) {
    on_this_thread(false);
    return;
  }
  const auto start = Clock::now();
  if (owed > 0) {
    on_this_thread(false);
    owed -= (Clock::now() - start).count();
    return;
  }
  Clock::duration lost{};
  on_threads(threads, [&](int64_t thread) {
    const auto entered = Clock::now();
    const auto in_phases = on_this_thread(thread == 0);
    // Of the calling thread: also what it waited to enter, as one that it woke took its core, and
    // what it is to wait from now on.
    if (thread == 0) lost = (entered - start) + in_phases - Clock::now().time_since_epoch();
  });
  lost += Clock::now().time_since_epoch();
  if (lost > kLoss) owed = kPayBack * lost.count();
}

}  // namespace rrd::cpu
