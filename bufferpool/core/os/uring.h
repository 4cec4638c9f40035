// One thread's io_uring, for many reads or writes of files at once. It uses the kernel's interface (io_uring(7))
// without liburing, and without the kernel's headers, because the headers of an old system do not declare it.
//
// The ring has no descriptor: it is registered with its thread (IORING_REGISTER_RING_FDS, Linux 5.18), and the
// descriptor is closed at once. So code that closes unknown descriptors does not close the ring, a forked child does
// not inherit it, and it ends with its thread. On older kernels, or if a sandbox or a sysctl refuses it, there is no
// ring.
#pragma once

#include <atomic>

#include "os/heap.h"

namespace bp {

// One read or write of a file: `n` pieces of memory, which lie side by side from `offset` on in the file.
struct Vectored {
    bool write;
    int fd;
    const iovec* to;
    u32 n;
    u64 offset;
    u32 flags = 0;        // RWF_…
    bool direct = false;  // the disk transfers it to or from this memory, past the kernel's page cache
};

class Uring {
    struct Request {  // io_uring_sqe
        u8 op, flags;
        u16 priority;
        int fd;
        u64 offset, address;
        u32 length, rw_flags;
        u64 tag;
        u64 unused[3];
    };
    struct Result {  // io_uring_cqe
        u64 tag;
        int got;
        u32 flags;
    };
    static_assert(sizeof(Request) == 64 && sizeof(Result) == 16);
    static constexpr u8 READV = 1, WRITEV = 2;
    static constexpr u64 REQUESTS_AT = 0x10000000;
    static constexpr u32 SINGLE_MAPPING = 1, COOPERATIVE = 1 << 8, ONE_THREAD = 1 << 12, WHEN_ASKED = 1 << 13;

    enum State { UNTRIED, OPEN, REFUSED } state_ = UNTRIED;
    u32 pid_ = prim::process_id();
    int index_ = -1;  // its index among the rings registered with this thread
    u8 *rings_ = nullptr, *requests_ = nullptr;
    u64 rings_bytes_ = 0, requests_bytes_ = 0;
    u32 *tail_ = nullptr, *array_ = nullptr, *done_head_ = nullptr, *done_tail_ = nullptr;
    u32 mask_ = 0, done_mask_ = 0;
    Result* results_ = nullptr;
    u32 made_ = 0, sent_ = 0;  // the number of requests written to the ring, and taken by the kernel

    static inline std::atomic<bool> refused_{false};  // permanently refused to this process

    // Called in a forked child: the ring belongs to its parent, and is not mapped here.
    void forget() {
        pid_ = prim::process_id();
        state_ = UNTRIED;
        index_ = -1;
        rings_ = requests_ = nullptr;
        made_ = sent_ = 0;
    }

    bool map(int fd, const prim::RingParams& p) {
        u64 sent = p.requests.array + p.entries * 4ull, done = p.results.results + p.result_entries * sizeof(Result);
        rings_bytes_ = sent > done ? sent : done;
        requests_bytes_ = p.entries * sizeof(Request);
        rings_ = prim::map_ring(fd, rings_bytes_, 0);
        requests_ = prim::map_ring(fd, requests_bytes_, REQUESTS_AT);
        if (!rings_ || !requests_) return false;
        auto at = [this](u32 offset) { return reinterpret_cast<u32*>(rings_ + offset); };
        tail_ = at(p.requests.tail);
        array_ = at(p.requests.array);
        mask_ = *at(p.requests.mask);
        done_head_ = at(p.results.head);
        done_tail_ = at(p.results.tail);
        done_mask_ = *at(p.results.mask);
        results_ = reinterpret_cast<Result*>(rings_ + p.results.results);
        return true;
    }

    void unmap() {
        if (rings_) prim::unmap_ring(rings_, rings_bytes_);
        if (requests_) prim::unmap_ring(requests_, requests_bytes_);
        rings_ = requests_ = nullptr;
    }

    State try_open() {
        if (refused_.load(std::memory_order_relaxed)) return REFUSED;
        int fd = -EINVAL;
        prim::RingParams p;
        for (u32 flags : {ONE_THREAD | WHEN_ASKED, COOPERATIVE, 0u}) {  // Linux 6.1, 5.19, older ones
            p = {};
            p.flags = flags;
            fd = prim::ring_setup(DEPTH, p);
            if (fd != -EINVAL) break;
        }
        bool for_good = fd < 0 && fd != -EMFILE && fd != -ENFILE && fd != -ENOMEM;
        if (fd >= 0) {
            bool mapped = (p.features & SINGLE_MAPPING) && map(fd, p);
            index_ = mapped ? prim::ring_register(fd) : -ENOMEM;
            for_good = mapped && index_ == -EINVAL;  // before Linux 5.18
            prim::close_ring(fd);
        }
        if (for_good) refused_.store(true, std::memory_order_relaxed);
        if (index_ >= 0) return OPEN;
        unmap();
        return for_good ? REFUSED : UNTRIED;
    }

public:
    static constexpr u32 DEPTH = 128;

    Uring() = default;
    Uring(const Uring&) = delete;
    ~Uring() {
        if (pid_ == prim::process_id()) unmap();
    }

    // The open ring of this thread; null if there is none.
    static Uring* of_this_thread() {
        if (refused_.load(std::memory_order_relaxed)) return nullptr;
        static const prim::PerThread rings([](void* ring) { unmake(static_cast<Uring*>(ring)); });
        auto ring = static_cast<Uring*>(rings.value());
        if (!ring) {
            ring = make<Uring>();
            if (!ring || !rings.set(ring)) return unmake(ring), nullptr;
        }
        if (ring->pid_ != prim::process_id()) ring->forget();
        if (ring->state_ == UNTRIED) ring->state_ = ring->try_open();
        return ring->state_ == OPEN ? ring : nullptr;
    }

    // Adds a request; at most DEPTH are under way. The kernel sees it at the next send().
    void add(const Vectored& v, u64 tag) {
        u32 i = made_++ & mask_;
        auto& request = reinterpret_cast<Request*>(requests_)[i];
        request = {};
        request.op = v.write ? WRITEV : READV;
        request.fd = v.fd;
        request.offset = v.offset;
        request.address = u64(reinterpret_cast<uintptr_t>(v.to));
        request.length = v.n;
        request.rw_flags = v.flags;
        request.tag = tag;
        array_[i] = i;
    }

    // Submits the added requests, and does not wait. What the kernel does not take is submitted by the next send().
    void submit() {
        __atomic_store_n(tail_, made_, __ATOMIC_RELEASE);
        int r = prim::ring_enter(index_, made_ - sent_, 0);
        if (r > 0) sent_ += u32(r);
    }

    // Submits the added requests, and waits for one result. 0, or -errno: then the requests that the kernel has not
    // taken are removed from the ring, and `take_back` is called for the tag of each.
    template <class F>
    int send(F take_back) {
        for (;;) {
            __atomic_store_n(tail_, made_, __ATOMIC_RELEASE);
            int r = prim::ring_enter(index_, made_ - sent_, 1);
            if (r > 0) sent_ += u32(r);
            if (sent_ == made_ && (r >= 0 || has_result())) return 0;
            if (r >= 0 || r == -EINTR) continue;
            // any other error: for example, a seccomp filter was installed after the ring was opened
            if (r != -EAGAIN && r != -EBUSY && r != -ENOMEM) state_ = REFUSED;
            u32 first = sent_;
            made_ = sent_;
            u32 end = __atomic_load_n(tail_, __ATOMIC_RELAXED);
            __atomic_store_n(tail_, made_, __ATOMIC_RELEASE);
            for (; first != end; first++) take_back(reinterpret_cast<Request*>(requests_)[first & mask_].tag);
            return r;
        }
    }

    bool has_result() const { return *done_head_ != __atomic_load_n(done_tail_, __ATOMIC_ACQUIRE); }

    // Takes a result: the tag of its request, and the bytes or -errno.
    bool take(u64& tag, ssize_t& got) {
        if (!has_result()) return false;
        const Result& result = results_[*done_head_ & done_mask_];
        tag = result.tag;
        got = result.got;
        __atomic_store_n(done_head_, *done_head_ + 1, __ATOMIC_RELEASE);
        return true;
    }
};

}  // namespace bp
