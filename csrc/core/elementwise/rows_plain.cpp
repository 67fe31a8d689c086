// What every processor of the architecture has: SSE2, NEON, or whatever the compiler makes of it.

#define CLARA_VECTOR_BYTES 16
#include "core/elementwise/row_kernels_of.hpp"

CLARA_DEFINE_ROW_KERNELS(kPlainRows)
