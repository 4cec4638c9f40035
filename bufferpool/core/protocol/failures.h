// Failed loads: the loading client makes a record of a failure, for the clients that waited for the load, in any
// process. So a failing loader runs once for all of them.
//
//   loading client   clears its older records of the page -> entry LOADING(me) -> (the loader fails) -> makes a record
//                    of the page -> entry ABSENT
//   waiting client   entry LOADING(c) -> … -> entry not LOADING(c): has c a record of the page?
//
// A record that a waiter finds was made after it saw LOADING(c), because all older ones were cleared before. A client
// that asks for the page later never saw LOADING(c), so it looks for no record, and loads the page. A client that died
// has left no record.
//
//   Failure.about  63              32 31                          0
//                 +------------------+-----------------------------+
//                 | number           | page + 1; 0: being written  |
//                 +------------------+-----------------------------+
//   Failure.pages | among            | last page                   |
//                 +------------------+-----------------------------+
//
// A load of several pages (load_many.h) fails for all of them: it makes one record, with the first and the last page
// and the number of the operation (`among`; 0: the load of one page).
#pragma once

#include <cstring>

#include "protocol/segment.h"

namespace bp {

inline bool is_about(const Failure& f, u64 about, u32 page, u32 among) {
    u64 pages = f.pages.load_relaxed();
    return u32(about) && u32(about) - 1 <= page && page <= u32(pages) && pages >> 32 == among;
}

inline void forget_failures(Client& client, u32 page, u32 among) {
    for (Failure& f : client.failures)
        if (is_about(f, f.about.load_relaxed(), page, among)) f.about.store_seq_cst(0);
}

struct FailedPages {
    u32 first, last, among = 0;
};

// Makes a record, before the entry changes. Each thread takes the next record, because loads of several threads may
// fail at the same time.
inline void tell_failure(Segment& s, FailedPages pages, const char* text) {
    Client& client = s.client();
    u64 number = client.failed.add_relaxed(1);
    Failure& f = client.failures[number % FAILURES];
    f.about.store_seq_cst(0);
    f.pages.store_relaxed(u64(pages.among) << 32 | pages.last);
    for (u32 i = 0; i < FAILURE_WORDS; i++) {
        u64 word = 0;
        size_t n = strnlen(text, 8);
        memcpy(&word, text, n);
        text += n;
        f.text[i].store_relaxed(word);
    }
    f.about.store_seq_cst((number & 0xffffffffu) << 32 | (pages.first + 1));
    BP_POINT("load.told");
}

// Finds the record of a load by client `c` that has ended. True: the load failed, and `text` is the reason.
inline bool find_failure(Segment& s, u32 c, u32 among, u32 page, char (&text)[FAILURE_WORDS * 8 + 1]) {
    if (!s.has_slot(c)) return false;
    for (Failure& f : s.clients[c - 1].failures) {
        u64 about = f.about.load_seq_cst();
        if (!is_about(f, about, page, among)) continue;
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
