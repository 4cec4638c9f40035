// The protocol on real threads and real memory, for the thread sanitizer.
//
//   races SECONDS SEED [LEAST]
//
// It runs for so many seconds, and longer, at most fifty times as long, until LEAST operations are done: on a busy machine
// the threads get little of the processor.
//
// Each thread is a process of its own: a client with a descriptor, and with a Segment
// over the one mapping. They read, write, flush, drop, shrink, compact, grow, check, detach,
// and die: at a random BP_POINT a thread leaves everything as it is (longjmp), closes its
// descriptor and comes back as another client. Pages are compared word by word, and so is
// the store, in ordinary memory: only the entry words order any of that. The harness itself
// uses relaxed atomics throughout, so that it orders nothing; what a death
// orders (the kernel releases the byte lock) the sanitizer learns through `deaths`.
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>

namespace races {
void step();
void point(const char* name);
}
#define BP_BYTE_LOCKS_ONLY
#define BP_STEP() ::races::step()
#define BP_POINT(name) ::races::point(name)

#include "protocol/check.h"
#include "operations.h"

using namespace bp;

bool bp::may_give_up() { return false; }
void bp::wrong(const char* what, u32 page) {
    printf("WRONG: %s, page %u\n", what, page);
    fflush(stdout);
    _Exit(2);
}

namespace {

constexpr u32 THREADS = 4, PAGES = 24, BUDGET = 12, MOST_FRAMES = 512, WORDS = 4096 / 8;

alignas(4096) u64 store[PAGES][WORDS];
u64 deaths;       // released by each death, acquired before every step
u64 operations, died, stop;
int file;
u8* base;
Geometry geometry;

struct Actor {
    Segment* s = nullptr;
    std::mt19937 random;
    std::jmp_buf death;
    u32 countdown = 0;   // points until it dies; 0: it does not
    bool alone = false;  // no longer disturbed
    u64 last_seen[PAGES] = {};
};
thread_local Actor* actor;

void count(u64& n) { __atomic_fetch_add(&n, 1, __ATOMIC_RELAXED); }
u32 pick(u32 n) { return actor->random() % n; }

u64* words_of(Segment& s, u32 f) { return reinterpret_cast<u64*>(s.page_data(f)); }

u64 look_at(const u64* words, u32 page) {
    u64 first = words[0];
    for (u32 i = 1; i < WORDS; i++)
        if (words[i] != first) wrong("mixed", page);
    if (first >> 32 != page) wrong("another page's content", page);
    return first & 0xffffffff;
}

// ---- what clients do -----------------------------------------------------------------

u32 fetch(Segment& s, u32 page) { return bp::fetch(s, page, store[page]); }

void read(Segment& s, u32 page) {
    u32 f = fetch(s, page);
    if (f == NONE) return;
    u64 version = look_at(words_of(s, f), page);
    if (version < actor->last_seen[page]) wrong("an older version after a newer one", page);
    actor->last_seen[page] = version;
    unpin(s, f);
}

void write(Segment& s, u32 page) {
    u32 f = own(s, page, store[page]);
    if (f == NONE) return;
    static thread_local u64 words[WORDS];
    u64 version = look_at(words_of(s, f), page) + 1;
    for (u64& w : words) w = u64(page) << 32 | version;
    FrameRequest want{};
    if (publish(s, page, words, Image{true, false, version}, want) != Status::OK) end_write(s, page);
    else actor->last_seen[page] = version;
}

void flush(Segment& s) {
    OpSlot op(s);
    FlushTaken* taken = make<FlushTaken>();  // not on the stack: the dead leave it
    if (begin_flush(s, op.intent(), FlushRequest{0, PAGES, ~u64(0), PAGES}, *taken) != Status::OK) abort();
    for (FlushItem& it : taken->items) {
        look_at(words_of(s, it.frame), it.page);
        prim::copy_page(store[it.page], s.page_data(it.frame), 4096);
    }
    end_flush(s, op.intent(), taken->items, true);
    unmake(taken);
}

void give_back(Segment& s) {
    Reclaimed done;
    shrink(s, 1 + pick(6), TRIM, pick(2), done);
}

void move(Segment& s, u32 page) {
    if (u32 f = move_elsewhere(s, page); f != NONE) free_frame(s, f);
}

void drop_clean(Segment& s, u32 page) {
    u32 freed = 0;
    OpSlot op(s);
    drop_page(s, op.intent(), page, HASTY, freed, Drop::CLEAN);
}

void live(Segment& s) {
    for (u32 n = 20 + pick(200); n > 0 && !__atomic_load_n(&stop, __ATOMIC_RELAXED); n--) {
        count(operations);
        u32 page = pick(PAGES);
        switch (pick(24)) {
        case 0: case 1: case 2: case 3: case 4: case 5: write(s, page); break;
        case 6: case 7: flush(s); break;
        case 8: give_back(s); break;
        case 9: move(s, page); break;
        case 10: drop_clean(s, page); break;
        case 11: plug_entries(s, s.spaces[0], 0, PAGES + 512 * pick(3)); break;
        case 12: if (pick(8) == 0 && s.ready < MOST_FRAMES) grow_ready(s); break;
        case 13: if (pick(4) == 0) reap_all(s); break;
        case 14: if (lock_directory(s)) leave_directory(s); break;
        default: read(s, page);
        }
    }
}

// ---- lives and deaths -----------------------------------------------------------------

void run(u32 seed) {
    Actor me;
    me.random.seed(seed);
    actor = &me;
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        me.s = new Segment;
        me.s->map(base, geometry);
        me.s->fd = prim::reopen(file);
        if (me.s->fd < 0) wrong("reopen", 0);
        me.countdown = 0;
        if (attach(*me.s) != Status::OK) wrong("no client slot", 0);
        // What this thread saw as its last client still counts: each read comes after those.
        if (setjmp(me.death) == 0) {
            me.countdown = pick(3) ? 1 + pick(pick(2) ? 60 : 2000) : 0;
            live(*me.s);
            me.countdown = 0;
            detach(*me.s);
        } else {
            me.countdown = 0;
            count(died);
            __atomic_fetch_add(&deaths, 1, __ATOMIC_RELEASE);  // what the kernel does for us
        }
        close(me.s->fd);  // a dead client's Segment is left as it is, with its mutex
        me.s = nullptr;
    }
}

void make_segment() {
    Geometry& g = geometry;
    g.page_size = 4096;
    g.page_shift = 12;
    g.os_page = u32(sysconf(_SC_PAGESIZE));
    g.extent_frames = 4;
    g.max_frames = MOST_FRAMES;
    g.max_clients = 8;
    g.max_pages = 4096;
    place_areas(g);
    file = int(syscall(SYS_memfd_create, "races", 0));
    if (file < 0 || ftruncate(file, off_t(g.total_bytes)) != 0 || prim::plug(file, 0, g.data_at) != 0) wrong("no memory", 0);
    base = prim::map_segment(file, g.total_bytes, g.total_bytes);
    auto h = reinterpret_cast<Header*>(base);
    h->geometry = g;
    h->policy.cold.capacity = h->policy.hot.capacity = ring_capacity(g, 0);
    h->budget_frames.store_relaxed(BUDGET);
    h->durable_lsn.store_relaxed(~u64(0));
    Segment s;
    s.map(base, g);
    s.fd = prim::reopen(file);
    attach(s);
    SpaceSlot& slot = s.spaces[0];
    slot.max_pages.store_relaxed(4096);
    slot.span.store_relaxed(u64(1) << GENERATION_SHIFT | PAGES);
    slot.state.store_relaxed(SPACE_LIVE);
    plug_entries(s, slot, 0, PAGES);
    detach(s);
    close(s.fd);
    for (u64 page = 0; page < PAGES; page++)
        for (u64& w : store[page]) w = page << 32;
}

// Nobody lives: the checker, and every page whole.
void look_at_the_end() {
    Actor me;
    me.alone = true;
    actor = &me;
    Segment s;
    s.map(base, geometry);
    s.fd = prim::reopen(file);
    if (attach(s) != Status::OK) wrong("nobody can attach any more", 0);
    reap_all(s);
    Findings found;
    if (check(s, 1, found) != Status::OK) wrong("no memory for check", 0);
    for (const Finding& finding : found) printf("%s\n", finding.text), wrong("check", 0);
    for (u32 page = 0; page < PAGES; page++) read(s, page), flush(s);
    detach(s);
}

}  // namespace

namespace races {

void step() {
    if (!actor) return;
    (void)__atomic_load_n(&deaths, __ATOMIC_ACQUIRE);
    if (!actor->alone && actor->random() % 64 == 0) std::this_thread::yield();
}

void point(const char*) {
    if (actor && actor->countdown && --actor->countdown == 0) std::longjmp(actor->death, 1);
}

}  // namespace races

int main(int argc, char** argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 5;
    u32 seed = argc > 2 ? u32(atoi(argv[2])) : 1;
    u64 least = argc > 3 ? u64(atoll(argv[3])) : 0;
    make_segment();
    std::vector<std::thread> threads;
    for (u32 i = 0; i < THREADS; i++) threads.emplace_back(run, seed * 1000 + i);
    for (u32 turn = 0; turn < 50; turn++) {
        prim::nap(u64(seconds * 1e9));
        if (__atomic_load_n(&operations, __ATOMIC_RELAXED) > least) break;
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (std::thread& t : threads) t.join();
    look_at_the_end();
    printf("%llu operations, %llu deaths\n", (unsigned long long)operations, (unsigned long long)died);
}
