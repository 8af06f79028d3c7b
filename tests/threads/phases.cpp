// What tests/test_threads.py asks of csrc/cpu/parallel.h.
#include "cpu/parallel.h"

#include <mutex>
#include <set>
#include <stdexcept>
#include <vector>

using namespace rrd::cpu;

namespace {

constexpr double kMuch = 1e9;

void sleep_for(int milliseconds) {
  std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
}

// The threads that enter a region; those that the caller has woken come `late` milliseconds later.
int threads_of_a_region(int late) {
  const auto caller = std::this_thread::get_id();
  std::set<std::thread::id> threads;
  std::mutex mutex;
  in_phases(kMuch, 2, [&](Worker& worker) {
    if (std::this_thread::get_id() != caller) sleep_for(late);
    {
      const std::lock_guard lock(mutex);
      threads.insert(std::this_thread::get_id());
    }
    worker.run(4, [](int64_t) { sleep_for(1); });
  });
  return int(threads.size());
}

}  // namespace

extern "C" {

// How many of `phases` phases found less than all that the one before had to write.
int unfinished_phases(int threads, int phases, int tasks) {
  at::set_num_threads(threads);
  std::vector<int64_t> values(tasks, 0);
  std::atomic<int> unfinished{0};
  in_phases(kMuch, tasks, [&](Worker& worker) {
    for (int phase = 0; phase < phases; ++phase) {
      worker.run(tasks, [&](int64_t task) { ++values[task]; });
      worker.run(1, [&](int64_t) {
        for (const int64_t value : values) unfinished += value != phase + 1;
      });
    }
  });
  return unfinished;
}

// Whether a task's error comes out, and the tasks after it are left.
int raises(int threads) {
  at::set_num_threads(threads);
  std::atomic<bool> later{false};
  try {
    in_phases(kMuch, 8, [&](Worker& worker) {
      worker.run(8, [&](int64_t task) {
        if (task == 3) throw std::runtime_error("task 3");
        sleep_for(1);
      });
      worker.run(8, [&](int64_t) { later = true; });
    });
  } catch (const std::runtime_error&) {
    return !later;
  }
  return 0;
}

// The threads that enter a region of two tasks, where there are `threads`.
int threads_for_two_tasks(int threads) {
  at::set_num_threads(threads);
  owed = 0;
  return threads_of_a_region(0);
}

// Of a region whose second thread comes 100 ms late and loses them; of the next; and of the first
// after these losses are paid back.
void after_a_loss(int* lost, int* next, int* at_last) {
  at::set_num_threads(2);
  owed = 0;
  *lost = threads_of_a_region(100);
  *next = threads_of_a_region(0);
  while (owed > 0) threads_of_a_region(0);
  *at_last = threads_of_a_region(0);
}
}
