// What feeds the shadows of advice.h (the sampler, or a trace), and what Python sees of them.
#include "python/py.h"

#include "policy/shadows.h"
#include "protocol/lock.h"

namespace bp {

// ---- sampling --------------------------------------------------------------------

constexpr double REMEMBERED = 65536;  // sampled references
constexpr u64 SHARE = 400;            // at most this part of the time goes to sampling
constexpr u64 BURST_NS = 5'000'000;   // of it at a time
constexpr u64 RECORD_NS = 10, LONGEST_NS = 1'000'000'000;

static Advice& head_of(Segment& s) { return *reinterpret_cast<Advice*>(s.advice); }

struct Seen {
    u64 hits, misses;
};

static Seen seen_by(const Counters& counters) {
    Seen n{0, 0};
    for (auto& space : counters.space) {
        n.hits += space.hits.load_relaxed();
        n.misses += space.misses.load_relaxed();
    }
    return n;
}

// References of all clients, present and past; a fold under way may move it for a moment.
static u64 all_references(Segment& s) {
    Seen n = seen_by(s.header->totals[s.header->folded.load_acquire() & 1]);
    for (u32 c = 0; c < s.g.max_clients; c++) {
        Client& slot = s.clients[c];
        if (slot.state.load_acquire() != CLIENT_LIVE || slot.folded.load_acquire()) continue;
        Seen own = seen_by(slot.counters);
        n.hits += own.hits;
        n.misses += own.misses;
    }
    return n.hits + n.misses;
}

static void next_epoch(Segment& s) {
    Sampler& w = s.sampler;
    u32 epoch = head_of(s).epoch.load_relaxed() % 255 + 1;
    head_of(s).epoch.store_relaxed(epoch);
    w.epoch.store_relaxed(u8(epoch));
    w.left.store_relaxed(head_of(s).unit.load_relaxed());
}

// A window that was not filled ends its epoch. How long that is to be is known from what missed in
// the window; of a few references none may have missed, and in an epoch without an end every page
// would be recorded once and never again.
static void open_window(Segment& s, u64 now) {
    Sampler& w = s.sampler;
    Seen seen = seen_by(s.counters());
    w.hits.store_relaxed(seen.hits);
    w.misses.store_relaxed(seen.misses);
    w.opened_ns.store_relaxed(now);
    if (w.spent_ns.load_relaxed() == 0) {
        w.burst_ns.store_relaxed(now);
        w.thread.store_relaxed(this_thread());
        w.delayed_ns.store_relaxed(prim::delayed_ns());
    }
    if (w.n.load_relaxed() < w.WINDOW) {
        next_epoch(s);
    } else {
        u32 epoch = head_of(s).epoch.load_relaxed() & 255;
        w.epoch.store_relaxed(u8(epoch ? epoch : 1));
        w.left.store_relaxed(head_of(s).unit.load_relaxed());
    }
    w.n.store_relaxed(0);
    w.gate.store_relaxed(0xff);
}

// Has the pause after a burst ended? If others had our processor for a part of it, it is so much longer.
static bool may_open(Segment& s, u64 now) {
    Sampler& w = s.sampler;
    u64 reopen = w.reopen_ns.load_relaxed();
    if (reopen == 0 || now < reopen) return now >= reopen;
    if (w.thread.load_relaxed() != this_thread()) return true;
    u64 delayed = prim::delayed_ns(), before = w.delayed_ns.load_relaxed();
    if (delayed <= before) return true;
    w.delayed_ns.store_relaxed(delayed);
    w.reopen_ns.store_relaxed(reopen += delayed - before);
    return now >= reopen;
}

// The counters as they were some ten to twenty seconds ago, for the rate. Under the lock.
static void read_counters(Segment& s, Advice& head, u64 now) {
    constexpr u64 APART_NS = 10'000'000'000;
    if (now - head.later.at_ns < APART_NS) return;
    u64 age = prim::realtime_ns() - s.header->created_ns;
    head.earlier = head.later.at_ns ? head.later : Advice::Reading{now > age ? now - age : 0, 0};
    head.later = {now, all_references(s)};
}

// The memory is there from the pool's creation; the lock is ours.
template <class F>
static void with_shadows(Segment& s, Acquired how, F work) {
    BP_POINT("advice.locked");
    if (how == Acquired::REPAIR) {
        forget_advice(s);
        repaired(s, s.header->advice);
    }
    u32 budget = s.header->budget_frames.load_relaxed();
    Shadows shadows(s.advice, s.g.max_frames, budget >= 1 && budget <= s.g.max_frames ? budget : s.g.max_frames, AdviceGeometry(s.g.max_frames));
    read_counters(s, shadows.head(), prim::boot_ns());
    work(shadows);
    BP_POINT("advice.worked");
    release(s, s.header->advice);
}

static void apply_window(Segment& s, Shadows& shadows) {
    Sampler& w = s.sampler;
    Seen seen = seen_by(s.counters());
    u32 n = w.n.load_relaxed();
    u64 hits = seen.hits - w.hits.load_relaxed(), misses = seen.misses - w.misses.load_relaxed();
    shadows.apply(w.samples, n < w.WINDOW ? n : w.WINDOW, hits + misses, misses, REMEMBERED);
}

// Ends the window. Somebody else is at the shadows: then what it had is lost, and no figure depends on it.
void drain(Segment& s) {
    Sampler& w = s.sampler;
    if (!w.gate.load_relaxed()) return;
    w.gate.store_relaxed(0);
    u64 begin = prim::thread_ns();
    Acquired how;
    if (try_acquire(s, s.header->advice, how)) with_shadows(s, how, [&](Shadows& shadows) { apply_window(s, shadows); });
    u64 cost = prim::thread_ns() - begin + RECORD_NS * w.n.load_relaxed();
    u64 spent = w.spent_ns.load_relaxed() + cost, burst = w.burst_ns.load_relaxed();
    bool over = spent >= BURST_NS;
    w.reopen_ns.store_relaxed(over ? burst + SHARE * spent : 0);
    w.spent_ns.store_relaxed(over ? 0 : spent);
}

void look_after_window(Segment& s) {
    Sampler& w = s.sampler;
    w.tick.store_relaxed(s.tick());
    u64 now = prim::now_ns();
    if (w.gate.load_relaxed() && now - w.opened_ns.load_relaxed() > LONGEST_NS) drain(s);
    if (!w.gate.load_relaxed() && may_open(s, now)) open_window(s, now);
}

static void push(Segment& s, u32 page, u32 kind) {
    Sampler& w = s.sampler;
    u32 n = w.n.load_relaxed();
    if (n < w.WINDOW) w.samples[n].store_relaxed(u64(page) << 2 | kind);
    w.n.store_relaxed(n + 1);
    if (n + 1 >= w.WINDOW) {
        drain(s);
        u64 now = prim::now_ns();
        if (may_open(s, now)) open_window(s, now);
        return;
    }
    u32 left = w.left.load_relaxed();
    w.left.store_relaxed(left - 1);
    if (left <= 1) next_epoch(s);
}

void record(Segment& s, u32 page, u32 kind) {
    u64 e = s.has_page(page) ? s.entries[page].load_relaxed() : 0;
    if (entry::state(e) == RESIDENT && s.has_frame(entry::frame(e))) {
        bool sampled = is_sampled(page, head_of(s).shift.load_relaxed() & 31);
        s.frames[entry::frame(e)].mark.store_relaxed(sampled ? s.sampler.epoch.load_relaxed() : 0);
        if (sampled) push(s, page, kind);
    }
}

void record_load(Segment& s, u32 page, u32 kind) {
    Sampler& w = s.sampler;
    if (!w.gate.load_relaxed() && prim::coarse_ns() >= w.reopen_ns.load_relaxed()) look_after_window(s);
    if (w.gate.load_relaxed() && is_sampled(page, head_of(s).shift.load_relaxed() & 31)) push(s, page, kind);
}

// ---- Python ----------------------------------------------------------------------

static PyObject* advice_dict(const Advice& head, const u32 frames, double rate) {
    PyObject* missed = PyList_New(SHADOWS);
    if (!missed) return nullptr;
    for (u32 i = 0; i < SHADOWS; i++) {
        PyObject* v = Py_BuildValue("(Id)", u32((u64(frames) * SHADOW_EIGHTHS[i] + 4) / 8), head.missed[i]);
        if (!v) return Py_DECREF(missed), nullptr;
        PyList_SET_ITEM(missed, i, v);
    }
    return Py_BuildValue("{s:N,s:d,s:d,s:I,s:I,s:K,s:I,s:I,s:d}", "missed", missed, "expected", head.expected, "missed_by_pool",
                         head.missed_by_pool, "shift", head.shift.load_relaxed() & 31, "budget_frames", frames, "references",
                         (unsigned long long)head.references, "resets", head.resets, "halvings", head.halvings, "references_per_s", rate);
}

static double reference_rate(Segment& s, const Advice& head) {
    u64 now = prim::boot_ns(), all = all_references(s);
    const auto& since = head.earlier;
    if (now <= since.at_ns || all <= since.references) return 0;
    return double(all - since.references) * 1e9 / double(now - since.at_ns);
}

// What an observer sees of the head, who can take no lock: a copy that nobody was at work on
// before or after, twice the same. Empty if somebody always is.
static Advice observed_head(Segment& s) {
    Advice head{}, again{};
    for (int tries = 0; tries < 100; tries++) {
        bool open = s.header->advice.word.load_seq_cst() == 0;
        memcpy(static_cast<void*>(&head), s.advice, sizeof head);
        open &= s.header->advice.word.load_seq_cst() == 0;
        memcpy(static_cast<void*>(&again), s.advice, sizeof again);
        if (open && !memcmp(static_cast<void*>(&head), static_cast<void*>(&again), sizeof head)) return head;
        prim::yield();
    }
    return Advice{};
}

// advice() -> the head of the shadows, after the window of this process has been worked off
static PyObject* segment_advice(PyObject* self, PyObject*) {
    Segment* s = seen(S(self));
    if (!s) return nullptr;
    if (S(self)->observing) {
        Advice head = observed_head(*s);
        return advice_dict(head, head.frames, reference_rate(*s, head));
    }
    Advice head{};
    u32 frames = 0;
    double rate = 0;
    bool ours;
    {
        Released unlocked(S(self));
        Acquired how = acquire(*s, s->header->advice);
        ours = how != Acquired::INTERRUPTED;
        if (ours)
            with_shadows(*s, how, [&](Shadows& shadows) {
                if (s->sampler.gate.load_relaxed()) apply_window(*s, shadows);
                open_window(*s, prim::now_ns());
                memcpy(static_cast<void*>(&head), &shadows.head(), sizeof head);
                frames = head.frames;
                rate = reference_rate(*s, head);
            });
    }
    if (!ours) return raise_interrupted("the shadows");
    return advice_dict(head, frames, rate);
}

// sampling(on): ends the recording of references, or goes on where it ended, as if no time had
// passed. For benchmarks/advice.py, which measures what it costs within one process.
static PyObject* segment_sampling(PyObject* self, PyObject* arg) {
    int on = PyObject_IsTrue(arg);
    Segment* s = on < 0 ? nullptr : opened(S(self));
    if (!s) return nullptr;
    Sampler& w = s->sampler;
    if (bool(on) != w.paused) Py_RETURN_NONE;
    u64 now = prim::now_ns();
    Seen seen = seen_by(s->counters());
    if (!on) {
        u64 reopen = w.reopen_ns.load_relaxed();
        w.rest_ns = reopen > now ? reopen - now : 0;
        w.gate_before = w.gate.load_relaxed();
    }
    w.gate.store_relaxed(on ? w.gate_before : 0);
    w.reopen_ns.store_relaxed(on ? now + w.rest_ns : ~u64(0));
    for (Atomic<u64>* at : {&w.opened_ns, &w.burst_ns}) at->store_relaxed(now - at->load_relaxed());
    w.hits.store_relaxed(seen.hits - w.hits.load_relaxed());
    w.misses.store_relaxed(seen.misses - w.misses.load_relaxed());
    w.delayed_ns.store_relaxed(prim::delayed_ns() - w.delayed_ns.load_relaxed());
    w.paused = !on;
    look_after_window(*s);
    Py_RETURN_NONE;
}

PyMethodDef advice_methods[] = {
    {"advice", segment_advice, METH_NOARGS, ""},
    {"sampling", segment_sampling, METH_O, ""},
    {nullptr, nullptr, 0, nullptr}};

// ---- over a trace ------------------------------------------------------------------

constexpr u64 WINDOWS_IN_BURST = 48;  // at some 200 ns a sample
constexpr u64 LONGEST = 100'000;      // references: a second of a pool that is in use

// The pool of a trace: which pages are resident does not matter to the sampler, but for
// pages that were away: their next reference is recorded whatever their mark says.
struct TracedSampler {
    Vec<u8> marks;
    Vec<Atomic<u64>> samples;
    u32 n = 0, left = 1;
    u8 epoch = 1;

    void record(u32 page, const Advice& head) {
        if (marks[page] == epoch || !is_sampled(page, head.shift.load_relaxed())) return;
        marks[page] = epoch;
        samples[n++].store_relaxed(u64(page) << 2);
        if (--left == 0) next_epoch(head);
    }
    void next_epoch(const Advice& head) {
        epoch = u8(epoch % 255 + 1);
        left = head.unit.load_relaxed();
    }
};

// advise(trace: uint32 array, n_pages, frames, max_frames, gap, least_shift) -> what Segment.advice() returns,
// with the samples taken and the bytes of the area. `gap` references go by between two bursts.
PyObject* core_advise(PyObject*, PyObject* args) {
    PyArrayObject* trace;
    unsigned n_pages, frames, max_frames, gap, least_shift;
    if (!PyArg_ParseTuple(args, "O!IIIII:advise", &PyArray_Type, &trace, &n_pages, &frames, &max_frames, &gap, &least_shift)) return nullptr;
    if (PyArray_TYPE(trace) != NPY_UINT32 || PyArray_NDIM(trace) != 1 || !PyArray_ISCARRAY_RO(trace) || frames < 1 || max_frames < frames || least_shift > 20)
        return raise("ValueError", "the trace must be a C-contiguous array of uint32, and frames 1 to max_frames");
    auto pages = static_cast<const u32*>(PyArray_DATA(trace));
    u64 n = u64(PyArray_SIZE(trace));
    AdviceGeometry g(max_frames, least_shift);
    Vec<u64> area;
    TracedSampler sampler;
    if (!area.resize(g.bytes / 8 + 1) || !sampler.marks.resize(n_pages) || !sampler.samples.resize(Sampler::WINDOW)) return PyErr_NoMemory();
    Shadows shadows(reinterpret_cast<u8*>(area.data()), max_frames, frames, g);
    u64 references = 0, samples = 0, windows = 0;
    for (u64 i = 0; i < n; i++) {
        if (pages[i] >= n_pages) return raise("ValueError", "the trace has a page beyond n_pages");
        references++;
        sampler.record(pages[i], shadows.head());
        bool full = sampler.n == Sampler::WINDOW;
        if (!full && references < LONGEST && i + 1 < n) continue;
        shadows.apply(sampler.samples.data(), sampler.n, references, 0, 1e300);
        if (!full) sampler.next_epoch(shadows.head());
        samples += sampler.n;
        sampler.n = 0;
        references = 0;
        if (++windows % WINDOWS_IN_BURST == 0) i += gap;
    }
    PyObject* out = advice_dict(shadows.head(), frames, 0);
    return out ? Py_BuildValue("(NKK)", out, (unsigned long long)samples, (unsigned long long)g.bytes) : nullptr;
}

}  // namespace bp
