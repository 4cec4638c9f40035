// The protocol, explored. The very headers of the core run here under a
// scheduler that owns every ordered atomic access and every system call: from
// each state it tries every process that can take a step, and the death of each,
// and never visits a state twice.
//
//   explore SCENARIO [MAX_KILLS [MAX_STATES]]      prints the states covered
//   explore SCENARIO replay "SCHEDULE"             tells what happens in one schedule
//
// A process is a stack of its own inside `world`, beside the segment, the kernel's
// model (prim_model.h) and the record of what was published; a state is a copy of
// all that is in use there. So a state is restored by copying it back: no replay.
//
// What must hold (violations end the run with status 1 and the schedule):
//   - a reader sees a whole page, of the right page, a version that was published
//     and not taken back, and never an older one than before;
//   - after the last process has ended, and one more has reaped the dead: check()
//     finds nothing, no pin, no BUSY and no OLD frame is left, every page holds its
//     newest done version or one that a writer died publishing, and the store never
//     has a page newer than the log allows or older than a clean page says.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <unordered_set>
#include <vector>

namespace bp::model {
void step();
void point(const char* name);
}
#define BP_STEP() ::bp::model::step()
#define BP_POINT(name) ::bp::model::point(name)

#include "check.h"
#include "flush.h"
#include "reclaim.h"

#ifndef __x86_64__
#error "the explorer switches stacks in assembly: written for x86-64"
#endif

namespace bp {

constexpr u32 PROCESSES = 4, FRAMES = 3, PAGES = 3, WORDS = 8, STACK = 24 << 10, ARENA = 4 << 10;
constexpr u32 PAGE_BYTES = WORDS * 8, SEGMENT_BYTES = (5 << 10) + 128;
constexpr u64 DATA_AT = SEGMENT_BYTES - FRAMES * PAGE_BYTES;

enum Life : u32 { UNUSED, READY, WAITING, DONE, DEAD };

struct Process {
    Life life;
    bool timed_out;
    const u32* word;  // waited on
    u32 expected;
    void* sp;
    u32 arena_used;
    u64 last_seen[PAGES];
    Segment segment;
    alignas(16) u8 arena[ARENA];
};

struct World {
    alignas(64) u8 segment[SEGMENT_BYTES];
    u8 plugged[FRAMES];
    u8 byte_owner[16];  // process + 1
    u64 store[PAGES][WORDS], intended[PAGES], done[PAGES], synced[PAGES];
    u32 kills;
    Process processes[PROCESSES];
};

alignas(4096) static World world;
alignas(4096) static u8 stacks[PROCESSES][STACK];
static int running = -1;
static void* scheduler_sp;
static u64 visited_states, ended_runs;
static std::string trail;
static bool telling;
static int last_waits;  // of the process that looks at the end

extern "C" void bp_switch(void** save, void* to);
asm(R"(
.text
.globl bp_switch
bp_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

[[noreturn]] static void violation(const char* format, ...) {
    va_list args;
    va_start(args, format);
    printf("VIOLATION: ");
    vprintf(format, args);
    va_end(args);
    printf("\nschedule: %s\n", trail.c_str());
    fflush(stdout);
    _Exit(1);
}

// ---- the kernel ----------------------------------------------------------------

namespace model {

void point(const char* name) {
    if (telling && running >= 0) printf("  %d %s\n", running, name);
}

void step() {
    if (running < 0) return;
    bp_switch(&world.processes[running].sp, scheduler_sp);
}

int lock_byte(int process, long at) {
    u8& owner = world.byte_owner[at - LOCKS_AT];
    if (owner && owner != process + 1) return -EAGAIN;
    owner = u8(process + 1);
    return 0;
}
void unlock_byte(int process, long at) {
    u8& owner = world.byte_owner[at - LOCKS_AT];
    if (owner == process + 1) owner = 0;
}
bool byte_is_locked(int process, long at) {
    u8 owner = world.byte_owner[at - LOCKS_AT];
    return owner && owner != process + 1;
}

static void set_memory(u64 offset, u64 bytes, u8 value) {
    if (offset < DATA_AT) return;
    for (u64 f = (offset - DATA_AT) / PAGE_BYTES; f < (offset - DATA_AT + bytes) / PAGE_BYTES; f++) {
        world.plugged[f] = value;
        if (!value) memset(world.segment + DATA_AT + f * PAGE_BYTES, 0, PAGE_BYTES);
    }
}
void plug(u64 offset, u64 bytes) { set_memory(offset, bytes, 1); }
void punch(u64 offset, u64 bytes) { set_memory(offset, bytes, 0); }

void require_memory(const void* at) {
    auto p = static_cast<const u8*>(at);
    if (p < world.segment + DATA_AT || p >= world.segment + SEGMENT_BYTES) return;
    if (!world.plugged[u64(p - world.segment - DATA_AT) / PAGE_BYTES]) violation("a frame without memory was touched");
}

int futex_wait(const void* word, u32 expected) {
    if (running < 0) {  // the last process waits for nobody but the dead
        if (++last_waits > 1000) violation("the last process waits for ever");
        return -ETIMEDOUT;
    }
    Process& p = world.processes[running];
    p.word = static_cast<const u32*>(word);
    p.expected = expected;
    p.life = WAITING;
    p.timed_out = false;
    step();
    return p.timed_out ? -ETIMEDOUT : 0;
}

}  // namespace model

// ---- processes -------------------------------------------------------------------

using Program = std::function<void(Segment&, Process&)>;
static Program programs[PROCESSES];
static const char* program_names[PROCESSES];

static void run_program() {
    Process& p = world.processes[running];
    programs[running](p.segment, p);
    p.life = DONE;
    model::step();
    abort();  // a process that is done is never resumed
}

static void prepare(int i, const char* name, Program program) {
    programs[i] = std::move(program);
    program_names[i] = name;
    auto top = reinterpret_cast<void**>(stacks[i] + STACK);
    memset(stacks[i], 0, STACK);
    *--top = nullptr;  // alignment: as after a call
    *--top = reinterpret_cast<void*>(run_program);
    for (int r = 0; r < 6; r++) *--top = nullptr;
    world.processes[i].sp = top;
    world.processes[i].life = READY;
}

static void resume(int i) {
    running = i;
    bp_switch(&scheduler_sp, world.processes[i].sp);
    running = -1;
}

static void kill(int i) {
    world.processes[i].life = DEAD;
    world.kills++;
    for (u8& owner : world.byte_owner)
        if (owner == i + 1) owner = 0;
}

// ---- what processes do -------------------------------------------------------------

static u64* page_words(Segment& s, u32 f) { return reinterpret_cast<u64*>(s.page_data(f)); }

static void read_frame(Segment& s, Process& me, u32 page, u32 f, u64 done_before) {
    model::require_memory(s.page_data(f));
    u64 first = page_words(s, f)[0];
    model::step();
    u64 last = page_words(s, f)[WORDS - 1];
    if (first != last) violation("page %u is mixed: %llx and %llx", page, (unsigned long long)first, (unsigned long long)last);
    if (first >> 32 != page) violation("page %u shows page %u", page, u32(first >> 32));
    u64 version = first & 0xffffffff;
    if (version < done_before) violation("page %u shows version %u after %u was published", page, u32(version), u32(done_before));
    if (version < me.last_seen[page]) violation("page %u went back from version %u to %u", page, u32(me.last_seen[page]), u32(version));
    if (version > world.intended[page]) violation("page %u shows a version that nobody wrote", page);
    me.last_seen[page] = version;
}

// A page pinned, loaded if need be; NONE when no frame can be had.
static u32 fetch(Segment& s, u32 page) {
    for (;;) {
        u32 f;
        Status status = pin(s, page, f);
        if (status == Status::OK) return f;
        if (status == Status::WAIT) {
            u64 e = s.entries[page].load_acquire();
            if (entry::state(e) == LOADING || entry::state(e) == EVICTING) wait_entry(s, page, e);
            continue;
        }
        if (status != Status::ABSENT) violation("pin ended with status %d", int(status));
        OpSlot op(s);
        if (begin_load(s, op.intent(), page) != Status::ABSENT) continue;
        FrameRequest want{page};
        if (take_frame(s, op.intent(), want, f) != Status::OK) {
            abort_load(s, op.intent(), page, NONE);
            return NONE;
        }
        prim::copy_page(s.page_data(f), world.store[page], PAGE_BYTES);
        finish_load(s, op.intent(), page, f, Image{});
        return f;
    }
}

static void read_page(Segment& s, Process& me, u32 page) {
    u64 done = world.done[page];
    u32 f = fetch(s, page);
    if (f == NONE) return;
    read_frame(s, me, page, f, done);
    unpin(s, f);
}

static void write_page(Segment& s, u32 page) {
    u32 f;
    for (;;) {
        Status status = begin_write(s, page, f);
        if (status == Status::OK) break;
        if (status == Status::WAIT) {
            u64 e = s.entries[page].load_acquire();
            if (entry::state(e) != ABSENT && (entry::state(e) != RESIDENT || entry::owner(e))) wait_entry(s, page, e);
        } else {
            u32 loaded = fetch(s, page);
            if (loaded == NONE) return;
            unpin(s, loaded);
        }
    }
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

// The flush lock is not taken: rule 6 must hold by the flusher field alone. `alone`: no
// other flusher is there, and so what was published before must be stored afterwards.
static void flush_pages(Segment& s, u64 durable, bool alone = false) {
    u64 before[PAGES];
    for (u32 p = 0; p < PAGES; p++) before[p] = world.done[p];
    OpSlot op(s);
    std::vector<FlushItem> items;
    u64 held_back = 0, written[PAGES] = {};
    begin_flush(s, op.intent(), 0, PAGES, durable, PAGES, items, held_back);
    for (FlushItem& it : items) {
        u64 version = page_words(s, it.frame)[0] & 0xffffffff;
        if (version > durable) violation("page %u: version %u written ahead of the log", it.page, u32(version));
        model::step();
        u64 before = world.store[it.page][0] & 0xffffffff;
        if (version < before) violation("page %u: version %u written over %u", it.page, u32(version), u32(before));
        model::require_memory(s.page_data(it.frame));
        // Into the operating system's cache: not durable before the sync.
        written[it.page] = version;
        prim::copy_page(world.store[it.page], s.page_data(it.frame), PAGE_BYTES);
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
        if (entry::state(e) != RESIDENT || (e & entry::DIRTY)) continue;
        u64 version = page_words(s, entry::frame(e))[0] & 0xffffffff;
        if (version > world.synced[page]) violation("page %u is clean at version %u, the store is sure of %u", page, u32(version), u32(world.synced[page]));
        if (memcmp(world.store[page], page_words(s, entry::frame(e)), PAGE_BYTES)) violation("page %u is clean, and the store has something else", page);
    }
}

static void shrink_one(Segment& s, bool evict) {
    Reclaimed done;
    shrink(s, 1, TRIM, evict, done);
}

// Compaction: the page moves to another frame, and the old frame goes to the kernel.
static void move_and_release(Segment& s, u32 page) {
    OpSlot op(s);
    FrameRequest want{};
    u32 g;
    if (take_frame(s, op.intent(), want, g) != Status::OK) return;
    u64 e = s.entries[page].load_acquire();
    bool ours = false;
    bool moved = entry::state(e) == RESIDENT && move_page(s, op.intent(), entry::frame(e), g, ours);
    if (!moved) return free_frame(s, g);
    if (!ours) return;
    std::vector<u32> out{entry::frame(e)};
    release_frames(s, out, TRIM);
}

static void drop_and_count(Segment& s, u32 page) {
    u32 freed = 0;
    // Without write-back: the newest version that counts is the store's.
    OpSlot op(s);
    drop_page(s, op.intent(), page, HASTY, freed);
}

// ---- the start -----------------------------------------------------------------------

static void make_segment(u32 budget, u32 frames) {
    Geometry g{};
    g.page_size = PAGE_BYTES;
    g.page_shift = u32(__builtin_ctz(PAGE_BYTES));
    g.os_page = 64;
    g.extent_frames = 1;
    g.max_frames = frames;
    g.max_clients = PROCESSES;
    g.stripe_clients = 4;
    g.ring_capacity = 12;
    g.max_pages = PAGES;
    u64 at = round_up(sizeof(Header), 64);
    auto take = [&](u64 bytes) {
        u64 here = at;
        at = round_up(at + bytes, 64);
        return here;
    };
    g.clients_at = take(PROCESSES * sizeof(Client));
    g.spaces_at = take(sizeof(SpaceSlot) * MAX_SPACES);
    g.entries_at = take(PAGES * 8);
    g.frames_at = take(frames * sizeof(FrameSlot));
    g.stripe_bytes = frames * 8;
    g.pins_at = take(STRIPES * g.stripe_bytes);
    g.queues_at = take(g.queue_bytes());
    if (at > DATA_AT) {
        fprintf(stderr, "SEGMENT_BYTES must grow by %llu\n", (unsigned long long)(at - DATA_AT));
        abort();
    }
    g.data_at = DATA_AT;
    g.total_bytes = SEGMENT_BYTES;
    auto h = reinterpret_cast<Header*>(world.segment);
    h->budget_frames.store_relaxed(budget);
    h->frames_ready.store_relaxed(frames);
    for (u32 i = 0; i < PROCESSES; i++) {
        Process& p = world.processes[i];
        new (&p.segment) Segment;
        p.segment.map(world.segment, g);
        p.segment.fd = int(i);
        p.segment.has_frame(frames - 1);
    }
    Segment& s = world.processes[0].segment;
    SpaceSlot& slot = s.spaces[0];
    slot.extent.store_relaxed(u64(1) << GENERATION_SHIFT | PAGES);
    slot.entries_ready.store_relaxed(PAGES);
    slot.max_pages.store_relaxed(PAGES);
    slot.state.store_relaxed(SPACE_LIVE);
    s.chunk_bits[0].store_relaxed(1);
    for (u32 f = 0; f < frames; f++) s.holes.add(f);
    for (u32 page = 0; page < PAGES; page++)
        for (u64& w : world.store[page]) w = u64(page) << 32;
}

// The last process: reaps, then everything must be in order.
static void end_check() {
    for (Process& p : world.processes)
        if (p.life == READY || p.life == WAITING) violation("a process never ended");
    Segment* s = nullptr;
    for (Process& p : world.processes)
        if (!s && p.life == UNUSED) s = &p.segment;
    if (!s) abort();
    last_waits = 0;
    if (attach(*s) != Status::OK) violation("nobody can attach any more");
    reap_all(*s);
    check_clean_is_synced(*s);
    for (const std::string& found : check(*s, 1)) violation("%s", found.c_str());
    for (u32 f = 0; f < s->ready; f++) {
        FrameState state = frame::state(s->frames[f].word.load_relaxed());
        if (state == BUSY || state == OLD) violation("frame %u is left %s", f, name(state));
        if (s->any_pin(f)) violation("frame %u is left pinned", f);
        if ((state == HOLE) != !world.plugged[f]) violation("frame %u is %s and the kernel disagrees", f, name(state));
    }
    for (u32 c = 1; c <= PROCESSES; c++)
        if (s->clients[c - 1].state.load_relaxed() == CLIENT_LIVE && !world.byte_owner[c]) violation("client %u is dead and not reaped", c);
    for (u32 page = 0; page < PAGES; page++) {
        u64 e = s->entries[page].load_relaxed();
        if (entry::state(e) != RESIDENT && entry::state(e) != ABSENT) violation("page %u is left %s", page, name(entry::state(e)));
        const u64* words = entry::state(e) == RESIDENT ? page_words(*s, entry::frame(e)) : world.store[page];
        u64 version = words[0] & 0xffffffff;
        if (words[0] != words[WORDS - 1] || words[0] >> 32 != page) violation("page %u is left damaged", page);
        if (version < world.done[page]) violation("page %u: version %u is lost, %u is left", page, u32(world.done[page]), u32(version));
        if (version > world.intended[page]) violation("page %u has a version that nobody wrote", page);
        if (entry::owner(e) || entry::flusher(e)) violation("page %u is left owned", page);
    }
}

// ---- the search ------------------------------------------------------------------------

// A copy of everything in use: the world, and each stack from its top down to its pointer.
static void copy_state(std::vector<u8>& out) {
    out.clear();
    auto add = [&](const void* from, size_t n) { out.insert(out.end(), static_cast<const u8*>(from), static_cast<const u8*>(from) + n); };
    add(&world, offsetof(World, processes));
    for (u32 i = 0; i < PROCESSES; i++) {
        Process& p = world.processes[i];
        add(&p, offsetof(Process, arena));
        add(p.arena, p.arena_used);
        if (p.life == READY || p.life == WAITING) add(p.sp, size_t(stacks[i] + STACK - static_cast<u8*>(p.sp)));
    }
}

static void restore_state(const std::vector<u8>& in) {
    const u8* from = in.data();
    auto take = [&](void* to, size_t n) {
        memcpy(to, from, n);
        from += n;
    };
    take(&world, offsetof(World, processes));
    for (u32 i = 0; i < PROCESSES; i++) {
        Process& p = world.processes[i];
        take(&p, offsetof(Process, arena));
        take(p.arena, p.arena_used);
        if (p.life == READY || p.life == WAITING) take(p.sp, size_t(stacks[i] + STACK - static_cast<u8*>(p.sp)));
    }
}

static u64 hash_of(const std::vector<u8>& bytes) {
    u64 lanes[4] = {1, 2, 3, 4};
    size_t i = 0;
    for (; i + 32 <= bytes.size(); i += 32) {
        u64 w[4];
        memcpy(w, bytes.data() + i, 32);
        for (int k = 0; k < 4; k++) {
            lanes[k] = (lanes[k] ^ w[k]) * 0xff51afd7ed558ccd;
            lanes[k] ^= lanes[k] >> 29;
        }
    }
    u64 h = bytes.size();
    for (; i < bytes.size(); i++) h = (h ^ bytes[i]) * 0x100000001b3;
    for (u64 lane : lanes) {
        h = (h ^ lane) * 0xc4ceb9fe1a85ec53;
        h ^= h >> 31;
    }
    return h;
}

struct Choice {
    u8 process, kill, timeout;
};

static std::vector<Choice> choices(u32 max_kills) {
    std::vector<Choice> out;
    bool enabled = false, waiting = false;
    for (u8 i = 0; i < PROCESSES; i++) {
        Process& p = world.processes[i];
        bool changed = p.life == WAITING && *p.word != p.expected;
        if (p.life == READY || changed) {
            out.push_back({i, 0, 0});
            enabled = true;
        }
        waiting |= p.life == WAITING;
        if ((p.life == READY || p.life == WAITING) && world.kills < max_kills) out.push_back({i, 1, 0});
    }
    if (!enabled && waiting)  // the slices of the waits run out
        for (u8 i = 0; i < PROCESSES; i++)
            if (world.processes[i].life == WAITING) out.push_back({i, 0, 1});
    return out;
}

static void explore(u32 max_kills, u64 max_states) {
    struct Level {
        std::vector<u8> state;
        std::vector<Choice> open;
    };
    std::vector<Level> levels;
    std::unordered_set<u64> seen;
    std::vector<u8> now;
    auto enter = [&] {
        copy_state(now);
        if (seen.size() >= max_states || !seen.insert(hash_of(now)).second) return;
        visited_states++;
        std::vector<Choice> open = choices(max_kills);
        bool alive = false;
        for (Process& p : world.processes) alive |= p.life == READY || p.life == WAITING;
        if (!alive) {
            ended_runs++;
            end_check();
            return;
        }
        levels.push_back({std::move(now), std::move(open)});
    };
    enter();
    while (!levels.empty()) {
        Level& level = levels.back();
        if (level.open.empty()) {
            levels.pop_back();
            if (!trail.empty()) trail.resize(trail.size() - 3);
            continue;
        }
        Choice c = level.open.back();
        level.open.pop_back();
        restore_state(level.state);
        size_t depth = levels.size();
        trail.push_back(c.kill ? '!' : c.timeout ? '~' : ' ');
        trail += program_names[c.process][0];
        trail += char('0' + c.process);
        if (c.kill) {
            kill(c.process);
        } else {
            Process& p = world.processes[c.process];
            if (p.life == WAITING) {
                p.timed_out = c.timeout;
                p.life = READY;
            }
            resume(c.process);
        }
        enter();
        if (levels.size() == depth) trail.resize(trail.size() - 3);
    }
    if (seen.size() >= max_states) printf("(bounded) ");
}

static void tell_words() {
    static std::string last;
    std::string now;
    Segment& s = world.processes[0].segment;
    for (u32 p = 0; p < PAGES; p++) {
        u64 e = s.entries[p].load_relaxed();
        now += say(" p%u=%s,f%d,o%u,fl%u%s%s", p, name(entry::state(e)), entry::state(e) > LOADING ? int(entry::frame(e)) : -1, entry::owner(e), entry::flusher(e), e & entry::DIRTY ? ",D" : "", e & entry::WAITED ? ",W" : "");
    }
    for (u32 f = 0; f < s.g.max_frames; f++) {
        u64 w = s.frames[f].word.load_relaxed();
        now += say(" | f%u=%s,c%u,p%d", f, name(frame::state(w)), frame::client(w), int(frame::page(w)));
    }
    now += say(" | lock=%x", s.header->memory.word.load_relaxed());
    if (now != last) printf("%s\n", now.c_str());
    last = now;
}

static void replay(const std::string& schedule) {
    telling = true;
    for (size_t i = 0; i + 2 < schedule.size() + 0 || i + 2 == schedule.size() - 1; i += 3) {
        int c = schedule[i + 2] - '0';
        printf("%c%c%d\n", schedule[i], schedule[i + 1], c);
        Process& p = world.processes[c];
        if (schedule[i] == '!') {
            kill(c);
            continue;
        }
        if (p.life == WAITING) {
            p.timed_out = schedule[i] == '~';
            p.life = READY;
        }
        resume(c);
        tell_words();
    }
    end_check();
}

// ---- scenarios -----------------------------------------------------------------------------

struct Scenario {
    const char* name;
    u32 budget, frames;
    std::vector<u32> preload;  // pages resident at the start
    std::vector<std::pair<const char*, Program>> processes;
};

static Program reads(u32 page, int n = 1) {
    return [=](Segment& s, Process& me) {
        for (int i = 0; i < n; i++) read_page(s, me, page);
    };
}
static Program reads_both(u32 page, u32 other) {
    return [=](Segment& s, Process& me) {
        read_page(s, me, page);
        read_page(s, me, other);
    };
}
static Program writes(u32 page, int n = 1) {
    return [=](Segment& s, Process&) {
        for (int i = 0; i < n; i++) write_page(s, page);
    };
}
static Program flushes(u64 durable = ~u64(0)) {
    return [=](Segment& s, Process&) { flush_pages(s, durable); };
}
static Program checkpoints(u32 page) {
    return [=](Segment& s, Process&) { checkpoint(s, page); };
}
static Program writes_and_checkpoints(u32 page, u64 durable = ~u64(0)) {
    return [=](Segment& s, Process&) {
        write_page(s, page);
        checkpoint(s, page, durable);
    };
}
static Program shrinks(bool evict) {
    return [=](Segment& s, Process&) { shrink_one(s, evict); };
}
static Program moves(u32 page) {
    return [=](Segment& s, Process&) { move_and_release(s, page); };
}
static Program reaps() {
    return [](Segment& s, Process&) { reap_all(s); };
}
static Program drops(u32 page) {
    return [=](Segment& s, Process&) { drop_and_count(s, page); };
}
static Program drops_clean() {
    return [](Segment& s, Process&) {
        u32 freed = 0;
        drop_clean(s, 0, PAGES, freed);
    };
}
static Program detaches(u32 page) {
    return [=](Segment& s, Process& me) {
        read_page(s, me, page);
        detach(s);
    };
}

static std::vector<Scenario> scenarios() {
    return {
        {"pin-evict", 2, 2, {0, 1}, {{"R", reads(1, 2)}, {"L", reads(2)}}},
        {"pin-evict-hot", 1, 1, {0}, {{"R", reads(0, 2)}, {"L", reads(2)}}},
        {"write-pin", 3, 3, {0}, {{"W", writes(0, 2)}, {"R", reads(0, 2)}}},
        {"write-evict", 2, 2, {0}, {{"W", writes(0)}, {"L", reads(2)}}},
        {"write-write", 3, 3, {0}, {{"W", writes(0)}, {"V", writes(0)}}},
        {"load-load", 2, 2, {}, {{"L", reads(0)}, {"M", reads(0)}}},
        {"load-load-evict", 1, 1, {1}, {{"L", reads(0)}, {"M", reads(0)}}},
        {"flush-write", 3, 3, {0}, {{"W", writes(0, 2)}, {"F", flushes()}}},
        {"flush-log", 3, 3, {0}, {{"W", writes(0, 2)}, {"F", flushes(1)}}},
        {"flush-flush", 3, 3, {0}, {{"W", writes(0, 2)}, {"F", flushes()}, {"G", flushes()}}},
        {"flush-evict", 2, 2, {0}, {{"W", writes(0)}, {"F", flushes()}, {"L", reads(2)}}},
        {"retire-pin", 2, 2, {0}, {{"W", writes(0, 3)}, {"R", reads(0)}}},
        {"move-pin", 3, 3, {0, 1}, {{"C", moves(1)}, {"R", reads(1, 2)}}},
        {"move-write", 3, 3, {0, 1}, {{"C", moves(1)}, {"W", writes(1)}}},
        {"move-evict", 2, 2, {0}, {{"C", moves(0)}, {"L", reads(2)}}},
        {"move-flush", 3, 3, {0}, {{"W", writes(0)}, {"F", flushes()}, {"C", moves(0)}}},
        {"checkpoint-move", 3, 3, {0}, {{"W", writes_and_checkpoints(0)}, {"C", moves(0)}}},
        {"checkpoint-write", 3, 3, {0}, {{"W", writes(0, 2)}, {"K", checkpoints(0)}}},
        {"checkpoint-log", 3, 3, {0}, {{"W", writes_and_checkpoints(0, 0)}, {"C", moves(0)}}},
        {"move-move", 3, 3, {0}, {{"C", moves(0)}, {"D", moves(0)}}},
        {"trim-load", 2, 2, {0, 1}, {{"T", shrinks(true)}, {"L", reads(2)}}},
        {"trim-write", 3, 3, {0, 1}, {{"T", shrinks(true)}, {"W", writes(1)}}},
        {"drop-pin", 2, 2, {0, 1}, {{"D", drops(0)}, {"R", reads(0)}}},
        {"drop-flush", 2, 2, {0, 1}, {{"D", drops(1)}, {"F", flushes()}}},
        {"drop-clean-write", 3, 3, {0}, {{"D", drops_clean()}, {"W", writes(0, 2)}}},
        {"reap-load", 2, 2, {0}, {{"L", reads(2)}, {"X", reaps()}}},
        {"reap-evict", 1, 1, {0}, {{"L", reads(2)}, {"X", reaps()}}},
        {"reap-write", 3, 3, {0}, {{"W", writes(0)}, {"X", reaps()}}},
        {"reap-move", 3, 3, {0}, {{"C", moves(0)}, {"X", reaps()}}},
        {"reap-drop", 2, 2, {0}, {{"D", drops(0)}, {"X", reaps()}}},
        {"reap-write-pin", 2, 2, {0}, {{"W", writes(0)}, {"R", reads(0)}, {"X", reaps()}}},
        {"reap-flush", 3, 3, {0}, {{"W", writes(0)}, {"F", flushes()}, {"X", reaps()}}},
        {"reap-reload", 1, 1, {0}, {{"L", reads(2)}, {"M", reads_both(0, 2)}, {"X", reaps()}}},
        {"detach", 2, 2, {0}, {{"D", detaches(0)}, {"W", writes(0)}}},
        {"three", 3, 3, {0, 1}, {{"R", reads(0)}, {"W", writes(0)}, {"L", reads(2)}}},
    };
}

static int run(const Scenario& sc, u32 max_kills, u64 max_states, const char* schedule) {
    memset(static_cast<void*>(&world), 0, sizeof world);
    make_segment(sc.budget, sc.frames);
    u32 n = u32(sc.processes.size());
    for (u32 i = 0; i < n; i++)
        if (attach(world.processes[i].segment) != Status::OK) abort();
    for (u32 page : sc.preload) {
        u32 f = fetch(world.processes[0].segment, page);
        if (f == NONE) abort();
        unpin(world.processes[0].segment, f);
    }
    for (u32 i = 0; i < n; i++) prepare(int(i), sc.processes[i].first, sc.processes[i].second);
    visited_states = ended_runs = 0;
    trail.clear();
    if (schedule) {
        replay(schedule);
        return 0;
    }
    explore(max_kills, max_states);
    printf("%s: %llu states, %llu ends, at most %u deaths\n", sc.name, (unsigned long long)visited_states, (unsigned long long)ended_runs, max_kills);
    fflush(stdout);
    return 0;
}

}  // namespace bp

// Memory that a process asks for belongs to its state.
void* operator new(size_t n) {
    using namespace bp;
    if (running < 0) return malloc(n);
    Process& p = world.processes[running];
    n = (n + 15) & ~size_t(15);
    if (p.arena_used + n > ARENA) abort();
    void* at = p.arena + p.arena_used;
    p.arena_used += u32(n);
    return at;
}
void operator delete(void* at) noexcept {
    auto p = static_cast<bp::u8*>(at), first = reinterpret_cast<bp::u8*>(&bp::world);
    if (p < first || p >= first + sizeof bp::world) free(at);
}
void operator delete(void* at, size_t) noexcept { operator delete(at); }

int main(int argc, char** argv) {
    std::string wanted = argc > 1 ? argv[1] : "all";
    bp::u32 kills = argc > 2 ? bp::u32(atoi(argv[2])) : 1;
    bool replay = argc > 3 && std::string(argv[2]) == "replay";
    bp::u64 states = argc > 3 && !replay ? strtoull(argv[3], nullptr, 10) : 3'000'000;
    bool found = false;
    for (const bp::Scenario& sc : bp::scenarios()) {
        if (wanted == "list") puts(sc.name);
        if (wanted != "all" && wanted != sc.name) continue;
        found = true;
        bp::run(sc, kills, states, replay ? argv[3] : nullptr);
    }
    return found || wanted == "list" ? 0 : 2;
}
