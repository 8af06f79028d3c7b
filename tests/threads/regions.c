/* For LD_PRELOAD: counts OpenMP's parallel regions, and gives each one thread alone, so that the
   count does not depend on what else keeps the machine busy. */
#define _GNU_SOURCE
#include <dlfcn.h>

typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);

static int opened;

void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags) {
  (void)threads;
  ++opened;
  ((Parallel)dlsym(RTLD_NEXT, "GOMP_parallel"))(body, data, 1, flags);
}

int regions_opened(void) { return opened; }
