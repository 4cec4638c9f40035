// Publishing several pages as one: a reader sees the new versions of all of them or of none, and so does the reaper of
// a client that died meanwhile.
//
// The pages form a group; this client is the writer of each. Their entries become PENDING one after the other. A reader
// of a PENDING page reads the *group word* of the publishing operation, which says which version is current
// (pin_pending in pin.h). So one store to that word publishes all pages. It is the commit point.
//
//   frame   BUSY(me) -> JOINING(f, me, op)            the new version of the page in frame f, filled
//   entry   RESIDENT(f, writer) -> PENDING(g, writer, op)
//   group   OPEN -> COMMITTED                         the commit point
//   frame   JOINING(f, me, op) -> LIVE(page)          this and the next two steps, page by page, as in swap_frame
//   entry   PENDING(g, writer, op) -> RESIDENT(g, dirty, writer)
//   frame   LIVE(page) -> RETIRED(page)               the old version
//   group   COMMITTED -> NO_GROUP                     no entry is PENDING any more; then the writer fields are released
//
// After a death, before the commit point:
//   entry   PENDING(g, c, op) -> RESIDENT(f, dirty, c)   the old version remains, which all readers have seen so far
//   frame   JOINING(f, c, op) -> BUSY(c)
// After the commit point the reaper continues where the client stopped. The words of the new frames hold all that it
// needs. The page that was being settled may have a new frame that is LIVE already; that page is in the intent.
#pragma once

#include "protocol/page.h"

namespace bp {

// A page of a group. Its writer is this client.
struct GroupPage {
    u32 page;
    const void* bytes;
    u64 lsn;
    u32 frame = NONE;       // of the new version
    u32 old = NONE;         // of the version that it replaces
    bool old_ours = false;  // `old` is BUSY(me) now
};

// Fills the frame of a new version. Returns false if the segment is damaged.
inline bool fill_version(Segment& s, GroupPage& p) {
    u64 e = s.entries[p.page].load_acquire();
    p.old = entry::frame(e);
    if (entry::state(e) != RESIDENT || entry::owner(e) != s.me || !s.has_frame(p.old)) return false;
    prim::copy_page(s.page_data(p.frame), p.bytes, s.g.page_size);
    FrameSlot &to = s.frames[p.frame], &from = s.frames[p.old];
    // If the client dies before the commit point, the old version remains, and is marked dirty even if its store has
    // it. The LSN written here says then that no change below the group's LSN is missing in the store.
    if (!(e & entry::DIRTY)) from.rec_lsn.store_relaxed(p.lsn);
    to.lsn.store_relaxed(p.lsn);
    to.rec_lsn.store_relaxed(from.rec_lsn.load_relaxed() ? from.rec_lsn.load_relaxed() : p.lsn);
    to.count.store_relaxed(from.count.load_relaxed());
    to.tag.store_relaxed(from.tag.load_relaxed());
    to.mark.store_relaxed(from.mark.load_relaxed());
    s.touch(p.frame, s.tick());
    return true;
}

// Completes one page of a committed group: its entry becomes RESIDENT in the frame `g` of the new version, and `f` is
// retired. The client or its reaper calls it. The writer field is released after the intent has ended, as in a publish.
inline void settle_page(Segment& s, Intent& intent, u32 page, u32 f, u32 g) {
    intent.frame.store_relaxed(g);
    intent.old.store_relaxed(f);
    intent.page.store_release(page);
    BP_POINT("group.settling");
    s.frames[g].word.store_seq_cst(frame::live(page));
    BP_POINT("group.live");
    change_entry(s.entries[page], [g](u64 e) { return entry::is_pending(e) ? entry::settled(e, g) : e; });
    BP_POINT("group.swapped");
    s.frames[f].word.store_seq_cst(frame::retired(page));
    BP_POINT("group.retired");
}

// Publishes new versions of pages whose writer is this client, all or none, and releases the writer fields. If not OK,
// nothing is published, no frame is kept while the caller waits for one, and this client is still the writer.
inline Status publish_pages(Segment& s, GroupPage* pages, u32 n, FrameRequest& want) {
    OpSlot op(s);
    if (!op.valid()) return op.why_not();
    Intent& intent = op.intent();
    u32 number = op.number() - 1, taken = 0;
    Status status = Status::OK;
    while (taken < n && status == Status::OK) {
        GroupPage& p = pages[taken];
        status = take_frame(s, intent, want, p.frame);
        if (status == Status::OK && (taken++, !fill_version(s, p))) status = Status::CORRUPT;
    }
    if (status != Status::OK) {
        while (taken > 0) free_frame(s, pages[--taken].frame);
        return status;
    }
    Atomic<u64>& decides = s.client().groups[number];
    u64 word = group::next(decides.load_relaxed());
    intent.page.store_relaxed(NONE);
    decides.store_seq_cst(word);
    intent.op.store_release(u32(Op::PUBLISH_MANY));
    s.claims.add();
    BP_POINT("group.open");
    for (GroupPage* p = pages; p < pages + n; p++) {
        s.frames[p->frame].word.store_seq_cst(frame::joining(s.me, number, p->old));
        BP_POINT("group.joined");
        change_entry(s.entries[p->page], [&](u64 e) { return entry::pending(e, p->frame, number); });
        BP_POINT("group.pending");
    }
    decides.store_seq_cst(group::with_state(word, group::COMMITTED));
    BP_POINT("group.committed");
    for (GroupPage* p = pages; p < pages + n; p++) {
        settle_page(s, intent, p->page, p->old, p->frame);
        p->old_ours = settle_retired(s, p->old);
        intent.page.store_release(NONE);
        BP_POINT("group.settled");
    }
    decides.store_seq_cst(group::with_state(word, group::NO_GROUP));
    intent.op.store_release(u32(Op::NONE));
    BP_POINT("group.done");
    for (GroupPage* p = pages; p < pages + n; p++) end_write(s, p->page);
    for (GroupPage* p = pages; p < pages + n; p++) {
        if (p->old_ours) keep_or_free(s, p->old);
        probe_publish(s, p->page);
    }
    s.counters().publishes.add_relaxed(n);
    return Status::OK;
}

// Ends the group of a dead client. The writer fields of its pages are still set, so no other client changes their
// frames. A reaper may die at any step here: the group word keeps its state until no frame is JOINING.
inline void reap_group(Segment& s, u32 c, Intent& intent) {
    u32 number = u32(&intent - s.clients[c - 1].intents);
    Atomic<u64>& decides = s.clients[c - 1].groups[number];
    u64 word = decides.load_seq_cst();
    bool committed = group::state(word) == group::COMMITTED;
    auto is_of_group = [&](u32 page, u32 g) {
        u64 e = s.has_page(page) ? s.entries[page].load_seq_cst() : 0;
        return entry::is_pending(e) && entry::frame(e) == g && entry::owner(e) == c && entry::op(e) == number;
    };
    auto finish = [&](u32 page, u32 f, u32 g) {
        settle_page(s, intent, page, f, g);
        intent.page.store_release(NONE);
    };
    // 1. The page that was being settled. Its entry is PENDING, or names the new frame already; `old` is LIVE until it
    // is RETIRED.
    u32 page = intent.page.load_acquire(), g = intent.frame.load_relaxed(), f = intent.old.load_relaxed();
    if (committed && s.has_page(page) && s.has_frame(g) && s.has_frame(f) && g != f) {
        u64 e = s.entries[page].load_seq_cst(), live = frame::live(page);
        if (is_of_group(page, g)) finish(page, f, g);
        else if (entry::is_resident_in(e, g)) s.frames[f].word.cas_seq_cst(live, frame::retired(page));
    }
    intent.page.store_release(NONE);
    // 2. The other pages: each new frame names the old frame, and the old frame names the page.
    s.look_at_ready();
    for (g = 0; g < s.ready; g++) {
        u64 w = s.frames[g].word.load_acquire();
        if (frame::state(w) != JOINING || frame::client(w) != c || frame::op(w) != number) continue;
        u64 old = s.has_frame(frame::page(w)) ? s.frames[frame::page(w)].word.load_acquire() : 0;
        page = frame::page(old);
        bool pending = frame::state(old) == LIVE && is_of_group(page, g);
        if (pending && committed) {
            finish(page, frame::page(w), g);
            continue;
        }
        if (pending)
            settle_entry(s, page, [&](u64 e) { return entry::is_pending(e) ? entry::settled(e, frame::page(w)) : e; });
        s.frames[g].word.cas_seq_cst(w, frame::busy(c));
    }
    decides.store_seq_cst(group::with_state(word, group::NO_GROUP));
}

}  // namespace bp
