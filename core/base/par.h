/* par.h - a loop over independent pieces on n threads. The pieces, not the threads, decide the arithmetic. */
#ifndef QD_BASE_PAR_H
#define QD_BASE_PAR_H

#include <stdint.h>

/* fn(ctx, i) for i = 0..n-1, each exactly once, on up to `threads` threads (the pool oneDNN uses too: OpenMP). Returns when all
 * are done. fn must not fail, and must write nothing another piece writes. */
void qd_par_for(int threads, int64_t n, void (*fn)(void *ctx, int64_t i), void *ctx);
/* Within fn: which of the innermost loop's threads this is, 0..threads-1; for scratch of each thread's own. Unlike OpenMP's own number
 * it is right for a loop within a piece of another loop too. */
int qd_par_thread(void);

#endif
