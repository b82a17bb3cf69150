// Threads for the steps of a graph.
//
// A session owns `threads` tokens, each with one arena. A call holds at least one token while it runs, so
// no more than `threads` threads compute at any time, however many callers there are. A call that finds
// free tokens takes them too: for the rows of one image, or for more images at once.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace xnor {

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

    // Runs job(0) here and job(1) .. job(helpers) on workers; returns when all are done.
    // The sum of helpers over concurrent calls never exceeds `count`.
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

    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<Batch*> batches_;
    std::vector<std::thread> threads_;
    bool stop_ = false;
};

// Meets `size` threads again and again within one call. Spins shortly, then yields.
class Barrier {
public:
    explicit Barrier(int size) : size_(size) {}
    void wait();

private:
    const int size_;
    std::atomic<int> arrived_{0};
    std::atomic<int> round_{0};
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
