// Checks every invariant while other processes use the pool. What is read without a lock may be changing: a finding
// counts only if several passes find it, and a state that the intent of a client that was not reaped covers is no
// finding.
#pragma once

#include <cstdarg>
#include <cstdio>

#include "protocol/scratch.h"

namespace bp {

struct Finding {
    char text[160];
    bool operator<(const Finding& other) const { return strcmp(text, other.text) < 0; }
    bool operator==(const Finding& other) const { return !strcmp(text, other.text); }
};

struct Findings : Vec<Finding> {
    bool lost = false;  // there was no memory for some

    [[gnu::format(printf, 2, 3)]] void say(const char* format, ...) {
        Finding finding;
        va_list args;
        va_start(args, format);
        vsnprintf(finding.text, sizeof finding.text, format, args);
        va_end(args);
        lost |= !push(finding);
    }
};

inline const char* name(FrameState s) {
    static const char* names[] = {"HOLE", "FREE", "BUSY", "LIVE", "RETIRED", "SETTLING", "JOINING", "?7"};
    return names[s & 7];
}
inline const char* name(EntryState s) {
    static const char* names[] = {"ABSENT", "LOADING", "RESIDENT", "EVICTING"};
    return names[s & 3];
}

// Whether a client has not been reaped. Until it is, what a dead client has left is no contradiction.
inline bool is_live_client(Segment& s, u32 c) {
    return s.has_slot(c) && s.clients[c - 1].state.load_acquire() == CLIENT_LIVE;
}

// The frames and pages that an operation under way may be changing.
struct InMotion {
    Vec<u32> frames, pages;
    bool lost = false;  // there was no memory for some
    explicit InMotion(Segment& s) {
        for (u32 c = 1, slots = s.slots(); c <= slots; c++) {
            if (!is_live_client(s, c)) continue;
            for (Intent& in : s.clients[c - 1].intents) {
                if (in.op.load_acquire() == u32(Op::NONE)) continue;
                lost |= !frames.push(in.frame.load_relaxed()) || !frames.push(in.old.load_relaxed()) ||
                        !pages.push(in.page.load_relaxed()) || !pages.push(in.victim.load_relaxed());
            }
        }
        frames.make_set();
        pages.make_set();
    }
};

inline void check_frames(Segment& s, Findings& out) {
    InMotion motion(s);
    out.lost |= motion.lost;
    for (u32 f = 0; f < s.ready; f++) {
        u64 w = s.frames[f].word.load_acquire();
        FrameState state = frame::state(w);
        u32 page = frame::page(w), c = frame::client(w);
        if (state > JOINING) out.say("frame %u: unknown state %u", f, unsigned(state));
        if ((state == BUSY || state == SETTLING || state == JOINING) && !is_live_client(s, c))
            out.say("frame %u: %s for client %u, which is gone", f, name(state), c);
        if (state == RETIRED && !any_pin(s, f) && !motion.frames.has(f))
            out.say("frame %u: RETIRED, and nobody pins it", f);
        if (state == LIVE && !s.has_page(page)) {
            out.say("frame %u: LIVE for page %u, which has no entry", f, page);
        } else if (state == LIVE && !motion.frames.has(f) && !motion.pages.has(page)) {
            u64 e = s.entries[page].load_acquire();
            if (!entry::names(e, f) && !entry::is_pending(e))
                out.say("frame %u: LIVE for page %u, whose entry says %s", f, page, name(entry::state(e)));
        }
    }
    for (u32 c = 1, slots = s.slots(); c <= slots; c++)
        for (u32 f = 0; s.has_pins(c) && f < s.ready; f++) {
            if (s.clients[c - 1].state.load_acquire() != CLIENT_FREE) break;
            if (s.pin_count_of(c, f).load_relaxed())
                out.say("frame %u: pinned for client %u, which is gone", f, c);
        }
}

inline void check_entries(Segment& s, Findings& out) {
    InMotion motion(s);
    out.lost |= motion.lost;
    for (u32 i = 0, spaces = s.space_count(); i < spaces; i++) {
        SpaceSlot& slot = s.spaces[i];
        if (!slot.is_live()) continue;
        u64 first, n;
        if (!entries_of(s, slot, first, n)) {
            out.say("space %u: its entries lie outside the segment", i);
            continue;
        }
        if (space_pages(slot.span.load_relaxed()) > slot.max_pages.load_relaxed())
            out.say("space %u: more pages than entries", i);
        u64 end = first + n;
        for (u64 p = s.next_page(first, end); p < end; p = s.next_page(p + 1, end)) {
            u32 page = u32(p);
            u64 e = s.entries[page].load_acquire();
            EntryState state = entry::state(e);
            if (state == ABSENT) continue;
            if (u32 c = entry::owner(e); c && !is_live_client(s, c))
                out.say("page %u: %s by client %u, which is gone", page, name(state), c);
            if (u32 c = entry::flusher(e); entry::is_there(e) && c && !is_live_client(s, c))
                out.say("page %u: flushed by client %u, which is gone", page, c);
            if (state != RESIDENT) continue;
            u32 f = entry::frame(e);
            if (!s.has_frame(f)) {
                out.say("page %u: RESIDENT in frame %u, beyond the last", page, f);
            } else if (s.frames[f].word.load_acquire() != frame::live(page) && !motion.pages.has(page)) {
                u64 w = s.frames[f].word.load_acquire();
                out.say("page %u: RESIDENT in frame %u, which is %s for page %u", page, f, name(frame::state(w)),
                        frame::page(w));
            }
        }
    }
}

// Checks what the memory lock protects, under that lock, so that it does not change meanwhile. INTERRUPTED: the lock
// could not be taken.
inline Status check_memory(Segment& s, Findings& out) {
    Vec<u32> in_ring[4];
    for (Ring r : {RING_COLD, RING_HOT}) out.lost |= !in_ring[r].reserve(ring_capacity(s.g, s.ready));
    if (out.lost) return Status::NO_MEMORY;
    if (!lock_memory(s)) return Status::INTERRUPTED;
    u32 resident = 0;
    for (u32 f = 0; f < s.ready; f++) {
        FrameState state = frame::state(s.frames[f].word.load_acquire());
        resident += state != HOLE;
        if ((state == HOLE) != s.holes.has(f))
            out.say("frame %u: %s, but %sin the set of holes", f, name(state), s.holes.has(f) ? "" : "not ");
        if ((state == FREE) != s.free.has(f))
            out.say("frame %u: %s, but %sin the set of free frames", f, name(state), s.free.has(f) ? "" : "not ");
    }
    if (resident != s.header->resident.load_relaxed())
        out.say("%u frames have memory, but %u are counted", resident, s.header->resident.load_relaxed());
    PoolEnv env{s, nullptr, NONE};
    Alr<PoolEnv> policy(s.header->policy, env);
    for (Ring r : {RING_COLD, RING_HOT}) {
        for (u32 i = 0; i < policy.ring(r).count; i++) out.lost |= !in_ring[r].push(element_page(policy.at(r, i)));
        in_ring[r].make_set();
    }
    for (u32 f = 0; f < s.ready; f++) {
        u64 w = s.frames[f].word.load_acquire();
        u32 page = frame::page(w);
        if (frame::state(w) != LIVE || !s.has_page(page)) continue;
        u64 e = s.entries[page].load_acquire();
        if (!entry::is_resident_in(e, f)) continue;
        Ring r = entry::ring(e);
        if (!entry::is_aside(e) && !in_ring[r & 3].has(page))
            out.say("page %u: resident and in no ring, without being set aside: it could never be evicted", page);
    }
    unlock_memory(s);
    return out.lost ? Status::NO_MEMORY : Status::OK;
}

// Are more scratch pages kept (scratch.h) than are counted? Then they could use the part of the budget that is set
// apart for the other spaces. A page may be written a moment before it is counted, so a difference is a finding only if
// several passes find one.
inline Status check_kept(Segment& s, int passes, Findings& out) {
    u32 missing = 0;
    for (int i = 0; i < passes; i++) {
        if (Status r = recount_kept(s, false, missing); r != Status::OK) return r;
        if (!missing) return Status::OK;
        prim::nap(2'000'000);
    }
    out.say("there are %u more scratch pages than are counted", missing);
    return out.lost ? Status::NO_MEMORY : Status::OK;
}

// NO_MEMORY, INTERRUPTED: some findings are missing.
inline Status check(Segment& s, int passes, Findings& standing) {
    s.has_frame(s.g.max_frames - 1);
    for (int i = 0; i < passes; i++) {
        Findings now;
        EntryLook look(s);
        check_frames(s, now);
        check_entries(s, now);
        if (now.lost) return Status::NO_MEMORY;
        now.make_set();
        if (i == 0) standing.swap(now);
        else standing.keep_only(now);
        if (standing.empty()) break;
        prim::nap(2'000'000);
    }
    Status status = check_kept(s, passes, standing);
    if (status == Status::OK) status = check_memory(s, standing);
    standing.make_set();
    return status;
}

}  // namespace bp
