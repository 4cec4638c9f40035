// Preloaded: requests of the core for memory fail where a test wants it: its own, and those of the interpreter and of
// numpy on its behalf. fail_at(n, all) says at which, or from which on; getppid() switches that on, and the next
// getppid() off: calling it takes no memory.
#define _GNU_SOURCE
#include <errno.h>
#include <execinfo.h>
#include <stddef.h>
#include <unistd.h>
#include <sys/syscall.h>

#define DEPTH 12

extern void* __libc_malloc(size_t);
extern void* __libc_calloc(size_t, size_t);
extern void* __libc_realloc(void*, size_t);

static __thread long planned, left, refused;
static __thread int all_after, looking;
static const char *core_from, *core_end;

// Where the core is mapped: of an address in it.
void the_core_is(const char* from, const char* end) {
    void* frame;
    backtrace(&frame, 1);  // it takes memory the first time
    core_from = from;
    core_end = end;
}

void fail_at(long n, int all) {
    planned = n;
    refused = 0;
    all_after = all;
}

long how_many_failed(void) { return refused; }

pid_t getppid(void) {
    left = planned;
    planned = 0;
    return (pid_t)syscall(SYS_getppid);
}

// Has the core asked, a few calls further out?
static int for_the_core(void) {
    void* frames[DEPTH];
    looking = 1;
    int n = backtrace(frames, DEPTH);
    looking = 0;
    for (int i = 0; i < n; i++)
        if ((const char*)frames[i] >= core_from && (const char*)frames[i] < core_end) return 1;
    return 0;
}

static int fails(void) {
    if (left == 0 || looking || !for_the_core() || (left > 1 && --left)) return 0;
    if (!all_after) left = 0;
    refused++;
    errno = ENOMEM;
    return 1;
}

void* malloc(size_t n) { return fails() ? NULL : __libc_malloc(n); }
void* calloc(size_t n, size_t size) { return fails() ? NULL : __libc_calloc(n, size); }
void* realloc(void* at, size_t n) { return fails() ? NULL : __libc_realloc(at, n); }
