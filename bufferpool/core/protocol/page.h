// Pages: the steps of loading, writing, discarding and moving one (for pinning see pin.h). Their order is chosen so
// that a death at any step can be repaired (docs/design.md, "The steps"). The transitions:
//
//   entry   ABSENT -> LOADING(me) -> RESIDENT(f)        load
//           LOADING(me) -> ABSENT                       a load that failed
//           RESIDENT(f) -> EVICTING(f, me) -> ABSENT    evict (evict.h)
//           RESIDENT(f) -> RESIDENT(f, writer)          begin_write
//           RESIDENT(f, writer) -> RESIDENT(g, dirty, writer) -> RESIDENT(g)  publish
//           RESIDENT(f, writer) -> ABSENT               discard
//   frame   BUSY(me) -> LIVE(page) -> RETIRED(page) -> SETTLING(me) -> BUSY(me)
#pragma once

#include "protocol/entry_memory.h"
#include "protocol/failures.h"
#include "protocol/frames.h"
#include "protocol/operation.h"
#include "protocol/probes.h"
#include "protocol/wait.h"

namespace bp {

// ---- load --------------------------------------------------------------------

// ABSENT -> LOADING(me). Returns ABSENT if the entry is LOADING(me) now, so that the caller loads the page; OK if the
// page is resident; WAIT if another client is changing the entry, or if the page was discarded and its old content is
// wanted (not `replaces`): a caller that waited for a frame may have seen the entry before that. The ghost, the ring
// and the discarded bit (V) remain in the word, for a load that fails. `among`: the number of the operation that loads
// the page together with others (load_many.h); 0: it is loaded alone.
inline Status begin_load(Segment& s, Intent& intent, u32 page, u32 among = 0, bool replaces = false) {
    Atomic<u64>& word = s.entries[page];
    u64 e = word.load_acquire();
    if (entry::state(e) == RESIDENT) return Status::OK;
    if (entry::state(e) != ABSENT || (entry::is_discarded(e) && !replaces)) return Status::WAIT;
    intent.frame.store_relaxed(NONE);
    intent.page.store_release(page);
    intent.since.store_relaxed(s.tick());
    intent.op.store_release(u32(among ? Op::LOAD_MANY : Op::LOAD));
    s.claims.add();
    BP_POINT("load.intent");
    forget_failures(s.client(), page, among);
    u64 loading = entry::with_owner(entry::with_state(e, LOADING), s.me);
    if (word.cas_seq_cst(e, entry::with_flusher(loading, among))) {
        BP_POINT("load.loading");
        return Status::ABSENT;
    }
    if (!among) intent.op.store_release(u32(Op::NONE));
    return Status::WAIT;
}

// LOADING(c) -> ABSENT; any other entry is not changed.
inline void unclaim(Segment& s, u32 page, u32 c) {
    settle_entry(s, page, [c](u64 e) {
        if (entry::state(e) != LOADING || entry::owner(e) != c) return e;
        return entry::with_flusher(entry::with_owner(entry::with_state(e, ABSENT), 0), 0);
    });
}

// Frees a frame that was taken for a page whose load has failed.
inline void free_unused(Segment& s, u32 page, u32 f) {
    Counted counted = counted_now(s, page);
    free_frame(s, f);
    uncount(s, counted);
}

inline void abort_load(Segment& s, Intent& intent, u32 page, u32 f) {
    unclaim(s, page, s.me);
    BP_POINT("load.aborted");
    intent.op.store_release(u32(Op::NONE));
    if (f != NONE) free_unused(s, page, f);
}

struct Image {
    bool dirty = false, is_volatile = false;
    u64 lsn = 0;
    bool ahead = false;  // the page is read ahead, and is not used yet
    int tag = -1;        // the policy's tag when the frame was taken; -1: its present tag
};

// Publishes a loaded page: its filled frame becomes LIVE and pinned by this client, and then its entry RESIDENT. The
// intent names the page.
inline void publish_load(Segment& s, Intent& intent, u32 page, u32 f, Image image) {
    FrameSlot& slot = s.frames[f];
    slot.lsn.store_relaxed(image.lsn);
    slot.rec_lsn.store_relaxed(image.lsn);
    slot.touched.store_relaxed(s.tick());
    slot.count.store_relaxed(u8((image.ahead ? AHEAD : 0) | s.sampled_by_duel(page)));
    slot.tag.store_relaxed(u8(image.tag >= 0 ? u32(image.tag) : s.header->policy_tag.load_relaxed()));
    if (image.ahead) s.counters().prefetched.add_relaxed(1);
    slot.mark.store_relaxed(s.mark_of(page));
    intent.since.store_relaxed(s.tick());
    intent.frame.store_release(f);
    BP_POINT("load.filled");
    slot.word.store_seq_cst(frame::live(page));
    BP_POINT("load.live");
    s.pin_count(f).add_seq_cst(1);
    BP_POINT("load.pinned");
    settle_entry(s, page, [&](u64 e) {
        u64 r = entry::with_frame(entry::with_owner(entry::with_state(e, RESIDENT), 0), f);
        r = entry::with_flusher(r, 0) & ~(entry::GHOST | entry::VOLATILE);
        return r | (image.dirty ? entry::DIRTY : 0) | (image.is_volatile ? entry::VOLATILE : 0);
    });
    BP_POINT("load.resident");
    probe_load(s, page);
}

inline void finish_load(Segment& s, Intent& intent, u32 page, u32 f, Image image) {
    publish_load(s, intent, page, f, image);
    intent.op.store_release(u32(Op::NONE));
    BP_POINT("load.done");
}

// ---- write -------------------------------------------------------------------

inline void end_write(Segment& s, u32 page) {
    settle_entry(s, page, [&](u64 e) {
        return entry::state(e) == RESIDENT && entry::owner(e) == s.me ? entry::with_owner(e, 0) : e;
    });
}

// Takes the writer field of a resident page. `out` is its frame, which remains the page's frame until the field is
// released: a page with a writer is not evicted, compacted or written by another client.
inline Status begin_write(Segment& s, u32 page, u32& out) {
    Atomic<u64>& word = s.entries[page];
    u64 e = word.load_acquire();
    if (entry::state(e) == ABSENT) return Status::ABSENT;
    if (entry::state(e) != RESIDENT || entry::owner(e)) return Status::WAIT;
    if (!s.has_frame(entry::frame(e))) return Status::CORRUPT;
    if (!word.cas_seq_cst(e, entry::with_owner(e, s.me))) return Status::WAIT;
    BP_POINT("write.owned");
    out = entry::frame(e);
    if (s.frames[out].word.load_relaxed() == frame::live(page)) return Status::OK;
    end_write(s, page);
    return Status::CORRUPT;  // the entry, or the frame's word, is damaged
}

// Changes the frame of a page whose writer is this client from `f` to `g`, which is BUSY(me) and filled, and retires
// `f`. The caller releases the writer field after that, when the intent has ended: otherwise the page might be evicted
// before, and a reaper could not tell from the intent whether the swap was done. True: `f` is BUSY(me), because no
// client pins it.
inline bool swap_frame(Segment& s, Intent& intent, u32 page, u32 f, u32 g, u64 set) {
    intent.page.store_relaxed(page);
    intent.frame.store_relaxed(g);
    intent.old.store_relaxed(f);
    intent.op.store_release(u32(Op::PUBLISH));
    BP_POINT("publish.intent");
    s.frames[g].word.store_seq_cst(frame::live(page));
    BP_POINT("publish.live");
    change_entry(s.entries[page], [&](u64 e) { return entry::with_frame(e, g) | set; });
    BP_POINT("publish.swapped");
    s.frames[f].word.store_seq_cst(frame::retired(page));
    BP_POINT("publish.retired");
    bool ours = settle_retired(s, f);
    BP_POINT("publish.settled");
    intent.op.store_release(u32(Op::NONE));
    return ours;
}

// Publishes `bytes` as the new version of a page whose writer is this client, and releases the writer field. If not OK,
// nothing is published, and this client is still the writer.
inline Status publish(Segment& s, u32 page, const void* bytes, Image image, FrameRequest& want) {
    OpSlot op(s);
    if (!op.valid()) return op.why_not();
    u32 g;
    if (Status r = take_frame(s, op.intent(), want, g); r != Status::OK) return r;
    u64 e = s.entries[page].load_acquire();
    u32 f = entry::frame(e);
    if (entry::state(e) != RESIDENT || entry::owner(e) != s.me || !s.has_frame(f)) {  // a damaged segment
        free_frame(s, g);
        return Status::CORRUPT;
    }
    prim::copy_page(s.page_data(g), bytes, s.g.page_size);
    FrameSlot &to = s.frames[g], &from = s.frames[f];
    to.lsn.store_relaxed(image.lsn);
    to.rec_lsn.store_relaxed(e & entry::DIRTY && from.rec_lsn.load_relaxed() ? from.rec_lsn.load_relaxed() : image.lsn);
    to.count.store_relaxed(from.count.load_relaxed());
    to.tag.store_relaxed(from.tag.load_relaxed());
    to.mark.store_relaxed(from.mark.load_relaxed());
    s.touch(g, s.tick());
    u64 set = (image.dirty ? entry::DIRTY : 0) | (image.is_volatile ? entry::VOLATILE : 0);
    bool ours = swap_frame(s, op.intent(), page, f, g, set);
    end_write(s, page);
    BP_POINT("publish.done");
    if (ours) keep_or_free(s, f);
    s.counters().publishes.add_relaxed(1);
    probe_publish(s, page);
    return Status::OK;
}

// ---- discard -----------------------------------------------------------------

// Drops a page without write-back: RESIDENT(f, writer me) -> ABSENT. A pin on `f` prevents its reuse while the intent
// names it. True: `f` is BUSY(me).
inline bool discard(Segment& s, Intent& intent, u32 page, u32 f) {
    Counted counted = counted_now(s, page);
    s.pin_count(f).add_seq_cst(1);
    intent.page.store_relaxed(page);
    intent.old.store_relaxed(f);
    intent.op.store_release(u32(Op::DISCARD));
    BP_POINT("discard.intent");
    u64 gone = settle_entry(s, page, [](u64 e) { return (e & entry::RING) | ABSENT; });
    BP_POINT("discard.absent");
    s.frames[f].word.store_seq_cst(frame::retired(page));
    BP_POINT("discard.retired");
    uncount(s, counted);
    intent.op.store_release(u32(Op::NONE));
    s.pin_count(f).sub_seq_cst(1);
    if (entry::ring(gone) == RING_NONE) s.header->dropped_aside.add_seq_cst(1);
    return settle_retired(s, f);
}

// Clears the ghost and the discarded bit of an absent page, which is being dropped.
inline void forget(Segment& s, u32 page) {
    change_entry(s.entries[page], [](u64 e) { return entry::state(e) == ABSENT ? (e & entry::RING) | ABSENT : e; });
}

// ---- move --------------------------------------------------------------------

// Moves a page from frame `f` to `g`, which is BUSY(me), by publishing the same content. False: the page cannot be
// moved now, and `g` is still BUSY(me). True: `f` is BUSY(me) if `ours`, else RETIRED until its last reader unpins it.
inline bool move_page(Segment& s, Intent& intent, u32 f, u32 g, bool& ours) {
    EntryLook look(s);
    u64 w = s.frames[f].word.load_acquire();
    u32 page = frame::page(w);
    if (frame::state(w) != LIVE || !s.has_page(page)) return false;
    u64 e = s.entries[page].load_acquire();
    if (!entry::is_resident_in(e, f) || entry::owner(e) || entry::flusher(e) || any_pin(s, f)) return false;
    if (!s.entries[page].cas_seq_cst(e, entry::with_owner(e, s.me))) return false;
    BP_POINT("move.owned");
    prim::copy_page(s.page_data(g), s.page_data(f), s.g.page_size);
    FrameSlot &to = s.frames[g], &from = s.frames[f];
    to.lsn.store_relaxed(from.lsn.load_relaxed());
    to.rec_lsn.store_relaxed(from.rec_lsn.load_relaxed());
    to.touched.store_relaxed(from.touched.load_relaxed());
    to.count.store_relaxed(from.count.load_relaxed());
    to.tag.store_relaxed(from.tag.load_relaxed());
    to.mark.store_relaxed(from.mark.load_relaxed());
    ours = swap_frame(s, intent, page, f, g, 0);
    end_write(s, page);
    s.counters().compacted_pages.add_relaxed(1);
    return true;
}

}  // namespace bp
