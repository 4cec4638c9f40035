// Segment: one client's attachment, seen from Python.
#include "python/py.h"

#include "protocol/kernel_room.h"
#include "protocol/object_check.h"
#include "protocol/shrink.h"

namespace bp {

PyObject* raise_lost() {
    return raise("DescriptorLost",
                 "a descriptor of the pool was closed by other code, as by daemons that close all descriptors; "
                 "your arrays remain valid, but this process cannot use the pool any more: attach it after "
                 "that, or keep its descriptors open");
}

// Raises why a guest (a forked child that has only its pins) cannot use the pool.
static void raise_guest(const SegmentObject* seg) {
    if (seg->lost == LOST_DESCRIPTOR) raise_lost();
    else if (seg->lost == LOST_SLOTS)
        raise("TooManyClients",
              "this forked child found all %u client slots in use by living processes; the arrays that it inherited "
              "stay true; "
              "create the pool with a larger max_clients",
              seg->s->g.max_clients - seg->s->g.guests);
    else
        raise("SegmentError",
              "this forked child could not open the segment for itself: %s (errno %d); the arrays that it inherited "
              "stay true",
              strerror(seg->lost), seg->lost);
}

Segment* opened(SegmentObject* seg) {
    if (seg->s && seg->s->works && !seg->closing) return seg->s->has_descriptor() ? seg->s : (raise_lost(), nullptr);
    if (seg->s && seg->observing)
        return raise("PoolReadOnly", "the pool is only observed, not attached; attach it with Pool.attach()"), nullptr;
    if (seg->s && seg->lost) raise_guest(seg);
    else raise("PoolClosed", "the pool is closed; attach it again");
    return nullptr;
}

// ---- using and closing -----------------------------------------------------------

#ifdef BP_FREE_THREADED
static thread_local Use* innermost;  // the innermost Use of this thread

bool Use::by_this_thread(SegmentObject* seg) {
    for (Use* use = innermost; use; use = use->outer_)
        if (use->seg_ == seg && use->forks_ == seg->forks) return true;
    return false;
}

Use::Use(SegmentObject* seg, Reference) : seg_(seg) {
    Py_XINCREF(reinterpret_cast<PyObject*>(seg));
    if (!seg || by_this_thread(seg)) return;
    for (;;) {
        seg->users.add_seq_cst(1);
        if (!seg->shut.load_seq_cst()) break;
        seg->users.sub_seq_cst(1);
        Py_BEGIN_ALLOW_THREADS prim::nap(20'000);
        Py_END_ALLOW_THREADS
    }
    forks_ = seg->forks;
    counted_ = true;
    outer_ = innermost;
    innermost = this;
}

Use::~Use() {
    if (counted_) {
        innermost = outer_;
        if (seg_->forks == forks_) seg_->users.sub_seq_cst(1);  // a forked child starts with none
        if (seg_->closing) finish_closing(seg_);
    }
    Py_XDECREF(reinterpret_cast<PyObject*>(seg_));
}
#endif

// Prevents threads from beginning to use the segment, and waits, if allowed, a second for those that do. It does not
// wait for operations without the GIL, nor for objects of Python.
class Shut {
    [[maybe_unused]] SegmentObject* seg_;
    [[maybe_unused]] bool ours_ = false;

public:
#ifdef BP_FREE_THREADED
    Shut(SegmentObject* seg, bool may_wait) : seg_(seg) {
        for (int tries = 0;; tries++) {
            u32 open = 0;
            ours_ = ours_ || seg->shut.cas_seq_cst(open, 1);
            if (!may_wait || tries == 10'000 || (ours_ && (!seg->users.load_seq_cst() || seg->active || seg->writes)))
                return;
            Py_BEGIN_ALLOW_THREADS prim::nap(100'000);
            Py_END_ALLOW_THREADS
        }
    }
    ~Shut() {
        if (ours_) seg_->shut.store_seq_cst(0);
    }
    bool alone() const { return ours_ && !seg_->users.load_seq_cst(); }
#else
    Shut(SegmentObject* seg, bool) : seg_(seg) {}
    bool alone() const { return true; }
#endif
    Shut(const Shut&) = delete;
};

bool may_work(SegmentObject* seg) {
    return (seg->s && seg->s->works && !seg->closing && seg->s->had_descriptor()) || opened(seg);
}

// The process that has most of the client slots, and how many it has.
static std::pair<u32, u32> largest_owner(Segment& s) {
    std::pair<u32, u32> found{0, 0};
    Vec<u32> pids;
    for (u32 c = 1, slots = s.slots(); c <= slots; c++)
        if (s.clients[c - 1].state.load_relaxed() != CLIENT_FREE && !pids.push(s.clients[c - 1].pid.load_relaxed()))
            return found;  // there is no memory for the list
    std::sort(pids.begin(), pids.end());
    for (u32 i = 0, n = 0; i < pids.size(); i++) {
        n = i && pids[i] == pids[i - 1] ? n + 1 : 1;
        if (n > found.second) found = {pids[i], n};
    }
    return found;
}

static PyObject* raise_refused(Segment& s) {
    s.header->refused_clients.add_relaxed(1);
    auto [pid, n] = largest_owner(s);
    if (n > 1)
        return raise("TooManyClients",
                     "all %u client slots of the segment are in use, %u of them by process %u: each of its open "
                     "pools is a client; close() those that it does not need (a pool with a steward is open until it "
                     "is closed), or create the pool with a larger max_clients",
                     s.g.max_clients - s.g.guests, n, pid);
    return raise("TooManyClients",
                 "all %u client slots of the segment are taken by living processes; detach one, or create the pool "
                 "with a larger max_clients",
                 s.g.max_clients - s.g.guests);
}

// The part of the segment that gets no huge pages unasked.
static u64 small_bytes(const Geometry& g) { return g.huge_pages ? g.data_at : g.total_bytes; }

static PyObject* segment_new(PyTypeObject* type, PyObject* args, PyObject*) {
    int fd;
    PyObject* on_exhausted;
    const char* name;
    if (!PyArg_ParseTuple(args, "iOs:Segment", &fd, &on_exhausted, &name)) return nullptr;
    Header h;
    if (!read_header(fd, h)) return nullptr;
    u8* at = prim::map_segment(fd, h.geometry.total_bytes, small_bytes(h.geometry));
    if (!at) return raise_unmapped(-errno);
    auto seg = reinterpret_cast<SegmentObject*>(type->tp_alloc(type, 0));
    if (!seg) return prim::unmap_segment(at, h.geometry.total_bytes), nullptr;
    seg->pins.next = seg->pins.prev = &seg->pins;
    seg->on_exhausted = on_exhausted;
    Py_INCREF(on_exhausted);
    seg->s = make<Segment>();
    if (!seg->s) {
        prim::unmap_segment(at, h.geometry.total_bytes);
        return Py_DECREF(seg), PyErr_NoMemory();
    }
    seg->s->map(at, h.geometry);
    seg->s->interrupted = signal_came;
    if (int r = map_client(seg->s, fd)) {
        Py_DECREF(seg);
        return raise_errno(r, "the segment cannot be opened");
    }
    Status status;
    int lock_error = 0;
    Py_BEGIN_ALLOW_THREADS status = attach(*seg->s, lock_error);
    if (status == Status::OK) {
        strncpy(seg->s->client().name, name, sizeof(Client::name) - 1);
        use_huge_tables(*seg->s);
        disown_former_clients(*seg->s);
    }
    Py_END_ALLOW_THREADS if (status == Status::NO_LOCKS)
        raise_errno(lock_error, "the byte lock that shows that this client lives cannot be taken (fcntl F_OFD_SETLK)");
    else if (status == Status::NO_SPACE || status == Status::CORRUPT) raise_status(status, 0);
    else if (status == Status::INTERRUPTED) raise_interrupted("memory for the pins of one more client");
    else if (status != Status::OK) raise_refused(*seg->s);
    if (status != Status::OK) {
        Py_DECREF(seg);
        return nullptr;
    }
    return reinterpret_cast<PyObject*>(seg);
}

// Removes the segment from its object, and the object from the list.
static void forget(SegmentObject* seg) {
    {
        Guard guard(lists);
        for (SegmentObject** p = &attached; *p; p = &(*p)->next)
            if (*p == seg) {
                *p = seg->next;
                break;
            }
        seg->s = nullptr;
    }
    prim::deallocate(seg->written);
    seg->written = nullptr;
    forget_bases(seg);
    Py_CLEAR(seg->data);
}

// Detaches. A client that has lost its byte lock changes nothing: without its mapping it is dead, and is reaped.
static void leave(Segment* s) {
    if (s->me && s->has_descriptor()) detach(*s);
    else if (s->keeps_slot()) s->client().pid.store_relaxed(0);  // clear our pid, because this process may attach again
    unmap_client(s);
}

static void segment_dealloc(SegmentObject* seg) {
    if (seg->s) {
        // At the end of the interpreter a daemon thread may still be in the core: then the mapping is kept, and the
        // client ends with the process.
        if (seg->active || seg->writes) return;
        Segment* s = seg->s;
        forget(seg);
        leave(s);
    }
    Py_XDECREF(seg->on_exhausted);
    Py_TYPE(seg)->tp_free(seg);
}

// Maps the data area a second time, read-only, in place of the mapping of `data`. False with an
// error set.
static bool map_data(Segment& s, PyArrayObject* data) {
    // A mapping keeps its description, and a forked child inherits it: so it must not be the one with our byte lock.
    int fd = prim::reopen(s.fd);
    if (fd < 0) return raise_errno(fd, "the segment cannot be opened"), false;
    u64 bytes = u64(PyArray_NBYTES(data));
    int r = prim::map_for_reading(PyArray_DATA(data), bytes, s.g.huge_pages ? 0 : bytes, fd, s.g.data_at);
    close(fd);
    if (r < 0) raise_unmapped(r);
    return r == 0;
}

// give_to(pool, data): the last step of attaching. `data` is an array of (max_frames, page_size) over private address
// space; the data area is mapped there. Then the segment is stored in the pool, and on the list that forked children
// inherit, without letting another thread run in between: a fork sees both, or neither.
static PyObject* segment_give_to(PyObject* self, PyObject* args) {
    PyObject *pool, *array;
    if (!PyArg_ParseTuple(args, "OO!:give_to", &pool, &PyArray_Type, &array)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    if (S(self)->data) return raise("ValueError", "the segment has a pool already");
    auto data = reinterpret_cast<PyArrayObject*>(array);
    auto at = reinterpret_cast<u64>(PyArray_DATA(data));
    if (u64(PyArray_NBYTES(data)) != u64(s->g.max_frames) << s->g.page_shift || at % s->g.os_page ||
        PyArray_ISWRITEABLE(data) || !PyArray_IS_C_CONTIGUOUS(data))
        return raise("ValueError", "the array does not fit the segment's data area");
    if (!map_data(*s, data)) return nullptr;
    if (PyObject_SetAttrString(pool, "_data", array) < 0 || PyObject_SetAttrString(pool, "_segment", self) < 0)
        return nullptr;
    Py_INCREF(array);
    S(self)->data = array;
    S(self)->read_base = PyArray_BYTES(data);
    Guard guard(lists);
    S(self)->next = attached;
    attached = S(self);
    Py_RETURN_NONE;
}

// Detaches; afterwards every thread finds the pool closed.
static void detach_now(SegmentObject* seg) {
    Segment* s = seg->s;
    forget(seg);
    Py_BEGIN_ALLOW_THREADS leave(s);
    Py_END_ALLOW_THREADS
}

// Called when a pin was released: the last one detaches a segment that was closed meanwhile.
void finish_closing(SegmentObject* seg) {
    auto over = [seg] { return seg->closing && seg->s && !has_pins(seg) && !seg->active && !seg->writes; };
    do {
        Shut shut(seg, false);
        if (shut.alone() && over()) return detach_now(seg);
    // a thread that left meanwhile has seen that it is shut
    } while (FREE_THREADED && !seg->users.load_seq_cst() && over());
}

// Whether the segment cannot be detached now, and why (BufferError).
static bool refuses_to_close(SegmentObject* seg, const Shut& shut, bool late) {
    const char* why = nullptr;
    if (has_pins(seg) && !late)
        why = ": arrays over its pages exist; delete them first, or copy what you keep. "
              "A loop variable, and _ in an interactive session, keep the last array. The end of a block "
              "'with pool:' closes the pool at once and detaches when the last array is deleted";
    else if (seg->writes) why = " inside a write block: end the block first";
    else if (seg->active || !shut.alone()) why = ": another thread is using it";
    return why && !raise("BufferError", "the pool cannot be closed%s", why);
}

// close(late, only_ask): detaches. If arrays over pages exist, it raises BufferError, or, with `late`, detaches when
// the last one is deleted. `only_ask`: it raises what would be raised, and detaches nothing.
static PyObject* segment_close(PyObject* self, PyObject* args) {
    SegmentObject* seg = S(self);
    int late, only_ask = 0;
    if (!PyArg_ParseTuple(args, "p|p:close", &late, &only_ask)) return nullptr;
    if (Use::by_this_thread(seg)) return raise("BufferError", "the pool cannot be closed by code that it has called");
    Shut shut(seg, true);
    if (!seg->s) Py_RETURN_NONE;
    if (refuses_to_close(seg, shut, late)) return nullptr;
    if (only_ask) Py_RETURN_NONE;
    if (has_pins(seg)) seg->closing = true;  // views remain valid
    else detach_now(seg);
    Py_RETURN_NONE;
}

static PyObject* segment_is_closed(PyObject* self, PyObject*) {
    return PyBool_FromLong(!S(self)->s || S(self)->closing);
}

static PyObject* segment_geometry(PyObject* self, PyObject*) {
    Segment* s = seen(S(self));
    if (!s) return nullptr;
    Header h{};
    memcpy(h.uuid, s->header->uuid, sizeof h.uuid);
    memcpy(h.home, s->header->home, sizeof h.home);
    h.created_ns = s->header->created_ns;
    h.geometry = s->g;
    return geometry_dict(h);
}

static PyObject* segment_clients(PyObject* self, PyObject*) {
    Segment* s = seen(S(self));
    if (!s) return nullptr;
    PyObject* list = PyList_New(0);
    for (u32 c = 1, slots = s->slots(); list && c <= slots; c++) {
        Client& slot = s->clients[c - 1];
        if (slot.state.load_acquire() != CLIENT_LIVE) continue;
        char name[sizeof slot.name + 1] = {};
        memcpy(name, slot.name, sizeof slot.name);
        PyObject* name_text = PyUnicode_DecodeUTF8(name, Py_ssize_t(strlen(name)), "replace");
        PyObject* item = name_text ? Py_BuildValue("(IIKKNO)", c, slot.pid.load_relaxed(),
                                                   (unsigned long long)slot.start_time.load_relaxed(),
                                                   (unsigned long long)slot.attached_ns.load_relaxed(), name_text,
                                                   seems_alive(*s, c) ? Py_True : Py_False)
                                   : nullptr;
        if (!item || PyList_Append(list, item) < 0) Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

u64 deadline_in(double seconds) {
    return seconds < 1e9 ? prim::now_ns() + u64(std::max(seconds, 0.0) * 1e9) : 0;
}

// The call's time is over, and another process still has a lock of the pool.
PyObject* raise_late(Segment* s, const char* what) {
    if (check_signals() < 0) return nullptr;
    return raise("WaitTimeout",
                 "%s: a lock of the pool was not free within the timeout; client %u has one, and pool.clients() says "
                 "who that is",
                 what, lock_owner(*s));
}

PyObject* raise_given_up(Segment& s, u64 deadline_ns, const char* what) {
    return deadline_ns && prim::now_ns() >= deadline_ns ? raise_late(&s, what) : raise_interrupted(what);
}

// shrink(frames, reason, evict, timeout) -> (given back, moved, pinned, dirty, busy, the errno with which the kernel
// refused some, or 0). It may give back less because the time is over.
static PyObject* segment_shrink(PyObject* self, PyObject* args) {
    unsigned long long want;
    unsigned reason;
    int evict;
    double timeout = Py_HUGE_VAL;
    if (!PyArg_ParseTuple(args, "KIp|d:shrink", &want, &reason, &evict, &timeout)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    if (reason >= REASONS) return raise("ValueError", "no such reason");
    Reclaimed done;
    Status status;
    {
        Released unlocked(S(self));
        Deadline deadline(deadline_in(timeout));
        status = shrink(*s, want, Reason(reason), evict, done);
    }
    if (status == Status::INTERRUPTED && check_signals() < 0) return nullptr;
    if (status == Status::NO_MEMORY) return PyErr_NoMemory();
    return Py_BuildValue("(KKIIIi)", (unsigned long long)done.frames, (unsigned long long)done.moved, done.tally.pinned,
                         done.tally.dirty, done.tally.busy, -done.refused);
}

// punch_holes(timeout): gives memory back that the kernel has given to holes unasked.
static PyObject* segment_punch_holes(PyObject* self, PyObject* arg) {
    double timeout = PyFloat_AsDouble(arg);
    Segment* s = PyErr_Occurred() ? nullptr : opened(S(self));
    if (!s) return nullptr;
    Status status;
    {
        Released unlocked(S(self));
        Deadline deadline(deadline_in(timeout));
        status = punch_holes(*s);
    }
    if (status == Status::INTERRUPTED && check_signals() < 0) return nullptr;
    Py_RETURN_NONE;
}

// Maps the tables of the caches. False: the method returns `out`, which is `none` if the pool has no cache, and null
// after an error. Takes `none` over.
static bool has_objects(Segment* s, PyObject* none, PyObject*& out) {
    int r = map_objects(*s);
    out = r == -ENOENT ? none : nullptr;
    if (!out) Py_XDECREF(none);
    if (r && r != -ENOENT) raise_unmapped(r);
    return r == 0;
}

// fit_objects(frames, reason, timeout) -> (bytes given back, whether objects use at most so many frames now): evicts
// objects for that. None: as much as their limits allow.
static PyObject* segment_fit_objects(PyObject* self, PyObject* args) {
    PyObject* arg;
    unsigned reason;
    double timeout = Py_HUGE_VAL;
    if (!PyArg_ParseTuple(args, "OI|d:fit_objects", &arg, &reason, &timeout)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    if (reason >= REASONS) return raise("ValueError", "no such reason");
    PyObject* out;
    if (!has_objects(s, Py_BuildValue("(KO)", 0ull, Py_True), out)) return out;
    u64 most = most_lent(*s), wanted = arg == Py_None ? most : PyLong_AsUnsignedLongLong(arg);
    if (PyErr_Occurred()) return nullptr;
    u64 given = 0;
    bool fits;
    {
        Released unlocked(S(self));
        Deadline deadline(deadline_in(timeout));
        fits = fit_objects(*s, std::min(most, wanted) * (s->g.page_size / s->g.os_page), Reason(reason), given);
    }
    if (check_signals() < 0) return nullptr;
    return Py_BuildValue("(KO)", (unsigned long long)(given * s->g.os_page), fits ? Py_True : Py_False);
}

// release_objects(bytes, reason, timeout) -> bytes: gives memory of free blocks back, at least so much if there is so
// much.
static PyObject* segment_release_objects(PyObject* self, PyObject* args) {
    unsigned long long bytes;
    unsigned reason;
    double timeout = Py_HUGE_VAL;
    if (!PyArg_ParseTuple(args, "KI|d:release_objects", &bytes, &reason, &timeout)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    if (reason >= REASONS) return raise("ValueError", "no such reason");
    PyObject* out;
    if (!has_objects(s, PyLong_FromLong(0), out)) return out;
    u64 given;
    {
        Released unlocked(S(self));
        Deadline deadline(deadline_in(timeout));
        given = release_objects(*s, os_pages(*s, bytes), Reason(reason));
    }
    if (check_signals() < 0) return nullptr;
    return PyLong_FromUnsignedLongLong(given * s->g.os_page);
}

// remove_cache(name, timeout) -> whether there was one
static PyObject* segment_remove_cache(PyObject* self, PyObject* args) {
    const char* name;
    double timeout;
    if (!PyArg_ParseTuple(args, "sd:remove_cache", &name, &timeout)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    PyObject* out;
    if (!has_objects(s, PyBool_FromLong(0), out)) return out;
    Status was;
    {
        Released unlocked(S(self));
        Deadline deadline(deadline_in(timeout));
        was = remove_cache(*s, name);
        if (was == Status::OK) release_objects(*s, ~0ull, DROP);
    }
    if (was == Status::INTERRUPTED) return raise_late(s, "remove_cache");
    return check_signals() < 0 ? nullptr : PyBool_FromLong(was == Status::OK);
}

// evict_idle(seconds, timeout) -> pages evicted
static PyObject* segment_evict_idle(PyObject* self, PyObject* args) {
    double seconds, timeout = Py_HUGE_VAL;
    if (!PyArg_ParseTuple(args, "d|d:evict_idle", &seconds, &timeout)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    u64 out = 0, age = u64(seconds * 1e9), now = prim::coarse_ns();
    u32 before = u32((now > age ? now - age : 0) >> TICK_SHIFT);
    {
        Released unlocked(S(self));
        Deadline deadline(deadline_in(timeout));
        evict_idle(*s, before, out);
    }
    return PyLong_FromUnsignedLongLong(out);
}

// The segment, and the number that a method was given.
static Segment* with_number(PyObject* self, PyObject* arg, u64& n) {
    n = PyLong_AsUnsignedLongLong(arg);
    return PyErr_Occurred() ? nullptr : opened(S(self));
}

// Raises a number, and never lowers it, even if others raise it at the same time. Returns the present value.
static u64 raise_to(Atomic<u64>& number, u64 n) {
    u64 seen = number.load_seq_cst();
    while (seen < n && !number.cas_seq_cst(seen, n)) {
    }
    return std::max(seen, n);
}

static PyObject* set_frames(Segment* s, Atomic<u32>& frames, u64 n, const char* what) {
    if (n < 1 || n > s->g.max_frames) return raise("ValueError", "%s is 1 to %u frames", what, s->g.max_frames);
    frames.store_release(u32(n));
    Py_RETURN_NONE;
}

static PyObject* segment_set_budget(PyObject* self, PyObject* arg) {
    u64 n;
    Segment* s = with_number(self, arg, n);
    return s ? set_frames(s, s->header->budget_frames, n, "a budget") : nullptr;
}

// counted_frames(timeout) -> the frames that have memory or are lent, read under the memory lock: a client that has
// compared them with an earlier budget has counted its own by then
static PyObject* segment_counted_frames(PyObject* self, PyObject* args) {
    double timeout = Py_HUGE_VAL;
    if (!PyArg_ParseTuple(args, "|d:counted_frames", &timeout)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    u64 frames = 0;
    bool locked;
    {
        Released unlocked(S(self));
        Deadline deadline(deadline_in(timeout));
        locked = lock_memory(*s);
        if (locked) {
            frames = u64(s->header->resident.load_relaxed()) + loan::lent(s->header->loan.load_seq_cst());
            unlock_memory(*s);
        }
    }
    if (!locked) return raise_late(s, "the memory of the pages");
    return PyLong_FromUnsignedLongLong(frames);
}

// reopen() -> a new descriptor of the segment's file, also after its name was removed
static PyObject* segment_reopen(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    int fd = prim::reopen(s->fd);
    return fd < 0 ? raise_errno(fd, "the segment cannot be opened") : PyLong_FromLong(fd);
}

// set_page_sizes(bits of the other page sizes, bytes of the whole budget): under the lock of the page sizes.
static PyObject* segment_set_page_sizes(PyObject* self, PyObject* args) {
    unsigned long long sizes, bytes;
    Segment* s = PyArg_ParseTuple(args, "KK:set_page_sizes", &sizes, &bytes) ? opened(S(self)) : nullptr;
    if (!s) return nullptr;
    s->header->whole_budget_bytes.store_seq_cst(bytes);
    s->header->other_sizes.store_seq_cst(sizes);
    Py_RETURN_NONE;
}

static PyObject* segment_set_asked_frames(PyObject* self, PyObject* arg) {
    u64 n;
    Segment* s = with_number(self, arg, n);
    return s ? set_frames(s, s->header->asked_frames, n, "a budget") : nullptr;
}

static PyObject* segment_set_min_frames(PyObject* self, PyObject* arg) {
    u64 n;
    Segment* s = with_number(self, arg, n);
    return s ? set_frames(s, s->header->min_frames, n, "a lower bound") : nullptr;
}

// grow_advice(frames, timeout): allocates memory for advice about budgets of so many frames
static PyObject* segment_grow_advice(PyObject* self, PyObject* args) {
    unsigned long long n;
    double timeout = Py_HUGE_VAL;
    if (!PyArg_ParseTuple(args, "K|d:grow_advice", &n, &timeout)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    if (n < 1 || n > s->g.max_frames) return raise("ValueError", "a budget is 1 to %u frames", s->g.max_frames);
    int r;
    {
        Released unlocked(S(self));
        Deadline deadline(deadline_in(timeout));
        r = grow_with_room(*s, [&] { return grow_advice(*s, u32(n)); });
    }
    if (r == -EINTR) return raise_late(s, "memory for advice");
    if (r) return raise_errno(r, "memory for advice about a larger budget cannot be allocated");
    Py_RETURN_NONE;
}

static PyObject* segment_set_durable_lsn(PyObject* self, PyObject* arg) {
    u64 n;
    Segment* s = with_number(self, arg, n);
    if (!s) return nullptr;
    s->header->durable_lsn.store_seq_cst(n);
    Py_RETURN_NONE;
}

static PyObject* segment_raise_durable_lsn(PyObject* self, PyObject* arg) {
    u64 n;
    Segment* s = with_number(self, arg, n);
    if (!s) return nullptr;
    raise_to(s->header->durable_lsn, n);
    Py_RETURN_NONE;
}

// mark_unlinked(lose)
static PyObject* segment_mark_unlinked(PyObject* self, PyObject* lose) {
    Segment* s = opened(S(self));
    int loses = s ? PyObject_IsTrue(lose) : -1;
    if (loses < 0) return nullptr;
    s->header->unlinked.or_seq_cst(UNLINKED | (loses ? MAY_LOSE : 0));
    Py_RETURN_NONE;
}

// From now on the end of this process is no death, even if it cannot detach: a store hangs perhaps, and has its pages.
static PyObject* segment_mark_ending(PyObject* self, PyObject*) {
    Segment* s = S(self)->s;
    if (s && s->me && s->keeps_slot()) s->client().ending.store_relaxed(1);
    Py_RETURN_NONE;
}

// raise_checkpoint_lsn(lsn) -> the checkpoint LSN, which never decreases
static PyObject* segment_raise_checkpoint_lsn(PyObject* self, PyObject* arg) {
    u64 n;
    Segment* s = with_number(self, arg, n);
    if (!s) return nullptr;
    s->counters().checkpoints.add_relaxed(1);
    s->header->checkpoint_ns.store_relaxed(prim::realtime_ns());
    return PyLong_FromUnsignedLongLong(raise_to(s->header->checkpoint_lsn, n));
}

static PyObject* segment_reap(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    u32 n;
    {
        Released unlocked(S(self));
        n = reap_all(*s);
        sweep_retired(*s);
    }
    let_go_of_removed(S(self));
    s->removed_here.store_relaxed(1);  // by another process, which could not give the entries back at that time
    give_back_soon(S(self));
    return PyLong_FromUnsignedLong(n);
}

// Is this thread alone: does no other client live, and is no other thread in the core?
static bool is_alone(SegmentObject* seg) {
    for (u32 c = 1, slots = seg->s->slots(); c <= slots; c++)
        if (c != seg->s->me && is_live_client(*seg->s, c) && seems_alive(*seg->s, c)) return false;
    return seg->active == 0 && seg->writes == 0 && seg->users.load_relaxed() <= 1;  // one user: this thread
}

static PyObject* segment_alone(PyObject* self, PyObject*) {
    return opened(S(self)) ? PyBool_FromLong(is_alone(S(self))) : nullptr;
}

// check(timeout) -> the violations
static PyObject* segment_check(PyObject* self, PyObject* args) {
    double timeout = Py_HUGE_VAL;
    if (!PyArg_ParseTuple(args, "|d:check", &timeout)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    Findings found;
    constexpr int PASSES = 8;  // one, if that finds nothing
    Status status;
    {
        Released unlocked(S(self));
        Deadline deadline(deadline_in(timeout));
        reap_all(*s);
        status = check(*s, PASSES, found);
        if (status == Status::OK) status = check_objects(*s, found);
    }
    if (status == Status::INTERRUPTED) return raise_late(s, "check");
    if (status == Status::NO_MEMORY) return PyErr_NoMemory();
    PyObject* list = PyList_New(Py_ssize_t(found.size()));
    for (size_t i = 0; list && i < found.size(); i++) {
        PyObject* text = PyUnicode_FromString(found[i].text);
        if (text) PyList_SET_ITEM(list, Py_ssize_t(i), text);
        else Py_CLEAR(list);
    }
    return list;
}

// The methods, with those of segment_*.cpp, held.cpp and batch.cpp.
static PyMethodDef own_methods[] = {
    {"give_to", entered<segment_give_to, SegmentEntry>, METH_VARARGS,
     "give_to($self, pool, data, /)\n--\n\n"
     "The last step of attaching: maps the data area at ``data`` (shape (max_frames, page_size), uint8), and\n"
     "stores the segment in the pool. Raises ValueError, SegmentError."},
    {"close", segment_close, METH_VARARGS,
     "close($self, late, only_ask=False, /)\n--\n\n"
     "Detaches. If arrays over pages exist, it raises BufferError, or with ``late`` detaches when the last one\n"
     "is deleted. ``only_ask``: it raises what it would raise, and detaches nothing."},
    {"is_closed", segment_is_closed, METH_NOARGS,
     "is_closed($self, /)\n--\n\n"
     "Whether it was closed. Arrays over its pages may still exist."},
    {"geometry", entered<segment_geometry, SegmentEntry>, METH_NOARGS,
     "geometry($self, /)\n--\n\n"
     "The sizes and limits that were fixed when the segment was created, as a dict of int."},
    {"clients", entered<segment_clients, SegmentEntry>, METH_NOARGS,
     "clients($self, /)\n--\n\n"
     "The attached clients: (number, pid, start time, ns since the epoch when it attached, program, whether it\n"
     "lives)."},
    {"shrink", entered<segment_shrink, SegmentEntry>, METH_VARARGS,
     "shrink($self, frames, reason, evict, timeout=1e999, /)\n--\n\n"
     "Gives up to ``frames`` free frames back to the kernel; with ``evict`` it evicts pages for that. Returns\n"
     "(frames given back, pages moved; pinned, dirty and busy pages that it met; the errno with which the\n"
     "kernel refused some, or 0)."},
    {"punch_holes", entered<segment_punch_holes, SegmentEntry>, METH_O,
     "punch_holes($self, timeout, /)\n--\n\n"
     "Gives memory back that the kernel has given to parts of the segment that are not in use."},
    {"fit_objects", entered<segment_fit_objects, SegmentEntry>, METH_VARARGS,
     "fit_objects($self, frames, reason, timeout=1e999, /)\n--\n\n"
     "Evicts values of caches until they use at most so many frames (None: what their limits allow). Returns\n"
     "(bytes given back, whether they use no more now)."},
    {"release_objects", entered<segment_release_objects, SegmentEntry>, METH_VARARGS,
     "release_objects($self, size, reason, timeout=1e999, /)\n--\n\n"
     "Gives memory back that caches have and no value uses: at least ``size`` bytes if there are so many.\n"
     "Returns the bytes."},
    {"remove_cache", entered<segment_remove_cache, SegmentEntry>, METH_VARARGS,
     "remove_cache($self, name, timeout, /)\n--\n\n"
     "Removes a cache; returns whether there was one. Raises WaitTimeout."},
    {"evict_idle", entered<segment_evict_idle, SegmentEntry>, METH_VARARGS,
     "evict_idle($self, seconds, timeout=1e999, /)\n--\n\n"
     "Evicts the clean pages that were not used for so many seconds; returns their number."},
    {"set_budget", entered<segment_set_budget, SegmentEntry>, METH_O,
     "set_budget($self, frames, /)\n--\n\n"
     "Sets the budget of the pages. It evicts nothing."},
    {"grow_advice", entered<segment_grow_advice, SegmentEntry>, METH_VARARGS,
     "grow_advice($self, frames, timeout=1e999, /)\n--\n\n"
     "Allocates memory for advice about a budget of so many frames. Raises SharedMemoryFull, ValueError."},
    {"set_durable_lsn", entered<segment_set_durable_lsn, SegmentEntry>, METH_O,
     "set_durable_lsn($self, lsn, /)\n--\n\n"
     "Sets the LSN up to which the log is durable."},
    {"raise_durable_lsn", entered<segment_raise_durable_lsn, SegmentEntry>, METH_O,
     "raise_durable_lsn($self, lsn, /)\n--\n\n"
     "Raises the durable LSN; does nothing if it is at least ``lsn`` already."},
    {"counted_frames", entered<segment_counted_frames, SegmentEntry>, METH_VARARGS,
     "counted_frames($self, timeout=1e999, /)\n--\n\n"
     "The frames that have memory or are lent to caches, read under the memory lock."},
    {"reopen", entered<segment_reopen, SegmentEntry>, METH_NOARGS,
     "reopen($self, /)\n--\n\n"
     "A new descriptor of the segment's file, even if its name was removed."},
    {"set_page_sizes", entered<segment_set_page_sizes, SegmentEntry>, METH_VARARGS,
     "set_page_sizes($self, others, whole_budget_bytes, /)\n--\n\n"
     "Sets which other page sizes the pool has (bit n: pages of 2**n bytes), and the budget of all sizes\n"
     "together. The caller holds the lock of the page sizes."},
    {"set_asked_frames", entered<segment_set_asked_frames, SegmentEntry>, METH_O,
     "set_asked_frames($self, frames, /)\n--\n\n"
     "Records the budget that a call asks for, which may be above a steward's upper bound."},
    {"set_min_frames", entered<segment_set_min_frames, SegmentEntry>, METH_O,
     "set_min_frames($self, frames, /)\n--\n\n"
     "Sets the lower bound of a steward's budgets."},
    {"mark_unlinked", entered<segment_mark_unlinked, SegmentEntry>, METH_O,
     "mark_unlinked($self, lose, /)\n--\n\n"
     "Marks the segment: its name was removed on purpose. ``lose``: its dirty pages may be lost."},
    {"mark_ending", entered<segment_mark_ending, SegmentEntry>, METH_NOARGS,
     "mark_ending($self, /)\n--\n\n"
     "From now on the end of this process is no death, even if it cannot detach: a store hangs perhaps, and has its\n"
     "pages."},
    {"raise_checkpoint_lsn", entered<segment_raise_checkpoint_lsn, SegmentEntry>, METH_O,
     "raise_checkpoint_lsn($self, lsn, /)\n--\n\n"
     "Raises the LSN of the last checkpoint, which never decreases; returns it."},
    {"reap", entered<segment_reap, SegmentEntry>, METH_NOARGS,
     "reap($self, /)\n--\n\n"
     "Reaps all dead clients that can be reaped now, and gives the memory of entries back that no space has and no\n"
     "client may touch; returns the number of clients."},
    {"check", entered<segment_check, SegmentEntry>, METH_VARARGS,
     "check($self, timeout=1e999, /)\n--\n\n"
     "Checks every invariant; returns the violations, one sentence each. Raises WaitTimeout."},
    {"alone", entered<segment_alone, SegmentEntry>, METH_NOARGS,
     "alone($self, /)\n--\n\n"
     "Whether no other client or thread can change the segment meanwhile."},
    {nullptr, nullptr, 0, nullptr}};

static PyMethodDef segment_methods[112];  // the last one ends the table

PyTypeObject SegmentType = {PyVarObject_HEAD_INIT(nullptr, 0)};

int ready_segment_type() {
    PyMethodDef* to = segment_methods;
    for (PyMethodDef* from :
         {own_methods, directory_methods, lock_methods, flush_methods, publish_methods, observe_methods,
          advice_methods, under_way_methods, snapshot_methods})
        for (; from->ml_name; *to++ = *from++)
            if (to == std::end(segment_methods) - 1) {
                PyErr_SetString(PyExc_SystemError, "segment_methods in segment.cpp has no room for all methods");
                return -1;
            }
    SegmentType.tp_new = segment_new;
    return ready_type(SegmentType, "bufferpool._core.Segment", "One client's attachment to a segment.", segment_dealloc,
                      segment_methods);
}

}  // namespace bp
