/* blocks.c - what is reconstructed together: residual blocks, attention, transformer blocks, single layers (qncd.md 4.3).
 *
 * They are found by the form of the graph, so that imported networks with other names have them too. A block closes with an add of two
 * values of the image, both computed from the one value that every path to it passes (its dominator): what lies between, with at
 * least one quantized layer in it, no smaller such block and no other value leaving it. Runs of such blocks over tokens, attention
 * first and a feed-forward last, are one transformer block. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "quant/recon_int.h"

/* A block while it is looked for. */
typedef struct region {
    qd_node_id entry, out;
    bool tokens, attends;
    bool merged; /* is part of a transformer block */
    bool whole;  /* is one */
} region;

typedef struct finder {
    const qd_layout *l;
    const qd_graph *g;
    int n;
    qd_shape *shapes;   // batch 1
    bool *on_sample;    /* depends on the image */
    bool *learned;      /* depends on a quantized layer, but not on the image */
    int *layer_of;      // number in the layout, -1 = no layer
    qd_node_id *parent; /* the nearest value of the image that all paths pass; -1 = none */
    int *owner;         /* number of the region a node is in, -1 = none */
    region *regions;
    int n_regions;
    qd_node_id *stack;
    bool *seen;
    qd_blocks *out;
} finder;

static bool is_quantized(const finder *f, qd_node_id id)
{
    return f->layer_of[id] >= 0 && !f->l->layers[f->layer_of[id]].note;
}

static qd_status alloc_all(finder *f, qd_arena *a, qd_err *err)
{
    const size_t n = (size_t)f->n + 1;
    f->shapes = qd_arena_alloc(a, n * sizeof *f->shapes);
    f->on_sample = qd_arena_alloc(a, n * sizeof *f->on_sample);
    f->learned = qd_arena_alloc(a, n * sizeof *f->learned);
    f->layer_of = qd_arena_alloc(a, n * sizeof *f->layer_of);
    f->parent = qd_arena_alloc(a, n * sizeof *f->parent);
    f->owner = qd_arena_alloc(a, n * sizeof *f->owner);
    f->regions = qd_arena_alloc(a, n * sizeof *f->regions);
    f->stack = qd_arena_alloc(a, n * sizeof *f->stack);
    f->seen = qd_arena_alloc(a, n * sizeof *f->seen);
    f->out->cut = qd_arena_alloc(&f->out->arena, n * sizeof *f->out->cut);
    f->out->block = qd_arena_alloc(&f->out->arena, n * sizeof *f->out->block);
    if (!f->shapes || !f->on_sample || !f->learned || !f->layer_of || !f->parent || !f->owner || !f->regions ||
        !f->stack || !f->seen || !f->out->cut || !f->out->block)
        return qd_fail(err, QD_E_NOMEM, "no memory to find the blocks of %d nodes", f->n);
    return QD_OK;
}

/* The nearest common ancestor in the tree of parents: ids rise from ancestor to descendant. */
static qd_node_id common(const finder *f, qd_node_id a, qd_node_id b)
{
    while (a != b) {
        if (a > b)
            a = f->parent[a];
        else
            b = f->parent[b];
        if (a < 0 || b < 0)
            return -1;
    }
    return a;
}

static void mark(finder *f)
{
    for (int k = 0; k < f->n; k++)
        f->layer_of[k] = f->owner[k] = -1;
    for (int k = 0; k < f->l->n_layers; k++)
        f->layer_of[f->l->layers[k].id] = k;
    for (qd_node_id id = 0; id < f->n; id++) {
        const qd_node *n = qd_graph_node(f->g, id);
        f->on_sample[id] = id == f->l->input;
        f->parent[id] = -1;
        bool first = true, learned = is_quantized(f, id);
        for (int k = 0; k < n->n_inputs; k++) {
            const qd_node_id x = n->input[k];
            if (x >= 0 && f->on_sample[x]) {
                f->on_sample[id] = true;
                f->parent[id] = first ? x : common(f, f->parent[id], x);
                first = false;
            }
            learned |= x >= 0 && f->learned[x];
        }
        f->learned[id] = learned && !f->on_sample[id];
    }
}

/* Visit what `out` is computed from: values of the image up to `entry`, which is not visited itself. seen[] has the marks. */
static int walk(finder *f, qd_node_id out, qd_node_id entry)
{
    int n = 0, depth = 0;
    f->stack[depth++] = out;
    f->seen[out] = true;
    while (depth) {
        const qd_node *node = qd_graph_node(f->g, f->stack[--depth]);
        n++;
        for (int k = 0; k < node->n_inputs; k++) {
            const qd_node_id x = node->input[k];
            if (x < 0 || x == entry || f->seen[x] || !f->on_sample[x])
                continue;
            f->seen[x] = true;
            f->stack[depth++] = x;
        }
    }
    return n;
}

static void forget(finder *f)
{
    memset(f->seen, 0, (size_t)f->n * sizeof *f->seen);
}

/* Is `out` the only value seen that anything else reads? */
static bool is_closed(const finder *f, qd_node_id entry, qd_node_id out)
{
    for (qd_node_id id = entry + 1; id < f->n; id++) {
        const qd_node *n = qd_graph_node(f->g, id);
        if (f->seen[id])
            continue;
        for (int k = 0; k < n->n_inputs; k++)
            if (n->input[k] >= 0 && n->input[k] != out && f->seen[n->input[k]])
                return false;
    }
    for (int k = 0; k < qd_graph_outputs(f->g); k++) {
        const qd_node_id id = qd_graph_output_at(f->g, k);
        if (id != out && f->seen[id])
            return false;
    }
    return true;
}

/* An affine node that alone reads the sum belongs to the block (output_scale_factor). */
static qd_node_id with_scale(const finder *f, qd_node_id id)
{
    qd_node_id reader = -1;
    for (int k = 0; k < qd_graph_outputs(f->g); k++)
        if (qd_graph_output_at(f->g, k) == id)
            return id;
    for (qd_node_id x = id + 1; x < f->n; x++) {
        const qd_node *n = qd_graph_node(f->g, x);
        for (int k = 0; k < n->n_inputs; k++) {
            if (n->input[k] != id)
                continue;
            if (reader >= 0 || n->op != &qd_op_affine)
                return id;
            reader = x;
        }
    }
    return reader >= 0 ? reader : id;
}

static void try_residual(finder *f, qd_node_id id)
{
    const qd_node *n = qd_graph_node(f->g, id);
    if (n->op != &qd_op_add || !f->on_sample[n->input[0]] || !f->on_sample[n->input[1]] ||
        !qd_shape_equal(&f->shapes[n->input[0]], &f->shapes[n->input[1]]) || f->parent[id] < 0 ||
        qd_low_rank_is_sum(f->g, id))
        return;
    region r = { .entry = f->parent[id], .out = with_scale(f, id), .tokens = f->shapes[id].rank == 3 };
    bool fits = true;
    int layers = 0;
    walk(f, r.out, r.entry);
    for (qd_node_id x = r.entry + 1; x <= r.out; x++) {
        if (!f->seen[x])
            continue;
        const qd_op *op = qd_graph_node(f->g, x)->op;
        fits &= f->owner[x] < 0;
        layers += is_quantized(f, x);
        r.attends |= op == &qd_op_attention || op == &qd_op_softmax;
    }
    fits = fits && layers && is_closed(f, r.entry, r.out);
    if (fits) {
        for (qd_node_id x = r.entry + 1; x <= r.out; x++)
            if (f->seen[x])
                f->owner[x] = f->n_regions;
        f->regions[f->n_regions++] = r;
    }
    forget(f);
}

/* Attention, perhaps attention again, feed-forward: each takes what the one before it gives. */
static void merge_tokens(finder *f)
{
    for (int k = 0; k < f->n_regions; k++) {
        region *first = &f->regions[k];
        int chain[4] = { k }, length = 1;
        bool complete = false;
        if (!first->tokens || !first->attends || first->merged)
            continue;
        while (!complete && length < 3) {
            int next = -1;
            for (int j = 0; j < f->n_regions; j++)
                if (f->regions[j].entry == f->regions[chain[length - 1]].out && f->regions[j].tokens)
                    next = j;
            if (next < 0)
                break;
            chain[length++] = next;
            complete = !f->regions[next].attends;
        }
        if (!complete)
            continue;
        region *last = &f->regions[chain[length - 1]];
        walk(f, last->out, first->entry);
        if (is_closed(f, first->entry, last->out)) {
            for (int j = 0; j + 1 < length; j++)
                f->regions[chain[j]].merged = true;
            for (qd_node_id x = first->entry + 1; x <= last->out; x++)
                if (f->seen[x])
                    f->owner[x] = chain[length - 1];
            last->entry = first->entry;
            last->whole = true;
        }
        forget(f);
    }
}

/* Quantized layers that do not read the image (of a context, say) go to the one region that reads them. */
static void adopt(finder *f)
{
    for (int k = 0; k < f->l->n_layers; k++) {
        const qd_node_id id = f->l->layers[k].id;
        int home = -1;
        if (!is_quantized(f, id) || f->on_sample[id])
            continue;
        f->seen[id] = true;
        for (qd_node_id x = id + 1; x < f->n && home > -2; x++) {
            const qd_node *n = qd_graph_node(f->g, x);
            bool reads = false;
            for (int j = 0; j < n->n_inputs; j++)
                reads |= n->input[j] >= 0 && f->seen[n->input[j]];
            if (!reads)
                continue;
            if (!f->on_sample[x])
                f->seen[x] = true;
            else
                home = f->owner[x] >= 0 && (home == -1 || home == f->owner[x]) ? f->owner[x] : -2;
        }
        f->owner[id] = home >= 0 ? home : -1;
        forget(f);
    }
}

static const char *kind_of(const region *r)
{
    return r->whole ? "transformer" : r->attends ? "attention" : "resblock";
}

static qd_block *add_block(finder *f, qd_node_id out, const char *kind)
{
    qd_block *b = &f->out->block[f->out->n++];
    snprintf(b->name, sizeof b->name, "%s", qd_graph_node(f->g, out)->name);
    b->kind = kind;
    b->out = out;
    f->out->cut[out] = true;
    return b;
}

static qd_status set_layers(finder *f, qd_block *b, int owner, qd_err *err)
{
    for (int pass = 0; pass < 2; pass++) {
        b->n_layers = 0;
        for (int k = 0; k < f->l->n_layers; k++) {
            const qd_node_id id = f->l->layers[k].id;
            if (!is_quantized(f, id) || (owner >= 0 ? f->owner[id] != owner : id != b->out))
                continue;
            if (pass)
                b->layers[b->n_layers] = k;
            b->n_layers++;
        }
        if (!pass)
            b->layers = qd_arena_alloc(&f->out->arena, ((size_t)b->n_layers + 1) * sizeof *b->layers);
        if (!b->layers)
            return qd_fail(err, QD_E_NOMEM, "no memory for %d layers of a block", b->n_layers);
    }
    return QD_OK;
}

/* Blocks by rising id of what they make, which is an order in which every block comes after those it reads. */
static qd_status list_blocks(finder *f, qd_err *err)
{
    qd_status st = QD_OK;
    for (qd_node_id id = 0; id < f->n && !st; id++) {
        const int owner = f->owner[id];
        const bool is_layer = f->layer_of[id] >= 0;
        if (owner >= 0 && f->regions[owner].out == id)
            st = set_layers(f, add_block(f, id, kind_of(&f->regions[owner])), owner, err);
        else if (owner < 0 && is_layer && is_quantized(f, id))
            st = set_layers(f, add_block(f, id, "layer"), -1, err);
        else if (owner < 0 && is_layer && f->on_sample[id])
            add_block(f, id, "float");
    }
    return st;
}

/* Where a walk back from a block's value ends. */
typedef bool (*ends)(const finder *f, const qd_block *b, qd_node_id id);

static bool at_cut(const finder *f, const qd_block *b, qd_node_id id)
{
    return id != b->out && f->out->cut[id];
}

/* A single layer takes what it reads; others what blocks before made; all of them what comes of the time step alone. */
static bool at_boundary(const finder *f, const qd_block *b, qd_node_id id)
{
    if (id == b->out || qd_graph_node(f->g, id)->op == &qd_op_const)
        return false;
    if (b->n_layers == 1 && f->l->layers[b->layers[0]].id == b->out && qd_graph_node(f->g, b->out)->input[0] == id)
        return true;
    return f->out->cut[id] || (!f->on_sample[id] && !f->learned[id]);
}

/* fed[id]: is it made of more than constants? */
static qd_status collect(finder *f, qd_block *b, ends stop, const bool *fed, qd_node_id **out, int *n_out, qd_err *err)
{
    int depth = 0, n = 0;
    f->stack[depth++] = b->out;
    f->seen[b->out] = true;
    while (depth) {
        const qd_node *node = qd_graph_node(f->g, f->stack[--depth]);
        for (int k = 0; k < node->n_inputs; k++) {
            const qd_node_id x = node->input[k];
            if (x < 0 || f->seen[x] || !fed[x])
                continue;
            f->seen[x] = true;
            if (stop(f, b, x))
                n++;
            else
                f->stack[depth++] = x;
        }
    }
    qd_node_id *list = qd_arena_alloc(&f->out->arena, ((size_t)n + 1) * sizeof *list);
    if (!list)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d values of a block", n);
    n = 0;
    for (qd_node_id id = 0; id < b->out; id++)
        if (f->seen[id] && stop(f, b, id))
            list[n++] = id;
    forget(f);
    *out = list;
    *n_out = n;
    return QD_OK;
}

static qd_status set_boundaries(finder *f, qd_arena *a, qd_err *err)
{
    bool *fed = qd_arena_alloc(a, (size_t)f->n + 1);
    qd_status st = fed ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory to mark %d nodes", f->n);
    for (qd_node_id id = 0; id < f->n && !st; id++) {
        const qd_node *n = qd_graph_node(f->g, id);
        fed[id] = n->op == &qd_op_input;
        for (int k = 0; k < n->n_inputs; k++)
            fed[id] |= n->input[k] >= 0 && fed[n->input[k]];
    }
    for (int k = 0; k < f->out->n && !st; k++) {
        qd_block *b = &f->out->block[k];
        st = collect(f, b, at_cut, fed, &b->feeds, &b->n_feeds, err);
        if (!st)
            st = collect(f, b, at_boundary, fed, &b->entry, &b->n_entry, err);
    }
    return st;
}

qd_status qd_blocks_find(const qd_layout *l, bool single, qd_blocks *out, qd_err *err)
{
    finder f = { .l = l, .g = l->graph, .n = qd_graph_size(l->graph), .out = out };
    qd_arena a;
    qd_arena_init(&a);
    qd_arena_init(&out->arena);
    qd_status st = alloc_all(&f, &a, err);
    if (!st)
        st = qd_layout_shapes(l->graph, f.shapes, err);
    if (st)
        goto out;
    mark(&f);
    for (qd_node_id id = 0; id < f.n && !single; id++)
        if (f.on_sample[id])
            try_residual(&f, id);
    merge_tokens(&f);
    adopt(&f);
    for (int k = 0; k < qd_graph_inputs(l->graph); k++)
        out->cut[qd_graph_input_at(l->graph, k)] = true;
    st = list_blocks(&f, err);
    if (!st)
        st = set_boundaries(&f, &a, err);
out:
    qd_arena_clear(&a);
    return st;
}

void qd_blocks_clear(qd_blocks *b)
{
    qd_arena_clear(&b->arena);
    *b = (qd_blocks){ 0 };
}
