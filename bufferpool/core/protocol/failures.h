// Loads that failed, told to those who waited for them, in any process, so that a loader that fails does so once for
// all.
//
//   loading client   its older records of the page are void -> entry LOADING(me) -> (the loader fails) -> a record
//                    of the page -> entry ABSENT
//   waiting client   entry LOADING(c) -> … -> entry not LOADING(c): has c a record of the page?
//
// A record that is found was made after the waiter saw LOADING(c): all older ones were void by then. A client that
// comes later never saw LOADING(c), so it does not look for a record, and loads the page. A client that died has made
// no record.
//
//   Failure.about  63              32 31                          0
//                 +------------------+-----------------------------+
//                 | number           | page + 1; 0: being written  |
//                 +------------------+-----------------------------+
#pragma once

#include <cstring>

#include "protocol/segment.h"

namespace bp {

inline void forget_failures(Client& client, u32 page) {
    for (Failure& f : client.failures)
        if (u32(f.about.load_relaxed()) == page + 1) f.about.store_seq_cst(0);
}

// Before the entry changes. Several threads of a client may fail at once: each takes the next record.
inline void tell_failure(Segment& s, u32 page, const char* text) {
    Client& client = s.client();
    u64 number = client.failed.add_relaxed(1);
    Failure& f = client.failures[number % FAILURES];
    f.about.store_seq_cst(0);
    for (u32 i = 0; i < FAILURE_WORDS; i++) {
        u64 word = 0;
        size_t n = strnlen(text, 8);
        memcpy(&word, text, n);
        text += n;
        f.text[i].store_relaxed(word);
    }
    f.about.store_seq_cst((number & 0xffffffffu) << 32 | (page + 1));
    BP_POINT("load.told");
}

// The load of the page by client `c`, which we have seen and which is over, failed: why.
inline bool find_failure(Segment& s, u32 c, u32 page, char (&text)[FAILURE_WORDS * 8 + 1]) {
    if (c == 0 || c > s.g.max_clients) return false;
    for (Failure& f : s.clients[c - 1].failures) {
        u64 about = f.about.load_seq_cst();
        if (u32(about) != page + 1) continue;
        for (u32 i = 0; i < FAILURE_WORDS; i++) {
            u64 word = f.text[i].load_acquire();
            memcpy(text + i * 8, &word, 8);
        }
        text[FAILURE_WORDS * 8] = 0;
        if (f.about.load_seq_cst() == about) return true;
    }
    return false;
}

}  // namespace bp
