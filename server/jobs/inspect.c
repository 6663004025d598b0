/* inspect.c - what an uploaded model is: opened, built, every tensor verified, and told in a few figures. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "jobs/jobs_int.h"
#include "nn/nn.h"

enum { MAX_WARNINGS = 20 };

static const char *role_name(qd_role role)
{
    return role == QD_ROLE_DENOISER ? "denoiser" : role == QD_ROLE_CLASSIFIER ? "classifier" : "other";
}

static void on_warn(void *ctx, const char *text)
{
    json_t *list = ctx;
    if (json_array_size(list) < MAX_WARNINGS)
        json_array_append_new(list, json_string(text));
}

/* {"sample": {"dtype": "f32", "shape": [null, 1, 28, 28]}, ..}; null is the batch. */
static json_t *inputs_json(const qd_graph *g)
{
    json_t *all = json_object();
    for (int k = 0; k < qd_graph_inputs(g); k++) {
        const qd_node *n = qd_graph_node(g, qd_graph_input_at(g, k));
        json_t *shape = json_array();
        for (int i = 0; i < n->shape.rank; i++)
            json_array_append_new(shape, n->shape.dim[i] < 0 ? json_null() : json_integer(n->shape.dim[i]));
        json_object_set_new(all, n->name, json_pack("{s:s, s:o}", "dtype", qd_dtype_name(n->dtype), "shape", shape));
    }
    return all;
}

static json_t *outputs_json(const qd_graph *g)
{
    json_t *all = json_array();
    for (int k = 0; k < qd_graph_outputs(g); k++)
        json_array_append_new(all, json_string(qd_graph_output_name(g, k)));
    return all;
}

typedef struct count {
    int layers, quantized;
    int64_t weight_bits, activation_bits; /* of integer layers, the widest; 0 = none */
    json_t *ops;                          /* {"conv2d": 23, ..} */
} count;

static bool is_layer(const qd_op *op)
{
    return op == &qd_op_conv2d || op == &qd_op_linear || op == &qd_op_qconv2d || op == &qd_op_qlinear;
}

static void count_nodes(const qd_graph *g, count *c)
{
    for (int k = 0; k < qd_graph_size(g); k++) {
        const qd_node *n = qd_graph_node(g, k);
        if (n->op == &qd_op_input || n->op == &qd_op_const)
            continue;
        c->layers += is_layer(n->op);
        if (n->op == &qd_op_qconv2d || n->op == &qd_op_qlinear) {
            const int64_t bits = (int64_t)qd_dtype_bits(qd_graph_node(g, n->input[1])->dtype);
            c->weight_bits = bits > c->weight_bits ? bits : c->weight_bits;
            c->quantized++;
        }
        if (n->op == &qd_op_quantize && qd_node_int(n, "bits") > c->activation_bits)
            c->activation_bits = qd_node_int(n, "bits");
        json_t *old = json_object_get(c->ops, n->op->name);
        json_object_set_new(c->ops, n->op->name, json_integer(json_integer_value(old) + 1));
    }
}

/* Multiply-adds for one picture, and what it weighs. */
static qd_status count_cost(const qd_graph *g, int64_t *macs, json_t *o, qd_err *err)
{
    qd_shape shapes[QD_MAX_INPUTS];
    const int n = qd_graph_inputs(g);
    if (n > QD_MAX_INPUTS)
        return qd_fail(err, QD_E_UNSUPPORTED, "the network has %d inputs, the limit is %d", n, QD_MAX_INPUTS);
    for (int k = 0; k < n; k++) {
        shapes[k] = qd_graph_node(g, qd_graph_input_at(g, k))->shape;
        for (int i = 0; i < shapes[k].rank; i++)
            if (shapes[k].dim[i] < 0)
                shapes[k].dim[i] = 1;
    }
    const qd_status st = qd_graph_cost(g, shapes, n, macs, err);
    return st ? st : sv_weigh(g, shapes, n, o, err);
}

/* What came along with a denoiser: the first stage that decodes its latents, which must fit it, and what it is told. */
static qd_status describe_parts(const qd_model *m, const qd_graph *g, const qd_run *run, json_t *o, qd_err *err)
{
    const qd_node_id id = qd_graph_find(g, "sample");
    qd_graph *decoder = NULL;
    qd_tensor table = { 0 };
    json_t *part = NULL;
    int64_t macs = 0;
    qd_status st = QD_OK;
    if (id < 0 || qd_graph_node(g, id)->shape.rank != 4)
        return QD_OK;
    st = qd_zoo_decoder(m, &qd_graph_node(g, id)->shape, run, &decoder, err);
    if (!st && decoder) {
        part = json_pack("{s:I}", "parameter_bytes", (json_int_t)qd_graph_param_bytes(decoder));
        st = count_cost(decoder, &macs, part, err);
        json_object_set_new(part, "macs", json_integer(macs));
        json_object_del(part, "weights");
        json_object_set(o, "first_stage", part);
    }
    if (!st)
        st = qd_zoo_class_table(m, run->budget, &table, err);
    if (!st && (table.data || m->context))
        json_object_set_new(o, "told", json_true());
    if (!st && m->meta && qd_meta_find(m->meta, QD_FIRST_STAGE_MISSING))
        qd_run_warn(run, "first stage: %s", qd_meta_find(m->meta, QD_FIRST_STAGE_MISSING));
    json_decref(part);
    qd_tensor_clear(&table);
    qd_graph_free(decoder);
    return st;
}

/* What a bundle says of itself. It is a stranger's text: shown, and never believed where the graph knows better. */
static void add_manifest(json_t *o, const qd_model *m)
{
    json_t *manifest = sv_json_read(m->meta ? qd_meta_find(m->meta, "manifest") : NULL);
    if (json_is_object(manifest)) {
        json_object_del(manifest, "layers"); /* a row each; whoever wants them reads the bundle */
        json_object_set(o, "manifest", manifest);
    }
    json_decref(manifest);
}

static qd_status describe(const qd_model *m, const qd_graph *g, qd_role role, json_t *o, qd_err *err)
{
    count c = { .ops = json_object() };
    const char *class = NULL;
    int64_t macs = 0;
    qd_status st;

    json_object_set_new(o, "ops", c.ops);
    count_nodes(g, &c);
    st = count_cost(g, &macs, o, err);
    if (st)
        return st;
    if (m->config) {
        st = qd_config_string(m->config, "_class_name", &class, err);
        if (st)
            return st;
    }
    if (class)
        json_object_set_new(o, "class", json_string(class));
    json_object_set_new(o, "role", json_string(role_name(role)));
    json_object_set_new(o, "parameters", json_integer(qd_graph_param_count(g)));
    json_object_set_new(o, "parameter_bytes", json_integer((json_int_t)qd_graph_param_bytes(g)));
    json_object_set_new(o, "file_bytes", json_integer((json_int_t)m->file_bytes));
    json_object_set_new(o, "macs", json_integer(macs));
    json_object_set_new(o, "inputs", inputs_json(g));
    json_object_set_new(o, "outputs", outputs_json(g));
    json_object_set_new(o, "layers", json_integer(c.layers));
    json_object_set_new(o, "layers_quantized", json_integer(c.quantized));
    json_object_set_new(o, "quantized", json_boolean(c.quantized > 0));
    if (c.quantized > 0) {
        json_object_set_new(o, "activation_bits", json_integer(c.activation_bits));
        json_object_set_new(o, "weight_bits", json_integer(c.weight_bits));
        add_manifest(o, m);
    }
    if (m->scheduler)
        json_object_set_new(o, "scheduler", sv_json_read(qd_config_text(m->scheduler)));
    return QD_OK;
}

qd_status sv_model_inspect(const char *path, const sv_settings *settings, char **format, char **role, char **summary,
                           qd_err *err)
{
    qd_budget budget;
    qd_model *m = NULL;
    qd_graph *g = NULL;
    qd_schedule *schedule = NULL;
    qd_role r;
    json_t *o = json_object(), *warnings = json_array();
    const qd_run run = { .ctx = warnings, .warn = on_warn, .budget = &budget };
    char *text = NULL, *format_copy = NULL, *role_copy = NULL;
    qd_status st;

    qd_budget_init(&budget, settings->job_memory_bytes > 0 ? (size_t)settings->job_memory_bytes : 0);
    st = qd_model_open(path, &budget, &m, err);
    if (st)
        goto out;
    st = qd_zoo_build(m, &run, &g, &r, err);
    if (st)
        goto out;
    if (r == QD_ROLE_DENOISER && (st = qd_schedule_open(m->scheduler, &schedule, err)))
        goto out;
    st = describe(m, g, r, o, err);
    if (!st && r == QD_ROLE_DENOISER)
        st = describe_parts(m, g, &run, o, err);
    if (st)
        goto out;
    if (json_array_size(warnings) > 0)
        json_object_set(o, "warnings", warnings);
    text = sv_json_text(o);
    format_copy = qd_strdup(m->format);
    role_copy = qd_strdup(role_name(r));
    if (!text || !format_copy || !role_copy) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for a model's summary");
        goto out;
    }
    *summary = text;
    *format = format_copy;
    *role = role_copy;
    text = format_copy = role_copy = NULL;
out:
    qd_free(text);
    qd_free(format_copy);
    qd_free(role_copy);
    json_decref(o);
    json_decref(warnings);
    qd_schedule_free(schedule);
    qd_graph_free(g);
    qd_model_free(m);
    return st;
}
