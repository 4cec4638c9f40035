// Room for tables: if the kernel gives no memory for a table, because the tmpfs or the cgroup is full, pages or objects
// are evicted for it.
#pragma once

#include "protocol/object_evict.h"

namespace bp {

// Evicts as many pages or objects as an extent holds, and gives their memory back to the kernel. Returns false if
// nothing could be given back.
inline bool give_kernel_some(Segment& s) {
    u64 os_pages = u64(s.g.extent_frames) * s.g.page_size / s.g.os_page;
    return map_objects(s) == 0 ? make_kernel_room(s, os_pages) : evict_pages(s, os_pages) != 0;
}

// Calls `grow`, which returns 0 or -errno, until the kernel has memory for it, or nothing more can be evicted.
template <class Grow>
int grow_with_room(Segment& s, Grow grow) {
    int r = grow();
    for (u32 tries = 0; is_out_of_memory(r) && tries < KERNEL_TRIES && give_kernel_some(s); tries++) r = grow();
    return r;
}

}  // namespace bp
