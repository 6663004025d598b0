/* export.c - the job that writes a model in another format, reads it back and says how far that is from the model. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/fs.h"
#include "base/mem.h"
#include "base/rng.h"
#include "graph/op.h"
#include "jobs/jobs_int.h"
#include "metrics/metrics.h"
#include "nn/nn.h"
#include "plan/plan.h"

/* --- rows --- */

static const char *const opsets[] = { "13", "21", NULL };
static const char *const contents[] = { "float", "codes", NULL };
static const char *const block_types[] = { "auto", "q8_0", "q4_0", NULL };

static const qd_param onnx_params[] = {
    { .name = "opset",
      .type = QD_PARAM_INT,
      .fallback = "13",
      .choices = opsets,
      .summary = "Version of ONNX's operators: 13 is read everywhere, 21 keeps weights of 4 bits in 4 bits." },
    { 0 },
};
static const qd_param safetensors_params[] = {
    { .name = "contents",
      .type = QD_PARAM_CHOICE,
      .fallback = "float",
      .choices = contents,
      .summary =
          "float: every weight as floats under the name it had before it was quantized; codes: the tensors as they are." },
    { 0 },
};
static const qd_param gguf_params[] = {
    { .name = "block_type",
      .type = QD_PARAM_CHOICE,
      .fallback = "auto",
      .choices = block_types,
      .summary =
          "Blocks for the weights of convolutions and linear layers; auto: q4_0 where they have 4 bits, else q8_0." },
    { 0 },
};
static const qd_param common[] = {
    { .name = "seed",
      .type = QD_PARAM_INT,
      .summary = "Seed of the input on which both networks are compared.",
      .fallback = "0",
      .min = 0,
      .max = 9007199254740991.0 },
    { 0 },
};

static const char *const roles[] = { "denoiser", "classifier", "other", NULL };

/* --- comparing --- */

typedef struct difference {
    qd_sqnr sqnr;
    double worst; /* the largest absolute difference */
    int64_t count;
} difference;

static void compare(difference *d, const float *want, const float *got, int64_t n)
{
    qd_sqnr_add(&d->sqnr, want, got, n);
    for (int64_t k = 0; k < n; k++)
        d->worst = fmax(d->worst, fabs((double)want[k] - (double)got[k]));
    d->count += n;
}

static json_t *difference_json(const char *what, const difference *d)
{
    json_t *o =
        json_pack("{s:s, s:I, s:b}", "compared", what, "values", (json_int_t)d->count, "identical", d->worst == 0.0);
    json_object_set_new(o, "max_abs_difference", sv_json_number(d->worst));
    json_object_set_new(o, "sqnr_db", sv_json_number(qd_sqnr_value_db(&d->sqnr)));
    return o;
}

/* Floats of the weights against floats that were read back, name by name. */
static qd_status compare_weights(const qd_weights *want, const qd_weights *got, difference *d, qd_err *err)
{
    for (int k = 0; k < qd_weights_count(want); k++) {
        const char *name = qd_weights_name(want, k);
        const qd_tensor *a = qd_weights_at(want, k), *b = qd_weights_find(got, name);
        qd_tensor x = { 0 }, y = { 0 };
        if (!b || !qd_shape_equal(&a->shape, &b->shape))
            return qd_fail(err, QD_E_INTERNAL, "the file that was written lacks tensor '%s' in its shape", name);
        qd_status st = qd_tensor_cast(&x, a, QD_F32, NULL, err);
        if (!st)
            st = qd_tensor_cast(&y, b, QD_F32, NULL, err);
        if (!st)
            compare(d, qd_f32(&x), qd_f32(&y), qd_tensor_count(&x));
        qd_tensor_clear(&x);
        qd_tensor_clear(&y);
        if (st)
            return st;
    }
    return QD_OK;
}

/* --- running both networks --- */

enum { MAX_VALUES = 16 }; /* inputs, outputs */

typedef struct values {
    qd_tensor t[MAX_VALUES];
    int n;
} values;

static void values_clear(values *v)
{
    for (int k = 0; k < v->n; k++)
        qd_tensor_clear(&v->t[k]);
}

/* A picture of noise, the 37th time step or class, for one sample. */
static qd_status make_inputs(const qd_graph *g, const qd_run *run, values *in, qd_err *err)
{
    if (qd_graph_inputs(g) > MAX_VALUES || qd_graph_outputs(g) > MAX_VALUES)
        return qd_fail(err, QD_E_UNSUPPORTED, "the network has %d inputs and %d outputs, the limit is %d",
                       qd_graph_inputs(g), qd_graph_outputs(g), MAX_VALUES);
    for (int k = 0; k < qd_graph_inputs(g); k++) {
        const qd_node *n = qd_graph_node(g, qd_graph_input_at(g, k));
        qd_shape shape = n->shape;
        for (int i = 0; i < shape.rank; i++)
            shape.dim[i] = shape.dim[i] < 0 ? 1 : shape.dim[i];
        qd_status st = qd_tensor_init(&in->t[k], n->dtype, &shape, qd_run_budget(run), err);
        if (st)
            return st;
        in->n = k + 1;
        const int64_t count = qd_tensor_count(&in->t[k]);
        if (n->dtype == QD_F32 && shape.rank > 1)
            qd_rng_normal(qd_f32(&in->t[k]), (size_t)count, run->seed, (uint64_t)k, 0);
        for (int64_t i = 0; i < count && shape.rank <= 1 && n->dtype == QD_F32; i++)
            qd_f32(&in->t[k])[i] = 37.0f;
        for (int64_t i = 0; i < count && n->dtype == QD_I64; i++)
            ((int64_t *)in->t[k].data)[i] = 37;
    }
    return QD_OK;
}

static qd_status run_network(const qd_graph *g, const values *in, const qd_run *run, values *out, qd_err *err)
{
    const void *from[MAX_VALUES];
    void *to[MAX_VALUES];
    qd_shape shapes[MAX_VALUES], *all = NULL;
    qd_plan *plan = NULL;
    qd_status st = QD_OK;

    if (qd_graph_inputs(g) != in->n || qd_graph_outputs(g) > MAX_VALUES)
        return qd_fail(err, QD_E_INTERNAL, "the network that was read back has %d inputs, %d were written",
                       qd_graph_inputs(g), in->n);
    all = qd_calloc((size_t)qd_graph_size(g), sizeof *all);
    if (!all)
        return qd_fail(err, QD_E_NOMEM, "no memory for %d shapes", qd_graph_size(g));
    for (int k = 0; k < in->n; k++) {
        shapes[k] = in->t[k].shape;
        from[k] = in->t[k].data;
    }
    st = qd_graph_shapes(g, shapes, in->n, all, err);
    for (int k = 0; k < qd_graph_outputs(g) && !st; k++) {
        const qd_node_id id = qd_graph_output_at(g, k);
        if (qd_graph_node(g, id)->dtype != QD_F32)
            st = qd_fail(err, QD_E_UNSUPPORTED, "output '%s' is not float", qd_graph_output_name(g, k));
        if (!st)
            st = qd_tensor_init(&out->t[k], QD_F32, &all[id], qd_run_budget(run), err);
        if (!st) {
            to[k] = out->t[k].data;
            out->n = k + 1;
        }
    }
    const qd_plan_options o = {
        .input_shapes = shapes, .n_inputs = in->n, .threads = qd_run_threads(run), .budget = qd_run_budget(run)
    };
    if (!st)
        st = qd_plan_compile(g, &o, &plan, err);
    if (!st)
        st = qd_plan_run(plan, run, from, to, err);
    qd_plan_free(plan);
    qd_free(all);
    return st;
}

static qd_status compare_networks(const qd_graph *want, const qd_graph *got, const qd_run *run, difference *d,
                                  qd_err *err)
{
    values in = { 0 }, a = { 0 }, b = { 0 };
    qd_status st = make_inputs(want, run, &in, err);
    if (!st)
        st = run_network(want, &in, run, &a, err);
    if (!st)
        st = run_network(got, &in, run, &b, err);
    for (int k = 0; k < a.n && !st; k++) {
        if (k >= b.n || !qd_shape_equal(&a.t[k].shape, &b.t[k].shape))
            st = qd_fail(err, QD_E_INTERNAL, "the network that was read back makes values of other shapes");
        else
            compare(d, qd_f32(&a.t[k]), qd_f32(&b.t[k]), qd_tensor_count(&a.t[k]));
    }
    values_clear(&in);
    values_clear(&a);
    values_clear(&b);
    return st;
}

/* --- the formats --- */

typedef struct work {
    sv_task *t;
    qd_model *model;
    qd_graph *graph;
    qd_meta *meta; /* what travels along: config, scheduler */
    char *path;
    json_t *read_back;
} work;

/* read_back gains what `got` makes of the job's seeded inputs, beside what the model makes. */
static qd_status judge_outputs(work *w, const qd_graph *got, qd_err *err)
{
    difference d = { 0 };
    const qd_status st = compare_networks(w->graph, got, &w->t->run, &d, err);
    if (!st)
        json_object_set_new(w->read_back, "outputs", difference_json("outputs", &d));
    return st;
}

/* The next layer of codes from node `from` on; -1 = no more. */
static qd_node_id next_of_codes(const qd_graph *g, qd_node_id from)
{
    for (; from < qd_graph_size(g); from++)
        if (qd_graph_node(g, from)->op == &qd_op_qconv2d || qd_graph_node(g, from)->op == &qd_op_qlinear)
            return from;
    return -1;
}

/* Layers of codes in both graphs, in order, and whether all codes are the same, however many bits they are packed in. */
static qd_status compare_codes(const qd_graph *want, const qd_graph *got, json_t *o, qd_err *err)
{
    json_int_t layers = 0, back = 0;
    bool same = true;
    qd_node_id a = next_of_codes(want, 0), b = next_of_codes(got, 0);
    while (a >= 0 || b >= 0) {
        qd_tensor x = { 0 }, y = { 0 };
        qd_status st = QD_OK;
        if (a >= 0 && b >= 0) {
            st = qd_tensor_unpack(&x, &qd_graph_node(want, qd_graph_node(want, a)->input[1])->value, NULL, err);
            if (!st)
                st = qd_tensor_unpack(&y, &qd_graph_node(got, qd_graph_node(got, b)->input[1])->value, NULL, err);
            same = same && !st && qd_shape_equal(&x.shape, &y.shape) && !memcmp(x.data, y.data, qd_tensor_bytes(&x));
        }
        qd_tensor_clear(&x);
        qd_tensor_clear(&y);
        if (st)
            return st;
        layers += a >= 0;
        back += b >= 0;
        a = a < 0 ? -1 : next_of_codes(want, a + 1);
        b = b < 0 ? -1 : next_of_codes(got, b + 1);
    }
    json_object_set_new(
        o, "codes",
        json_pack("{s:I, s:I, s:b}", "layers", layers, "layers_read", back, "identical", same && layers == back));
    return QD_OK;
}

static qd_status write_onnx(work *w, qd_err *err)
{
    const qd_run *run = &w->t->run;
    qd_model *m = NULL;
    qd_err why = { 0 };
    difference d = { 0 };
    qd_status st = qd_onnx_save(w->path, w->graph, "quantd", (int)qd_params_int(w->t->params, "opset"), NULL, err);
    if (st)
        return st;
    /* Our own reader may know less than what was written: then others have to judge. */
    st = qd_model_open(w->path, qd_run_budget(run), &m, &why);
    if (st == QD_E_UNSUPPORTED) {
        w->read_back = json_pack("{s:n, s:s}", "compared", "note", why.text);
        return QD_OK;
    }
    if (st)
        return qd_fail(err, st, "what was written cannot be read back: %s", why.text);
    st = compare_networks(w->graph, m->graph, run, &d, err);
    if (!st) {
        w->read_back = difference_json("outputs", &d);
        st = compare_codes(w->graph, m->graph, w->read_back, err);
    }
    if (!st)
        json_object_set_new(w->read_back, "outputs", difference_json("outputs", &d));
    qd_model_free(m);
    return st;
}

/* The network that somebody builds who has these weights only. */
static qd_status judge_weights(work *w, const qd_weights *got, qd_err *err)
{
    qd_graph *g = NULL;
    qd_status st = qd_graph_with_weights(w->graph, got, qd_run_budget(&w->t->run), &g, err);
    if (!st)
        st = judge_outputs(w, g, err);
    qd_graph_free(g);
    return st;
}

/* The tensors of the graph as they are: what a bundle holds, without its graph. Packed ones are named in the metadata: their dtype and
 * shape, {"conv1.weight": {"dtype": "i4", "shape": [64, 32, 3, 3]}, ..}. */
static qd_status weights_as_they_are(const qd_graph *g, qd_weights **out, qd_meta *meta, qd_err *err)
{
    json_t *packed = json_object();
    qd_weights *w = NULL;
    char *text = NULL;
    qd_status st = qd_weights_new(&w, err);
    for (qd_node_id id = 0; id < qd_graph_size(g) && !st; id++) {
        const qd_node *n = qd_graph_node(g, id);
        if (n->op != &qd_op_const)
            continue;
        const qd_tensor bytes = qd_weights_as_bytes(&n->value);
        st = qd_weights_add(w, n->name, &bytes, err);
        if (bytes.dtype == n->dtype)
            continue;
        json_t *shape = json_array();
        for (int k = 0; k < n->shape.rank; k++)
            json_array_append_new(shape, json_integer(n->shape.dim[k]));
        json_object_set_new(packed, n->name, json_pack("{s:s, s:o}", "dtype", qd_dtype_name(n->dtype), "shape", shape));
    }
    if (!st && json_object_size(packed) > 0) {
        text = sv_json_text(packed);
        st = text ? qd_meta_set(meta, "packed", text, err) : qd_fail(err, QD_E_NOMEM, "no memory for the metadata");
    }
    qd_free(text);
    json_decref(packed);
    if (st)
        qd_weights_free(w);
    else
        *out = w;
    return st;
}

static qd_status write_safetensors(work *w, qd_err *err)
{
    const bool codes = strcmp(qd_params_string(w->t->params, "contents"), "codes") == 0;
    qd_weights *want = NULL, *got = NULL;
    difference d = { 0 };
    qd_status st = codes ? weights_as_they_are(w->graph, &want, w->meta, err)
                         : qd_graph_float_weights(w->graph, qd_run_budget(&w->t->run), &want, err);
    if (!st)
        st = qd_safetensors_save(w->path, want, w->meta, NULL, err);
    if (!st)
        st = qd_safetensors_open(w->path, &got, NULL, err);
    if (!st && !codes)
        st = compare_weights(want, got, &d, err);
    for (int k = 0; !st && codes && k < qd_weights_count(want); k++) {
        const qd_tensor *a = qd_weights_at(want, k), *b = qd_weights_find(got, qd_weights_name(want, k));
        if (!b || qd_tensor_bytes(a) != qd_tensor_bytes(b) || memcmp(a->data, b->data, qd_tensor_bytes(a)) != 0)
            st = qd_fail(err, QD_E_INTERNAL, "the file that was written lacks tensor '%s'", qd_weights_name(want, k));
        d.count += qd_tensor_count(a);
    }
    if (!st)
        w->read_back = difference_json(codes ? "bytes" : "weights", &d);
    if (!st && !codes)
        st = judge_weights(w, got, err);
    qd_weights_free(got);
    qd_weights_free(want);
    return st;
}

static qd_status write_gguf(work *w, qd_err *err)
{
    qd_budget *budget = qd_run_budget(&w->t->run);
    qd_weights *want = NULL, *got = NULL;
    difference d = { 0 };
    qd_status st =
        qd_gguf_save(w->path, w->graph, w->meta, qd_params_string(w->t->params, "block_type"), budget, NULL, err);
    if (!st)
        st = qd_graph_float_weights(w->graph, budget, &want, err);
    if (!st)
        st = qd_gguf_open(w->path, budget, &got, NULL, err);
    if (!st)
        st = compare_weights(want, got, &d, err);
    if (!st) {
        w->read_back = difference_json("weights", &d);
        st = judge_weights(w, got, err);
    }
    qd_weights_free(got);
    qd_weights_free(want);
    return st;
}

static const sv_method rows[] = {
    { "onnx", "ONNX: floats as they are, codes as QuantizeLinear and DequantizeLinear.", onnx_params },
    { "safetensors", "safetensors: the weights by their names.", safetensors_params },
    { "gguf", "GGUF version 3: the weights in blocks of 32 with a scale each.", gguf_params },
};
enum { FORMATS = sizeof rows / sizeof rows[0] };

/* In the order of rows. */
static const struct {
    const char *file;
    qd_status (*write)(work *w, qd_err *err);
} writers[FORMATS] = {
    { "model.onnx", write_onnx },
    { "weights.safetensors", write_safetensors },
    { "model.gguf", write_gguf },
};

static const sv_method *methods(int *n)
{
    *n = FORMATS;
    return rows;
}

/* --- the job --- */

static qd_status open_model(work *w, qd_err *err)
{
    char *path = sv_task_model_path(w->t);
    qd_role role;
    qd_status st = path ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for a path");
    if (!st)
        st = qd_model_open(path, qd_run_budget(&w->t->run), &w->model, err);
    if (!st)
        st = qd_zoo_build(w->model, &w->t->run, &w->graph, &role, err);
    if (!st)
        st = qd_meta_new(&w->meta, err);
    if (!st && w->model->config)
        st = qd_meta_set(w->meta, "config", qd_config_text(w->model->config), err);
    if (!st && w->model->scheduler)
        st = qd_meta_set(w->meta, "scheduler_config", qd_config_text(w->model->scheduler), err);
    if (!st)
        st = qd_meta_set(w->meta, "model_sha256", w->t->model->sha256, err);
    qd_free(path);
    return st;
}

static qd_status run(sv_task *t, json_t **result, qd_err *err)
{
    work w = { .t = t };
    const char *file = writers[t->method - rows].file;
    qd_map map = { 0 };
    qd_status st;

    qd_run_progress(&t->run, "load", NULL, 0, 1);
    st = open_model(&w, err);
    if (st)
        goto out;
    qd_run_progress(&t->run, "write", NULL, 0, 1);
    w.path = qd_fs_join(t->dir, file);
    st = w.path ? writers[t->method - rows].write(&w, err) : qd_fail(err, QD_E_NOMEM, "no memory for a path");
    if (!st)
        st = qd_run_check(&t->run, err);
    if (!st)
        st = qd_map_open(&map, w.path, err);
    if (st)
        goto out;
    const json_int_t bytes = (json_int_t)map.size;
    qd_map_close(&map);
    st = sv_task_artifact(t, file, "application/octet-stream", w.path, err);
    if (st)
        goto out;
    *result = json_pack("{s:s, s:s, s:I, s:I, s:O}", "format", t->method->name, "artifact", file, "bytes", bytes,
                        "parameter_bytes", (json_int_t)qd_graph_param_bytes(w.graph), "read_back", w.read_back);
    qd_run_progress(&t->run, "write", NULL, 1, 1);
out:
    json_decref(w.read_back);
    qd_free(w.path);
    qd_meta_free(w.meta);
    qd_graph_free(w.graph);
    qd_model_free(w.model);
    return st;
}

const sv_kind sv_kind_export = {
    .name = "export",
    .summary = "Writes a model in another format, and tells what reading it back gives.",
    .methods = methods,
    .default_method = "onnx",
    .params = common,
    .roles = roles,
    .takes_bundle = true,
    .takes_float = true,
    .run = run,
};
