/* condition.c - what a job tells a conditional denoiser, and who decodes its latents: parameters, the data set and the models they
 * name, what the model's own folder holds. Texts are not encoded here: contexts come as tensors. */
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "jobs/jobs_int.h"
#include "nn/nn.h"

enum { POINTER_SIZE = 128, PAGE = 200 };

const qd_param sv_condition_rows[] = {
    { .name = "context",
      .type = QD_PARAM_STRING,
      .summary =
          "Id or name of a data set of contexts, a safetensors file with a tensor 'context' [n, tokens, width] and perhaps "
          "'null_context', the one of no condition (zeros if absent): picture k is told row k mod n. Texts are not encoded "
          "here; give what the model's text encoder made of them. Empty: the context.safetensors beside the model.",
      .fallback = "",
      .max = 200 },
    { .name = "class",
      .type = QD_PARAM_INT,
      .summary = "The class that a class-conditional model draws; -1: one after the other.",
      .fallback = "-1",
      .min = -1,
      .max = 1048575 },
    { .name = "null_class",
      .type = QD_PARAM_INT,
      .summary = "The class that stands for no class, where guidance needs one; -1: the last.",
      .fallback = "-1",
      .min = -1,
      .max = 1048575 },
    { .name = "guidance",
      .type = QD_PARAM_NUMBER,
      .summary =
          "Weight w of classifier-free guidance, eps_u + w (eps_c - eps_u), at twice the work; 1: the conditional answer "
          "alone, 0: the one without condition.",
      .fallback = "1",
      .min = 0,
      .max = 100 },
    { .name = "decoder",
      .type = QD_PARAM_STRING,
      .summary =
          "Id or name of a model whose first stage decodes latents into pictures; empty: the model's own, or that of the "
          "model it was quantized from; none: show the latents as they are.",
      .fallback = "",
      .max = 200 },
    { .name = NULL },
};

/* --- data sets of contexts --- */

bool sv_context_sniff(const char *path)
{
    qd_weights *w = NULL;
    if (qd_safetensors_open(path, &w, NULL, NULL))
        return false;
    const bool yes = qd_condition_in(w) && !qd_weights_find(w, "images");
    qd_weights_free(w);
    return yes;
}

static qd_status read_contexts(const char *path, qd_budget *budget, qd_condition *c, qd_err *err)
{
    qd_weights *w = NULL;
    qd_status st = qd_safetensors_open(path, &w, NULL, err);
    if (!st)
        st = qd_condition_read(c, w, budget, err);
    qd_weights_free(w);
    return st;
}

/* {"n", "tokens", "width", "null"} of a context. */
static json_t *context_json(const qd_condition *c)
{
    const qd_shape *s = &c->context.shape;
    return json_pack("{s:I, s:I, s:I, s:b}", "count", (json_int_t)s->dim[0], "tokens", (json_int_t)s->dim[1], "width",
                     (json_int_t)s->dim[2], "null_context", c->null_context.data != NULL);
}

qd_status sv_context_inspect(const char *path, qd_budget *budget, json_t **out, qd_err *err)
{
    qd_condition c;
    qd_condition_init(&c);
    const qd_status st = read_contexts(path, budget, &c, err);
    if (st)
        return st;
    *out = c.context.data ? context_json(&c) : json_object();
    if (c.labels.data)
        json_object_set_new(*out, "labels", json_integer((json_int_t)c.labels.shape.dim[0]));
    qd_condition_clear(&c);
    return *out ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for a summary");
}

/* --- what can be known when a job is submitted --- */

static qd_status refuse(char pointer[POINTER_SIZE], const char *param, qd_err *err, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
static qd_status refuse(char pointer[POINTER_SIZE], const char *param, qd_err *err, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    snprintf(pointer, POINTER_SIZE, "/params/%s", param);
    const qd_status st = qd_failv(err, QD_E_INVALID, fmt, ap);
    va_end(ap);
    return st;
}

/* A dimension of one of the model's inputs, as its summary has it; -1 when it has no such input or dimension. */
static int64_t input_dim(const json_t *summary, const char *input, size_t k)
{
    const json_t *shape = json_object_get(json_object_get(json_object_get(summary, "inputs"), input), "shape");
    const json_t *dim = json_array_get(shape, k);
    return json_is_integer(dim) ? json_integer_value(dim) : -1;
}

static bool has_input(const json_t *summary, const char *input)
{
    return json_object_get(json_object_get(summary, "inputs"), input) != NULL;
}

static qd_status check_context(sv_store *store, const char *name, const json_t *model, char pointer[POINTER_SIZE],
                               qd_err *err)
{
    sv_dataset_row row = { 0 };
    const int64_t tokens = input_dim(model, "encoder_hidden_states", 1),
                  width = input_dim(model, "encoder_hidden_states", 2);
    json_t *summary = NULL;
    qd_status st = sv_datasets_get(store, name, &row, err);
    if (st == QD_E_NOT_FOUND)
        return refuse(pointer, "context", err, "params.context: data set '%.80s' does not exist", name);
    if (st)
        return st;
    summary = sv_json_read(row.summary);
    const json_t *has = json_object_get(summary, "width");
    if (strcmp(row.role, SV_ROLE_CONTEXT) != 0)
        st = refuse(pointer, "context", err, "params.context: data set '%.80s' holds no contexts", name);
    else if (width >= 0 && (!has || json_integer_value(has) != width ||
                            json_integer_value(json_object_get(summary, "tokens")) != tokens))
        st = refuse(
            pointer, "context", err,
            "params.context: this denoiser needs encoder_hidden_states [n, %lld, %lld]; data set '%.80s' has [%lld, %lld, "
            "%lld]",
            (long long)tokens, (long long)width, name, (long long)json_integer_value(json_object_get(summary, "count")),
            (long long)json_integer_value(json_object_get(summary, "tokens")), (long long)json_integer_value(has));
    json_decref(summary);
    sv_model_row_clear(&row);
    return st;
}

static qd_status check_decoder(sv_store *store, const char *name, char pointer[POINTER_SIZE], qd_err *err)
{
    sv_model_row row = { 0 };
    if (!name[0] || strcmp(name, SV_DECODER_NONE) == 0)
        return QD_OK;
    const qd_status st = sv_models_get(store, name, &row, err);
    sv_model_row_clear(&row);
    return st == QD_E_NOT_FOUND ? refuse(pointer, "decoder", err, "params.decoder: model '%.80s' does not exist", name)
                                : st;
}

qd_status sv_condition_check(sv_store *store, const char *model_id, const qd_params *p, char pointer[128], qd_err *err)
{
    sv_model_row model = { 0 };
    const char *context = qd_params_string(p, "context");
    const double guidance = qd_params_number(p, "guidance");
    qd_status st = sv_models_get(store, model_id, &model, err);
    if (st)
        return st;
    json_t *summary = sv_json_read(model.summary);
    const bool wants = has_input(summary, "encoder_hidden_states"), classes = has_input(summary, "class_labels");
    /* A bundle may find contexts beside the model it was made from; that is seen when it runs. */
    const bool may_have =
        json_is_true(json_object_get(summary, "told")) || json_is_true(json_object_get(summary, "quantized"));
    if (json_object_get(summary, "inputs") && guidance != 1.0 && !wants && !classes)
        st = refuse(pointer, "guidance", err, "params.guidance is %g, but model '%.80s' takes no condition", guidance,
                    model_id);
    else if (context[0])
        st = check_context(store, context, summary, pointer, err);
    else if (wants && !may_have && guidance != 0.0)
        st = refuse(
            pointer, "context", err,
            "this denoiser needs encoder_hidden_states [n, %lld, %lld]: give context=.. (a data set with a tensor "
            "'context' of that shape)",
            (long long)input_dim(summary, "encoder_hidden_states", 1),
            (long long)input_dim(summary, "encoder_hidden_states", 2));
    if (!st)
        st = check_decoder(store, qd_params_string(p, "decoder"), pointer, err);
    json_decref(summary);
    sv_model_row_clear(&model);
    return st;
}

/* --- when it runs --- */

/* The path of the model with these bytes; *out stays NULL when it is not here any more. */
static qd_status find_model_by_hash(sv_task *t, const char *sha256, char **out, qd_err *err)
{
    char *after = NULL;
    bool more = true;
    qd_status st = QD_OK;
    while (more && !*out && !st) {
        const sv_list_query q = { .after = after, .limit = PAGE };
        sv_model_row *rows = NULL;
        int n = 0;
        st = sv_models_list(t->store, &q, &rows, &n, &more, err);
        for (int k = 0; k < n && !*out && !st; k++)
            if (strcmp(rows[k].sha256, sha256) == 0 && !(*out = sv_task_file_path(t, &rows[k])))
                st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
        qd_free(after);
        after = n > 0 ? qd_strdup(rows[n - 1].id) : NULL;
        more = more && after;
        sv_model_rows_free(rows, n);
    }
    qd_free(after);
    return st;
}

qd_status sv_model_source(sv_task *t, const qd_model *m, char **out, qd_err *err)
{
    json_t *manifest = m->meta ? sv_json_read(qd_meta_find(m->meta, "manifest")) : NULL;
    const char *sha256 = json_string_value(json_object_get(json_object_get(manifest, "source"), "sha256"));
    *out = NULL;
    const qd_status st = sha256 ? find_model_by_hash(t, sha256, out, err) : QD_OK;
    json_decref(manifest);
    return st;
}

/* Which other model helps this one: the decoder that is named, or what a bundle was made from. *out stays NULL when there is none. */
static qd_status open_companion(sv_task *t, const sv_denoise *d, qd_model **out, qd_err *err)
{
    const char *name = qd_params_string(t->params, "decoder");
    sv_model_row row = { 0 };
    char *path = NULL;
    qd_status st = QD_OK;

    if (strcmp(name, SV_DECODER_NONE) == 0)
        return QD_OK;
    if (name[0]) {
        st = sv_models_get(t->store, name, &row, err);
        if (!st && !(path = sv_task_file_path(t, &row)))
            st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
    } else if (d->model->graph) {
        st = sv_model_source(t, d->model, &path, err);
    }
    if (!st && path)
        st = qd_model_open(path, qd_run_budget(&t->run), out, err);
    if (st && name[0])
        qd_fail_in(err, st, "params.decoder");
    qd_free(path);
    sv_model_row_clear(&row);
    return st;
}

static qd_status open_decoder(sv_task *t, sv_denoise *d, const qd_model *companion, qd_err *err)
{
    const char *name = qd_params_string(t->params, "decoder");
    const qd_shape sample = QD_SHAPE(1, d->channels, d->height, d->width);
    if (strcmp(name, SV_DECODER_NONE) == 0)
        return QD_OK;
    qd_status st = qd_zoo_decoder(companion ? companion : d->model, &sample, &t->run, &d->decoder_graph, err);
    if (st)
        return st;
    if (!d->decoder_graph && name[0])
        return qd_fail(err, QD_E_INVALID, "params.decoder: model '%.80s' has no first stage", name);
    if (!d->decoder_graph && qd_meta_find(d->model->meta, SV_META_LATENT))
        return qd_fail(
            err, QD_E_INVALID,
            "this model makes latents, and the model it was quantized from is not here to decode them: give decoder=.. "
            "(a model with a first stage), or decoder=none");
    const char *missing = qd_meta_find(d->model->meta, QD_FIRST_STAGE_MISSING);
    if (!d->decoder_graph && missing)
        qd_run_warn(&t->run, "pictures show latents as they are: %s", missing);
    return QD_OK;
}

/* Contexts: of the data set that is named, of the table of classes, or of the file beside the model. */
static qd_status tell_context(sv_task *t, sv_denoise *d, const qd_model *from, qd_err *err)
{
    const char *name = qd_params_string(t->params, "context");
    qd_budget *budget = qd_run_budget(&t->run);
    sv_dataset_row row = { 0 };
    qd_tensor table = { 0 };
    char *path = NULL;
    qd_status st;

    if (name[0]) {
        st = sv_datasets_get(t->store, name, &row, err);
        if (!st && !(path = sv_task_file_path(t, &row)))
            st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
        if (!st)
            st = read_contexts(path, budget, &d->condition, err);
        qd_free(path);
        sv_model_row_clear(&row);
        return st ? qd_fail_in(err, st, "params.context") : QD_OK;
    }
    st = qd_zoo_class_table(from, budget, &table, err);
    if (!st && table.data)
        st = qd_condition_classify(&d->condition, d->graph, &table, qd_params_int(t->params, "class"),
                                   qd_params_int(t->params, "null_class"), budget, err);
    else if (!st && from->context)
        st = qd_condition_read(&d->condition, from->context, budget, err);
    qd_tensor_clear(&table);
    return st;
}

/* The last check before hours of work: the words of the denoiser itself, and what to do about them. */
static qd_status check_told(const sv_denoise *d, qd_err *err)
{
    const qd_node_id id = qd_graph_find(d->graph, "encoder_hidden_states");
    const qd_node *n = id >= 0 ? qd_graph_node(d->graph, id) : NULL;
    if (!n || n->shape.rank != 3 || d->condition.context.data || d->condition.guidance == 0.0)
        return QD_OK;
    return qd_fail(
        err, QD_E_INVALID,
        "this denoiser needs encoder_hidden_states [n, %lld, %lld]: give context=.. (a data set with a tensor 'context' "
        "of that shape)",
        (long long)n->shape.dim[1], (long long)n->shape.dim[2]);
}

qd_status sv_condition_open(sv_task *t, sv_denoise *d, qd_err *err)
{
    qd_model *companion = NULL;
    const bool vectors = qd_graph_find(d->graph, "encoder_hidden_states") >= 0;
    d->condition.guidance = qd_params_number(t->params, "guidance");
    qd_status st = open_companion(t, d, &companion, err);
    if (!st)
        st = open_decoder(t, d, companion, err);
    if (!st && (vectors || qd_params_string(t->params, "context")[0]))
        st = tell_context(t, d, companion ? companion : d->model, err);
    if (!st && !d->condition.labels.data && qd_condition_classes(d->graph) > 0)
        st = qd_condition_classify(&d->condition, d->graph, NULL, qd_params_int(t->params, "class"),
                                   qd_params_int(t->params, "null_class"), qd_run_budget(&t->run), err);
    if (!st)
        st = check_told(d, err);
    qd_model_free(companion);
    return st;
}
