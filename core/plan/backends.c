/* backends.c - the table of backends. */
#include <stdlib.h>
#include <string.h>

#include "plan/backend.h"

const qd_backend *const qd_backends[] = { &qd_backend_ref, &qd_backend_cpu, NULL };

const qd_backend *qd_backend_find(const char *name)
{
    for (int k = 0; qd_backends[k]; k++)
        if (strcmp(qd_backends[k]->name, name) == 0)
            return qd_backends[k];
    return NULL;
}

const qd_backend *qd_backend_default(void)
{
    const char *want = getenv("QD_KERNELS");
    return want && strcmp(want, qd_backend_ref.name) == 0 ? &qd_backend_ref : &qd_backend_cpu;
}

const char *qd_backend_name(const qd_backend *b)
{
    return b->name;
}
