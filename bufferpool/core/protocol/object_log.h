// Log pages: the blocks that small records share. All clients fill the same log page, from the front: under the lock, a
// client takes a part of the page and pins the page; then it copies its record to that part without the lock. If it
// dies before it publishes the record, the part is dead space.
#pragma once

#include "protocol/object_index.h"

namespace bp {

struct Placed {
    u32 block = NONE;
    u64 offset = 0;      // in the block
    bool large = false;  // true: a block of its own, BUSY(me); false: a part of a log page, which we pin
    bool write = false;  // the caller gives the block memory by writing
};

inline RecordHead* record_at(Segment& s, u32 b, u64 offset) {
    return reinterpret_cast<RecordHead*>(s.objects.data + block_offset(s, b) + offset);
}

// The log page that is being filled, +1. 0: there is none, or the word that names it, or the page's own, is damaged.
// Under the lock.
inline u32 open_log_page(Segment& s) {
    u32 n = s.objects.header->open.load_relaxed();
    if (!n || !has_block(s, n - 1) || !is_whole_block(s, n - 1) || !is_in_order(s, n - 1)) return 0;
    return block::state(s.objects.blocks[n - 1].word.load_relaxed()) == BLOCK_LOG ? n : 0;
}

// Makes a BUSY(me) block the log page that is filled next, unless another client has opened one meanwhile. Returns
// false if the lock could not be taken; then the block is given up.
inline bool open_log(Segment& s, u32 b, u64 wanted) {
    ObjectsHeader& h = *s.objects.header;
    if (!lock_objects(s)) {
        leave_block(s, b);
        return false;
    }
    u32 before = open_log_page(s);
    bool room = before && s.objects.blocks[before - 1].filled.load_relaxed() + wanted <= log_bytes(s);
    if (room) {
        free_block_locked(s, b);
    } else {
        ObjectBlock& k = s.objects.blocks[b];
        k.live.store_relaxed(0);
        k.filled.store_relaxed(0);
        k.word.store_release(block::word(BLOCK_LOG, s.objects.log_shift));
        h.log_blocks.store_relaxed(h.log_blocks.load_relaxed() + 1);
        h.open.store_relaxed(b + 1);
        BP_POINT("log.opened");
        if (before && !s.objects.blocks[before - 1].live.load_relaxed()) doom(s, before - 1);
    }
    unlock_objects(s);
    return true;
}

// Takes room for a record of `bytes` bytes in a log page, and pins the page.
inline Status reserve_in_log(Segment& s, u64 bytes, BlockRequest& want, Placed& out) {
    Objects& o = s.objects;
    for (;;) {
        if (int r = ready_row(s)) return want.error = r, r == -EINTR ? Status::INTERRUPTED : Status::NO_SPACE;
        if (!lock_objects(s)) return Status::INTERRUPTED;
        u32 n = open_log_page(s);
        bool ready = !n || n - 1 < o.row_ready;
        if (n && ready && o.blocks[n - 1].filled.load_relaxed() + bytes <= log_bytes(s)) {
            u64 at = o.blocks[n - 1].filled.load_relaxed();
            o.my_pins[n - 1].add_seq_cst(1);
            BP_POINT("log.pinned");
            RecordHead* record = record_at(s, n - 1, at);
            record->entry = 0;
            record->units = u32(bytes / 16);
            o.blocks[n - 1].filled.store_release(u32(at + bytes));
            unlock_objects(s);
            out = {n - 1, at, false, false};
            return Status::OK;
        }
        unlock_objects(s);
        if (!ready) continue;  // our row of pins is too short: ready_row() extends it
        u32 b;
        want.cls = o.log_shift;
        want.pages = log_bytes(s) / s.g.os_page;
        want.write = false;
        if (Status r = take_block(s, want, b); r != Status::OK) return r;
        if (!open_log(s, b, bytes)) return Status::INTERRUPTED;
    }
}

}  // namespace bp
