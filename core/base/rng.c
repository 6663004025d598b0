/* rng.c - Philox4x32-10 and what is drawn from it. */
#include "base/rng.h"

#include <assert.h>
#include <math.h>

/* Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 4.3. */
void qd_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];

    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        const uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u; /* golden ratio */
        k1 += 0xBB67AE85u; /* sqrt(3) - 1 */
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* Words 4 * block .. 4 * block + 3 of a stream. */
static void stream_block(uint32_t out[4], uint64_t seed, uint64_t stream, uint64_t block)
{
    const uint32_t counter[4] = { (uint32_t)block, (uint32_t)(block >> 32), (uint32_t)stream,
                                  (uint32_t)(stream >> 32) };
    const uint32_t key[2] = { (uint32_t)seed, (uint32_t)(seed >> 32) };
    qd_philox(out, counter, key);
}

void qd_rng_init(qd_rng *r, uint64_t seed, uint64_t stream)
{
    *r = (qd_rng){ .seed = seed, .stream = stream };
}

uint32_t qd_rng_u32(qd_rng *r)
{
    uint32_t words[4];
    stream_block(words, r->seed, r->stream, r->index / 4);
    return words[r->index++ % 4];
}

uint64_t qd_rng_u64(qd_rng *r)
{
    const uint64_t low = qd_rng_u32(r);
    return low | (uint64_t)qd_rng_u32(r) << 32;
}

/* Lemire, "Fast random integer generation in an interval", 2019: reject the few products that would favour small values. */
uint32_t qd_rng_below(qd_rng *r, uint32_t n)
{
    assert(n > 0);
    uint64_t m = (uint64_t)qd_rng_u32(r) * n;
    if ((uint32_t)m < n) {
        const uint32_t threshold = -n % n;
        while ((uint32_t)m < threshold)
            m = (uint64_t)qd_rng_u32(r) * n;
    }
    return (uint32_t)(m >> 32);
}

float qd_rng_uniform(qd_rng *r)
{
    return (float)(qd_rng_u32(r) >> 8) * 0x1p-24f;
}

/* Normals 4b .. 4b+3 come from the words of block b, two pairs of Box-Muller. */
static void normal_block(float out[4], uint64_t seed, uint64_t stream, uint64_t block)
{
    uint32_t w[4];
    stream_block(w, seed, stream, block);
    for (int pair = 0; pair < 2; pair++) {
        const double u = ((double)w[2 * pair] + 1.0) * 0x1p-32; /* (0, 1], so that the logarithm is finite */
        const double angle = 2.0 * M_PI * ((double)w[2 * pair + 1] * 0x1p-32);
        const double radius = sqrt(-2.0 * log(u));
        out[2 * pair] = (float)(radius * cos(angle));
        out[2 * pair + 1] = (float)(radius * sin(angle));
    }
}

void qd_rng_normal(float *dst, size_t n, uint64_t seed, uint64_t stream, uint64_t first)
{
    size_t done = 0;
    while (done < n) {
        const uint64_t at = first + done;
        float four[4];
        normal_block(four, seed, stream, at / 4);
        for (size_t k = at % 4; k < 4 && done < n; k++)
            dst[done++] = four[k];
    }
}
