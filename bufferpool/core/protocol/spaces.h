// The directory of spaces: its lock, opening a space, and removing one.
//
//   slot   no memory -> FREE          grow_spaces, a step of them
//          FREE -> OPENING            begin_space
//          OPENING -> LIVE            finish_space: a new generation, and from then on handles of it work
//          OPENING -> FREE            the counters cannot be read
//          OPENING -> CLOSED          by the client that inherits the lock (repair_directory)
//          LIVE -> CLOSED             close_space: its handles do not work any more; needs no lock
//          CLOSED -> CLOSING -> FREE  remove_space: under the directory lock, once no page is in use
#pragma once

#include "protocol/drop.h"
#include "protocol/shrink.h"

namespace bp {

inline u64 space_pages(u64 span) { return span & PAGES_MASK; }
inline u64 space_generation(u64 span) { return span >> GENERATION_SHIFT; }
inline u64 space_span(u64 generation, u64 pages) { return generation << GENERATION_SHIFT | pages; }

// The range of entries that a space's slot names. Any of them may have memory, also from an earlier space. False: the
// slot is damaged.
inline bool entries_of(const Segment& s, const SpaceSlot& slot, u64& first, u64& n) {
    first = slot.first_entry.load_relaxed();
    n = round_up(slot.max_pages.load_relaxed(), s.g.os_page / 8);
    return first <= s.g.max_pages && n <= s.g.max_pages - first;
}

// ---- memory of entries ------------------------------------------------------------

// The range of entries of one space.
struct EntryRun {
    u64 first, end;
    u32 space;
    bool operator<(const EntryRun& other) const { return first < other.first; }
};

// The runs of all spaces for which `wanted(slot)` is true, in order. False: there is no memory for the list.
template <class Wanted>
bool entry_runs(Segment& s, Vec<EntryRun>& out, Wanted wanted) {
    u32 n = s.space_count();
    if (!out.reserve(n)) return false;
    for (u32 i = 0; i < n; i++) {
        SpaceSlot& t = s.spaces[i];
        u64 first = t.first_entry.load_relaxed();
        if (wanted(t) && !out.push({first, first + t.max_pages.load_relaxed(), i})) return false;
    }
    std::sort(out.begin(), out.end());
    return true;
}

// The run that contains a page; null: none does. The runs are in order, and do not overlap.
inline const EntryRun* run_of(const Vec<EntryRun>& runs, u64 page) {
    auto after = std::upper_bound(runs.begin(), runs.end(), EntryRun{page, 0, 0});
    return after != runs.begin() && page < after[-1].end ? after - 1 : nullptr;
}

// Can the memory of this block of entries be given back? It can if any entries have memory, no space has a part of the
// block, and no client may touch it (as far as is known before the block is ASKED, see entry_memory.h).
inline bool may_leave(Segment& s, const Vec<EntryRun>& runs, u64 block) {
    u64 first = s.g.first_entry_of(block), end = std::min(first + ENTRY_BLOCK / 8, s.g.max_pages);
    if (s.next_page(first, end) == end) return false;
    auto after = std::upper_bound(runs.begin(), runs.end(), EntryRun{end - 1, 0, 0});
    bool taken = after != runs.begin() && after[-1].end > first;
    return !taken && !are_used(s, block, 1);
}

// Gives the memory of entries that no space has, and that no client may touch, back to the kernel. Under the directory
// lock. Blocks that a client may still touch are given back by a later call: after the next removal of a space, for
// example.
inline void give_back_entries(Segment& s) {
    const Geometry& g = s.g;
    Vec<EntryRun> runs;
    bool listed = entry_runs(s, runs, [](SpaceSlot& t) { return t.state.load_acquire() != SPACE_FREE; });
    if (!listed || !lock_growth(s)) return s.removed_here.store_relaxed(1);
    u64 block = round_up(g.entries_at, ENTRY_BLOCK) / ENTRY_BLOCK, end = g.frames_at / ENTRY_BLOCK;
    for (bool more = true; more && block < end;) {
        u64 first = block;
        while (block < end && may_leave(s, runs, block)) block++;
        if (first < block) more = give_back_blocks(s, first, block - first);
        else block++;
    }
    release(s, s.header->growth);
}

// ---- removing ---------------------------------------------------------------

// Closes the space whose span was `seen`: its generation ends, so its handles do not work any more. It needs no lock.
// It is one CAS, which fails if another space has the slot by now. The next client that holds the directory lock
// removes the space.
inline void close_space(SpaceSlot& slot, u64 seen) {
    u64 generation = space_generation(seen), closed = (generation + 1) << GENERATION_SHIFT | CLOSED;
    while (!(seen & CLOSED) && space_generation(seen) == generation && !slot.span.cas_seq_cst(seen, closed)) {}
    BP_POINT("remove.closing");
}

// Drops the pages of a space and frees its slot. Needs the directory lock. False: a page could not be dropped within
// `patience` slices, or a lock could not be taken; the space remains CLOSING, and the next call continues, in any
// client.
inline bool remove_space(Segment& s, u32 index, int patience, u32& freed) {
    SpaceSlot& slot = s.spaces[index];
    OpSlot op = patience ? OpSlot(s) : OpSlot(s, OpSlot::IfFree{});
    if (!op.valid()) return false;
    close_space(slot, slot.span.load_acquire());
    slot.state.store_seq_cst(SPACE_CLOSING);
    u64 first, n;
    if (!entries_of(s, slot, first, n)) return false;
    Drop what = how_to_drop(s, slot);
    {
        EntryLook look(s);  // if we die, the entries must be there for the reaper of our intent
        for (u64 page = s.next_page(first, first + n); page < first + n; page = s.next_page(page + 1, first + n))
            if (drop_page(s, op.intent(), u32(page), patience, freed, what) != Status::OK) return false;
    }
    BP_POINT("remove.empty");
    if (slot.limit.load_relaxed() | slot.reserve.load_relaxed()) {
        if (!lock_memory(s)) return false;
        slot.limit.store_relaxed(0);
        slot.reserve.store_relaxed(0);
        rebuild_shares(s);
        unlock_memory(s);
    }
    if (!lock_growth(s)) return false;  // with the lock: no append gives memory to entries from here on
    slot.entries_ready.store_relaxed(0);
    slot.allocated.store_release(0);  // an append that reads this, without its generation, also sees the closed span
    for (auto* field :
         {&slot.stored, &slot.device, &slot.inode, &slot.size_bytes, &slot.mtime_ns, &slot.ctime_ns, &slot.doubt})
        field->store_relaxed(0);
    slot.owner.store_relaxed(0);
    slot.flush_open.store_relaxed(0);
    s.texts[index].name[0] = s.texts[index].path[0] = 0;
    slot.name_sum.store_relaxed(0);
    slot.path_sum.store_relaxed(0);
    slot.span.store_seq_cst(slot.span.load_relaxed() & ~(CLOSED | PAGES_MASK));
    slot.state.store_seq_cst(SPACE_FREE);
    s.header->removals.add_seq_cst(1);
    s.removed_here.store_relaxed(1);
    release(s, s.header->growth);
    BP_POINT("remove.free");
    return true;
}

// Repairs what the directory lock protects: closes a slot that a dead owner was filling.
inline void repair_directory(Segment& s) {
    for (u32 i = 0, n = s.space_count(); i < n; i++)
        if (s.spaces[i].state.load_acquire() == SPACE_OPENING)
            close_space(s.spaces[i], s.spaces[i].span.load_acquire());
}

// Repairs the directory if the lock was inherited from a dead owner.
inline void repair_if_inherited(Segment& s, Acquired how) {
    if (how != Acquired::REPAIR) return;
    repair_directory(s);
    repaired(s, s.header->directory);
}

// Removes the closed spaces that no client uses any more, and does not wait for clients that use the others. Under the
// directory lock. Returns how many closed spaces are left.
inline u32 sweep_closing(Segment& s) {
    u32 left = 0, freed = 0;
    for (u32 i = 0, n = s.space_count(); i < n; i++)
        if (s.spaces[i].is_closing() && !remove_space(s, i, 0, freed)) left++;
    if (freed) give_back_freed(s, freed);
    return left;
}

// Releases the directory lock. Before and after that it removes closed spaces, because a client that closes one does
// not wait for the lock: either that client finds the lock free, or this one finds its closed space. Other locks are
// waited for briefly only, because their owners may be stopped, and others wait for the directory.
inline void leave_directory(Segment& s) {
    Patience patience(BRIEF_SLICES);
    for (u32 left = sweep_closing(s);;) {
        if (!s.keeps_entries && s.removed_here.load_relaxed()) {
            s.removed_here.store_relaxed(0);
            give_back_entries(s);
        }
        release(s, s.header->directory);
        u32 closing = 0;
        for (u32 i = 0, n = s.space_count(); i < n; i++) closing += s.spaces[i].is_closing();
        Acquired how;
        if (closing <= left || !try_acquire(s, s.header->directory, how)) return;
        repair_if_inherited(s, how);
        left = sweep_closing(s);
    }
}

inline bool lock_directory(Segment& s, bool interruptible = true) {
    Acquired a = acquire(s, s.header->directory, interruptible);
    if (a == Acquired::INTERRUPTED) return false;
    repair_if_inherited(s, a);
    sweep_closing(s);
    return true;
}

// Closes the private spaces of client `c`, and removes them if possible. It never waits for the directory lock, because
// the caller may be its owner, or may hold a lock or a page for which the owner waits.
inline void remove_owned(Segment& s, u32 c) {
    u64 generation = s.clients[c - 1].generation.load_relaxed();
    bool any = false;
    for (u32 i = 0, n = s.space_count(); i < n; i++) {
        SpaceSlot& slot = s.spaces[i];
        u64 seen = slot.span.load_acquire();
        if (slot.state.load_acquire() == SPACE_LIVE && slot.owner.load_relaxed() == c &&
            slot.owner_generation.load_relaxed() == generation)
            close_space(slot, seen);
        any |= slot.is_closing();
    }
    Acquired how;
    if (!any || !try_acquire(s, s.header->directory, how)) return;
    repair_if_inherited(s, how);
    leave_directory(s);
}

// ---- opening ----------------------------------------------------------------

// The first slot without a space that has generations left. NONE if there is none, or (with `error`) no memory for one.
inline u32 free_slot(Segment& s, int& error) {
    error = 0;
    for (u32 i = 0; i < MAX_SPACES; i++) {
        if (i >= s.space_count() && (error = grow_spaces(s)) != 0) return NONE;
        if (i >= s.space_count()) return NONE;  // the word that counts them is damaged
        SpaceSlot& t = s.spaces[i];
        bool used_up = space_generation(t.span.load_relaxed()) + 2 > GENERATIONS_MOST;
        if (t.state.load_acquire() == SPACE_FREE && !used_up) return i;
    }
    return NONE;
}

// A run of entries for `n` pages that no space has: first fit, in whole OS pages. NONE if there is none; and with
// `error`, if this process has no memory to look for one.
inline u32 free_run(Segment& s, u64 n, bool& error) {
    u64 at = 0, unit = s.g.os_page / 8;
    n = round_up(n, unit);
    Vec<EntryRun> runs;
    error = !entry_runs(s, runs, [](SpaceSlot& t) { return t.state.load_acquire() != SPACE_FREE; });
    if (error) return NONE;
    for (const EntryRun& run : runs) {
        if (run.first >= at + n) break;
        at = std::max(at, round_up(run.end, unit));
    }
    return at + n <= s.g.max_pages ? u32(at) : NONE;
}

// The place of a new space: its slot, and the first of its entries. NONE: there is no place; `error`: because the
// kernel gave no memory for a slot; `no_memory`: because this process has no memory to search.
struct NewPlace {
    u32 index = NONE, first = NONE;
    int error = 0;
    bool no_memory = false;
};

inline NewPlace find_place(Segment& s, u64 max_pages, bool needs_long_texts) {
    NewPlace at;
    at.index = free_slot(s, at.error);
    if (at.index != NONE && needs_long_texts) at.error = give_long_texts(s, s.spaces[at.index]);
    if (at.index != NONE) at.first = free_run(s, max_pages, at.no_memory);
    return at;
}

// FREE -> OPENING: the caller fills in the other fields. The entries get memory when their pages are first used.
inline void begin_space(SpaceSlot& t, u32 first_entry, u32 max_pages) {
    t.first_entry.store_relaxed(first_entry);
    t.max_pages.store_relaxed(max_pages);
    t.state.store_seq_cst(SPACE_OPENING);
    BP_POINT("space.opening");
    t.entries_ready.store_relaxed(0);
}

// OPENING -> LIVE, after all other fields were filled in.
inline void finish_space(SpaceSlot& t, u64 pages) {
    u64 generation = space_generation(t.span.load_relaxed()) + 1;
    t.allocated.store_relaxed(space_span(generation, pages));
    t.sum.store_relaxed(space_sum(t));
    t.span.store_seq_cst(space_span(generation, pages));
    t.state.store_seq_cst(SPACE_LIVE);
    BP_POINT("space.live");
}

// Opens a space in a free place; `fill(slot)` fills in the fields that the two functions above do not. False: `fill`
// has failed, and the slot is free again. Needs the directory lock.
template <class Fill>
bool open_space(Segment& s, const NewPlace& at, u64 pages, u64 max_pages, Fill fill) {
    SpaceSlot& t = s.spaces[at.index];
    begin_space(t, at.first, u32(max_pages));
    if (!fill(t)) return t.state.store_seq_cst(SPACE_FREE), false;
    finish_space(t, pages);
    return true;
}

}  // namespace bp
