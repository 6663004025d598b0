/* simd_int.h - the tables that simd_loops.c and attn_loops.c make, one for each instruction set. */
#ifndef QD_PLAN_SIMD_INT_H
#define QD_PLAN_SIMD_INT_H

#include "plan/attn_simd.h"
#include "plan/simd.h"

extern const qd_simd qd_simd_base, qd_simd_avx2, qd_simd_avx512;
extern const qd_attn_simd qd_attn_simd_base, qd_attn_simd_avx2, qd_attn_simd_avx512, qd_attn_simd_vnni;

#endif
