/* names.c - strings in the order they came, found by hash: the index under weights and metadata. */
#include "model/model_int.h"

#include <assert.h>
#include <string.h>

#define SLOTS_MIN 16u

/* FNV-1a, 64 bit, with a last mix because the low bits choose the slot. */
static uint64_t hash(const char *s)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (; *s; s++) {
        h ^= (uint8_t)*s;
        h *= 0x100000001b3u;
    }
    h ^= h >> 32;
    h *= 0xd6e8feb86659fd93u;
    return h ^ (h >> 32);
}

static void slot_put(uint32_t *slot, size_t n_slots, const char *name, uint32_t value)
{
    size_t k = hash(name) & (n_slots - 1);

    while (slot[k])
        k = (k + 1) & (n_slots - 1);
    slot[k] = value;
}

void qd_names_clear(qd_names *n)
{
    for (int k = 0; k < n->count; k++)
        qd_free(n->name[k]);
    qd_free(n->name);
    qd_free(n->slot);
    *n = (qd_names){ 0 };
}

int qd_names_find(const qd_names *n, const char *name)
{
    if (n->count == 0)
        return -1;
    for (size_t k = hash(name) & (n->n_slots - 1); n->slot[k]; k = (k + 1) & (n->n_slots - 1))
        if (strcmp(n->name[n->slot[k] - 1], name) == 0)
            return (int)n->slot[k] - 1;
    return -1;
}

/* Twice the room, and the slots laid anew: at most half of them are ever taken. */
static qd_status grow(qd_names *n, qd_err *err)
{
    const size_t capacity = n->capacity ? (size_t)n->capacity * 2 : SLOTS_MIN / 2;
    const size_t n_slots = capacity * 2;
    uint32_t *slot = NULL;
    char **name;

    if (capacity > INT32_MAX / 2)
        return qd_fail(err, QD_E_LIMIT, "more than %d names", n->capacity);
    name = qd_realloc(n->name, capacity * sizeof(*name));
    if (!name)
        return qd_fail(err, QD_E_NOMEM, "out of memory for %zu names", capacity);
    n->name = name;
    slot = qd_calloc(n_slots, sizeof(*slot));
    if (!slot)
        return qd_fail(err, QD_E_NOMEM, "out of memory for an index of %zu names", capacity);
    for (int k = 0; k < n->count; k++)
        slot_put(slot, n_slots, n->name[k], (uint32_t)k + 1);
    qd_free(n->slot);
    n->slot = slot;
    n->n_slots = n_slots;
    n->capacity = (int)capacity;
    return QD_OK;
}

qd_status qd_names_add(qd_names *n, const char *name, qd_err *err)
{
    char *copy;

    assert(qd_names_find(n, name) < 0);
    if (n->count == n->capacity) {
        qd_status st = grow(n, err);
        if (st)
            return st;
    }
    copy = qd_strdup(name);
    if (!copy)
        return qd_fail(err, QD_E_NOMEM, "out of memory for the name '%.80s'", name);
    n->name[n->count++] = copy;
    slot_put(n->slot, n->n_slots, copy, (uint32_t)n->count);
    return QD_OK;
}

bool qd_utf8_valid(const char *s)
{
    const uint8_t *p = (const uint8_t *)s;

    while (*p) {
        uint32_t c = *p++, least;
        int more;

        if (c < 0x80)
            continue;
        if (c >= 0xc2 && c <= 0xdf) {
            more = 1, least = 0x80, c &= 0x1f;
        } else if (c >= 0xe0 && c <= 0xef) {
            more = 2, least = 0x800, c &= 0x0f;
        } else if (c >= 0xf0 && c <= 0xf4) {
            more = 3, least = 0x10000, c &= 0x07;
        } else {
            return false;
        }
        for (; more > 0; more--, p++) {
            if ((*p & 0xc0) != 0x80)
                return false;
            c = c << 6 | (*p & 0x3f);
        }
        if (c < least || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
            return false;
    }
    return true;
}

const char *qd_base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}
