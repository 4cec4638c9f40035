// The segment: one sparse tmpfs file that every process maps whole.
//
//  +---------+---------+--------+---------+----------+---------+--------+---------+---------+---------+-------+-- - -+
//  | header  | clients | events | duel,   | spaces   | entries | frames | pins    | sets    | rings   | tops  | data  |
//  | 4 pages | slot[]  | ring   | advice  | slot[],  | u64[]   | 32 B[] | u16[]   | bitmaps | u64[]   | of    | page[]|
//  |         |         |        |         | texts[], | sparse  |        |         |         |         | sets  | 2 MiB |
//  |         |         |        |         | uses[][] |         | as used| as used | as used | as used |       |       |
//  +---------+---------+--------+---------+----------+---------+--------+---------+---------+---------+-------+-- - -+
//
// Every area starts on an OS page; the data area is aligned to 2 MiB. The
// areas before the data are plugged (given memory) before they are touched:
// header, events, duel and tops at creation; the slots of clients in banks of 64, as clients attach
// (open_slots in protocol/growth.h); the tables with an element for each space (slots, texts, and the
// counters of each client) in steps as spaces are opened; entries in chunks of an OS page
// when a space needs them (a bitmap records which; they are given back in blocks of 2 MiB when no space has a part of
// the block and no client may touch it: protocol/entry_memory.h); frames, pins, sets and rings in chunks as frames are
// first used. The advice area gets memory at creation for the budgets that a steward may choose, and more when a larger
// budget is asked for. A zero byte means "never used" everywhere.
//
// Pin counts lie in eight stripes: clients 1, 9, 17, … share a row in the first,
// clients 2, 10, 18, … in the second, and so on. So the first eight clients never
// write to the same cache line, and eviction still reads a frame's counts as words.
// Clients 65 to 128 have eight stripes more, and so on. The eight stripes of 64 clients are a bank: it gets its
// memory when the first of its clients attaches.
#pragma once

#include <cstddef>

#include "layout/advice.h"
#include "layout/duel.h"
#include "layout/words.h"

namespace bp {

constexpr u64 MAGIC = 0x314c4f4f50465542;  // "BUFPOOL1"
constexpr u32 LAYOUT_VERSION = 4;  // the meaning of the fields; layout_sum() tells other places and sizes apart
#ifdef BP_EXPLORE  // the explorer keeps its states small
constexpr u32 MAX_SPACES = 1, OPS = 1, EVENTS = 1, BUCKETS = 1, FAILURES = 1, FAILURE_WORDS = 1;
constexpr u32 SHORT_TEXT = 8, LONGEST_TEXT = 8;
constexpr u32 EVENT_KINDS = 1, EVENT_REASONS = 1, SHARES = 1, SNAPSHOTS = 1;
#else
constexpr u32 MAX_SPACES = 4096;
constexpr u32 OPS = 64;  // the most operations of one client under way at once
constexpr u32 EVENTS = 1024;
constexpr u32 BUCKETS = 28;
constexpr u32 SHORT_TEXT = 1024, LONGEST_TEXT = 4096;  // bytes of a name, or of a path, with the zero that ends it
constexpr u32 EVENT_KINDS = 24, EVENT_REASONS = 32;  // those of figures/names.py, and room for more
constexpr u32 SHARES = 64;  // spaces of a pool that have a limit or a reserve
constexpr u32 SNAPSHOTS = 32;  // LSNs at which one client reads: protocol/snapshots.h
// Records of one client's failed loads, for the clients that waited for them: failures.h.
constexpr u32 FAILURES = 8, FAILURE_WORDS = 24;
#endif
// The memory of entries is given back to the kernel in blocks of the size of a huge page, so that no part of a huge
// page is given back alone. A client has a bit for each block whose entries it may touch; blocks whose numbers differ
// by a multiple of BLOCK_BITS share a bit.
#ifdef BP_EXPLORE
constexpr u64 ENTRY_BLOCK = 32, BLOCK_BITS = 64;
#else
constexpr u64 ENTRY_BLOCK = 2u << 20, BLOCK_BITS = 512;
#endif
constexpr u32 SPACE_STEP = 16;  // spaces whose slots get their memory together
// A bank: STRIPES stripes of pin counts, for CLIENT_BANK clients. It gets its memory as a whole.
#ifdef BP_EXPLORE
constexpr u32 STRIPES = 4, CLIENT_BANK = 4;
#else
constexpr u32 STRIPES = 8, CLIENT_BANK = 64;
#endif
constexpr u32 GUESTS = 16;  // slots beyond max_clients, for forked children that find no free slot
constexpr u64 DATA_ALIGN = 2u << 20;
constexpr u64 UNLINKED = 1, MAY_LOSE = 0x100;  // of Header.unlinked; each has a byte of its own
constexpr u32 PIN_MAX = 0xff00;  // the most pins of one client on one frame; threads may exceed it briefly

enum Reason : u32 { BUDGET, IDLE, PRESSURE, DROP, TRIM, CLIENT_EXIT, REASONS };
enum Latency : u32 { LATENCY_LOAD, LATENCY_FLUSH, LATENCY_RECLAIM, LATENCY_WAIT, LATENCY_SYNC, LATENCIES };
constexpr u32 ERROR_CLASSES = 7;  // classes of the errno with which a store failed: figures/names.py

// The kind of an operation under way. Its intent says what it is about to change, and is written before the change:
// first the other fields, then `op`. While `op` is NONE, the other fields have no meaning.
// LOG_SYNC, SAVE: a sync of the engine's log, a save of the working set. They change nothing in the segment; the
// figures show how long they take.
enum class Op : u32 { NONE = 0, LOAD, EVICT, PUBLISH, DISCARD, FLUSH, LOAD_MANY, PUBLISH_MANY, LOG_SYNC, SAVE };

struct Intent {
    Atomic<u32> op;
    Atomic<u32> page;    // LOAD, PUBLISH, DISCARD: the page; EVICT: the page to be loaded, or NONE; FLUSH: the first;
                         // LOAD_MANY: the page that is being claimed or published (load_many.h);
                         // PUBLISH_MANY: the page that is being settled, or NONE (publish_many.h)
    Atomic<u32> frame;   // LOAD, LOAD_MANY: once it is filled; PUBLISH, PUBLISH_MANY: the new frame
    Atomic<u32> old;     // PUBLISH, PUBLISH_MANY, DISCARD: the frame that is superseded; FLUSH: the last page
    Atomic<u32> victim;  // EVICT: the page that is evicted
    Atomic<u32> since;   // LOAD, LOAD_MANY, FLUSH, LOG_SYNC, SAVE: the tick in which it last made progress
    Atomic<u64> waits;   // LOAD, LOAD_MANY: the page for which the operation's thread waits (deadlock.h)
};
static_assert(sizeof(Intent) == 32);
static_assert(OPS <= 1u << OP_BITS);

// The group word of an operation: the commit point of all pages that it publishes together (publish_many.h). The number
// in its upper bits grows with each group and is never reset, so a reader that finds the word unchanged has seen one
// group.
namespace group {
enum State : u64 { NO_GROUP = 0, OPEN = 1, COMMITTED = 2, STATE = 3 };
constexpr State state(u64 w) { return State(w & STATE); }
constexpr u64 next(u64 w) { return ((w | STATE) + 1) | OPEN; }
constexpr u64 with_state(u64 w, State s) { return (w & ~u64(STATE)) | s; }
}  // namespace group

// Histograms of durations, by powers of two: bucket i counts durations below 2^(10 + i) ns
// (1.02 us, 2.05 us, ... 68.7 s), the last one all longer ones.
constexpr u32 BUCKET_SHIFT = 10;
struct Histogram {
    Atomic<u64> bucket[BUCKETS];
    Atomic<u64> sum_ns;

    void add(u64 ns) {
        u32 i = ns >> BUCKET_SHIFT ? 64 - u32(__builtin_clzll(ns)) - BUCKET_SHIFT : 0;
        bucket[i < BUCKETS ? i : BUCKETS - 1].add_relaxed(1);
        sum_ns.add_relaxed(ns);
    }
};

// Each client adds only to its own counters; the header has the totals of departed clients.
struct Counters {
    Atomic<u64> loads, load_failures, load_bytes;
    Atomic<u64> evictions_recycled, evictions_reclaimed;
    Atomic<u64> publishes, appends;
    Atomic<u64> flushes, flushed_pages, foreground_flushes;
    Atomic<u64> compacted_pages;
    Atomic<u64> wait_load, wait_writer, wait_memory, wait_frame;
    Atomic<u64> reaped, pins_broken, rebuilds;
    Atomic<u64> checkpoints, flush_failures, corrupt_pages, repaired_pages;
    Atomic<u64> mode_changes;
    Atomic<u64> prefetched, prefetched_unused;  // pages read ahead; of them, evicted before their first use
    Atomic<u64> exhausted;                      // requests for a frame that found none
    Atomic<u64> eviction_ticks;                 // of all evicted pages: the ticks since they were last referenced
    Atomic<u64> reclaimed_bytes[REASONS];
    Histogram latency[LATENCIES];
};
constexpr u32 COUNTERS = sizeof(Counters) / sizeof(u64);

// The uses of one space. Each client has a row of these, with an element for each space, and so have the totals.
struct Uses {
    Atomic<u64> hits, misses;
};

// A lock that survives the death of its owner. Low bits: the owner's client number; see lock.h.
struct LockWord {
    Atomic<u32> word;
};

enum ClientState : u32 { CLIENT_FREE = 0, CLIENT_LIVE = 1 };

struct Failure {
    Atomic<u64> about, pages;
    Atomic<u64> text[FAILURE_WORDS];
};

struct alignas(64) Client {
    Atomic<u32> state;
    Atomic<u32> pid;
    Atomic<u64> start_time;   // field 22 of /proc/PID/stat, in clock ticks
    Atomic<u64> namespaces;   // in which the pid and the start time are valid (prim::namespaces)
    Atomic<u64> attached_ns;  // CLOCK_REALTIME
    Atomic<u64> generation;   // grows with each attach to this slot
    Atomic<u32> folded;       // 1: its counters have been added to the totals
    Atomic<u32> unlocked;  // 1: a forked child without a descriptor, and so without a byte lock: it lives while its
                           // process does
    Atomic<u32> ending;    // 1: its process exits, or it could not detach in time: its reaper counts no death
    char name[32];
    alignas(64) Counters counters;
    alignas(64) Intent intents[OPS];
    Atomic<u64> groups[OPS];  // the group word of each operation
    Atomic<u64> snapshot_lsns[SNAPSHOTS], snapshot_counts[SNAPSHOTS];  // protocol/snapshots.h
    // `blocks`: the blocks of entries that a handle of this client may touch at any time; `looks`: how many EntryLooks
    // its threads have, to read entries without a handle (protocol/entry_memory.h).
    Atomic<u64> blocks[BLOCK_BITS / 64];
    Atomic<u32> looks;
    Atomic<u64> failed;  // the number of failed loads so far
    Failure failures[FAILURES];
};

enum SpaceState : u32 { SPACE_FREE = 0, SPACE_OPENING = 1, SPACE_LIVE = 2, SPACE_CLOSING = 3 };
enum SpaceKind : u32 { KIND_FILE = 1, KIND_DERIVED = 2, KIND_SCRATCH = 3, KIND_STORE = 4 };
enum SpaceFlags : u32 { SPACE_DISCARDABLE = 1, SPACE_WRITABLE = 2, SPACE_CHECKSUM = 4 };

// A space's span: its generation and its number of pages in one word. So a handle reads by one load how many pages
// there are, and whether the slot still has the space that the handle opened. One CAS closes a space: it sets the next
// generation, and the bit CLOSED.
constexpr int GENERATION_SHIFT = 33;
constexpr u64 CLOSED = u64(1) << (GENERATION_SHIFT - 1);
constexpr u64 PAGES_MASK = CLOSED - 1;
// The last generation of a slot; each space that is opened there takes two. After it the slot is not used any more,
// because a handle of an old space with the same generation would be valid for the new space.
constexpr u64 GENERATIONS_MOST = (u64(1) << (64 - GENERATION_SHIFT)) - 1;

struct alignas(64) SpaceSlot {
    Atomic<u64> span;          // generation << GENERATION_SHIFT | pages
    Atomic<u64> allocated;     // a span: the generation, and how many page numbers append has allocated
    Atomic<u64> stored;        // pages that the store has
    Atomic<u64> entries_ready; // no entry from this one on has memory; which of those before it do, the chunks say
    Atomic<u32> state, kind, flags, owner;
    Atomic<u32> first_entry, max_pages;
    Atomic<u32> long_texts;    // the number of the slot's LongTexts, from 1; 0: it never needed any
    LockWord flush_lock;
    Atomic<u32> flush_open;    // 1: a flush has begun and has not recorded the file's new time
    // The file's state after the pool last read or wrote it (file_changes.py); `doubt`: its times may not show a later
    // change.
    Atomic<u64> device, inode, size_bytes, mtime_ns, ctime_ns, doubt;
    Atomic<u64> owner_generation;
    Atomic<u64> version;       // a hash of the version of a derived space's loader; 0: none
    Atomic<u64> flush_since_ns;  // when the owner of the flush lock took it (CLOCK_BOOTTIME)
    // When the present space was opened, and the slot's counters at that time: they are not reset for a new space.
    Atomic<u64> opened_ns, hits_before, misses_before;
    Atomic<u64> name_sum, path_sum;  // the hashes of its texts (text_sum)
    // Failures of its store since it was opened, by class of errno. They are rare: all clients add to the same words.
    Atomic<u64> load_failures[ERROR_CLASSES], flush_failures[ERROR_CLASSES];
    Atomic<u64> limit, reserve;  // its share of the pool, in bytes (under the memory lock); 0: none
    Atomic<u64> sum;           // a checksum of the fields that do not change while the space lives: see space_sum

    bool is_live() const { return state.load_acquire() == SPACE_LIVE && !(span.load_acquire() & CLOSED); }
    bool is_closing() const {
        u32 s = state.load_seq_cst();
        return s == SPACE_CLOSING || (s != SPACE_FREE && (span.load_seq_cst() & CLOSED));
    }
};

// The texts of a space; a search through the slots does not read them. Of a text that is too long for its field, the
// field has the first bytes, without a zero after them, and the LongTexts of the space's slot have the whole text.
struct SpaceTexts {
    char name[SHORT_TEXT];
    char path[SHORT_TEXT];
};
struct LongTexts {
    char name[LONGEST_TEXT];
    char path[LONGEST_TEXT];
};

// The share of a space in the pool: how many frames its pages may have, and how many of these the pages of other spaces
// cannot take. Misses read it here. It is a copy of the limit and the reserve in the space's slot (protocol/shares.h).
struct Share {
    Atomic<u64> frames;          // the number of recounts (the high half), and the frames that its pages have
    Atomic<u32> first, end;      // the space's range of entries; empty if no space has this share
    Atomic<u32> limit, reserve;  // in frames; 0: none
    Atomic<u32> hand;            // the frame at which the next search for one of the space's pages begins
    Atomic<u32> space;           // the number of the space's slot
};
struct Shares {
    Atomic<u32> high, reserved;  // the number of shares ever used; the sum of all reserves
    Atomic<u32> doubt, pause;    // 1: some count may be too high; the number of misses until the next recount
    Share list[SHARES];
};

// Bits of FrameSlot::count. AHEAD: the page was read ahead and has not been used. SAMPLED: the duel samples the page.
// REFERENCES: the bits that count references.
constexpr u8 AHEAD = 0x80, SAMPLED = 0x40, REFERENCES = 3;

struct FrameSlot {
    Atomic<u64> word;
    Atomic<u64> lsn;
    Atomic<u32> touched;  // when last referenced, in ticks of 2^27 ns (0.134 s)
    // The policy's data about the page. A hit writes only these two bytes and `touched`.
    Atomic<u8> count, tag;
    u8 seen;              // used by rebuild(), under the memory lock
    Atomic<u8> mark;      // for the sampler: 0: not sampled; else the epoch in which it was last recorded (advice.h)
    Atomic<u64> rec_lsn;  // of a dirty page: the LSN of the first change that its store lacks
};
static_assert(sizeof(FrameSlot) == 32, "two frames a cache line");

// An event: a decision about the pool's memory, a death or a failure. The writer stores `number`
// first as 0 and last as the event's number (from 1). A reader that finds
// the same number before and after its copy has a complete event; it skips an event whose writer died in
// between.
struct Event {
    Atomic<u64> number;
    Atomic<u64> time_ns;  // CLOCK_REALTIME
    Atomic<u64> bytes;
    Atomic<u32> from_frames, to_frames;  // the budget, before and after
    Atomic<u32> kind, reason;            // EventKind and EventReason of figures/names.py
    Atomic<u32> client, origin;          // the client that it is about; where a failure occurred: Origin in events.h
    Atomic<u64> value;                   // a double: the measured value that was the reason
    Atomic<u64> page;                    // the page of the space in `origin`, from 1; 0: none
};
static_assert(sizeof(Event) == 64);

// A set of frames is a bitmap with two levels of summaries above it: a bit there says that a word below is not zero.
// The topmost levels have their memory from the start, the others as frames are first used.
enum Set : u32 { SET_FREE, SET_HOLES, SETS };
constexpr int SET_LEVELS = 2;  // below the topmost
constexpr u64 set_words(u64 frames, int level) { return (frames + (u64(64) << 6 * level) - 1) >> (6 + 6 * level); }

// The bitmap of the chunks of entries that have memory is stored three times, and for each bit the majority decides. So
// one damaged word neither leads to a chunk without memory, nor hides a chunk that has pages.
constexpr u32 CHUNK_COPIES = 3;

constexpr u64 round_up(u64 n, u64 to) { return (n + to - 1) / to * to; }

struct Geometry {
    u32 page_size, page_shift, os_page, extent_frames;
    u32 max_frames, max_clients, stripe_clients;
    u32 guests;  // the number of slots that are for forked children only: see before_guests()
    u64 max_pages;
    u64 huge_pages;  // 1: an extent is a huge page, which gets its memory, and loses it, as a whole
    u64 clients_at, events_at, duel_at, advice_at, spaces_at, texts_at, long_texts_at, uses_at, use_row_bytes;
    u64 entries_at, frames_at, pins_at, stripe_bytes;
    u64 sets_at, set_bytes[SET_LEVELS], rings_at, ring_bytes, tops_at, data_at, total_bytes;

    u64 entry_chunks() const { return (max_pages * 8 + os_page - 1) / os_page; }  // OS pages of entries
    u32 stripes() const { return (max_clients + CLIENT_BANK - 1) / CLIENT_BANK * STRIPES; }
    // Rows of uses: two for the totals, then one for each client of each bank.
    u32 use_rows() const { return 2 + stripes() / STRIPES * CLIENT_BANK; }
    // The slots for guests are the last ones of the first bank, so that a guest needs no memory for pins of another
    // bank.
    u32 before_guests() const {
        u32 own = max_clients - guests;
        return own + guests < CLIENT_BANK ? own : CLIENT_BANK - guests;
    }
    bool is_guest(u32 c) const { return c - before_guests() - 1 < guests; }
    u64 slots_bytes(u32 n) const { return round_up(clients_at + n * sizeof(Client), os_page) - clients_at; }
    u64 long_texts_bytes(u32 n) const { return round_up(n * sizeof(LongTexts), os_page); }
    u64 top_words() const { return set_words(max_frames, SET_LEVELS); }
    u64 chunk_words() const { return (entry_chunks() + 63) / 64; }
    // The block of a page's entry. Blocks are numbered from the start of the segment; a block may contain other data
    // before the first entry, or after the last one.
    u64 entry_block(u64 page) const { return (entries_at + page * 8) / ENTRY_BLOCK; }
    u64 first_entry_of(u64 block) const { return (block * ENTRY_BLOCK - entries_at) / 8; }  // if it begins with entries
    u64 tops_bytes() const { return (SETS * top_words() + CHUNK_COPIES * chunk_words()) * 8; }
};

struct Header {
    u64 magic;
    u32 version, header_bytes;
    u64 layout_sum;  // layout_sum() of the build that made the segment
    u8 uuid[16];
    u64 created_ns;
    Geometry geometry;
    u64 geometry_sum;
    // Changed rarely, read on every operation.
    alignas(64) Atomic<u32> budget_frames;
    Atomic<u32> policy_tag;
    // A steward moves the budget between these two; `resize` may set it to any number up to max_frames.
    Atomic<u32> min_frames, most_frames;
    Atomic<u64> frames_ready;        // how many frames have slots and pin rows with memory: see doubled()
    Atomic<u64> durable_lsn;
    Atomic<u64> checkpoint_lsn;      // the LSN at which recovery must start, after the last checkpoint
    Atomic<u64> checkpoint_ns;       // the time of that checkpoint (CLOCK_REALTIME); 0: there was none
    Atomic<u64> refused_clients;     // attempts to attach that found no free slot
    // The active steward: its client number, the time of its last round (CLOCK_BOOTTIME), and the hits per second that
    // a MiB of the budget earns (a double), which the stewards of other pools read.
    alignas(64) Atomic<u32> steward;
    Atomic<u32> asked_frames;        // the budget that a call last asked for; a steward changes budget_frames only
    Atomic<u64> steward_ns, worth;
    Atomic<u64> events;              // the number of events so far
    alignas(64) LockWord memory;     // free frames, holes, rings, resident count
    LockWord directory;              // the space slots
    LockWord advice;  // the shadows (advice.h): only advise() and growth wait for it
    LockWord growth;                 // memory for the segment's own data
    LockWord objects;                // the tables of the objects (objects.h)
    Atomic<u32> dropped_aside;       // pages set aside and then dropped: the next owner of the memory lock counts them
    // See doubled(): the largest budget that the shadows have memory for (under the growth lock and the advice lock).
    Atomic<u64> advice_frames;
    Atomic<u64> spaces_ready;  // see doubled(): how many spaces have slots with memory (under the growth lock)
    Atomic<u64> long_texts;    // see doubled(): how many LongTexts have memory (under the growth lock)
    Atomic<u64> removals;      // the number of spaces removed so far
    Atomic<u64> leaving;       // the blocks of entries that are being given back: namespace leaving
    Atomic<u64> more_banks;   // see doubled(): how many banks have memory, besides the first (under the growth lock)
    Atomic<u64> slots_ready;  // see doubled(): how many slots have memory; 0: those of the first bank
    Atomic<u64> slots_asked;  // see doubled(): for how many slots a process has last asked the kernel for memory
    Atomic<u64> object_bytes;  // the size of the area of the objects; 0: the pool never had a cache
    Atomic<u32> objects_made;  // 1: the area of the objects exists
    // The loan, in frames (loans.h). The high half: the part of the budget that is lent to the objects, so that pages
    // may not take it. The low half: the part of the loan that pages do not use any more, so that objects may use it.
    Atomic<u64> loan;
    alignas(64) Atomic<u32> resident;  // frames that are not holes (under the memory lock)
    PolicyState policy;
    alignas(64) Shares shares;  // under the memory lock, except that drops uncount without it
    // UNLINKED: the segment's name was removed on purpose (Pool.unlink). MAY_LOSE: by a caller who said that its dirty
    // pages may be lost (discard=True); Pool.remove() writes this byte without attaching.
    alignas(64) Atomic<u64> unlinked;
    // The low half: how many scratch pages cannot be evicted, or a larger number. The high half: the number of the pass
    // that counted them, which is odd while a pass is under way: scratch.h
    Atomic<u64> kept;
    // The pool's other page sizes: bit n stands for a further segment with pages of 2^n bytes, whose `home` is the uuid
    // of this segment. Then the budget of all page sizes together in bytes (0: there is only one page size). Python
    // changes both, under a lock of its own (client.py).
    Atomic<u64> other_sizes, whole_budget_bytes;
    u8 home[16];
    // The totals of departed clients, in two copies: a fold fills the inactive copy, then one store of `folded` (copy,
    // client, its generation) makes it the active one.
    Atomic<u64> folded;
    Counters totals[2];
    Atomic<u64> events_posted[EVENT_KINDS][EVENT_REASONS];
};

namespace loan {
constexpr u32 lent(u64 w) { return u32(w >> 32); }
constexpr u32 granted(u64 w) { return u32(w); }
constexpr u64 word(u32 lent, u32 granted) { return u64(lent) << 32 | granted; }
}  // namespace loan

// Header::leaving: the blocks of entries that the client with the growth lock is giving back to the kernel. ASKED: it
// checks whether a client may touch them; a client that is about to touch one sets the word to 0. GONE: no client may
// touch them.
//
//   63  62 61          32 31           0
//  +------+--------------+--------------+
//  | state| blocks       | first block  |
//  +------+--------------+--------------+
namespace leaving {
constexpr u64 ASKED = u64(1) << 62, GONE = u64(2) << 62, STATE = u64(3) << 62;
constexpr u64 word(u64 state, u64 first, u64 count) { return state | count << 32 | first; }
constexpr u64 first(u64 w) { return u32(w); }
constexpr u64 count(u64 w) { return (w & ~STATE) >> 32; }
constexpr bool has(u64 w, u64 block) { return block - first(w) < count(w); }
}  // namespace leaving

// A count that bounds which memory may be accessed is stored twice in one word, so that
// damage to the word is detected: an access beyond the true bound might raise SIGBUS.
constexpr u64 doubled(u32 n) { return u64(n) << 32 | n; }
constexpr bool is_doubled(u64 w) { return w == doubled(u32(w)); }

constexpr u64 HEADER_BYTES = 16384;
static_assert(sizeof(Header) <= HEADER_BYTES);
static_assert(sizeof(LockWord) == 4);

// Byte locks: client c holds byte LOCKS_AT + c while it lives; the active steward holds STEWARD_LOCK_AT.
constexpr long LOCKS_AT = 1024, STEWARD_LOCK_AT = LOCKS_AT + CLIENTS_LIMIT + 1;

#ifdef BP_EXPLORE  // the explorer's pools are too small for a duel
constexpr bool DUELS = false;
#else
constexpr bool DUELS = true;
#endif

constexpr u64 TICK_SHIFT = 27;

#ifdef BP_EXPLORE
constexpr u32 RING_STEP = 1, RING_SPARE = 2;
#else
constexpr u32 RING_STEP = 512, RING_SPARE = 64;
#endif

// The number of elements of a replacement ring for `frames` frames with slots: one and a half times as many, because
// elements of pages that have left the ring remain for a while. It grows in steps of an eighth.
inline u32 ring_capacity(const Geometry& g, u32 frames) {
    u64 step = frames / 8 > RING_STEP ? u64(1) << (60 - __builtin_clzll(frames)) : RING_STEP;
    u64 n = round_up(frames ? frames : 1, step);
    if (n > g.max_frames) n = g.max_frames;
    return u32(n + n / 2 + RING_SPARE);
}

// Visits the tables that have an element for each frame, and that get memory as frames are first used:
// visit(offset, largest size in bytes, a function from the number of frames to the bytes that they need).
template <class F>
void each_frame_table(const Geometry& g, u32 stripes, F visit) {
    visit(g.frames_at, g.pins_at - g.frames_at, [](u64 n) { return n * sizeof(FrameSlot); });
    for (u32 i = 0; i < g.stripes(); i++)
        visit(g.pins_at + i * g.stripe_bytes, g.stripe_bytes,
              [&g, used = i < stripes](u64 n) { return used ? n * g.stripe_clients * 2 : 0; });
    u64 at = g.sets_at;
    for (u32 set = 0; set < SETS; set++)
        for (int level = 0; level < SET_LEVELS; level++) {
            visit(at, g.set_bytes[level], [level](u64 n) { return set_words(n, level) * 8; });
            at += g.set_bytes[level];
        }
    for (u32 ring = 0; ring < 2; ring++)
        visit(g.rings_at + ring * g.ring_bytes, g.ring_bytes, [&g](u64 n) { return ring_capacity(g, u32(n)) * 8ull; });
}

// Visits, in the same way, the tables that have an element for each space, and that get memory as spaces are opened.
// The rows of uses belong to banks of clients, as pin counts do: `banks` banks have memory.
template <class F>
void each_space_table(const Geometry& g, u32 banks, F visit) {
    visit(g.spaces_at, g.texts_at - g.spaces_at, [](u64 n) { return n * sizeof(SpaceSlot); });
    visit(g.texts_at, g.long_texts_at - g.texts_at, [](u64 n) { return n * sizeof(SpaceTexts); });
    for (u32 row = 0, used = 2 + banks * CLIENT_BANK; row < g.use_rows(); row++)
        visit(g.uses_at + row * g.use_row_bytes, g.use_row_bytes,
              [is_used = row < used](u64 n) { return is_used ? n * sizeof(Uses) : 0; });
}

// FNV-1a over words of 64 bits.
inline u64 fnv(u64 h, const void* at, size_t bytes) {
    for (size_t i = 0; i + 8 <= bytes; i += 8) {
        u64 word;
        __builtin_memcpy(&word, static_cast<const u8*>(at) + i, 8);
        h = (h ^ word) * 0x100000001b3;
    }
    return h;
}
constexpr u64 FNV_START = 0xcbf29ce484222325;

// The hash of a text, which ends at its first zero byte, or after `bytes` bytes. A search for a space compares the
// hashes of names.
inline u64 text_sum(const char* at, size_t bytes) {
    u64 h = FNV_START;
    for (size_t i = 0; i < bytes && at[i]; i++) h = (h ^ u8(at[i])) * 0x100000001b3;
    return h;
}

// A checksum over the fields of a space that do not change while it lives, so that a damaged slot is not mistaken for
// another space.
inline u64 space_sum(const SpaceSlot& t) {
    u64 fields[] = {t.kind.load_relaxed(),        t.flags.load_relaxed(),
                    t.owner.load_relaxed(),       t.owner_generation.load_relaxed(),
                    t.first_entry.load_relaxed(), t.max_pages.load_relaxed(),
                    t.version.load_relaxed(),     t.name_sum.load_relaxed(),
                    t.path_sum.load_relaxed(),    t.long_texts.load_relaxed()};
    return fnv(FNV_START, fields, sizeof fields);
}

// Places the sets of frames and the rings. `take(bytes)` returns the offset of a new area.
template <class Take>
void place_queues(Geometry& g, Take take) {
    for (int level = 0; level < SET_LEVELS; level++)
        g.set_bytes[level] = round_up(set_words(g.max_frames, level) * 8, g.os_page);
    g.sets_at = take(SETS * (g.set_bytes[0] + g.set_bytes[1]));
    g.ring_bytes = round_up(ring_capacity(g, g.max_frames) * 8ull, g.os_page);
    g.rings_at = take(2 * g.ring_bytes);
    g.tops_at = take(g.tops_bytes());
}

// Computes the offsets and sizes of the areas from the other fields, which the caller has checked.
inline void place_areas(Geometry& g) {
    u64 os = g.os_page;
    u32 bank = g.max_clients < CLIENT_BANK ? g.max_clients : CLIENT_BANK;
    g.stripe_clients = u32(round_up((bank + STRIPES - 1) / STRIPES, 4));
    u64 at = HEADER_BYTES;
    auto take = [&](u64 bytes) {
        u64 here = at;
        at = round_up(at + bytes, os);
        return here;
    };
    at = round_up(at, os);
    g.clients_at = take(u64(g.max_clients) * sizeof(Client));
    g.events_at = take(EVENTS * sizeof(Event));
    g.duel_at = take(DUELS ? sizeof(Duel) : 0);
    g.advice_at = take(advice_bytes(g.max_frames));
    g.spaces_at = take(MAX_SPACES * sizeof(SpaceSlot));
    g.texts_at = take(MAX_SPACES * sizeof(SpaceTexts));
    g.long_texts_at = take(MAX_SPACES * sizeof(LongTexts));
    g.use_row_bytes = round_up(MAX_SPACES * sizeof(Uses), os);
    g.uses_at = take(g.use_rows() * g.use_row_bytes);
    u64 aligned = g.max_pages * 8 >= ENTRY_BLOCK ? ENTRY_BLOCK : os;  // else no block has entries alone
    at = round_up(at, aligned);
    g.entries_at = take(round_up(g.max_pages * 8, aligned));
    g.frames_at = take(u64(g.max_frames) * sizeof(FrameSlot));
    g.stripe_bytes = round_up(u64(g.max_frames) * g.stripe_clients * 2, os);
    g.pins_at = take(g.stripes() * g.stripe_bytes);
    place_queues(g, take);
    g.data_at = round_up(at, DATA_ALIGN);
    g.total_bytes = g.data_at + (u64(g.max_frames) << g.page_shift);
}

static_assert(sizeof(Geometry) % 8 == 0);
// A checksum over the geometry: a process does not attach to a torn or altered header.
inline u64 geometry_sum(const Geometry& g) { return fnv(FNV_START, &g, sizeof g); }

// Frames get their slots and pin rows in chunks that fill whole OS pages.
inline u32 ready_chunk(const Geometry& g) {
    u32 n = g.os_page / u32(sizeof(FrameSlot));
    return n > g.extent_frames ? n : g.extent_frames;
}

}  // namespace bp
