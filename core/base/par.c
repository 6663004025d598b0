/* par.c - a parallel loop on OpenMP's threads. */
#include "base/par.h"

#include <omp.h>

/* A loop inside a piece of another runs on one thread, whatever that thread's number in the outer loop. */
static _Thread_local int number;

int qd_par_thread(void)
{
    return number;
}

void qd_par_for(int threads, int64_t n, void (*fn)(void *ctx, int64_t i), void *ctx)
{
    const int outer = number;
    if (threads > n)
        threads = (int)n;
    if (threads <= 1) {
        number = 0;
        for (int64_t i = 0; i < n; i++)
            fn(ctx, i);
        number = outer;
        return;
    }
#pragma omp parallel num_threads(threads)
    {
        number = omp_get_thread_num();
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; i++)
            fn(ctx, i);
        number = 0;
    }
    number = outer;
}
