// The explorer's scenarios: how a world begins, what each of its processes does, and what must hold at its end.
#pragma once

#include "object_actors.h"
#include "size_actors.h"
#include "space_actors.h"

namespace bp {

// ---- the start -----------------------------------------------------------------------

// The pool's segment for `first_fd` 0, that of the other page size for PROCESSES.
static void make_segment(int first_fd, u32 budget, u32 frames, u32 ready, u32 pages, u32 clients, u32 guests, u32 extent_frames, bool huge_pages = false) {
    FileModel file = file_of(first_fd);
    Geometry g{};
    g.page_size = file.page_bytes;
    g.page_shift = u32(__builtin_ctz(file.page_bytes));
    g.os_page = ENTRIES * 8;
    g.extent_frames = extent_frames;
    g.huge_pages = huge_pages;
    g.max_frames = frames;
    g.max_clients = clients;
    g.guests = guests;
    g.stripe_clients = 4;
    g.max_pages = ENTRIES;
    u64 at = round_up(sizeof(Header), 64);
    auto take = [&](u64 bytes) {
        u64 here = at;
        at = round_up(at + bytes, 64);
        return here;
    };
    g.clients_at = take(clients * sizeof(Client));
    g.spaces_at = take(sizeof(SpaceSlot) * MAX_SPACES);
    g.texts_at = take(sizeof(SpaceTexts) * MAX_SPACES);
    g.long_texts_at = take(sizeof(LongTexts) * MAX_SPACES);
    g.use_row_bytes = MAX_SPACES * sizeof(Uses);
    g.uses_at = take(g.use_rows() * g.use_row_bytes);
    g.entries_at = take(ENTRIES * 8);
    g.frames_at = take(frames * sizeof(FrameSlot));
    g.stripe_bytes = frames * 8;
    g.pins_at = take(g.stripes() * g.stripe_bytes);
    place_queues(g, take);
    if (at > DATA_AT) {
        fprintf(stderr, "SEGMENT_BYTES must grow by %llu\n", (unsigned long long)(at - DATA_AT));
        abort();
    }
    g.data_at = DATA_AT;
    g.total_bytes = SEGMENT_BYTES;
    auto h = reinterpret_cast<Header*>(file.segment);
    h->budget_frames.store_relaxed(budget);
    h->frames_ready.store_relaxed(doubled(ready));
    h->spaces_ready.store_relaxed(doubled(MAX_SPACES));
    for (RingState* ring : {&h->policy.cold, &h->policy.hot}) {
        ring->capacity = ring_capacity(g, ready);
        if (ready < frames) ring->head = ring->capacity - 1;
    }
    for (u32 i = 0; i < PROCESSES; i++) {
        Segment& s = first_fd ? other_size.segments[i] : world.processes[i].segment;
        new (&s) Segment;
        s.map(file.segment, g);
        s.fd = first_fd + int(i);
        s.interrupted = [](Segment&) { return running >= 0 && world.processes[running].gives_up; };
        s.look_at_ready();
    }
    Segment& s = first_fd ? other_size.segments[0] : world.processes[0].segment;
    SpaceSlot& slot = s.spaces[0];
    slot.span.store_relaxed(u64(1) << GENERATION_SHIFT | pages);
    slot.allocated.store_relaxed(space_span(1, pages));
    slot.entries_ready.store_relaxed(ENTRIES);
    slot.max_pages.store_relaxed(PAGES);
    slot.state.store_relaxed(SPACE_LIVE);
    s.set_entry_chunk(0);
    for (u32 f = 0; f < ready; f++) s.holes.add(f);
    for (u32 page = 0; page < PAGES; page++)
        for (u64& w : world.store[page]) w = u64(page) << 32;
}

struct Scenario {
    const char* name;
    u32 budget, frames;
    std::vector<u32> preload;  // pages resident at the start
    std::vector<std::pair<const char*, Program>> processes;
    u32 pages = PAGES;         // of the space
    bool opens_spaces = false;
    u32 newcomer = NONE;       // the process that is no client at the start
    u32 clients = CLIENTS;
    u32 child = NONE;          // the process that process 0 forks
    u32 unready = 0;           // frames that have no slots at the start, and rings that wrap then
    u32 crowd = 0;             // clients that live and do nothing: the next ones have pin rows of another block
    u32 guests = 0;            // of the clients' slots
    u32 hurried = 0;           // waits that the first process may give up
    u32 refused = 0;           // requests for memory of frames
    u32 extent_frames = 1;
    bool huge_pages = false;   // an extent is a huge page
    u32 owner = NONE;          // the process whose private space it is
    u32 limit = 0;             // of the space's share, in pages
    bool as_one = false;       // pages 0 and 1 are only written together
    std::function<void(Segment&)> objects = nullptr;  // what is put at the start; null: the pool has no cache
    bool once = false;         // without a death each key is loaded once
    bool has_room = false;     // for a value of each key: none is evicted or refused
    bool gives_entries = false;  // the memory of entries leaves with their space
    u32 other_budget = 0, other_frames = 0;  // of the other page size; 0: there is none
    std::vector<u32> other_preload;          // its pages: those that the pool's own size does not have
};

static void make_other_size(const Scenario& sc) {
    make_segment(PROCESSES, sc.other_budget, sc.other_frames, sc.other_frames, sc.pages, sc.clients, sc.guests, sc.extent_frames);
    for (Segment& s : other_size.segments) s.keeps_entries = true;
    other_size.used = true;
    Header& home = *world.processes[0].segment.header;
    home.other_sizes.store_relaxed(OTHER_PAGE_BYTES);
    home.whole_budget_bytes.store_relaxed(u64(sc.budget) * PAGE_BYTES + u64(sc.other_budget) * OTHER_PAGE_BYTES);
}
static void attach_other(u32 process) {
    Segment& s = other_size.segments[process];
    if (attach(s) != Status::OK) abort();
    s.client().pid.store_relaxed(process + 1);
    s.client().start_time.store_relaxed(process + 1);
}

static const u64* content_of(Segment& s, u32 page) {
    u64 e = s.entries[page].load_relaxed();
    return entry::state(e) == RESIDENT ? page_words(s, entry::frame(e)) : world.store[page];
}
static u64 version_of(Segment& s, u32 page) { return content_of(s, page)[0] & 0xffffffff; }

static void check_content(Segment& s) {
    check_clean_is_synced(s);
    for (u32 page = 0; page < PAGES; page++) {
        if (other_size.used && !is_page_of(s, page)) continue;
        const u64* words = content_of(s, page);
        u64 version = words[0] & 0xffffffff;
        if (words[0] != words[last_word(s)] || words[0] >> 32 != page) violation("page %u is left damaged", page);
        if (version < world.done[page] && !world.dropped[page]) violation("page %u: version %u is lost, %u is left", page, u32(world.done[page]), u32(version));
        if (version > world.intended[page]) violation("page %u has a version that nobody wrote", page);
    }
}

// At the end the count is that of the frames; a doubt is settled first.
static void check_share(Segment& s) {
    while (!lock_memory(s, false)) {}
    if (s.header->shares.doubt.load_relaxed()) recount_shares(s);
    unlock_memory(s);
    u32 n = 0, counted = share_frames(s.header->shares.list[0].frames.load_relaxed());
    for (u32 f = 0; f < s.ready; f++) n += frame::state(s.frames[f].word.load_relaxed()) == LIVE;
    if (n != counted) violation("the space has %u pages, and %u are counted", n, counted);
}

// After the dead of a segment are reaped: nothing of them is left, and the kernel has what the words say.
static void check_segment(Segment& s, const FileModel& file) {
    Findings found;
    if (check(s, 1, found) != Status::OK) abort();
    for (const Finding& finding : found) violation("%s", finding.text);
    for (u32 f = 0; f < s.ready; f++) {
        FrameState state = frame::state(s.frames[f].word.load_relaxed());
        if (state == BUSY || state == RETIRED) violation("frame %u is left %s", f, name(state));
        if (any_pin(s, f)) violation("frame %u is left pinned", f);
        if ((state == HOLE) != !file.plugged[f]) violation("frame %u is %s and the kernel disagrees", f, name(state));
    }
    for (u32 c = 1; c <= s.g.max_clients; c++)
        if (s.clients[c - 1].state.load_relaxed() == CLIENT_LIVE && !file.byte_owner[c]) violation("client %u is dead and not reaped", c);
    for (u32 page = 0; page < ENTRIES; page++) {
        u64 e = s.entries[page].load_relaxed();
        if (entry::state(e) != RESIDENT && entry::state(e) != ABSENT) violation("page %u is left %s", page, name(entry::state(e)));
        if (entry::owner(e) || entry::flusher(e)) violation("page %u is left owned", page);
    }
}

// The other page size at the end, and what both have together after the last process has moved memory, too.
static void check_sizes(Segment& home) {
    Segment& other = other_size.segments[home.fd];
    if (attach(other) != Status::OK) violation("nobody can attach to the other page size any more");
    reap_all(other);
    check_content(other);
    give_out_what_nobody_has(home, other);
    check_segment(other, file_of(int(PROCESSES)));
    require_nothing_lost(home, other);
}

// The last process: reaps, then everything must be in order.
static void end_check(const Scenario& scenario) {
    for (Process& p : world.processes)
        if (p.life == READY || p.life == WAITING) violation("a process never ended");
    Segment* s = nullptr;
    for (Process& p : world.processes)
        if (!s && p.life == UNUSED) s = &p.segment;
    if (!s) abort();
    last_waits = 0;
    if (attach(*s) != Status::OK) violation("nobody can attach any more");
    reap_all(*s);
    if (scenario.objects) check_objects_at_end(*s, scenario.once);
    if (scenario.has_room && !world.kills) check_all_are_kept(*s);
    if (scenario.limit) check_share(*s);
    if (scenario.opens_spaces) check_spaces(*s);
    else check_content(*s);
    if (scenario.as_one && version_of(*s, 0) != version_of(*s, 1)) violation("pages 0 and 1 were published as one, and are left with versions %u and %u", u32(version_of(*s, 0)), u32(version_of(*s, 1)));
    if (other_size.used) check_sizes(*s);
    check_segment(*s, file_of(0));
}

// ---- scenarios -----------------------------------------------------------------------------

static Program reads(u32 page, int n = 1) {
    return [=](Segment& s, Process& me) {
        for (int i = 0; i < n; i++) read_page(s, me, page);
    };
}
static Program fails_to_read(u32 page) {
    return [=](Segment& s, Process&) { fail_to_read(s, page); };
}
static Program reads_together(u32 page, u32 other) {
    return [=](Segment& s, Process& me) { read_pages(s, me, page, other); };
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
static Program reads_past(u32 page) {
    return [=](Segment& s, Process& me) { read_past(s, me, page); };
}
static Program reads_discardable(u32 page, u32 times) {
    return [=](Segment& s, Process& me) {
        for (u32 i = 0; i < times; i++) read_discardable(s, me, page);
    };
}
static Program writes_discardable(u32 page) {
    return [=](Segment& s, Process&) { replace_page(s, page, 100, true); };
}
static Program replaces(u32 page, u64 version = 100) {
    return [=](Segment& s, Process&) { replace_page(s, page, version); };
}
// Asks for a page whose loads fail, and then, perhaps, for the same page when they do not.
static Program asks(u32 page, bool fails, bool again = false) {
    return [=](Segment& s, Process&) {
        ask(s, page, fails);
        if (!again) return;
        world.loads[s.me]++;  // from here on its failure may be forgotten
        ask(s, page, false);
    };
}
static Program flushes(u64 durable = ~u64(0)) {
    return [=](Segment& s, Process&) { flush_pages(s, durable); };
}
static Program writes_and_flushes(u32 page) {
    return [=](Segment& s, Process&) {
        write_page(s, page);
        flush_pages(s, ~u64(0));
    };
}
static Program writes_as_one(u32 one, u32 other, int n = 1) {
    return [=](Segment& s, Process&) {
        for (int i = 0; i < n; i++) write_group(s, one, other);
    };
}
// In the last group each page gets the frame that the other one had in the first.
static Program writes_crosswise(u32 one, u32 other) {
    return [=](Segment& s, Process&) {
        write_group(s, one, other);
        write_group(s, one, other);
        write_group(s, other, one);
    };
}
static Program reads_as_one(u32 one, u32 other) {
    return [=](Segment& s, Process& me) { read_group(s, me, one, other); };
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
// Empties an extent of two frames into the place of a page that it drops first, and gives it back.
static Program drops_and_compacts(u32 page) {
    return [=](Segment& s, Process&) {
        drop_and_count(s, page);
        Reclaimed done;
        shrink(s, 2, TRIM, false, done);
    };
}
static Program gives_back_holes() {
    return [](Segment& s, Process&) { punch_holes(s); };
}
static Program moves(u32 page) {
    return [=](Segment& s, Process&) { move_and_release(s, page); };
}
static Program reaps() {
    return [](Segment& s, Process&) { reap_all(s); };
}
static Program sweeps() {
    return [](Segment& s, Process&) { sweep_retired(s); };
}
// Takes the lock of a space's flushes, and releases it.
static Program locks() {
    return [](Segment& s, Process&) {
        if (acquire(s, s.spaces[0].flush_lock) == Acquired::REPAIR) repaired(s, s.spaces[0].flush_lock);
        release(s, s.spaces[0].flush_lock);
    };
}
// A client that has just attached owns no lock, even if the last client with its number died with one.
static Program comes() {
    return [](Segment& s, Process&) {
        if (attach(s) != Status::OK) return;
        for (LockWord* lock : {&s.header->memory, &s.header->directory, &s.header->growth, &s.spaces[0].flush_lock})
            if ((lock->word.load_relaxed() & lock_word::OWNER) == s.me) violation("a lock is held in the name of a client that has just come");
    };
}
static Program comes_and_reads(u32 page, int n = 1) {
    return [=](Segment& s, Process& me) {
        if (attach(s) != Status::OK) return;
        for (int i = 0; i < n; i++) read_page(s, me, page);
        exit_process();
    };
}
static Program reaps_and_reads(u32 page) {
    return [=](Segment& s, Process& me) {
        reap_all(s);
        read_page(s, me, page);
    };
}
// A daemon has closed the descriptor behind the pool's back: no byte lock shows any more that the process lives.
static Program loses_its_descriptor(u32 page) {
    return [=](Segment& s, Process& me) {
        u32 f = fetch(s, page);
        if (f == NONE) return exit_process();
        close_description(int(s.fd), running);
        model::step();
        read_frame(s, me, page, f, 0);
        u64 version = me.last_seen[page];
        model::step();
        read_frame(s, me, page, f, 0);
        if (me.last_seen[page] != version) violation("the view of page %u has changed", page);
        exit_process();
    };
}
// Ends while it has a frame that it has taken, as by a death.
static Program keeps_frame() {
    return [](Segment& s, Process&) {
        OpSlot op(s);
        FrameRequest want{};
        u32 f;
        take_frame(s, op.intent(), want, f);
        op.release();
        exit_process();
    };
}
static Program takes_memory_lock() {
    return [](Segment& s, Process&) {
        while (!lock_memory(s, false)) {}
        unlock_memory(s);
    };
}
// Gives up when a wait takes too long. The next operation does what this one had to leave.
static Program hurries(Program program) {
    return [=](Segment& s, Process& me) {
        program(s, me);
        while (!lock_memory(s, false)) {}
        unlock_memory(s);
    };
}
// The same at the end of its client: a reaper does what this one had to leave.
static Program hurries_and_detaches(Program program) {
    return [=](Segment& s, Process& me) {
        program(s, me);
        detach(s);
    };
}
// A fork with a view of the page, as fork.cpp does it: no writer and no death changes the child's view.
constexpr int CHILD = 1;
enum class Fork { CLIENT, GUEST, UNLOCKED };  // the child gets a slot; only a guest's; and no description either
static Program forks(u32 page, Fork how = Fork::CLIENT) {
    return [=](Segment& s, Process& me) {
        u32 f = fetch(s, page);
        if (f == NONE) return exit_process();
        read_frame(s, me, page, f, 0);
        Process& child = world.processes[CHILD];
        bool unlocked = how == Fork::UNLOCKED;
        if (!unlocked) world.holders[CHILD] = u8(1u << running);
        child.inherited_client = hand_over(s, unlocked ? s.fd : CHILD, [f](auto visit) { visit(f); }, how != Fork::CLIENT, unlocked);
        child.inherited_frame = f;
        child.last_seen[page] = me.last_seen[page];
        model::step();
        if (child.inherited_client) fork_process(running, CHILD);
        model::step();
        if (!unlocked) close_description(CHILD, running);
        unpin(s, f);
        if (how != Fork::CLIENT) exit_process();  // so that the last process finds a slot
    };
}
static Program is_forked(u32 page, Fork how = Fork::CLIENT) {
    return [=](Segment& s, Process& me) {
        model::step();
        bool unlocked = how == Fork::UNLOCKED;
        if (unlocked) s.fd = 0, introduce_unlocked(s, me.inherited_client);
        close_description(0, running);
        if (unlocked) s.fd = -1;
        s.become(me.inherited_client, how != Fork::CLIENT);
        u64 version = me.last_seen[page];
        read_frame(s, me, page, me.inherited_frame, 0);
        if (me.last_seen[page] != version) violation("the view of page %u that the child has inherited has changed", page);
        if (unlocked) return exit_process();
        unpin(s, me.inherited_frame);
    };
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

// Spaces are opened and removed: handles of generation 1, or of the space that is open when a process begins.
static Scenario of_spaces(const char* name, std::vector<u32> preload, std::vector<std::pair<const char*, Program>> processes) {
    return {name, 3, 3, std::move(preload), std::move(processes), 1, true};
}

// The same, and entries leave with the space, if nobody may touch them.
static Scenario of_entries(const char* name, std::vector<u32> preload, std::vector<std::pair<const char*, Program>> processes) {
    Scenario scenario = of_spaces(name, std::move(preload), std::move(processes));
    scenario.gives_entries = true;
    return scenario;
}

// The pool grows meanwhile: not all of its frames have slots at the start, and a ring that has two elements wraps.
static Scenario of_growth(const char* name, u32 unready, std::vector<u32> preload, std::vector<std::pair<const char*, Program>> processes) {
    Scenario scenario{name, 3, 3, std::move(preload), std::move(processes)};
    scenario.unready = unready;
    return scenario;
}

// A client beyond the first bank of pin counts comes: the fifth.
static Scenario of_banks(const char* name, u32 frames, u32 newcomer, std::vector<std::pair<const char*, Program>> processes) {
    Scenario scenario{name, frames, frames, {0}, std::move(processes)};
    scenario.newcomer = newcomer;
    scenario.crowd = CLIENT_BANK + 1 - u32(scenario.processes.size());
    scenario.clients = CLIENT_BANK + 2;
    return scenario;
}

// All slots but those of guests are taken when the process forks.
static Scenario of_guests(const char* name, Fork how) {
    Scenario scenario{name, 1, 1, {0}, {{"P", forks(0, how)}, {"C", is_forked(0, how)}, {"L", reaps_and_reads(2)}}};
    scenario.child = CHILD;
    scenario.clients = 3;
    scenario.guests = 1;
    return scenario;
}

// The first process loses its descriptor; the others find all slots taken.
static Scenario of_the_lost(const char* name, std::vector<std::pair<const char*, Program>> processes, u32 newcomer = NONE) {
    Scenario scenario{name, 1, 1, {0}, std::move(processes)};
    scenario.newcomer = newcomer;
    scenario.clients = 2;
    return scenario;
}

// The first process owns the space.
static Scenario of_private(const char* name, std::vector<std::pair<const char*, Program>> processes) {
    Scenario scenario = of_spaces(name, {}, std::move(processes));
    scenario.owner = 0;
    return scenario;
}

// The first process gives up so many waits, and the kernel refuses memory.
static Scenario of_hurry(const char* name, u32 refused, std::vector<u32> preload, std::vector<std::pair<const char*, Program>> processes, u32 waits = 2) {
    Scenario scenario{name, 2, 2, std::move(preload), std::move(processes)};
    scenario.hurried = waits;
    scenario.refused = refused;
    scenario.extent_frames = 2;
    return scenario;
}

// Two extents, of which each has a page when the first process has dropped page 1.
static Scenario of_extents(const char* name, std::vector<std::pair<const char*, Program>> processes) {
    Scenario scenario{name, 4, 4, {0, 1, 2}, {{"T", drops_and_compacts(1)}}};
    for (auto& process : processes) scenario.processes.push_back(std::move(process));
    scenario.extent_frames = 2;
    return scenario;
}

// The same in a pool with huge pages, each of which has two frames.
static Scenario of_huge_pages(Scenario scenario) {
    scenario.extent_frames = 2;
    scenario.huge_pages = true;
    return scenario;
}

// Pages 0 and 1 are written together, and by `alone` also alone.
static Scenario of_groups(const char* name, u32 frames, std::vector<std::pair<const char*, Program>> processes, bool alone = false) {
    Scenario scenario{name, frames, frames, {0, 1}, std::move(processes)};
    scenario.as_one = !alone;
    return scenario;
}

// Key 0 has a value at the start, of so many words; `expires_ns` 1: it has expired; 2: it expires when time passes.
static Scenario of_objects(const char* name, u32 words, std::vector<std::pair<const char*, Program>> processes, u64 expires_ns = 0) {
    Scenario scenario{name, 2 * OBJECT_FRAMES, FRAMES, {}, std::move(processes)};
    scenario.objects = [=](Segment& s) {
        if (words) put_object(s, 0, 1, words, expires_ns);
    };
    return scenario;
}
// A log page that has one live record, of key 0, and is not filled any more.
static Scenario of_log(const char* name, std::vector<std::pair<const char*, Program>> processes) {
    Scenario scenario = of_objects(name, 0, std::move(processes));
    scenario.objects = [=](Segment& s) {
        for (u32 key : {1, 1, 1, 0, 1}) put_object(s, key, 1, SMALL);
    };
    return scenario;
}
static Scenario of_loads(const char* name, std::vector<std::pair<const char*, Program>> processes, bool once, u32 words = 0) {
    Scenario scenario = of_objects(name, words, std::move(processes), 1);
    scenario.once = once;
    return scenario;
}

// The hash table has memory for one chain, and no process knows of more, until one extends it.
static Scenario of_small_table(const char* name, std::vector<std::pair<const char*, Program>> processes) {
    Scenario scenario = of_objects(name, SMALL, std::move(processes));
    scenario.objects = [preload = scenario.objects](Segment& s) {
        preload(s);
        s.objects.header->heads_ready.store_relaxed(doubled(1));
        for (Process& p : world.processes) p.segment.objects.heads_ready = 1;
    };
    return scenario;
}

// Nothing is lent to the objects, and two values have room.
static Scenario of_loans(const char* name, std::vector<std::pair<const char*, Program>> processes) {
    Scenario scenario = of_objects(name, 0, std::move(processes));
    scenario.objects = [](Segment& s) { s.header->loan.store_relaxed(loan::word(0, 0)); };
    scenario.has_room = true;
    return scenario;
}

// The first process gives up so many waits for the lock.
static Scenario of_hurried_objects(const char* name, u32 words, u32 waits, std::vector<std::pair<const char*, Program>> processes, u64 expires_ns = 0) {
    Scenario scenario = of_objects(name, words, std::move(processes), expires_ns);
    scenario.hurried = waits;
    return scenario;
}

static Program moves_memory(bool to_other) {
    return [=](Segment& s, Process&) { move_memory(s, to_other); };
}
static Program moves_and_reads_other(u32 page) {
    return [=](Segment& s, Process& me) {
        move_memory(s, true);
        read_page(other_of_running(), me, page);
    };
}
static Program resizes_both(u64 bytes) {
    return [=](Segment& s, Process&) { resize_both(s, bytes); };
}
static Program reads_other(u32 page, int n = 1) {
    return [=](Segment&, Process& me) {
        for (int i = 0; i < n; i++) read_page(other_of_running(), me, page);
    };
}
static Program writes_other(u32 page) {
    return [=](Segment&, Process&) { write_page(other_of_running(), page); };
}
static Program writes_and_flushes_other(u32 page) {
    return [=](Segment&, Process&) {
        write_page(other_of_running(), page);
        flush_pages(other_of_running(), ~u64(0));
    };
}
static Program holds_both(u32 page, u32 other_page) {
    return [=](Segment& s, Process& me) { hold_both(s, me, page, other_page); };
}
static Program reaps_sizes() {
    return [](Segment& s, Process&) {
        reap_all(s);
        reap_all(other_of_running());
    };
}
static Program holds_all() {
    return [](Segment& s, Process& me) { hold_all(s, me); };
}

// Two page sizes with so many frames of 64 and of 32 bytes, and the pages that are in memory.
static Scenario of_sizes(const char* name, u32 home, u32 other, std::vector<u32> preload, std::vector<u32> other_preload, std::vector<std::pair<const char*, Program>> processes) {
    Scenario scenario{name, home, 3, std::move(preload), std::move(processes)};
    scenario.other_budget = other;
    scenario.other_frames = FRAMES;
    scenario.other_preload = std::move(other_preload);
    return scenario;
}
// All of the budget is in use: most of it by the pool's own size, or by the other one.
static Scenario of_large(const char* name, std::vector<std::pair<const char*, Program>> processes) {
    return of_sizes(name, 2, 1, {0, 1}, {1}, std::move(processes));
}
static Scenario of_small(const char* name, std::vector<std::pair<const char*, Program>> processes) {
    return of_sizes(name, 1, 3, {0}, {1, 2}, std::move(processes));
}

// The space may have so many pages, fewer than there are frames.
static Scenario of_limit(const char* name, u32 limit, std::vector<u32> preload, std::vector<std::pair<const char*, Program>> processes) {
    Scenario scenario{name, 3, 3, std::move(preload), std::move(processes)};
    scenario.limit = limit;
    return scenario;
}

static std::vector<Scenario> scenarios() {
    return {
        of_limit("limit-load", 1, {}, {{"L", reads(0)}, {"M", reads(1)}}),
        of_limit("limit-evict", 1, {2}, {{"L", reads(0)}, {"R", reads(2)}}),
        of_limit("limit-many", 1, {}, {{"M", reads_together(0, 1)}, {"L", reads(2)}}),
        of_limit("limit-drop", 1, {0}, {{"D", drops(0)}, {"L", reads(1)}}),
        of_limit("limit-write", 1, {0}, {{"W", writes(0)}, {"F", flushes()}, {"L", reads(1)}}),
        of_limit("limit-trim", 1, {0}, {{"T", shrinks(true)}, {"L", reads(1)}}),
        of_limit("reap-limit", 1, {0}, {{"L", reads(1)}, {"X", reaps()}}),
        of_limit("reap-limit-fail", 2, {2}, {{"A", fails_to_read(0)}, {"X", reaps()}, {"L", reads(1)}}),
        of_limit("reap-limit-drop", 1, {0}, {{"D", drops(0)}, {"X", reaps()}, {"L", reads(1)}}),
        of_large("sizes-move", {{"M", moves_memory(true)}, {"L", reads_other(2)}}),
        of_large("sizes-move-hold", {{"M", moves_memory(true)}, {"H", holds_all()}, {"O", reads_other(2)}}),
        of_large("sizes-move-both", {{"M", moves_memory(true)}, {"B", holds_both(1, 2)}}),
        of_large("sizes-move-move", {{"M", moves_memory(true)}, {"N", moves_memory(false)}, {"O", reads_other(2)}}),
        of_small("sizes-move-back", {{"M", moves_memory(false)}, {"L", reads(1)}, {"O", reads_other(2)}}),
        of_small("sizes-move-flush", {{"M", moves_memory(false)}, {"L", reads(1)}, {"W", writes_and_flushes_other(2)}}),
        of_sizes("sizes-shrink", 2, 3, {0, 1}, {1, 2}, {{"S", resizes_both(2 * PAGE_BYTES)}, {"L", reads_both(0, 1)}, {"O", writes_other(2)}}),
        of_small("sizes-grow", {{"S", resizes_both(4 * PAGE_BYTES)}, {"L", reads(1)}, {"O", writes_other(2)}}),
        of_sizes("sizes-count", 2, 1, {0}, {1}, {{"M", moves_memory(true)}, {"L", reads(1)}, {"N", moves_and_reads_other(2)}}),
        of_large("reap-sizes", {{"M", moves_memory(true)}, {"O", reads_other(2)}, {"X", reaps_sizes()}}),
        of_groups("group-read", 4, {{"W", writes_as_one(0, 1)}, {"R", reads_as_one(0, 1)}}),
        of_groups("group-read-back", 4, {{"W", writes_as_one(0, 1)}, {"R", reads_as_one(1, 0)}}),
        of_groups("group-group", 4, {{"W", writes_as_one(0, 1)}, {"V", writes_as_one(0, 1)}}),
        of_groups("group-again", 4, {{"W", writes_as_one(0, 1, 3)}, {"R", reads(0)}}),
        of_groups("group-swap", 4, {{"W", writes_crosswise(0, 1)}, {"R", reads(0)}}),
        of_groups("group-write", 4, {{"W", writes_as_one(0, 1)}, {"V", writes(1)}}, true),
        of_groups("group-flush", 4, {{"W", writes_as_one(0, 1, 2)}, {"F", flushes()}}),
        of_groups("group-checkpoint", 4, {{"W", writes_as_one(0, 1)}, {"K", checkpoints(1)}}),
        of_groups("group-many", 4, {{"W", writes_as_one(0, 1)}, {"M", reads_together(0, 1)}}),
        of_groups("group-sweep", 4, {{"W", writes_as_one(0, 1, 2)}, {"R", reads(0)}, {"X", sweeps()}}),
        of_groups("group-move", 4, {{"W", writes_as_one(0, 1)}, {"C", moves(1)}}),
        of_groups("group-drop", 4, {{"W", writes_as_one(0, 1)}, {"D", drops(1)}}, true),
        of_groups("group-evict", 4, {{"W", writes_as_one(0, 1)}, {"L", reads(2)}, {"F", flushes()}}),
        of_groups("group-full", 3, {{"W", writes_as_one(0, 1)}, {"V", writes_as_one(0, 1)}}),
        of_groups("reap-group", 4, {{"W", writes_as_one(0, 1)}, {"X", reaps()}}),
        of_groups("reap-group-read", 4, {{"W", writes_as_one(0, 1)}, {"R", reads_as_one(0, 1)}, {"X", reaps()}}),
        of_groups("reap-group-write", 4, {{"W", writes_as_one(0, 1)}, {"V", writes_as_one(0, 1)}, {"X", reaps()}}),
        of_groups("reap-group-flush", 4, {{"W", writes_as_one(0, 1)}, {"F", flushes()}, {"X", reaps()}}),
        of_objects("put-put", 0, {{"A", puts(0, 1, LARGE)}, {"B", puts(0, 2, SMALL)}}),
        of_objects("put-get-delete", LARGE, {{"R", gets(0)}, {"W", puts_and_deletes(0, LARGE)}}),
        of_objects("put-get-delete-small", SMALL, {{"R", gets(0)}, {"W", puts_and_deletes(0, SMALL)}}),
        of_objects("get-evict-put", LARGE, {{"R", gets(0)}, {"E", evicts_and_puts(1, LARGE)}}),
        of_objects("get-strip", LARGE, {{"R", gets(0)}, {"S", strips(0)}}),
        of_objects("put-strip", LARGE, {{"W", puts(1, 1, LARGE)}, {"S", strips(0)}}),
        of_loans("borrow-borrow", {{"A", puts(0, 1, LARGE)}, {"B", puts(1, 1, LARGE)}}),
        of_log("get-clean", {{"R", gets(0)}, {"C", cleans()}}),
        of_log("put-clean", {{"W", puts_and_deletes(0, SMALL)}, {"C", cleans()}}),
        of_loads("object-load-load", {{"A", loads(0, 1)}, {"B", loads(0, 2)}}, true),
        of_loads("object-load-delete", {{"A", loads(0, 1, false, true)}, {"D", deletes(0)}}, false),
        of_loads("object-load-put", {{"A", loads(0, 1, false, true)}, {"W", puts_newer(0)}}, false),
        of_loads("renew-renew", {{"A", loads(0, 2)}, {"B", loads(0, 3, true)}}, true, SMALL),
        of_loads("renew-evict", {{"A", loads(0, 2)}, {"B", loads(0, 3)}, {"E", evicts_object()}}, false, SMALL),
        of_objects("renew-touch", SMALL, {{"A", loads(0, 2)}, {"T", touches(0)}, {"P", lets_time_pass()}}, 2),
        of_small_table("table-put", {{"A", extends_table(1)}, {"B", puts_newer(0)}}),
        of_small_table("table-delete", {{"A", extends_table(1)}, {"B", deletes_for_good(0)}}),
        of_hurried_objects("hurry-object-put", LARGE, 1, {{"H", puts(0, 2, SMALL)}, {"W", puts(0, 3, LARGE)}}),
        of_hurried_objects("hurry-object-large", SMALL, 1, {{"H", puts(1, 2, LARGE)}, {"W", deletes(0)}}),
        of_hurried_objects("hurry-object-get", LARGE, 1, {{"H", gets(0)}, {"W", puts_and_deletes(0, LARGE)}}),
        of_hurried_objects("hurry-object-strip", LARGE, 1, {{"H", strips(0)}, {"W", puts(1, 1, LARGE)}}),
        of_hurried_objects("hurry-object-load", 0, 2, {{"H", loads(0, 1)}, {"B", loads(0, 2)}}),
        of_hurried_objects("hurry-object-again", 0, 1, {{"H", loads_twice(0)}, {"B", loads(1, 1)}}),
        of_hurried_objects("hurry-renew", SMALL, 2, {{"H", loads(0, 2)}, {"B", loads(0, 3)}}, 1),
        of_hurried_objects("reap-hurry-load", 0, 2, {{"H", loads(0, 1)}, {"B", loads(0, 2)}, {"X", reaps()}}),
        of_loads("reap-object-load", {{"A", loads(0, 1)}, {"X", reaps()}}, false),
        of_objects("reap-object-put", SMALL, {{"A", puts(0, 2, LARGE)}, {"X", reaps()}}),
        of_spaces("append-append", {0}, {{"A", appends()}, {"B", appends()}}),
        of_spaces("append-append-read", {}, {{"A", appends()}, {"B", appends()}, {"R", reads_space(1)}}),
        of_spaces("lengthen-extend", {}, {{"G", grows(2)}, {"W", grows_and_writes(2)}}),
        of_spaces("lengthen-further", {}, {{"G", grows(3)}, {"W", grows_and_writes(2)}}),
        of_spaces("lengthen-append", {}, {{"G", grows(2)}, {"A", appends()}}),
        of_spaces("lengthen-read", {}, {{"G", grows(3)}, {"A", appends()}, {"R", reads_space(1)}}),
        of_spaces("lengthen-reopen", {}, {{"G", grows(2)}, {"D", reopens_and_appends()}}),
        of_spaces("reap-lengthen", {}, {{"G", grows(2)}, {"W", grows_and_writes(2)}, {"X", reaps()}}),
        of_spaces("append-remove", {0}, {{"A", appends()}, {"D", removes()}}),
        of_spaces("append-reopen", {}, {{"A", appends()}, {"D", reopens_and_appends()}}),
        of_spaces("read-reopen", {0}, {{"R", reads_space(0, 2)}, {"D", reopens_and_reads()}}),
        of_spaces("read-reopen-twice", {0}, {{"R", reads_space(0)}, {"D", reopens_twice()}}),
        of_spaces("write-reopen-twice", {0}, {{"W", writes_space(0)}, {"D", reopens_twice()}}),
        of_spaces("load-reopen", {}, {{"R", reads_space(0)}, {"D", reopens_and_reads()}}),
        of_spaces("many-reopen", {}, {{"M", loads_space(0)}, {"D", reopens_and_reads()}}),
        of_spaces("write-reopen", {0}, {{"W", writes_space(0)}, {"D", reopens_and_reads()}}),
        of_spaces("replace-reopen", {0}, {{"W", replaces_space(0)}, {"D", reopens_and_reads()}}),
        of_spaces("write-remove", {0}, {{"W", writes_space(0)}, {"D", removes()}, {"E", removes()}}),
        of_spaces("open-open", {}, {{"D", reopens_and_reads()}, {"E", reopens_and_reads()}}),
        of_spaces("open-fail", {}, {{"D", fails_to_reopen()}, {"E", reopens_and_reads()}}),
        of_spaces("reap-append", {0}, {{"A", appends()}, {"B", appends()}, {"X", reaps()}}),
        of_spaces("reap-reopen", {0}, {{"D", reopens_and_reads()}, {"X", reaps()}}),
        of_entries("leave-read", {}, {{"R", reads_and_lets_go(0)}, {"D", removes()}}),
        of_entries("leave-again", {0}, {{"R", reads_again_and_lets_go(0)}, {"D", removes()}}),
        of_entries("leave-reopen", {}, {{"R", reads_and_lets_go(0)}, {"D", reopens_and_reads()}}),
        of_entries("leave-look", {0}, {{"L", drops_of_space(0)}, {"D", removes()}}),
        of_entries("leave-shrink", {0}, {{"T", shrinks(true)}, {"D", removes()}}),
        of_entries("leave-move", {0}, {{"M", moves(0)}, {"D", removes()}}),
        of_entries("reap-leave", {0}, {{"R", reads_and_lets_go(0)}, {"D", removes()}, {"X", reaps()}}),
        of_growth("grow-load", 1, {0, 1}, {{"L", reads(2)}, {"R", reads(0)}}),
        of_growth("grow-grow", 2, {0}, {{"L", reads(1)}, {"M", reads(2)}}),
        of_growth("grow-write", 1, {0, 1}, {{"W", writes(0)}, {"L", reads(2)}}),
        of_growth("grow-drop", 1, {0, 1}, {{"L", reads(2)}, {"D", drops(0)}}),
        of_growth("reap-grow", 1, {0, 1}, {{"L", reads(2)}, {"X", reaps()}, {"D", drops(1)}}),
        {"pin-evict", 2, 2, {0, 1}, {{"R", reads(1, 2)}, {"L", reads(2)}}},
        {"pin-evict-hot", 1, 1, {0}, {{"R", reads(0, 2)}, {"L", reads(2)}}},
        {"write-pin", 3, 3, {0}, {{"W", writes(0, 2)}, {"R", reads(0, 2)}}},
        {"write-evict", 2, 2, {0}, {{"W", writes(0)}, {"L", reads(2)}}},
        {"write-write", 3, 3, {0}, {{"W", writes(0)}, {"V", writes(0)}}},
        {"past-write", 2, 2, {}, {{"P", reads_past(0)}, {"W", writes_and_checkpoints(0)}}},
        {"past-load", 1, 1, {}, {{"P", reads_past(0)}, {"L", reads(0)}, {"M", reads(1)}}},
        {"reap-past", 1, 1, {}, {{"P", reads_past(0)}, {"L", reads(0)}, {"X", reaps()}}},
        {"discard-load", 1, 1, {}, {{"B", writes_discardable(0)}, {"R", reads_discardable(0, 2)}, {"L", reads(1)}}},
        {"replace-write", 3, 3, {0}, {{"B", replaces(0)}, {"W", writes(0)}}},
        {"replace-load", 3, 3, {}, {{"B", replaces(0)}, {"R", reads(0, 2)}}},
        {"replace-write-load", 3, 3, {}, {{"B", replaces(0)}, {"W", writes(0)}}},
        {"replace-evict", 2, 2, {0}, {{"B", replaces(0)}, {"F", flushes()}, {"L", reads(2)}}},
        {"load-load", 2, 2, {}, {{"L", reads(0)}, {"M", reads(0)}}},
        {"fail-wait", 2, 2, {}, {{"A", asks(0, true)}, {"B", asks(0, true)}}},
        {"fail-again", 2, 2, {}, {{"A", asks(0, true, true)}, {"B", asks(0, false)}}},
        {"load-load-evict", 1, 1, {1}, {{"L", reads(0)}, {"M", reads(0)}}},
        {"flush-write", 3, 3, {0}, {{"W", writes(0, 2)}, {"F", flushes()}}},
        {"flush-log", 3, 3, {0}, {{"W", writes(0, 2)}, {"F", flushes(1)}}},
        {"flush-flush", 3, 3, {0}, {{"W", writes(0, 2)}, {"F", flushes()}, {"G", flushes()}}},
        {"flush-evict", 2, 2, {0}, {{"W", writes(0)}, {"F", flushes()}, {"L", reads(2)}}},
        {"flush-aside", 2, 2, {0}, {{"W", writes_and_flushes(0)}, {"L", reads_both(1, 2)}}},
        {"drop-aside", 2, 2, {0}, {{"W", writes(0)}, {"D", drops(0)}, {"L", reads_both(1, 2)}}},
        {"retire-pin", 2, 2, {0}, {{"W", writes(0, 3)}, {"R", reads(0)}}},
        {"settle-sweep", 2, 2, {0}, {{"W", writes(0, 3)}, {"R", reads(0)}, {"X", sweeps()}}},
        {"move-pin", 3, 3, {0, 1}, {{"C", moves(1)}, {"R", reads(1, 2)}}},
        {"move-write", 3, 3, {0, 1}, {{"C", moves(1)}, {"W", writes(1)}}},
        {"move-evict", 2, 2, {0}, {{"C", moves(0)}, {"L", reads(2)}}},
        {"move-flush", 3, 3, {0}, {{"W", writes(0)}, {"F", flushes()}, {"C", moves(0)}}},
        {"checkpoint-move", 3, 3, {0}, {{"W", writes_and_checkpoints(0)}, {"C", moves(0)}}},
        {"checkpoint-write", 3, 3, {0}, {{"W", writes(0, 2)}, {"K", checkpoints(0)}}},
        {"checkpoint-log", 3, 3, {0}, {{"W", writes_and_checkpoints(0, 0)}, {"C", moves(0)}}},
        {"move-move", 3, 3, {0}, {{"C", moves(0)}, {"D", moves(0)}}},
        {"holes-load", 3, 3, {0}, {{"T", gives_back_holes()}, {"L", reads(2)}}},
        of_growth("holes-grow", 1, {0, 1}, {{"T", gives_back_holes()}, {"L", reads(2)}}),
        {"reap-holes", 3, 3, {0}, {{"T", gives_back_holes()}, {"X", reaps()}}},
        of_hurry("hurry-holes", 0, {}, {{"H", hurries(gives_back_holes())}, {"L", reads(1)}}),
        of_extents("compact-pin", {{"R", reads(2, 2)}}),
        of_extents("compact-write", {{"W", writes(2)}}),
        of_extents("compact-load", {{"L", reads(1)}}),
        of_extents("reap-compact", {{"X", reaps()}}),
        of_huge_pages(of_extents("huge-pin", {{"R", reads(2, 2)}})),
        of_huge_pages(of_extents("huge-write", {{"W", writes(2)}})),
        of_huge_pages({"huge-trim", 4, 4, {0, 1}, {{"T", shrinks(true)}, {"L", reads(2)}}}),
        of_huge_pages({"huge-part", 3, 4, {0, 1}, {{"T", shrinks(true)}, {"L", reads(2)}}}),
        of_huge_pages({"huge-holes", 3, 4, {0, 1}, {{"T", gives_back_holes()}, {"L", reads(2)}}}),
        of_huge_pages({"reap-huge-load", 4, 4, {0}, {{"L", reads(2)}, {"X", reaps()}}}),
        of_huge_pages(of_hurry("reap-huge-hole", 1, {}, {{"L", reads_both(0, 2)}, {"X", reaps()}}, 0)),
        of_huge_pages(of_extents("reap-huge", {{"X", reaps()}})),
        {"trim-load", 2, 2, {0, 1}, {{"T", shrinks(true)}, {"L", reads(2)}}},
        {"trim-write", 3, 3, {0, 1}, {{"T", shrinks(true)}, {"W", writes(1)}}},
        {"drop-pin", 2, 2, {0, 1}, {{"D", drops(0)}, {"R", reads(0)}}},
        {"drop-flush", 2, 2, {0, 1}, {{"D", drops(1)}, {"F", flushes()}}},
        {"drop-clean-write", 3, 3, {0}, {{"D", drops_clean()}, {"W", writes(0, 2)}}},
        {"many-many", 2, 2, {}, {{"M", reads_together(0, 1)}, {"N", reads_together(1, 0)}}},
        {"many-evict", 1, 1, {2}, {{"M", reads_together(0, 1)}, {"L", reads(1)}}},
        {"many-write", 3, 3, {}, {{"M", reads_together(0, 1)}, {"W", writes(1)}}},
        {"many-drop", 2, 2, {0}, {{"M", reads_together(0, 1)}, {"D", drops(1)}, {"L", reads(0)}}},
        {"reap-many", 2, 2, {}, {{"M", reads_together(0, 1)}, {"L", reads(1)}, {"X", reaps()}}},
        {"reap-load", 2, 2, {0}, {{"L", reads(2)}, {"X", reaps()}}},
        {"reap-evict", 1, 1, {0}, {{"L", reads(2)}, {"X", reaps()}}},
        {"reap-write", 3, 3, {0}, {{"W", writes(0)}, {"X", reaps()}}},
        {"reap-load-write", 3, 3, {}, {{"W", writes(0)}, {"X", reaps()}, {"L", reads(0)}}},
        {"reap-move", 3, 3, {0}, {{"C", moves(0)}, {"X", reaps()}}},
        {"reap-drop-load", 1, 1, {0}, {{"D", drops(0)}, {"L", reads(0)}, {"X", reaps()}}},
        {"reap-drop", 2, 2, {0}, {{"D", drops(0)}, {"X", reaps()}}},
        {"reap-write-pin", 2, 2, {0}, {{"W", writes(0)}, {"R", reads(0)}, {"X", reaps()}}},
        {"reap-flush", 3, 3, {0}, {{"W", writes(0)}, {"F", flushes()}, {"X", reaps()}}},
        {"reap-reload", 1, 1, {0}, {{"L", reads(2)}, {"M", reads_both(0, 2)}, {"X", reaps()}}},
        {"reap-lock", 1, 1, {}, {{"N", comes()}, {"X", reaps()}, {"W", locks()}, {"H", locks()}}, PAGES, false, 0, PROCESSES},
        {"fork-write", 3, 3, {0}, {{"P", forks(0)}, {"C", is_forked(0)}, {"W", writes(0, 2)}}, PAGES, false, NONE, CLIENTS, CHILD},
        {"fork-reap", 1, 1, {0}, {{"P", forks(0)}, {"C", is_forked(0)}, {"L", reads(2)}, {"X", reaps()}}, PAGES, false, NONE, PROCESSES, CHILD},
        of_guests("fork-guest", Fork::GUEST),
        of_guests("fork-unlocked", Fork::UNLOCKED),
        of_the_lost("lost-reap", {{"R", loses_its_descriptor(0)}, {"L", reaps_and_reads(2)}}),
        of_the_lost("lost-attach", {{"R", loses_its_descriptor(0)}, {"L", reads(0)}, {"N", comes_and_reads(2)}}, 2),
        of_banks("bank-evict", 1, 1, {{"L", reads(2)}, {"N", comes_and_reads(0, 2)}}),
        of_banks("bank-write", 3, 1, {{"W", writes(0, 2)}, {"N", comes_and_reads(0)}}),
        of_banks("reap-bank", 1, 1, {{"X", reaps()}, {"N", comes_and_reads(0)}}),
        of_banks("reap-bank-load", 1, 2, {{"L", reads(2)}, {"X", reaps()}, {"N", comes_and_reads(0)}}),
        of_private("private-detach", {{"O", writes_and_detaches()}, {"D", visits_directory()}}),
        of_private("private-reopen", {{"O", just_detaches()}, {"D", reopens_and_reads()}}),
        of_private("private-reopen-write", {{"O", writes_and_detaches()}, {"D", reopens_and_reads()}}),
        of_private("reap-private", {{"O", just_lives()}, {"X", reaps()}, {"D", reopens()}}),
        of_private("reap-private-write", {{"O", writes_space(0)}, {"X", reaps()}, {"D", reopens_and_reads()}}),
        of_hurry("hurry-plug", 1, {}, {{"H", hurries(reads(0))}, {"L", reads(1)}}),
        of_hurry("hurry-plug-none", 2, {}, {{"H", hurries(reads(0))}, {"L", reads(1)}}),
        of_hurry("hurry-load", 0, {1}, {{"H", hurries(reads(2))}, {"L", reads(0)}}, 1),
        of_hurry("hurry-write", 0, {0}, {{"H", hurries(writes(0))}, {"W", writes(0)}}, 1),
        of_hurry("hurry-load-twice", 0, {1}, {{"H", hurries(reads_both(0, 2))}, {"L", reads(0)}}),
        of_hurry("hurry-write-twice", 0, {0}, {{"H", hurries(writes(0, 2))}, {"W", writes(0)}}),
        of_hurry("hurry-reap", 0, {0}, {{"H", hurries(reaps())}, {"L", keeps_frame()}, {"M", takes_memory_lock()}}, 1),
        of_hurry("hurry-trim", 0, {0}, {{"H", hurries(shrinks(true))}, {"L", reads(1)}}),
        of_huge_pages(of_hurry("hurry-huge", 0, {0}, {{"H", hurries(shrinks(true))}, {"L", reads(1)}})),
        of_huge_pages(of_hurry("hurry-huge-plug", 1, {}, {{"H", hurries(reads(0))}, {"L", reads(1)}})),
        of_hurry("hurry-detach", 0, {0}, {{"H", hurries_and_detaches(writes(0))}, {"L", reads(1)}}),
        {"detach", 2, 2, {0}, {{"D", detaches(0)}, {"W", writes(0)}}},
        {"three", 3, 3, {0, 1}, {{"R", reads(0)}, {"W", writes(0)}, {"L", reads(2)}}},
    };
}

}  // namespace bp
