// A small persistent thread pool.  Safe for callers in several threads and in a forked child.
#pragma once
#include <cstddef>
#include <cstdint>

namespace sparvar {

typedef void (*TaskFn)(void* argument, int64_t task);

// Runs fn(argument, 0..tasks-1) on at most `threads` threads, the caller among them; returns when all are done.
// Tasks start in order and are handed out one by one.
void parallel_for(int64_t tasks, int64_t threads, TaskFn fn, void* argument);

template <class F>
void parallel(int64_t tasks, int64_t threads, F& body) {
    parallel_for(tasks, threads, [](void* f, int64_t task) { (*static_cast<F*>(f))(task); }, &body);
}

// Scratch of the calling thread: 64-byte aligned, kept between calls, grown when needed, contents undefined.
void* scratch(size_t bytes);

}  // namespace sparvar
