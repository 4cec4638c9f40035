// Changing the entry word of a page.
#pragma once

#include "protocol/segment.h"

namespace bp {

// Changes an entry by a CAS from the value read, repeated until it succeeds; `change` returns the new value, or the
// same value to leave the entry as it is. If the change clears W, the waiters are woken. Returns the value that the
// entry has then.
template <class F>
u64 change_entry(Atomic<u64>& word, F change) {
    u64 e = word.load_seq_cst();
    for (;;) {
        u64 next = change(e);
        if (next == e) return e;
        if (word.cas_seq_cst(e, next)) {
            if ((e & entry::WAITED) && !(next & entry::WAITED)) prim::futex_wake_all(&word);
            return next;
        }
    }
}

// Changes an entry as change_entry() does, and also clears W and wakes the waiters.
template <class F>
u64 settle_entry(Segment& s, u32 page, F change) {
    return change_entry(s.entries[page], [&](u64 e) { return change(e) & ~entry::WAITED; });
}

}  // namespace bp
