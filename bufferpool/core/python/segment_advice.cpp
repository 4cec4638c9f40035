// The shadows (policy/shadows.h) for Python, and the shadows over a trace.
#include "python/py.h"

#include "protocol/sampling.h"

namespace bp {

static PyObject* advice_dict(const Advice& head, const u32 frames, double rate) {
    PyObject* missed = PyList_New(SHADOWS);
    if (!missed) return nullptr;
    for (u32 i = 0; i < SHADOWS; i++) {
        PyObject* v = Py_BuildValue("(Id)", u32((u64(frames) * SHADOW_EIGHTHS[i] + 4) / 8), head.missed[i]);
        if (!v) return Py_DECREF(missed), nullptr;
        PyList_SET_ITEM(missed, i, v);
    }
    return Py_BuildValue("{s:N,s:d,s:d,s:I,s:I,s:K,s:I,s:I,s:d}", "missed", missed, "expected", head.expected,
                         "missed_by_pool", head.missed_by_pool, "shift", head.shift.load_relaxed() & 31,
                         "budget_frames", frames, "references", (unsigned long long)head.references, "resets",
                         head.resets, "halvings", head.halvings, "references_per_s", rate);
}

static double reference_rate(Segment& s, const Advice& head) {
    u64 now = prim::boot_ns(), all = all_references(s);
    const auto& since = head.earlier;
    if (now <= since.at_ns || all <= since.references) return 0;
    return double(all - since.references) * 1e9 / double(now - since.at_ns);
}

// The head for an observer, which can take no lock: a copy that is valid if the lock was free before and after, and a
// second copy is equal. Empty if clients work on it all the time.
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

// advice() -> the head of the shadows, after the samples of this process have been applied
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

// sampling(on): stops the recording of references, or continues it as if no time had
// passed. For benchmarks/advice.py, which measures its cost within one process.
static PyObject* segment_sampling(PyObject* self, PyObject* arg) {
    int on = PyObject_IsTrue(arg);
    Segment* s = on < 0 ? nullptr : opened(S(self));
    if (!s) return nullptr;
    Sampler& w = s->sampler;
    if (bool(on) != w.paused) Py_RETURN_NONE;
    u64 now = prim::now_ns();
    References seen = own_references(*s);
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

PyMethodDef advice_methods[] = {{"advice", entered<segment_advice, SegmentEntry>, METH_NOARGS,
                                 "advice($self, /)\n--\n\n"
                                 "The figures of the shadows (layout/advice.h), as a dict, after the samples of\n"
                                 "this process were applied."},
                                {"sampling", entered<segment_sampling, SegmentEntry>, METH_O,
                                 "sampling($self, on, /)\n--\n\n"
                                 "Stops or continues the recording of references, as if no time had passed. For\n"
                                 "benchmarks/advice.py."},
                                {nullptr, nullptr, 0, nullptr}};

// ---- over a trace ------------------------------------------------------------------

constexpr u64 WINDOWS_IN_BURST = 48;  // at some 200 ns a sample
constexpr u64 LONGEST = 100'000;      // references: a second of a busy pool

// The sampler over a trace. It needs the residency of pages only because the next reference to
// a page that was absent is always recorded.
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
// with the number of samples and the bytes of the area. `gap` references are left out between two bursts.
PyObject* core_advise(PyObject*, PyObject* args) {
    PyArrayObject* trace;
    unsigned n_pages, frames, max_frames, gap, least_shift;
    if (!PyArg_ParseTuple(args, "O!IIIII:advise", &PyArray_Type, &trace, &n_pages, &frames, &max_frames, &gap,
                          &least_shift))
        return nullptr;
    if (PyArray_TYPE(trace) != NPY_UINT32 || PyArray_NDIM(trace) != 1 || !PyArray_ISCARRAY_RO(trace) || frames < 1 ||
        max_frames < frames || least_shift > 20)
        return raise("ValueError", "the trace must be a C-contiguous array of uint32, and frames 1 to max_frames");
    auto pages = static_cast<const u32*>(PyArray_DATA(trace));
    u64 n = u64(PyArray_SIZE(trace));
    AdviceGeometry g(max_frames, least_shift);
    Vec<u64> area;
    TracedSampler sampler;
    if (!area.resize(g.bytes / 8 + 1) || !sampler.marks.resize(n_pages) || !sampler.samples.resize(Sampler::WINDOW))
        return PyErr_NoMemory();
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
