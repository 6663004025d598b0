/* bytes.h - a reader that cannot leave its bounds, a buffer that cannot grow past its ceiling. */
#ifndef QD_BASE_BYTES_H
#define QD_BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* Reads forward over borrowed bytes. After the first short read `failed` stays true and every value read is 0. */
typedef struct qd_reader {
    const uint8_t *data;
    size_t size, pos;
    bool failed;
} qd_reader;

void qd_reader_init(qd_reader *r, const void *data, size_t size);
uint8_t qd_read_u8(qd_reader *r);
uint16_t qd_read_u16be(qd_reader *r);
uint16_t qd_read_u16le(qd_reader *r);
uint32_t qd_read_u32be(qd_reader *r);
uint32_t qd_read_u32le(qd_reader *r);
uint64_t qd_read_u64le(qd_reader *r);
/* The next n bytes, lent; NULL (and failed) when fewer are left. */
const uint8_t *qd_read_bytes(qd_reader *r, size_t n);
size_t qd_reader_left(const qd_reader *r);

/* Grows up to `ceiling` bytes (0 = no ceiling). Always one terminating NUL past size. A failed append leaves it as it
 * was and sets `failed`. */
typedef struct qd_buf {
    char *data;
    size_t size, capacity, ceiling;
    bool failed;
} qd_buf;

void qd_buf_init(qd_buf *b, size_t ceiling);
void qd_buf_clear(qd_buf *b);
bool qd_buf_add(qd_buf *b, const void *data, size_t n);
bool qd_buf_adds(qd_buf *b, const char *s);
bool qd_buf_addf(qd_buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool qd_buf_add_u32be(qd_buf *b, uint32_t v);
/* A JSON string with its quotes, escaped; bytes that are not UTF-8 become U+FFFD. A JSON number, shortest form that reads back
 * as the same double; NaN and infinities become null. */
bool qd_buf_add_json_string(qd_buf *b, const char *s);
bool qd_buf_add_json_number(qd_buf *b, double v);
/* The bytes are the caller's now (free with qd_free); the buffer is empty again. NULL when out of memory. */
char *qd_buf_take(qd_buf *b, size_t *size);

/* Lower-case hex of n bytes into out[2 * n + 1]. */
void qd_hex(char *out, const uint8_t *bytes, size_t n);

#endif
