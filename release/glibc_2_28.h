// For a wheel that runs where PyTorch's own does, with glibc 2.28 and newer: what is linked on a
// newer system would ask for the newest version of each symbol. -include puts this into each file.
#pragma once

#include <features.h>

#if defined(__GLIBC__) && defined(__x86_64__)
// Versions of a symbol differ in how they report an error, which nothing here reads.
__asm__(".symver exp2,exp2@GLIBC_2.2.5");
__asm__(".symver log,log@GLIBC_2.2.5");
__asm__(".symver log2,log2@GLIBC_2.2.5");
// Of glibc 2.32; libstdc++'s shared pointers read it. 0: there may be threads.
extern "C" __attribute__((weak, visibility("hidden"))) char __libc_single_threaded = 0;
#endif
