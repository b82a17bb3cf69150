// Threads for the steps of a graph.
//
// A session owns `threads` tokens, each with one arena. A call holds at least one token while it runs, so
// no more than `threads` threads compute at any time, however many callers there are. A call that finds
// free tokens takes them too: for the rows of one image, or for more images at once.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace xnor {

// The process that made a thing. A forked child has none of its threads, and its locks as they were at that moment.
class Home {
public:
    bool is_here() const { return getpid() == process_; }

private:
    const pid_t process_ = getpid();
};

// Deletes what has threads and locks where it was made; elsewhere that would wait for ever, so it stays.
struct DeleteAtHome {
    Home home;
    template <class T>
    void operator()(T* made) const {
        if (home.is_here()) delete made;
    }
};

template <class T>
using OwnedAtHome = std::unique_ptr<T, DeleteAtHome>;

// Cache-line aligned memory that is only reserved until it is touched.
class Arena {
public:
    explicit Arena(int64_t bytes);
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    char* data() const { return data_; }

private:
    char* data_;
};

// Workers that sleep until a call borrows them.
class Workers {
public:
    explicit Workers(int count);
    ~Workers();

    // Runs job(0) here and job(1) .. job(helpers) on workers; returns when job(0) is done and all that had begun by
    // then. A job must therefore leave the whole work done, whoever else takes part; in a forked child nobody does. The
    // sum of helpers over concurrent calls never exceeds `count`.
    void run(int helpers, const std::function<void(int)>& job);

private:
    struct Batch {
        const std::function<void(int)>* job;
        int next;
        int last;
        int running;
        std::condition_variable done;
    };
    void loop();

    const Home home_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<Batch*> batches_;
    std::vector<std::thread> threads_;
    bool stop_ = false;
};

// A call's steps, one after the other, each of which some threads do in parts. A thread waits for parts that others
// have taken, never for a thread: one that comes late, or not at all, holds up nobody. Spins shortly, then sleeps.
class Steps {
public:
    explicit Steps(size_t count) : steps_(count) {}
    void set_items(size_t step, int64_t items) { steps_[step].left.store(items, std::memory_order_relaxed); }

    // The first of `grain` items that nobody has taken yet; at or past the last where all are.
    int64_t take(size_t step, int64_t grain) { return steps_[step].next.fetch_add(grain, std::memory_order_relaxed); }
    void done(size_t step, int64_t items);
    void wait(size_t step);

private:
    struct Step {
        std::atomic<int64_t> next{0}, left{0};
    };
    std::vector<Step> steps_;
    std::mutex mutex_;
    std::condition_variable finished_;
};

// The arenas, handed out one a computing thread.
class Tokens {
public:
    Tokens(int count, int64_t arena_bytes);
    Arena* take();      // waits for a free one
    Arena* try_take();  // null where none is free
    void give_back(Arena* arena);
    int64_t allocated_bytes() const;

private:
    Arena* take_locked();

    mutable std::mutex mutex_;
    std::condition_variable free_;
    std::vector<std::unique_ptr<Arena>> arenas_;
    std::vector<Arena*> idle_;
    int left_;
    const int64_t arena_bytes_;
};

}  // namespace xnor
