// Threads come from the OpenMP runtime that torch has loaded, if Python found it: one team of threads then serves
// torch's ops and these, where a second pool would fight its spinning workers for the cores.  Otherwise, and in a
// forked child (where an OpenMP team does not survive), from a pool of our own.
#include "pool.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <new>
#include <thread>
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace sparvar {
namespace {

struct Job {
    TaskFn fn;
    void* argument;
    int64_t tasks;
    std::atomic<int64_t> next{0};
    int64_t places = 0;   // helpers that may still join; guarded by Pool::mutex
    int64_t working = 0;  // helpers inside; guarded by Pool::mutex

    void work() {
        for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) fn(argument, task);
    }
};

struct Pool {
    std::mutex mutex;
    std::condition_variable wake, done;
    std::deque<Job*> jobs;
    int64_t workers = 0, idle = 0;

    void loop() {
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            ++idle;
            wake.wait(lock, [this] { return !jobs.empty(); });
            --idle;
            Job* job = jobs.front();
            if (--job->places == 0) jobs.pop_front();
            ++job->working;
            lock.unlock();
            job->work();
            lock.lock();
            if (--job->working == 0) done.notify_all();
        }
    }

    void run(Job& job, int64_t helpers) {
        {
            std::lock_guard<std::mutex> lock(mutex);
            job.places = helpers;
            jobs.push_back(&job);
            // Workers are shared by concurrent callers, so there are never more than the largest request needs.
            for (; workers < helpers; ++workers) {
                try {
                    std::thread([this] { loop(); }).detach();
                } catch (const std::exception&) {
                    break;  // the system gives no more threads: those there are, and the caller, do the work
                }
            }
        }
        if (helpers == 1) wake.notify_one(); else wake.notify_all();
        job.work();
        std::unique_lock<std::mutex> lock(mutex);
        for (auto it = jobs.begin(); it != jobs.end(); ++it)
            if (*it == &job) { jobs.erase(it); break; }
        done.wait(lock, [&job] { return job.working == 0; });
    }
};

typedef void (*OpenMpParallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel
std::atomic<OpenMpParallel> openmp{nullptr};

// Never destroyed: detached workers may outlive the destructors of this library.
std::atomic<Pool*> pool{nullptr};
std::mutex creation;

void watch_forks() {
#if defined(__unix__) || defined(__APPLE__)
    static const int registered = pthread_atfork(nullptr, nullptr, [] {
        new (&creation) std::mutex;  // it may have been locked at the fork
        pool.store(nullptr, std::memory_order_release);
        openmp.store(nullptr, std::memory_order_release);
    });
    (void)registered;
#endif
}

Pool& instance() {
    if (Pool* current = pool.load(std::memory_order_acquire)) return *current;
    std::lock_guard<std::mutex> lock(creation);
    if (!pool.load(std::memory_order_acquire)) {
        watch_forks();
        pool.store(new Pool, std::memory_order_release);
    }
    return *pool.load(std::memory_order_acquire);
}

struct Scratch {
    void* memory = nullptr;
    size_t size = 0;
    ~Scratch() { std::free(memory); }
};
thread_local Scratch local;

}  // namespace

void parallel_for(int64_t tasks, int64_t threads, TaskFn fn, void* argument) {
    const int64_t helpers = (threads < tasks ? threads : tasks) - 1;
    Job job{fn, argument, tasks};
    if (helpers < 1) {
        job.work();
    } else if (const OpenMpParallel team = openmp.load(std::memory_order_acquire)) {
        team([](void* shared) { static_cast<Job*>(shared)->work(); }, &job, unsigned(helpers + 1), 0);
    } else {
        instance().run(job, helpers);
    }
}

void* scratch(size_t bytes) {
    if (bytes > local.size) {
        std::free(local.memory);
        local.memory = nullptr;
        local.size = 0;
        bytes = (bytes + bytes / 4 + 4095) / 4096 * 4096;
        if (posix_memalign(&local.memory, 4096, bytes) != 0) throw std::bad_alloc();
        local.size = bytes;
    }
    return local.memory;
}

}  // namespace sparvar

// Takes the address of GOMP_parallel in the OpenMP runtime that torch uses; 0 returns to the pool.
extern "C" __attribute__((visibility("default"))) void sparvar_use_openmp(void* gomp_parallel) {
    sparvar::watch_forks();
    sparvar::openmp.store(reinterpret_cast<sparvar::OpenMpParallel>(gomp_parallel), std::memory_order_release);
}
