// The protocols of two words and more under weaker orders than the explorer's: relacy (Debian: relacy-dev) runs each in all
// interleavings, or in many random ones, and lets a load return any value that C++'s model allows it at that moment.
//
//   weak TEST       prints the iterations; 1 with relacy's story of a violation
//
// The accesses are those of core/os/atomic.h, of which the test makes weak_atomic.h: the same class over relacy's
// atomics, so that what is tried is the order that each name stands for. The words are those of core/layout/words.h. The
// steps are written anew, short: a test says in its comment which function it follows.
#include <relacy/relacy.hpp>

#undef free  // relacy's, a macro

#include <cstdio>
#include <cstring>

#define BP_STEP()
#define BP_POINT(name)
#include "weak_atomic.h"
#include "words.h"

using namespace bp;

static void require(bool holds) { RL_ASSERT(holds); }

using Data = rl::var<u64>;  // no atomic: relacy finds a race between two accesses that nothing orders
static u64 read(Data& d) { return d($); }
static void write(Data& d, u64 v) { d($) = v; }

template <class T>
static void start(Atomic<T>& word, T v) { word.store_relaxed(v); }

static bool swap_when_equal(Atomic<u64>& word, u64 from, u64 to) { return word.cas_seq_cst(from, to); }
static u64 resident(u32 f) { return entry::with_frame(RESIDENT, f); }

// pin() and unpin(), pin.h, of page 0; `out` is the frame.
static bool pin(Atomic<u64>& word, Atomic<u16>* pins, u32& out) {
    u64 e = word.load_acquire();
    if (entry::state(e) != RESIDENT) return false;
    u32 f = entry::frame(e);
    pins[f].add_seq_cst(1);
    out = f;
    if (entry::is_resident_in(word.load_seq_cst(), f)) return true;
    pins[f].sub_seq_cst(1);
    return false;
}

// A reader, and an eviction (PoolEnv::evict, evict.h) that fills the frame anew.
struct PinEvict : rl::test_suite<PinEvict, 2> {
    static constexpr bool FEW = true;
    Atomic<u64> word;
    Atomic<u16> pins[1];
    Data data;
    void before() {
        start(word, resident(0));
        start(pins[0], u16(0));
        write(data, 1);
    }
    void thread(unsigned i) {
        u32 f;
        if (i == 0) {
            if (!pin(word, pins, f)) return;
            require(read(data) == 1);
            pins[f].sub_seq_cst(1);
        } else if (swap_when_equal(word, resident(0), entry::with_state(resident(0), EVICTING))) {
            if (pins[0].load_seq_cst()) return;
            write(data, 2);
        }
    }
};

// A load (finish_load, page.h), and a reader of the loaded page.
struct LoadPin : rl::test_suite<LoadPin, 2> {
    static constexpr bool FEW = true;
    Atomic<u64> word, slot;
    Atomic<u16> pins[1], loader_pins;
    Data data;
    void before() {
        start(word, u64(LOADING));
        start(slot, frame::busy(1));
        start(pins[0], u16(0));
        start(loader_pins, u16(0));
    }
    void thread(unsigned i) {
        u32 f;
        if (i == 0) {
            write(data, 7);
            slot.store_seq_cst(frame::live(0));
            loader_pins.add_seq_cst(1);
            require(swap_when_equal(word, LOADING, resident(0)));
        } else if (pin(word, pins, f)) {
            require(read(data) == 7);
        }
    }
};

// A publish (swap_frame, page.h), and a reader that unpins: one of the two, and only one, gets the superseded frame
// (settle_retired and unpin, pin.h), and what the reader saw in it was not changed.
struct PublishUnpin : rl::test_suite<PublishUnpin, 2> {
    static constexpr bool FEW = false;
    Atomic<u64> word, slot;
    Atomic<u16> pins[2];
    Data data[2];
    Atomic<u32> got;
    bool settle(u32 me) {
        for (;;) {
            u64 w = slot.load_seq_cst();
            if (frame::state(w) != RETIRED || pins[0].load_seq_cst()) return false;
            u64 closed = frame::settling(me, 0);
            if (!swap_when_equal(slot, w, closed)) continue;
            bool left = pins[0].load_seq_cst();
            require(swap_when_equal(slot, closed, left ? frame::retired(0) : frame::busy(me)));
            if (left) continue;
            got.add_relaxed(1);
            write(data[0], 9);
            return true;
        }
    }
    void before() {
        start(word, resident(0));
        start(slot, frame::live(0));
        start(pins[0], u16(0));
        start(pins[1], u16(0));
        start(got, 0u);
        write(data[0], 1);
    }
    void thread(unsigned i) {
        u32 f;
        if (i == 0) {
            write(data[1], 2);
            require(swap_when_equal(word, resident(0), resident(1)));
            slot.store_seq_cst(frame::retired(0));
            settle(1);
        } else {
            if (pin(word, pins, f)) {
                require(read(data[f]) == (f ? 2 : 1));
                if (pins[f].sub_seq_cst(1) != 1 || f) return;
            }
            if (f == 0 && frame::state(slot.load_seq_cst()) == RETIRED) settle(2);
        }
    }
    void after() { require(got.load_relaxed() == 1); }
};

// The lock word (take and release, lock.h), and what it protects.
struct Lock : rl::test_suite<Lock, 3> {
    static constexpr bool FEW = false;
    Atomic<u32> word;
    Data count;
    void before() {
        start(word, 0u);
        write(count, 0);
    }
    void thread(unsigned i) {
        u32 free = 0;
        while (!word.cas_seq_cst(free, i + 1)) {
            free = 0;
            rl::yield(1, $);
        }
        write(count, read(count) + 1);
        word.swap_seq_cst(0);
    }
    void after() { require(read(count) == 3); }
};

// A space is closed and another one opened over its entry (close_space, remove_space and finish_space in
// spaces.h); a reader and an appender with handles of the first (fetch_page, fetch.h; allocate_numbers, writing.h).
struct Reopen : rl::test_suite<Reopen, 3> {
    static constexpr bool FEW = false;
    Atomic<u64> word, span, allocated;
    Atomic<u16> pins[2];
    static u64 of(u64 generation) { return generation << 40 | 1; }
    void before() {
        start(word, resident(0));
        start(span, of(1));
        start(allocated, of(1));
        start(pins[0], u16(0));
        start(pins[1], u16(0));
    }
    void thread(unsigned i) {
        u32 f;
        if (i == 0) {
            require(swap_when_equal(span, of(1), of(2)));
            require(swap_when_equal(word, resident(0), ABSENT));
            allocated.store_release(0);
            span.store_seq_cst(u64(2) << 40);
            allocated.store_relaxed(of(3));
            span.store_seq_cst(of(3));
            require(swap_when_equal(word, ABSENT, resident(1)));  // a page of the new space
        } else if (i == 1) {
            if (pin(word, pins, f) && span.load_seq_cst() >> 40 == 1) require(f == 0);
        } else {
            u64 numbers = allocated.load_acquire();
            if (span.load_seq_cst() >> 40 == 1) require(numbers >> 40 == 1);
        }
    }
};

// A fold, the next client in the slot, and a sum (fold_counters, start_client, sum_counters: counters.h, client.h).
struct Fold : rl::test_suite<Fold, 2> {
    static constexpr bool FEW = true;
    Atomic<u64> total[2], folded, generation, own;
    Atomic<u32> done;
    void before() {
        start(total[0], u64(0));
        start(total[1], u64(0));
        start(folded, u64(0));
        start(generation, u64(1));
        start(own, u64(5));
        start(done, 0u);
    }
    void thread(unsigned i) {
        if (i == 0) {
            for (u64 copy = 1, g = 1; g <= 2; g++, copy = 1 - copy) {
                fence_release();
                total[copy].store_relaxed(total[1 - copy].load_relaxed() + own.load_relaxed());
                folded.store_release(2 | g << 16 | copy);
                done.store_release(1);
                if (g == 2) break;
                fence_release();
                own.store_relaxed(0);
                generation.store_release(2);
                done.store_release(0);
                own.add_owned(1);
            }
        } else {
            u64 before = folded.load_seq_cst(), sum = total[before & 1].load_acquire();
            bool counts = !done.load_acquire();
            if (counts && (u64(2) | generation.load_acquire() << 16) != (before & ~u64(1))) sum += own.load_acquire();
            if (folded.load_seq_cst() == before) require(sum == 5 || sum == 6);
        }
    }
};

// An event is written over an older one, and read (post_event, read_events: events.h).
struct Events : rl::test_suite<Events, 2> {
    static constexpr bool FEW = true;
    Atomic<u64> number, field[2];
    void before() {
        start(number, u64(1));
        start(field[0], u64(1));
        start(field[1], u64(1));
    }
    void thread(unsigned i) {
        if (i == 0) {
            number.store_release(0);
            fence_release();
            for (auto& f : field) f.store_relaxed(2);
            number.store_release(2);
        } else {
            u64 seen = number.load_acquire();
            if (!seen) return;
            u64 one = field[0].load_relaxed(), two = field[1].load_relaxed();
            fence_acquire();
            if (number.load_acquire() == seen) require(one == seen && two == seen);
        }
    }
};

// A client that is about to touch an entry, and one that gives its memory back (use_entry, is_leaving, leave_block,
// give_back_blocks: entry_memory.h, segment.h, growth.h).
struct Leave : rl::test_suite<Leave, 2> {
    static constexpr bool FEW = true;
    enum : u64 { ASKED = 1, GONE = 2 };
    Atomic<u64> leaving, bits, chunk;
    Data memory;  // of the entry
    void before() {
        start(leaving, u64(0));
        start(bits, u64(0));
        start(chunk, u64(1));
        write(memory, 1);
    }
    bool is_leaving() {
        u64 w = leaving.load_relaxed();
        while (w) {
            if (w == GONE) return true;
            if (leaving.cas_seq_cst(w, 0)) return false;
        }
        fence_acquire();
        return false;
    }
    void thread(unsigned i) {
        if (i == 0) {
            bits.or_seq_cst(1);
            fence_seq_cst();
            if (!is_leaving() && chunk.load_relaxed()) {
                require(read(memory) == 1);
                write(memory, 1);
            }
            bits.and_seq_cst(0);
        } else {
            u64 asked = ASKED;
            leaving.store_seq_cst(asked);
            fence_seq_cst();
            if (!bits.load_seq_cst() && leaving.cas_seq_cst(asked, GONE)) {
                chunk.store_relaxed(0);
                write(memory, 0);
            }
            leaving.store_seq_cst(0);
        }
    }
};

// All interleavings where they are few, else many random ones.
template <class Test>
static int run(const char* name) {
    rl::test_params params;
    params.search_type = Test::FEW ? rl::fair_full_search_scheduler_type : rl::random_scheduler_type;
    params.iteration_count = Test::FEW ? 100'000'000 : 300'000;
    bool held = rl::simulate<Test>(params);
    printf("%s: %llu iterations, %s\n", name, (unsigned long long)params.stop_iteration, held ? "held" : "VIOLATED");
    return held ? 0 : 1;
}

int main(int argc, char** argv) {
    const char* name = argc > 1 ? argv[1] : "";
#define TEST(T) if (!strcmp(name, #T)) return run<T>(name)
    TEST(PinEvict);
    TEST(LoadPin);
    TEST(PublishUnpin);
    TEST(Lock);
    TEST(Reopen);
    TEST(Fold);
    TEST(Events);
    TEST(Leave);
    return 2;
}
