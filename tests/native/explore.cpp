// The protocol, explored. The very headers of the core run here under a
// scheduler that owns every ordered atomic access and every system call: from
// each state it tries every process that can take a step, and the death of each,
// and never visits a state twice.
//
//   explore SCENARIO [MAX_KILLS [MAX_STATES]]      prints the states covered
//   explore SCENARIO sample [MAX_KILLS [SCHEDULES]]    runs random schedules, without a record of the states
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
//     finds nothing, no pin, no BUSY and no RETIRED frame is left, every page holds its
//     newest done version or one that a writer died publishing, and the store never
//     has a page newer than the log allows or older than a clean page says.
//
// world.h: a state and how it changes. actors.h: what processes do. scenarios.h: which processes there are. Here: the search.
#include <algorithm>
#include <array>

#include "scenarios.h"

namespace bp {

static std::string say(const char* format, ...) {
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return text;
}

// A copy of everything in use: the world, and each stack from its top down to its pointer.
static void copy_state(std::vector<u8>& out) {
    out.clear();
    auto add = [&](const void* from, size_t n) { out.insert(out.end(), static_cast<const u8*>(from), static_cast<const u8*>(from) + n); };
    add(&world, offsetof(World, processes));
    for (u32 i = 0; i < PROCESSES; i++) {
        Process& p = world.processes[i];
        add(&p, offsetof(Process, arena));
        add(p.arena, p.arena_used);
        if (p.life == UNBORN || p.life == READY || p.life == WAITING) add(p.sp, size_t(stacks[i] + STACK - static_cast<u8*>(p.sp)));
    }
    if (object_world.used) add(&object_world, sizeof object_world);
    if (other_size.used) add(&other_size, sizeof other_size);
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
        if (p.life == UNBORN || p.life == READY || p.life == WAITING) take(p.sp, size_t(stacks[i] + STACK - static_cast<u8*>(p.sp)));
    }
    if (object_world.used) take(&object_world, sizeof object_world);
    if (other_size.used) take(&other_size, sizeof other_size);
}

static u64 mixed(u64 h) {
    h = (h ^ h >> 30) * 0xbf58476d1ce4e5b9;
    h = (h ^ h >> 27) * 0x94d049bb133111eb;
    return h ^ h >> 31;
}

// The explorer spends most of its time here. A sum of products has no chain of multiplications, as other hashes have; with
// a key for each word (this is NH of the message authentication code UMAC) two states collide by a chance of 2^-64.
static u64 hash_of(const std::vector<u8>& bytes) {
    static const auto keys = [] {
        std::array<u64, (sizeof world + sizeof stacks + sizeof object_world + sizeof other_size) / 8 + 2> made;
        u64 seed = 0;
        for (u64& key : made) key = mixed(seed += 0x9e3779b97f4a7c15);
        return made;
    }();
    unsigned __int128 sum = bytes.size();
    const u64* key = keys.data();
    auto add = [&](const u8* from) {
        u64 words[2];
        memcpy(words, from, 16);
        sum += static_cast<unsigned __int128>(words[0] + key[0]) * (words[1] + key[1]);
        key += 2;
    };
    size_t i = 0;
    for (; i + 16 <= bytes.size(); i += 16) add(&bytes[i]);
    u8 rest[16] = {};
    memcpy(rest, bytes.data() + i, bytes.size() - i);
    add(rest);
    return mixed(u64(sum) ^ mixed(u64(sum >> 64)));
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
        } else if (p.life == WAITING && p.hurried) {
            out.push_back({i, 0, 1});
        }
        waiting |= p.life == WAITING;
        if ((p.life == READY || p.life == WAITING) && world.kills < max_kills) out.push_back({i, 1, 0});
    }
    if (!enabled && waiting)  // the slices of the waits run out
        for (u8 i = 0; i < PROCESSES; i++)
            if (world.processes[i].life == WAITING && !world.processes[i].hurried) out.push_back({i, 0, 1});
    return out;
}

static void wake(Process& p, bool timed_out) {
    p.timed_out = timed_out;
    p.gives_up = timed_out && p.hurried;
    if (p.gives_up) p.hurried--;
    p.life = READY;
}

static u32 most_pages;  // that the space may have; 0: no limit

// A page that is being written has two frames.
static u32 pages_with_frames() {
    Segment& s = world.processes[0].segment;
    u32 pages = 0;
    for (u32 f = 0; f < s.g.max_frames; f++) {
        u64 w = s.frames[f].word.load_relaxed();
        if (frame::page(w) < PAGES && (frame::state(w) == LIVE || frame::state(w) == BUSY)) pages |= 1u << frame::page(w);
    }
    return u32(__builtin_popcount(pages));
}

// Takes one choice, and adds it to the trail.
static void take(Choice c) {
    trail.push_back(c.kill ? '!' : c.timeout ? '~' : ' ');
    trail += program_names[c.process][0];
    trail += char('0' + c.process);
    if (c.kill) return kill(c.process);
    Process& p = world.processes[c.process];
    if (p.life == WAITING) wake(p, c.timeout);
    resume(c.process);
    if (most_pages && pages_with_frames() > most_pages) violation("the space has %u pages, and its limit is %u", pages_with_frames(), most_pages);
    if (other_size.used) require_within_whole();
}

// Runs random schedules, each from the start to its end. In most steps the process of the last step continues, and few
// processes die: most faults need few changes of the process, and an exhaustive search, which varies the last steps
// first, comes to a change in the first steps late, or never where the number of states is limited.
static void sample(const Scenario& scenario, u32 max_kills, u64 schedules) {
    std::vector<u8> start;
    copy_state(start);
    u64 seed = 0;
    auto draw = [&](u64 n) { return mixed(seed += 0x9e3779b97f4a7c15) % n; };
    for (; ended_runs < schedules; ended_runs++) {
        restore_state(start);
        trail.clear();
        Choice last{};
        u64 steps_of_one = 2 + draw(16), steps_of_life = 16 << draw(4);
        for (std::vector<Choice> open; !(open = choices(max_kills)).empty(); take(last)) {
            visited_states++;
            std::erase_if(open, [&](Choice c) { return c.kill && draw(steps_of_life); });
            auto same = [&](Choice c) { return c.process == last.process && !c.kill; };
            auto again = std::find_if(open.begin(), open.end(), same);
            last = again != open.end() && draw(steps_of_one) ? *again : open[draw(open.size())];
        }
        end_check(scenario);
    }
}

static void explore(const Scenario& scenario, u32 max_kills, u64 max_states) {
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
            end_check(scenario);
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
        take(c);
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

static void replay(const Scenario& scenario, const std::string& schedule) {
    telling = true;
    for (size_t i = 0; i + 2 < schedule.size() + 0 || i + 2 == schedule.size() - 1; i += 3) {
        int c = schedule[i + 2] - '0';
        printf("%c%c%d\n", schedule[i], schedule[i + 1], c);
        Process& p = world.processes[c];
        if (p.life == DONE || p.life == DEAD) continue;  // a schedule may be longer than its processes run
        if (schedule[i] == '!') {
            kill(c);
            continue;
        }
        if (p.life == WAITING) wake(p, schedule[i] == '~');
        resume(c);
        if (other_size.used) require_within_whole();
        tell_words();
    }
    end_check(scenario);
}

static void own_space(Segment& s) {
    s.spaces[0].owner.store_relaxed(s.me);
    s.spaces[0].owner_generation.store_relaxed(s.client().generation.load_relaxed());
}

// A client that lives, by a description of a process that is not here.
static void join_crowd(Segment& s) {
    u32 c = 1;
    while (s.clients[c - 1].state.load_relaxed() != CLIENT_FREE) c++;
    world.byte_owner[c] = PROCESSES + 1;
    s.clients[c - 1].state.store_relaxed(CLIENT_LIVE);
}

static void run(const Scenario& sc, const std::string& how, u32 max_kills, u64 most, const char* schedule) {
    memset(static_cast<void*>(&world), 0, sizeof world);
    memset(static_cast<void*>(&other_size), 0, sizeof other_size);
    make_segment(0, sc.budget, sc.frames, sc.frames - sc.unready, sc.pages, sc.clients, sc.guests, sc.extent_frames, sc.huge_pages);
    if (sc.other_budget) make_other_size(sc);
    for (Process& p : world.processes) p.segment.keeps_entries = !sc.gives_entries;
    memset(static_cast<void*>(&object_world), 0, sizeof object_world);
    if (sc.objects) make_area(world.processes[0].segment.g);
    u32 n = u32(sc.processes.size());
    for (u32 i = 0; i < PROCESSES; i++) world.holders[i] = i == sc.child ? 0 : u8(1u << i);
    for (u32 i = 0; i < n; i++) {
        Segment& s = world.processes[i].segment;
        if (i == sc.newcomer || i == sc.child) continue;
        if (attach(s) != Status::OK) abort();
        s.client().pid.store_relaxed(i + 1);
        s.client().start_time.store_relaxed(i + 1);
        if (sc.other_budget) attach_other(i);
        world.processes[i].hurried = i ? 0 : u8(sc.hurried);
        if (i == sc.owner) own_space(s);
    }
    for (u32 i = 0; i < sc.crowd; i++) join_crowd(world.processes[0].segment);
    if (sc.objects) sc.objects(world.processes[0].segment);
    for (u32 page : sc.preload) {
        Segment& s = world.processes[0].segment;
        u32 f = fetch(s, page, sc.opens_spaces ? stored_image(1, page) : world.store[page]);
        if (f == NONE) abort();
        unpin(s, f);
    }
    for (u32 page : sc.other_preload) {
        Segment& s = other_size.segments[0];
        u32 f = fetch(s, page, world.store[page]);
        if (f == NONE) abort();
        unpin(s, f);
    }
    most_pages = sc.limit;
    if (sc.limit) set_share(world.processes[0].segment, 0, 1, sc.limit * PAGE_BYTES, 0);
    for (u32 i = 0; i < n; i++) prepare(int(i), sc.processes[i].first, sc.processes[i].second);
    if (sc.child != NONE) world.processes[sc.child].life = UNBORN;
    visited_states = ended_runs = 0;
    world.refused = u8(sc.refused);
    trail.clear();
    if (how == "replay") return replay(sc, schedule);
    (how == "sample" ? sample : explore)(sc, max_kills, most);
    printf("%s: %llu states, %llu ends, at most %u deaths\n", sc.name, (unsigned long long)visited_states, (unsigned long long)ended_runs, max_kills);
    fflush(stdout);
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
    std::vector<std::string> words(argv + 1, argv + argc);
    std::string wanted = words.empty() ? "all" : words[0], how = "explore";
    if (words.size() > 1 && (words[1] == "sample" || words[1] == "replay")) how = words[1], words.erase(words.begin() + 1);
    auto number = [&](size_t i, bp::u64 usual) { return words.size() > i ? strtoull(words[i].c_str(), nullptr, 10) : usual; };
    if (how == "replay" && words.size() < 2) return 2;
    bool found = false;
    for (const bp::Scenario& sc : bp::scenarios()) {
        if (wanted == "list") puts(sc.name);
        if (wanted != "all" && wanted != sc.name) continue;
        found = true;
        bp::run(sc, how, bp::u32(number(1, 1)), number(2, how == "sample" ? 10'000 : 3'000'000), words.size() > 1 ? words[1].c_str() : nullptr);
    }
    return found || wanted == "list" ? 0 : 2;
}
