// Blocks: the memory of objects.
//
//   NONE, FREE -> BUSY(me)   take_block     under the lock; its memory is counted before the kernel gives it
//   BUSY(me)   -> LOG        open_log       under the lock
//   BUSY(me)   -> LARGE      publish        under the lock, with the entry (object_write.h)
//   LOG, LARGE -> DOOMED     doom           under the lock, when its last record is dead
//   DOOMED     -> FREE       doom, settle   under the lock, when no client pins it
//   FREE       -> BUSY(me) -> FREE  strip   its memory is given back to the kernel
//   BUSY(c)    -> BUSY(me) -> FREE  reap    of a dead client c: the memory of the whole block is given back, because
//                                           it is not known which part of the block has memory
//   BUSY(me)   -> DOOMED     leave_block    without the lock, by a client that cannot get it: the next owner of the
//                                           lock frees the block (sweep_locked)
//
// ObjectsHeader::used is the sum of the memory of all blocks. At every moment it is an upper bound of what the kernel
// has given, because it is raised before a plug and lowered after a punch.
#pragma once

#include "protocol/objects.h"

namespace bp {

inline bool lock_objects(Segment& s, bool interruptible = true);  // object_index.h: it may have to rebuild
inline bool lock_objects_briefly(Segment& s);
inline void unlock_objects(Segment& s) {
    BP_POINT("objects.unlock");
    release(s, s.header->objects);
}

// How many OS pages the objects may use now.
inline u64 object_budget(Segment& s) {
    u32 granted = loan::granted(s.header->loan.load_seq_cst()), budget = s.header->budget_frames.load_relaxed();
    return u64(granted < budget ? granted : budget) * (s.g.page_size / s.g.os_page);
}
inline u64 os_pages(Segment& s, u64 bytes) { return (bytes + s.g.os_page - 1) / s.g.os_page; }

inline u32 class_of(Segment& s, u64 bytes) {
    u32 cls = bytes <= 1 ? 0 : 64 - u32(__builtin_clzll(bytes - 1));
    u32 least = u32(__builtin_ctz(s.g.os_page));
    return cls < least ? least : cls;
}

// ---- under the lock --------------------------------------------------------------

inline void push_block(Segment& s, u32 b) {
    if (!is_whole_block(s, b)) return;  // damaged: its class names no list
    ObjectBlock& k = s.objects.blocks[b];
    u32 cls = block::size_class(k.word.load_relaxed());
    ObjectsHeader& h = *s.objects.header;
    Atomic<u32>& list = k.memory.load_relaxed() ? h.free_full[cls] : h.free_empty[cls];
    k.next.store_relaxed(list.load_relaxed());
    list.store_relaxed(b + 1);
}

// Takes the first block from a list of free blocks of a class. Returns NONE if the list is empty, or damaged.
inline u32 pop_block(Segment& s, Atomic<u32>& list, u32 cls) {
    u32 n = list.load_relaxed();
    if (!n || !has_block(s, n - 1)) return NONE;
    ObjectBlock& k = s.objects.blocks[n - 1];
    u64 w = k.word.load_relaxed();
    bool whole = block::state(w) == BLOCK_FREE && block::size_class(w) == cls && is_whole_block(s, n - 1);
    if (!whole || !is_in_order(s, n - 1)) return NONE;  // damaged
    list.store_relaxed(k.next.load_relaxed());
    return n - 1;
}

inline void free_block_locked(Segment& s, u32 b) {
    ObjectBlock& k = s.objects.blocks[b];
    k.live.store_relaxed(0);
    k.filled.store_relaxed(0);
    k.word.store_release(block::word(BLOCK_FREE, block::size_class(k.word.load_relaxed())));
    push_block(s, b);
}

// Makes a block DOOMED, all of whose records are dead: it becomes FREE now, or when its last pin is released.
inline void doom(Segment& s, u32 b) {
    ObjectsHeader& h = *s.objects.header;
    ObjectBlock& k = s.objects.blocks[b];
    u64 w = k.word.load_relaxed();
    if (block::state(w) == BLOCK_LOG) h.log_blocks.store_relaxed(h.log_blocks.load_relaxed() - 1);
    k.word.store_seq_cst(block::word(BLOCK_DOOMED, block::size_class(w)));
    if (!any_object_pin(s, b)) free_block_locked(s, b);
}

// Counts one record of a block as dead.
inline void drop_record(Segment& s, u32 b, u64 bytes) {
    if (!has_block(s, b)) return;  // the place of an entry is damaged
    ObjectsHeader& h = *s.objects.header;
    ObjectBlock& k = s.objects.blocks[b];
    u32 units = u32(bytes / 16), live = k.live.load_relaxed();
    bool large = block::state(k.word.load_relaxed()) == BLOCK_LARGE;
    k.live.store_relaxed(large || live < units ? 0 : live - units);
    if (!large) h.log_live.store_relaxed(h.log_live.load_relaxed() - units);
    if (!k.live.load_relaxed() && h.open.load_relaxed() != b + 1) doom(s, b);
}

// Counts the record at this place as one of a live object.
inline void add_record(Segment& s, u32 b, u64 bytes) {
    ObjectsHeader& h = *s.objects.header;
    ObjectBlock& k = s.objects.blocks[b];
    u64 w = k.word.load_relaxed();
    u32 cls = block::size_class(w);
    if (block::state(w) == BLOCK_BUSY || block::state(w) == BLOCK_LARGE) {
        k.word.store_release(block::word(BLOCK_LARGE, cls));
        k.live.store_relaxed(1);
        return;
    }
    if (block::state(w) == BLOCK_DOOMED) {  // its other records have died, but our pin has kept the block
        k.word.store_release(block::word(BLOCK_LOG, cls));
        h.log_blocks.store_relaxed(h.log_blocks.load_relaxed() + 1);
    }
    k.live.store_relaxed(k.live.load_relaxed() + u32(bytes / 16));
    h.log_live.store_relaxed(h.log_live.load_relaxed() + bytes / 16);
}

// ---- pins, without the lock ---------------------------------------------------

// Asks the next owner of the lock, in any process, for a sweep, because we cannot get the lock.
inline void leave_to_sweep(Segment& s) { s.objects.header->to_sweep.store_seq_cst(1); }

// Frees a DOOMED block that no client pins any more.
inline void settle_block(Segment& s, u32 b) {
    if (!lock_objects_briefly(s)) return leave_to_sweep(s);
    if (block::state(s.objects.blocks[b].word.load_relaxed()) == BLOCK_DOOMED && !any_object_pin(s, b))
        free_block_locked(s, b);
    unlock_objects(s);
}

// Releases a pin of ours. Returns true if it was our last one on a DOOMED block: then the caller settles the block.
inline bool unpin_block(Segment& s, u32 b) {
    return s.objects.my_pins[b].sub_seq_cst(1) == 1 &&
           block::state(s.objects.blocks[b].word.load_seq_cst()) == BLOCK_DOOMED;
}
// Whether our row has a pin on the block. A forked child whose row could not grow has its pins in its parent's row.
inline bool may_unpin(Segment& s, u32 b) {
    Objects& o = s.objects;
    if (b >= o.row_ready) read_doubled(o.header->rows_ready[s.me], o.at.max_blocks, o.row_ready);
    return b < o.row_ready && o.my_pins[b].load_relaxed();
}
inline void unpin_and_settle(Segment& s, u32 b) {
    if (unpin_block(s, b)) settle_block(s, b);
}

// Frees the DOOMED blocks that no client pins any more. They are left if the client with the last pin died before it
// could free them, or could not get the lock. It also makes log pages without live records DOOMED, and counts the
// memory of all blocks again.
inline void sweep_locked(Segment& s) {
    ObjectsHeader& h = *s.objects.header;
    h.to_sweep.store_seq_cst(0);
    u64 used = 0;
    for (u32 b = 0, n = h.blocks_high.load_relaxed(); b < n && has_block(s, b); b++) {
        ObjectBlock& k = s.objects.blocks[b];
        BlockState state = block::state(k.word.load_acquire());
        bool dead = state == BLOCK_LOG && !k.live.load_relaxed() && h.open.load_relaxed() != b + 1;
        if (dead) doom(s, b);
        else if (state == BLOCK_DOOMED && !any_object_pin(s, b)) free_block_locked(s, b);
        if (is_whole_block(s, b)) used += memory_pages(s, b);
    }
    h.used.store_relaxed(used);
}
inline bool sweep_blocks(Segment& s) {
    if (!lock_objects(s, false)) return false;
    sweep_locked(s);
    unlock_objects(s);
    return true;
}

// ---- taking a block, and giving memory back ------------------------------------------

// The place of block `n`, the first one that was never used: `at` is the end of block n - 1. The header has the end,
// too, and the larger one is used in case the other is damaged. Returns false if block n is in use, or block n - 1 is
// damaged.
inline bool place_block(Segment& s, u32 n, u64& at) {
    at = s.objects.header->data_used.load_relaxed();
    if (block::state(s.objects.blocks[n].word.load_relaxed()) != BLOCK_NONE) return false;
    if (n == 0) return true;
    const ObjectBlock& last = s.objects.blocks[n - 1];
    u64 w = last.word.load_relaxed();
    if (block::state(w) == BLOCK_NONE || !is_whole_block(s, n - 1)) return false;
    at = std::max(at, last.at.load_relaxed() + block_bytes(w) / s.g.os_page);
    return true;
}

// Takes a block of a class, under the lock: it becomes BUSY(me). Returns NONE if there is none; `grow`: because the
// table of blocks needs memory for one more.
inline u32 claim_block(Segment& s, u32 cls, bool& grow) {
    ObjectsHeader& h = *s.objects.header;
    u32 b = pop_block(s, h.free_full[cls], cls);
    if (b == NONE) b = pop_block(s, h.free_empty[cls], cls);
    if (b == NONE) {
        u32 n = h.blocks_high.load_relaxed();
        u64 pages = (u64(1) << cls) / s.g.os_page, at;
        u64 room = (s.objects.at.end - s.objects.at.data_at) / s.g.os_page;
        grow = !has_block(s, n);
        if (grow || pages > room || !place_block(s, n, at) || at > room - pages) return NONE;
        ObjectBlock& k = s.objects.blocks[n];
        k.at.store_relaxed(at);
        k.memory.store_relaxed(0);
        h.blocks_high.store_relaxed(n + 1);  // first: a reaper looks for BUSY blocks below it, without the lock
        k.word.store_release(block::word(BLOCK_BUSY, cls, s.me));
        BP_POINT("block.new");
        h.data_used.store_relaxed(at + pages);
        return n;
    }
    s.objects.blocks[b].word.store_release(block::word(BLOCK_BUSY, cls, s.me));
    return b;
}

// Sets the number of OS pages of memory of a BUSY(me) block, and adjusts the sum. Under the lock.
inline void count_memory(Segment& s, u32 b, u64 pages) {
    ObjectsHeader& h = *s.objects.header;
    ObjectBlock& k = s.objects.blocks[b];
    u64 more = h.used.load_relaxed() + pages, had = memory_pages(s, b);
    h.used.store_relaxed(more > had ? more - had : 0);
    k.memory.store_relaxed(u32(pages));
}

// The same, after a part of the block was punched. It takes the lock; if it cannot, the next sweep adjusts the sum.
inline void count_less_memory(Segment& s, u32 b, u64 pages) {
    if (lock_objects_briefly(s)) {
        count_memory(s, b, pages);
        unlock_objects(s);
    } else {
        s.objects.blocks[b].memory.store_relaxed(u32(pages));
        leave_to_sweep(s);
    }
}

// Gives up a BUSY(me) block without the lock. No client pins it, so the next sweep frees it.
inline void leave_block(Segment& s, u32 b) {
    Atomic<u64>& word = s.objects.blocks[b].word;
    word.store_seq_cst(block::word(BLOCK_DOOMED, block::size_class(word.load_relaxed())));
    leave_to_sweep(s);
}

// Gives all memory of a BUSY(me) block back to the kernel, and frees the block. If the kernel does not take the memory,
// it remains with the block. If we cannot get the lock, the next owner of the lock frees the block. `dead`: the dead
// client that had the block: if we cannot get the lock, the block becomes BUSY(dead) again, so that another reaper
// finds it. Returns true if the memory was given back and the block is free.
inline bool strip_block(Segment& s, u32 b, u32 dead = 0) {
    ObjectBlock& k = s.objects.blocks[b];
    u64 bytes = u64(memory_pages(s, b)) * s.g.os_page, at = block_offset(s, b);
    BP_POINT("strip.busy");
    int r = -EUCLEAN;
    if (is_in_order(s, b))
        r = prim::remove(s.objects.data + at, bytes, s.has_descriptor() ? s.fd : -1, s.objects.at.data_at + at);
    BP_POINT("strip.punched");
    if (dead && !lock_objects(s, false)) {
        u64 w = k.word.load_relaxed();
        k.word.store_release(block::word(BLOCK_BUSY, block::size_class(w), dead));
        return false;
    }
    if (!dead && !lock_objects_briefly(s)) {
        if (r == 0) k.memory.store_relaxed(0);
        leave_block(s, b);
        return false;
    }
    if (r == 0) count_memory(s, b, 0);
    free_block_locked(s, b);
    unlock_objects(s);
    return r == 0;
}

// Gives memory of free blocks back to the kernel, until it is at least `pages` OS pages; the largest blocks first.
// Returns the number of OS pages.
inline u64 strip_free_blocks(Segment& s, u64 pages) {
    u64 got = 0;
    for (u32 cls = BLOCK_CLASSES; cls-- > 0 && got < pages;) {
        while (got < pages) {
            if (!s.objects.header->free_full[cls].load_relaxed()) break;
            if (!lock_objects(s)) return got;
            u32 b = pop_block(s, s.objects.header->free_full[cls], cls);
            if (b != NONE) s.objects.blocks[b].word.store_release(block::word(BLOCK_BUSY, cls, s.me));
            unlock_objects(s);
            if (b == NONE) break;
            u64 had = memory_pages(s, b);
            if (!strip_block(s, b)) return got;
            got += had;
        }
    }
    return got;
}

struct BlockRequest {
    u32 cls;
    u64 pages;        // OS pages that must have memory
    bool write;       // in: the caller gives the block memory by writing (prim::write_at), so it is not plugged here;
                      // out: false if the block has its memory already
    u64 spare = 0;    // how many pages of the budget must remain unused
    u64 missing = 0;  // out, with EXHAUSTED: how many pages the budget lacks
    u64 budget = 0;   // out, with EXHAUSTED: the budget, in OS pages
    int error = 0;    // out, with NO_SPACE
};

// Takes a block with memory: it becomes BUSY(me). EXHAUSTED: the budget has no room; the caller makes room
// (object_evict.h) and tries again. NO_SPACE: the kernel gives no memory, or the area has no addresses left.
inline Status take_block(Segment& s, BlockRequest& want, u32& out) {
    ObjectsHeader& h = *s.objects.header;
    u32 had;
    for (;;) {
        bool grow = false;
        if (!lock_objects(s)) return Status::INTERRUPTED;
        out = claim_block(s, want.cls, grow);
        if (out != NONE) break;
        unlock_objects(s);
        int r = grow ? grow_blocks(s) : -ENOSPC;
        want.error = r;
        if (r) return r == -EINTR ? Status::INTERRUPTED : Status::NO_SPACE;
    }
    had = memory_pages(s, out);
    // The budget must have room for the block's memory and for `spare` pages, unless a free log page with memory serves
    // as the spare.
    u64 budget = object_budget(s), used = h.used.load_relaxed() + (want.pages > had ? want.pages - had : 0);
    if (!h.free_full[s.objects.log_shift].load_relaxed()) used += want.spare;
    bool fits = used <= budget || (want.pages <= had && !want.spare);
    if (!fits) {
        want.missing = used - budget;
        want.budget = budget;
        free_block_locked(s, out);
    } else if (want.pages > had) {
        count_memory(s, out, want.pages);
    }
    unlock_objects(s);
    if (!fits) return Status::EXHAUSTED;
    BP_POINT("block.counted");
    u64 at = s.objects.at.data_at + block_offset(s, out), os = s.g.os_page;
    int r = 0;
    if (want.pages > had && !want.write) r = s.plug(at + had * os, (want.pages - had) * os);
    if (want.pages <= had) want.write = false;
    if (want.pages + want.pages / 8 < had) {  // the last object of the block was longer: its end is given back
        r = s.punch(at + want.pages * os, (had - want.pages) * os);
        BP_POINT("block.cut");
        if (r == 0) count_less_memory(s, out, want.pages);
        return Status::OK;  // memory that the kernel does not take back is counted as before
    }
    BP_POINT("block.plugged");
    if (r == 0) return Status::OK;
    want.error = r;
    strip_block(s, out);
    return Status::NO_SPACE;
}

}  // namespace bp
