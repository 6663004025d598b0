/* weights.c - where builders get their tensors: a file, chance, or nothing at all. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/rng.h"
#include "nn/nn_int.h"

typedef enum source_kind { SOURCE_FILE, SOURCE_RANDOM, SOURCE_BLANK } source_kind;

typedef struct source_entry {
    const char *name; // lent by the weights
    const qd_tensor *tensor;
    unsigned taken; // which of its three parts; TAKEN_ALL for a tensor that has none
} source_entry;

#define TAKEN_ALL 7u

struct qd_weight_source {
    source_kind kind;
    qd_budget *budget;
    uint64_t seed;
    source_entry *entries; // [n], sorted by name
    int n;
    qd_weight_locate locate; // NULL = names as they are
    const void *locate_ctx;
    char scope[QD_NN_NAME]; // leftovers count below this prefix only
};

static int by_name(const void *a, const void *b)
{
    return strcmp(((const source_entry *)a)->name, ((const source_entry *)b)->name);
}

static source_entry *entry_find(const qd_weight_source *s, const char *name)
{
    const source_entry key = { .name = name };
    return s->n ? bsearch(&key, s->entries, (size_t)s->n, sizeof(key), by_name) : NULL;
}

static qd_status source_new(source_kind kind, uint64_t seed, qd_budget *budget, qd_weight_source **out, qd_err *err)
{
    qd_weight_source *s = qd_calloc(1, sizeof(*s));
    if (!s)
        return qd_fail(err, QD_E_NOMEM, "out of memory for a source of weights");
    s->kind = kind;
    s->seed = seed;
    s->budget = budget;
    *out = s;
    return QD_OK;
}

qd_status qd_weight_source_file(const qd_weights *w, qd_budget *budget, qd_weight_source **out, qd_err *err)
{
    qd_weight_source *s = NULL;
    qd_status st = source_new(SOURCE_FILE, 0, budget, &s, err);
    if (st)
        return st;
    s->n = qd_weights_count(w);
    s->entries = qd_calloc((size_t)s->n, sizeof(*s->entries));
    if (!s->entries) {
        qd_weight_source_free(s);
        return qd_fail(err, QD_E_NOMEM, "out of memory for a list of %d tensors", qd_weights_count(w));
    }
    for (int k = 0; k < s->n; k++)
        s->entries[k] = (source_entry){ .name = qd_weights_name(w, k), .tensor = qd_weights_at(w, k) };
    qsort(s->entries, (size_t)s->n, sizeof(*s->entries), by_name);
    *out = s;
    return QD_OK;
}

qd_status qd_weight_source_random(uint64_t seed, qd_budget *budget, qd_weight_source **out, qd_err *err)
{
    return source_new(SOURCE_RANDOM, seed, budget, out, err);
}

qd_status qd_weight_source_blank(qd_weight_source **out, qd_err *err)
{
    return source_new(SOURCE_BLANK, 0, NULL, out, err);
}

void qd_weight_source_free(qd_weight_source *s)
{
    if (!s)
        return;
    qd_free(s->entries);
    qd_free(s);
}

qd_status qd_weight_source_used_up(const qd_weight_source *s, qd_err *err)
{
    int left = 0;
    const char *first = NULL;
    for (int k = 0; k < s->n; k++)
        if (s->entries[k].taken != TAKEN_ALL && strncmp(s->entries[k].name, s->scope, strlen(s->scope)) == 0 &&
            left++ == 0)
            first = s->entries[k].name;
    if (left)
        return qd_fail(err, QD_E_FORMAT, "the network has no place for tensor '%s' of the file (%d such tensor%s)",
                       first, left, left == 1 ? "" : "s");
    return QD_OK;
}

void qd_weight_source_rename(qd_weight_source *s, qd_weight_locate locate, const void *ctx, const char *scope)
{
    s->locate = locate;
    s->locate_ctx = ctx;
    snprintf(s->scope, sizeof(s->scope), "%s", scope);
}

bool qd_rename_by(const qd_rename_row *rows, const char *before, const char *name, char out[QD_NN_NAME])
{
    for (; rows->ours; rows++) {
        const size_t n = strlen(rows->ours);
        if (strncmp(name, rows->ours, n) == 0)
            return snprintf(out, QD_NN_NAME, "%s%s%s", before, rows->theirs, name + n) < QD_NN_NAME;
    }
    return false;
}

bool qd_weight_source_is_file(const qd_weight_source *s)
{
    return s->kind == SOURCE_FILE;
}

const qd_tensor *qd_weight_source_peek(const qd_weight_source *s, const char *file_name)
{
    const source_entry *e = entry_find(s, file_name);
    return e ? e->tensor : NULL;
}

/* Where the file keeps what builders call `name`. */
static bool find_place(const qd_weight_source *s, const char *name, qd_weight_place *out)
{
    *out = (qd_weight_place){ .heads = 0 };
    if (s->locate)
        return s->locate(s->locate_ctx, name, out);
    return (size_t)snprintf(out->name, sizeof(out->name), "%s", name) < sizeof(out->name);
}

bool qd_weight_source_has(const qd_weight_source *s, const char *name)
{
    qd_weight_place place;
    return find_place(s, name, &place) && entry_find(s, place.name);
}

void qd_weight_source_drop(qd_weight_source *s, const char *name)
{
    qd_weight_place place;
    source_entry *e = find_place(s, name, &place) ? entry_find(s, place.name) : NULL;
    if (e)
        e->taken = TAKEN_ALL;
}

static qd_status scan_finite(const qd_tensor *t, const char *name, qd_err *err)
{
    const float *x = qd_f32(t);
    const int64_t n = qd_tensor_count(t);
    for (int64_t k = 0; k < n; k++)
        if (!isfinite(x[k]))
            return qd_fail(err, QD_E_NUMERIC, "tensor '%s' holds %s at element %lld; weights must be finite", name,
                           isnan(x[k]) ? "NaN" : "infinity", (long long)k);
    return QD_OK;
}

/* Is `have` what is wanted? A file with names of its own may keep 1x1 convolutions where linear layers are meant. */
static bool shape_fits(const qd_weight_source *s, const qd_shape *have, const qd_shape *want)
{
    qd_shape cut = *have;
    while (s->locate && cut.rank > want->rank && cut.dim[cut.rank - 1] == 1)
        cut.rank--;
    return qd_shape_equal(&cut, want);
}

/* The tensor of the file as f32 where the processor can read it; shared when it is both already. */
static qd_status open_f32(const qd_weight_source *s, const source_entry *e, qd_tensor *out, qd_err *err)
{
    if (e->tensor->dtype == QD_F16 || e->tensor->dtype == QD_BF16)
        return qd_tensor_cast(out, e->tensor, QD_F32, s->budget, err);
    if ((uintptr_t)e->tensor->data % sizeof(float)) /* a mapped file may put it anywhere */
        return qd_tensor_copy(out, e->tensor, s->budget, err);
    qd_tensor_share(out, e->tensor);
    return QD_OK;
}

/* One of the three that lie head by head in *t, which becomes it. */
static qd_status pick_part(const qd_weight_source *s, const qd_weight_place *place, const qd_shape *shape, qd_tensor *t,
                           qd_err *err)
{
    qd_tensor one = { 0 };
    qd_status st = qd_tensor_init(&one, QD_F32, shape, s->budget, err);
    if (st)
        return st;
    const int64_t block = qd_tensor_count(&one) / place->heads; /* elements of a head's rows */
    for (int64_t h = 0; h < place->heads; h++)
        memcpy(qd_f32(&one) + h * block, qd_f32(t) + (3 * h + place->part) * block, (size_t)block * sizeof(float));
    qd_tensor_clear(t);
    *t = one;
    return QD_OK;
}

static qd_status take_file(qd_weight_source *s, const char *name, const qd_shape *shape, qd_tensor *out, qd_err *err)
{
    char have[96], want[96];
    qd_weight_place place;
    qd_shape full = *shape;
    if (!find_place(s, name, &place))
        return qd_fail(err, QD_E_NOT_FOUND, "files of this kind have no tensor '%s'", name);
    if (place.heads) {
        if (full.dim[0] % place.heads)
            return qd_fail(err, QD_E_INVALID, "the %lld rows of '%s' cannot be shared by %lld heads",
                           (long long)full.dim[0], name, (long long)place.heads);
        full.dim[0] *= 3;
    }
    const unsigned taken = place.heads ? 1u << place.part : TAKEN_ALL;
    source_entry *e = entry_find(s, place.name);
    if (!e)
        return qd_fail(err, QD_E_NOT_FOUND, "the file has no tensor '%s' (wanted: f32 %s)", place.name,
                       qd_shape_text(&full, want, sizeof(want)));
    if (e->taken & taken)
        return qd_fail(err, QD_E_INTERNAL, "tensor '%s' is asked for twice", place.name);
    if (!shape_fits(s, &e->tensor->shape, &full))
        return qd_fail(err, QD_E_FORMAT, "tensor '%s' has shape %s, the config asks for %s", place.name,
                       qd_shape_text(&e->tensor->shape, have, sizeof(have)), qd_shape_text(&full, want, sizeof(want)));
    if (e->tensor->dtype != QD_F32 && e->tensor->dtype != QD_F16 && e->tensor->dtype != QD_BF16)
        return qd_fail(err, QD_E_UNSUPPORTED, "tensor '%s' is %s; weights must be f32, f16 or bf16", place.name,
                       qd_dtype_name(e->tensor->dtype));

    qd_tensor t = { 0 };
    qd_status st = open_f32(s, e, &t, err);
    if (!st && place.heads)
        st = pick_part(s, &place, shape, &t, err);
    if (st) {
        qd_tensor_clear(&t);
        return qd_fail_in(err, st, "tensor '%s'", place.name);
    }
    t.shape = *shape; /* without trailing ones */
    st = scan_finite(&t, place.name, err);
    if (st) {
        qd_tensor_clear(&t);
        return st;
    }
    e->taken |= taken;
    *out = t;
    return QD_OK;
}

/* Each tensor draws from a stream of its own, named by its name (FNV-1a), so that a layer more or less moves no other. */
static uint64_t name_stream(const char *name)
{
    uint64_t h = 14695981039346656037ull;
    for (const char *c = name; *c; c++)
        h = (h ^ (uint8_t)*c) * 1099511628211ull;
    return QD_STREAM_WEIGHTS | (h >> 8);
}

static qd_status take_random(qd_weight_source *s, const char *name, const qd_shape *shape, qd_init init, int64_t fan_in,
                             qd_tensor *out, qd_err *err)
{
    qd_tensor t = { 0 };
    qd_status st = qd_tensor_init(&t, QD_F32, shape, s->budget, err);
    if (st)
        return qd_fail_in(err, st, "tensor '%s'", name);
    float *x = qd_f32(&t);
    const int64_t n = qd_tensor_count(&t);
    if (init == QD_INIT_ONE) {
        for (int64_t k = 0; k < n; k++)
            x[k] = 1.0f;
    } else if (init == QD_INIT_NORMAL) {
        qd_rng_normal(x, (size_t)n, s->seed, name_stream(name), 0);
    } else if (init == QD_INIT_UNIFORM) {
        const float bound = (float)(1.0 / sqrt((double)fan_in));
        qd_rng r;
        qd_rng_init(&r, s->seed, name_stream(name));
        for (int64_t k = 0; k < n; k++)
            x[k] = (2.0f * qd_rng_uniform(&r) - 1.0f) * bound;
    }
    *out = t;
    return QD_OK;
}

typedef struct blank_pages {
    void *data;
    size_t size;
} blank_pages;

static void blank_release(void *owner)
{
    blank_pages *p = owner;
    munmap(p->data, p->size);
    qd_free(p);
}

/* Zero pages that cost nothing until they are read. */
static qd_status take_blank(const char *name, const qd_shape *shape, qd_tensor *out, qd_err *err)
{
    int64_t count;
    qd_status st = qd_shape_count(shape, &count, err);
    if (st)
        return qd_fail_in(err, st, "tensor '%s'", name);
    size_t size;
    blank_pages *p = qd_alloc(sizeof(*p));
    if (!p || !qd_mul_size((size_t)count, sizeof(float), &size)) {
        qd_free(p);
        return qd_fail(err, QD_E_NOMEM, "out of memory for tensor '%s'", name);
    }
    p->size = size ? size : 1;
    p->data = mmap(NULL, p->size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p->data == MAP_FAILED) {
        qd_free(p);
        return qd_fail(err, QD_E_NOMEM, "no address space for the %zu bytes of tensor '%s'", size, name);
    }
    st = qd_tensor_wrap(out, QD_F32, shape, p->data, p, blank_release, err);
    if (st)
        blank_release(p);
    return st;
}

qd_status qd_weight_source_take(qd_weight_source *s, const char *name, const qd_shape *shape, qd_init init,
                                int64_t fan_in, qd_tensor *out, qd_err *err)
{
    switch (s->kind) {
    case SOURCE_FILE:
        return take_file(s, name, shape, out, err);
    case SOURCE_RANDOM:
        return take_random(s, name, shape, init, fan_in, out, err);
    case SOURCE_BLANK:
        break;
    }
    return take_blank(name, shape, out, err);
}
