// Objects: how their area is made, how its tables grow, and whether a client pins a block. (Blocks: object_blocks.h;
// the hash table and the lock: object_index.h; values: object_write.h; eviction: object_evict.h; dead clients:
// object_reap.h.)
//
// Every change is made under the lock of the objects, except for pins, and for what a client that cannot get the lock
// leaves to its next owner. If the owner of the lock dies, the client that inherits it rebuilds everything that the
// lock protects, from the entries and the words of the blocks (rebuild_objects). A client that has the lock copies no
// values, makes no system call and calls no Python. A hit takes no lock:
//
//   reader   reads the entry · counts its pin on the block · reads the entry's word again
//   remover  changes the entry's word · reads the pins on the block
//
// At least one of the two sees the other (Dekker's algorithm; rule 3 uses it for pages). Either the reader takes its
// pin back, or the block becomes DOOMED and keeps its bytes until its last pin is released.
#pragma once

#include "protocol/growth.h"

namespace bp {

// ---- the area ------------------------------------------------------------------

// The bytes of the largest area that this process can map twice, because its address space may be limited.
inline u64 object_bytes_for(Segment& s) {
    for (u32 less = 0;; less++) {
        u64 bytes = object_room(s.g, less);
        u8* room = prim::map_area(-1, 0, 2 * bytes, prim::Access::ROOM);
        if (room) prim::unmap_area(room, 2 * bytes);
        if (room || less == 32) return bytes;
    }
}

// Makes the area, for a pool's first cache, and maps it. If this client dies in between, the next owner of the growth
// lock gives the memory back to the kernel (repair_growth).
inline int make_objects(Segment& s, u32 log_shift) {
    int r = map_objects(s);
    if (r != -ENOENT) return r;
    if (!lock_growth(s)) return -EINTR;
    if (!s.header->objects_made.load_seq_cst()) {
        if (!s.header->object_bytes.load_seq_cst()) s.header->object_bytes.store_seq_cst(object_bytes_for(s));
        BP_POINT("objects.sized");
        ObjectPlaces p = place_objects(s.g, s.header->object_bytes.load_seq_cst());
        ObjectsHeader h{};
        h.log_shift.store_relaxed(log_shift);
        h.buckets.store_relaxed(FIRST_BUCKETS);
        h.heads_ready.store_relaxed(doubled(FIRST_BUCKETS));
        r = s.has_descriptor() ? prim::extend(s.fd, p.end) : -EBADF;
        if (r == 0) r = prim::write_at(s.fd, &h, objects_header_bytes(s.g), p.at);
        BP_POINT("objects.written");
        u64 first = p.heads_at + round_up(FIRST_BUCKETS * sizeof(ObjectHead), s.g.os_page);
        if (r == 0) r = s.plug(p.samples_at, first - p.samples_at);
        BP_POINT("objects.plugged");
        if (r == 0) s.header->objects_made.store_seq_cst(1);
        else repair_growth(s);
    } else {
        r = 0;
    }
    release(s, s.header->growth);
    return r ? r : map_objects(s);
}

// ---- the bounds of what the tables say ---------------------------------------------

inline bool has_entry(Segment& s, u32 e) {
    if (e < s.objects.entries_ready) return true;
    look_at_objects(s);
    return e < s.objects.entries_ready;
}
inline bool has_block(Segment& s, u32 b) {
    if (b < s.objects.blocks_ready) return true;
    look_at_objects(s);
    return b < s.objects.blocks_ready;
}

inline u64 log_bytes(Segment& s) { return u64(1) << s.objects.log_shift; }
inline u64 block_bytes(u64 word) { return u64(1) << block::size_class(word); }
inline u64 block_offset(Segment& s, u32 b) { return s.objects.blocks[b].at.load_relaxed() * s.g.os_page; }
// Whether a block's class is valid, and the block lies within the area. If not, its fields are damaged.
inline bool is_whole_block(Segment& s, u32 b) {
    u64 w = s.objects.blocks[b].word.load_acquire();
    u32 cls = block::size_class(w);
    u64 room = s.objects.at.end - s.objects.at.data_at;
    return cls < BLOCK_CLASSES && block_offset(s, b) < room && block_bytes(w) <= room - block_offset(s, b);
}

// Whether a block lies between its neighbours: blocks lie in the order of their numbers. If it does not, its place or
// that of a neighbour is damaged, and a write to it, or a punch, might destroy another value.
inline bool is_in_order(Segment& s, u32 b) {
    auto end = [&](u32 n) {
        const ObjectBlock& k = s.objects.blocks[n];
        return k.at.load_relaxed() + block_bytes(k.word.load_relaxed()) / s.g.os_page;
    };
    if (b && is_whole_block(s, b - 1) && end(b - 1) > s.objects.blocks[b].at.load_relaxed()) return false;
    bool last = !has_block(s, b + 1) || block::state(s.objects.blocks[b + 1].word.load_relaxed()) == BLOCK_NONE;
    return last || end(b) <= s.objects.blocks[b + 1].at.load_relaxed();
}

// How many OS pages of a block may have memory: never more than the block has, even if the number is damaged.
inline u32 memory_pages(Segment& s, u32 b) {
    const ObjectBlock& k = s.objects.blocks[b];
    return u32(std::min<u64>(k.memory.load_acquire(), block_bytes(k.word.load_relaxed()) / s.g.os_page));
}

// The alignment of values of a kind in their record.
constexpr u8 ALIGNED_KIND = 0x80;
constexpr u64 alignment(u8 kind) { return kind & ALIGNED_KIND ? 64 : 16; }
inline u64 record_bytes(u64 key_bytes, u64 value) {
    return round_up(value_at(key_bytes, alignment(object::kind(value))) + object::bytes(value), 16);
}

// Records up to this size share log pages; larger ones have a block of their own.
#ifdef BP_EXPLORE
constexpr u32 LEAST_SHARES = 2;
#else
constexpr u32 LEAST_SHARES = 8;
#endif
inline u64 most_shared(Segment& s) { return log_bytes(s) / LEAST_SHARES; }

// ---- growth ---------------------------------------------------------------------

constexpr u32 LEAST_STEP = 64;

// Gives memory to more elements of a table (entries, blocks or heads): an eighth more, or LEAST_STEP. `word` counts
// them. Returns 0 or -errno; -ENOBUFS: the table has its largest size; -EINTR: the growth lock could not be taken in
// the time of the call, or not at once (`waits` is false).
inline int grow_object_table(Segment& s, Atomic<u64>& word, u64 table_at, u32 size, u32 most, bool waits = true) {
    if (!(waits ? lock_growth(s) : try_lock_growth(s))) return -EINTR;
    u64 w = word.load_seq_cst();
    u32 from = is_doubled(w) && u32(w) <= most ? u32(w) : most, unit = s.g.os_page / size;
    u64 more = from / 8 > LEAST_STEP ? from / 8 : LEAST_STEP, to = round_up(from + more, unit);
    if (to > most) to = most;
    int r = to > from ? 0 : -ENOBUFS;
    u64 first = round_up(u64(from) * size, s.g.os_page), end = round_up(to * size, s.g.os_page);
    if (r == 0 && end > first) r = s.plug(table_at + first, end - first);
    BP_POINT("objects.grown");
    if (r == 0) word.store_seq_cst(doubled(u32(to)));
    else if (r != -ENOBUFS) repair_growth(s);
    release(s, s.header->growth);
    look_at_objects(s);
    return r;
}
inline int grow_entries(Segment& s) {
    return grow_object_table(s, s.objects.header->entries_ready, s.objects.at.entries_at, sizeof(ObjectEntry),
                             s.objects.at.max_entries);
}
inline int grow_blocks(Segment& s) {
    return grow_object_table(s, s.objects.header->blocks_ready, s.objects.at.blocks_at, sizeof(ObjectBlock),
                             s.objects.at.max_blocks);
}
// It does not wait for the growth lock: with fewer heads the chains are longer, and the next value that is put tries
// again.
inline int grow_heads(Segment& s) {
    return grow_object_table(s, s.objects.header->heads_ready, s.objects.at.heads_at, sizeof(ObjectHead),
                             s.objects.at.max_entries, false);
}

// Gives memory to a client's row: to its counters, and to its pins on all present blocks, before the client's first pin
// there. A client that reads the pins on a block has changed the entry first. So if a reader's row was too short when
// it was read, the reader pins later, and then finds that the entry has changed.
inline int grow_pin_row(Segment& s, u32 c, bool interruptible = true) {
    Objects& o = s.objects;
    if (!lock_growth(s, interruptible)) return -EINTR;
    look_at_objects(s);
    Atomic<u64>& word = o.header->rows_ready[c];
    Shared<u32> had;
    read_doubled(word, o.at.max_blocks, had);
    u64 first = row_bytes(s.g, had), end = row_bytes(s.g, std::max<u32>(o.blocks_ready, 1));
    u64 row = o.at.rows_at + (c - 1) * o.at.row_bytes;
    int r = end > first ? s.plug(row + first, end - first) : 0;
    BP_POINT("objects.row");
    if (r == 0 && end > first) {
        u64 most = (end - row_bytes(s.g, 0, true)) / 4;
        word.store_seq_cst(doubled(u32(most < o.at.max_blocks ? most : o.at.max_blocks)));
    } else if (r) {
        repair_growth(s);
    }
    release(s, s.header->growth);
    return r;
}

// Extends our pin row to all present blocks. The caller does not hold the lock of the objects, because this may wait
// for the growth lock. Returns 0, -EINTR if the growth lock could not be taken, or -errno if the kernel gives no
// memory.
inline int ready_row(Segment& s) {
    Objects& o = s.objects;
    if (o.row_ready >= o.blocks_ready && o.row_ready) return 0;
    read_doubled(o.header->rows_ready[s.me], o.at.max_blocks, o.row_ready);
    if (o.row_ready >= o.blocks_ready && o.row_ready) return 0;
    int r = grow_pin_row(s, s.me);
    if (r == 0) read_doubled(o.header->rows_ready[s.me], o.at.max_blocks, o.row_ready);
    return r;
}

// ---- pins -----------------------------------------------------------------------

// Whether any client pins the block. The caller has the lock, and has changed the entry or the block first.
inline bool any_object_pin(Segment& s, u32 b) {
    Objects& o = s.objects;
    for (u32 c = 1, slots = s.slots(); c <= slots; c++) {
        u64 w = o.header->rows_ready[c].load_seq_cst();
        u32 n = is_doubled(w) ? u32(w) : 0;
        if (b < n && n <= o.at.max_blocks && s.object_pins(c)[b].load_seq_cst()) return true;
    }
    return false;
}

}  // namespace bp
