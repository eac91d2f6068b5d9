// The threads behind `parallel_for`: those of the OpenMP runtime that torch computes in, or a pool of our own.
#include "parallel.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(_WIN32)
#define BIGLTL_EXPORT extern "C" __declspec(dllexport)
#else
#include <unistd.h>
#define BIGLTL_EXPORT extern "C" __attribute__((visibility("default")))
#endif

#if defined(__GLIBCXX__) && defined(__ELF__)
// GCC 12 gave this function a new version, for one that older systems have as well.
#define BIGLTL_WAIT "_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE"
__asm__(".symver " BIGLTL_WAIT ", " BIGLTL_WAIT "@GLIBCXX_3.4.11");
#endif

namespace {

using Work = void (*)(void*);

int process() {
#if defined(_WIN32)
  return 0;  // has no fork()
#else
  return static_cast<int>(getpid());
#endif
}

// Threads that sleep until there is work. The pool grows to the most threads that a call asked for; calls at the same
// time share them. It is never destroyed: threads may be asleep in it when the process ends.
class Pool {
 public:
  const int owner = process();

  void run(Work fn, void* data, unsigned threads) {
    Job job{fn, data, threads - 1, 0};
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      jobs_.push_back(&job);
      while (threads_ < job.open && start()) ++threads_;
    }
    work_.notify_all();
    fn(data);
    std::unique_lock<std::mutex> lock(mutex_);
    job.open = 0;  // all is done or being done: who has not begun need not
    drop(&job);
    ended_.wait(lock, [&] { return job.running == 0; });
  }

 private:
  struct Job {
    Work fn;
    void* data;
    unsigned open;     // places that no thread has taken yet
    unsigned running;  // threads of the pool that are in it
  };

  bool start() {
    try {
      std::thread([this] { serve(); }).detach();
      return true;
    } catch (const std::system_error&) {  // the system gives no more: those that run do the work
      return false;
    }
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      work_.wait(lock, [&] { return !jobs_.empty(); });
      Job* job = jobs_.front();
      ++job->running;
      if (--job->open == 0) drop(job);
      lock.unlock();
      job->fn(job->data);
      lock.lock();
      if (--job->running == 0) ended_.notify_all();
    }
  }

  void drop(Job* job) {
    const auto place = std::find(jobs_.begin(), jobs_.end(), job);
    if (place != jobs_.end()) jobs_.erase(place);
  }

  std::mutex mutex_;
  std::condition_variable work_, ended_;
  std::vector<Job*> jobs_;  // with open places
  unsigned threads_ = 0;
};

std::atomic<Pool*> current{nullptr};

// The pool of this process: after fork() the child has the memory of its parent's, but not its threads.
Pool& pool() {
  Pool* found = current.load();
  if (found != nullptr && found->owner == process()) return *found;
  Pool* made = new Pool;
  if (current.compare_exchange_strong(found, made)) return *made;
  delete made;  // another thread was faster
  return *found;
}

using Runtime = void (*)(Work, void*, unsigned, unsigned);
std::atomic<Runtime> runtime{nullptr};
std::atomic<int> runtime_owner{0};

}  // namespace

extern "C" void bigltl_run(void (*fn)(void*), void* data, unsigned threads) {
  if (threads <= 1) return fn(data);
  const Runtime start = runtime.load();
  // In a child of fork(), libgomp would wait for threads that only the parent has.
  if (start != nullptr && runtime_owner.load() == process()) return start(fn, data, threads, 0);
  pool().run(fn, data, threads);
}

// Takes the address of the OpenMP runtime's GOMP_parallel, so that no second team of threads competes with torch's;
// null for the pool.
BIGLTL_EXPORT void bigltl_set_parallel(void* gomp_parallel) {
  runtime_owner.store(process());
  runtime.store(reinterpret_cast<Runtime>(gomp_parallel));
}
