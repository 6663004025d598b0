/* cpu.h - what this processor can do, and making the libraries see it. */
#ifndef QD_BASE_CPU_H
#define QD_BASE_CPU_H

#include <stdbool.h>

typedef enum qd_isa { QD_ISA_BASE, QD_ISA_AVX2, QD_ISA_AVX512 } qd_isa; /* AVX2 includes FMA; AVX512 = F, BW, DQ, VL */

qd_isa qd_cpu_isa(void); /* QUANTD_ISA=base|avx2|avx512 lowers it, never raises it */
bool qd_cpu_has_vnni(void);
const char *qd_isa_name(qd_isa isa);

/* Debian's OpenBLAS does not know every AVX-512 processor and falls back to its Haswell kernels at half speed. It reads
 * OPENBLAS_CORETYPE while it is loaded, so: when the processor has AVX-512 and the variable is unset, set it to SkylakeX and run
 * this program again in place. First thing in main(); returns when there is nothing to do. */
void qd_cpu_prepare(char **argv);

#endif
