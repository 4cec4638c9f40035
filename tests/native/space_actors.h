// What the explorer's processes do with whole spaces: append to them, remove them, open the next one in their place.
#pragma once

#include "actors.h"

namespace bp {

// A page has the generation of its space, its number, and the number of the process that wrote it (0: none).
constexpr u64 image_of(u64 generation, u32 page, u32 writer) { return generation << 48 | u64(page) << 32 | writer; }

static const u64* stored_image(u64 generation, u32 page) {
    static u64 images[GENERATIONS][ENTRIES][WORDS];
    if (generation >= GENERATIONS) violation("more spaces than there were to be");
    for (u64& w : images[generation][page]) w = image_of(generation, page, 0);
    return images[generation][page];
}

static Place page_of(Segment& s, u64 generation, u32 page) { return {s.spaces[0], generation, 0, page}; }
static u64 open_generation(Segment& s) { return space_generation(s.spaces[0].span.load_seq_cst()); }
static bool exists(Segment& s, u64 generation, u32 page) {
    u64 span = s.spaces[0].span.load_seq_cst();
    return space_generation(span) == generation && page < space_pages(span);
}

// What a handle does before it touches an entry of a page. False: the space is gone.
static bool has_entry(Segment& s, u64 generation, u32 page) {
    if (s.keeps_entries) return true;
    while (!use_entry(s, page)) {
        if (plug_entries(s, s.spaces[0], page, 1, generation)) return false;
        if (open_generation(s) != generation) return false;
    }
    return true;
}

static void read_of_space(Segment& s, u64 generation, u32 page) {
    if (!exists(s, generation, page) || !has_entry(s, generation, page)) return;
    StoredHooks hooks{s, stored_image(generation, page)};
    u32 f;
    u8 appended = world.appended[generation][page];
    Status status = fetch_page(s, page_of(s, generation, page), Access{}, hooks, f);
    require(status, page);
    if (status != Status::OK) return;
    u64 first = page_words(s, f)[0];
    model::step();
    u64 last = page_words(s, f)[WORDS - 1];
    if (first != last) violation("page %u is mixed: %llx and %llx", page, (unsigned long long)first, (unsigned long long)last);
    if (first >> 32 != image_of(generation, page, 0) >> 32) violation("page %u of space %u shows %llx", page, u32(generation), (unsigned long long)first);
    if (appended && u8(first) == 0) violation("page %u shows what was there before it was appended", page);
    unpin(s, f);
}

// The same page, by an operation that could load more.
static void load_of_space(Segment& s, u64 generation, u32 page) {
    if (!exists(s, generation, page)) return;
    Claim claim{page};
    auto visit = [&](Claim& c) { unpin(s, c.frame); };
    StoredReads<decltype(visit)> reads{s, &claim, [](u32 p) { return static_cast<const void*>(stored_image(1, p)); }, visit};
    Place at = page_of(s, generation, page);
    ManyLoads<decltype(reads)> loads(s, at, Access{}, reads, &claim);
    loads.run(1, {1, 1});
}

// False: no frame is free, or the space has been removed.
static bool write_of_space(Segment& s, u64 generation, u32 page) {
    StoredHooks hooks{s, stored_image(generation, page)};
    Place at = page_of(s, generation, page);
    u32 f;
    Status status = own_page(s, at, Access{}, hooks, f);
    require(status, page);
    if (status != Status::OK) return false;
    u64 words[WORDS];
    for (u64& w : words) w = image_of(generation, page, u32(running) + 1);
    if (page_words(s, f)[0] >> 48 != generation) violation("page %u: a writer of space %u has another one's", page, u32(generation));
    status = publish_page(s, at, words, Image{true, false, 1}, hooks);
    if (status != Status::OK) end_write(s, page);
    return status == Status::OK;
}

static void replace_of_space(Segment& s, u64 generation, u32 page) {
    StoredHooks hooks{s, stored_image(generation, page)};
    u64 words[WORDS];
    for (u64& w : words) w = image_of(generation, page, u32(running) + 1);
    require(replace_page(s, page_of(s, generation, page), words, Image{true, false, 1}, false, hooks), page);
}

// The number that an append gets; NONE if it gets none.
static u32 allocate(Segment& s, u64 generation) {
    StoredHooks hooks{s, nullptr};
    u64 n;
    if (allocate_numbers(s, page_of(s, generation, 0), PAGES, 1, hooks, n) != Status::OK) return NONE;
    if (n >= PAGES) violation("an append has the number %u", u32(n));
    u8& holder = world.numbers[generation][n];
    if (holder) violation("page %u of space %u is appended by two", u32(n), u32(generation));
    holder = u8(running + 1);
    return u32(n);
}

static void append(Segment& s, u64 generation, u32 n) {
    StoredHooks hooks{s, stored_image(generation, n)};
    Place at = page_of(s, generation, n);
    u64 words[WORDS];
    for (u64& w : words) w = image_of(generation, n, u32(running) + 1);
    Status status = append_page(s, at, n, words, Image{true, false, 1}, hooks);
    require(status, n);
    if (status == Status::OK) {
        world.appended[generation][n] = u8(running + 1);
        return;
    }
    world.numbers[generation][n] = 0;
    return_numbers(at, n, n + 1);
}

// Afterwards the space has so many pages, and the last of them is there to be flushed.
static void grow(Segment& s, u64 generation, u32 pages) {
    StoredHooks hooks{s, stored_image(generation, pages - 1)};
    Status status = grow_space(s, page_of(s, generation, pages - 1), pages, true, hooks);
    require(status, pages - 1);
    if (status == Status::OK && !exists(s, generation, pages - 1) && open_generation(s) == generation) violation("the space was to have %u pages", pages);
}

static void remove_it(Segment& s, u64 generation) {
    if (world.opened == generation) world.opened = 0;
    if (!lock_directory(s)) return;
    u32 freed = 0;
    if (open_generation(s) == generation && s.spaces[0].is_live()) remove_space(s, 0, 1, freed);
    leave_directory(s);
}

// The generation of a space that was opened in the slot; 0 if the slot is still taken, or the opening `fails`.
static u64 open_another(Segment& s, bool fails = false) {
    if (!lock_directory(s)) return 0;
    u64 generation = 0;
    NewPlace at = find_place(s, PAGES, false);
    auto fill = [&](SpaceSlot&) {
        model::step();
        return !fails;
    };
    if (at.index != NONE && at.first != NONE && open_space(s, at, 1, PAGES, fill)) {
        generation = open_generation(s);
        world.opened = u8(generation);
    }
    leave_directory(s);
    return generation;
}

static void check_entries_gone(Segment& s) {
    model::require_untouched();
    if (s.header->leaving.load_relaxed()) violation("entries are left that are being given back");
    if (s.has_entry_chunk(0) == bool(world.entries_gone)) violation("entries have memory and are not counted, or the reverse");
    if (s.spaces[0].state.load_relaxed() == SPACE_FREE && !world.entries_gone) violation("entries are left that no space has, and nobody uses");
}

static void check_spaces(Segment& s) {
    if (!world.kills && s.spaces[0].is_closing()) violation("a closed space is left, and nobody died");
    lock_directory(s);
    s.removed_here.store_relaxed(1);
    leave_directory(s);
    if (!s.keeps_entries) check_entries_gone(s);
    if (world.entries_gone) return;
    SpaceSlot& slot = s.spaces[0];
    u32 state = slot.state.load_relaxed();
    u64 span = slot.span.load_relaxed(), generation = space_generation(span);
    if (state != SPACE_FREE && state != SPACE_LIVE) violation("the space's slot is left in state %u", state);
    if (span & CLOSED) violation("a closed space is left");
    if (world.opened && (state != SPACE_LIVE || generation != world.opened)) violation("space %u was opened, nobody removed it, and it is gone", world.opened);
    u32 owner = slot.owner.load_relaxed();
    if (state == SPACE_LIVE && owner && (s.clients[owner - 1].state.load_relaxed() == CLIENT_FREE || s.clients[owner - 1].generation.load_relaxed() != slot.owner_generation.load_relaxed()))
        violation("a private space is left of client %u, which is gone", owner);
    // Nobody flushes here. So a space that has become longer has a last page that will make its file as long.
    u64 pages = space_pages(span), last = s.entries[pages ? pages - 1 : 0].load_relaxed();
    if (state == SPACE_LIVE && pages > 1 && !(entry::state(last) == RESIDENT && last & entry::DIRTY)) violation("the space has %u pages, and no flush would make its file as long", u32(pages));
    for (u32 page = 0; page < ENTRIES; page++) {
        u64 e = s.entries[page].load_relaxed();
        bool resident = entry::state(e) == RESIDENT;
        u64 content = resident ? page_words(s, entry::frame(e))[0] : 0;
        if (state == SPACE_FREE && resident) violation("page %u is left of a space that was removed", page);
        if (resident && content >> 32 != image_of(generation, page, 0) >> 32) violation("page %u of space %u is left with %llx", page, u32(generation), (unsigned long long)content);
        u8 who = state == SPACE_LIVE ? world.appended[generation][page] : 0;
        if (who && page >= space_pages(span)) violation("page %u was appended, and the space has %u", page, u32(space_pages(span)));
        if (who && u8(content) != who) violation("page %u was appended by %u, and is lost", page, who);
    }
}

// ---- programs ------------------------------------------------------------------------------

static Program appends() {
    return [](Segment& s, Process&) {
        if (u32 n = allocate(s, 1); n != NONE) append(s, 1, n);
    };
}
static Program grows(u32 pages) {
    return [=](Segment& s, Process&) { grow(s, 1, pages); };
}
// What is written after the space has grown is not replaced by another client that makes it as long.
static Program grows_and_writes(u32 pages) {
    return [=](Segment& s, Process&) {
        grow(s, 1, pages);
        if (!exists(s, 1, pages - 1)) return;
        if (write_of_space(s, 1, pages - 1)) world.appended[1][pages - 1] = u8(running + 1);
    };
}
static Program reads_space(u32 page, int n = 1) {
    return [=](Segment& s, Process&) {
        for (int i = 0; i < n; i++) read_of_space(s, 1, page);
    };
}
// A handle that lets go of its entries afterwards.
static Program reads_and_lets_go(u32 page) {
    return [=](Segment& s, Process&) {
        read_of_space(s, 1, page);
        leave_block(s, s.g.entry_block(page));
    };
}
// The same of one that has read before, and knows that the entry has memory.
static Program reads_again_and_lets_go(u32 page) {
    return [=](Segment& s, Process&) {
        if (exists(s, 1, page) && has_entry(s, 1, page)) {
            StoredHooks hooks{s, stored_image(1, page)};
            u32 f;
            Status status = fetch_page(s, page_of(s, 1, page), Access{}, hooks, f);
            require(status, page);
            if (status == Status::OK) unpin(s, f);
            status = fetch_page(s, page_of(s, 1, page), Access{}, hooks, f);
            require(status, page);
            if (status == Status::OK) unpin(s, f);
        }
        leave_block(s, s.g.entry_block(page));
    };
}
// Looks at an entry without a handle.
static Program drops_of_space(u32 page) {
    return [=](Segment& s, Process&) {
        u32 freed = 0;
        drop_range(s, page, 1, freed);
    };
}
static Program loads_space(u32 page) {
    return [=](Segment& s, Process&) { load_of_space(s, 1, page); };
}
static Program writes_space(u32 page) {
    return [=](Segment& s, Process&) { write_of_space(s, 1, page); };
}
static Program replaces_space(u32 page) {
    return [=](Segment& s, Process&) { replace_of_space(s, 1, page); };
}
// The owner of a private space writes a page of it, and detaches: the space ends with its client.
static Program writes_and_detaches() {
    return [](Segment& s, Process&) {
        write_of_space(s, 1, 0);
        detach(s);
    };
}
static Program just_detaches() {
    return [](Segment& s, Process&) { detach(s); };
}
static Program just_lives() {
    return [](Segment&, Process&) { model::step(); };
}
static Program visits_directory() {
    return [](Segment& s, Process&) {
        if (lock_directory(s)) leave_directory(s);
    };
}
static Program removes() {
    return [](Segment& s, Process&) { remove_it(s, 1); };
}
static Program reopens() {
    return [](Segment& s, Process&) {
        remove_it(s, 1);
        open_another(s);
    };
}
static Program reopens_and_reads() {
    return [](Segment& s, Process&) {
        remove_it(s, 1);
        if (u64 generation = open_another(s)) read_of_space(s, generation, 0);
    };
}
// Another space cannot be opened, and then it can.
static Program fails_to_reopen() {
    return [](Segment& s, Process&) {
        remove_it(s, 1);
        open_another(s, true);
        if (u64 generation = open_another(s)) read_of_space(s, generation, 0);
    };
}
// The second space has entries with memory and pages from the first, the third has them from the second.
static Program reopens_twice() {
    return [](Segment& s, Process&) {
        remove_it(s, 1);
        u64 generation = open_another(s);
        if (!generation) return;
        read_of_space(s, generation, 0);
        remove_it(s, generation);
        if (u64 last = open_another(s)) read_of_space(s, last, 0);
    };
}
// Two numbers are taken before the first page is there, as by two threads.
static Program reopens_and_appends() {
    return [](Segment& s, Process&) {
        remove_it(s, 1);
        u64 generation = open_another(s);
        if (!generation) return;
        u32 one = allocate(s, generation), two = allocate(s, generation);
        if ((one == NONE || two == NONE) && open_generation(s) == generation) violation("numbers of space %u are gone that nobody has taken", u32(generation));
        if (one != NONE) append(s, generation, one);
        if (two != NONE) append(s, generation, two);
    };
}

}  // namespace bp
