// The area of the objects in this process: its mapping, and how much of its tables has memory.
#pragma once

#include "protocol/segment.h"

namespace bp {

inline bool has_objects(Segment& s) { return s.objects.header; }

inline bool read_doubled(const Atomic<u64>& word, u32 most, Shared<u32>& known) {
    u64 w = word.load_seq_cst();
    if (!is_doubled(w) || u32(w) > most) return false;  // damaged: keep the known figure
    known = u32(w);
    return true;
}

inline void look_at_objects(Segment& s) {
    Objects& o = s.objects;
    ObjectsHeader& h = *o.header;
    read_doubled(h.entries_ready, o.at.max_entries, o.entries_ready);
    read_doubled(h.blocks_ready, o.at.max_blocks, o.blocks_ready);
    read_doubled(h.heads_ready, o.at.max_entries, o.heads_ready);
}

// Maps the area, and its data a second time, read-only. Returns 0 or -errno.
inline int map_object_area(Segment& s, u64 bytes, const ObjectPlaces& p) {
    Objects& o = s.objects;
    if (!s.has_descriptor()) return -EBADF;
    int fd = prim::reopen(s.fd);  // because a mapping keeps its description open, and with it our byte lock
    if (fd < 0) return fd;
    u8* at = prim::map_area(fd, p.at, bytes, prim::Access::WRITE);
    int error = errno;
    u8* data = at ? prim::map_area(fd, p.data_at, p.end - p.data_at, prim::Access::READ) : nullptr;
    if (at && !data) {
        error = errno;
        prim::unmap_area(at, bytes);
    }
    prim::close_file(fd);
    if (!data) return -error;
    o.base = at;
    o.read_base = data;
    return 0;
}

// Maps the area. Returns 0, -errno, or -ENOENT if the pool has no area.
inline int map_objects(Segment& s) {
    Objects& o = s.objects;
    if (o.header) return 0;
    std::lock_guard<std::mutex> guard(o.mapping);
    if (o.header) return 0;
    if (!s.header->objects_made.load_seq_cst()) return -ENOENT;
    u64 bytes = s.header->object_bytes.load_seq_cst();
    ObjectPlaces p = place_objects(s.g, bytes);
    if (!bytes) return -ENOENT;
    if (bytes % s.g.os_page || p.end <= p.data_at || bytes > u64(1) << 46) return -EUCLEAN;
    if (!prim::has_bytes(s.fd, p.end)) return -EUCLEAN;  // an access would raise SIGBUS
    if (int r = map_object_area(s, bytes, p)) return r;
    u8* at = o.base;
    o.at = p;
    o.samples = reinterpret_cast<ObjectSample*>(at + (p.samples_at - p.at));
    o.heads = reinterpret_cast<ObjectHead*>(at + (p.heads_at - p.at));
    o.entries = reinterpret_cast<ObjectEntry*>(at + (p.entries_at - p.at));
    o.blocks = reinterpret_cast<ObjectBlock*>(at + (p.blocks_at - p.at));
    o.data = at + (p.data_at - p.at);
    auto header = reinterpret_cast<ObjectsHeader*>(at);
    u32 shift = header->log_shift.load_acquire();
    o.log_shift = shift >= 16 && shift <= 18 ? shift : 16;
    o.header = header;
    look_at_objects(s);
    s.become_objects();
    return 0;
}

inline void unmap_objects(Segment& s) {
    Objects& o = s.objects;
    if (!o.header) return;
    o.header = nullptr;
    prim::unmap_area(o.base, o.at.end - o.at.at);
    prim::unmap_area(o.read_base, o.at.end - o.at.data_at);
}

// Gives the memory beyond the counts of the tables back to the kernel: a client has died, or failed, while it made the
// area or extended a table. The caller holds the growth lock.
inline void repair_object_tables(Segment& s) {
    u64 bytes = s.header->object_bytes.load_seq_cst();
    if (!bytes) return;
    ObjectPlaces p = place_objects(s.g, bytes);
    if (!s.header->objects_made.load_seq_cst()) {
        s.punch(p.at, p.data_at - p.at);
        return;
    }
    if (map_objects(s) != 0) return;
    look_at_objects(s);
    Objects& o = s.objects;
    auto cut = [&](u64 at, u64 used, u64 end) {
        used = round_up(used, s.g.os_page);
        if (at + used < end) s.punch(at + used, end - at - used);
    };
    cut(p.heads_at, o.heads_ready * u64(sizeof(ObjectHead)), p.entries_at);
    cut(p.entries_at, o.entries_ready * u64(sizeof(ObjectEntry)), p.blocks_at);
    cut(p.blocks_at, o.blocks_ready * u64(sizeof(ObjectBlock)), p.rows_at);
    for (u32 c = 1, slots = s.slots(); c <= slots; c++) {
        Shared<u32> n;
        if (!read_doubled(o.header->rows_ready[c], p.max_blocks, n)) continue;
        u64 row = p.rows_at + (c - 1) * p.row_bytes;
        cut(row, row_bytes(s.g, n), row + p.row_bytes);
    }
}

}  // namespace bp
