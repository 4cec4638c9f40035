// Loads that wait for each other. A loader is the user's code, and may use other pages: while its thread waits for a
// page that another thread loads, the intents of all loads of the waiting thread name that page. So a thread that is
// about to wait follows the chain, across threads and processes:
//
//   page -> LOADING(client) -> that client's intent to load it -> the page that it waits for -> ...
//
// If the chain leads to a page that this thread loads, the wait would never end.
//
//   Intent.waits   63                32 31                0
//                 +--------------------+-------------------+
//                 | number of the wait | page + 1; 0: none |
//                 +--------------------+-------------------+
//
// There is no false alarm. The chain is followed twice, one time after the other. If both times every intent has the
// same value, including the number of its wait, none has changed in between; so the whole chain existed at one moment.
#pragma once

#include "protocol/entry_memory.h"
#include "protocol/operation.h"
#include "protocol/wait.h"

namespace bp {

inline bool is_load(const Intent& in) {
    u32 op = in.op.load_acquire();
    return op == u32(Op::LOAD) || op == u32(Op::LOAD_MANY);
}

// While this object lives, the intents of all loads of this thread say that they wait for `page`.
class LoadsWait {
    Segment& s_;
    bool any_ = false;

    template <class F>
    void each_load(F change) {
        u64 used = s_.ops_used.load_acquire(), thread = this_thread();
        for (u32 i = 0; i < OPS; i++) {
            Intent& in = s_.client().intents[i];
            if (!(used >> i & 1) || s_.op_thread[i].load_relaxed() != thread || !is_load(in)) continue;
            in.waits.store_seq_cst(change(in.waits.load_relaxed()));
            any_ = true;
        }
    }

public:
    LoadsWait(Segment& s, u32 page) : s_(s) {
        each_load([page](u64 w) { return ((w >> 32) + 1) << 32 | (page + 1); });
    }
    LoadsWait(const LoadsWait&) = delete;
    ~LoadsWait() {
        if (any_) each_load([](u64 w) { return w >> 32 << 32; });
    }
    bool any() const { return any_; }  // whether this thread loads any page
};

struct WaitingLoad {
    Intent* intent;
    u64 waits;
    bool operator==(const WaitingLoad&) const = default;
};
constexpr u32 CHAIN_MOST = 256;  // the longest cycle of loads that is found

// Follows the chain from `page`. Returns how many loads of other threads, which `out` has then, precede a load of this
// thread; -1: the chain does not lead to one.
inline int chain_to_us(Segment& s, u32 page, WaitingLoad* out) {
    EntryLook look(s);
    for (u32 n = 0; n < CHAIN_MOST; n++) {
        if (!s.has_page(page)) return -1;
        u64 e = s.entries[page].load_seq_cst();
        u32 c = entry::owner(e);
        if (entry::state(e) != LOADING || !seems_alive(s, c)) return -1;
        Intent *intents = s.clients[c - 1].intents, *load = intents;
        // If the page is loaded together with others, its entry has the operation's number.
        if (u32 n = entry::among(e)) load += n - 1;
        else
            while (load < intents + OPS && !(load->page.load_relaxed() == page && is_load(*load))) load++;
        if (load >= intents + OPS || !is_load(*load)) return -1;
        if (c == s.me && s.op_thread[load - intents].load_relaxed() == this_thread()) return int(n);
        out[n] = {load, load->waits.load_seq_cst()};
        page = u32(out[n].waits) - 1;
    }
    return -1;
}

// Would waiting for this page never end? (The numbers of waits wrap around after 2^32 waits. So the result is not used
// if this thread was stopped so long that this could have happened; it checks again after the next slice.)
[[gnu::noinline]] inline bool waits_for_us(Segment& s, u32 page) {
    WaitingLoad once[CHAIN_MOST], again[CHAIN_MOST];
    u64 since = prim::now_ns();
    int n = chain_to_us(s, page, once);
    bool same = n >= 0 && chain_to_us(s, page, again) == n && std::equal(once, once + n, again);
    return same && prim::now_ns() - since < 1'000'000'000;
}

}  // namespace bp
