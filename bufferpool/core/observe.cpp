// What the steward and the metrics see of a pool, without copying its tables.
#include "py.h"

#include <vector>

#include "events.h"

namespace bp {

// ---- the frames, counted -----------------------------------------------------------

constexpr u32 AGES = 6;
constexpr u64 AGE_LIMITS_S[AGES - 1] = {1, 10, 60, 600, 3600};

struct Summary {
    u64 states[5] = {}, dirty = 0, held_back = 0, pinned = 0, hot = 0, ages[AGES] = {};
    struct PerSpace {
        u64 resident, dirty;
    } space[MAX_SPACES] = {};
};

// Which space an entry belongs to; spaces do not overlap.
class SpaceFinder {
    struct Range {
        u32 first, end, index;
    };
    std::vector<Range> ranges_;
    size_t last_ = 0;

public:
    explicit SpaceFinder(Segment& s) {
        for (u32 i = 0; i < MAX_SPACES; i++)
            if (s.spaces[i].is_live()) {
                u32 first = s.spaces[i].first_entry.load_relaxed();
                ranges_.push_back({first, first + s.spaces[i].max_pages.load_relaxed(), i});
            }
    }
    u32 of(u32 page) {
        for (size_t tries = 0; tries < ranges_.size(); tries++) {
            const Range& r = ranges_[last_];
            if (page >= r.first && page < r.end) return r.index;
            last_ = (last_ + 1) % ranges_.size();
        }
        return NONE;
    }
};

// One pass over the frames; each is seen as it is in that moment.
static void summarize(Segment& s, Summary& out) {
    u32 now = s.tick();
    u64 durable = s.header->durable_lsn.load_relaxed();
    SpaceFinder spaces(s);
    s.has_frame(s.g.max_frames - 1);
    u32 ready = s.ready;
    for (u32 f = 0; f < ready; f++) {
        FrameSlot& slot = s.frames[f];
        u64 w = slot.word.load_acquire();
        FrameState state = frame::state(w);
        out.states[state <= OLD ? state : BUSY]++;
        if (state == HOLE || state == FREE) continue;
        out.pinned += s.any_pin(f);
        u32 page = frame::page(w);
        if (state != LIVE || !s.has_page(page)) continue;
        int age = int(now - slot.touched.load_relaxed());
        u64 age_s = age > 0 ? (u64(age) << TICK_SHIFT) / 1'000'000'000u : 0;
        u32 a = 0;
        while (a < AGES - 1 && age_s >= AGE_LIMITS_S[a]) a++;
        out.ages[a]++;
        u64 e = s.entries[page].load_acquire();
        if (!entry::is_resident_in(e, f)) continue;
        bool dirty = e & entry::DIRTY;
        out.dirty += dirty;
        out.hot += entry::ring(e) == RING_HOT;
        u32 i = spaces.of(page);
        if (i == NONE) continue;
        out.space[i].resident++;
        out.space[i].dirty += dirty;
        out.held_back += dirty && slot.lsn.load_relaxed() > durable;
    }
    out.states[HOLE] += s.g.max_frames - ready;
}

// summary() -> the counts of struct Summary: a dict, with per-space pairs as bytes
static PyObject* segment_summary(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    Summary sum;
    {
        Released unlocked(S(self));
        summarize(*s, sum);
    }
    auto n = [](u64 v) { return static_cast<unsigned long long>(v); };
    return Py_BuildValue("{s:(KKKKK),s:K,s:K,s:K,s:K,s:(KKKKKK),s:y#}", "states", n(sum.states[0]), n(sum.states[1]),
                         n(sum.states[2]), n(sum.states[3]), n(sum.states[4]), "dirty", n(sum.dirty), "held_back", n(sum.held_back),
                         "pinned", n(sum.pinned), "hot", n(sum.hot), "ages", n(sum.ages[0]), n(sum.ages[1]), n(sum.ages[2]),
                         n(sum.ages[3]), n(sum.ages[4]), n(sum.ages[5]),
                         "spaces", reinterpret_cast<const char*>(sum.space), Py_ssize_t(sizeof sum.space));
}

// ---- events ------------------------------------------------------------------------

// post_event(what, why, bytes, from_frames, to_frames, value)
static PyObject* segment_post_event(PyObject* self, PyObject* args) {
    unsigned what, why, from, to;
    unsigned long long bytes;
    double value;
    if (!PyArg_ParseTuple(args, "IIKIId:post_event", &what, &why, &bytes, &from, &to, &value)) return nullptr;
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    post_event(*s, what, why, bytes, from, to, value);
    Py_RETURN_NONE;
}

static PyObject* segment_events(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    std::vector<Event> out(EVENTS);
    u32 n = read_events(*s, out.data());
    return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(out.data()), Py_ssize_t(n * sizeof(Event)));
}

// ---- the steward -------------------------------------------------------------------

// lead(worth) -> -1 if another client is the steward; else this one is, because it holds the
// steward's byte lock, or could take it: then who was before, 0 if that one had resigned.
// The kernel drops the lock with the process.
static PyObject* segment_lead(PyObject* self, PyObject* arg) {
    double worth = PyFloat_AsDouble(arg);
    Segment* s = PyErr_Occurred() ? nullptr : opened(S(self));
    if (!s) return nullptr;
    if (prim::lock_byte(s->fd, STEWARD_LOCK_AT) != 0) return PyLong_FromLong(-1);
    u64 bits;
    memcpy(&bits, &worth, sizeof bits);
    u32 before = s->leads == s->me ? s->me : s->header->steward.load_acquire();
    s->leads = s->me;
    s->header->worth.store_relaxed(bits);
    s->header->steward_ns.store_relaxed(prim::boot_ns());
    s->header->steward.store_release(s->me);
    return PyLong_FromLong(long(before));
}

static PyObject* segment_resign(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    u32 me = s->me;
    if (s->leads == me) s->header->steward.cas_seq_cst(me, 0);
    s->leads = 0;
    prim::unlock_byte(s->fd, STEWARD_LOCK_AT);
    Py_RETURN_NONE;
}

// steward() -> the client number of the steward, 0 if there is none
static PyObject* segment_steward(PyObject* self, PyObject*) {
    Segment* s = opened(S(self));
    if (!s) return nullptr;
    u32 c = s->header->steward.load_acquire();
    // Our own lock does not show; and a dead steward's number may be ours by now.
    bool there = c && (s->leads == s->me || prim::byte_is_locked(s->fd, STEWARD_LOCK_AT) == 1);
    return PyLong_FromUnsignedLong(there ? c : 0);
}

// count(name): one more of a counter that Python knows about
static PyObject* segment_count(PyObject* self, PyObject* arg) {
    const char* name = PyUnicode_AsUTF8(arg);
    Segment* s = name ? opened(S(self)) : nullptr;
    if (!s) return nullptr;
    Counters& c = s->counters();
    for (auto [known, counter] : {std::pair{"flush_failures", &c.flush_failures}, std::pair{"corrupt_pages", &c.corrupt_pages},
                                  std::pair{"repaired_pages", &c.repaired_pages}})
        if (!strcmp(known, name)) {
            counter->add_relaxed(1);
            Py_RETURN_NONE;
        }
    return raise("ValueError", "Python counts no %s", name);
}

PyMethodDef observe_methods[] = {
    {"summary", segment_summary, METH_NOARGS, ""},
    {"post_event", segment_post_event, METH_VARARGS, ""},
    {"events", segment_events, METH_NOARGS, ""},
    {"lead", segment_lead, METH_O, ""},
    {"resign", segment_resign, METH_NOARGS, ""},
    {"steward", segment_steward, METH_NOARGS, ""},
    {"count", segment_count, METH_O, ""},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace bp
