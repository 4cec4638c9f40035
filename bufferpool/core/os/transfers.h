// Reads or writes of a file, several under way at once: by the thread's io_uring, or by a few threads that this
// process shares, or one after the other.
#pragma once

#include "os/heap.h"
#include "os/staging.h"
#include "os/uring.h"

namespace bp {

// Some neighbouring pages of a file, and where they are in memory. `first` is the caller's.
struct Transfer {
    Vectored what;
    u32 first;
    ssize_t got;  // bytes, or -errno
    Transfer* next;
    struct TransferQueue* home;  // of the batch that it belongs to
    iovec staged{};              // where it is read to first; null: nowhere else
    void run() { got = prim::transfer(what.write, what.fd, what.to, what.n, what.offset, what.flags); }
};

// A queue of transfers: those that have ended and were not taken yet, or the free ones.
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

// The threads of this process that read and write if there is no io_uring. They start when there is work, and end
// after a while without work.
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

    void hand_back(Transfer* t, TransferQueue& home) {
        pthread_mutex_lock(&mutex_);
        home.push(t);
        pthread_mutex_unlock(&mutex_);
    }

    // Called in a forked child, which has none of the threads.
    void forget() { new (this) TransferThreads; }
};

class Transfers {
    // The most transfers under way. Disks often take 128 at a time. The kernel's threads would have to pass on what is
    // submitted beyond that, and the caller would wait for room in the disk's queue instead of using what has arrived.
    static constexpr u32 UNDER_WAY = 96;
    static_assert(UNDER_WAY <= Uring::DEPTH);
    static constexpr u32 AT_ONCE = 16;  // pages: so many are submitted before the caller prepares the next ones
    Transfer slots_[UNDER_WAY];
    TransferQueue free_, ended_;  // with threads, `ended_` is under their mutex
    u32 under_way_ = 0, added_ = 0, begun_ = 0;
    Uring* ring_;  // null: by threads, or one transfer after the other
    Staging* staging_ = nullptr;
    bool by_threads_ = false, asked_for_staging_ = false;

public:
    Transfers() : ring_(Uring::of_this_thread()) {
        for (Transfer& t : slots_) free_.push(&t);
    }
    Transfers(const Transfers&) = delete;
    ~Transfers() { Stagings::of_this_process().give_back(staging_); }

    // May another transfer begin? Reads past a full staging would be slower than those that wait for a place there.
    bool room() const { return free_.first && (!staging_ || staging_->has_room()); }

    void begin(const Vectored& what, u32 first) {
        Transfer* t = free_.pop();
        *t = {what, first, 0, nullptr, &ended_};
        under_way_++;
        if (ring_) return add(*t);
        if (TransferThreads::of_this_process().begin(t)) {
            by_threads_ = true;
            return;
        }
        t->run();
        done(t);
    }

    // Adds a result without a transfer.
    void begin_done(u32 first, u32 count, ssize_t got) {
        Transfer* t = free_.pop();
        *t = {Vectored{false, -1, nullptr, count, 0}, first, got, nullptr, nullptr};
        under_way_++;
        done(t);
    }

    // Waits for a transfer to end; false: none is under way.
    bool ended(Transfer& out) {
        if (!under_way_) return false;
        Transfer* t = by_threads_ ? nullptr : ended_.pop();
        if (!t && ring_) t = from_ring();
        if (!t) t = TransferThreads::of_this_process().wait_for(ended_);
        under_way_--;
        out = *t;
        free_.push(t);
        return true;
    }

private:
    // The device works on the first pages while the caller prepares the next ones.
    void add(Transfer& t) {
        stage(t);
        Vectored what = t.what;
        if (t.staged.iov_base) {
            what.to = &t.staged;
            what.n = 1;
        }
        ring_->add(what, u64(&t - slots_));
        added_ += t.what.n;
        if (added_ < AT_ONCE) return;
        added_ = 0;
        ring_->submit();
    }

    // A few pages do not fill the queue of a disk, and are read to where they belong.
    void stage(Transfer& t) {
        begun_ += t.what.n;
        if (t.what.write || !t.what.direct || begun_ <= AT_ONCE) return;
        if (!asked_for_staging_) staging_ = Stagings::of_this_process().borrow();
        asked_for_staging_ = true;
        if (!staging_) return;
        size_t bytes = 0;
        for (u32 i = 0; i < t.what.n; i++) bytes += t.what.to[i].iov_len;
        t.staged = {staging_->take(bytes), bytes};
    }

    // Copies what has been read to where it belongs, as far as it was read.
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

    void done(Transfer* t) {
        if (by_threads_) TransferThreads::of_this_process().hand_back(t, ended_);
        else ended_.push(t);
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
