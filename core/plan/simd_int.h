/* simd_int.h - the tables that simd_loops.c makes, one for each instruction set it is compiled for. */
#ifndef QD_PLAN_SIMD_INT_H
#define QD_PLAN_SIMD_INT_H

#include "plan/simd.h"

extern const qd_simd qd_simd_base, qd_simd_avx2, qd_simd_avx512;

#endif
