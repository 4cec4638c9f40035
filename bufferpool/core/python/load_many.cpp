// The absent pages of one call of read_many, pin_many or prefetch, loaded together from a file (protocol/load_many.h).
#include "python/loading.h"

#include "os/transfers.h"
#include "protocol/load_many.h"

namespace bp {

constexpr u32 RUN_BYTES = 256 << 10;  // neighbours read by one call
constexpr u32 HELD_BYTES = 4 << 20;   // pages that are being read at one time

namespace {

struct Work {
    Claim claims[MANY_PAGES];
    u32 published[MANY_PAGES], publications = 0;  // which of them are there, in order
    u32 wanted_by[MANY_PAGES];  // the caller's number of each
    iovec to[MANY_PAGES];
    bool read[MANY_PAGES];
    Transfers transfers;
};

// The reads of a file space, and what becomes of the pages.
struct FileLoads {
    Segment& s;
    SpaceObject* sp;
    Work& w;
    Together& pages;
    u64 since_ns = prim::now_ns();

    bool room() const { return w.transfers.room(); }

    void begin(u32 first, u32 count) {
        u64 page_no = w.claims[first].page - sp->first_entry, stored = space_slot(sp).stored.load_acquire();
        u32 in_file = stored <= page_no ? 0 : u32(std::min<u64>(count, stored - page_no));
        for (u32 i = first; i < first + count; i++) {
            u8* to = s.page_data(w.claims[i].frame);
            w.to[i] = {to, s.g.page_size};
            w.read[i] = i >= first + in_file;
            if (w.read[i]) memset(to, 0, s.g.page_size);  // beyond what the file has
        }
        u32 now = s.tick();
        bool ours = sp->checked.load_relaxed() == now || prim::is_file(sp->fd, sp->device, sp->inode);
        sp->checked.store_relaxed(now);
        if (ours && in_file == count)
            w.transfers.begin({false, sp->fd, &w.to[first], count, page_no << s.g.page_shift,
                               u32(prim::read_flags(sp->caching))}, first);
        else w.transfers.begin_done(first, count, 0);
    }

    // What a read that failed or ended early leaves, the caller reads page by page: an error is that of one page.
    bool ended(u32& first, u32& count) {
        Transfer t;
        if (!w.transfers.ended(t)) return false;
        if (sp->caching == prim::DROPPED && t.what.to)
            prim::drop_cache(sp->fd, t.what.offset, u64(t.what.n) << s.g.page_shift);
        first = t.first;
        count = t.what.n;
        for (u32 i = first; i < first + count; i++) {
            if (w.read[i]) continue;
            w.read[i] = t.got >= ssize_t(u64(i + 1 - first) << s.g.page_shift);
            if (w.read[i]) s.counters().load_bytes.add_relaxed(s.g.page_size);
        }
        return true;
    }

    bool is_read(u32 i) const { return w.read[i]; }

    void published(u32 i) {
        s.counters().loads.add_relaxed(1);
        s.took(LATENCY_LOAD, since_ns);
        w.published[w.publications++] = i;
        pages.loaded(w.wanted_by[i], w.claims[i].frame);
    }
};

}  // namespace

// In the order of their pages, each once.
static u32 sort_absent(SpaceObject* sp, const Together& pages, Work& w) {
    Segment& s = *sp->seg->s;
    u32 order[MANY_PAGES], n = 0;
    for (u32 i = 0; i < pages.count(); i++)
        if (entry::state(s.entries[entry_of(sp, pages.number(i))].load_acquire()) == ABSENT) order[n++] = i;
    auto before = [&](u32 a, u32 b) {
        return pages.number(a) != pages.number(b) ? pages.number(a) < pages.number(b) : a < b;
    };
    std::sort(order, order + n, before);
    u32 kept = 0;
    for (u32 i = 0; i < n; i++) {
        if (i && pages.number(order[i]) == pages.number(order[i - 1])) continue;
        w.claims[kept] = {entry_of(sp, pages.number(order[i]))};
        w.wanted_by[kept++] = order[i];
    }
    return kept;
}

static void load_from_file(SpaceObject* sp, Access access, Together& pages, Work& w) {
    Segment& s = *sp->seg->s;
    u32 n = sort_absent(sp, pages, w);
    if (n < 2) return;
    FileLoads loads{s, sp, w, pages};
    Place at = place_of(sp, 0);
    ManyLoads<FileLoads> many(s, at, access, loads, w.claims);
    u32 run = std::max(1u, RUN_BYTES >> s.g.page_shift), held = std::max(1u, HELD_BYTES >> s.g.page_shift);
    many.run(n, {run, std::min(held, std::max(1u, s.header->budget_frames.load_relaxed() / 8))});
}

void Together::loaded(u32 i, u32 frame) {
    Segment& s = *sp_->seg->s;
    frames_[i] = frame;
    if (copies_)
        memcpy(copies_ + (u64(first_ + i) << s.g.page_shift), s.page_data(frame), s.g.page_size);
    if (!keeps_) unpin(s, frame);
}

void Together::load_from(npy_intp first) {
    first_ = first;
    end_ = std::min<npy_intp>(n_, first + MANY_PAGES);
    std::fill_n(frames_, count(), NONE);
    if (sp_->fd < 0 || count() < 2) return;
    if (!may_work(sp_->seg)) return PyErr_Clear();  // the load of the first page raises it
    Work* w = make<Work>();
    if (!w) return;
    {
        Released unlocked(sp_->seg);
        load_from_file(sp_, access_, *this, *w);
    }
    // With the interpreter's lock: see Atomic::add_owned.
    Segment& s = *sp_->seg->s;
    if (access_.counts) s.my_uses[sp_->index].misses.add_owned(w->publications);
    for (u32 i = 0; i < w->publications; i++)
        if (ADVISES && !access_.ahead()) record_load(s, w->claims[w->published[i]].page, access_.kind());
    unmake(w);
}

Together::~Together() {
    for (u32 i = 0; keeps_ && i < count(); i++)
        if (frames_[i] != NONE) drop_pin(sp_->seg, frames_[i]);
}

}  // namespace bp
