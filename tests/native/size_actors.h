// Two page sizes that share one budget: what bufferpool/upkeep/page_sizes.py does, call by call of the core, in its order
// (tests/core/test_explore.py compares the calls with those of the package).
//
// The pool's own size has pages 0 and 1 of the records (world.h), the other one pages 1 and 2; page 1 is never written.
#pragma once

#include "actors.h"

namespace bp {

constexpr u32 OTHER_LEAST = 1;  // the smallest part, in frames: MIN_FRAMES there

static bool is_other(const Segment& s) { return s.g.page_size == OTHER_PAGE_BYTES; }
static bool is_page_of(const Segment& s, u32 page) { return page != (is_other(s) ? 0 : 2); }
static Segment& other_of_running() { return other_size.segments[running]; }

static u32 part_of(const Segment& s) { return s.header->budget_frames.load_relaxed(); }
static u64 held_frames(const Segment& s) {
    return u64(s.header->resident.load_relaxed()) + loan::lent(s.header->loan.load_relaxed());
}
static u64 whole_bytes(const Segment& home) { return home.header->whole_budget_bytes.load_relaxed(); }

// ---- what must hold ----------------------------------------------------------------------

// After each step: what the kernel has given to the pages of both sizes is within the whole budget. A call that lowers it
// leaves pages above it that cannot leave, so the largest budget so far counts.
static void require_within_whole() {
    u64 bytes = 0, whole = whole_bytes(world.processes[0].segment);
    other_size.most_bytes = std::max(other_size.most_bytes, whole);
    for (int fd : {0, int(PROCESSES)})
        for (u32 f = 0; f < FRAMES; f++) bytes += file_of(fd).plugged[f] ? file_of(fd).page_bytes : 0;
    if (bytes > other_size.most_bytes) violation("pages have %u bytes of memory, and the whole budget is %u", u32(bytes), u32(other_size.most_bytes));
}

// After the dead are reaped, and one more process has moved memory: all of the budget is some size's, and no part is above it.
static void require_nothing_lost(const Segment& home, const Segment& other) {
    u64 whole = whole_bytes(home), parts = 0, claimed = 0;
    for (const Segment* s : {&home, &other}) {
        parts += u64(part_of(*s)) * s->g.page_size;
        claimed += std::max<u64>(part_of(*s), held_frames(*s)) * s->g.page_size;
        bool dirty = s->header->policy.aside != 0;
        for (u32 page = 0; page < PAGES; page++) dirty |= (s->entries[page].load_relaxed() & entry::DIRTY) != 0;
        if (held_frames(*s) > part_of(*s) && !dirty) violation("pages of %u bytes are left above their part", s->g.page_size);
    }
    if (parts > whole) violation("the parts are %u bytes together, and the whole budget is %u", u32(parts), u32(whole));
    if (claimed + PAGE_BYTES <= whole) violation("%u bytes of the budget are lost", u32(whole - claimed));
}

// ---- the steps ------------------------------------------------------------------------------

// Before each call of the core.
static void calls(const Segment& s, const char* name) {
    model::step();
    if (telling && running >= 0) printf("  %d calls %s of %s\n", running, name, is_other(s) ? "other" : "home");
}

// A flock of the pool's segment, which the kernel releases when its owner dies.
static void lock_sizes() {
    for (model::step(); other_size.sizes_owner;) model::futex_wait(&other_size.sizes_owner, other_size.sizes_owner);
    other_size.sizes_owner = u32(running) + 1;
}
static void unlock_sizes() {
    model::step();
    other_size.sizes_owner = 0;
}

static void set_part(Segment& s, u32 frames) {
    calls(s, "set_budget");
    s.header->budget_frames.store_release(frames);
}
static void set_whole_bytes(Segment& home, u64 bytes) {
    calls(home, "set_page_sizes");
    home.header->whole_budget_bytes.store_release(bytes);
}

// _claimed_bytes
static u64 claimed_bytes(Segment& s) {
    u64 part = part_of(s);
    calls(s, "counted_frames");
    while (!lock_memory(s)) {}
    u64 held = held_frames(s);
    unlock_memory(s);
    return std::max(part, held) * s.g.page_size;
}

// _unassigned; below 0 while pages cannot leave.
static i64 unassigned(Segment& home, Segment& other, u64 whole) {
    u64 claimed = claimed_bytes(home);
    claimed += claimed_bytes(other);
    return i64(whole) - i64(claimed);
}

// _take
static void take_part(Segment& giver, u32 frames) {
    u32 before = part_of(giver), part = before > frames + OTHER_LEAST ? before - frames : OTHER_LEAST;
    set_part(giver, part);
    calls(giver, "fit_objects");  // there are none
    u64 held = held_frames(giver);
    calls(giver, "shrink");
    Reclaimed done;
    shrink(giver, held > part ? held - part : 0, BUDGET, true, done);
}

// _grant
static void grant_part(Segment& taker, i64 bytes) {
    u32 before = part_of(taker);
    u32 part = std::min(before + u32(std::max<i64>(0, bytes) / taker.g.page_size), taker.g.max_frames);
    if (part <= before) return;
    calls(taker, "grow_advice");  // there is none
    set_part(taker, part);
}

// _balance, with a giver and a taker that the advice would choose; for no step what it does first, in any case.
static void balance_sizes(Segment& home, Segment& other, bool to_other, u32 step) {
    Segment &taker = to_other ? other : home, &giver = to_other ? home : other;
    u64 whole = whole_bytes(home);
    for (Segment* s : {&home, &other})
        if (held_frames(*s) > part_of(*s)) take_part(*s, 0);
    grant_part(taker, unassigned(home, other, whole));
    if (!step) return;
    take_part(giver, step / giver.g.page_size);
    grant_part(taker, std::min<i64>(step, unassigned(home, other, whole)));
}

// set_whole: a smaller budget in proportion to the parts, the larger pages first, before it is written; a larger one after it.
static void resize_sizes(Segment& home, Segment& other, u64 bytes) {
    u64 parts = u64(part_of(home)) * PAGE_BYTES + u64(part_of(other)) * OTHER_PAGE_BYTES;
    if (parts <= bytes) {
        set_whole_bytes(home, bytes);
        u64 share = (bytes - parts) * part_of(other) * OTHER_PAGE_BYTES / parts;
        grant_part(other, std::min(i64(share), unassigned(home, other, bytes)));
        return grant_part(home, unassigned(home, other, bytes));
    }
    i64 over = i64(parts - bytes);
    u64 spares = u64(part_of(home) - OTHER_LEAST) * PAGE_BYTES + u64(part_of(other) - OTHER_LEAST) * OTHER_PAGE_BYTES;
    for (Segment* s : {&home, &other}) {
        u64 size = s->g.page_size, spare = u64(part_of(*s) - OTHER_LEAST) * size, all = spares;
        spares -= spare;
        if (over <= 0 || !spare) continue;
        u64 frames = std::min((u64(over) * spare + all * size - 1) / (all * size), spare / size);
        take_part(*s, u32(frames));
        over -= i64(frames * size);
    }
    set_whole_bytes(home, bytes);
}

// At the end, by the last process.
static void give_out_what_nobody_has(Segment& home, Segment& other) { balance_sizes(home, other, false, 0); }

// ---- the actors -----------------------------------------------------------------------------

static void move_memory(Segment& home, bool to_other) {
    lock_sizes();
    balance_sizes(home, other_of_running(), to_other, PAGE_BYTES);
    unlock_sizes();
}
static void resize_both(Segment& home, u64 bytes) {
    lock_sizes();
    resize_sizes(home, other_of_running(), bytes);
    unlock_sizes();
}

// Holds a page of each size while it reads both.
static void hold_both(Segment& home, Process& me, u32 page, u32 other_page) {
    Segment& other = other_of_running();
    u32 f = fetch(home, page), g = fetch(other, other_page);
    if (f != NONE) read_frame(home, me, page, f, 0);
    if (g != NONE) read_frame(other, me, other_page, g, 0);
    if (f != NONE) read_frame(home, me, page, f, 0), unpin(home, f);
    if (g != NONE) unpin(other, g);
}

// Holds both pages of the pool's own size, so that none can leave.
static void hold_all(Segment& home, Process& me) {
    u32 f = fetch(home, 0), g = fetch(home, 1);
    if (f != NONE) read_frame(home, me, 0, f, 0), unpin(home, f);
    if (g != NONE) unpin(home, g);
}

}  // namespace bp
