// Checks the invariants of the objects, under their lock. Meanwhile only pins change, and the records and blocks that
// clients are filling.
#pragma once

#include "protocol/check.h"
#include "protocol/object_read.h"

namespace bp {

inline void check_blocks(Segment& s, Findings& out) {
    Objects& o = s.objects;
    ObjectsHeader& h = *o.header;
    u64 used = 0;
    for (u32 b = 0, n = h.blocks_high.load_relaxed(); b < n && has_block(s, b); b++) {
        ObjectBlock& k = o.blocks[b];
        u64 w = k.word.load_acquire();
        used += k.memory.load_relaxed();
        if (block::state(w) == BLOCK_NONE || block::state(w) > BLOCK_DOOMED || !is_whole_block(s, b))
            out.say("block %u: its word is damaged", b);
        if (block::state(w) == BLOCK_BUSY && !is_live_client(s, block::owner(w)))
            out.say("block %u: BUSY for client %u, which is gone", b, block::owner(w));
        if (block::state(w) == BLOCK_DOOMED && !any_object_pin(s, b))
            out.say("block %u: DOOMED, and nobody pins it", b);
        if (k.memory.load_relaxed() > block_bytes(w) / s.g.os_page) out.say("block %u: more memory than room", b);
    }
    if (used != h.used.load_relaxed())
        out.say("objects: %llu OS pages have memory, and %llu are counted", (unsigned long long)used,
                (unsigned long long)h.used.load_relaxed());
    u64 w = s.header->loan.load_seq_cst();
    if (loan::granted(w) > loan::lent(w)) out.say("objects: more is granted than is lent");
    if (frames_for(s, used) > loan::granted(w)) out.say("objects: they use more than is granted");
}

inline void check_object_entries(Segment& s, Findings& out) {
    Objects& o = s.objects;
    u32 live = 0, counts[CACHES] = {};
    u64 bytes[CACHES] = {};
    for (u32 e = 0, n = o.header->entries_high.load_relaxed(); e < n && has_entry(s, e); e++) {
        ObjectEntry& entry = o.entries[e];
        EntryKind state = object::state(entry.word.load_relaxed());
        if (state == OBJECT_FREE) continue;
        live++;
        if (state == OBJECT_CHANGING || !is_whole_entry(s, entry)) {
            out.say("object %u: it is not whole", e);
            continue;
        }
        u32 owner = entry.owner.load_relaxed();
        if ((state == OBJECT_LOADING || owner) && !is_live_client(s, owner))
            out.say("object %u: client %u loads it, which is gone", e, owner);
        u64 size = record_bytes(entry.key_bytes.load_relaxed(), entry.value.load_relaxed());
        counts[cache_slot(entry.cache.load_relaxed())]++;
        bytes[cache_slot(entry.cache.load_relaxed())] += size;
        u64 place = entry.place.load_relaxed();
        const u8* record = o.read_base + block_offset(s, object::block(place)) + object::offset(place);
        ObjectKey key{record + sizeof(RecordHead), entry.key_bytes.load_relaxed(), entry.cache.load_relaxed(),
                      entry.hash.load_relaxed()};
        if (hash_bytes(key.at, key.bytes, key.cache) != key.hash) out.say("object %u: its key has another hash", e);
        else if (find_locked(s, key) != e) out.say("object %u: its key does not lead to it", e);
    }
    if (live != o.header->live.load_relaxed())
        out.say("objects: %u are live, and %u are counted", live, o.header->live.load_relaxed());
    for (u32 i = 0; i < CACHES; i++)
        if (counts[i] != cache_of(s, i).count.load_relaxed() || bytes[i] != cache_of(s, i).bytes.load_relaxed())
            out.say("cache %u: it has %u objects, and %u are counted", i, counts[i],
                    cache_of(s, i).count.load_relaxed());
}

// Whether no client waits for the lock to settle a DOOMED block, or to adjust the sum of memory.
inline bool are_blocks_settled(Segment& s) {
    u64 used = 0;
    bool settled = true;
    for (u32 b = 0, n = s.objects.header->blocks_high.load_relaxed(); b < n && has_block(s, b); b++) {
        used += s.objects.blocks[b].memory.load_relaxed();
        bool doomed = block::state(s.objects.blocks[b].word.load_acquire()) == BLOCK_DOOMED;
        settled = settled && (!doomed || any_object_pin(s, b));
    }
    return settled && used == s.objects.header->used.load_relaxed();
}
constexpr u32 SETTLE_TRIES = 50;

// Adds findings about the objects to those of a check. Clients that need the lock of the objects wait meanwhile.
inline Status check_objects(Segment& s, Findings& out) {
    int r = map_objects(s);
    if (r == -ENOENT) return Status::OK;
    if (r) {
        out.say("objects: they cannot be mapped (errno %d)", -r);
        return Status::OK;
    }
    for (u32 tries = 0;; tries++) {
        if (!lock_objects(s)) return Status::INTERRUPTED;
        if (tries == SETTLE_TRIES || are_blocks_settled(s)) break;
        unlock_objects(s);
        prim::nap(1'000'000);
    }
    check_blocks(s, out);
    check_object_entries(s, out);
    unlock_objects(s);
    for (u32 c = 1, slots = s.slots(); c <= slots; c++) {
        if (is_live_client(s, c)) continue;
        u64 w = s.objects.header->rows_ready[c].load_seq_cst();
        for (u32 b = 0; is_doubled(w) && b < u32(w) && u32(w) <= s.objects.at.max_blocks; b++)
            if (s.object_pins(c)[b].load_seq_cst() && !is_live_client(s, c))
                out.say("block %u: client %u pins it, which is gone", b, c);
    }
    return out.lost ? Status::NO_MEMORY : Status::OK;
}

}  // namespace bp
