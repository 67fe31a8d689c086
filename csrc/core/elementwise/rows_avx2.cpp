#define CLARA_VECTOR_BYTES 32
#include "core/elementwise/row_kernels_of.hpp"

CLARA_DEFINE_ROW_KERNELS(kAvx2Rows)
