// Counts the ring steps of the policy (core/policy/policy.h) beside stuck pages, which cannot be evicted:
// policy_steps FRAMES STUCK_PERCENT MAX_STEPS pinned|dirty. Of a hundred pages STUCK_PERCENT are stuck. First all
// others are evicted; then misses follow, one for each page that was evicted, and each miss loads one that can be evicted.
// Prints: evictions, most looks at pages in one call, in all; of the misses the most looks of one, and
// how many found nothing.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "policy/policy.h"

using namespace bp;

struct Page {
    Ring ring = RING_NONE;
    u32 count = 0;
    bool stuck = false, dirty = false;
};

struct Env {
    std::vector<Page> pages;
    std::vector<u64> rings[2];
    u64 steps = 0;

    u64* slots(Ring r) { return rings[r == RING_HOT].data(); }
    u32 capacity() const { return u32(rings[0].size()); }
    Peek peek(u32 page, Ring r) {
        steps++;  // every step of a ring looks at the page at its head
        return {pages[page].ring != r, pages[page].count};
    }
    void set_count(u32 page, u32 n) { pages[page].count = n; }
    void set_ring(u32 page, Ring r) { pages[page].ring = r; }
    bool evict(u32 page, Ghost, u32) {
        if (pages[page].stuck) return false;
        pages[page].ring = RING_NONE;
        return true;
    }
    bool set_aside(u32 page, Ring) {
        if (pages[page].dirty) pages[page].ring = RING_NONE;
        return pages[page].dirty;
    }
};

// As take_frame (core/protocol/frames.h) does: at most `max_steps` a hold of the lock, until the search is over.
static u32 search(Alr<Env>& policy, Env& env, u32 max_steps, u64& most) {
    Search search;
    for (u32 page = NONE;;) {
        u64 before = env.steps;
        page = policy.evict(search, max_steps);
        if (env.steps - before > most) most = env.steps - before;
        if (page != NONE || search.over) return page;
    }
}

int main(int argc, char** argv) {
    if (argc != 5) return 2;
    u32 frames = u32(atoi(argv[1])), percent = u32(atoi(argv[2])), max_steps = u32(atoi(argv[3]));
    u32 stuck = u32(u64(frames) * percent / 100);
    Env env;
    env.pages.resize(4 * frames);
    for (auto& ring : env.rings) ring.resize(frames + frames / 2 + 64);
    PolicyState state{};
    Alr<Env> policy(state, env);
    policy.set_frames(frames);
    for (u32 p = 0; p < frames; p++) {
        // All stuck pages stand at the heads; those that can be evicted come last, each referenced before.
        env.pages[p].stuck = p < stuck;
        env.pages[p].dirty = env.pages[p].stuck && !strcmp(argv[4], "dirty");
        policy.insert(p, policy.miss(Ghost::NONE, 0, p % 2 == 1));
        env.pages[p].count = p % 4;
    }
    u64 evictions = 0, most = 0, most_of_miss = 0, failed = 0;
    while (search(policy, env, max_steps, most) != NONE) evictions++;
    u64 total = env.steps;
    u32 next = frames;
    auto bring = [&](u32 page) { policy.insert(page, policy.miss(Ghost::NONE, 0, false)); };
    for (u32 i = stuck; i < frames; i++) bring(next++);
    for (u32 i = 0; i < 2 * frames && stuck < frames; i++) {
        u64 before = env.steps;
        failed += search(policy, env, max_steps, most) == NONE;
        if (env.steps - before > most_of_miss) most_of_miss = env.steps - before;
        bring(next++);
    }
    printf("%llu %llu %llu %llu %llu\n", (unsigned long long)evictions, (unsigned long long)most, (unsigned long long)total,
           (unsigned long long)most_of_miss, (unsigned long long)failed);
}
