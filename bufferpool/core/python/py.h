// What the Python types share. The C API is used directly: a hit takes a few dozen
// nanoseconds, and any wrapper library costs more than that.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_1_20_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL bufferpool_ARRAY_API
#ifndef BP_IMPORTS_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include "protocol/segment.h"
#include "python/threads.h"

namespace bp {

// A holder of one pin: the base of every array that space[n] returns. Holders are linked,
// so that a fork can give the child a pin of its own for each.
struct PinNode {
    PinNode *next, *prev;
    u32 frame;
};

// What the handler before a fork has made for the child.
struct ForkPlan {
    int fd;      // -1: none could be opened, the child has no byte lock
    int lost;    // as in SegmentObject
    u32 client;
    u64 mark;
};
constexpr int LOST_SLOTS = -1, LOST_DESCRIPTOR = -2;

struct SpaceObject;

struct SegmentObject {
    PyObject_HEAD Shared<Segment*> s;  // null once closed
    PyObject* data;     // numpy.memmap, read-only: (max_frames, page_size)
    char* read_base;    // its address
    PinNode pins;       // all live pins of this process (a ring; this is its head)
    Mutex pins_mutex;
    u32 forks;          // how often this process was forked: Writes from before are not ours
    Count active;       // operations under way without the GIL
    Count writes;       // open writes of this process
    Atomic<u32> users;   // threads in a method that uses the mapping, and whether close() excludes others: see Use
    Atomic<u32> shut;
    Shared<bool> closing;  // closed while arrays over its pages exist: it detaches when the last of them is deleted
    bool observing;     // an observer: reads the metadata through a read-only mapping
    Shared<u64>* written;       // of an observer: which OS pages of the metadata have ever been written
    int lost;           // why this forked child cannot use the pool: an errno, or LOST_…; 0 if it can
    PyObject* on_exhausted;  // called with what is wrong (memory.py): frees a frame or raises
    Atomic<u64> evictions_then, moved_ns;  // when misses last asked for memory of other page sizes: see ask_for_memory
    Atomic<u64> put_bytes;                 // of values for which room had to be made since then
    SegmentObject* next;     // the list of all attached segments, for fork
    ForkPlan plan;
    // Handles that may touch entries: their list, and how many of them may touch entries of each block (with the same
    // bit in the client's slot). Guarded by `lists`.
    SpaceObject* handles;
    u32 block_users[BLOCK_BITS];
};

// In SpaceObject::only: no client has such a number, so every use takes the path on which private spaces are refused.
constexpr u32 CLOSED_HANDLE = ~0u;

struct SpaceObject {
    PyObject_HEAD Shared<SegmentObject*> seg;  // null until attached; stored last
    PyObject* store;     // kept alive with its descriptor
    PyArray_Descr* dtype;
    npy_intp items;      // items of dtype in a page
    u64 generation;
    u64 device, inode;   // of the file behind `fd`
    Atomic<u32> checked; // the tick of the last check that it is that file
    u32 index, first_entry, max_pages, kind;
    Shared<u64>* backed;  // which chunks of its entries have memory, as far as we have looked: see is_backed()
    u64 backed_words;
    u32 chunk_shift;      // of pages in a chunk
    u64 blocks[BLOCK_BITS / 64];  // where those chunks are: see let_go()
    SpaceObject *next, *prev;     // the list of the segment's handles
    Count busy;           // of Touches
    Shared<u32> only;     // the client that the private space belongs to; 0: a shared space; or CLOSED_HANDLE
    int fd;              // of a file; -1: pages are filled by _fill()
    u32 caching;         // how it is read: prim::Caching
    bool writable, discardable, zero_fill;
};

extern PyTypeObject SegmentType, SpaceType, PinType, PinnedPagesType, WriteType, GroupType, HolderType, HeldType,
    BatchType, UnderWayType;

// module.cpp
PyObject* raise(const char* error, const char* format, ...);  // an error of errors.py, or a built-in
PyObject* raise_errno(int error, const char* what);
PyObject* raise_unmapped(int error);
PyObject* raise_space_removed(SpaceObject* space);  // loading.cpp
void raise_status(Status status, u64 page_no);
bool read_header(int fd, Header& h);
u64 layout_sum();  // fields.cpp
PyObject* geometry_dict(const Header& h);

// signals.cpp
bool signal_came(Segment& s);
extern thread_local bool forking;  // this thread prepares a fork: no handler may run, because it might fork or attach
int check_signals();
PyObject* raise_interrupted(const char* what);
void forget_signals();

// segment.cpp
Segment* opened(SegmentObject* seg);  // null, with PoolClosed or another error set
PyObject* raise_lost();
void finish_closing(SegmentObject* seg);  // called after a pin was released
bool may_work(SegmentObject* seg);  // whether opened() succeeds; it checks the descriptor only now and then

// segment_figures.cpp
Segment* seen(SegmentObject* seg);  // opened, or observed
PyObject* raise_unsettled();
bool sees(SegmentObject* seg, u64 offset);  // may this offset be read? (An observer asks the kernel.)
bool refresh_readable(SegmentObject* seg);
PyObject* core_observe(PyObject*, PyObject* fd);

// held.cpp, batch.cpp
// A Held; None: another client has the lock. WaitTimeout: it still has it after so many seconds.
PyObject* lock_flush(SegmentObject* seg, u32 space, bool wait, double timeout = Py_HUGE_VAL);
// An operation could not get a lock of the pool: raises the exception of a signal's handler, or WaitTimeout.
PyObject* raise_late(Segment* s, const char* what);
// The same, of one that has a deadline, or none (0): without one only a signal's handler can end the wait.
PyObject* raise_given_up(Segment& s, u64 deadline_ns, const char* what);
u64 deadline_in(double seconds);  // segment.cpp: of a method that takes a timeout in seconds, which may be infinite
bool is_interrupted(PyObject* held);
PyObject* begin_batch(SegmentObject* seg, u32 space, PyObject* args, PyObject* held);  // takes over `held`

// segment_spaces.cpp, held.cpp, segment_figures.cpp, segment_advice.cpp, underway.cpp, snapshots.cpp:
// the rest of Segment's methods
extern PyMethodDef directory_methods[], lock_methods[], flush_methods[], publish_methods[], observe_methods[],
    advice_methods[], under_way_methods[], snapshot_methods[];

// fork.cpp
extern SegmentObject* attached;  // every open segment of this process
extern Mutex lists;  // guards the lists of attached segments, held locks, open writes; held during a fork
int map_client(Segment* s, int fd);  // 0, or -errno
void unmap_client(Segment* s);
void disown_former_clients(Segment& s);
void watch_forks();

// loading.cpp: how a page gets pinned
struct Access;  // fetch.h
enum class Backing { GIVEN, AS_IS };  // whether the entry of a page gets memory, if it has none
int page_number(SpaceObject* sp, PyObject* n, u64& page_no, bool from_end = false, Backing backing = Backing::GIVEN,
                u64 deadline_ns = 0);
int back_entry(SpaceObject* sp, u64 page_no, u64 deadline_ns = 0);
bool note_entry(SpaceObject* sp, u64 page_no);
void let_go(SpaceObject* sp);
void let_go_of_removed(SegmentObject* seg);
void give_back_soon(SegmentObject* seg);
void end_use(SpaceObject* sp);
// Has the page's entry memory behind it? What is known lasts until let_go(), because our client's slot says that we may
// touch entries of the block.
inline bool is_backed(SpaceObject* sp, u64 page_no) {
    u64 chunk = page_no >> sp->chunk_shift;
    return page_no < sp->max_pages && sp->backed[chunk / 64] >> (chunk % 64) & 1;
}
SegmentObject* bind_space(SpaceObject* sp);
inline SegmentObject* bound(SpaceObject* sp) {  // null: with an exception
    SegmentObject* seg = sp->seg;
    return seg ? seg : bind_space(sp);
}
int refuse_space(SpaceObject* sp);
int bad_page(SpaceObject* sp, u64 span, PyObject* n);
bool still_open(SpaceObject* sp);

// pin.cpp, pinned_pages.cpp
PyObject* view_of(SpaceObject* sp, u32 frame);  // takes over the pin
PyObject* new_pin(SpaceObject* sp, u32 frame, u64 page_no);
PyObject* new_pinned_pages(SpaceObject* sp, u32* frames, Py_ssize_t n);
void forget_bases(SegmentObject* seg);
void free_retired(SegmentObject* seg, u32 frame);
// write.cpp
enum class WriteKind : u8 { EDIT, APPEND, FRESH };  // FRESH: the old version is not read
PyObject* new_write(SpaceObject* sp, u64 page_no, WriteKind kind, u64 timeout_ns);
struct Lsn {
    u64 value = 0;
    bool set = false;
};
int parse_lsn(PyObject* value, Lsn& out);

// space.cpp: the seconds that an argument gives, at least 0. 0, or -1 with an exception (a bool is no number).
int seconds_of(PyObject* value, const char* what, double& seconds);
npy_intp publish_many(SpaceObject* sp, const npy_int64* numbers, u64 first, PyArrayObject* pages, Lsn lsn,
                      u64 timeout_ns);
bool raise_own_use(SegmentObject* seg, u32 index, u64 first_entry, u64 first, u64 count);

inline void link_pin(SegmentObject* seg, PinNode* p, u32 frame) {
    Guard guard(seg->pins_mutex);
    p->frame = frame;
    p->prev = &seg->pins;
    p->next = seg->pins.next;
    p->next->prev = p;
    seg->pins.next = p;
}
inline void unlink_pin(SegmentObject* seg, PinNode* p) {
    Guard guard(seg->pins_mutex);
    p->prev->next = p->next;
    p->next->prev = p->prev;
}

// Takes back a pin of this process, which may have lost its segment in a fork. The last to leave a retired frame
// frees it, without the interpreter's lock.
inline void drop_pin(SegmentObject* seg, u32 frame) {
    Segment* s = seg->s;
    if (!s || !s->me) return;
    if (s->pin_count(frame).sub_seq_cst(1) != 1) return;
    if (frame::state(s->frames[frame].word.load_seq_cst()) == RETIRED) free_retired(seg, frame);
}

// True if an object that recorded `forks` belongs to this process and attachment.
inline bool is_ours(SegmentObject* seg, u32 forks) { return seg->s && seg->s->me && seg->forks == forks; }

inline bool has_pins(SegmentObject* seg) {
    Guard guard(seg->pins_mutex);
    return seg->pins.next != &seg->pins;
}

// While this object lives, the segment's object lives, and close() does not unmap the segment. If close() is running
// when it is made, it waits until close() has succeeded or failed; so check that the segment is open after making
// one. HELD: what makes it has a reference to the segment, and keeps that longer. READS: and it drops
// no pin.
enum Reference { TAKEN, HELD, READS };
class Use {
    SegmentObject* seg_;
#ifdef BP_FREE_THREADED
    u32 forks_ = 0;
    bool counted_ = false;
    Use* outer_ = nullptr;

public:
    explicit Use(SegmentObject* seg, Reference = TAKEN);  // null: of none
    ~Use();
    static bool by_this_thread(SegmentObject* seg);
#else
    Reference reference_;

public:
    explicit Use(SegmentObject* seg, Reference reference = TAKEN) : seg_(seg), reference_(reference) {
        if (reference == TAKEN) Py_XINCREF(reinterpret_cast<PyObject*>(seg));
    }
    [[gnu::always_inline]] ~Use() {
        if (reference_ != READS && seg_ && seg_->closing) finish_closing(seg_);
        if (reference_ == TAKEN) Py_XDECREF(reinterpret_cast<PyObject*>(seg_));
    }
    static bool by_this_thread(SegmentObject*) { return false; }
#endif
    Use(const Use&) = delete;
};

struct SegmentEntry {
    Use use;
    explicit SegmentEntry(PyObject* self) : use(reinterpret_cast<SegmentObject*>(self), HELD) {}
    bool ok() const { return true; }
};

// Uses a space's segment, and binds an unpickled space first.
struct SpaceEntry {
    SegmentObject* seg;
    Use use;
    explicit SpaceEntry(PyObject* self) : seg(bound(reinterpret_cast<SpaceObject*>(self))), use(seg, HELD) {}
    bool ok() const { return seg; }
};

// The GIL is released while this object lives; the segment remains open.
class Released {
    SegmentObject* seg_;
    PyThreadState* state_;

public:
    explicit Released(SegmentObject* seg) : seg_(seg) {
        seg_->active++;
        state_ = PyEval_SaveThread();
    }
    Released(const Released&) = delete;
    ~Released() {
        PyEval_RestoreThread(state_);
        seg_->active--;
    }
};

// Python code runs while this object lives, and the segment must remain open.
class Busy {
    SegmentObject* seg_;
    u32 forks_;

public:
    explicit Busy(SegmentObject* seg) : seg_(seg), forks_(seg->forks) { seg_->active++; }
    Busy(const Busy&) = delete;
    ~Busy() {
        if (seg_->forks == forks_) seg_->active--;  // a forked child starts with none
    }
};

// While this object lives, the handle does not let go of its entries (loading.cpp), although other threads run. A call
// that looks at `backed`, lets other threads run, and then touches an entry needs one from before the look.
class Touches {
    SpaceObject* sp_;
    u32 forks_;

public:
    explicit Touches(SpaceObject* sp) : sp_(sp), forks_(sp->seg->forks) { sp_->busy++; }
    Touches(const Touches&) = delete;
    ~Touches() {
        if (sp_->seg->forks == forks_) sp_->busy--;
    }
};

// Makes a type ready; the caller has set its special slots. Without tp_new only the core can make objects of it.
template <class Object>
int ready_type(PyTypeObject& type, const char* name, const char* doc, void (*dealloc)(Object*),
               PyMethodDef* methods = nullptr, PyGetSetDef* getset = nullptr) {
    type.tp_name = name;
    type.tp_doc = doc;
    if (!type.tp_basicsize) type.tp_basicsize = sizeof(Object);
    type.tp_dealloc = reinterpret_cast<destructor>(dealloc);
    type.tp_flags |= Py_TPFLAGS_DEFAULT | (type.tp_new ? 0 : Py_TPFLAGS_DISALLOW_INSTANTIATION);
    type.tp_methods = methods;
    type.tp_getset = getset;
    return PyType_Ready(&type);
}

inline SegmentObject* S(PyObject* self) { return reinterpret_cast<SegmentObject*>(self); }
inline SpaceSlot& space_slot(SpaceObject* sp) { return sp->seg->s->spaces[sp->index]; }

// Refuses a space whose pool is closed, a closed handle, and a parent's private space; binds one that was unpickled.
// 0 or -1.
inline int ready_space(SpaceObject* sp) {
    SegmentObject* seg = sp->seg;
    Segment* s = seg ? static_cast<Segment*>(seg->s) : nullptr;
    bool ready = s && s->works && !seg->closing && (!sp->only || sp->only == s->me);
    return ready ? 0 : refuse_space(sp);
}

inline u32 entry_of(SpaceObject* sp, u64 page_no) { return sp->first_entry + u32(page_no); }

}  // namespace bp
