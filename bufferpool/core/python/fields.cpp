// The offset of each field of a segment, for tools and tests that read its bytes
// (the fuzzer damages them), so that layout.h is not repeated elsewhere.
#include "layout/objects.h"
#include "python/py.h"

namespace bp {

struct Field {
    const char* name;  // "Struct", or "Struct.field"
    size_t offset, size;
};

#define STRUCT(type) {#type, 0, sizeof(type)}
#define FIELD(type, name) {#type "." #name, offsetof(type, name), sizeof(type::name)}
#define INNER(type, name, inner) {#type "." #name, offsetof(type, name), sizeof(inner)}

// clang-format off
constexpr Field fields[] = {
    STRUCT(Header),
    FIELD(Header, magic), FIELD(Header, version), FIELD(Header, header_bytes), FIELD(Header, layout_sum),
    FIELD(Header, uuid), FIELD(Header, created_ns),
    FIELD(Header, geometry), FIELD(Header, geometry_sum),
    FIELD(Header, budget_frames), FIELD(Header, frames_ready), FIELD(Header, policy_tag), FIELD(Header, durable_lsn),
    INNER(Header, memory.word, u32), INNER(Header, directory.word, u32), INNER(Header, growth.word, u32),
    INNER(Header, advice.word, u32),
    FIELD(Header, min_frames), FIELD(Header, most_frames), FIELD(Header, asked_frames), FIELD(Header, advice_frames),
    FIELD(Header, checkpoint_lsn), FIELD(Header, checkpoint_ns), FIELD(Header, refused_clients),
    FIELD(Header, events_posted), FIELD(Header, steward), FIELD(Header, steward_ns), FIELD(Header, worth),
    FIELD(Header, events), FIELD(Header, spaces_ready), FIELD(Header, long_texts), FIELD(Header, removals),
    FIELD(Header, leaving),
    FIELD(Header, more_banks), FIELD(Header, slots_ready), FIELD(Header, slots_asked),
    FIELD(Header, dropped_aside), FIELD(Header, resident),
    INNER(Header, objects.word, u32), FIELD(Header, object_bytes),
    FIELD(Header, objects_made), FIELD(Header, loan),
    FIELD(Header, other_sizes), FIELD(Header, whole_budget_bytes), FIELD(Header, home),
    INNER(Header, policy.now, u32), INNER(Header, policy.hev, u32), INNER(Header, policy.frames, u32),
    INNER(Header, policy.cold_target, u32), INNER(Header, policy.aside, u32), INNER(Header, policy.mode, u32),
    INNER(Header, policy.cold.head, u32), INNER(Header, policy.cold.count, u32),
    INNER(Header, policy.cold.gaps, u32), INNER(Header, policy.cold.capacity, u32),
    INNER(Header, policy.hot.head, u32), INNER(Header, policy.hot.count, u32), INNER(Header, policy.hot.gaps, u32),
    INNER(Header, policy.hot.capacity, u32),
    FIELD(Header, shares), FIELD(Header, unlinked), FIELD(Header, kept), FIELD(Header, folded), FIELD(Header, totals),

    STRUCT(Geometry),
    FIELD(Geometry, page_size), FIELD(Geometry, page_shift), FIELD(Geometry, os_page),
    FIELD(Geometry, extent_frames), FIELD(Geometry, huge_pages), FIELD(Geometry, max_frames),
    FIELD(Geometry, max_clients), FIELD(Geometry, stripe_clients), FIELD(Geometry, guests), FIELD(Geometry, max_pages),
    FIELD(Geometry, clients_at), FIELD(Geometry, events_at), FIELD(Geometry, duel_at), FIELD(Geometry, advice_at),
    FIELD(Geometry, spaces_at),
    FIELD(Geometry, texts_at), FIELD(Geometry, long_texts_at), FIELD(Geometry, uses_at), FIELD(Geometry, use_row_bytes),
    FIELD(Geometry, entries_at), FIELD(Geometry, frames_at),
    FIELD(Geometry, pins_at), FIELD(Geometry, stripe_bytes), FIELD(Geometry, sets_at), FIELD(Geometry, set_bytes),
    FIELD(Geometry, rings_at), FIELD(Geometry, ring_bytes), FIELD(Geometry, tops_at), FIELD(Geometry, data_at),
    FIELD(Geometry, total_bytes),

    STRUCT(Client),
    FIELD(Client, state), FIELD(Client, pid), FIELD(Client, start_time), FIELD(Client, namespaces),
    FIELD(Client, attached_ns), FIELD(Client, generation),
    FIELD(Client, folded), FIELD(Client, unlocked), FIELD(Client, ending), FIELD(Client, name), FIELD(Client, counters),
    FIELD(Client, intents), FIELD(Client, groups),
    FIELD(Client, snapshot_lsns), FIELD(Client, snapshot_counts), FIELD(Client, blocks), FIELD(Client, looks),
    FIELD(Client, failed), FIELD(Client, failures),

    STRUCT(Intent),
    FIELD(Intent, op), FIELD(Intent, page), FIELD(Intent, frame), FIELD(Intent, old), FIELD(Intent, victim),
    FIELD(Intent, since), FIELD(Intent, waits),

    STRUCT(SpaceSlot),
    FIELD(SpaceSlot, span), FIELD(SpaceSlot, allocated), FIELD(SpaceSlot, stored), FIELD(SpaceSlot, entries_ready),
    FIELD(SpaceSlot, state), FIELD(SpaceSlot, kind), FIELD(SpaceSlot, flags), FIELD(SpaceSlot, owner),
    FIELD(SpaceSlot, first_entry), FIELD(SpaceSlot, max_pages), INNER(SpaceSlot, flush_lock.word, u32),
    FIELD(SpaceSlot, long_texts),
    FIELD(SpaceSlot, flush_open), FIELD(SpaceSlot, flush_since_ns),
    FIELD(SpaceSlot, limit), FIELD(SpaceSlot, reserve),
    FIELD(SpaceSlot, device), FIELD(SpaceSlot, inode), FIELD(SpaceSlot, size_bytes), FIELD(SpaceSlot, mtime_ns),
    FIELD(SpaceSlot, ctime_ns), FIELD(SpaceSlot, doubt),
    FIELD(SpaceSlot, owner_generation), FIELD(SpaceSlot, version), FIELD(SpaceSlot, sum),
    FIELD(SpaceSlot, name_sum), FIELD(SpaceSlot, path_sum),
    FIELD(SpaceSlot, opened_ns), FIELD(SpaceSlot, hits_before), FIELD(SpaceSlot, misses_before),
    FIELD(SpaceSlot, load_failures), FIELD(SpaceSlot, flush_failures),

    STRUCT(SpaceTexts),
    FIELD(SpaceTexts, name), FIELD(SpaceTexts, path),

    STRUCT(LongTexts),
    FIELD(LongTexts, name), FIELD(LongTexts, path),

    STRUCT(Uses),
    FIELD(Uses, hits), FIELD(Uses, misses),

    STRUCT(FrameSlot),
    FIELD(FrameSlot, word), FIELD(FrameSlot, lsn), FIELD(FrameSlot, touched), FIELD(FrameSlot, count),
    FIELD(FrameSlot, tag),
    FIELD(FrameSlot, seen), FIELD(FrameSlot, mark), FIELD(FrameSlot, rec_lsn),

    STRUCT(Failure),
    FIELD(Failure, about), FIELD(Failure, pages), FIELD(Failure, text),

    STRUCT(Event),
    FIELD(Event, number), FIELD(Event, time_ns), FIELD(Event, bytes), FIELD(Event, from_frames),
    FIELD(Event, to_frames),
    FIELD(Event, kind), FIELD(Event, reason), FIELD(Event, client), FIELD(Event, origin), FIELD(Event, value),
    FIELD(Event, page),

    STRUCT(Advice),
    FIELD(Advice, shift), FIELD(Advice, epoch), FIELD(Advice, unit), FIELD(Advice, frames), FIELD(Advice, first_free),
    FIELD(Advice, resets), FIELD(Advice, halvings), FIELD(Advice, references), FIELD(Advice, expected),
    FIELD(Advice, missed),
    FIELD(Advice, missed_by_pool), FIELD(Advice, earlier), FIELD(Advice, later), FIELD(Advice, shadow),

    STRUCT(Duel),
    FIELD(Duel, frames), FIELD(Duel, shift), FIELD(Duel, first_free), FIELD(Duel, doublings), FIELD(Duel, misses),
    FIELD(Duel, hits_taken), FIELD(Duel, hits_added), FIELD(Duel, hits), FIELD(Duel, lead), FIELD(Duel, pool),
    FIELD(Duel, rings), FIELD(Duel, index), FIELD(Duel, rows),

    STRUCT(ObjectEntry),
    FIELD(ObjectEntry, word), FIELD(ObjectEntry, hash), FIELD(ObjectEntry, place), FIELD(ObjectEntry, value),
    FIELD(ObjectEntry, expires_ns), FIELD(ObjectEntry, next), FIELD(ObjectEntry, key_bytes), FIELD(ObjectEntry, used),
    FIELD(ObjectEntry, cost), FIELD(ObjectEntry, owner), FIELD(ObjectEntry, cache), FIELD(ObjectEntry, uses),
    FIELD(ObjectEntry, unused),

    STRUCT(ObjectHead),
    FIELD(ObjectHead, word), FIELD(ObjectHead, evicted),

    STRUCT(ObjectBlock),
    FIELD(ObjectBlock, word), FIELD(ObjectBlock, at), FIELD(ObjectBlock, memory), FIELD(ObjectBlock, live),
    FIELD(ObjectBlock, filled), FIELD(ObjectBlock, next),

    STRUCT(CacheUses),
    FIELD(CacheUses, hits), FIELD(CacheUses, misses), FIELD(CacheUses, puts), FIELD(CacheUses, loads),
    FIELD(CacheUses, load_failures), FIELD(CacheUses, waits), FIELD(CacheUses, superseded), FIELD(CacheUses, refused),

    STRUCT(CacheSlot),
    FIELD(CacheSlot, state), FIELD(CacheSlot, number), FIELD(CacheSlot, count), FIELD(CacheSlot, jitter),
    FIELD(CacheSlot, bytes), FIELD(CacheSlot, limit), FIELD(CacheSlot, reserve), FIELD(CacheSlot, ttl_ns),
    FIELD(CacheSlot, opened_ns), FIELD(CacheSlot, evictions), FIELD(CacheSlot, before), FIELD(CacheSlot, name),

    STRUCT(ObjectsHeader),
    FIELD(ObjectsHeader, log_shift), FIELD(ObjectsHeader, entries_ready), FIELD(ObjectsHeader, blocks_ready),
    FIELD(ObjectsHeader, heads_ready), FIELD(ObjectsHeader, buckets), FIELD(ObjectsHeader, entries_high),
    FIELD(ObjectsHeader, blocks_high), FIELD(ObjectsHeader, free_entries), FIELD(ObjectsHeader, open),
    FIELD(ObjectsHeader, live), FIELD(ObjectsHeader, clock), FIELD(ObjectsHeader, to_sweep),
    FIELD(ObjectsHeader, data_used),
    FIELD(ObjectsHeader, used), FIELD(ObjectsHeader, log_blocks), FIELD(ObjectsHeader, log_live),
    FIELD(ObjectsHeader, free_full), FIELD(ObjectsHeader, free_empty), FIELD(ObjectsHeader, caches),
    FIELD(ObjectsHeader, rows_ready), FIELD(ObjectsHeader, sampled),
};
// clang-format on

// Two builds with the same LAYOUT_VERSION may differ in the places and the sizes of the fields, because the version is
// raised by hand. So a segment has the sum of those of the build that made it.
constexpr u64 sum_of_fields() {
    u64 h = FNV_START;
    for (const Field& f : fields) {
        for (const char* c = f.name; *c; c++) h = (h ^ u8(*c)) * 0x100000001b3;
        h = (h ^ f.offset) * 0x100000001b3;
        h = (h ^ f.size) * 0x100000001b3;
    }
    for (u64 n : {u64(MAX_SPACES), u64(EVENTS), u64(CACHES), u64(STRIPES), u64(CLIENT_BANK)})
        h = (h ^ n) * 0x100000001b3;
    return h;
}
constexpr u64 LAYOUT_SUM = sum_of_fields();
u64 layout_sum() { return LAYOUT_SUM; }

// fields() -> {"Header": (0, bytes), "Header.magic": (offset, bytes), …}
PyObject* core_fields(PyObject*, PyObject*) {
    PyObject* out = PyDict_New();
    for (const Field& f : fields) {
        PyObject* where = out ? Py_BuildValue("(nn)", Py_ssize_t(f.offset), Py_ssize_t(f.size)) : nullptr;
        if (!where || PyDict_SetItemString(out, f.name, where) < 0) Py_CLEAR(out);
        Py_XDECREF(where);
    }
    return out;
}

}  // namespace bp
