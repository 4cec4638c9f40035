// Writes of this process: what write.cpp and publish_many.cpp share.
#pragma once

#include <utility>

#include "protocol/scratch.h"
#include "protocol/writing.h"
#include "python/loading.h"

namespace bp {

struct WriteObject {
    PyObject_HEAD SpaceObject* space;
    PyObject* page;      // the private copy while the block is open
    u64 page_no, timeout_ns, thread;
    Shared<u64> lsn;
    u32 forks;           // the value of `forks` when it was opened
    WriteKind kind;
    bool done;
    bool blank;          // an EDIT whose copy begins as zeros
    bool is_counted;     // of a group: among the scratch pages that are kept
    ScratchShare counted;  // how
    Shared<bool> open, lsn_set;
    Turn turn;           // of a thread is in a method that may wait
    WriteObject *next, *prev;  // open writes of this process
};

inline bool is_ours(WriteObject* w) { return is_ours(w->space->seg, w->forks); }

// A whole version of a page that is to be published.
struct Version {
    SpaceObject* sp;
    u64 page_no;
    WriteKind kind;
    const void* bytes;
    u64 lsn;
    bool lsn_set;
    u64 timeout_ns;
    u32 forks;  // the value of `forks` when it was begun
    bool is_counted = false;  // among the pages that are kept
    ScratchShare counted{};   // how
};

// Is this thread inside a load or a flush of the pool, which calls a loader or a store?
inline bool works_for_pool(Segment& s) {
    bool works = false;
    for (auto& thread : s.op_thread) works |= thread.load_relaxed() == this_thread();
    return works;
}

int refuse_in_group(SpaceObject* sp, const char* call);  // publish_many.cpp
bool may_keep(Version& v);
bool thread_writes(SegmentObject* seg, u32 index, u64 generation, u64 first, u64 count);
void set_closed(WriteObject* w);
void end_copy(WriteObject* w);
PyObject* write_enter(PyObject* self, PyObject*);  // the private copy; the writer field is ours
void write_abort(WriteObject* w);
// These raise, and return null.
void raise_removed(SpaceObject* sp, u64 page_no);
PyObject* raise_parents(u64 page_no);
PyObject* raise_not_ours(WriteObject* w);

struct OwnHooks : SpaceHooks {
    Status may_wait_for(u32) {
        if (!thread_writes(sp->seg, sp->index, sp->generation, page_no, 1)) return Status::OK;
        raise("WouldDeadlock", "this thread is writing page %llu already; end that block first",
              (unsigned long long)page_no);
        return Status::RAISED;
    }
};

// The hooks while a version is published: a child that a store's code, or a signal handler, has forked meanwhile must
// not publish it too.
struct PublishHooks : OwnHooks {
    u32 forks;
    bool was_dirty = false;  // out: whether the page that was replaced was dirty
    bool edited = true;      // the caller would lose what has been edited

    Status unless_forked(Status status) {
        if (status == Status::OK && !is_ours(sp->seg, forks)) return raise_parents(page_no), Status::RAISED;
        return status;
    }
    Status waited(u64 e) { return unless_forked(OwnHooks::waited(e)); }
    // What has been edited waits for a frame for as long as it takes.
    Status make_room(Status status, FrameRequest& want) {
        u64 deadline = std::exchange(deadline_ns, status == Status::INTERRUPTED || !edited ? deadline_ns : 0);
        status = unless_forked(OwnHooks::make_room(status, want));
        deadline_ns = deadline;
        return status;
    }
};

}  // namespace bp
