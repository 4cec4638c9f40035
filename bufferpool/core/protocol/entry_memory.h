// The memory of entries: which client may touch it, and how it is given back to the kernel after spaces were removed.
//
// Before a hit touches an entry, it only tests a bit of its handle that says that the entry has memory. So this memory
// is given back only if no client may have such a bit: a client's slot says which blocks of entries (ENTRY_BLOCK) its
// handles may touch, and a client without a handle of the space uses an EntryLook. The memory is given back in whole
// blocks, of which no space has a part. The client that does so has the directory lock and the growth lock:
//
//   Header::leaving   0 -> ASKED       by that client, which then reads the blocks and the looks of all clients
//                     ASKED -> 0       it finds one; or a client is about to touch one of the entries (is_leaving)
//                     ASKED -> GONE    no client may touch them: from here on has_page() says that they have no memory
//                     GONE -> 0        the memory was given back; or that has failed, and they keep it
//
// This is Dekker's algorithm, as in an eviction: a client that is about to touch an entry first stores that it may
// (use_entry, EntryLook), and then reads `leaving`; the client that gives back first stores ASKED, and then reads what
// the others have stored.
#pragma once

#include "protocol/segment.h"

namespace bp {

inline thread_local u32 looking;  // how many EntryLooks this thread has

// While this object lives, this client may touch every entry for which has_page() says that it has memory. A client
// needs it if it has neither a handle of the space, nor the memory lock, nor the directory lock.
class EntryLook {
    Segment& s_;
    u32 me_;

public:
    explicit EntryLook(Segment& s) : s_(s), me_(s.keeps_entries ? 0 : s.me) {
        if (!me_) return;  // an observer has no slot
        looking++;
        s.client().looks.add_seq_cst(1);
        fence_seq_cst();
    }
    EntryLook(const EntryLook&) = delete;
    ~EntryLook() {
        if (!me_) return;
        looking--;
        if (s_.me == me_) s_.client().looks.sub_seq_cst(1);  // a forked child is another client: see hand_over
    }
};

inline u64 block_bit(u64 block) { return u64(1) << block % 64; }
inline Atomic<u64>& block_word(Client& slot, u64 block) { return slot.blocks[block % BLOCK_BITS / 64]; }

// Stores that this client may touch the entries of the page's block, until leave_block(). False: the entry has no
// memory at the moment.
inline bool use_entry(Segment& s, u32 page) {
    u64 block = s.g.entry_block(page);
    Atomic<u64>& word = block_word(s.client(), block);
    if (!(word.load_relaxed() & block_bit(block))) word.or_seq_cst(block_bit(block));
    fence_seq_cst();
    return s.has_page(page);
}

// Stores that no thread of this client touches entries of this block any more, until use_entry().
inline void leave_block(Segment& s, u64 block) { block_word(s.client(), block).and_seq_cst(~block_bit(block)); }

// The same for all blocks of client `c`, which has ended, or whose handles are closed.
inline void leave_blocks(Segment& s, u32 c) {
    for (auto& word : s.clients[c - 1].blocks) word.store_seq_cst(0);
    s.clients[c - 1].looks.store_seq_cst(0);
}

// May any client touch an entry of these blocks?
inline bool are_used(Segment& s, u64 first, u64 count) {
    for (u32 c = 1, slots = s.slots(); c <= slots; c++) {
        Client& slot = s.clients[c - 1];
        if (slot.looks.load_seq_cst()) return true;
        u64 end = first + std::min(count, BLOCK_BITS);
        for (u64 block = first; block < end; block = (block / 64 + 1) * 64) {
            u64 mask = ~u64(0) << block % 64;
            if (block / 64 == (end - 1) / 64) mask &= ~u64(0) >> (63 - (end - 1) % 64);
            if (block_word(slot, block).load_seq_cst() & mask) return true;
        }
    }
    return false;
}

}  // namespace bp
