#include "team.h"

#include <algorithm>
#include <cstdlib>
#include <new>

#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace xnor {

namespace {

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace

Arena::Arena(int64_t bytes) {
    const size_t size = (static_cast<size_t>(bytes) / kAlignBytes + 1) * kAlignBytes;
    data_ = static_cast<char*>(std::aligned_alloc(kAlignBytes, size));
    if (!data_) throw std::bad_alloc();
}

Arena::~Arena() { std::free(data_); }

Workers::Workers(int count) {
    threads_.reserve(static_cast<size_t>(count));
    for (int i = 0; i < count; ++i) threads_.emplace_back([this] { loop(); });
}

Workers::~Workers() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
}

void Workers::loop() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
        wake_.wait(lock, [this] { return stop_ || !batches_.empty(); });
        if (stop_) return;
        Batch* batch = batches_.back();
        const int index = batch->next++;
        if (batch->next > batch->last) batches_.pop_back();
        lock.unlock();
        (*batch->job)(index);
        lock.lock();
        if (--batch->running == 0) batch->done.notify_one();
    }
}

void Workers::run(int helpers, const std::function<void(int)>& job) {
    if (helpers == 0 || !home_.is_here()) return job(0);
    Batch batch{&job, 1, helpers, helpers, {}};
    {
        std::lock_guard<std::mutex> lock(mutex_);
        batches_.push_back(&batch);
    }
    wake_.notify_all();
    job(0);
    std::unique_lock<std::mutex> lock(mutex_);
    const auto waiting = std::find(batches_.begin(), batches_.end(), &batch);
    if (waiting != batches_.end()) {
        batches_.erase(waiting);
        batch.running -= batch.last - batch.next + 1;
    }
    batch.done.wait(lock, [&batch] { return batch.running == 0; });
}

void Steps::done(size_t step, int64_t items) {
    if (steps_[step].left.fetch_sub(items, std::memory_order_acq_rel) != items) return;
    {
        std::lock_guard<std::mutex> lock(mutex_);
    }  // whoever has just seen that items are left sleeps by now
    finished_.notify_all();
}

void Steps::wait(size_t step) {
    const std::atomic<int64_t>& left = steps_[step].left;
    for (int spins = 0; spins < 4000; ++spins) {
        if (left.load(std::memory_order_acquire) == 0) return;
        relax();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    finished_.wait(lock, [&left] { return left.load(std::memory_order_acquire) == 0; });
}

Tokens::Tokens(int count, int64_t arena_bytes) : left_(count), arena_bytes_(arena_bytes) {}

Arena* Tokens::take_locked() {
    if (idle_.empty()) {
        arenas_.push_back(std::make_unique<Arena>(arena_bytes_));
        idle_.push_back(arenas_.back().get());
    }
    Arena* arena = idle_.back();
    idle_.pop_back();
    --left_;
    return arena;
}

Arena* Tokens::take() {
    std::unique_lock<std::mutex> lock(mutex_);
    free_.wait(lock, [this] { return left_ > 0; });
    return take_locked();
}

Arena* Tokens::try_take() {
    std::lock_guard<std::mutex> lock(mutex_);
    return left_ > 0 ? take_locked() : nullptr;
}

void Tokens::give_back(Arena* arena) {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        idle_.push_back(arena);
        ++left_;
    }
    free_.notify_one();
}

int64_t Tokens::allocated_bytes() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return static_cast<int64_t>(arenas_.size()) * arena_bytes_;
}

}  // namespace xnor
