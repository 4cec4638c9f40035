// A build in which BP_POINT kills the process (forced in with -include):
// BUFFERPOOL_KILL=point:count dies when `point` is passed for the count-th time,
// after a line to the file BUFFERPOOL_KILLED. Both may be set at any moment.
// point:count:19 sends another signal than SIGKILL, to stop the process there.
#pragma once

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>

namespace bp_faults {

inline long passed = 0;

inline void pass(const char* name) {
    const char* want = getenv("BUFFERPOOL_KILL");
    size_t n = strlen(name);
    if (!want || strncmp(want, name, n) != 0 || want[n] != ':') return;
    char* end;
    if (__atomic_add_fetch(&passed, 1, __ATOMIC_RELAXED) != strtol(want + n + 1, &end, 10)) return;
    const char* path = getenv("BUFFERPOOL_KILLED");
    int fd = path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    if (fd < 0 || write(fd, name, n) != ssize_t(n)) abort();
    kill(getpid(), *end == ':' ? atoi(end + 1) : SIGKILL);
}

}  // namespace bp_faults

#define BP_POINT(name) bp_faults::pass(name)
