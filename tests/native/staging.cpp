// How many large reads of a file are under way at one time, when each is read into the staging first.
//
//   staging FILE RUNS     reads so many runs of 256 KiB; prints the most that were under way, or why there is no staging
//
// It checks each byte that was read: byte i of the file is i / 4096 modulo 251.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "os/transfers.h"

using namespace bp;

int main(int argc, char** argv) {
    if (argc < 3) return 2;
    constexpr u64 RUN = Staging::MOST, PAGE = 4096;
    constexpr u32 PAGES = RUN / PAGE;
    u32 runs = u32(atoi(argv[2])), begun = 0, done = 0, under_way = 0, most = 0;
    int fd = open(argv[1], O_RDONLY);
    if (fd < 0) return perror(argv[1]), 1;
    if (!Uring::of_this_thread()) return puts("no io_uring"), 0;
    Staging* staging = Stagings::of_this_process().borrow();
    if (!staging) return puts("no huge page"), 0;
    Stagings::of_this_process().give_back(staging);
    std::vector<u8> memory(runs * RUN);
    std::vector<iovec> to(runs * PAGES);
    for (u32 i = 0; i < to.size(); i++) to[i] = {&memory[i * PAGE], PAGE};
    Transfers transfers;
    while (done < runs) {
        for (; begun < runs && transfers.room(); begun++) {
            transfers.begin({false, fd, &to[begun * PAGES], PAGES, begun * RUN, 0, true}, begun);
            under_way++;
        }
        most = std::max(most, under_way);
        Transfer t{};
        if (!transfers.ended(t) || t.got != ssize_t(RUN)) return fprintf(stderr, "run %u: %zd\n", t.first, t.got), 1;
        for (u64 i = t.first * RUN; i < (t.first + 1) * RUN; i++)
            if (memory[i] != i / PAGE % 251) return fprintf(stderr, "byte %zu is wrong\n", size_t(i)), 1;
        under_way--;
        done++;
    }
    printf("%u\n", most);
}
