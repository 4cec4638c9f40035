// Loads that wait for each other. A loader is the user's code, and may ask for other pages: while its
// thread waits for one that somebody else loads, the intents of all its loads say for which. So a thread that
// is about to wait follows the chain, across threads and processes:
//
//   page -> LOADING(client) -> that client's intent to load it -> the page that it waits for -> ...
//
// If it comes back to a page that this thread loads, the wait would never end.
//
//   Intent.waits   63                32 31                0
//                 +--------------------+-------------------+
//                 | number of the wait | page + 1; 0: none |
//                 +--------------------+-------------------+
//
// No false alarm: an intent that says the same twice, with the number, said so all the while in between. The
// chain is followed twice, one time after the other; so all of it stood at one time.
#pragma once

#include "protocol/operation.h"
#include "protocol/wait.h"

namespace bp {

inline bool is_load(const Intent& in) {
    u32 op = in.op.load_acquire();
    return op == u32(Op::LOAD) || op == u32(Op::LOAD_MANY);
}

// All loads of this thread wait for `page`, as long as this object lives.
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
    bool any() const { return any_; }  // does this thread load anything?
};

struct WaitingLoad {
    Intent* intent;
    u64 waits;
    bool operator==(const WaitingLoad&) const = default;
};
constexpr u32 CHAIN_MOST = 256;  // loads in a ring that is found

// Follows the chain from `page`. How many loads of others it leads through before one of this thread; -1 if
// it does not come to one.
inline int chain_to_us(Segment& s, u32 page, WaitingLoad* out) {
    for (u32 n = 0; n < CHAIN_MOST; n++) {
        if (!s.has_page(page)) return -1;
        u64 e = s.entries[page].load_seq_cst();
        u32 c = entry::owner(e);
        if (entry::state(e) != LOADING || !seems_alive(s, c)) return -1;
        Intent *intents = s.clients[c - 1].intents, *load = intents;
        if (u32 n = entry::among(e)) load += n - 1;  // it is loaded together with others: the entry says by which
        else
            while (load < intents + OPS && !(load->page.load_relaxed() == page && is_load(*load))) load++;
        if (load >= intents + OPS || !is_load(*load)) return -1;
        if (c == s.me && s.op_thread[load - intents].load_relaxed() == this_thread()) return int(n);
        out[n] = {load, load->waits.load_seq_cst()};
        page = u32(out[n].waits) - 1;
    }
    return -1;
}

// Would waiting for this page never end? (The numbers of waits come round after 2^32 of them, so what took a thread
// that was stopped longer than that many waits can take is not believed: it will look again after a slice.)
[[gnu::noinline]] inline bool waits_for_us(Segment& s, u32 page) {
    WaitingLoad once[CHAIN_MOST], again[CHAIN_MOST];
    u64 since = prim::now_ns();
    int n = chain_to_us(s, page, once);
    bool same = n >= 0 && chain_to_us(s, page, again) == n && std::equal(once, once + n, again);
    return same && prim::now_ns() - since < 1'000'000'000;
}

}  // namespace bp
