/* cpu_winograd.c - 3 x 3 convolutions of training by Winograd's F(4 x 4, 3 x 3) (Lavin and Gray 2016): a quarter of the products.
 *
 * Forward, and back to the input with the filters turned round: blocks of tiles go there, through 36 products with the weights, and back,
 * each block on one thread. Back to the weights the tiles are the depth of 36 products that add up block after block. Blocks and
 * products are cut by shape alone: threads do not matter. Rounding is some ten times that of the direct sum. */
#include <string.h>

#include "base/par.h"
#include "plan/cpu_train.h"
#include "plan/wino_simd.h"

enum {
    SIDE = 4,
    POINTS = 36,
    CHANNELS = 16 /* divides both numbers of channels */,
    FEWEST = 32 /* of them: below, tiles cost what products save */
};

#define BLOCK_BYTES ((int64_t)1 << 20) /* of the tiles a thread works on: about its cache */
#define BLOCK_LEAST 48                 /* tiles; fewer do not pay for reading the weights */
#define DEPTH_AT_ONCE 256              /* of a product: so much of a panel stays near */
#define WEIGHT_TILES 192               /* of a block back to the weights */

typedef struct wino_state {
    const qd_wino_simd *simd;
    qd_conv_train_step c;
    /* What is read by tiles of 6 x 6 and what lies under those of 4 x 4: x and y, or dy and dx. */
    int64_t in_h, in_w, in_c, out_h, out_w, out_c, pad_t, pad_l;
    int64_t high, wide, tiles; /* of an image; of all */
    int64_t block, blocks;     /* tiles of a block */
    int64_t in_wide, out_wide; /* out_c rounded up to panels */
    const float *image, *second, *bias;
    float *dst;
    float *u;             // [36][panels][in_c][PANEL]; by weight [36][in_c][out_wide]
    float *work;          // for each thread (by weight: once): [36][block][in_c], [36][block][out_wide]
    int64_t work_floats;  // for each thread
    int64_t first, count; // by weight: tiles of the block at hand
} wino_state;

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t up_to(int64_t n, int64_t step)
{
    return (n + step - 1) / step * step;
}

static qd_wino_tile tile_at(const wino_state *w, int64_t tile, bool in)
{
    const int64_t y = tile / w->wide % w->high * SIDE, x = tile % w->wide * SIDE;
    if (in)
        return (qd_wino_tile){ .h = w->in_h, .w = w->in_w, .c = w->in_c, .y = y - w->pad_t, .x = x - w->pad_l };
    return (qd_wino_tile){ .h = w->out_h, .w = w->out_w, .c = w->out_c, .y = y, .x = x };
}

static int64_t sample_of(const wino_state *w, int64_t tile)
{
    return tile / (w->wide * w->high);
}

/* --- forward, and back to the input --- */

/* The filters of one panel of outputs for one input channel. */
static void weight_piece(void *ctx, int64_t i)
{
    const wino_state *w = ctx;
    const bool back = w->c.pass == QD_CONV_BACK_INPUT;
    const int64_t panels = w->out_wide / QD_WINO_PANEL, panel = i % panels, k = i / panels;
    const int64_t first = panel * QD_WINO_PANEL, lanes = least(QD_WINO_PANEL, w->out_c - first);
    /* The weights are [o][c][9]: outputs are o forward and c on the way back. */
    const int64_t lane_stride = back ? 9 : w->in_c * 9, step = back ? w->out_c * 9 : 9;
    w->simd->weight(w->u + (panel * w->in_c + k) * QD_WINO_PANEL, panels * w->in_c * QD_WINO_PANEL,
                    w->second + first * lane_stride + k * step, lane_stride, back, lanes);
}

static void products(const wino_state *w, float *m, const float *v, int64_t rows)
{
    const int64_t panels = w->out_wide / QD_WINO_PANEL;
    for (int64_t point = 0; point < POINTS; point++)
        for (int64_t panel = 0; panel < panels; panel++)
            for (int64_t k = 0; k < w->in_c; k += DEPTH_AT_ONCE)
                w->simd->product(m + point * w->block * w->out_wide + panel * QD_WINO_PANEL, w->out_wide,
                                 v + point * w->block * w->in_c + k, w->in_c, 1,
                                 w->u + ((point * panels + panel) * w->in_c + k) * QD_WINO_PANEL, QD_WINO_PANEL, rows,
                                 least(DEPTH_AT_ONCE, w->in_c - k), k > 0);
}

static void block_piece(void *ctx, int64_t i)
{
    const wino_state *w = ctx;
    float *v = w->work + (int64_t)qd_par_thread() * w->work_floats, *m = v + POINTS * w->block * w->in_c;
    const int64_t first = i * w->block, count = least(w->block, w->tiles - first), rows = up_to(count, 4);
    for (int64_t k = 0; k < count; k++) {
        const qd_wino_tile t = tile_at(w, first + k, true);
        w->simd->input(v + k * w->in_c, w->block * w->in_c,
                       w->image + sample_of(w, first + k) * w->in_h * w->in_w * w->in_c, &t);
    }
    for (int64_t point = 0; point < POINTS && rows > count; point++)
        memset(v + (point * w->block + count) * w->in_c, 0, (size_t)((rows - count) * w->in_c) * sizeof(float));
    products(w, m, v, rows);
    for (int64_t k = 0; k < count; k++) {
        const qd_wino_tile t = tile_at(w, first + k, false);
        w->simd->output(w->dst + sample_of(w, first + k) * w->out_h * w->out_w * w->out_c, m + k * w->out_wide,
                        w->block * w->out_wide, w->bias, &t);
    }
}

static void resolve(qd_plan *p, qd_step *s)
{
    wino_state *w = s->state;
    w->image = qd_plan_data(p, w->c.image);
    w->second = qd_plan_data(p, w->c.second);
    w->bias = w->c.bias < 0 ? NULL : qd_plan_data(p, w->c.bias);
    w->dst = qd_plan_data(p, s->out);
    w->u = qd_plan_scratch(p, s);
    w->work = w->u + POINTS * w->in_c * w->out_wide;
}

static qd_status run_tiles(qd_plan *p, qd_step *s, qd_err *err)
{
    wino_state *w = s->state;
    resolve(p, s);
    qd_par_for(s->threads, w->in_c * (w->out_wide / QD_WINO_PANEL), weight_piece, w);
    qd_par_for(s->threads, w->blocks, block_piece, w);
    return QD_OK;
}

/* --- back to the weights --- */

static void both_piece(void *ctx, int64_t k)
{
    const wino_state *w = ctx;
    float *v = w->work, *m = v + POINTS * w->block * w->in_c;
    const int64_t tile = w->first + k, sample = sample_of(w, tile);
    const qd_wino_tile in = tile_at(w, tile, true), out = tile_at(w, tile, false);
    w->simd->input(v + k * w->in_c, w->block * w->in_c, w->image + sample * w->in_h * w->in_w * w->in_c, &in);
    w->simd->spread(m + k * w->out_wide, w->block * w->out_wide, w->second + sample * w->out_h * w->out_w * w->out_c,
                    &out);
}

static void point_piece(void *ctx, int64_t i)
{
    const wino_state *w = ctx;
    const int64_t panels = w->out_wide / QD_WINO_PANEL, point = i / panels, panel = i % panels;
    const float *v = w->work + point * w->block * w->in_c;
    const float *m = w->work + POINTS * w->block * w->in_c + point * w->block * w->out_wide + panel * QD_WINO_PANEL;
    w->simd->product(w->u + point * w->in_c * w->out_wide + panel * QD_WINO_PANEL, w->out_wide, v, 1, w->in_c, m,
                     w->out_wide, w->in_c, w->count, w->first > 0);
}

static void unweight_piece(void *ctx, int64_t c)
{
    const wino_state *w = ctx;
    w->simd->unweight(w->dst + c * 9, w->in_c * 9, w->u + c * w->out_wide, w->in_c * w->out_wide, w->out_c);
}

static qd_status run_weight(qd_plan *p, qd_step *s, qd_err *err)
{
    wino_state *w = s->state;
    resolve(p, s);
    if (w->out_wide > w->out_c) /* what lies behind the channels is multiplied too */
        memset(w->work + POINTS * w->block * w->in_c, 0, (size_t)(POINTS * w->block * w->out_wide) * sizeof(float));
    for (w->first = 0; w->first < w->tiles; w->first += w->block) {
        w->count = least(w->block, w->tiles - w->first);
        qd_par_for(s->threads, w->count, both_piece, w);
        qd_par_for(s->threads, POINTS * (w->out_wide / QD_WINO_PANEL), point_piece, w);
    }
    qd_par_for(s->threads, w->in_c, unweight_piece, w);
    return QD_OK;
}

/* --- which, and how --- */

bool qd_winograd_fits(const qd_conv_train_step *c)
{
    const qd_conv_shape *s = &c->shape;
    const int64_t high = (s->oh + SIDE - 1) / SIDE, wide = (s->ow + SIDE - 1) / SIDE;
    return s->kh == 3 && s->kw == 3 && s->stride_h == 1 && s->stride_w == 1 && s->dil_h == 1 && s->dil_w == 1 &&
           s->groups == 1 && s->pad_t <= 2 && s->pad_l <= 2 && s->c % CHANNELS == 0 && s->o % CHANNELS == 0 &&
           s->c >= FEWEST && s->o >= FEWEST &&
           high * wide * POINTS * 2 < s->oh * s->ow * 9; /* less than half the products, for the way there and back */
}

static void measure(wino_state *w)
{
    const qd_conv_shape *s = &w->c.shape;
    const bool back = w->c.pass == QD_CONV_BACK_INPUT, by_weight = w->c.pass == QD_CONV_BACK_WEIGHT;
    w->in_h = back ? s->oh : s->h;
    w->in_w = back ? s->ow : s->w;
    w->in_c = back ? s->o : s->c;
    w->out_h = back ? s->h : s->oh;
    w->out_w = back ? s->w : s->ow;
    w->out_c = back ? s->c : s->o;
    w->pad_t = back ? 2 - s->pad_t : s->pad_t;
    w->pad_l = back ? 2 - s->pad_l : s->pad_l;
    w->high = (w->out_h + SIDE - 1) / SIDE;
    w->wide = (w->out_w + SIDE - 1) / SIDE;
    w->tiles = s->n * w->high * w->wide;
    w->out_wide = up_to(w->out_c, QD_WINO_PANEL);
    const int64_t fit = BLOCK_BYTES / (POINTS * (int64_t)sizeof(float) * (w->in_c + w->out_wide));
    const int64_t most = by_weight ? WEIGHT_TILES : fit > BLOCK_LEAST ? fit : BLOCK_LEAST;
    w->blocks = (w->tiles + most - 1) / most;
    if (!by_weight)
        w->blocks = up_to(w->blocks, 2); /* so that two threads have the same to do */
    w->block = up_to((w->tiles + w->blocks - 1) / w->blocks, 4);
    w->blocks = (w->tiles + w->block - 1) / w->block;
    w->work_floats = POINTS * w->block * (w->in_c + w->out_wide);
}

qd_status qd_add_winograd_step(qd_plan *p, const qd_conv_train_step *c, qd_err *err)
{
    static const char *const kinds[] = { "conv", "conv back to input", "conv back to weight" };
    qd_step *s;
    void *memory;
    qd_status st = qd_plan_small(p, sizeof(wino_state), &memory, err);
    if (!st)
        st = qd_plan_add_step(p, c->name, kinds[c->pass], c->out, &s, err);
    if (st)
        return st;
    wino_state *w = memory;
    w->c = *c;
    w->simd = qd_wino_simd_get();
    measure(w);
    s->state = w;
    s->run = c->pass == QD_CONV_BACK_WEIGHT ? run_weight : run_tiles;
    s->impl = w->simd->name;
    s->macs = c->macs;
    s->threads = qd_threads_for(p, (double)c->macs);
    qd_step_reads(s, c->image);
    qd_step_reads(s, c->second);
    qd_step_reads(s, c->bias);
    const int64_t times = c->pass == QD_CONV_BACK_WEIGHT ? 1 : s->threads;
    return qd_plan_add_scratch(p, s, (size_t)(POINTS * w->in_c * w->out_wide + times * w->work_floats) * sizeof(float),
                               err);
}
