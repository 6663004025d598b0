/* simd.c - which of the compiled loops this processor runs. */
#include "plan/simd.h"

#include "base/cpu.h"
#include "plan/simd_int.h"
#include "plan/wino_simd.h"

const qd_simd *qd_simd_get(void)
{
#if defined(__x86_64__)
    switch (qd_cpu_isa()) {
    case QD_ISA_AVX512:
        return &qd_simd_avx512;
    case QD_ISA_AVX2:
        return &qd_simd_avx2;
    case QD_ISA_BASE:
        break;
    }
#endif
    return &qd_simd_base;
}

const qd_attn_simd *qd_attn_simd_get(void)
{
#if defined(__x86_64__)
    if (qd_cpu_has_vnni())
        return &qd_attn_simd_vnni;
    switch (qd_cpu_isa()) {
    case QD_ISA_AVX512:
        return &qd_attn_simd_avx512;
    case QD_ISA_AVX2:
        return &qd_attn_simd_avx2;
    case QD_ISA_BASE:
        break;
    }
#endif
    return &qd_attn_simd_base;
}

const qd_wino_simd *qd_wino_simd_get(void)
{
#if defined(__x86_64__)
    switch (qd_cpu_isa()) {
    case QD_ISA_AVX512:
        return &qd_wino_simd_avx512;
    case QD_ISA_AVX2:
        return &qd_wino_simd_avx2;
    case QD_ISA_BASE:
        break;
    }
#endif
    return &qd_wino_simd_base;
}
