// What the explorer's processes do, and what must hold for each while it does.
#pragma once

#include "world.h"

namespace bp {

bool may_give_up() { return running >= 0 && world.processes[running].gives_up; }
void wrong(const char* what, u32 page) { violation("page %u: %s", page, what); }

static u64* page_words(Segment& s, u32 f) { return reinterpret_cast<u64*>(s.page_data(f)); }
static u32 last_word(const Segment& s) { return s.g.page_size / 8 - 1; }

static void read_frame(Segment& s, Process& me, u32 page, u32 f, u64 done_before) {
    model::require_memory(s.page_data(f));
    u64 first = page_words(s, f)[0];
    model::step();
    u64 last = page_words(s, f)[last_word(s)];
    if (first != last) violation("page %u is mixed: %llx and %llx", page, (unsigned long long)first, (unsigned long long)last);
    if (first >> 32 != page) violation("page %u shows page %u", page, u32(first >> 32));
    u64 version = first & 0xffffffff;
    if (version < done_before) violation("page %u shows version %u after %u was published", page, u32(version), u32(done_before));
    if (version < me.last_seen[page]) violation("page %u went back from version %u to %u", page, u32(me.last_seen[page]), u32(version));
    if (version > world.intended[page]) violation("page %u shows a version that nobody wrote", page);
    u64 e = s.entries[page].load_relaxed();
    bool open = entry::is_pending(e) && group::state(s.clients[entry::owner(e) - 1].groups[0].load_relaxed()) == group::OPEN;
    if (open && version == world.intended[page]) violation("page %u shows version %u, which is not committed", page, u32(version));
    me.last_seen[page] = version;
    u64 w = s.frames[f].word.load_relaxed();
    bool is_next = frame::state(w) == JOINING && frame::holds(s.frames[frame::page(w)].word.load_relaxed(), page);
    if (!frame::holds(w, page) && !is_next) violation("frame %u is %s, and a reader of page %u pins it", f, name(frame::state(w)), page);
}

static u32 fetch(Segment& s, u32 page) { return fetch(s, page, world.store[page]); }

static void read_page(Segment& s, Process& me, u32 page) {
    u64 done = world.done[page];
    u32 f = fetch(s, page);
    if (f == NONE) return;
    read_frame(s, me, page, f, done);
    unpin(s, f);
}

// A copy of a page for which no frame is taken; if another client changes the page meanwhile, the page itself.
static void read_past(Segment& s, Process& me, u32 page) {
    u64 done = world.done[page], copy[WORDS];
    StoredHooks hooks{s, world.store[page]};
    Status status = load_past(s, place_of(s, page), hooks, [&] {
        prim::copy_page(copy, world.store[page], s.g.page_size);
        return Status::OK;
    });
    if (status == Status::WAIT) return read_page(s, me, page);
    require(status, page);
    if (copy[0] != copy[last_word(s)] || copy[0] >> 32 != page) violation("a copy of page %u is mixed", page);
    if ((copy[0] & 0xffffffff) < done) violation("a copy of page %u is older than what was published", page);
}

// Reads a page that may have been discarded.
static void read_discardable(Segment& s, Process& me, u32 page) {
    u64 done = world.done[page];
    StoredHooks hooks{s, world.store[page]};
    u32 f;
    Status status = fetch_page(s, place_of(s, page), Access{}, hooks, f);
    if (status == Status::DISCARDED) return;
    require(status, page);
    if (status != Status::OK) return;
    read_frame(s, me, page, f, done);
    unpin(s, f);
}

// What can be loaded together is; the others are read one by one.
static void read_pages(Segment& s, Process& me, u32 one, u32 other) {
    Claim claims[2] = {{one}, {other}};
    auto visit = [&](Claim& claim) {
        read_frame(s, me, claim.page, claim.frame, 0);
        unpin(s, claim.frame);
    };
    StoredReads<decltype(visit)> reads{s, claims, [](u32 page) { return static_cast<const void*>(world.store[page]); }, visit};
    {
        Place at = place_of(s, one);
        ManyLoads<decltype(reads)> loads(s, at, Access{}, reads, claims);
        loads.run(2, {2, 2});
    }
    for (Claim& claim : claims)
        if (claim.frame == NONE) read_page(s, me, claim.page);
}

// A load that fails, or not, and what the clients that wait for it get.
struct FailingHooks : StoredHooks {
    bool fails;
    u32 over = world.failures_over, awaited = 0;

    Status waited(u64 e) {
        if (entry::state(e) == LOADING) awaited = entry::owner(e);
        return Status::OK;
    }
    Status prepare() {
        if (awaited && !world.kills && world.loads[awaited] == 1 && world.failed[awaited]) violation("client %u runs a loader whose failure it waited for", s.me);
        world.loads[s.me]++;
        return fails ? Status::RAISED : Status::OK;
    }
    const char* failure() {
        world.failures++;
        world.failed[s.me] = 1;
        return "no";
    }
    Status failed(u32 client, const char*) {
        if (world.failures == over) violation("client %u got a failure of client %u that was over before it asked", s.me, client);
        return Status::RAISED;
    }
    Status load(const Place& at, FrameRequest& want, u32& frame) {
        Status status = load_page(s, at, want, *this, frame);
        if (status == Status::RAISED) world.failures_over++;
        return status;
    }
};

static void ask(Segment& s, u32 page, bool fails) {
    FailingHooks hooks{{s, world.store[page]}, fails};
    u32 f;
    if (fetch_page(s, place_of(s, page), Access{}, hooks, f) == Status::OK) unpin(s, f);
}

// A load that takes a frame, which its store cannot fill.
struct UnreadHooks : StoredHooks {
    Status fill(u32, Image&) { return Status::RAISED; }
    Status load(const Place& at, FrameRequest& want, u32& frame) { return load_page(s, at, want, *this, frame); }
};

static void fail_to_read(Segment& s, u32 page) {
    UnreadHooks hooks{{s, nullptr}};
    u32 f;
    if (fetch_page(s, place_of(s, page), Access{}, hooks, f) == Status::OK) unpin(s, f);
}

static void write_page(Segment& s, u32 page) {
    u32 f = own(s, page, world.store[page]);
    if (f == NONE) return;
    u64 words[WORDS];
    u64 version = (page_words(s, f)[0] & 0xffffffff) + 1;
    for (u64& w : words) w = u64(page) << 32 | version;
    if (version > world.intended[page]) world.intended[page] = version;
    FrameRequest want{};
    if (publish(s, page, words, Image{true, false, version}, want) == Status::OK) {
        if (version > world.done[page]) world.done[page] = version;
    } else {
        end_write(s, page);
    }
}

// The old version is not read, so this one's number is above those of all writers that add one to the version they
// read.
static void replace_page(Segment& s, u32 page, u64 version, bool is_volatile = false) {
    StoredHooks hooks{s, world.store[page]};
    u64 words[WORDS];
    for (u64& w : words) w = u64(page) << 32 | version;
    if (version > world.intended[page]) world.intended[page] = version;
    if (is_volatile) world.dropped[page] = 1;
    Status status = replace_page(s, place_of(s, page), words, Image{!is_volatile, is_volatile, version}, false, hooks);
    require(status, page);
    if (status == Status::OK && version > world.done[page]) world.done[page] = version;
}

// Publishes both pages as one, which have the same version if nobody else writes them. False: no frame is free.
static bool write_group(Segment& s, u32 one, u32 other) {
    u32 numbers[2] = {one, other};
    u64 words[2][WORDS];
    GroupPage pages[2];
    for (u32 i = 0; i < 2; i++) {
        u32 f = own(s, numbers[i], world.store[numbers[i]]);
        if (f == NONE) {
            if (i) end_write(s, one);
            return false;
        }
        u64 version = (page_words(s, f)[0] & 0xffffffff) + 1;
        for (u64& w : words[i]) w = u64(numbers[i]) << 32 | version;
        if (version > world.intended[numbers[i]]) world.intended[numbers[i]] = version;
        pages[i] = {numbers[i], words[i], version};
    }
    FrameRequest want{};
    bool done = publish_pages(s, pages, 2, want) == Status::OK;
    for (u32 i = 0; i < 2; i++) {
        if (!done) end_write(s, numbers[i]);
        else if (pages[i].lsn > world.done[numbers[i]]) world.done[numbers[i]] = pages[i].lsn;
    }
    return done;
}

// What is read first is at most as new as what is read afterwards, if both are only written as one.
static void read_group(Segment& s, Process& me, u32 one, u32 other) {
    u64 before = world.done[one];
    read_page(s, me, one);
    u64 first = std::max(before, me.last_seen[one]);
    read_page(s, me, other);
    if (me.last_seen[other] < first) violation("page %u shows version %u, and page %u of the same group then %u", one, u32(first), other, u32(me.last_seen[other]));
}

// The flush lock is not taken: rule 6 must hold by the flusher field alone. `alone`: no
// other flusher is there, and so what was published before must be stored afterwards.
static void flush_pages(Segment& s, u64 durable, bool alone = false) {
    u64 before[PAGES];
    for (u32 p = 0; p < PAGES; p++) before[p] = world.done[p];
    OpSlot op(s);
    FlushTaken taken;
    Vec<FlushItem>& items = taken.items;
    u64 written[PAGES] = {};
    if (begin_flush(s, op.intent(), FlushRequest{0, PAGES, durable, PAGES}, taken) != Status::OK) abort();
    for (FlushItem& it : items) {
        u64 version = page_words(s, it.frame)[0] & 0xffffffff;
        if (version > durable) violation("page %u: version %u written ahead of the log", it.page, u32(version));
        model::step();
        u64 before = world.store[it.page][0] & 0xffffffff;
        if (version < before) violation("page %u: version %u written over %u", it.page, u32(version), u32(before));
        model::require_memory(s.page_data(it.frame));
        // Into the operating system's cache: not durable before the sync.
        written[it.page] = version;
        prim::copy_page(world.store[it.page], s.page_data(it.frame), s.g.page_size);
    }
    model::step();
    for (u32 p = 0; p < PAGES; p++)
        if (written[p] > world.synced[p]) world.synced[p] = written[p];
    model::step();
    end_flush(s, op.intent(), items, true);
    for (u32 p = 0; alone && p < PAGES; p++)
        if (world.synced[p] < before[p]) violation("page %u was dirty at version %u, and the flush has missed it", p, u32(before[p]));
}

// Pool.checkpoint(): every change with an LSN (here: a version) below the result is in the store.
static void checkpoint(Segment& s, u32 page, u64 durable = ~u64(0)) {
    u64 limit = world.done[page];
    flush_pages(s, durable, durable == ~u64(0));
    u64 lsn = std::min(limit + 1, dirty_range(s, 0, PAGES).rec_lsn);
    if (world.synced[page] + 1 < lsn)
        violation("recovery would start at %u, and the store has version %u", u32(lsn), u32(world.synced[page]));
}

static void check_clean_is_synced(Segment& s) {
    for (u32 page = 0; page < PAGES; page++) {
        u64 e = s.entries[page].load_relaxed();
        if (entry::state(e) != RESIDENT || (e & (entry::DIRTY | entry::VOLATILE))) continue;
        u64 version = page_words(s, entry::frame(e))[0] & 0xffffffff;
        if (version > world.synced[page]) violation("page %u is clean at version %u, the store is sure of %u", page, u32(version), u32(world.synced[page]));
        if (memcmp(world.store[page], page_words(s, entry::frame(e)), s.g.page_size)) violation("page %u is clean, and the store has something else", page);
    }
}

static void shrink_one(Segment& s, bool evict) {
    Reclaimed done;
    shrink(s, 1, TRIM, evict, done);
}

// Compaction: the page moves to another frame, and the old frame is given back to the kernel.
static void move_and_release(Segment& s, u32 page) {
    u32 f = move_elsewhere(s, page);
    if (f == NONE) return;
    Vec<u32> out;
    Reclaimed done;
    if (!out.push(f)) abort();
    release_frames(s, out, TRIM, done);
}

static void drop_and_count(Segment& s, u32 page) {
    u32 freed = 0;
    world.dropped[page] = 1;
    OpSlot op(s);
    drop_page(s, op.intent(), page, HASTY, freed);
}

}  // namespace bp
