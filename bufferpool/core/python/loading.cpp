// How a page gets pinned: found, waited for, or loaded.
#include "python/loading.h"

#include "protocol/kernel_room.h"
#include "protocol/shrink.h"

#include <limits>

namespace bp {

// ---- checks --------------------------------------------------------------------

// Binds an unpickled space. If two threads do so at the same time, the first binding is kept.
SegmentObject* bind_space(SpaceObject* sp) {
    PyObject* r = PyObject_CallMethod(reinterpret_cast<PyObject*>(sp), "_attach", nullptr);
    if (!r) return nullptr;
    Py_DECREF(r);
    if (!sp->seg) raise("PoolClosed", "the space is not attached to a pool");
    return sp->seg;
}

int refuse_space(SpaceObject* sp) {
    if (!bound(sp) || !opened(sp->seg)) return -1;
    u32 only = sp->only;
    if (only == CLOSED_HANDLE) {
        PyObject* r = PyObject_CallMethod(reinterpret_cast<PyObject*>(sp), "_raise_closed", nullptr);
        Py_XDECREF(r);
        return -1;
    }
    if (!only || only == sp->seg->s->me) return 0;
    raise("SpacePrivate",
          "the scratch space is private to client %u, the parent of this forked child; make one here "
          "(pool.open_scratch), "
          "or share one (lifetime=\"pool\")",
          only);
    return -1;
}

// Raises SpaceRemoved, with the space and the usual causes. Returns null.
PyObject* raise_space_removed(SpaceObject* sp) {
    PyObject* message = PyObject_CallMethod(reinterpret_cast<PyObject*>(sp), "_removed", nullptr);
    if (!message) return nullptr;
    raise("SpaceRemoved", "%U", message);
    Py_DECREF(message);
    if (SegmentObject* seg = sp->seg; seg && seg->s) {
        let_go_of_removed(seg);
        give_back_soon(seg);
    }
    return nullptr;
}

static bool is_negative(PyObject* n) {
    int overflow = 0;
    return PyLong_Check(n) && (PyLong_AsLongLongAndOverflow(n, &overflow) < 0 || overflow < 0);
}

int bad_page(SpaceObject* sp, u64 span, PyObject* n) {
    if (space_generation(span) != sp->generation) raise_space_removed(sp);
    else
        raise("PageOutOfRange", "page %S does not exist: the space has %llu pages, numbered from 0%s", n,
              (unsigned long long)space_pages(span),
              is_negative(n) ? " (space[-1] is the last one; methods take no negative numbers)" : "");
    return -1;
}

// Says that this process may touch the entry of a page, if that has memory, and notes it in `backed`.
bool note_entry(SpaceObject* sp, u64 page_no) {
    SegmentObject* seg = sp->seg;
    Segment& s = *seg->s;
    {
        Guard guard(lists);
        u64 block = s.g.entry_block(entry_of(sp, page_no)) % BLOCK_BITS;
        if (!(sp->blocks[block / 64] & block_bit(block))) {
            if (!sp->prev) {
                sp->next = seg->handles;
                if (sp->next) sp->next->prev = sp;
                seg->handles = sp->prev = sp;  // of the first one: itself
            }
            sp->blocks[block / 64] |= block_bit(block);
            seg->block_users[block]++;
        }
    }
    if (!use_entry(s, entry_of(sp, page_no))) return false;
    u64 chunk = page_no >> sp->chunk_shift;
    sp->backed[chunk / 64].set(u64(1) << (chunk % 64));
    return true;
}

// Forgets which entries have memory, so that it may be given back. No thread is in a call that may touch one.
void let_go(SpaceObject* sp) {
    SegmentObject* seg = sp->seg;
    Guard guard(lists);
    if (!sp->prev) return;
    for (u64 i = 0; i < sp->backed_words; i++) sp->backed[i] = 0;
    Segment* s = seg->s;
    for (u64 block = 0; block < BLOCK_BITS; block++)
        if ((sp->blocks[block / 64] & block_bit(block)) && --seg->block_users[block] == 0 && s && s->me)
            leave_block(*s, block);
    for (u64& word : sp->blocks) word = 0;
    if (sp->next) sp->next->prev = sp->prev == sp ? sp->next : sp->prev;
    if (sp->prev == sp) seg->handles = sp->next;
    else sp->prev->next = sp->next;
    sp->next = sp->prev = nullptr;
    if (s && s->me && space_generation(space_slot(sp).span.load_acquire()) != sp->generation)
        s->removed_here.store_relaxed(1);
}

// The same of all handles of spaces that have been removed. Without the GIL a hit may be under way in another thread:
// then only the end of a handle lets go.
void let_go_of_removed(SegmentObject* seg) {
    SpaceObject* next = FREE_THREADED ? nullptr : seg->handles;
    for (SpaceObject* sp; (sp = next) != nullptr;) {
        next = sp->next;
        bool removed = space_generation(space_slot(sp).span.load_acquire()) != sp->generation;
        if (removed && !sp->busy) let_go(sp);
    }
}

// Gives entries back whose spaces have been removed. It waits for nobody: if another client has the directory lock,
// that client does this when it leaves the directory, or the next one.
void give_back_soon(SegmentObject* seg) {
    Segment& s = *seg->s;
    if (!s.removed_here.load_relaxed() || !s.works || !s.has_descriptor()) return;
    Released unlocked(seg);
    Quick quick;
    Acquired how;
    if (!try_acquire(s, s.header->directory, how)) return;
    repair_if_inherited(s, how);
    leave_directory(s);
}

// Called when the handle ends.
void end_use(SpaceObject* sp) {
    if (!sp->prev) return;
    Use use(sp->seg);
    let_go(sp);
    if (sp->seg->s && !sp->seg->closing) give_back_soon(sp->seg);
}

// Gives the entry of a page memory, if it has none yet. (The space's span alone does not say that there is such a page:
// it may be damaged.) `deadline_ns`: when to give up; 0: never. 0 or -1.
int back_entry(SpaceObject* sp, u64 page_no, u64 deadline_ns) {
    Segment& s = *sp->seg->s;
    if (page_no >= sp->max_pages) return raise_status(Status::CORRUPT, page_no), -1;
    if (!note_entry(sp, page_no)) {
        if (!may_work(sp->seg)) return -1;
        int r;
        {
            Released unlocked(sp->seg);
            Deadline deadline(deadline_ns);
            r = grow_with_room(s, [&] { return plug_entries(s, space_slot(sp), page_no, 1, sp->generation); });
        }
        if (r == -EINTR) return raise_given_up(s, deadline_ns, "memory for the entry of a page"), -1;
        if (r) return raise_errno(r, "the space's entries cannot be allocated (fallocate)"), -1;
        if (!still_open(sp)) return raise_space_removed(sp), -1;
        if (!note_entry(sp, page_no)) return raise_status(Status::CORRUPT, page_no), -1;
    }
    return 0;
}

// The page number in `n`, checked against the space; with `from_end`, a negative one counts from the end. 0 or -1.
int page_number(SpaceObject* sp, PyObject* n, u64& page_no, bool from_end, Backing backing, u64 deadline_ns) {
    long long v;
    if (PyLong_Check(n) && !PyBool_Check(n)) {
        v = PyLong_AsLongLong(n);
    } else {
        PyObject* i = PyBool_Check(n) ? nullptr : PyNumber_Index(n);
        if (!i) {
            PyErr_Clear();
            raise("TypeError", "a page number must be an integer, not %.100s", Py_TYPE(n)->tp_name);
            return -1;
        }
        v = PyLong_AsLongLong(i);
        Py_DECREF(i);
    }
    if (v == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        v = std::numeric_limits<long long>::max();  // no page has such a number
    }
    if (ready_space(sp) < 0) return -1;
    u64 span = space_slot(sp).span.load_acquire();
    if (v < 0 && from_end) v += (long long)space_pages(span);
    if (v < 0 || u64(v) >= space_pages(span) || space_generation(span) != sp->generation)
        return bad_page(sp, span, n);
    page_no = u64(v);
    if (is_backed(sp, page_no) || (backing == Backing::AS_IS && page_no < sp->max_pages)) return 0;
    return back_entry(sp, page_no, deadline_ns);
}

bool still_open(SpaceObject* sp) { return place_of(sp, 0).open(); }

int answer(Status status, SpaceObject* sp, u64 page_no) {
    if (status == Status::OK) return 0;
    if (status == Status::REMOVED) return bad_page(sp, space_slot(sp).span.load_acquire(), Py_None);
    if (status != Status::RAISED) raise_status(status, page_no);
    return -1;
}

// ---- waiting -------------------------------------------------------------------

Status SpaceHooks::waited(u64 e) {
    if (check_signals() < 0 || !opened(sp->seg)) return Status::RAISED;
    if (!is_late()) return Status::OK;
    bool loads = entry::state(e) == LOADING;
    if (loads) {  // an event says so, because the store may hang
        PyObject* r = PyObject_CallMethod(reinterpret_cast<PyObject*>(sp), "_waited_too_long", "K",
                                          (unsigned long long)page_no);
        if (!r) return Status::RAISED;
        Py_DECREF(r);
    }
    raise("WaitTimeout", "page %llu: client %u has %s it for longer than the timeout; see pool.%s()",
          (unsigned long long)page_no, entry::owner(e), loads ? "been loading" : "used",
          loads ? "operations" : "clients");
    return Status::RAISED;
}

Status SpaceHooks::failed(u32 client, const char* text) {
    raise(sp->kind == KIND_STORE ? "StoreError" : "LoaderFailed",
          "page %llu: its load by client %u, which this waited for, has failed: %s",
          (unsigned long long)page_no, client, text);
    return Status::RAISED;
}

// Ends a call that has waited for a lock of the pool for as long as it may.
Status SpaceHooks::raise_late() {
    Header& header = *sp->seg->s->header;
    u32 memory = header.memory.word.load_relaxed() & lock_word::OWNER;
    u32 owner = memory ? memory : header.growth.word.load_relaxed() & lock_word::OWNER;
    raise("WaitTimeout",
          "page %llu: a lock of the pool was not free within the timeout; client %u has one, and pool.clients() says "
          "who that is",
          (unsigned long long)page_no, owner);
    return Status::RAISED;
}

// Python frees a frame (by a foreground flush, or reaping) or raises.
Status SpaceHooks::make_room(Status status, FrameRequest& want) {
    SegmentObject* seg = sp->seg;
    Busy busy(seg);
    if (status == Status::INTERRUPTED) {
        if (check_signals() < 0 || !opened(seg)) return Status::RAISED;
        return is_late() ? raise_late() : Status::OK;
    }
    if (status != Status::EXHAUSTED && status != Status::NO_SPACE) return status;
    if (!want.waits_since_ns) want.waits_since_ns = prim::now_ns();
    const char* what = status == Status::NO_SPACE ? "no_space" : want.limited ? "limit" : "exhausted";
    if (status == Status::NO_SPACE && !is_late()) {  // pages have no memory at all, and objects perhaps much
        Released unlocked(seg);
        if (give_kernel_some(*seg->s)) return Status::OK;
    }
    u64 now = prim::now_ns();
    double left = !deadline_ns ? Py_HUGE_VAL : deadline_ns > now ? double(deadline_ns - now) / 1e9 : 0.0;
    PyObject* r = PyObject_CallFunction(seg->on_exhausted, "sIIIidI", what, want.tally.pinned, want.tally.dirty,
                                        want.tally.busy, -want.error, left, want.budget);
    if (!r) return Status::RAISED;
    Py_DECREF(r);
    return opened(seg) ? Status::OK : Status::RAISED;  // a store's code may have forked, and the child found no slot
}

// ---- memory of other page sizes ---------------------------------------------------

constexpr u64 ASK_AFTER_BYTES = 1 << 20, ASK_EVERY_NS = 250'000'000;

static bool has_other_sizes(Segment& s) {
    static constexpr u8 none[sizeof(Header::home)]{};
    return s.header->other_sizes.load_relaxed() || memcmp(s.header->home, none, sizeof none) != 0;
}

// After misses of this process that have evicted pages, and puts for which room had to be made: memory moves to this
// page size if it saves more misses here, or caches may have more (upkeep/page_sizes.py). A pool that has one page size
// pays for one comparison a miss.
bool ask_for_memory(SegmentObject* seg) {
    Segment& s = *seg->s;
    if (!has_other_sizes(s)) return true;
    u64 evictions = s.counters().evictions_recycled.load_relaxed(), now = prim::coarse_ns();
    u64 evicted = (evictions - seg->evictions_then.load_relaxed()) << s.g.page_shift;
    evicted += seg->put_bytes.load_relaxed();
    if (evicted < ASK_AFTER_BYTES || now - seg->moved_ns.load_relaxed() < ASK_EVERY_NS) return true;
    seg->evictions_then.store_relaxed(evictions);
    seg->moved_ns.store_relaxed(now);
    seg->put_bytes.store_relaxed(0);
    PyObject* r = PyObject_CallFunction(seg->on_exhausted, "siiiidi", "memory", 0, 0, 0, 0, 0.0, 0);
    if (!r) return false;
    Py_DECREF(r);
    return opened(seg) != nullptr;
}

// ---- loading -------------------------------------------------------------------

// Loads a page from a file, or as zeros. The GIL is released throughout, so a frame is freed only after the load was
// given up.
struct NativeLoad {
    Segment& s;
    SpaceObject* sp;
    u64 page_no;
    bool unreadable = false;
    ssize_t got = 0;  // bytes, or -errno

    template <class F>
    auto unlocked(F f) {
        return f();
    }
    Status prepare() { return Status::OK; }
    Status no_frame(Status status, FrameRequest&) { return status; }
    const char* failure() { return nullptr; }  // waiting clients load the page themselves
    bool forked() { return false; }

    Status fill(u32 f, Image&) { return read(s.page_data(f)); }

    // Reads from the file; beyond its end the page is zeros.
    Status read(u8* to) {
        if (is_new(sp, page_no)) {
            memset(to, 0, s.g.page_size);
            return Status::OK;
        }
        bool ours = has_its_file(s, sp);
        got = !ours ? -EBADF : prim::read_page(sp->fd, sp->caching, to, s.g.page_size, page_no << s.g.page_shift);
        unreadable = got != ssize_t(s.g.page_size);
        if (got >= 0) s.counters().load_bytes.add_relaxed(s.g.page_size);
        return unreadable ? Status::RAISED : Status::OK;
    }

    // Raises and reports the error of the read, after the page was given up.
    void tell_why() {
        raise_why();
        report_failure(sp, page_no, got < 0 ? int(-got) : 0);
    }

private:
    void raise_why() {
        if (got >= 0)
            raise("ShortRead",
                  "page %llu: the file ends after %zd of %u bytes: another program cut it; restore it, then open it "
                  "again",
                  (unsigned long long)page_no, got, s.g.page_size);
        else if (got == -EBADF)
            raise(
                "DescriptorLost",
                "page %llu cannot be read: the descriptor of its file was closed by other code; open the file "
                "again, and do not close descriptors of others",
                (unsigned long long)page_no);
        else
            raise("StoreError", "page %llu cannot be read: %s; nothing is lost, try again once the store works",
                  (unsigned long long)page_no, strerror(int(-got)));
    }
};

// Copies what clients that wait for a load get of the exception that ended it: its attribute `told`, if it has one.
void copy_failure(PyObject* error, char (&text)[FAILURE_WORDS * 8 + 1]) {
    text[0] = 0;
    PyObject* told = error ? PyObject_GetAttrString(error, "told") : nullptr;
    if (!told) return PyErr_Clear();
    if (PyBytes_Check(told)) {
        strncpy(text, PyBytes_AS_STRING(told), sizeof text - 1);
        text[sizeof text - 1] = 0;
    }
    Py_DECREF(told);
}

// Loads a page by Python: _fill(page_no) returns its bytes, and whether they differ from the store
// (then the page is dirty, so that a flush repairs the store).
class PythonLoad {
    SpaceHooks& hooks_;
    u32 forks_;  // the loader, or a store that is flushed, may fork, and the child may return here
    PyObject* filled_ = nullptr;
    int repaired_ = 0;
    Py_buffer view_{};
    char failure_[FAILURE_WORDS * 8 + 1];

public:
    explicit PythonLoad(SpaceHooks& hooks) : hooks_(hooks), forks_(hooks.sp->seg->forks) {}
    PythonLoad(const PythonLoad&) = delete;
    ~PythonLoad() {
        if (view_.obj) PyBuffer_Release(&view_);
        Py_XDECREF(filled_);
    }

    template <class F>
    auto unlocked(F f) {
        return hooks_.unlocked(f);
    }
    bool forked() { return hooks_.sp->seg->forks != forks_; }
    Status no_frame(Status status, FrameRequest& want) { return hooks_.make_room(status, want); }

    Status prepare() {
        if (is_new(hooks_.sp, hooks_.page_no)) return Status::OK;
        PyObject* bytes;
        u32 size = hooks_.sp->seg->s->g.page_size;
        filled_ = PyObject_CallMethod(reinterpret_cast<PyObject*>(hooks_.sp), "_fill", "K",
                                      (unsigned long long)hooks_.page_no);
        if (!filled_ || !PyArg_ParseTuple(filled_, "Op:_fill", &bytes, &repaired_) ||
            PyObject_GetBuffer(bytes, &view_, PyBUF_SIMPLE) < 0)
            return Status::RAISED;
        if (view_.len == Py_ssize_t(size)) return Status::OK;
        raise("StoreError", "_fill returned %zd bytes for a page of %u", view_.len, size);
        return Status::RAISED;
    }

    // The text of the loader's error, for all clients that waited for the load (_fill has stored it in the
    // exception).
    const char* failure() {
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        PyErr_NormalizeException(&type, &value, &trace);
        copy_failure(value, failure_);
        PyErr_Restore(type, value, trace);
        return failure_[0] ? failure_ : nullptr;
    }

    Status fill(u32 f, Image& image) {
        copy_to(hooks_.sp->seg->s->page_data(f));
        image.dirty = repaired_ != 0;
        return Status::OK;
    }

    void copy_to(void* to) {
        Segment& s = *hooks_.sp->seg->s;
        if (!filled_) {
            memset(to, 0, s.g.page_size);
            return;
        }
        memcpy(to, view_.buf, s.g.page_size);
        s.counters().load_bytes.add_relaxed(s.g.page_size);
    }
};

// Reports a failure after the page was given up, because log handlers are foreign code. The exception remains set.
void report_failure(SpaceObject* sp, u64 page_no, int error) {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    PyObject* r = PyObject_CallMethod(reinterpret_cast<PyObject*>(sp), "_load_failed", "KOi",
                                      (unsigned long long)page_no, value, error);
    if (r) {
        Py_DECREF(r);
        PyErr_Restore(type, value, trace);
        return;
    }
    Py_XDECREF(type);  // a Ctrl-C meanwhile replaces the error
    Py_XDECREF(value);
    Py_XDECREF(trace);
}

Status SpaceHooks::load(const Place& at, FrameRequest& want, u32& frame) {
    Segment& s = *sp->seg->s;
    if (!may_work(sp->seg) || !ask_for_memory(sp->seg)) return Status::RAISED;
    if (sp->fd >= 0 || sp->zero_fill) {
        NativeLoad load{s, sp, page_no};
        Status status = unlocked([&] { return load_page(s, at, want, load, frame); });
        if (load.unreadable) load.tell_why();
        return status;
    }
    PythonLoad load(*this);
    Status status = load_page(s, at, want, load, frame);
    if (load.forked() && !PyErr_Occurred()) opened(sp->seg);
    else if (PyErr_Occurred()) report_failure(sp, page_no, 0);
    return PyErr_Occurred() ? Status::RAISED : status;
}

bool forget_exhausted() {
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyObject* module = PyImport_ImportModule("bufferpool.errors");
    PyObject* wanted = module ? PyObject_GetAttrString(module, "PoolExhausted") : nullptr;
    bool exhausted = wanted && type && PyErr_GivenExceptionMatches(type, wanted);
    Py_XDECREF(wanted);
    Py_XDECREF(module);
    if (!exhausted) return PyErr_Restore(type, value, trace), false;
    Py_DECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return true;
}

// O_DIRECT takes aligned buffers only.
static Status read_past_natively(SpaceHooks& hooks, void* to) {
    Segment& s = *hooks.sp->seg->s;
    void* aligned = nullptr;
    if (posix_memalign(&aligned, s.g.os_page, s.g.page_size) != 0) return PyErr_NoMemory(), Status::RAISED;
    NativeLoad load{s, hooks.sp, hooks.page_no};
    Place at = place_of(hooks.sp, hooks.page_no);
    Status status = hooks.unlocked([&] {
        return load_past(s, at, load, [&] { return load.read(static_cast<u8*>(aligned)); });
    });
    if (status == Status::OK) memcpy(to, aligned, s.g.page_size);
    free(aligned);
    if (load.unreadable) load.tell_why();
    return status;
}

static Status read_past_by_python(SpaceHooks& hooks, void* to) {
    PythonLoad load(hooks);
    Status status = load_past(*hooks.sp->seg->s, place_of(hooks.sp, hooks.page_no), load, [&] {
        load.copy_to(to);
        return Status::OK;
    });
    if (load.forked() && !PyErr_Occurred()) opened(hooks.sp->seg);
    else if (PyErr_Occurred()) report_failure(hooks.sp, hooks.page_no, 0);
    return PyErr_Occurred() ? Status::RAISED : status;
}

Past read_past(SpaceObject* sp, u64 page_no, void* to) {
    SpaceHooks hooks{sp, page_no};
    bool natively = sp->fd >= 0 || sp->zero_fill;
    Status status = natively ? read_past_natively(hooks, to) : read_past_by_python(hooks, to);
    if (status == Status::WAIT) return Past::CHANGED;
    return answer(status, sp, page_no) == 0 ? Past::READ : Past::FAILED;
}

int acquire_slowly(SpaceObject* sp, u64 page_no, Access access, u32& frame) {
    Busy busy(sp->seg);
    Touches touches(sp);
    SpaceHooks hooks{sp, page_no, access.deadline_ns};
    return answer(fetch_page(*sp->seg->s, place_of(sp, page_no), access, hooks, frame), sp, page_no);
}

}  // namespace bp
