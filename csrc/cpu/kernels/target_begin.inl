// Compiles the code below for RRD_TARGET. Included after all other headers: their inline functions
// must not be compiled for instructions that the machine may lack.
#define RRD_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define RRD_TARGET_PRAGMA(isa) \
  RRD_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
RRD_TARGET_PRAGMA(RRD_TARGET)
#else
#define RRD_TARGET_PRAGMA(isa) RRD_PRAGMA(GCC target(isa))
#pragma GCC push_options
RRD_TARGET_PRAGMA(RRD_TARGET)
#endif
