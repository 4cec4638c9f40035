// Dropping pages: they are removed without write-back, even if they are dirty.
#pragma once

#include "protocol/deadlock.h"
#include "protocol/page.h"

namespace bp {

// Does this thread load or flush one of these pages? Then a wait for it would never end.
inline bool thread_uses(Segment& s, u32 first, u64 count) {
    EntryLook look(s);
    u64 used = s.ops_used.load_acquire(), thread = this_thread(), end = first + count;
    for (u32 i = 0; i < OPS; i++) {
        Intent& in = s.client().intents[i];
        Op op = Op(in.op.load_relaxed());
        if (!(used >> i & 1) || s.op_thread[i].load_relaxed() != thread) continue;
        u64 page = in.page.load_relaxed(), last = in.old.load_relaxed();
        if (op == Op::LOAD && page >= first && page < end) return true;
        for (page = first; op == Op::LOAD_MANY && page < end; page++) {
            u64 e = s.has_page(u32(page)) ? s.entries[page].load_acquire() : 0;
            if (entry::among(e) == i + 1 && entry::owner(e) == s.me) return true;
        }
        if (op != Op::FLUSH) continue;
        page = in.page.load_relaxed();
        u64 stop = std::min(last + 1, end);
        for (page = s.next_page(std::max<u64>(page, first), stop); page < stop; page = s.next_page(page + 1, stop))
            if (entry::flusher(s.entries[page].load_acquire()) == s.me) return true;
    }
    return false;
}

// Do written pages of this space remain in the pool until they are dropped? They do in a scratch space that is not
// discardable: a dirty page is not evicted, and this space has no store to which it could be flushed.
inline bool keeps_written(const SpaceSlot& slot) {
    return slot.kind.load_relaxed() == KIND_SCRATCH && !(slot.flags.load_relaxed() & SPACE_DISCARDABLE);
}

// Is it the private space of this client?
inline bool is_own(Segment& s, const SpaceSlot& slot) {
    return s.me && slot.owner.load_relaxed() == s.me &&
           slot.owner_generation.load_relaxed() == s.client().generation.load_relaxed();
}

// The parts of Header::kept (scratch.h). The number of the pass is odd while a pass is under way.
constexpr u32 kept_pages(u64 w) { return u32(w); }
constexpr u32 kept_pass(u64 w) { return u32(w >> 32); }
constexpr bool is_being_counted(u64 w) { return kept_pass(w) & 1; }

// Subtracts one from the number of scratch pages that are kept, unless a pass has counted all of them since `pass`.
inline void uncount_kept(Segment& s, u32 pass) {
    u64 w = s.header->kept.load_seq_cst();
    while (kept_pass(w) == pass && !is_being_counted(w) && kept_pages(w) && !s.header->kept.cas_seq_cst(w, w - 1)) {}
}

// Subtracts one from the number of this client's private pages, which only this process counts.
inline void uncount_own(Segment& s) {
    u32 n = s.own_kept.load_relaxed();
    while (n && !s.own_kept.cas_seq_cst(n, n - 1)) {}
}

// ANY: any page is dropped. CLEAN: only clean pages are. KEPT: any page, of a space that keeps written pages: the page
// is uncounted. OWN: the same, of a space that is private to this client.
enum class Drop { ANY, CLEAN, KEPT, OWN };

inline Drop how_to_drop(Segment& s, const SpaceSlot& slot) {
    return !keeps_written(slot) ? Drop::ANY : is_own(s, slot) ? Drop::OWN : Drop::KEPT;
}

// Drops one page, and waits at most `patience` slices for a client that is changing it. `freed` counts the frames that
// became FREE. WAIT: the page could not be dropped in that time. DEADLOCK: the client that is changing it waits for
// this thread.
inline Status drop_page(Segment& s, Intent& intent, u32 page, int patience, u32& freed, Drop what = Drop::ANY) {
    for (int waits = 0; waits <= patience;) {
        u64 e = s.entries[page].load_acquire();
        if (entry::state(e) == ABSENT) {
            forget(s, page);
            return Status::OK;
        }
        if (what == Drop::CLEAN && (e & entry::DIRTY)) return Status::OK;
        bool open = entry::state(e) == RESIDENT && entry::owner(e) == 0 && entry::flusher(e) == 0;
        if (open && s.entries[page].cas_seq_cst(e, entry::with_owner(e, s.me))) {
            u32 f = entry::frame(e);
            if (!s.has_frame(f)) return end_write(s, page), Status::WAIT;
            u32 pass = kept_pass(s.header->kept.load_seq_cst());
            if (discard(s, intent, page, f)) {
                free_frame(s, f);
                freed++;
            }
            bool kept = (what == Drop::KEPT || what == Drop::OWN) && (e & entry::DIRTY);
            if (kept) uncount_kept(s, pass);
            if (kept && what == Drop::OWN) uncount_own(s);
            return Status::OK;
        }
        if (open) continue;
        if (LoadsWait loads(s, page); loads.any() && waits_for_us(s, page)) return Status::DEADLOCK;
        else wait_entry(s, page, e);
        waits++;
        if (s.interrupted && s.interrupted(s)) return Status::WAIT;
    }
    return Status::WAIT;
}

constexpr int PATIENT = 500, HASTY = 5;  // slices of a wait

// Drops `count` pages from `first` on, and frees their frames.
inline Status drop_range(Segment& s, u32 first, u64 count, u32& freed, Drop what = Drop::ANY) {
    OpSlot op(s);
    if (!op.valid()) return Status::INTERRUPTED;
    EntryLook look(s);
    Status status = Status::OK;
    u64 end = first + count;
    for (u64 page = s.next_page(first, end); page < end && status == Status::OK; page = s.next_page(page + 1, end))
        status = drop_page(s, op.intent(), u32(page), PATIENT, freed, what);
    return status;
}

// Drops the clean pages of a range, because another program has changed their file. Readers keep the versions that they
// pin, and the next reader loads the page again.
inline Status drop_clean(Segment& s, u32 first, u64 count, u32& freed) {
    OpSlot op(s);
    if (!op.valid()) return Status::INTERRUPTED;
    EntryLook look(s);
    Status status = Status::OK;
    u64 end = first + count;
    for (u64 page = s.next_page(first, end); page < end && status == Status::OK; page = s.next_page(page + 1, end)) {
        if (entry::state(s.entries[page].load_acquire()) != RESIDENT) continue;
        status = drop_page(s, op.intent(), u32(page), PATIENT, freed, Drop::CLEAN);
    }
    return status;
}

}  // namespace bp
