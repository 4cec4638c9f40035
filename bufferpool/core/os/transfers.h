// Reads or writes of a file, several under way at once. The thread's io_uring does them; without a ring, a few threads
// of this process do; without threads, they are done one after the other.
//
// A process that is killed ends before its io_uring: a disk may read or write memory for it later. The frames belong to
// other pages by then. So with O_DIRECT the ring only reads, and only into memory of this process; transfers between a
// disk and a frame are done by threads, and the process does not end before they have ended. Where the kernel copies
// the bytes (through its page cache), it does so before the process ends, and the ring may have any memory.
#pragma once

#include "os/heap.h"
#include "os/staging.h"
#include "os/uring.h"

namespace bp {

// A read or write of some neighbouring pages of a file. `first` is a number by which the caller recognises it.
struct Transfer {
    Vectored what;
    u32 first;
    ssize_t got;  // bytes, or -errno
    Transfer* next;
    struct TransferQueue* home;  // the queue of its batch, to which it is added when it has ended
    iovec staged{};              // the staging memory into which it is read first; null: it is read into the frames
    void run() { got = prim::transfer(what.write, what.fd, what.to, what.n, what.offset, what.flags); }
};

// A list of transfers, from which the one added last is taken first.
struct TransferQueue {
    Transfer* first = nullptr;
    void push(Transfer* t) {
        t->next = first;
        first = t;
    }
    Transfer* pop() {
        Transfer* t = first;
        if (t) first = t->next;
        return t;
    }
};

// The threads of this process that read and write what io_uring may not, or if there is none. They start when there is
// work, and end after IDLE_NS without work.
class TransferThreads {
    static constexpr u32 MOST = 16;
    static constexpr u64 IDLE_NS = 500'000'000;
    pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t work_ = PTHREAD_COND_INITIALIZER, done_ = PTHREAD_COND_INITIALIZER;
    TransferQueue queue_;
    u32 running_ = 0, idle_ = 0;

    void serve() {
        pthread_mutex_lock(&mutex_);
        for (;;) {
            if (Transfer* t = queue_.pop()) {
                pthread_mutex_unlock(&mutex_);
                t->run();
                pthread_mutex_lock(&mutex_);
                t->home->push(t);
                pthread_cond_broadcast(&done_);
                continue;
            }
            u64 until = prim::realtime_ns() + IDLE_NS;
            timespec t{time_t(until / 1'000'000'000u), long(until % 1'000'000'000u)};
            idle_++;
            bool timed_out = pthread_cond_timedwait(&work_, &mutex_, &t) != 0;
            idle_--;
            if (timed_out && !queue_.first) break;
        }
        running_--;
        pthread_mutex_unlock(&mutex_);
    }

public:
    static TransferThreads& of_this_process() {
        static TransferThreads threads;
        return threads;
    }

    // Queues a transfer. False: there is no thread, and none can be started.
    bool begin(Transfer* t) {
        pthread_mutex_lock(&mutex_);
        if (!idle_ && running_ < MOST) {
            auto run = [](void* self) -> void* {
                static_cast<TransferThreads*>(self)->serve();
                return nullptr;
            };
            if (prim::start_thread(run, this) == 0) running_++;
        }
        bool served = running_ > 0;
        if (served) queue_.push(t);
        pthread_mutex_unlock(&mutex_);
        if (served) pthread_cond_signal(&work_);
        return served;
    }

    Transfer* wait_for(TransferQueue& home) {
        pthread_mutex_lock(&mutex_);
        Transfer* t;
        while (!(t = home.pop())) pthread_cond_wait(&done_, &mutex_);
        pthread_mutex_unlock(&mutex_);
        return t;
    }

    // Called in a forked child, which has none of the threads.
    void forget() { new (this) TransferThreads; }
};

class Transfers {
    // The most transfers under way. A disk's queue often has room for 128. If more were submitted, the caller would
    // wait for room in that queue, instead of using the pages that have arrived.
    static constexpr u32 UNDER_WAY = 96;
    static_assert(UNDER_WAY <= Uring::DEPTH);
    static constexpr u32 AT_ONCE = 16;  // the number of pages that are submitted together
    Transfer slots_[UNDER_WAY];
    TransferQueue free_, ended_, ended_by_threads_;  // the last one is under their mutex
    u32 under_way_ = 0, with_threads_ = 0, added_ = 0;
    Uring* ring_;  // null: by threads, or one transfer after the other
    Staging* staging_ = nullptr;
    bool asked_for_staging_ = false;

public:
    Transfers() : ring_(Uring::of_this_thread()) {
        for (Transfer& t : slots_) free_.push(&t);
    }
    Transfers(const Transfers&) = delete;
    ~Transfers() { Stagings::of_this_process().give_back(staging_); }

    // May another transfer begin? A read that does not fit into the staging page waits for room there, because that
    // takes less time than reading into the frames directly.
    bool room() const { return free_.first && (!staging_ || staging_->has_room()); }

    void begin(const Vectored& what, u32 first) {
        Transfer* t = free_.pop();
        *t = {what, first, 0, nullptr, &ended_by_threads_};
        under_way_++;
        if (ring_ && add(*t)) return;
        if (TransferThreads::of_this_process().begin(t)) {
            with_threads_++;
            return;
        }
        t->run();
        ended_.push(t);
    }

    // Adds a result without a transfer.
    void begin_done(u32 first, u32 count, ssize_t got) {
        Transfer* t = free_.pop();
        *t = {Vectored{false, -1, nullptr, count, 0}, first, got, nullptr, nullptr};
        under_way_++;
        ended_.push(t);
    }

    // Waits until a transfer has ended, and returns it in `out`. False: none is under way.
    bool ended(Transfer& out) {
        if (!under_way_) return false;
        Transfer* t = ended_.pop();
        if (!t && under_way_ > with_threads_) t = from_ring();
        if (!t) {
            t = TransferThreads::of_this_process().wait_for(ended_by_threads_);
            with_threads_--;
        }
        under_way_--;
        out = *t;
        free_.push(t);
        return true;
    }

private:
    // Adds a transfer to the ring. After AT_ONCE pages the ring is submitted, so that the device works on them while
    // the caller prepares the next ones. False: the ring must not do this transfer.
    bool add(Transfer& t) {
        if (t.what.direct && !stage(t)) return false;
        Vectored what = t.what;
        if (t.staged.iov_base) {
            what.to = &t.staged;
            what.n = 1;
        }
        ring_->add(what, u64(&t - slots_));
        added_ += t.what.n;
        if (added_ < AT_ONCE) return true;
        added_ = 0;
        ring_->submit();
        return true;
    }

    // Takes staging memory for a direct read. False: there is none, or it is a write.
    bool stage(Transfer& t) {
        if (t.what.write) return false;
        if (!asked_for_staging_) staging_ = Stagings::of_this_process().borrow();
        asked_for_staging_ = true;
        if (!staging_) return false;
        size_t bytes = 0;
        for (u32 i = 0; i < t.what.n; i++) bytes += t.what.to[i].iov_len;
        t.staged = {staging_->take(bytes), bytes};
        return t.staged.iov_base;
    }

    // Copies the bytes that were read from the staging memory to the frames, and gives the staging memory back.
    void unstage(Transfer& t) {
        auto from = static_cast<const u8*>(t.staged.iov_base);
        if (!from) return;
        size_t left = t.got > 0 ? size_t(t.got) : 0;
        for (const iovec* to = t.what.to; left; to++) {
            size_t n = std::min(left, to->iov_len);
            prim::copy_page(to->iov_base, from + (size_t(t.got) - left), n);
            left -= n;
        }
        staging_->give_back(from, t.staged.iov_len);
        t.staged = {};
    }

    Transfer* from_ring() {
        u64 tag;
        ssize_t got;
        while (!ring_->take(tag, got)) {
            int r = ring_->send([this](u64 refused) {
                Transfer& t = slots_[refused];
                t.got = 0;
                unstage(t);
                t.run();
                ended_.push(&slots_[refused]);
            });
            if (Transfer* t = r ? ended_.pop() : nullptr) return t;
            if (r) prim::nap(100'000);  // the kernel lacks resources until other requests have ended
        }
        slots_[tag].got = got;
        unstage(slots_[tag]);
        return &slots_[tag];
    }
};

}  // namespace bp
