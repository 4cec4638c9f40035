// A Segment: one process's mapping of a segment, as one client or as an observer, with the state that this process
// keeps for it. All other files of this room work on a Segment.
#pragma once

#include <mutex>
#include <thread>

#include "os/heap.h"
#include "os/prim.h"
#include "layout/bitmap.h"
#include "layout/objects.h"
#include "protocol/sampler.h"

namespace bp {

// The result of an operation. The Python layer raises the error for a result that is not OK.
enum class Status {
    OK,
    ABSENT,       // the page is not resident: load it
    WAIT,         // another client is changing the page: wait on its entry, then try again
    EXHAUSTED,    // no frame could be taken: all are pinned, dirty or in use
    NO_SPACE,     // the tmpfs (or the memory cgroup) has no memory for a frame
    INTERRUPTED,  // a signal handler raised, or the call's time is over: give up, nothing has changed
    TOO_MANY_PINS,
    DISCARDED,    // a discardable page was dropped
    TOO_DEEP,     // all operations of this process belong to threads that wait for one more operation
    NO_CLIENT,    // every client slot is in use
    NO_LOCKS,     // the kernel refuses byte locks
    REMOVED,      // the space of the page has been removed from the pool
    TOO_LONG,     // the space has its largest number of pages
    DEADLOCK,     // the wait would never end: it would be part of a cycle of loads
    RAISED,       // a hook has failed, and has recorded the reason
    NO_MEMORY,    // this process has no memory left: nothing has changed
    CORRUPT,      // the segment contradicts itself
};

constexpr int SPARES = 2;
constexpr u64 ALL_OPS = ~u64(0) >> (64 - OPS);

// Whether client `c` is one of this process, or was until its descriptor was closed. fork.cpp, which has the list of
// them, sets this function. For clients of other processes the kernel is asked.
inline bool (*is_our_client)(const Segment& s, u32 c) = nullptr;

// This process's mapping of the area of the objects: made when they are first used (objects.h).
struct Objects {
    Shared<ObjectsHeader*> header;  // null: not mapped; stored last
    ObjectPlaces at{};
    u8* base = nullptr;             // the start of the area
    const u8* read_base = nullptr;  // the start of its data, in a second, read-only mapping
    CacheUses* my_uses = nullptr;
    ObjectSample* samples = nullptr;
    ObjectHead* heads = nullptr;
    ObjectEntry* entries = nullptr;
    ObjectBlock* blocks = nullptr;
    u8* data = nullptr;
    Atomic<u32>* my_pins = nullptr;  // our row
    u32 log_shift = 0;
    Shared<u32> entries_ready, blocks_ready, heads_ready;  // the last valid values of the header's words
    Shared<u32> row_ready;                                 // the same, of our row
    std::mutex mapping;                                    // held by the thread that maps the area
    Atomic<u64> random{};                                  // the state of random_number()
};

struct Segment {
    u8* base = nullptr;
    u8* advice = nullptr;
    Duel* duel = nullptr;
    u64 mapped = 0;  // bytes; an observer's mapping is read-only, and ends where the data begin
    int fd = -1;     // this client's own open file description, which holds its byte lock
    u64 mark = 0;    // the mark by which the description is recognised; 0: an observer's, recognised by its file only
    u64 device = 0, inode = 0;  // the segment's file
    u64 generation = 0;         // the generation of our slot, since become()
    Atomic<u32> checked{};      // the tick of the last check that the descriptor is ours
    Segment* next = nullptr;  // the list of all segments that this process has mapped as a client (fork.cpp)
    u32 me = 0;      // client number, from 1; set by become(). 0: none; an observer has none
    u32 works = 0;   // the same number; 0 in a guest, which has only the pins that it inherited
    Atomic<u32> more_banks{};  // the last valid value of the header's word
    Atomic<u32> slots_ready{};  // the same
    bool lent = false;  // whether our pin counts include pins of forked children
    u64 handed = 0;  // bit i: the guest slot i was given to a forked child, which shares our lock on its byte until the
                     // child has run
    Geometry g{};  // a checked private copy: no value in the segment is trusted as an index

    Header* header = nullptr;
    Client* clients = nullptr;
    SpaceSlot* spaces = nullptr;
    SpaceTexts* texts = nullptr;  // of the spaces
    LongTexts* long_texts = nullptr;
    Uses* my_uses = nullptr;      // our row
    Event* events = nullptr;
    Atomic<u64>* entries = nullptr;
    FrameSlot* frames = nullptr;
    u8* pin_rows = nullptr;
    Atomic<u16>* my_pins = nullptr;  // our pin count of frame 0
    Bitmap free, holes;
    Atomic<u64>* chunk_bits = nullptr;  // which OS pages of entries are plugged; set under the growth lock
    u64* ring_slots[2] = {nullptr, nullptr};
    u8* data = nullptr;

    // Of this process only.
    Shared<u32> ready;                // the last valid value of header->frames_ready
    Shared<u32> spaces_ready;         // the last valid value of header->spaces_ready
    Shared<u32> long_texts_ready;     // the last valid value of header->long_texts
    Shared<u32> advised;              // the last valid value of header->advice_frames
    Atomic<u64> ops_used{};          // bit i: our operation i is in use
    Atomic<u64> op_thread[OPS] = {};  // the thread that uses each
    Atomic<u32> ops_held{};          // how many of them belong to threads that wait for another one
    Atomic<u32> spares[SPARES] = {};  // BUSY frames kept for the next publish, +1; 0 is none
    Atomic<u32> own_kept{};          // how many of our private scratch pages cannot be evicted, or more: scratch.h
    Atomic<u32> later{};             // the first of the BUSY frames to be given back, +1; 0 is none: memory.h
    std::recursive_timed_mutex reap_mutex;  // one reaper in this process: reap.h
    u32 reaping = 0;                 // the dead client whose byte lock we hold
    u32 leads = 0;                   // our number, while we hold the steward's lock
    bool (*interrupted)(Segment&) = nullptr;
    // Counts of what threads of this process have begun. They show that a word is damaged which has our number although
    // no thread of ours has set it (is_nobodys in lock.h, has_operation in wait.h).
    static constexpr u32 FLUSH_USES = MAX_SPACES < 64 ? MAX_SPACES : 64;  // the flush locks share them
    struct LockUse {
        prim::LockTally begun, ended;  // attempts to take the lock; those that failed, and releases
    } lock_use[4 + ADVISES + FLUSH_USES];
    prim::Tally claims;  // attempts to claim an entry: counted after the intent was written, and before the CAS
    Sampler sampler{};
    Objects objects{};
    Atomic<u32> removed_here{};  // 1: this process has removed a space whose entries may still have memory
#ifdef BP_EXPLORE  // entries keep their memory in scenarios that are not about it, which so have far fewer states
    bool keeps_entries = true;
#else
    static constexpr bool keeps_entries = false;
#endif

    void map(u8* at, const Geometry& geometry, u64 bytes = 0) {
        base = at;
        g = geometry;
        mapped = bytes ? bytes : g.total_bytes;
        header = reinterpret_cast<Header*>(at);
        clients = reinterpret_cast<Client*>(at + g.clients_at);
        spaces = reinterpret_cast<SpaceSlot*>(at + g.spaces_at);
        events = reinterpret_cast<Event*>(at + g.events_at);
        texts = reinterpret_cast<SpaceTexts*>(at + g.texts_at);
        long_texts = reinterpret_cast<LongTexts*>(at + g.long_texts_at);
        advice = at + g.advice_at;
        duel = reinterpret_cast<Duel*>(at + g.duel_at);
        entries = reinterpret_cast<Atomic<u64>*>(at + g.entries_at);
        frames = reinterpret_cast<FrameSlot*>(at + g.frames_at);
        pin_rows = at + g.pins_at;
        auto tops = reinterpret_cast<u64*>(at + g.tops_at);
        free = Bitmap(at + g.sets_at, g, tops, ready);
        holes = Bitmap(at + g.sets_at + g.set_bytes[0] + g.set_bytes[1], g, tops + g.top_words(), ready);
        chunk_bits = reinterpret_cast<Atomic<u64>*>(tops + SETS * g.top_words());
        for (u32 ring = 0; ring < 2; ring++)
            ring_slots[ring] = reinterpret_cast<u64*>(at + g.rings_at + ring * g.ring_bytes);
        data = at + g.data_at;
    }

    Client& client() { return clients[me - 1]; }
    Counters& counters() { return client().counters; }
    void took(Latency what, u64 since_ns) { counters().latency[what].add(prim::now_ns() - since_ns); }
    LockUse& use_of(const LockWord& lock) {
        if (&lock == &header->memory) return lock_use[0];
        if (&lock == &header->directory) return lock_use[1];
        if (&lock == &header->growth) return lock_use[2];
        if (&lock == &header->objects) return lock_use[3];
        if constexpr (ADVISES)
            if (&lock == &header->advice) return lock_use[4];
        u64 slot = u64(reinterpret_cast<const u8*>(&lock) - reinterpret_cast<const u8*>(spaces)) / sizeof(SpaceSlot);
        return lock_use[4 + ADVISES + slot % FLUSH_USES];
    }
    u8* page_data(u32 f) { return data + (u64(f) << g.page_shift); }
    u64 page_offset(u32 f) const { return g.data_at + (u64(f) << g.page_shift); }
    // The row of a frame's pin counts in a stripe: see layout.h.
    Atomic<u16>* stripe_row(u32 stripe, u32 f) {
        return reinterpret_cast<Atomic<u16>*>(pin_rows + stripe * g.stripe_bytes) + u64(f) * g.stripe_clients;
    }
    static u32 stripe_of(u32 c) { return (c - 1) / CLIENT_BANK * STRIPES + (c - 1) % STRIPES; }
    Atomic<u16>& pin_count_of(u32 c, u32 f) { return stripe_row(stripe_of(c), f)[(c - 1) % CLIENT_BANK / STRIPES]; }
    // How many stripes have memory. An eviction reads it after it has closed the entry. So a client of a bank that is
    // added later pins after that, and finds the entry closed (rule 3).
    u32 stripes() {
        if (g.stripes() == STRIPES) return STRIPES;
        u64 w = header->more_banks.load_seq_cst();
        u32 n = more_banks.load_relaxed();  // used if the word is damaged
        if (is_doubled(w) && u32(w) < g.stripes() / STRIPES) more_banks.store_relaxed(n = u32(w));
        return (n + 1) * STRIPES;
    }
    // The rows of the counters of each space's uses: first the two copies of the totals, then a row for each client.
    Uses* use_row(u32 row) { return reinterpret_cast<Uses*>(base + g.uses_at + row * g.use_row_bytes); }
    Uses* uses_of(u32 c) { return use_row(1 + c); }
    bool has_pins(u32 c) { return stripe_of(c) < stripes(); }
    // How many slots, from the first one, have memory. A client that takes a slot beyond them first gives it memory and
    // counts it (open_slots in growth.h).
    u32 slots() {
        if (g.max_clients <= CLIENT_BANK) return g.max_clients;
        u64 w = header->slots_ready.load_seq_cst();
        u32 n = std::max(slots_ready.load_relaxed(), CLIENT_BANK);  // no slot was added, or the word is damaged
        if (is_doubled(w) && u32(w) > n && u32(w) <= g.max_clients) slots_ready.store_relaxed(n = u32(w));
        return n;
    }
    bool has_slot(u32 c) { return c && c <= slots(); }
    Atomic<u16>& pin_count(u32 f) { return my_pins[u64(f) * g.stripe_clients]; }
    // Whether our descriptor still refers to the segment's file: other code may have closed it. It is checked before
    // each use.
    bool has_descriptor() const { return mark ? prim::has_mark(fd, mark) : !inode || prim::is_file(fd, device, inode); }
    // The same, checked at most once in a tick: for operations that do not use the descriptor, such as a miss.
    bool had_descriptor() {
        u32 now = tick();
        if (checked.load_relaxed() == now) return true;
        if (!has_descriptor()) return false;
        checked.store_relaxed(now);
        return true;
    }
    int plug(u64 offset, u64 bytes) const { return has_descriptor() ? prim::plug(fd, offset, bytes) : -EBADF; }
    int punch(u64 offset, u64 bytes) const { return has_descriptor() ? prim::punch(fd, offset, bytes) : -EBADF; }
    int remove_frames(u32 first, u64 bytes) {
        return prim::remove(page_data(first), bytes, has_descriptor() ? fd : -1, page_offset(first));
    }
    int lock_byte(long at) const { return has_descriptor() ? prim::lock_byte(fd, at) : -EBADF; }
    int unlock_byte(long at) const { return has_descriptor() ? prim::unlock_byte(fd, at) : -EBADF; }
    int byte_is_locked(long at) const { return has_descriptor() ? prim::byte_is_locked(fd, at) : -EBADF; }

    // Does a client live although it has lost its byte lock? It does if its process has the segment mapped. (In a FREE
    // slot the pid is that of the last client, whose process may have attached again as another client.)
    bool still_maps(u32 c) const {
#ifndef BP_BYTE_LOCKS_ONLY  // tests whose clients are threads of one process
        const Client& slot = clients[c - 1];
        if (slot.state.load_acquire() == CLIENT_FREE) return false;
        u32 pid = slot.pid.load_acquire();  // before the namespaces: a forked child stores them first
        bool has_our_pid = is_our_client && pid == prim::process_id(), unsaid = slot.unlocked.load_relaxed();
        if (has_our_pid && is_our_client(*this, c)) return true;
        if (!pid) return false;
        u64 theirs = slot.namespaces.load_relaxed(), ours = prim::namespaces();
        if (!prim::share_pids(theirs, ours)) return unsaid;
        u64 start = prim::share_times(theirs, ours) ? slot.start_time.load_relaxed() : prim::ANY_START;
        return !has_our_pid && prim::still_maps(pid, start, device, inode, unsaid);
#else
        return c == 0;
#endif
    }
    // Is our slot still ours? Without a byte lock we may have been reaped, if /proc did not show that we live. With a
    // byte lock the slot is ours, and if it has another generation, it is damaged.
    bool keeps_slot() { return me && (client().generation.load_acquire() == generation || has_descriptor()); }

    u32 guest_number(u32 c) const { return c - g.before_guests() - 1; }
    void hand(u32 c) { handed |= u64(1) << guest_number(c); }
    bool has_handed(u32 c) const { return g.is_guest(c) && handed >> guest_number(c) & 1; }

    void become(u32 c, bool guest = false) {
        me = c;
        works = guest ? 0 : c;
        generation = c ? client().generation.load_relaxed() : 0;
        my_pins = c ? &pin_count_of(c, 0) : nullptr;
        my_uses = c ? uses_of(c) : nullptr;
        become_objects();
        own_kept.store_relaxed(0);
        sampler.gate.store_relaxed(0);
        sampler.reopen_ns.store_relaxed(0);
        sampler.n.store_relaxed(0);
        sampler.paused = false;
    }

    // The row of this client in the tables of the objects.
    void become_objects() {
        Objects& o = objects;
        if (!o.header || !me) return;
        o.my_uses = object_uses(me);
        o.my_pins = object_pins(me);
        o.row_ready = 0;
    }
    CacheUses* object_uses(u32 c) const {
        const Objects& o = objects;
        return reinterpret_cast<CacheUses*>(o.base + (o.at.rows_at - o.at.at) + (c - 1) * o.at.row_bytes);
    }
    Atomic<u32>* object_pins(u32 c) const {
        return reinterpret_cast<Atomic<u32>*>(reinterpret_cast<u8*>(object_uses(c)) + row_bytes(g, 0, true));
    }

    // The part of the budget that pages may use: what is lent to the objects is theirs.
    u32 page_budget() const {
        u32 budget = header->budget_frames.load_relaxed();
        if (!header->objects_made.load_relaxed()) return budget;
        u32 lent = loan::lent(header->loan.load_relaxed());
        return lent < budget ? budget - lent : 1;
    }

    // Does this frame number have a slot with memory behind it?
    bool has_frame(u32 f) {
        if (f < ready) return true;
        look_at_ready();
        return f < ready;
    }
    // Remembers a count of what has memory, from its word: see doubled(). False: the word is damaged, and the last
    // valid value is kept.
    static bool learn(Shared<u32>& known, u64 w, u32 most) {
        if (!is_doubled(w) || u32(w) > most) return false;
        known = u32(w);
        return true;
    }
    // Each reads such a count: of the frames, of the spaces' slots, and of LongTexts.
    bool look_at_ready() { return learn_ready(header->frames_ready.load_acquire()); }
    bool learn_ready(u64 w) { return learn(ready, w, g.max_frames); }
    bool look_at_spaces() { return learn(spaces_ready, header->spaces_ready.load_acquire(), MAX_SPACES); }
    bool look_at_long_texts() { return learn(long_texts_ready, header->long_texts.load_acquire(), MAX_SPACES); }
    u32 space_count() {
        look_at_spaces();
        return spaces_ready;
    }
    u64 entry_chunk_word(u64 word) const {
        const Atomic<u64>* at = chunk_bits + word;
        u64 n = g.chunk_words(), a = at[0].load_relaxed(), b = at[n].load_relaxed(), c = at[2 * n].load_relaxed();
        return (a & b) | (a & c) | (b & c);
    }
    bool has_entry_chunk(u64 i) const { return entry_chunk_word(i / 64) >> (i % 64) & 1; }
    // Under the growth lock.
    void set_entry_chunk(u64 i) {
        u64 now = entry_chunk_word(i / 64) | u64(1) << (i % 64);
        for (u32 copy = 0; copy < CHUNK_COPIES; copy++) chunk_bits[copy * g.chunk_words() + i / 64].store_relaxed(now);
    }
    // The largest budget that the shadows have memory for.
    u32 look_at_advised() {
        learn(advised, header->advice_frames.load_acquire(), g.max_frames);
        return advised;
    }
    // A steward's upper bound: the larger of the value given at creation and the last one that a call asked for.
    u32 most_frames() const {
        u32 most = header->most_frames.load_relaxed(), asked = header->asked_frames.load_relaxed();
        if (most < asked) most = asked;
        return most < g.max_frames ? most : g.max_frames;
    }
    // Under the growth lock.
    void clear_entry_chunk(u64 i) {
        u64 now = entry_chunk_word(i / 64) & ~(u64(1) << (i % 64));
        for (u32 copy = 0; copy < CHUNK_COPIES; copy++) chunk_bits[copy * g.chunk_words() + i / 64].store_relaxed(now);
    }
    // Is the memory of this page's entry being given back? While that is only ASKED (layout.h), this client prevents
    // it, and the answer is no: this client is about to touch the entry.
    bool is_leaving(u64 page) const {
        u64 w = header->leaving.load_relaxed();
        while (w && leaving::has(w, g.entry_block(page))) {
            if ((w & leaving::STATE) != leaving::ASKED) return true;
            if (!me || header->leaving.cas_seq_cst(w, 0)) return false;  // an observer changes nothing
        }
        fence_acquire();  // if its memory was given back, a load of the bitmap of chunks shows that from here on
        return false;
    }
    // Does this page number have an entry with memory? A number from a damaged word may be within all bounds and lead
    // to a hole, where an access would allocate uncounted memory, or raise SIGBUS. The answer is valid for as long as
    // this client has the memory lock or the directory lock, an EntryLook, or the page's block (entry_memory.h).
    bool has_page(u32 page) const {
        return page < g.max_pages && !is_leaving(page) && has_entry_chunk(page >> (__builtin_ctz(g.os_page) - 3));
    }

    // The first page from `page` on whose entry has memory; `end` if there is none before `end`.
    u64 next_page(u64 page, u64 end) const {
        u64 unit = g.os_page / 8, last = std::min(end, g.max_pages);  // a damaged space may end beyond the entries
        while (page < last) {
            u64 chunk = page / unit;
            if (has_page(u32(page))) return page;
            page = entry_chunk_word(chunk / 64) ? (chunk + 1) * unit : (chunk / 64 + 1) * 64 * unit;
        }
        return end;
    }

    u32 tick() const { return u32(prim::coarse_ns() >> TICK_SHIFT); }

    // The sampler's mark of a frame into which this page is loaded.
    u8 mark_of(u32 page) const {
        if constexpr (!ADVISES) return 0;
        u8 epoch = sampler.epoch.load_relaxed();
        return is_sampled(page, reinterpret_cast<Advice*>(advice)->shift.load_relaxed()) ? epoch ? epoch : 1 : 0;
    }

    // Is this the first use of a page that was read ahead? Of several concurrent uses one is the first.
    bool first_use(u32 f) {
        auto& count = frames[f].count;
        u8 before = count.load_relaxed();
        return (before & AHEAD) && count.cas_seq_cst(before, u8(before & ~AHEAD));
    }

    // The SAMPLED bit of the count of a frame into which this page is loaded.
    u8 sampled_by_duel(u32 page) const {
        if constexpr (!DUELS) return 0;
        u32 shift = duel->shift.load_relaxed();
        return shift < 32 && is_sampled(page, shift) ? SAMPLED : 0;
    }

    // Records a page's first hit in a unit of time (Alr::tag) for the duel of modes.
    [[gnu::noinline]] void hit_sampled(FrameSlot& slot, u8 count) {
        if ((count & REFERENCES) < REFERENCES) slot.count.store_relaxed(u8(count + 1));
        u32 at = duel->hits_added.add_relaxed(1) % DUEL_HITS;
        duel->hits[at].store_relaxed(frame::page(slot.word.load_relaxed()) + 1);
    }

    // Records a hit for the policy, for the page's age and for the sampler. It writes to the slot only what changes:
    // the tick, and once in a unit of time the tag and the count.
    [[gnu::always_inline]] void touch(u32 f, u32 now) {
        FrameSlot& slot = frames[f];
        if (slot.touched.load_relaxed() != now) {
            slot.touched.store_relaxed(now);
            if constexpr (ADVISES)
                if (sampler.tick.load_relaxed() != now) look_after_window(*this);
        }
        u8 count = slot.count.load_relaxed(), tag = u8(header->policy_tag.load_relaxed());
        if (count != REFERENCES && slot.tag.load_relaxed() != tag) {
            slot.tag.store_relaxed(tag);
            if (count < REFERENCES) slot.count.store_relaxed(u8(count + 1));
            else if (DUELS && (count & SAMPLED)) hit_sampled(slot, count);
        }
        if constexpr (ADVISES)
            if (sampler.wants(slot)) record(*this, frame::page(slot.word.load_relaxed()), 0);
    }
};

// Makes the shadows start anew, after the owner of their lock died while it worked on them.
inline void forget_advice(Segment& s) {
    if constexpr (ADVISES) reinterpret_cast<Advice*>(s.advice)->frames = 0;
}

}  // namespace bp
