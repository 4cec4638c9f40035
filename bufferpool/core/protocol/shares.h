// Shares. The share of a space is its limit and its reserve. A space never has more frames than its limit. While it has
// no more frames than its reserve, other spaces cannot take any of them.
//
//   set      writes the limit and the reserve to the space's slot, which is authoritative; then rebuilds the list of
//            shares in the header, and recounts
//   count    adds one frame, before the frame is taken for a page. If the share is full, a page of the same space is
//            evicted first
//   uncount  subtracts one frame, after its page was evicted or dropped, or was not loaded
//   recount  counts the frames of all shares in one pass. The client that inherits the memory lock does so, and the
//            client that has reaped another one
//
// All of this happens under the memory lock, except that a drop and a failed load uncount without it. A count is never
// below the number of frames that are BUSY for, or LIVE with, a page of the space: so the limit holds. The count may be
// too high, after a client has died, or if a recount ran between a drop and its uncount. (Each pass has a number, so
// the uncount sees that and leaves the new count as it is.) Then `doubt` is set, and the share is counted again when it
// is full.
#pragma once

#include "protocol/segment.h"

namespace bp {

constexpr u64 PASS = u64(1) << 32;
constexpr u32 share_frames(u64 w) { return u32(w); }

// The share in which a frame was counted, and the number of the recount before that.
struct Counted {
    Share* share = nullptr;
    u32 pass = 0;
};

inline bool is_of(const Share& share, u32 page) {
    return page >= share.first.load_relaxed() && page < share.end.load_relaxed();
}

// The share of the page's space; null for most spaces, which have none.
inline Share* share_of(Segment& s, u32 page) {
    Shares& all = s.header->shares;
    u32 n = all.high.load_relaxed();
    for (u32 i = 0; i < n && i < SHARES; i++)
        if (is_of(all.list[i], page)) return &all.list[i];
    return nullptr;
}

inline bool is_full(const Share& share) {
    u32 limit = share.limit.load_relaxed();
    return limit && share_frames(share.frames.load_seq_cst()) >= limit;
}

inline Counted counted_now(Segment& s, u32 page) {
    Share* share = share_of(s, page);
    return share ? Counted{share, u32(share->frames.load_seq_cst() >> 32)} : Counted{};
}

inline Counted count_one(Share& share) { return {&share, u32(share.frames.add_seq_cst(1) >> 32)}; }

// Counts a frame for the page. Returns false if the share is full.
inline bool count_frame(Segment& s, u32 page, Counted& counted) {
    Share* share = page == NONE ? nullptr : share_of(s, page);
    if (!share) counted = {};
    else if (counted.share == share && counted.pass == u32(share->frames.load_seq_cst() >> 32)) return true;
    else if (is_full(*share)) return counted = {}, false;
    else counted = count_one(*share);
    return true;
}

inline void uncount(Segment& s, Counted& counted) {
    Share* share = counted.share;
    if (!share) return;
    counted.share = nullptr;
    u64 w = share->frames.load_seq_cst();
    while (w >> 32 == counted.pass && share_frames(w))
        if (share->frames.cas_seq_cst(w, w - 1)) return;
    s.header->shares.doubt.store_relaxed(1);
}

// The most frames that all reserves together can keep. If their sum is larger, each reserve is reduced in proportion.
inline u32 most_reserved(u32 budget) { return u32(u64(budget) * 7 / 8); }

// True if the page is within its space's reserve: a page of another space cannot take its frame.
inline bool is_reserved(Segment& s, u32 page, u32 wanted) {
    u64 sum = s.header->shares.reserved.load_relaxed();
    Share* share = sum ? share_of(s, page) : nullptr;
    if (!share || (wanted != NONE && is_of(*share, wanted))) return false;
    u64 reserve = share->reserve.load_relaxed(), most = most_reserved(s.page_budget());
    if (sum > most) reserve = reserve * most / sum;
    return share_frames(share->frames.load_seq_cst()) <= reserve;
}

// ---- counting anew, under the memory lock --------------------------------------------

// A retired version is counted, too, because the pass may have missed the frame of its successor. The count may then be
// one too high, so `doubt` is set.
inline void recount_shares(Segment& s) {
    Shares& all = s.header->shares;
    if (!all.high.load_relaxed()) return;
    all.doubt.store_relaxed(0);
    all.pause.store_relaxed(s.ready / 16);
    for (Share& share : all.list) share.frames.store_seq_cst(((share.frames.load_seq_cst() >> 32) + 1) << 32);
    for (u32 f = 0; f < s.ready; f++) {
        u64 w = s.frames[f].word.load_seq_cst();
        FrameState state = frame::state(w);
        bool old = state == RETIRED || state == SETTLING;
        Share* share = old || state == BUSY || state == LIVE ? share_of(s, frame::page(w)) : nullptr;
        if (!share) continue;
        share->frames.add_seq_cst(1);
        if (old) all.doubt.store_relaxed(1);
    }
}

// Called before a page of a full share is evicted: if the count is in doubt, the share may not be full.
inline void settle_doubt(Segment& s) {
    Shares& all = s.header->shares;
    u32 pause = all.pause.load_relaxed();
    if (!all.doubt.load_relaxed()) return;
    if (pause && pause <= s.ready) all.pause.store_relaxed(pause - 1);
    else recount_shares(s);
}

inline u32 frames_of(const Segment& s, u64 bytes) {
    u64 frames = bytes >> s.g.page_shift;
    return frames < s.g.max_frames ? u32(frames) : s.g.max_frames;
}

inline void fill_share(Segment& s, Share& share, u32 index) {
    SpaceSlot& slot = s.spaces[index];
    u64 first = slot.first_entry.load_relaxed(), n = slot.max_pages.load_relaxed();
    share.limit.store_relaxed(frames_of(s, slot.limit.load_relaxed()));
    share.reserve.store_relaxed(frames_of(s, slot.reserve.load_relaxed()));
    share.space.store_relaxed(index);
    share.hand.store_relaxed(0);
    share.end.store_relaxed(0);
    share.first.store_relaxed(u32(first));
    bool sound = first <= s.g.max_pages && n <= s.g.max_pages - first;
    share.end.store_relaxed(sound ? u32(first + n) : 0);
}

// Rebuilds the list of shares from the slots of the spaces.
inline void rebuild_shares(Segment& s) {
    Shares& all = s.header->shares;
    if (!all.high.load_relaxed()) return;
    u32 n = 0;
    u64 reserved = 0;
    for (u32 i = 0, spaces = s.space_count(); i < spaces && n < SHARES; i++) {
        SpaceSlot& slot = s.spaces[i];
        if (!slot.is_live() || !(slot.limit.load_relaxed() | slot.reserve.load_relaxed())) continue;
        fill_share(s, all.list[n], i);
        reserved += all.list[n++].reserve.load_relaxed();
    }
    for (u32 i = n; i < SHARES; i++) all.list[i].end.store_relaxed(0);
    BP_POINT("share.listed");
    all.high.store_relaxed(n);
    all.reserved.store_relaxed(u32(reserved < NONE ? reserved : NONE));
    recount_shares(s);
}

// ---- setting, under the memory lock ----------------------------------------------------

enum class ShareSet { DONE, NO_SPACE, TOO_MANY, TOO_MUCH };

// Sets the limit and the reserve of a space, in bytes.
inline ShareSet set_share(Segment& s, u32 index, u64 generation, u64 limit, u64 reserve) {
    SpaceSlot& slot = s.spaces[index];
    Shares& all = s.header->shares;
    if (!slot.is_live() || slot.span.load_relaxed() >> GENERATION_SHIFT != generation) return ShareSet::NO_SPACE;
    u64 others = 0;
    u32 n = 0;
    for (Share& share : all.list) {
        if (!share.end.load_relaxed() || share.space.load_relaxed() == index) continue;
        n++;
        others += share.reserve.load_relaxed();
    }
    if (n == SHARES && (limit | reserve)) return ShareSet::TOO_MANY;
    if (reserve && others + frames_of(s, reserve) > most_reserved(s.header->budget_frames.load_relaxed()))
        return ShareSet::TOO_MUCH;
    if (!all.high.load_relaxed()) all.high.store_relaxed(1);  // so that an inheritor of the lock reads the slots
    BP_POINT("share.begun");
    slot.limit.store_relaxed(limit);
    slot.reserve.store_relaxed(reserve);
    BP_POINT("share.set");
    rebuild_shares(s);
    return ShareSet::DONE;
}

}  // namespace bp
