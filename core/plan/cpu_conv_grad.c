/* cpu_conv_grad.c - convolutions of oneDNN with weights that change from run to run: forward, back to the input, back to the weights.
 *
 * Weights come and go row-major and lie as oneDNN likes them for the time of the step, in its scratch. */
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>
#include <string.h>

#include "plan/cpu_train.h"

typedef struct conv_state {
    qd_conv_train_step c;
    char impl[64];
    dnnl_engine_t engine;
    dnnl_primitive_t primitive, reorder; /* reorder NULL: the weights are used as they lie */
    dnnl_memory_desc_t image_md, second_md, weight_md, plain_md, bias_md, scratch_md, reorder_md;
    dnnl_memory_t image, second, weight, plain, bias, scratch, reorder_scratch;
    size_t at_scratch, at_reorder, bytes; /* in the step's scratch: packed weights, oneDNN's, the reorder's */
    int threads;
} conv_state;

static size_t aligned(size_t n)
{
    return (n + 63) / 64 * 64;
}

static void free_state(void *state)
{
    conv_state *w = state;
    dnnl_memory_t memory[] = { w->image, w->second, w->weight, w->plain, w->bias, w->scratch, w->reorder_scratch };
    for (size_t k = 0; k < sizeof memory / sizeof *memory; k++)
        if (memory[k])
            dnnl_memory_destroy(memory[k]);
    if (w->primitive)
        dnnl_primitive_destroy(w->primitive);
    if (w->reorder)
        dnnl_primitive_destroy(w->reorder);
    qd_free(w);
}

/* Memory as our values have it; weights free in the primitive's own description. */
typedef struct shapes {
    dnnl_memory_desc_t src, dst, weight, bias;
    dnnl_dims_t strides, dilates, before, after;
} shapes;

static dnnl_status_t describe(conv_state *w, shapes *d)
{
    const qd_conv_shape *c = &w->c.shape;
    const bool groups = c->groups > 1;
    const dnnl_dims_t src = { c->n, c->c, c->h, c->w }, dst = { c->n, c->o, c->oh, c->ow }, bias = { c->o };
    const dnnl_dims_t dense = { c->o, c->c, c->kh, c->kw };
    const dnnl_dims_t grouped = { c->groups, c->o / c->groups, c->c / c->groups, c->kh, c->kw };
    d->strides[0] = c->stride_h;
    d->strides[1] = c->stride_w;
    d->dilates[0] = c->dil_h - 1;
    d->dilates[1] = c->dil_w - 1;
    d->before[0] = c->pad_t;
    d->before[1] = c->pad_l;
    /* Padding as this result uses it: rows the window never reaches are cut. */
    d->after[0] = (c->oh - 1) * c->stride_h + (c->kh - 1) * c->dil_h + 1 - c->h - c->pad_t;
    d->after[1] = (c->ow - 1) * c->stride_w + (c->kw - 1) * c->dil_w + 1 - c->w - c->pad_l;
    dnnl_status_t st = dnnl_memory_desc_init_by_tag(&d->src, 4, src, dnnl_f32, dnnl_nhwc);
    if (!st)
        st = dnnl_memory_desc_init_by_tag(&d->dst, 4, dst, dnnl_f32, dnnl_nhwc);
    if (!st)
        st = dnnl_memory_desc_init_by_tag(&d->weight, groups ? 5 : 4, groups ? grouped : dense, dnnl_f32,
                                          dnnl_format_tag_any);
    if (!st)
        st = dnnl_memory_desc_init_by_tag(&w->plain_md, groups ? 5 : 4, groups ? grouped : dense, dnnl_f32,
                                          groups ? dnnl_goihw : dnnl_oihw);
    if (!st)
        st = dnnl_memory_desc_init_by_tag(&d->bias, 1, bias, dnnl_f32, dnnl_x);
    return st;
}

/* Derivatives want the forward primitive's description as a hint. */
static dnnl_status_t make_pd(conv_state *w, const shapes *d, const_dnnl_primitive_attr_t attr,
                             dnnl_primitive_desc_t *out)
{
    dnnl_convolution_desc_t desc;
    dnnl_primitive_desc_t hint = NULL;
    const bool back = w->c.pass != QD_CONV_FORWARD;
    dnnl_status_t st = dnnl_dilated_convolution_forward_desc_init(&desc, dnnl_forward_training, dnnl_convolution_direct,
                                                                  &d->src, &d->weight, w->c.bias >= 0 ? &d->bias : NULL,
                                                                  &d->dst, d->strides, d->dilates, d->before, d->after);
    if (!st)
        st = dnnl_primitive_desc_create(back ? &hint : out, &desc, attr, w->engine, NULL);
    if (!st && w->c.pass == QD_CONV_BACK_INPUT)
        st = dnnl_dilated_convolution_backward_data_desc_init(&desc, dnnl_convolution_direct, &d->src, &d->weight,
                                                              &d->dst, d->strides, d->dilates, d->before, d->after);
    if (!st && w->c.pass == QD_CONV_BACK_WEIGHT)
        st = dnnl_dilated_convolution_backward_weights_desc_init(&desc, dnnl_convolution_direct, &d->src, &d->weight,
                                                                 NULL, &d->dst, d->strides, d->dilates, d->before,
                                                                 d->after);
    if (!st && back)
        st = dnnl_primitive_desc_create(out, &desc, attr, w->engine, hint);
    if (hint)
        dnnl_primitive_desc_destroy(hint);
    return st;
}

static dnnl_status_t make_reorder(conv_state *w, const_dnnl_primitive_attr_t attr)
{
    const bool out = w->c.pass == QD_CONV_BACK_WEIGHT;
    dnnl_primitive_desc_t pd = NULL;
    if (dnnl_memory_desc_equal(&w->weight_md, &w->plain_md))
        return dnnl_success;
    dnnl_status_t st = dnnl_reorder_primitive_desc_create(&pd, out ? &w->weight_md : &w->plain_md, w->engine,
                                                          out ? &w->plain_md : &w->weight_md, w->engine, attr);
    if (!st)
        st = dnnl_primitive_create(&w->reorder, pd);
    if (!st)
        w->reorder_md = *dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    return st;
}

static dnnl_status_t make(conv_state *w)
{
    shapes d = { 0 };
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL;
    const char *impl = "";
    omp_set_num_threads(w->threads);
    dnnl_status_t st = describe(w, &d);
    if (!st)
        st = dnnl_primitive_attr_create(&attr);
    if (!st)
        st = dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    if (!st)
        st = make_pd(w, &d, attr, &pd);
    if (!st)
        st = dnnl_primitive_create(&w->primitive, pd);
    if (!st)
        st = dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &impl);
    if (!st) {
        const bool by_weight = w->c.pass == QD_CONV_BACK_WEIGHT;
        snprintf(w->impl, sizeof w->impl, "%s", impl);
        w->image_md = w->c.pass == QD_CONV_BACK_INPUT ? d.dst : d.src;
        w->second_md = w->c.pass == QD_CONV_BACK_INPUT ? d.src : d.dst;
        w->bias_md = d.bias;
        w->weight_md =
            *dnnl_primitive_desc_query_md(pd, by_weight ? dnnl_query_diff_weights_md : dnnl_query_weights_md, 0);
        w->scratch_md = *dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
        st = make_reorder(w, attr);
    }
    if (!st) {
        w->at_scratch = w->reorder ? aligned(dnnl_memory_desc_get_size(&w->weight_md)) : 0;
        w->at_reorder = w->at_scratch + aligned(dnnl_memory_desc_get_size(&w->scratch_md));
        w->bytes = w->at_reorder + (w->reorder ? dnnl_memory_desc_get_size(&w->reorder_md) : 0);
    }
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    if (attr)
        dnnl_primitive_attr_destroy(attr);
    return st;
}

/* image and second are the two values that lie channels last, whichever is the result. */
static qd_status bind(qd_plan *p, qd_step *s, qd_err *err)
{
    conv_state *w = s->state;
    const qd_conv_train_step *c = &w->c;
    const bool by_weight = c->pass == QD_CONV_BACK_WEIGHT;
    char *scratch = qd_plan_scratch(p, s);
    void *plain = qd_plan_data(p, by_weight ? s->out : c->second);
    dnnl_status_t st = dnnl_memory_create(&w->image, &w->image_md, w->engine, qd_plan_data(p, c->image));
    if (!st)
        st = dnnl_memory_create(&w->second, &w->second_md, w->engine, qd_plan_data(p, by_weight ? c->second : s->out));
    if (!st)
        st = dnnl_memory_create(&w->plain, &w->plain_md, w->engine, plain);
    if (!st)
        st = dnnl_memory_create(&w->weight, &w->weight_md, w->engine, w->reorder ? scratch : plain);
    if (!st && c->bias >= 0)
        st = dnnl_memory_create(&w->bias, &w->bias_md, w->engine, qd_plan_data(p, c->bias));
    if (!st)
        st = dnnl_memory_create(&w->scratch, &w->scratch_md, w->engine, scratch + w->at_scratch);
    if (!st && w->reorder)
        st = dnnl_memory_create(&w->reorder_scratch, &w->reorder_md, w->engine, scratch + w->at_reorder);
    return st ? qd_fail(err, st == dnnl_out_of_memory ? QD_E_NOMEM : QD_E_INTERNAL,
                        "'%s': oneDNN cannot take its memory (status %d)", s->name, (int)st)
              : QD_OK;
}

static dnnl_status_t run_reorder(qd_plan *p, const conv_state *w)
{
    const bool out = w->c.pass == QD_CONV_BACK_WEIGHT;
    const dnnl_exec_arg_t args[] = { { DNNL_ARG_FROM, out ? w->weight : w->plain },
                                     { DNNL_ARG_TO, out ? w->plain : w->weight },
                                     { DNNL_ARG_SCRATCHPAD, w->reorder_scratch } };
    return dnnl_primitive_execute(w->reorder, p->stream, 3, args);
}

static dnnl_status_t run_primitive(qd_plan *p, const conv_state *w)
{
    const dnnl_exec_arg_t forward[] = { { DNNL_ARG_SRC, w->image },
                                        { DNNL_ARG_WEIGHTS, w->weight },
                                        { DNNL_ARG_DST, w->second },
                                        { DNNL_ARG_SCRATCHPAD, w->scratch },
                                        { DNNL_ARG_BIAS, w->bias } };
    const dnnl_exec_arg_t input[] = { { DNNL_ARG_DIFF_DST, w->image },
                                      { DNNL_ARG_WEIGHTS, w->weight },
                                      { DNNL_ARG_DIFF_SRC, w->second },
                                      { DNNL_ARG_SCRATCHPAD, w->scratch } };
    const dnnl_exec_arg_t weight[] = { { DNNL_ARG_SRC, w->image },
                                       { DNNL_ARG_DIFF_DST, w->second },
                                       { DNNL_ARG_DIFF_WEIGHTS, w->weight },
                                       { DNNL_ARG_SCRATCHPAD, w->scratch } };
    const dnnl_exec_arg_t *const args[] = { forward, input, weight };
    return dnnl_primitive_execute(w->primitive, p->stream, w->bias ? 5 : 4, args[w->c.pass]);
}

static qd_status run(qd_plan *p, qd_step *s, qd_err *err)
{
    const conv_state *w = s->state;
    const bool after = w->c.pass == QD_CONV_BACK_WEIGHT;
    dnnl_status_t st = dnnl_success;
    omp_set_num_threads(w->threads);
    if (w->reorder && !after)
        st = run_reorder(p, w);
    if (!st)
        st = run_primitive(p, w);
    if (!st && w->reorder && after)
        st = run_reorder(p, w);
    if (!st)
        st = dnnl_stream_wait(p->stream);
    return st ? qd_fail(err, QD_E_INTERNAL, "'%s': oneDNN failed to run (status %d)", s->name, (int)st) : QD_OK;
}

qd_status qd_add_conv_train_step(qd_plan *p, const qd_conv_train_step *c, qd_err *err)
{
    static const char *const kinds[] = { "conv", "conv back to input", "conv back to weight" };
    void *engine;
    qd_step *s;
    qd_status st = qd_dnnl_engine(p, &engine, err);
    if (st)
        return st;
    conv_state *w = qd_calloc(1, sizeof *w);
    if (!w)
        return qd_fail(err, QD_E_NOMEM, "no memory for the convolution '%s'", c->name);
    w->c = *c;
    w->engine = engine;
    w->threads = qd_threads_for(p, (double)c->macs);
    const dnnl_status_t made = make(w);
    if (made)
        st = qd_fail(err,
                     made == dnnl_out_of_memory                                     ? QD_E_NOMEM
                     : made == dnnl_unimplemented || made == dnnl_invalid_arguments ? QD_E_UNSUPPORTED
                                                                                    : QD_E_INTERNAL,
                     "'%s': oneDNN cannot make a %s of this shape (status %d)", c->name, kinds[c->pass], (int)made);
    if (!st)
        st = qd_plan_add_step(p, c->name, kinds[c->pass], c->out, &s, err);
    if (st) {
        free_state(w);
        return st;
    }
    s->state = w;
    s->bind = bind;
    s->run = run;
    s->free = free_state;
    s->impl = w->impl;
    s->macs = c->macs;
    s->threads = w->threads;
    qd_step_reads(s, c->image);
    qd_step_reads(s, c->second);
    qd_step_reads(s, c->bias);
    return qd_plan_add_scratch(p, s, w->bytes ? w->bytes : 64, err);
}
