// All system calls of the core. A function that can fail returns 0 (or a count) or -errno, unless its comment says
// otherwise. None accesses the segment's memory, except as its comment says.
#pragma once

#ifdef BP_EXPLORE
#include "prim_model.h"  // the explorer's kernel
#else

#include <cerrno>
#include <climits>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <linux/futex.h>
#include <csignal>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#include "os/atomic.h"

#ifndef F_OFD_GETLK
#define F_OFD_GETLK 36
#define F_OFD_SETLK 37
#endif

namespace bp::prim {

// Memory of this process, or null; only heap.h calls it.
inline void* allocate(size_t bytes) { return malloc(bytes); }
inline void deallocate(void* at) { free(at); }

// Monotonic clock, a few milliseconds coarse, about 5 ns a call (vDSO).
inline u64 coarse_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return u64(t.tv_sec) * 1'000'000'000u + u64(t.tv_nsec);
}

inline u64 now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return u64(t.tv_sec) * 1'000'000'000u + u64(t.tv_nsec);
}

// The processor time of this thread.
inline u64 thread_ns() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return u64(t.tv_sec) * 1'000'000'000u + u64(t.tv_nsec);
}

// Reads a small file of /proc as text, as much as fits. False when it cannot be read.
template <size_t N>
bool read_proc(const char* path, char (&text)[N]) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    ssize_t n = read(fd, text, N - 1);
    close(fd);
    if (n <= 0) return false;
    text[n] = 0;
    return true;
}

// The time that this thread has waited for a processor since it began (Documentation/scheduler/sched-stats.rst).
// 0 if the kernel does not give it. A call takes some microseconds.
inline u64 delayed_ns() {
    char text[96];
    if (!read_proc("/proc/thread-self/schedstat", text)) return 0;
    const char* second = strchr(text, ' ');
    return second ? strtoull(second, nullptr, 10) : 0;
}

// A monotonic clock that also runs while the machine is suspended; all processes read the same values.
inline u64 boot_ns() {
    timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return u64(t.tv_sec) * 1'000'000'000u + u64(t.tv_nsec);
}

// A counter that several threads of this process increase.
class Tally {
    u64 n_ = 0;

public:
    void add() { __atomic_fetch_add(&n_, 1, __ATOMIC_SEQ_CST); }
    u64 value() const { return __atomic_load_n(&n_, __ATOMIC_SEQ_CST); }
};
using LockTally = Tally;  // of the uses of a lock, which the explorer does not count

constexpr int SPINS = 300;  // tries before a wait enters the kernel

inline u32 process_id() { return u32(getpid()); }
inline bool is_main_thread() { return getpid() == pid_t(syscall(SYS_gettid)); }
inline void yield() { sched_yield(); }
inline void nap(u64 ns) {
    timespec t{time_t(ns / 1'000'000'000u), long(ns % 1'000'000'000u)};
    nanosleep(&t, nullptr);
}

// Copies a page into or out of a frame.
inline void copy_page(void* to, const void* from, size_t bytes) { memcpy(to, from, bytes); }

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Sleeps while *word is `expected`, at most `timeout_ns`. Spurious returns are
// allowed: callers read the word again. The futex is shared between processes.
inline int futex_wait(const void* word, u32 expected, u64 timeout_ns) {
    timespec t{time_t(timeout_ns / 1'000'000'000u), long(timeout_ns % 1'000'000'000u)};
    return syscall(SYS_futex, word, FUTEX_WAIT, expected, &t, nullptr, 0) == 0 ? 0 : -errno;
}

inline void futex_wake_all(const void* word) {
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

// ---- does this descriptor still refer to our file? ----------------------------------------------
//
// Some programs close all descriptors that they do not know (a daemon does), and ours among them. The number may then
// refer to another file when we use it. So each open file description of ours is marked by its file offset, which
// nothing else here uses: the mark is a number that no other description has as its offset.

inline int set_mark(int fd, u64 mark) { return lseek(fd, off_t(mark), SEEK_SET) < 0 ? -errno : 0; }
inline bool has_mark(int fd, u64 mark) { return lseek(fd, 0, SEEK_CUR) == off_t(mark); }
inline u64 new_mark() { return u64(1) << 61 | now_ns(); }

inline bool is_file(int fd, u64 device, u64 inode) {
    struct stat st;
    return fstat(fd, &st) == 0 && u64(st.st_dev) == device && u64(st.st_ino) == inode;
}

// Gives a description another descriptor number, above those that programs close in loops, and never 0, 1 or 2. The
// old number is closed. Returns the new number, or -errno.
inline int move_up(int fd) {
    if (fd < 0) return fd;
    rlimit limit{};
    getrlimit(RLIMIT_NOFILE, &limit);
    int most = limit.rlim_cur < 1024 ? int(limit.rlim_cur) : 1024;
    int up = fcntl(fd, F_DUPFD_CLOEXEC, most - most / 8);
    if (up < 0 && fd > 2) return fd;
    if (up < 0) up = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    int error = errno;
    close(fd);
    return up >= 0 ? up : -error;
}

inline struct flock one_byte(short type, off_t at) {
    struct flock l {};
    l.l_type = type;
    l.l_whence = SEEK_SET;
    l.l_start = at;
    l.l_len = 1;
    return l;
}

// Write lock on one byte for this open file description. 0, or -EAGAIN when
// another description holds it. Never blocks.
inline int lock_byte(int fd, off_t at) {
    struct flock l = one_byte(F_WRLCK, at);
    if (fcntl(fd, F_OFD_SETLK, &l) == 0) return 0;
    return errno == EACCES ? -EAGAIN : -errno;
}

inline int unlock_byte(int fd, off_t at) {
    struct flock l = one_byte(F_UNLCK, at);
    return fcntl(fd, F_OFD_SETLK, &l) == 0 ? 0 : -errno;
}

// 1 when another description holds the byte, 0 when none does.
inline int byte_is_locked(int fd, off_t at) {
    struct flock l = one_byte(F_WRLCK, at);
    if (fcntl(fd, F_OFD_GETLK, &l) != 0) return -errno;
    return l.l_type != F_UNLCK;
}

// Allocates memory for a byte range of the segment: afterwards an access cannot raise
// SIGBUS. -ENOSPC when the tmpfs is full, -ENOMEM for the memory cgroup.
inline int plug(int fd, u64 offset, u64 bytes) {
    for (int tries = 0; tries < 100; tries++) {
        if (fallocate(fd, FALLOC_FL_KEEP_SIZE, off_t(offset), off_t(bytes)) == 0) return 0;
        if (errno != EINTR) return -errno;
    }
    return -EINTR;
}

// Gives a byte range back by descriptor. It reads as zeros afterwards.
inline int punch(int fd, u64 offset, u64 bytes) {
    return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, off_t(offset), off_t(bytes)) == 0 ? 0 : -errno;
}

// Gives a mapped range back: MADV_REMOVE (madvise(2)), or by descriptor where madvise refuses: EINVAL for a
// mapping that is locked in memory, EPERM or ENOSYS in a sandbox.
inline int remove(void* address, u64 bytes, int fd, u64 offset) {
    return madvise(address, bytes, MADV_REMOVE) == 0 ? 0 : punch(fd, offset, bytes);
}

// Reads exactly `bytes` at `offset`, or fewer at the end of the file. The
// destination must be plugged. Returns the count or -errno.
inline ssize_t read_at(int fd, void* to, size_t bytes, u64 offset, int flags = 0) {
    size_t got = 0;
    while (got < bytes) {
        iovec rest{static_cast<char*>(to) + got, bytes - got};
        ssize_t n = flags ? preadv2(fd, &rest, 1, off_t(offset + got), flags)
                          : pread(fd, rest.iov_base, rest.iov_len, off_t(offset + got));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -errno;
        if (n == 0) break;
        got += size_t(n);
    }
    return ssize_t(got);
}

// ---- many reads and writes at once -----------------------------------------------

// Reads or writes the vectors by one call, which may transfer less. Returns the count or -errno.
inline ssize_t transfer(bool write, int fd, const iovec* to, u32 n, u64 offset, u32 rw_flags) {
    for (;;) {
        ssize_t got = write ? pwritev2(fd, to, int(n), off_t(offset), int(rw_flags))
                            : preadv2(fd, to, int(n), off_t(offset), int(rw_flags));
        if (got >= 0 || errno != EINTR) return got >= 0 ? got : -errno;
    }
}

// A value for each thread, destroyed with the thread. (A thread_local object would end the process if there were no
// memory to register its destructor.)
class PerThread {
    pthread_key_t key_;
    bool made_;

public:
    explicit PerThread(void (*end)(void*)) : made_(pthread_key_create(&key_, end) == 0) {}
    void* value() const { return made_ ? pthread_getspecific(key_) : nullptr; }
    bool set(void* to) const { return made_ && pthread_setspecific(key_, to) == 0; }
};

// io_uring_params, of linux/io_uring.h.
struct RingParams {
    u32 entries, result_entries, flags, thread_cpu, thread_idle, features, wq_fd, unused[3];
    struct {
        u32 head, tail, mask, entries, flags, dropped, array, unused;
        u64 address;
    } requests;
    struct {
        u32 head, tail, mask, entries, overflow, results, flags, unused;
        u64 address;
    } results;
};
static_assert(sizeof(RingParams) == 120);

// A new io_uring: its descriptor, or -errno.
inline int ring_setup(u32 entries, RingParams& params) {
    constexpr long SETUP = 425;  // on every architecture
    long fd = syscall(SETUP, entries, &params);
    return fd >= 0 ? int(fd) : -errno;
}

// Registers an io_uring with this thread, which then needs no descriptor for it. Returns its index, or -errno.
inline int ring_register(int fd) {
    constexpr long REGISTER = 427;
    constexpr u32 RING_FDS = 20;
    struct {
        u32 offset, unused;
        u64 data;
    } what{~0u, 0, u64(fd)};
    long r = syscall(REGISTER, fd, RING_FDS, &what, 1);
    return r == 1 ? int(what.offset) : r < 0 ? -errno : -EINVAL;
}

// Submits requests, and waits for `wait` results. Returns how many requests the kernel has taken, or -errno.
inline int ring_enter(int ring, u32 submit, u32 wait) {
    constexpr long ENTER = 426;
    constexpr u32 GET_EVENTS = 1, REGISTERED = 1 << 4;
    long r = syscall(ENTER, ring, submit, wait, GET_EVENTS | REGISTERED, nullptr, 0);
    return r >= 0 ? int(r) : -errno;
}

// Maps a part of an io_uring; null if it fails. A forked child does not inherit the mapping.
inline u8* map_ring(int fd, u64 bytes, u64 offset) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, off_t(offset));
    if (at == MAP_FAILED) return nullptr;
    madvise(at, bytes, MADV_DONTFORK);
    return static_cast<u8*>(at);
}
inline void unmap_ring(u8* at, u64 bytes) { munmap(at, bytes); }
inline void close_ring(int fd) { close(fd); }

// Starts a detached thread with all signals blocked. 0 or -errno.
inline int start_thread(void* (*run)(void*), void* with) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_attr_t attributes;
    if (int r = pthread_attr_init(&attributes)) return -r;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 128 << 10);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    int r = pthread_create(&thread, &attributes, run, with);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_attr_destroy(&attributes);
    return -r;
}

// How a file is read, as far as the kernel's page cache is concerned: stores/base.py chooses.
enum Caching : u32 { KERNEL = 0, DIRECT = 1, UNCACHED = 2, DROPPED = 3 };
inline int read_flags(u32 caching) {
    constexpr int DONT_CACHE = 0x80;  // RWF_DONTCACHE
    return caching == UNCACHED ? DONT_CACHE : 0;
}
inline void drop_cache(int fd, u64 offset, u64 bytes) {
    posix_fadvise(fd, off_t(offset), off_t(bytes), POSIX_FADV_DONTNEED);
}

// Reads one page of a file, as read_at(). A file system that takes O_DIRECT and refuses such a read is read through the
// page cache from then on.
inline ssize_t read_page(int fd, u32 caching, void* to, size_t bytes, u64 offset) {
    ssize_t got = read_at(fd, to, bytes, offset, read_flags(caching));
    if (got == -EINVAL && caching == DIRECT) {
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_DIRECT);
        got = read_at(fd, to, bytes, offset);
    }
    if (caching == DROPPED) drop_cache(fd, offset, bytes);
    return got;
}

// Begins to write a file's dirty pages back, and does not wait for it. A page under write-back is read-only in the
// mappings of other processes: their next store faults, and changes the file's time. Returns -errno if it fails.
inline int begin_writeback(int fd) { return sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE) == 0 ? 0 : -errno; }

// The bytes of inaccessible memory on either side of a segment: tests define it to find accesses beyond its ends.
#ifndef BP_GUARD_BYTES
#define BP_GUARD_BYTES 0
#endif

// Makes a mapping that was made without access accessible: without core dumps and memory locking, and its first `small`
// bytes without huge pages. Otherwise mlockall(MCL_FUTURE) would make the kernel allocate the whole segment when it is
// mapped: 1 GiB of holes for a pool of 8 MiB. 0 or -errno.
inline int open_mapping(void* at, u64 bytes, u64 small, int protection) {
    munlock(at, bytes);
    madvise(at, small, MADV_NOHUGEPAGE);
    madvise(at, bytes, MADV_DONTDUMP);
    return mprotect(at, bytes, protection) == 0 ? 0 : -errno;
}

// The size of a huge page, on a machine whose OS pages have 4 KiB.
constexpr u64 HUGE_BYTES = 2 << 20;

constexpr int COLLAPSE = 25;  // MADV_COLLAPSE

// Replaces the memory of a mapping by huge pages, where all of an aligned huge page has memory (MADV_COLLAPSE, Linux
// 6.1, which works without the mount option huge=). Huge pages only make accesses faster, so a failure is no error.
inline void use_huge_pages(void* at, u64 bytes) {
    madvise(at, bytes, MADV_HUGEPAGE);
    if (madvise(at, bytes, COLLAPSE) != 0) madvise(at, bytes, MADV_NOHUGEPAGE);
}

// Makes a part of a mapping, all of which has memory, one or more huge pages. No flag of the mapping changes, so the
// kernel makes no huge page by itself of a part that has holes.
inline void make_huge(void* at, u64 bytes) { madvise(at, bytes, COLLAPSE); }

// Forbids the kernel to make huge pages of this part of a mapping, whose memory was given back.
inline void use_small_pages(void* at, u64 bytes) { madvise(at, bytes, MADV_NOHUGEPAGE); }

// Was the file opened with O_DIRECT, and does its file system take it?
inline bool is_direct(int fd) {
    int flags = fcntl(fd, F_GETFL);
    return flags < 0 || flags & O_DIRECT;
}

// Maps private memory that certainly consists of huge pages, at an aligned address. Null if the kernel has no huge
// page, or cannot confirm that it gave one (before Linux 6.1). A forked child does not inherit the mapping.
inline u8* map_huge(u64 bytes) {
    constexpr int POPULATE_WRITE = 23;
    constexpr int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* all = mmap(nullptr, bytes + HUGE_BYTES, PROT_READ | PROT_WRITE, how, -1, 0);
    if (all == MAP_FAILED) return nullptr;
    auto from = static_cast<u8*>(all);
    u64 before = -u64(reinterpret_cast<uintptr_t>(all)) % HUGE_BYTES;
    u8* at = from + before;
    if (before) munmap(from, before);
    if (before < HUGE_BYTES) munmap(at + bytes, HUGE_BYTES - before);
    madvise(at, bytes, MADV_DONTFORK);
    madvise(at, bytes, MADV_DONTDUMP);
    madvise(at, bytes, MADV_HUGEPAGE);
    if (madvise(at, bytes, POPULATE_WRITE) == 0 && madvise(at, bytes, COLLAPSE) == 0) return at;
    munmap(at, bytes);
    return nullptr;
}

// Maps the first `bytes` of a segment; null if it fails. The address is a multiple of the size of a huge page, so an
// offset that is aligned to huge pages has an aligned address. The first `small` bytes get no huge pages unasked.
inline u8* map_segment(int fd, u64 bytes, u64 small, int protection = PROT_READ | PROT_WRITE) {
    constexpr u64 guard = BP_GUARD_BYTES;
    u64 room = bytes + HUGE_BYTES + 2 * guard, unit = u64(sysconf(_SC_PAGESIZE));
    void* reserved = mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) return nullptr;
    u8* first = static_cast<u8*>(reserved);
    u64 before = guard + -(reinterpret_cast<uintptr_t>(first) + guard) % HUGE_BYTES;
    void* mapped = mmap(first + before, bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd, 0);
    if (mapped == MAP_FAILED) {
        int error = errno;
        munmap(first, room);
        errno = error;
        return nullptr;
    }
    u64 after = before + (bytes + unit - 1) / unit * unit;
    if (guard == 0) {
        if (before) munmap(first, before);
        if (after < room) munmap(first + after, room - after);
    }
    if (int r = open_mapping(mapped, bytes, small, protection)) {
        munmap(mapped, bytes);
        errno = -r;
        return nullptr;
    }
    return static_cast<u8*>(mapped);
}

// Gives memory to the first bytes of a file, and tries to make them a huge page. 0 or -errno.
inline int try_huge_page(int fd) {
    if (sysconf(_SC_PAGESIZE) != 4096) return -EOPNOTSUPP;
    if (int r = plug(fd, 0, HUGE_BYTES)) return r;
    u8* at = map_segment(fd, HUGE_BYTES, 0);
    if (!at) return -errno;
    int r = madvise(at, HUGE_BYTES, COLLAPSE) == 0 ? 0 : -errno;
    munmap(at, HUGE_BYTES);
    return r;
}

// Maps a part of the segment a second time, read-only, in place of the mapping at this address. 0 or
// -errno. After a failure the address remains reserved, because the caller unmaps it later.
inline int map_for_reading(void* at, u64 bytes, u64 small, int fd, u64 offset) {
    if (mmap(at, bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd, off_t(offset)) != MAP_FAILED)
        return open_mapping(at, bytes, small, PROT_READ);
    int error = errno;
    mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    return -error;
}

// Maps another part of a segment, as map_segment() does; null if it fails. ROOM: reserves addresses only, without a
// file.
enum class Access { ROOM, READ, WRITE };
inline u8* map_area(int fd, u64 offset, u64 bytes, Access access) {
    int flags = access == Access::ROOM ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    void* mapped = mmap(nullptr, bytes, PROT_NONE, flags | MAP_NORESERVE, fd, off_t(offset));
    if (mapped == MAP_FAILED) return nullptr;
    if (access == Access::ROOM) return static_cast<u8*>(mapped);
    int protection = access == Access::READ ? PROT_READ : PROT_READ | PROT_WRITE;
    if (int r = open_mapping(mapped, bytes, bytes, protection)) {
        munmap(mapped, bytes);
        errno = -r;
        return nullptr;
    }
    return static_cast<u8*>(mapped);
}
inline void close_file(int fd) { close(fd); }
inline void unmap_area(const u8* at, u64 bytes) { munmap(const_cast<u8*>(at), bytes); }

// Whether a file has at least `bytes` bytes.
inline bool has_bytes(int fd, u64 bytes) {
    struct stat st;
    return fstat(fd, &st) == 0 && u64(st.st_size) >= bytes;
}

// Extends a file to at least `bytes` bytes. 0 or -errno.
inline int extend(int fd, u64 bytes) {
    struct stat st;
    if (fstat(fd, &st) != 0) return -errno;
    if (u64(st.st_size) >= bytes) return 0;
    return ftruncate(fd, off_t(bytes)) == 0 ? 0 : -errno;
}

// Writes bytes at an offset of the segment; the kernel gives memory to the pages that have none. 0 or -errno.
inline int write_at(int fd, const void* from, size_t bytes, u64 offset) {
    while (bytes) {
        ssize_t n = pwrite(fd, from, bytes, off_t(offset));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return n < 0 ? -errno : -EIO;
        from = static_cast<const char*>(from) + n;
        bytes -= size_t(n);
        offset += u64(n);
    }
    return 0;
}

inline void unmap_segment(u8* base, u64 bytes) {
    constexpr u64 guard = BP_GUARD_BYTES;
    munmap(base - guard, bytes + 2 * guard);
}

// The offset of the next page of a tmpfs file that was ever written, at or after `offset`, and of
// the next page that was not; `end` when there is none before it. A page that was never written reads as
// zeros, and may be a hole: reading it through a mapping would allocate it.
inline u64 next_written(int fd, u64 offset, u64 end) {
    off_t at = lseek(fd, off_t(offset), SEEK_DATA);
    return at < 0 || u64(at) > end ? end : u64(at);
}
inline u64 next_unwritten(int fd, u64 offset, u64 end) {
    off_t at = lseek(fd, off_t(offset), SEEK_HOLE);
    return at < 0 || u64(at) > end ? end : u64(at);
}

// Maps pages before they are read, so that a failure is an error code instead of SIGBUS.
// Kernels before 5.14 cannot do that; then it returns 0.
inline int populate(void* address, u64 bytes) {
    constexpr int POPULATE_READ = 22;  // MADV_POPULATE_READ
    return madvise(address, bytes, POPULATE_READ) == 0 || errno == EINVAL ? 0 : -errno;
}

// Whether a file is on a tmpfs, by fstatfs, because /proc may not be mounted. 1, 0, or -errno.
inline int is_tmpfs(int fd) {
    constexpr long TMPFS = 0x01021994;
    struct statfs about;
    return fstatfs(fd, &about) == 0 ? long(about.f_type) == TMPFS : -errno;
}

// A second open file description of the file behind `fd`, with locks of its own.
inline int reopen(int fd) {
    char path[40] = "/proc/self/fd/";
    int n = 14;
    char digits[12];
    int d = 0;
    for (int v = fd; v > 0 || d == 0; v /= 10) digits[d++] = char('0' + v % 10);
    while (d > 0) path[n++] = digits[--d];
    path[n] = 0;
    int r = open(path, O_RDWR | O_CLOEXEC);
    return r >= 0 ? r : -errno;
}

// Field 22 of /proc/PID/stat: when a process started, in clock ticks since
// boot. Together with the pid it identifies a process. 0 when it cannot be read, or the process has ended.
inline u64 start_time(const char* stat = "/proc/self/stat") {
    char text[1024];
    if (!read_proc(stat, text)) return 0;
    const char* p = text + strlen(text);
    while (p > text && *p != ')') p--;  // the name may contain anything, even ')'
    if (!*p || p[2] == 'Z' || p[2] == 'X') return 0;
    for (int field = 2; field < 22 && *p; field++) {
        while (*p && *p != ' ') p++;
        while (*p == ' ') p++;
    }
    u64 value = 0;
    for (; *p >= '0' && *p <= '9'; p++) value = value * 10 + u64(*p - '0');
    return value;
}

// Whether /proc/PID/maps names a file. 1, 0, or -errno where it cannot be read.
inline int maps_file(const char* path, u64 device, u64 inode) {
    char wanted[64], text[4096];
    int n = snprintf(wanted, sizeof wanted, " %02x:%02x %llu ", major(dev_t(device)), minor(dev_t(device)),
                     static_cast<unsigned long long>(inode));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -errno;
    size_t kept = 0;
    int found = 0;
    while (!found) {
        ssize_t got = read(fd, text + kept, sizeof text - kept);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) break;
        size_t have = kept + size_t(got);
        found = memmem(text, have, wanted, size_t(n)) != nullptr;
        kept = have < size_t(n) ? have : size_t(n);  // the rest of the name may be in the next read
        memmove(text, text + have - kept, kept);
    }
    close(fd);
    return found;
}

// The pid namespace and the time namespace of this process, by the numbers that the kernel gives them; 0 in place of
// one that /proc does not show. In another pid namespace the same pid is another process, and in another time
// namespace the start time of a process has another value.
inline u64 namespaces() {
    struct stat pid, time;
    u64 pids = stat("/proc/self/ns/pid", &pid) == 0 ? u64(u32(pid.st_ino)) : 0;
    u64 times = stat("/proc/self/ns/time", &time) == 0 ? u64(u32(time.st_ino)) : 0;
    return pids << 32 | times;
}
inline bool is_same_namespace(u32 a, u32 b) { return !a || !b || a == b; }
inline bool share_pids(u64 a, u64 b) { return is_same_namespace(u32(a >> 32), u32(b >> 32)); }
inline bool share_times(u64 a, u64 b) { return is_same_namespace(u32(a), u32(b)); }

// Whether /proc shows the pids of this process's pid namespace. The /proc of a container may be the host's.
inline bool proc_has_our_pids() {
    char text[24];
    ssize_t n = readlink("/proc/self", text, sizeof text - 1);
    text[n > 0 ? n : 0] = 0;
    return n <= 0 || u32(atol(text)) == process_id();
}

// Whether the process with this pid and start time lives, and has the file mapped. Returns `unsaid` if /proc does not
// tell. `start` is ANY_START if the times cannot be compared.
constexpr u64 ANY_START = ~u64(0);
inline bool still_maps(u32 pid, u64 start, u64 device, u64 inode, bool unsaid) {
    if (!pid || (::kill(pid_t(pid), 0) != 0 && errno == ESRCH)) return false;
    if (!proc_has_our_pids()) return unsaid;
    char path[40];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    errno = 0;
    u64 found = start_time(path);
    if (!found && (errno == EMFILE || errno == ENFILE)) return true;  // it cannot be read now: assume that it lives
    if (!found && errno) return unsaid;
    if (!found || (start ? found != start && start != ANY_START : !unsaid)) return false;
    snprintf(path, sizeof path, "/proc/%u/maps", pid);
    int mapped = maps_file(path, device, inode);
    return mapped == 1 || mapped == -EMFILE || mapped == -ENFILE || (mapped < 0 && unsaid);
}

inline u64 realtime_ns() {
    timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return u64(t.tv_sec) * 1'000'000'000u + u64(t.tv_nsec);
}

}  // namespace bp::prim
#endif
