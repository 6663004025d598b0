/* pickle_pick.c - which of a checkpoint's dicts is the network.
 *
 * Training programs put several into one file: weights, their running average, an optimizer's memory. A dict counts when it maps text
 * to tensors; what an optimizer keeps by number or under its name does not. Chosen is, in this order: the outermost called by one of
 * main_names, in the order of the list; the file itself, or the first dict of a list; the one with the most tensors. If beside it lies one that is called an
 * average (average_names), or in a list comes later, and has all its names, that is taken instead: a diffusion model draws better
 * with it, and ldm.c does the same. What all names begin with because a program wrapped its network (prefixes) is cut off. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/pickle_int.h"

enum { DEPTH_MAX = 8, CANDIDATES_MAX = 256 };

static const char *const main_names[] = { "state_dict", "model_state_dict", "model",   "model_state",
                                          "net",        "net_state_dict",   "network", "module",
                                          "unet",       "params",           "weights", NULL };
static const char *const average_names[] = { "ema",        "ema_state_dict", "state_dict_ema", "model_ema", "ema_model",
                                             "params_ema", "ema_params",     "shadow",         "g_ema",     NULL };
enum { WRAPPERS = 2 }; /* the first of these are PyTorch's own */
static const char *const prefixes[] = { "module.", "_orig_mod.", "model.", "net.", NULL };
/* Where this follows the prefix belongs to the name: builders look for it. */
static const char *const kept[] = { "model.diffusion_model.", NULL };

typedef struct candidate {
    const qd_pickle_items *dict;
    char path[160];
    uint32_t tensors;
    int depth;
    int main, average; /* index of its name in the lists, -1 = another */
    int list;          /* its place in the list that the file is, -1 = in none */
} candidate;

typedef struct walk {
    candidate at[CANDIDATES_MAX];
    int n;
} walk;

static int named(const char *const *names, const qd_pickle_value *key)
{
    for (int k = 0; key && names[k]; k++)
        if (qd_pickle_is(key, names[k]))
            return k;
    return -1;
}

static uint32_t count_tensors(const qd_pickle_items *dict)
{
    uint32_t n = 0;
    for (uint32_t k = 0; k < dict->n; k += 2)
        n += dict->at[k].kind == QD_PICKLE_TEXT && dict->at[k + 1].kind == QD_PICKLE_TENSOR;
    return n;
}

/* "<path>.<key>" or "<path>[index]", cut where it gets too long; characters that are not plain show as '?'. */
static void extend(char out[160], const char *path, const qd_pickle_value *key, uint32_t index)
{
    if (!key) {
        snprintf(out, 160, "%.140s[%u]", path, index);
        return;
    }
    char text[64];
    const size_t n = key->size < sizeof(text) - 1 ? key->size : sizeof(text) - 1;
    for (size_t k = 0; k < n; k++)
        text[k] = (char)(key->text[k] > 0x20 && key->text[k] < 0x7f ? key->text[k] : '?');
    text[n] = '\0';
    snprintf(out, 160, "%.90s%s%.60s", path, *path ? "." : "", text);
}

/* The memory of an optimizer: tensors by number, or under a name of its own. */
static bool of_optimizer(const qd_pickle_value *key)
{
    return key->kind != QD_PICKLE_TEXT || (key->size >= 5 && memmem(key->text, key->size, "optim", 5)) ||
           (key->size >= 5 && memmem(key->text, key->size, "sched", 5));
}

static void visit(walk *w, const qd_pickle_value *v, const char *path, const qd_pickle_value *key, int depth, int list)
{
    if (v->kind != QD_PICKLE_DICT && v->kind != QD_PICKLE_LIST && v->kind != QD_PICKLE_TUPLE)
        return;
    qd_pickle_items *items = v->items;
    if (items->seen || depth > DEPTH_MAX || w->n == CANDIDATES_MAX)
        return;
    items->seen = true;
    const bool dict = v->kind == QD_PICKLE_DICT;
    const uint32_t tensors = dict ? count_tensors(items) : 0;
    if (tensors) {
        candidate *c = &w->at[w->n++];
        *c = (candidate){ .dict = items,
                          .tensors = tensors,
                          .depth = depth,
                          .main = named(main_names, key),
                          .average = named(average_names, key),
                          .list = list };
        snprintf(c->path, sizeof(c->path), "%s", path);
    }
    for (uint32_t k = 0; k < items->n; k += dict ? 2 : 1) {
        char inner[160];
        const qd_pickle_value *value = &items->at[dict ? k + 1 : k];
        if (value->kind != QD_PICKLE_DICT && value->kind != QD_PICKLE_LIST && value->kind != QD_PICKLE_TUPLE)
            continue;
        if (dict && of_optimizer(&items->at[k]))
            continue;
        extend(inner, path, dict ? &items->at[k] : NULL, k);
        visit(w, value, inner, dict ? &items->at[k] : NULL, depth + 1,
              depth == 0 && !dict ? (int)(k < 1000000 ? k : 1000000)
              : depth == 0        ? -1
                                  : -2);
    }
}

/* Is a rather the network than b? */
static bool better(const candidate *a, const candidate *b)
{
    if ((a->main >= 0) != (b->main >= 0))
        return a->main >= 0;
    if (a->main >= 0 && a->depth != b->depth)
        return a->depth < b->depth;
    if (a->main != b->main)
        return a->main < b->main;
    const bool first_a = a->list == 0 || a->depth == 0, first_b = b->list == 0 || b->depth == 0;
    if (first_a != first_b)
        return first_a;
    if ((a->average >= 0) != (b->average >= 0))
        return b->average >= 0; /* an average is taken for what it covers, below */
    return a->tensors > b->tensors;
}

/* --- names --- */

static bool begins(const qd_pickle_value *key, const char *prefix)
{
    const size_t n = strlen(prefix);
    return key->size > n && memcmp(key->text, prefix, n) == 0;
}

static bool all_begin(const qd_pickle_items *dict, size_t skip, const char *prefix)
{
    for (uint32_t k = 0; k < dict->n; k += 2) {
        qd_pickle_value key = dict->at[k];
        if (key.kind != QD_PICKLE_TEXT || dict->at[k + 1].kind != QD_PICKLE_TENSOR)
            continue;
        if (key.size <= skip)
            return false;
        key.text += skip;
        key.size -= (uint32_t)skip;
        if (!begins(&key, prefix))
            return false;
        for (int j = 0; kept[j]; j++)
            if (begins(&key, kept[j]))
                return false;
    }
    return true;
}

/* A state_dict that is the whole file was saved by someone who meant its names: it loses those of wrappers only. */
static void find_prefix(const candidate *c, char out[64])
{
    out[0] = '\0';
    for (bool more = true; more && strlen(out) < 40;) {
        more = false;
        for (int k = 0; prefixes[k] && (k < WRAPPERS || *c->path) && !more; k++)
            if (all_begin(c->dict, strlen(out), prefixes[k])) {
                memcpy(out + strlen(out), prefixes[k], strlen(prefixes[k]) + 1);
                more = true;
            }
    }
}

typedef struct key_view {
    const char *text;
    size_t size;
} key_view;

static int by_text(const void *a, const void *b)
{
    const key_view *x = a, *y = b;
    const int order = memcmp(x->text, y->text, x->size < y->size ? x->size : y->size);
    return order ? order : x->size < y->size ? -1 : x->size > y->size;
}

static void list_keys(const candidate *c, key_view *out)
{
    const qd_pickle_items *dict = c->dict;
    char prefix[64];
    find_prefix(c, prefix);
    const size_t skip = strlen(prefix);
    for (uint32_t k = 0; k < dict->n; k += 2)
        if (dict->at[k].kind == QD_PICKLE_TEXT && dict->at[k + 1].kind == QD_PICKLE_TENSOR)
            *out++ = (key_view){ dict->at[k].text + skip, dict->at[k].size - skip };
}

/* Does b have every name a has, both without their prefixes? */
static qd_status covers(const candidate *a, const candidate *b, bool *out, qd_err *err)
{
    *out = false;
    if (b->tensors < a->tensors)
        return QD_OK;
    key_view *x = qd_calloc(a->tensors, sizeof(*x)), *y = qd_calloc(b->tensors, sizeof(*y));
    if (!x || !y) {
        qd_free(x);
        qd_free(y);
        return qd_fail(err, QD_E_NOMEM, "out of memory for the names of %u tensors", b->tensors);
    }
    list_keys(a, x);
    list_keys(b, y);
    qsort(y, b->tensors, sizeof(*y), by_text);
    *out = true;
    for (uint32_t k = 0; k < a->tensors && *out; k++)
        *out = bsearch(&x[k], y, b->tensors, sizeof(*y), by_text) != NULL;
    qd_free(x);
    qd_free(y);
    return QD_OK;
}

/* --- the choice --- */

static void add_beside(char out[256], const char *path)
{
    const size_t n = strlen(out), m = strlen(path);
    if (n + m + 3 < 256)
        snprintf(out + n, 256 - n, "%s%s", n ? ", " : "", path);
}

static qd_status choose(const walk *w, qd_pickle_pick *out, qd_err *err)
{
    const candidate *best = NULL, *average = NULL;
    for (int k = 0; k < w->n; k++)
        if (!best || better(&w->at[k], best))
            best = &w->at[k];
    if (!best)
        return qd_fail(err, QD_E_NOT_FOUND, "the checkpoint holds no dict of named tensors");
    for (int k = 0; k < w->n; k++) {
        const candidate *c = &w->at[k];
        bool whole;
        if (c == best || !(c->average >= 0 || (best->list == 0 && c->list > 0)))
            continue;
        const qd_status st = covers(best, c, &whole, err);
        if (st)
            return st;
        if (whole)
            average = c;
    }
    const candidate *chosen = average ? average : best;
    out->dict = chosen->dict;
    snprintf(out->path, sizeof(out->path), "%s", chosen->path);
    find_prefix(chosen, out->prefix);
    out->beside[0] = '\0';
    for (int k = 0; k < w->n; k++)
        if (&w->at[k] != chosen)
            add_beside(out->beside, w->at[k].path);
    return QD_OK;
}

qd_status qd_pickle_choose(const qd_pickle_value *root, qd_pickle_pick *out, qd_err *err)
{
    walk *w = qd_calloc(1, sizeof(*w));
    if (!w)
        return qd_fail(err, QD_E_NOMEM, "out of memory for looking through a checkpoint");
    visit(w, root, "", NULL, 0, -1);
    const qd_status st = choose(w, out, err);
    qd_free(w);
    return st;
}
