// The explorer's kernel: what core/os/prim.h asks of Linux, as a model whose whole
// state lies in the explored world. A step may be taken before every call.
#pragma once

#include <cstddef>
#include <cstring>
#include <new>
#include <sys/types.h>

#include "os/atomic.h"

namespace bp::model {
void step();
int lock_byte(int fd, long at);
void unlock_byte(int fd, long at);
bool byte_is_locked(int fd, long at);
int plug(int fd, u64 offset, u64 bytes);
void make_huge(const void* at, u64 bytes);
void punch(int fd, u64 offset, u64 bytes);
void write_object(u64 offset, const void* from, u64 bytes);
int futex_wait(const void* word, u32 expected);
void require_memory(const void* at);
u32 process_id();
u64 coarse_ns();
bool holds(int description);
bool lives(u32 pid);
}  // namespace bp::model

namespace bp::prim {

// A process of the explorer has one thread, and a number that only grows would make every state a new one.
struct Tally {
    void add() {}
    u64 value() const { return 0; }
};
// Never the same twice: a lock that names a process is held by it, because here a process has one thread and no word is
// damaged.
struct LockTally {
    void add() {}
    u64 value() const {
        static u64 n;
        return ++n;
    }
};
constexpr int SPINS = 1;

// Memory that a process asks for belongs to its state: explore.cpp has the operators.
inline void* allocate(size_t bytes) { return ::operator new(bytes); }
inline void deallocate(void* at) { ::operator delete(at); }

inline u64 coarse_ns() { return model::coarse_ns(); }  // a value that expires at 1 has expired
inline u64 now_ns() { return 0; }
inline u64 boot_ns() { return 0; }
inline u64 realtime_ns() { return 0; }
inline u32 process_id() { return model::process_id(); }
inline u64 start_time() { return process_id(); }
inline u64 namespaces() { return 0; }
inline bool share_pids(u64, u64) { return true; }
inline bool share_times(u64, u64) { return true; }
constexpr u64 ANY_START = ~u64(0);
inline void relax() {}
inline void yield() { model::step(); }
inline void nap(u64) {}

// A description has the mark as long as this process holds it; and a process has the segment mapped while it lives.
inline bool has_mark(int fd, u64) { return model::holds(fd); }
inline bool is_file(int, u64, u64) { return true; }
inline bool still_maps(u32 pid, u64 start, u64, u64, bool unsaid) {
    return pid && model::lives(pid) && (start ? start == pid : unsaid);
}

inline int futex_wait(const void* word, u32 expected, u64) { return model::futex_wait(word, expected); }
inline void futex_wake_all(const void*) {}  // a waiter wakes when its word has changed
inline int lock_byte(int fd, off_t at) {
    model::step();
    return model::lock_byte(fd, long(at));
}
inline int unlock_byte(int fd, off_t at) {
    model::step();
    model::unlock_byte(fd, long(at));
    return 0;
}
inline int byte_is_locked(int fd, off_t at) {
    model::step();
    return model::byte_is_locked(fd, long(at));
}
constexpr u64 HUGE_BYTES = 2 << 20;
inline void use_huge_pages(void*, u64) {}  // not part of the protocol
inline void use_small_pages(void*, u64) {}
inline void make_huge(void* at, u64 bytes) {
    model::step();
    model::make_huge(at, bytes);
}
inline int plug(int fd, u64 offset, u64 bytes) {
    model::step();
    return model::plug(fd, offset, bytes);
}
inline int punch(int fd, u64 offset, u64 bytes) {
    model::step();
    model::punch(fd, offset, bytes);
    return 0;
}
// The area of the objects is a part of the world: explore.cpp maps it.
inline void close_file(int) {}
inline int reopen(int fd) { return fd; }
enum class Access { ROOM, READ, WRITE };
inline u8* map_area(int, u64, u64, Access) { return nullptr; }
inline void unmap_area(const u8*, u64) {}
inline bool has_bytes(int, u64) { return true; }
inline int extend(int, u64) { return 0; }
inline int write_at(int, const void* from, size_t bytes, u64 offset) {
    model::step();
    model::write_object(offset, from, bytes / 2);
    model::step();
    model::write_object(offset + bytes / 2, static_cast<const u8*>(from) + bytes / 2, bytes - bytes / 2);
    return 0;
}
inline int remove(void*, u64 bytes, int fd, u64 offset) { return punch(fd, offset, bytes); }

// Half of a page, a step, the other half: a reader that comes too early sees a mixture.
inline void copy_page(void* to, const void* from, size_t bytes) {
    model::require_memory(to);
    model::require_memory(from);
    memcpy(to, from, bytes / 2);
    model::step();
    memcpy(static_cast<char*>(to) + bytes / 2, static_cast<const char*>(from) + bytes / 2, bytes - bytes / 2);
}

}  // namespace bp::prim
