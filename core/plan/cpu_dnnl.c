/* cpu_dnnl.c - oneDNN: the engine, one convolution at a time, small matrix products. */
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/cpu.h"
#include "base/par.h"
#include "plan/cpu_int.h"

#define MIN_WORK_PER_WAKE 1.5e6 /* multiply-adds that take about as long as waking the threads twice */

static dnnl_engine_t engine;
static dnnl_status_t engine_status;
static pthread_once_t engine_once = PTHREAD_ONCE_INIT;

/* oneDNN takes its instruction set once per process, before the first primitive. */
static void make_engine(void)
{
    switch (qd_cpu_isa()) {
    case QD_ISA_BASE:
        dnnl_set_max_cpu_isa(dnnl_cpu_isa_sse41);
        break;
    case QD_ISA_AVX2:
        dnnl_set_max_cpu_isa(dnnl_cpu_isa_avx2);
        break;
    case QD_ISA_AVX512:
        break;
    }
    engine_status = dnnl_engine_create(&engine, dnnl_cpu, 0);
}

static qd_status dnnl_fail(qd_err *err, dnnl_status_t st, const char *name, const char *what)
{
    if (st == dnnl_out_of_memory)
        return qd_fail(err, QD_E_NOMEM, "'%s': oneDNN has no memory to %s", name, what);
    return qd_fail(err, st == dnnl_unimplemented ? QD_E_UNSUPPORTED : QD_E_INTERNAL,
                   "'%s': oneDNN cannot %s (status %d)", name, what, (int)st);
}

static qd_status need_stream(qd_plan *p, qd_err *err)
{
    pthread_once(&engine_once, make_engine);
    if (engine_status)
        return dnnl_fail(err, engine_status, "plan", "make an engine");
    if (p->stream)
        return QD_OK;
    dnnl_stream_t stream = NULL;
    const dnnl_status_t st = dnnl_stream_create(&stream, engine, dnnl_stream_default_flags);
    if (st)
        return dnnl_fail(err, st, "plan", "make a stream");
    p->stream = stream;
    return QD_OK;
}

qd_status qd_dnnl_engine(qd_plan *p, void **out, qd_err *err)
{
    qd_status st = need_stream(p, err);
    if (!st)
        *out = engine;
    return st;
}

void qd_dnnl_stream_free(void *stream)
{
    if (stream)
        dnnl_stream_destroy(stream);
}

bool qd_dnnl_exact_int8(void)
{
    pthread_once(&engine_once, make_engine);
    const dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
    return isa == dnnl_cpu_isa_avx512_core_vnni || isa == dnnl_cpu_isa_avx512_core_bf16 ||
           isa == dnnl_cpu_isa_avx512_core_amx || isa == dnnl_cpu_isa_avx2_vnni;
}

int qd_threads_for(const qd_plan *p, double work)
{
    return work < MIN_WORK_PER_WAKE ? 1 : p->threads;
}

/* --- one convolution --- */

struct qd_conv {
    char name[128];
    char impl[64];
    dnnl_primitive_t primitive;
    dnnl_memory_desc_t src_md, dst_md, weight_md, bias_md, scratch_md;
    dnnl_memory_t src, dst, weight, bias, scratch;
    void *packed_weight, *packed_bias;
    bool has_bias;
    int64_t nibble_blocks; /* of packed_weight when it is kept in 4 bits, spelled out for each run; else 0 */
    int8_t *spelled;
    int threads;
};

static dnnl_status_t add_act(dnnl_post_ops_t ops, const qd_conv_spec *s)
{
    switch (s->act) {
    case QD_ACT_NONE:
        return dnnl_success;
    case QD_ACT_SILU:
        return dnnl_post_ops_append_eltwise(ops, 1.0f, dnnl_eltwise_swish, 1.0f, 0.0f);
    case QD_ACT_RELU:
        return dnnl_post_ops_append_eltwise(ops, 1.0f, dnnl_eltwise_relu, 0.0f, 0.0f);
    case QD_ACT_CLIP:
        return dnnl_post_ops_append_eltwise(ops, 1.0f, dnnl_eltwise_clip, s->clip_lo, s->clip_hi);
    case QD_ACT_GELU:
        return dnnl_post_ops_append_eltwise(ops, 1.0f, dnnl_eltwise_gelu_erf, 0.0f, 0.0f);
    case QD_ACT_SIGMOID:
        return dnnl_post_ops_append_eltwise(ops, 1.0f, dnnl_eltwise_logistic, 0.0f, 0.0f);
    case QD_ACT_TANH:
        return dnnl_post_ops_append_eltwise(ops, 1.0f, dnnl_eltwise_tanh, 0.0f, 0.0f);
    }
    return dnnl_invalid_arguments;
}

static dnnl_status_t make_attr(const qd_conv_spec *s, dnnl_primitive_attr_t *out)
{
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t ops = NULL;
    dnnl_status_t st = dnnl_primitive_attr_create(&attr);
    if (!st)
        st = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    if (!st && s->codes)
        st = dnnl_primitive_attr_set_output_scales(attr, s->shape.o, 1 << 1, s->scale);
    if (!st)
        st = dnnl_post_ops_create(&ops);
    if (!st && s->sum)
        st = dnnl_post_ops_append_sum(ops, 1.0f);
    if (!st)
        st = add_act(ops, s);
    if (!st)
        st = dnnl_primitive_attr_set_post_ops(attr, ops);
    if (ops)
        dnnl_post_ops_destroy(ops);
    if (st && attr)
        dnnl_primitive_attr_destroy(attr);
    else
        *out = attr;
    return st;
}

/* Images lie channels last; weights and bias wherever oneDNN likes. */
static dnnl_status_t describe(const qd_conv_spec *s, dnnl_convolution_desc_t *desc, dnnl_memory_desc_t *plain_weight)
{
    const qd_conv_shape *c = &s->shape;
    const dnnl_data_type_t src_type = s->codes ? dnnl_u8 : dnnl_f32, weight_type = s->codes ? dnnl_s8 : dnnl_f32;
    const dnnl_dims_t src_dims = { c->n, c->c, c->h, c->w }, dst_dims = { c->n, c->o, c->oh, c->ow };
    const dnnl_dims_t dense = { c->o, c->c, c->kh, c->kw };
    const dnnl_dims_t grouped = { c->groups, c->o / c->groups, c->c / c->groups, c->kh, c->kw };
    const dnnl_dims_t strides = { c->stride_h, c->stride_w }, dilates = { c->dil_h - 1, c->dil_w - 1 };
    const dnnl_dims_t before = { c->pad_t, c->pad_l }, after = { c->pad_b, c->pad_r }, bias_dims = { c->o };
    const bool groups = c->groups > 1;
    dnnl_memory_desc_t src, dst, weight, bias;

    dnnl_status_t st = dnnl_memory_desc_init_by_tag(&src, 4, src_dims, src_type, dnnl_nhwc);
    if (!st)
        st = dnnl_memory_desc_init_by_tag(&dst, 4, dst_dims, dnnl_f32, dnnl_nhwc);
    if (!st)
        st = dnnl_memory_desc_init_by_tag(&weight, groups ? 5 : 4, groups ? grouped : dense, weight_type,
                                          dnnl_format_tag_any);
    if (!st)
        st = dnnl_memory_desc_init_by_tag(plain_weight, groups ? 5 : 4, groups ? grouped : dense, weight_type,
                                          groups ? dnnl_goihw : dnnl_oihw);
    if (!st)
        st = dnnl_memory_desc_init_by_tag(&bias, 1, bias_dims, dnnl_f32, dnnl_x);
    if (!st)
        st = dnnl_dilated_convolution_forward_desc_init(desc, dnnl_forward_inference, dnnl_convolution_direct, &src,
                                                        &weight, s->bias ? &bias : NULL, &dst, strides, dilates, before,
                                                        after);
    return st;
}

/* Weights as oneDNN wants them, in half the bytes. QD_E_UNSUPPORTED (without words) where they hold more than codes. */
static qd_status pack_nibbles(qd_plan *p, qd_conv *c, const int8_t *codes, size_t n, const char *name, qd_err *err)
{
    enum { HALF = QD_NIBBLE_BLOCK / 2 };
    if (c->weight_md.extra.flags != dnnl_memory_extra_flag_none)
        return QD_E_UNSUPPORTED;
    for (size_t k = 0; k < n; k++)
        if (codes[k] < -8 || codes[k] > 7)
            return QD_E_UNSUPPORTED;
    const size_t blocks = (n + QD_NIBBLE_BLOCK - 1) / QD_NIBBLE_BLOCK;
    qd_status st = qd_plan_pack(p, blocks * HALF, name, &c->packed_weight, err);
    if (st)
        return st;
    uint8_t *to = c->packed_weight;
    memset(to, 0, blocks * HALF);
    for (size_t k = 0; k < n; k++) {
        const size_t at = k % QD_NIBBLE_BLOCK;
        to[k / QD_NIBBLE_BLOCK * HALF + at % HALF] |= (uint8_t)((codes[k] & 15) << (at < HALF ? 0 : 4));
    }
    c->nibble_blocks = (int64_t)blocks;
    return QD_OK;
}

static qd_status pack_weight(qd_plan *p, qd_conv *c, const qd_conv_spec *s, const dnnl_memory_desc_t *plain,
                             qd_err *err)
{
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t reorder = NULL;
    dnnl_memory_t from = NULL;
    dnnl_status_t dst = dnnl_success;
    const size_t bytes = dnnl_memory_desc_get_size(&c->weight_md);
    void *spelled = NULL;
    qd_status st = QD_OK;

    if (s->nibbles) {
        spelled = qd_alloc_aligned(bytes);
        if (spelled)
            memset(spelled, 0, bytes);
        else
            st = qd_fail(err, QD_E_NOMEM, "no memory to pack the weights of '%s' (%zu bytes)", s->name, bytes);
    } else {
        st = qd_plan_pack(p, bytes, s->name, &c->packed_weight, err);
    }
    if (!st && s->bias)
        st = qd_plan_pack(p, (size_t)s->shape.o * sizeof(float), s->name, &c->packed_bias, err);
    if (st)
        goto out;
    if (s->bias) {
        c->has_bias = true;
        memcpy(c->packed_bias, s->bias, (size_t)s->shape.o * sizeof(float));
        dst = dnnl_memory_create(&c->bias, &c->bias_md, engine, c->packed_bias);
    }
    if (!dst)
        dst = dnnl_memory_create(&c->weight, &c->weight_md, engine, spelled ? spelled : c->packed_weight);
    if (!dst)
        dst = dnnl_memory_create(&from, plain, engine, (void *)s->weight);
    if (!dst)
        dst = dnnl_reorder_primitive_desc_create(&pd, plain, engine, &c->weight_md, engine, NULL);
    if (!dst)
        dst = dnnl_primitive_create(&reorder, pd);
    if (!dst) {
        const dnnl_exec_arg_t args[] = { { DNNL_ARG_FROM, from }, { DNNL_ARG_TO, c->weight } };
        dst = dnnl_primitive_execute(reorder, p->stream, 2, args);
    }
    if (!dst)
        dst = dnnl_stream_wait(p->stream);
    if (dst)
        st = dnnl_fail(err, dst, s->name, "pack the weights");
    if (!st && spelled) {
        st = pack_nibbles(p, c, spelled, bytes, s->name, err);
        if (st == QD_E_UNSUPPORTED) {
            st = qd_plan_pack(p, bytes, s->name, &c->packed_weight, err);
            if (!st)
                memcpy(c->packed_weight, spelled, bytes);
            if (!st && (dst = dnnl_memory_set_data_handle(c->weight, c->packed_weight)))
                st = dnnl_fail(err, dst, s->name, "take its weights");
        }
    }
out:
    qd_free(spelled);
    if (reorder)
        dnnl_primitive_destroy(reorder);
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    if (from)
        dnnl_memory_destroy(from);
    return st;
}

qd_status qd_conv_new(qd_plan *p, const qd_conv_spec *s, qd_conv **out, qd_err *err)
{
    dnnl_convolution_desc_t desc;
    dnnl_memory_desc_t plain;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL;
    const char *impl = "";
    qd_status st = need_stream(p, err);
    if (st)
        return st;
    qd_conv *c = qd_calloc(1, sizeof(*c));
    if (!c)
        return qd_fail(err, QD_E_NOMEM, "no memory for the convolution '%s'", s->name);
    snprintf(c->name, sizeof(c->name), "%s", s->name);
    c->threads = s->threads;
    omp_set_num_threads(s->threads);

    dnnl_status_t dst = describe(s, &desc, &plain);
    if (!dst)
        dst = make_attr(s, &attr);
    if (!dst)
        dst = dnnl_primitive_desc_create(&pd, &desc, attr, engine, NULL);
    if (!dst)
        dst = dnnl_primitive_create(&c->primitive, pd);
    if (!dst)
        dst = dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &impl);
    if (dst) {
        st = dnnl_fail(err, dst, s->name, "make a convolution of this shape");
        goto out;
    }
    snprintf(c->impl, sizeof(c->impl), "%s", impl);
    c->src_md = *dnnl_primitive_desc_query_md(pd, dnnl_query_src_md, 0);
    c->dst_md = *dnnl_primitive_desc_query_md(pd, dnnl_query_dst_md, 0);
    c->weight_md = *dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    c->scratch_md = *dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    if (s->bias)
        c->bias_md = *dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 1);
    st = pack_weight(p, c, s, &plain, err);
    if (st)
        goto out;
    *out = c;
    c = NULL;
out:
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    if (attr)
        dnnl_primitive_attr_destroy(attr);
    qd_conv_free(c);
    return st;
}

void qd_conv_free(qd_conv *c)
{
    if (!c)
        return;
    dnnl_memory_t memory[] = { c->src, c->dst, c->weight, c->bias, c->scratch };
    for (size_t k = 0; k < sizeof(memory) / sizeof(memory[0]); k++)
        if (memory[k])
            dnnl_memory_destroy(memory[k]);
    if (c->primitive)
        dnnl_primitive_destroy(c->primitive);
    qd_free(c);
}

static size_t spelled_offset(const qd_conv *c)
{
    return (dnnl_memory_desc_get_size(&c->scratch_md) + 63) / 64 * 64;
}

size_t qd_conv_scratch_bytes(const qd_conv *c)
{
    if (c->nibble_blocks)
        return spelled_offset(c) + (size_t)c->nibble_blocks * QD_NIBBLE_BLOCK;
    return dnnl_memory_desc_get_size(&c->scratch_md);
}

const char *qd_conv_impl(const qd_conv *c)
{
    return c->impl;
}

size_t qd_conv_weight_bytes(const qd_conv *c)
{
    return c->nibble_blocks ? (size_t)c->nibble_blocks * QD_NIBBLE_BLOCK / 2 : dnnl_memory_desc_get_size(&c->weight_md);
}

int qd_conv_threads(const qd_conv *c)
{
    return c->threads;
}

qd_status qd_conv_bind(qd_conv *c, void *src, void *dst, void *scratch, qd_err *err)
{
    dnnl_status_t st = dnnl_memory_create(&c->src, &c->src_md, engine, src);
    if (!st)
        st = dnnl_memory_create(&c->dst, &c->dst_md, engine, dst);
    if (!st)
        st = dnnl_memory_create(&c->scratch, &c->scratch_md, engine, scratch);
    if (!st && c->nibble_blocks) {
        c->spelled = (int8_t *)scratch + spelled_offset(c);
        st = dnnl_memory_set_data_handle(c->weight, c->spelled);
    }
    return st ? dnnl_fail(err, st, c->name, "take its memory") : QD_OK;
}

#define BLOCKS_PER_PIECE 1024

static void spell_piece(void *ctx, int64_t i)
{
    const qd_conv *c = ctx;
    const int64_t first = i * BLOCKS_PER_PIECE, left = c->nibble_blocks - first;
    qd_simd_get()->nibbles(c->spelled + first * QD_NIBBLE_BLOCK,
                           (const uint8_t *)c->packed_weight + first * QD_NIBBLE_BLOCK / 2,
                           left < BLOCKS_PER_PIECE ? left : BLOCKS_PER_PIECE);
}

qd_status qd_conv_run(qd_plan *p, qd_conv *c, qd_err *err)
{
    if (c->nibble_blocks)
        qd_par_for(c->threads, (c->nibble_blocks + BLOCKS_PER_PIECE - 1) / BLOCKS_PER_PIECE, spell_piece, c);
    const dnnl_exec_arg_t args[] = {
        { DNNL_ARG_SRC, c->src },   { DNNL_ARG_WEIGHTS, c->weight },
        { DNNL_ARG_DST, c->dst },   { DNNL_ARG_SCRATCHPAD, c->scratch },
        { DNNL_ARG_BIAS, c->bias },
    };
    omp_set_num_threads(c->threads);
    dnnl_status_t st = dnnl_primitive_execute(c->primitive, p->stream, c->has_bias ? 5 : 4, args);
    if (!st)
        st = dnnl_stream_wait(p->stream);
    return st ? dnnl_fail(err, st, c->name, "run") : QD_OK;
}

static char libraries[128];
static pthread_once_t libraries_once = PTHREAD_ONCE_INIT;

static void describe_libraries(void)
{
    static const struct {
        dnnl_cpu_isa_t isa;
        const char *name;
    } names[] = {
        { dnnl_cpu_isa_sse41, "sse41" },
        { dnnl_cpu_isa_avx, "avx" },
        { dnnl_cpu_isa_avx2, "avx2" },
        { dnnl_cpu_isa_avx2_vnni, "avx2_vnni" },
        { dnnl_cpu_isa_avx512_core, "avx512_core" },
        { dnnl_cpu_isa_avx512_core_vnni, "avx512_core_vnni" },
        { dnnl_cpu_isa_avx512_core_bf16, "avx512_core_bf16" },
        { dnnl_cpu_isa_avx512_core_amx, "avx512_core_amx" },
    };
    const dnnl_version_t *v = dnnl_version();
    const char *isa = "unknown";
    pthread_once(&engine_once, make_engine);
    for (size_t k = 0; k < sizeof(names) / sizeof(names[0]); k++)
        if (names[k].isa == dnnl_get_effective_cpu_isa())
            isa = names[k].name;
    snprintf(libraries, sizeof(libraries), "oneDNN %d.%d.%d (%s), OpenBLAS (%s), own loops (%s)", v->major, v->minor,
             v->patch, isa, qd_blas_core(), qd_simd_get()->name);
}

const char *qd_plan_libraries(void)
{
    pthread_once(&libraries_once, describe_libraries);
    return libraries;
}
