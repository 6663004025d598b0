/* bytes.c - bounded reading, buffers with a ceiling, JSON text. */
#include "base/bytes.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

void qd_reader_init(qd_reader *r, const void *data, size_t size)
{
    *r = (qd_reader){ .data = data, .size = size };
}

size_t qd_reader_left(const qd_reader *r)
{
    return r->size - r->pos;
}

const uint8_t *qd_read_bytes(qd_reader *r, size_t n)
{
    if (r->failed || n > r->size - r->pos) {
        r->failed = true;
        return NULL;
    }
    const uint8_t *p = r->data + r->pos;
    r->pos += n;
    return p;
}

static uint64_t read_le(qd_reader *r, size_t n)
{
    const uint8_t *p = qd_read_bytes(r, n);
    uint64_t v = 0;
    for (size_t k = 0; p && k < n; k++)
        v |= (uint64_t)p[k] << (8 * k);
    return v;
}

static uint64_t read_be(qd_reader *r, size_t n)
{
    const uint8_t *p = qd_read_bytes(r, n);
    uint64_t v = 0;
    for (size_t k = 0; p && k < n; k++)
        v = v << 8 | p[k];
    return v;
}

uint8_t qd_read_u8(qd_reader *r)
{
    return (uint8_t)read_le(r, 1);
}

uint16_t qd_read_u16be(qd_reader *r)
{
    return (uint16_t)read_be(r, 2);
}

uint16_t qd_read_u16le(qd_reader *r)
{
    return (uint16_t)read_le(r, 2);
}

uint32_t qd_read_u32be(qd_reader *r)
{
    return (uint32_t)read_be(r, 4);
}

uint32_t qd_read_u32le(qd_reader *r)
{
    return (uint32_t)read_le(r, 4);
}

uint64_t qd_read_u64le(qd_reader *r)
{
    return read_le(r, 8);
}

void qd_buf_init(qd_buf *b, size_t ceiling)
{
    *b = (qd_buf){ .ceiling = ceiling };
}

void qd_buf_clear(qd_buf *b)
{
    qd_free(b->data);
    qd_buf_init(b, b->ceiling);
}

/* Room for n more bytes and the NUL. */
static bool reserve(qd_buf *b, size_t n)
{
    size_t size, need;
    if (b->failed)
        return false;
    if (!qd_add_size(b->size, n, &size) || !qd_add_size(size, 1, &need) || (b->ceiling && size > b->ceiling)) {
        b->failed = true;
        return false;
    }
    if (need <= b->capacity)
        return true;

    size_t capacity = b->capacity ? b->capacity : 64;
    while (capacity < need)
        if (!qd_mul_size(capacity, 2, &capacity))
            capacity = need;
    if (b->ceiling && capacity > b->ceiling + 1)
        capacity = b->ceiling + 1; /* >= need, because size <= ceiling */
    char *data = qd_realloc(b->data, capacity);
    if (!data) {
        b->failed = true;
        return false;
    }
    if (!b->data)
        data[0] = '\0';
    b->data = data;
    b->capacity = capacity;
    return true;
}

bool qd_buf_add(qd_buf *b, const void *data, size_t n)
{
    if (!reserve(b, n))
        return false;
    if (n)
        memcpy(b->data + b->size, data, n);
    b->size += n;
    b->data[b->size] = '\0';
    return true;
}

bool qd_buf_adds(qd_buf *b, const char *s)
{
    return qd_buf_add(b, s, strlen(s));
}

bool qd_buf_addf(qd_buf *b, const char *fmt, ...)
{
    va_list ap, again;
    bool ok = false;

    va_start(ap, fmt);
    va_copy(again, ap);
    const int n = vsnprintf(NULL, 0, fmt, ap);
    if (n < 0)
        b->failed = true;
    else if (reserve(b, (size_t)n)) {
        vsnprintf(b->data + b->size, (size_t)n + 1, fmt, again);
        b->size += (size_t)n;
        ok = true;
    }
    va_end(again);
    va_end(ap);
    return ok;
}

bool qd_buf_add_u32be(qd_buf *b, uint32_t v)
{
    const uint8_t bytes[4] = { (uint8_t)(v >> 24), (uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v };
    return qd_buf_add(b, bytes, sizeof bytes);
}

/* Length of the well-formed UTF-8 sequence at s (RFC 3629: no overlong forms, no surrogates), 0 when there is none. */
static size_t utf8_length(const unsigned char *s)
{
    static const struct {
        unsigned char lead_lo, lead_hi, second_lo, second_hi;
        size_t length;
    } rows[] = {
        { 0x00, 0x7f, 0, 0, 1 },       { 0xc2, 0xdf, 0x80, 0xbf, 2 }, { 0xe0, 0xe0, 0xa0, 0xbf, 3 },
        { 0xe1, 0xec, 0x80, 0xbf, 3 }, { 0xed, 0xed, 0x80, 0x9f, 3 }, { 0xee, 0xef, 0x80, 0xbf, 3 },
        { 0xf0, 0xf0, 0x90, 0xbf, 4 }, { 0xf1, 0xf3, 0x80, 0xbf, 4 }, { 0xf4, 0xf4, 0x80, 0x8f, 4 },
    };

    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
        if (s[0] < rows[k].lead_lo || s[0] > rows[k].lead_hi)
            continue;
        /* The NUL at the end of the string fails each of these tests, so nothing past it is read. */
        if (rows[k].length > 1 && (s[1] < rows[k].second_lo || s[1] > rows[k].second_hi))
            return 0;
        for (size_t i = 2; i < rows[k].length; i++)
            if ((s[i] & 0xc0) != 0x80)
                return 0;
        return rows[k].length;
    }
    return 0;
}

bool qd_buf_add_json_string(qd_buf *b, const char *text)
{
    const size_t before = b->size;
    const unsigned char *s = (const unsigned char *)text;
    bool ok = qd_buf_add(b, "\"", 1);

    while (ok && *s) {
        const size_t n = utf8_length(s);
        if (n == 0) {
            ok = qd_buf_adds(b, "\xef\xbf\xbd");
            s++;
        } else if (n == 1 && (*s == '"' || *s == '\\')) {
            ok = qd_buf_addf(b, "\\%c", *s++);
        } else if (n == 1 && *s == '\n') {
            ok = qd_buf_adds(b, "\\n");
            s++;
        } else if (n == 1 && *s < 0x20) {
            ok = qd_buf_addf(b, "\\u%04x", *s++);
        } else {
            ok = qd_buf_add(b, s, n);
            s += n;
        }
    }
    ok = ok && qd_buf_add(b, "\"", 1);

    /* Half a string would be worse than none. */
    if (!ok && b->size > before) {
        b->size = before;
        b->data[before] = '\0';
    }
    return ok;
}

bool qd_buf_add_json_number(qd_buf *b, double v)
{
    if (!isfinite(v))
        return qd_buf_adds(b, "null");
    if (v == rint(v) && fabs(v) < 1e15)
        return qd_buf_addf(b, "%.0f", v);

    char text[32];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v)
            break;
    }
    return qd_buf_adds(b, text);
}

char *qd_buf_take(qd_buf *b, size_t *size)
{
    if (!b->data && !qd_buf_add(b, "", 0))
        return NULL;
    char *data = b->data;
    if (size)
        *size = b->size;
    qd_buf_init(b, b->ceiling);
    return data;
}

void qd_hex(char *out, const uint8_t *bytes, size_t n)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t k = 0; k < n; k++) {
        out[2 * k] = digits[bytes[k] >> 4];
        out[2 * k + 1] = digits[bytes[k] & 15];
    }
    out[2 * n] = '\0';
}
