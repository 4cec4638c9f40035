// The explorer's world: the segment, the kernel's model and the processes, each on a stack of its own; and how
// one of them takes a step, or dies.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

namespace bp::model {
void step();
void touch(const void* word);
void point(const char* name);
}
#define BP_STEP() ::bp::model::touch(this)
#define BP_POINT(name) ::bp::model::point(name)

#include "protocol/check.h"
#include "operations.h"

#ifndef __x86_64__
#error "the explorer switches stacks in assembly: written for x86-64"
#endif

namespace bp {

constexpr u32 PROCESSES = 5, CLIENTS = 4, FRAMES = 4, PAGES = 3, ENTRIES = 4, WORDS = 8, STACK = 24 << 10, ARENA = 4 << 10;
constexpr u32 GENERATIONS = 8;  // of the space's slot
constexpr u32 PAGE_BYTES = WORDS * 8, SEGMENT_BYTES = (6 << 10) + 768;
constexpr u64 DATA_AT = SEGMENT_BYTES - FRAMES * PAGE_BYTES;

enum Life : u32 { UNUSED, UNBORN, READY, WAITING, DONE, DEAD };

struct Process {
    Life life;
    bool timed_out;
    u8 hurried;       // so many of its waits may end before their time, and it gives up then
    bool gives_up;    // its last wait has ended before its time
    bool exited;      // it has ended, and its descriptions are closed
    const u32* word;  // waited on
    u32 expected;
    void* sp;
    u32 arena_used;
    u64 last_seen[PAGES];
    u32 inherited_frame, inherited_client;  // of a forked child
    Segment segment;
    alignas(16) u8 arena[ARENA];
};

struct World {
    alignas(64) u8 segment[SEGMENT_BYTES];
    u8 plugged[FRAMES];      // 1: the frame has memory; HUGE: it is a part of a huge page
    u8 entries_gone;         // the entries have no memory
    u8 refused;              // how many of the next requests for memory of frames the kernel refuses
    u8 byte_owner[16];       // the description that has the lock, + 1
    u8 holders[PROCESSES];   // of each description (the process's own has its number): a bit for each process
    u64 store[PAGES][WORDS], intended[PAGES], done[PAGES], synced[PAGES];
    u8 dropped[PAGES];  // without write-back: what was written may be gone
    u8 numbers[GENERATIONS][ENTRIES], appended[GENERATIONS][ENTRIES];  // by space: the process that has an append's number; that has written its page
    u8 opened;  // the generation of the newest space that was opened
    u32 failures, failures_over;         // of loads
    u8 loads[PROCESSES + 1], failed[PROCESSES + 1];  // by client
    u32 kills;
    Process processes[PROCESSES];
};

alignas(4096) static World world;

// The area of the objects; it is a part of the states of scenarios that use it.
constexpr u32 OBJECT_AREA = 4 << 10, OBJECT_DATA = 512, OBJECT_LOG_SHIFT = 7, OBJECT_OS_PAGE = ENTRIES * 8;
struct ObjectWorld {
    alignas(64) u8 area[OBJECT_AREA];
    u64 begin, data_at;  // in the file
    bool used;
    u8 memory[OBJECT_DATA / OBJECT_OS_PAGE];  // of the data, by OS page
    u8 loading[2];                            // by key: the process that loads it
    u32 loads[2];
    u64 passed;                               // time
    bool touched[2];                          // by key: somebody has made a value last for ever that had not expired
    u64 intended[2], floor[2];                // by key: the newest version that somebody puts; the oldest that may be found
};
alignas(4096) static ObjectWorld object_world;

// The segment of another page size, and the lock of the page sizes; part of the states of scenarios that use it. A
// process's descriptor of it has the number of its description and PROCESSES: both files are open for the same processes.
constexpr u32 OTHER_PAGE_BYTES = PAGE_BYTES / 2;
struct OtherSize {
    alignas(64) u8 segment[SEGMENT_BYTES];
    u8 plugged[FRAMES];
    u8 byte_owner[16];
    u32 sizes_owner;  // the process that has the lock of the page sizes, + 1: a flock, which ends with the process
    bool used;
    u64 most_bytes;  // the largest whole budget so far
    Segment segments[PROCESSES];
};
alignas(4096) static OtherSize other_size;

// The kernel's record of a file: its bytes, the memory of its frames, its locks.
struct FileModel {
    u8 *segment, *plugged, *byte_owner;
    u32 page_bytes;
};
static FileModel file_of(int fd) {
    if (fd < int(PROCESSES)) return {world.segment, world.plugged, world.byte_owner, PAGE_BYTES};
    return {other_size.segment, other_size.plugged, other_size.byte_owner, OTHER_PAGE_BYTES};
}
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

// A step, and then an access to a word.
void touch(const void* word) {
    step();
    auto entries = reinterpret_cast<const u8*>(world.processes[0].segment.entries), at = static_cast<const u8*>(word);
    if (world.entries_gone && at >= entries && at < entries + ENTRIES * 8) violation("an entry without memory was touched");
}

int lock_byte(int fd, long at) {
    u8 &owner = file_of(fd).byte_owner[at - LOCKS_AT], ours = u8(fd % int(PROCESSES) + 1);
    if (owner && owner != ours) return -EAGAIN;
    owner = ours;
    return 0;
}
void unlock_byte(int fd, long at) {
    u8& owner = file_of(fd).byte_owner[at - LOCKS_AT];
    if (owner == fd % int(PROCESSES) + 1) owner = 0;
}
bool byte_is_locked(int fd, long at) {
    u8 owner = file_of(fd).byte_owner[at - LOCKS_AT];
    return owner && owner != fd % int(PROCESSES) + 1;
}

// What stands in entries without memory: code that takes it for an entry, or changes it, touches what it must not touch.
constexpr u64 NO_ENTRY = entry::FRAME | RESIDENT;
static void require_untouched() {
    const Segment& s = world.processes[0].segment;
    for (u32 page = 0; world.entries_gone && page < ENTRIES; page++)
        if (s.entries[page].load_relaxed() != NO_ENTRY) violation("entry %u was touched while it had no memory", page);
}
static void set_entry_memory(bool gone) {
    require_untouched();
    Segment& s = world.processes[0].segment;
    for (u32 page = 0; gone != bool(world.entries_gone) && page < ENTRIES; page++) s.entries[page].store_relaxed(gone ? NO_ENTRY : 0);
    world.entries_gone = gone;
}

constexpr u8 HUGE = 2;

static void set_memory(int fd, u64 offset, u64 bytes, u8 value) {
    FileModel file = file_of(fd);
    u64 entries = world.processes[0].segment.g.entries_at;
    if (file.segment == world.segment && offset <= entries && entries < offset + bytes) set_entry_memory(!value);
    if (offset < DATA_AT) return;
    u64 first = (offset - DATA_AT) / file.page_bytes, end = (offset - DATA_AT + bytes) / file.page_bytes;
    u32 per = world.processes[0].segment.g.extent_frames;
    for (u64 f = first; f < end; f++) {
        if (value && file.plugged[f]) continue;
        if (file.plugged[f] == HUGE && (f / per * per < first || f / per * per + per > end))
            violation("frame %u was given back, which is a part of a huge page", u32(f));
        file.plugged[f] = value;
        if (!value) memset(file.segment + DATA_AT + f * file.page_bytes, 0, file.page_bytes);
    }
}
u32 object_pages() {
    u32 n = 0;
    for (u8 one : object_world.memory) n += one;
    return n;
}
static bool is_object(u64 offset) { return object_world.used && offset >= object_world.begin; }
static void set_object_memory(u64 offset, u64 bytes, u8 value) {
    if (offset < object_world.data_at) return;
    u64 first = (offset - object_world.data_at) / OBJECT_OS_PAGE;
    u64 end = (offset - object_world.data_at + bytes + OBJECT_OS_PAGE - 1) / OBJECT_OS_PAGE;
    for (u64 i = first; i < end; i++) {
        object_world.memory[i] = value;
        if (!value) memset(object_world.area + (object_world.data_at - object_world.begin) + i * OBJECT_OS_PAGE, 0, OBJECT_OS_PAGE);
    }
    u64 used = reinterpret_cast<ObjectsHeader*>(object_world.area)->used.load_relaxed();
    if (object_pages() > used) violation("the kernel has given %u OS pages to objects, and %u are counted", object_pages(), u32(used));
}
void require_object(const void* at, u64 bytes) {
    u64 first = u64(static_cast<const u8*>(at) - object_world.area) - (object_world.data_at - object_world.begin);
    for (u64 i = first / OBJECT_OS_PAGE; i <= (first + bytes - 1) / OBJECT_OS_PAGE; i++)
        if (!object_world.memory[i]) violation("an object without memory was touched");
}
u64 coarse_ns() { return 1 + object_world.passed; }
u8* object_at(u64 offset) { return object_world.area + (offset - object_world.begin); }
int plug(int fd, u64 offset, u64 bytes) {
    if (is_object(offset)) return set_object_memory(offset, bytes, 1), 0;
    if (offset >= DATA_AT && world.refused) return world.refused--, -ENOSPC;
    set_memory(fd, offset, bytes, 1);
    return 0;
}
// All frames get memory, those without a page too, as with MADV_COLLAPSE.
void make_huge(const void* at, u64 bytes) {
    u64 offset = u64(static_cast<const u8*>(at) - world.segment);
    for (u64 f = (offset - DATA_AT) / PAGE_BYTES; f < (offset - DATA_AT + bytes) / PAGE_BYTES; f++) world.plugged[f] = HUGE;
}
void punch(int fd, u64 offset, u64 bytes) {
    if (is_object(offset)) set_object_memory(offset, bytes, 0);
    else set_memory(fd, offset, bytes, 0);
}
void write_object(u64 offset, const void* from, u64 bytes) {
    set_object_memory(offset, bytes, 1);
    memcpy(object_at(offset), from, bytes);
}

void require_memory(const void* at) {
    auto p = static_cast<const u8*>(at);
    for (int fd : {0, int(PROCESSES)}) {
        FileModel file = file_of(fd);
        if (p < file.segment + DATA_AT || p >= file.segment + SEGMENT_BYTES) continue;
        if (!file.plugged[u64(p - file.segment - DATA_AT) / file.page_bytes]) violation("a frame without memory was touched");
    }
}

u32 process_id() { return u32(running) + 1; }  // 0: the process that looks at the end
bool holds(int description) {
    return running < 0 || (description >= 0 && world.holders[description % int(PROCESSES)] >> running & 1);
}
bool lives(u32 pid) {
    const Process& p = world.processes[pid - 1];
    return p.life != DEAD && p.life != UNBORN && p.life != UNUSED && !p.exited;
}

int futex_wait(const void* word, u32 expected) {
    if (running < 0) {  // the last process waits for nobody but the dead
        if (++last_waits > 1000) violation("the last process waits for ever");
        return -ETIMEDOUT;
    }
    Process& p = world.processes[running];
    // Two that load several pages each, in different orders, would wait for each other.
    const Atomic<u64>* entries = p.segment.entries;
    bool for_page = word >= entries && word < entries + ENTRIES;
    for (u32 page = 0; for_page && page < ENTRIES; page++)
        if (u64 e = entries[page].load_relaxed(); entry::among(e) && entry::owner(e) == p.segment.me)
            violation("client %u waits for a page while it has claimed page %u", p.segment.me, page);
    p.word = static_cast<const u32*>(word);
    p.expected = expected;
    p.life = WAITING;
    p.timed_out = p.gives_up = false;
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

// A process closes a description, whose locks are released when the last process has closed it.
static void close_description(int description, int process) {
    u8& holders = world.holders[description];
    holders &= u8(~(1u << process));
    if (holders) return;
    for (int fd : {0, int(PROCESSES)})
        for (u8& owner : std::span(file_of(fd).byte_owner, sizeof world.byte_owner))
            if (owner == description + 1) owner = 0;
}

static void close_all(int i) {
    for (int d = 0; d < int(PROCESSES); d++)
        if (world.holders[d] >> i & 1) close_description(d, i);
}

static void kill(int i) {
    world.processes[i].life = DEAD;
    world.kills++;
    close_all(i);
    if (other_size.sizes_owner == u32(i) + 1) other_size.sizes_owner = 0;
}

// At the end of a program: the process ends without detaching.
static void exit_process() {
    world.processes[running].exited = true;
    close_all(running);
}

// The child, which is UNBORN until now, has all descriptions that the parent has.
static void fork_process(int parent, int child) {
    for (u8& holders : world.holders)
        if (holders >> parent & 1) holders |= u8(1u << child);
    world.processes[child].life = READY;
}

}  // namespace bp
