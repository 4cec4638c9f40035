// Counts the ring steps of the policy (core/policy.h) where pages cannot go:
// policy_steps FRAMES STUCK_PERCENT MAX_STEPS. Pages number STUCK_PERCENT of a
// hundred are pinned or dirty, as far as the policy can tell; the rest may go.
// Prints: evictions, most looks at pages in one call, in all, and calls.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "policy.h"

using namespace bp;

struct Page {
    Ring ring = RING_NONE;
    u32 count = 0;
    bool stuck = false;
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
};

int main(int argc, char** argv) {
    if (argc != 4) return 2;
    u32 frames = u32(atoi(argv[1])), percent = u32(atoi(argv[2])), max_steps = u32(atoi(argv[3]));
    Env env;
    env.pages.resize(frames);
    for (auto& ring : env.rings) ring.resize(frames + frames / 2 + 64);
    PolicyState state{};
    Alr<Env> policy(state, env);
    policy.set_frames(frames);
    for (u32 p = 0; p < frames; p++) {
        // All the stuck pages stand at the heads; those that may go come last, each referenced before.
        env.pages[p].stuck = p < u64(frames) * percent / 100;
        policy.insert(p, policy.miss(Ghost::NONE, 0, p % 2 == 1));
        env.pages[p].count = p % 4;
    }
    // As take_frame (core/take.h) does: up to MAX_STEPS a hold of the lock, four rounds of the rings in all.
    u64 evictions = 0, most = 0, calls = 0, without = 0;
    while (without <= 4ull * frames + max_steps) {
        u64 before = env.steps;
        Victim v = policy.evict(max_steps);
        calls++;
        if (env.steps - before > most) most = env.steps - before;
        without = v.page == NONE ? without + max_steps : 0;
        if (v.page != NONE) evictions++;
        else if (!v.more) break;
    }
    printf("%llu %llu %llu %llu\n", (unsigned long long)evictions, (unsigned long long)most, (unsigned long long)env.steps,
           (unsigned long long)calls);
}
