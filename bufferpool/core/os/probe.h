// Static probes (USDT), which perf, bpftrace and SystemTap can attach to in a running process.
//
// A probe is a nop, and a note in the section .note.stapsdt of the object file: the address of the nop, of the probe's
// semaphore, and a text that says where the arguments are (SystemTap's wiki, "User space probe implementation").
// A tool that attaches raises the semaphore, which is a counter. While it is 0, the arguments are not computed, and a
// probe costs one load and one branch.
#pragma once

#include "os/atomic.h"

#if defined(BP_PROBES) && defined(__ELF__) && (defined(__x86_64__) || defined(__aarch64__))

#define BP_PROBE_LIST(X) X(load) X(evict) X(publish) X(flush) X(reclaim)

#define BP_SEMAPHORE(name) extern "C" __attribute__((visibility("hidden"))) volatile unsigned short bp_probe_##name;
BP_PROBE_LIST(BP_SEMAPHORE)
#undef BP_SEMAPHORE

#define BP_PROBE_ON(name) __builtin_expect(bp_probe_##name, 0)

// "8@%0" says: an unsigned value of 8 bytes, in the register, memory or constant that the compiler puts there.
#define BP_PROBE(name, a, b, c)                                             \
    asm volatile("990: nop\n"                                               \
                 ".pushsection .note.stapsdt, \"?\", \"note\"\n"            \
                 ".balign 4\n"                                              \
                 ".4byte 992f - 991f, 994f - 993f, 3\n"                     \
                 "991: .asciz \"stapsdt\"\n"                                \
                 "992: .balign 4\n"                                         \
                 "993: .8byte 990b, _.stapsdt.base, bp_probe_" #name "\n"   \
                 ".asciz \"bufferpool\"\n"                                  \
                 ".asciz \"" #name "\"\n"                                   \
                 ".asciz \"8@%0 8@%1 8@%2\"\n"                              \
                 "994: .balign 4\n"                                         \
                 ".popsection\n"                                            \
                 ".ifndef _.stapsdt.base\n"                                 \
                 ".pushsection .stapsdt.base, \"aG\", \"progbits\", .stapsdt.base, comdat\n" \
                 ".weak _.stapsdt.base\n"                                   \
                 ".hidden _.stapsdt.base\n"                                 \
                 "_.stapsdt.base: .space 1\n"                               \
                 ".size _.stapsdt.base, 1\n"                                \
                 ".popsection\n"                                            \
                 ".endif\n" ::"nor"(bp::u64(a)), "nor"(bp::u64(b)), "nor"(bp::u64(c)))

#else

#define BP_PROBE_ON(name) false
#define BP_PROBE(name, a, b, c) ((void)(a), (void)(b), (void)(c))

#endif
