// The yardstick of batched misses: random reads of a file by a plain io_uring loop, and nothing else.
//
//   uring FILE BYTES-A-READ READS DEPTH SEED [FLAGS [PAGES]]     prints reads a second; FLAGS: d O_DIRECT, c RWF_DONTCACHE
//
// It reads into DEPTH buffers, or into so many PAGES of memory in turn: more than the processor caches, as a pool has.
// It is compiled with the core's own headers, for the kernel's interface alone.
#include <cstdio>
#include <random>
#include <vector>

#include "os/transfers.h"

int main(int argc, char** argv) {
    using namespace bp;
    if (argc < 6) return 2;
    const char* flags = argc > 6 ? argv[6] : "d";
    int fd = open(argv[1], O_RDONLY | (strchr(flags, 'd') ? O_DIRECT : 0));
    u64 bytes = strtoull(argv[2], nullptr, 10), reads = strtoull(argv[3], nullptr, 10);
    u32 depth = u32(atoi(argv[4])), rw = strchr(flags, 'c') ? 0x80 : 0;
    struct stat about;
    if (fd < 0 || fstat(fd, &about) != 0) return perror(argv[1]), 1;
    u64 pages = u64(about.st_size) / bytes;
    u64 places = argc > 7 ? strtoull(argv[7], nullptr, 10) : depth;
    auto memory = static_cast<u8*>(aligned_alloc(4096, bytes * places));
    memset(memory, 1, bytes * places);
    std::vector<iovec> to(depth);
    std::vector<u32> idle;
    for (u32 i = 0; i < depth; i++) idle.push_back(i);
    std::mt19937_64 random(strtoull(argv[5], nullptr, 10));
    Transfers transfers;
    if (!Uring::of_this_thread()) return fprintf(stderr, "no io_uring here\n"), 1;
    u64 since = prim::now_ns(), begun = 0, done = 0;
    while (done < reads) {
        for (; begun < reads && !idle.empty() && transfers.room(); begun++, idle.pop_back()) {
            iovec& into = to[idle.back()];
            into = {memory + (places == depth ? idle.back() : begun % places) * bytes, bytes};
            transfers.begin({false, fd, &into, 1, random() % pages * bytes, rw}, idle.back());
        }
        Transfer t;
        if (!transfers.ended(t) || t.got != ssize_t(bytes)) return fprintf(stderr, "read failed: %zd\n", t.got), 1;
        idle.push_back(t.first);
        done++;
    }
    printf("%.1f\n", double(reads) / (double(prim::now_ns() - since) / 1e9));
}
