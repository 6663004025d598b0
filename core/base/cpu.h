/* cpu.h - what this processor can do, and making the libraries see it. */
#ifndef QD_BASE_CPU_H
#define QD_BASE_CPU_H

#include <stdbool.h>

typedef enum qd_isa { QD_ISA_BASE, QD_ISA_AVX2, QD_ISA_AVX512 } qd_isa; /* AVX2 includes FMA; AVX512 = F, BW, DQ, VL */

qd_isa qd_cpu_isa(void); /* QUANTD_ISA=base|avx2|avx512 lowers it, never raises it */
bool qd_cpu_has_vnni(void);
const char *qd_isa_name(qd_isa isa);

/* Two libraries read their settings from the environment while they are loaded, so this sets what is unset and runs the program again in
 * place. First thing in main(); returns when there is nothing to do.
 *
 * OPENBLAS_CORETYPE     Debian's OpenBLAS does not know every AVX-512 processor and falls back to its Haswell kernels at half
 *                       speed: SkylakeX when the processor has AVX-512.
 * OPENBLAS_NUM_THREADS  1: it starts threads while it is loaded, and we share out the work ourselves.
 * GOMP_SPINCOUNT        OpenMP threads wait for each other by spinning for milliseconds, which stalls everything as soon as
 *                       another process wants the same core: 3000 rounds, some tens of microseconds, lose nothing on an idle
 *                       machine and little on a busy one. */
void qd_cpu_prepare(char **argv);

#endif
