/* cpu_conv_wino.c - 3 x 3 convolutions of inference by Winograd's F(4 x 4, 3 x 3) (Lavin and Gray 2016): a quarter of the products.
 *
 * Weights stay as many as they are, ordered so that vectors read them; each run turns a panel of them into the 36 it is multiplied by
 * just before it is, near enough to stay in the cache. Tiles go there a batch of them at a time, through 36 products for each panel, and
 * back with bias, sum and activation. Which convolutions go this way, and each sum, depend on the shape of one sample alone. */
#include <string.h>

#include "base/cpu.h"
#include "base/par.h"
#include "plan/cpu_int.h"
#include "plan/wino_simd.h"

enum { SIDE = 4, POINTS = 36, TAPS = 9, PANEL = QD_WINO_PANEL };

#define CHANNELS 16          /* divides both numbers of channels */
#define FEWEST_CHANNELS 32   /* below, tiles cost what products save */
#define FEWEST_TILES 4       /* of a sample */
#define LEAST_MACS 2000000   /* of a sample, if summed directly */
#define TILE_BYTES (6 << 20) /* of tiles between the two ends: about what the last cache has for us */
#define APART 16         /* floats between the planes of two points, lest all 36 fall on the same lines of the cache */
#define DEPTH_AT_ONCE 32 /* channels whose weights are turned and used: 144 KiB of them */
#define DEPTH_OF_FEW 8   /* with few tiles, whose sums are soon fetched and put back: a first cache of them */
#define FEW_TILES 16

#define U_PLANE (DEPTH_AT_ONCE * PANEL + APART)

typedef struct wino_state {
    const qd_wino_simd *loops;
    const qd_simd *simd;
    qd_conv_shape s;
    const float *weight; // [panels][c][TAPS][PANEL]
    const float *bias;   // [o] or NULL
    qd_pass_math act;
    bool acts;
    qd_value_id source, residual;
    int64_t panels, high, wide, tiles; /* of outputs; tiles of a sample, of all */
    int64_t batch;                     /* tiles at a time */
    int64_t v_plane, m_plane;          // floats from one point to the next
    const float *x, *side;
    float *y, *v, *m,
        *u; // [POINTS][batch][c], [POINTS][batch][panels PANEL]; for each thread [POINTS][DEPTH_AT_ONCE][PANEL]; all APART
    int64_t first, count;
} wino_state;

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t up_to(int64_t n, int64_t step)
{
    return (n + step - 1) / step * step;
}

static void place(const wino_state *w, int64_t tile, int64_t *sample, int64_t *y, int64_t *x)
{
    *sample = tile / (w->high * w->wide);
    *y = tile / w->wide % w->high * SIDE;
    *x = tile % w->wide * SIDE;
}

static void there_piece(void *ctx, int64_t k)
{
    const wino_state *w = ctx;
    int64_t sample, y, x;
    place(w, w->first + k, &sample, &y, &x);
    const qd_wino_tile t = { .h = w->s.h, .w = w->s.w, .c = w->s.c, .y = y - w->s.pad_t, .x = x - w->s.pad_l };
    w->loops->input(w->v + k * w->s.c, w->v_plane, w->x + sample * w->s.h * w->s.w * w->s.c, &t);
}

static void panel_piece(void *ctx, int64_t panel)
{
    const wino_state *w = ctx;
    const int64_t c = w->s.c, wide = w->panels * PANEL, rows = up_to(w->count, 4);
    float *u = w->u + (int64_t)qd_par_thread() * POINTS * U_PLANE;
    const int64_t at_once =
        w->count <= FEW_TILES ? DEPTH_OF_FEW : DEPTH_AT_ONCE; /* no sum changes: they go on where they were */
    for (int64_t k = 0; k < c; k += at_once) {
        const int64_t depth = least(at_once, c - k);
        w->loops->filters(u, U_PLANE, w->weight + (panel * c + k) * TAPS * PANEL, depth);
        for (int64_t point = 0; point < POINTS; point++)
            w->loops->product(w->m + point * w->m_plane + panel * PANEL, wide, w->v + point * w->v_plane + k, c, 1,
                              u + point * U_PLANE, PANEL, rows, depth, k > 0);
    }
}

static void back_piece(void *ctx, int64_t k)
{
    const wino_state *w = ctx;
    const int64_t o = w->s.o, wide = w->panels * PANEL;
    int64_t sample, y, x;
    place(w, w->first + k, &sample, &y, &x);
    const qd_wino_tile t = { .h = w->s.oh, .w = w->s.ow, .c = o, .y = y, .x = x };
    const int64_t image = sample * w->s.oh * w->s.ow * o, length = least(SIDE, w->s.ow - x) * o;
    if (w->side) { /* the sum may lie where the result goes: it is read before */
        w->loops->output_sum(w->y + image, w->side + image, w->m + k * wide, w->m_plane, w->bias, &t);
    } else {
        w->loops->output(w->y + image, w->m + k * wide, w->m_plane, w->bias, &t);
    }
    for (int64_t j = 0; j < SIDE && y + j < w->s.oh && w->acts; j++) {
        float *row = w->y + image + ((y + j) * w->s.ow + x) * o;
        w->simd->pass(row, (size_t)length, row, (size_t)length, 1, length, NULL, NULL, NULL, &w->act);
    }
}

static qd_status run(qd_plan *p, qd_step *s, qd_err *err)
{
    wino_state *w = s->state;
    w->x = qd_plan_data(p, w->source);
    w->side = w->residual < 0 ? NULL : qd_plan_data(p, w->residual);
    w->y = qd_plan_data(p, s->out);
    w->v = qd_plan_scratch(p, s);
    w->m = w->v + POINTS * w->v_plane;
    w->u = w->m + POINTS * w->m_plane;
    for (w->first = 0; w->first < w->tiles; w->first += w->batch) {
        w->count = least(w->batch, w->tiles - w->first);
        qd_par_for(s->threads, w->count, there_piece, w);
        const int64_t rest = up_to(w->count, 4) - w->count; /* rows come in fours */
        for (int64_t point = 0; point < POINTS && rest; point++)
            memset(w->v + point * w->v_plane + w->count * w->s.c, 0, (size_t)(rest * w->s.c) * sizeof(float));
        qd_par_for(s->threads, w->panels, panel_piece, w);
        qd_par_for(s->threads, w->count, back_piece, w);
    }
    return QD_OK;
}

bool qd_wino_conv_fits(const qd_conv_step *c)
{
    const qd_conv_shape *s = &c->spec.shape;
    const int64_t high = (s->oh + SIDE - 1) / SIDE, wide = (s->ow + SIDE - 1) / SIDE;
    return !c->spec.codes && c->n_sources == 1 && s->kh == 3 && s->kw == 3 && s->stride_h == 1 && s->stride_w == 1 &&
           s->dil_h == 1 && s->dil_w == 1 && s->groups == 1 && s->pad_t <= 2 && s->pad_l <= 2 && s->c % CHANNELS == 0 &&
           s->o % CHANNELS == 0 && s->c >= FEWEST_CHANNELS && s->o >= FEWEST_CHANNELS && high * wide >= FEWEST_TILES &&
           s->oh * s->ow * s->c * s->o * TAPS >= LEAST_MACS &&
           high * wide * POINTS * 2 <
               s->oh * s->ow * TAPS; /* less than half the products, for the way there and back */
}

static qd_status pack(qd_plan *p, const qd_conv_step *c, wino_state *w, qd_err *err)
{
    const qd_conv_shape *s = &w->s;
    void *weight, *bias = NULL;
    qd_status st = qd_plan_pack(p, (size_t)(w->panels * s->c * TAPS * PANEL) * sizeof(float), c->name, &weight, err);
    if (!st && c->spec.bias)
        st = qd_plan_pack(p, (size_t)s->o * sizeof(float), c->name, &bias, err);
    if (st)
        return st;
    float *to = weight;
    const float *from = c->spec.weight;
    for (int64_t panel = 0; panel < w->panels; panel++)
        for (int64_t k = 0; k < s->c; k++)
            for (int64_t t = 0; t < TAPS; t++)
                for (int64_t lane = 0; lane < PANEL; lane++) {
                    const int64_t o = panel * PANEL + lane;
                    *to++ = o < s->o ? from[(o * s->c + k) * TAPS + t] : 0.0f;
                }
    if (bias)
        memcpy(bias, c->spec.bias, (size_t)s->o * sizeof(float));
    w->weight = weight;
    w->bias = bias;
    return QD_OK;
}

qd_status qd_add_wino_conv_step(qd_plan *p, const qd_conv_step *c, qd_err *err)
{
    qd_step *s;
    void *memory;
    qd_status st = qd_plan_small(p, sizeof(wino_state), &memory, err);
    if (st)
        return st;
    wino_state *w = memory;
    w->loops = qd_wino_simd_get();
    w->simd = qd_simd_get();
    w->s = c->spec.shape;
    w->panels = (w->s.o + PANEL - 1) / PANEL;
    w->high = (w->s.oh + SIDE - 1) / SIDE;
    w->wide = (w->s.ow + SIDE - 1) / SIDE;
    w->tiles = w->s.n * w->high * w->wide;
    const int64_t fit = TILE_BYTES / (POINTS * (w->s.c + w->panels * PANEL) * (int64_t)sizeof(float));
    const int64_t parts = (w->tiles + (fit < 4 ? 4 : fit) - 1) / (fit < 4 ? 4 : fit);
    w->batch = up_to((w->tiles + parts - 1) / parts, 4);
    w->v_plane = w->batch * w->s.c + APART;
    w->m_plane = w->batch * w->panels * PANEL + APART;
    w->source = c->source[0];
    w->residual = c->residual;
    w->acts = c->spec.act != QD_ACT_NONE;
    w->act = (qd_pass_math){ .act = c->spec.act, .clip_lo = c->spec.clip_lo, .clip_hi = c->spec.clip_hi };
    st = pack(p, c, w, err);
    if (!st)
        st = qd_plan_add_step(p, c->name, c->kind, c->out, &s, err);
    if (st)
        return st;
    s->state = w;
    s->run = run;
    s->impl = w->loops->name;
    s->macs = c->macs;
    s->weight_bytes = (size_t)(w->panels * w->s.c * TAPS * PANEL) * sizeof(float);
    s->threads = qd_threads_for(p, (double)c->macs / 4.0);
    qd_step_reads(s, c->source[0]);
    if (c->residual >= 0) {
        s->inplace = s->n_in;
        qd_step_reads(s, c->residual);
    }
    const int64_t floats = POINTS * (w->v_plane + w->m_plane + s->threads * U_PLANE);
    return qd_plan_add_scratch(p, s, (size_t)floats * sizeof(float), err);
}
