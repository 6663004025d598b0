/* cpu.c - instruction sets of this processor. */
#include "base/cpu.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The builtins also ask the operating system (XGETBV) whether it saves the wide registers. */
static qd_isa detected(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return QD_ISA_BASE;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return QD_ISA_AVX512;
    return QD_ISA_AVX2;
#else
    return QD_ISA_BASE;
#endif
}

qd_isa qd_cpu_isa(void)
{
    const qd_isa have = detected();
    const char *want = getenv("QUANTD_ISA");
    for (qd_isa isa = QD_ISA_BASE; want && isa < have; isa++)
        if (strcmp(want, qd_isa_name(isa)) == 0)
            return isa;
    return have;
}

bool qd_cpu_has_vnni(void)
{
#if defined(__x86_64__)
    return qd_cpu_isa() == QD_ISA_AVX512 && __builtin_cpu_supports("avx512vnni");
#else
    return false;
#endif
}

const char *qd_isa_name(qd_isa isa)
{
    switch (isa) {
    case QD_ISA_BASE:
        return "base";
    case QD_ISA_AVX2:
        return "avx2";
    case QD_ISA_AVX512:
        return "avx512";
    }
    return "unknown";
}

/* Set a variable the libraries read while they are loaded, unless the user has; true when it is new. */
static bool set_default(const char *name, const char *value)
{
    return !getenv(name) && setenv(name, value, 0) == 0;
}

void qd_cpu_prepare(char **argv)
{
    /* Our mark: run again once and never twice, whatever execv or setenv do. */
    if (!set_default("QUANTD_PREPARED", "1"))
        return;
    bool changed = false;
    if (qd_cpu_isa() == QD_ISA_AVX512)
        changed |= set_default("OPENBLAS_CORETYPE", "SkylakeX");
    changed |= set_default("OPENBLAS_NUM_THREADS", "1");
    if (!getenv("OMP_WAIT_POLICY"))
        changed |= set_default("GOMP_SPINCOUNT", "3000");
    if (changed)
        execv("/proc/self/exe", argv);
    /* Nothing to do, or no /proc, or no right to run ourselves again: go on, only slower. */
}
