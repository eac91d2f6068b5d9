// Loops over independent tasks in several threads.
#pragma once

#include <atomic>
#include <cstdint>

// Runs fn(data) in up to `threads` threads at once, the caller's among them; returns when all have ended.
extern "C" void bigltl_run(void (*fn)(void*), void* data, unsigned threads);

namespace {

// body(index) for every index below `count`, in any order. Each thread draws the next index, like a ticket, so there
// may be fewer threads than asked for, and none waits for a slow one while there is work.
template <class Body>
void parallel_for(int64_t count, int64_t threads, const Body& body) {
  if (count < threads) threads = count;
  if (threads <= 1) {
    for (int64_t index = 0; index < count; ++index) body(index);
    return;
  }
  struct Loop {
    const Body& body;
    const int64_t count;
    std::atomic<int64_t> next{0};
  } loop{body, count};
  const auto draw = [](void* data) {
    Loop& loop = *static_cast<Loop*>(data);
    for (int64_t index; (index = loop.next.fetch_add(1, std::memory_order_relaxed)) < loop.count;) loop.body(index);
  };
  bigltl_run(draw, &loop, static_cast<unsigned>(threads));
}

}  // namespace
