// How much is done under one hold of the memory lock, and for scratch pages next to their limit: counted, not timed.
//
//   holds FRAMES EXTENT_FRAMES [SCENARIO]     prints for each scenario: holds, most steps in one, the bound
//
// A step is an ordered access to shared memory (BP_STEP): at least one for each page or frame that is looked at. The
// bounds are made of the core's own constants and know nothing of the number of frames. What is
// not bounded, and says so (docs/design.md, "Bounded holds"), is not here: the repair after a death, the
// purge of a ring that is full of dropped pages, and check().
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>

namespace holds {
void step();
void point(const char* name);
}
#define BP_BYTE_LOCKS_ONLY
#define BP_STEP() ::holds::step()
#define BP_POINT(name) ::holds::point(name)

#include "operations.h"
#include "protocol/scratch.h"

using namespace bp;

bool bp::may_give_up() { return false; }
void bp::wrong(const char* what, u32 page) {
    fprintf(stderr, "page %u: %s\n", page, what);
    abort();
}

namespace {

u64 steps, most, count, all, everywhere;
const u8 nothing[4096] = {};
bool held;

constexpr u64 LOOK = 20;  // steps that one look at a page may take: an eviction reads its pins and writes its words
constexpr u64 TAKE = (EVICT_STEPS + 8) * LOOK;
constexpr u64 EVICT = (EVICT_LOOKS + EVICT_STEPS) * LOOK;
constexpr u64 IDLE_PASS = LOOK_BATCH + EVICT_BATCH * LOOK + LOOK;

struct Pool {
    Segment s;
    u32 frames, pages;
    int file;
    u64 bytes;
    bool scans = false;  // what is loaded is read once
    u32 written = 0;     // scratch pages, from the first on

    Pool(u32 n, u32 extent_frames) : frames(n), pages(2 * n) {
        Geometry g{};
        g.page_size = 4096;
        g.page_shift = 12;
        g.os_page = u32(sysconf(_SC_PAGESIZE));
        g.extent_frames = extent_frames;
        g.max_frames = n;
        g.max_clients = 8;
        g.max_pages = pages;
        place_areas(g);
        bytes = g.total_bytes;
        file = int(syscall(SYS_memfd_create, "holds", 0));
        if (file < 0 || ftruncate(file, off_t(bytes)) != 0 || prim::plug(file, 0, g.data_at) != 0) abort();
        u8* base = prim::map_segment(file, bytes, bytes);
        if (!base) abort();
        auto h = reinterpret_cast<Header*>(base);
        h->geometry = g;
        h->policy.cold.capacity = h->policy.hot.capacity = ring_capacity(g, 0);
        h->budget_frames.store_relaxed(n);
        h->durable_lsn.store_relaxed(~u64(0));
        s.map(base, g);
        s.fd = prim::reopen(file);
        if (attach(s) != Status::OK) abort();
        SpaceSlot& slot = s.spaces[0];
        slot.max_pages.store_relaxed(pages);
        slot.span.store_relaxed(u64(1) << GENERATION_SHIFT | pages);
        slot.state.store_relaxed(SPACE_LIVE);
        plug_entries(s, slot, 0, pages);
    }
    ~Pool() {
        prim::unmap_segment(s.base, bytes);
        close(s.fd);
        close(file);
    }

    u32 load(u32 page) { return fetch(s, page, nothing, scans); }
    void read(u32 page) {
        if (u32 f = load(page); f != NONE) unpin(s, f);
    }
    void read_all() {
        for (u32 page = 0; page < frames; page++) read(page);
    }
    void each(u32 every, const std::function<void(u32)>& change) {
        for (u32 page = 0; page < frames; page++)
            if (page % every != every - 1) change(page);
    }
    void make_dirty(u32 every) {
        each(every, [&](u32 page) { change_entry(s.entries[page], [](u64 e) { return e | entry::DIRTY; }); });
    }
    void make_pinned(u32 every) {
        each(every, [&](u32 page) { load(page); });
    }
    void refer() {
        each(NONE, [&](u32 page) { s.frames[entry::frame(s.entries[page].load_relaxed())].count.store_relaxed(3); });
    }
    void drop(u32 first, u32 n) {
        u32 freed = 0;
        drop_range(s, first, n, freed);
    }
    void drop_resident() {
        for (u32 page = 0; page < pages; page++)
            if (entry::state(s.entries[page].load_relaxed()) == RESIDENT) drop(page, 1);
    }
    void make_scratch() {
        s.spaces[0].kind.store_relaxed(KIND_SCRATCH);
        s.header->spaces_ready.store_relaxed(doubled(1));
        while (write_scratch(written)) written++;
    }
    // A page that nobody has written gets a content; false: there are too many scratch pages.
    bool write_scratch(u32 page) {
        ScratchShare share{};
        if (may_keep_one(s, share) != Status::OK) return false;
        read(page);
        change_entry(s.entries[page], [](u64 e) { return e | entry::DIRTY; });
        return true;
    }
    void drop_scratch(u32 page) {
        u32 freed = 0;
        drop_range(s, page, 1, freed, Drop::KEPT);
    }
    u64 shrink(u64 n, bool evict) {
        Reclaimed done;
        bp::shrink(s, n, TRIM, evict, done);
        return done.frames;
    }
};

struct Scenario {
    const char* name;
    std::function<void(Pool&)> prepare, work;
    u64 bound;
    bool sum = false;  // the bound is one of the steps of all holds together
    bool outside = false;  // and of those outside them
};

std::vector<Scenario> scenarios(u32 extent_frames) {
    // Free frames are taken, and given to the kernel, some extents at a time: two steps a frame at most.
    const u64 give = u64(EXTENTS_PER_STEP) * extent_frames * 2 + LOOK;
    auto full = [](Pool& p) { p.read_all(); };
    auto some = [](Pool& p) { for (u32 i = 0; i < 300; i++) p.read(p.frames + i); };
    auto take_all_back = [](Pool& p) { p.shrink(p.frames, true); };
    auto idle = [](Pool& p) {
        u64 out = 0;
        evict_idle(p.s, p.s.tick() + 1000, out);
    };
    return {
        {"misses in an empty pool", [](Pool&) {}, full, TAKE + give},
        {"misses, all pages clean", full, some, TAKE},
        {"misses, all pages referenced", [=](Pool& p) { full(p), p.refer(); }, some, TAKE},
        {"misses, all pages pinned", [=](Pool& p) { full(p), p.make_pinned(NONE); }, some, TAKE},
        {"misses, all pages dirty", [=](Pool& p) { full(p), p.make_dirty(NONE); }, some, TAKE},
        // Dirty pages that a search has met are not met again by another search.
        {"misses, all but few set aside", [=](Pool& p) { full(p), p.make_dirty(100), some(p); },
         [](Pool& p) { for (u32 i = 300; i < 600; i++) p.read(p.frames + i); }, 300 * 2 * LOOK, true},
        {"misses, all but few pinned", [=](Pool& p) { full(p), p.make_pinned(100); }, some, TAKE},
        {"misses, all but few dirty", [=](Pool& p) { full(p), p.make_dirty(100); }, some, TAKE},
        {"misses of ghosts, all other pages dropped",  // scanned: the elements of the cold ring stand for no page any more
         [=](Pool& p) { p.scans = true, full(p), some(p), p.drop_resident(); },
         [](Pool& p) { for (u32 i = 0; i < p.frames / 2; i++) p.read(i); }, TAKE},
        {"shrink, all pages clean", full, take_all_back, EVICT + give},
        {"shrink, all pages referenced", [=](Pool& p) { full(p), p.refer(); }, take_all_back, EVICT + give},
        {"shrink, all pages pinned", [=](Pool& p) { full(p), p.make_pinned(NONE); }, take_all_back, EVICT + give},
        {"shrink, all pages dirty", [=](Pool& p) { full(p), p.make_dirty(NONE); }, take_all_back, EVICT + give},
        {"shrink, all but few dirty", [=](Pool& p) { full(p), p.make_dirty(60); }, take_all_back, EVICT + give},
        {"shrink, all but few pinned", [=](Pool& p) { full(p), p.make_pinned(60); }, take_all_back, EVICT + give},
        {"shrink, all frames free", [=](Pool& p) { full(p), p.drop(0, p.pages); }, [](Pool& p) { p.shrink(p.frames, false); }, give},
        {"shrink, scattered pages", [=](Pool& p) { full(p), p.drop(0, p.frames / 2); },
         [](Pool& p) { p.shrink(p.frames / 2, false); }, give},
        {"idle, all pages", full, idle, IDLE_PASS},
        {"idle, no page", full, [](Pool& p) { u64 out = 0; evict_idle(p.s, p.s.tick() - 1000, out); }, IDLE_PASS},
        {"idle, all pages pinned", [=](Pool& p) { full(p), p.make_pinned(NONE); }, idle, IDLE_PASS},
        {"idle, all pages dirty", [=](Pool& p) { full(p), p.make_dirty(NONE); }, idle, IDLE_PASS},
        {"scratch pages next to their limit", [](Pool& p) { p.make_scratch(), p.drop_scratch(0); },
         [](Pool& p) {
             for (u32 i = 1; i < 300; i++) {
                 if (!p.write_scratch(i - 1)) abort();
                 p.drop_scratch(i);
             }
         }, 300 * 6 * LOOK, false, true},
        {"drop of all pages", full, [](Pool& p) { p.drop(0, p.pages); }, LOOK},
        {"a reader that was killed", [=](Pool& p) { full(p), p.make_pinned(NONE); },
         [](Pool& p) {  // its column of pins is released without the lock, its counters under it
             Segment next;
             next.map(p.s.base, p.s.g);
             close(p.s.fd);
             next.fd = p.s.fd = prim::reopen(p.file);
             if (attach(next) != Status::OK || reap_all(next) != 1) abort();
         }, TAKE},
    };
}

}  // namespace

namespace holds {

void step() {
    steps += held;
    everywhere++;
}

void point(const char* name) {
    if (!strcmp(name, "memory.locked")) {
        held = true;
        steps = 0;
    } else if (!strcmp(name, "memory.unlock")) {
        held = false;
        if (steps > most) most = steps;
        all += steps;
        count++;
    }
}

}  // namespace holds

int main(int argc, char** argv) {
    if (argc < 3) return 2;
    u32 frames = u32(atoi(argv[1])), extent_frames = u32(atoi(argv[2]));
    for (const Scenario& sc : scenarios(extent_frames)) {
        if (argc > 3 && strcmp(argv[3], sc.name)) continue;
        Pool pool(frames, extent_frames);
        sc.prepare(pool);
        most = count = all = everywhere = 0;
        sc.work(pool);
        if (sc.sum) most = all;
        if (sc.outside) most = everywhere;
        printf("%s: %llu %llu %llu\n", sc.name, (unsigned long long)count, (unsigned long long)most, (unsigned long long)sc.bound);
    }
}
