/* par.c - a parallel loop on OpenMP's threads. */
#include "base/par.h"

void qd_par_for(int threads, int64_t n, void (*fn)(void *ctx, int64_t i), void *ctx)
{
    if (threads <= 1 || n <= 1) {
        for (int64_t i = 0; i < n; i++)
            fn(ctx, i);
        return;
    }
    if (threads > n)
        threads = (int)n;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++)
        fn(ctx, i);
}
