/* ids.c - the clock, and ids that sort by the time they were made. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "store/store.h"

int64_t sv_now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void random_bytes(uint8_t *out, size_t n)
{
    /* Up to 256 bytes getrandom neither fails nor comes back short once the system is up; without it no id is safe to hand out. */
    if (getrandom(out, n, 0) != (ssize_t)n)
        abort();
}

void sv_id_new(char out[40], const char *prefix)
{
    static const char digits[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static int64_t last_ms;
    static uint8_t last[10];
    uint8_t bytes[16]; /* 48-bit ms, 80 random bits, big end first */
    char text[27];

    pthread_mutex_lock(&lock);
    const int64_t now = sv_now_ms();
    if (now > last_ms) {
        last_ms = now;
        random_bytes(last, sizeof(last));
        last[0] &= 0x7f; /* room to count up within the millisecond */
    } else {
        /* Same millisecond (or a clock set back): go on from the last id by a random step, so that ids of one process still sort. */
        uint8_t step[4];
        unsigned carry = 1;
        random_bytes(step, sizeof(step));
        for (int i = 9; i >= 0; i--) {
            carry += last[i] + (i >= 6 ? step[i - 6] : 0u);
            last[i] = (uint8_t)carry;
            carry >>= 8;
        }
    }
    for (int i = 0; i < 6; i++)
        bytes[i] = (uint8_t)((uint64_t)last_ms >> (40 - 8 * i));
    memcpy(bytes + 6, last, sizeof(last));
    pthread_mutex_unlock(&lock);

    /* 128 bits in 26 digits of 5: the first digit holds only the top 3. */
    for (int i = 0; i < 26; i++) {
        const int low = 5 * (25 - i); /* lowest bit of this digit, counted from the end */
        unsigned v = 0;
        for (int b = 4; b >= 0; b--) {
            const int bit = low + b;
            v = v << 1 | (bit < 128 ? (bytes[15 - bit / 8] >> (bit % 8) & 1u) : 0u);
        }
        text[i] = digits[v];
    }
    text[26] = '\0';
    snprintf(out, 40, "%s%s", prefix, text);
}
