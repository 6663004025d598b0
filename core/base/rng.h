/* rng.h - counter-based randomness: Philox4x32-10 (Salmon et al., SC 2011).
 *
 * A number is a pure function of (seed, stream, index): any thread may draw any part of a stream, in any order, with the
 * same result, and switching one consumer on or off moves no other. */
#ifndef QD_BASE_RNG_H
#define QD_BASE_RNG_H

#include <stddef.h>
#include <stdint.h>

/* One block of four words. Known answer: key 0, counter 0 gives 6627e8d5 e169c58d bc57ac4c 9b00dbd8. */
void qd_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]);

/* Streams of the house; the low bits are free for a trajectory, sample or step number. */
#define QD_STREAM_INIT_NOISE (1ull << 56)    /* x_T of sample i */
#define QD_STREAM_SAMPLER_NOISE (2ull << 56) /* noise added by a sampler: | sample << 24 | step */
#define QD_STREAM_PROBE (3ull << 56)         /* QNCD's re-noise probe */
#define QD_STREAM_WEIGHTS (4ull << 56)       /* random initialisation */
#define QD_STREAM_SHUFFLE (5ull << 56)
#define QD_STREAM_AUGMENT (6ull << 56)

typedef struct qd_rng {
    uint64_t seed, stream, index; /* index counts 32-bit words already drawn */
} qd_rng;

void qd_rng_init(qd_rng *r, uint64_t seed, uint64_t stream);
uint32_t qd_rng_u32(qd_rng *r);
uint64_t qd_rng_u64(qd_rng *r);
uint32_t qd_rng_below(qd_rng *r, uint32_t n); /* uniform in [0, n), n > 0, unbiased */
float qd_rng_uniform(qd_rng *r);              /* [0, 1), 24 bits */

/* dst[k] = N(0,1) number `first + k` of that stream, k = 0..n-1 (Box-Muller on pairs, in double, rounded once). */
void qd_rng_normal(float *dst, size_t n, uint64_t seed, uint64_t stream, uint64_t first);

#endif
