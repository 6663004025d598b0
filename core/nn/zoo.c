/* zoo.c - the kinds of network we can build from a config, and the way from a model on disk to its graph. */
#include <string.h>

#include "graph/op.h"
#include "nn/nn_int.h"

const qd_network_kind *const qd_network_kinds[] = { &qd_kind_unet2d,
                                                    &qd_kind_unet2d_condition,
                                                    &qd_kind_autoencoder_kl,
                                                    &qd_kind_vq_model,
                                                    &qd_kind_ldm,
                                                    &qd_kind_resnet,
                                                    &qd_kind_dwnet,
                                                    &qd_kind_layernorm_unet,
                                                    NULL };

const qd_network_kind *qd_network_kind_find(const char *name)
{
    for (int k = 0; qd_network_kinds[k]; k++)
        if (strcmp(qd_network_kinds[k]->name, name) == 0)
            return qd_network_kinds[k];
    return NULL;
}

static qd_status kind_of(const qd_config *config, const qd_network_kind **out, qd_err *err)
{
    const char *name = NULL;
    qd_status st = qd_config_string(config, "_class_name", &name, err);
    if (st)
        return st;
    if (!name)
        return qd_fail(err, QD_E_UNSUPPORTED, "config key '_class_name' is missing: cannot tell what network this is");
    *out = qd_network_kind_find(name);
    if (*out)
        return QD_OK;

    char known[384] = "";
    for (int k = 0; qd_network_kinds[k]; k++) {
        if (k)
            strncat(known, ", ", sizeof(known) - strlen(known) - 1);
        strncat(known, qd_network_kinds[k]->name, sizeof(known) - strlen(known) - 1);
    }
    return qd_fail(err, QD_E_UNSUPPORTED, "config key '_class_name' is '%s', which we cannot build; known: %s", name,
                   known);
}

static qd_status no_config(const qd_weights *w, qd_err *err)
{
    static const char *const ldm_names[] = { "model.diffusion_model.input_blocks.0.0.weight",
                                             "diffusion_model.input_blocks.0.0.weight", "input_blocks.0.0.weight" };
    for (int k = 0; w && k < 3; k++)
        if (qd_weights_find(w, ldm_names[k]))
            return qd_fail(err, QD_E_UNSUPPORTED,
                           "the model has weights of latent diffusion but no config.json: put one beside it that says "
                           "{\"_class_name\": \"UNetModel\", \"image_size\": .., \"num_heads\": ..}");
    return qd_fail(err, QD_E_UNSUPPORTED, "the model has weights but no config.json: its network is unknown");
}

/* What was taken of a checkpoint with more in it, for whoever sent it. */
static void tell_choice(const qd_meta *meta, const qd_run *run)
{
    const char *chosen = meta ? qd_meta_find(meta, QD_TORCH_CHOSEN) : NULL;
    const char *beside = chosen ? qd_meta_find(meta, QD_TORCH_BESIDE) : NULL;
    if (beside)
        qd_run_warn(run, "of the checkpoint the weights at '%s' are used; beside them lie: %s", *chosen ? chosen : ".",
                    beside);
}

/* By the config's class; a file without that is looked at. */
static qd_status find_kind(const qd_model *m, const qd_weight_source *weights, const qd_network_kind **out, qd_err *err)
{
    if (m->config && qd_config_has(m->config, "_class_name"))
        return kind_of(m->config, out, err);
    for (int k = 0; qd_network_kinds[k]; k++)
        if (qd_network_kinds[k]->fits && qd_network_kinds[k]->fits(weights)) {
            *out = qd_network_kinds[k];
            return QD_OK;
        }
    return m->config ? kind_of(m->config, out, err) : no_config(m->weights, err);
}

qd_status qd_zoo_build(const qd_model *m, const qd_run *run, qd_graph **graph, qd_role *role, qd_err *err)
{
    if (m->graph)
        return qd_carried_graph(m->graph, graph, role, err);
    if (!m->weights)
        return no_config(NULL, err);

    const qd_network_kind *kind = NULL;
    qd_weight_source *weights = NULL;
    qd_config *none = NULL;
    qd_graph *g = NULL;
    qd_status st = qd_weight_source_file(m->weights, qd_run_budget(run), &weights, err);
    if (!st)
        st = find_kind(m, weights, &kind, err);
    if (!st && !m->config)
        st = qd_config_parse("{}", 2, "no config", &none, err);
    if (st)
        goto out;
    st = kind->build(m->config ? m->config : none, weights, run, &g, err);
    if (st)
        goto out;
    st = qd_weight_source_used_up(weights, err);
    if (st)
        goto out;
    tell_choice(m->meta, run);
    *graph = g;
    *role = kind->role;
    g = NULL; /* it is the caller's now */
out:
    qd_graph_free(g);
    qd_config_free(none);
    qd_weight_source_free(weights);
    return st;
}

qd_status qd_zoo_part(const qd_graph *g, const char *input, qd_graph **out, qd_err *err)
{
    const int n = qd_graph_size(g);
    const qd_node_id from = qd_graph_find(g, input);
    qd_graph *part = NULL;
    bool *depends = NULL, *needed = NULL;
    qd_node_id *map = NULL;
    qd_status st = QD_OK;
    int outputs = 0;

    if (from < 0 || qd_graph_node(g, from)->op != &qd_op_input)
        return qd_fail(err, QD_E_NOT_FOUND, "the network has no input '%s'", input);
    depends = qd_calloc((size_t)n, sizeof(*depends));
    needed = qd_calloc((size_t)n, sizeof(*needed));
    map = qd_calloc((size_t)n, sizeof(*map));
    if (!depends || !needed || !map) {
        st = qd_fail(err, QD_E_NOMEM, "out of memory for a map of %d nodes", n);
        goto out;
    }
    for (qd_node_id id = from; id < n; id++) {
        const qd_node *node = qd_graph_node(g, id);
        depends[id] = id == from;
        for (int k = 0; k < node->n_inputs; k++)
            depends[id] |= node->input[k] >= 0 && depends[node->input[k]];
    }
    for (int k = 0; k < qd_graph_outputs(g); k++)
        if (depends[qd_graph_output_at(g, k)]) {
            needed[qd_graph_output_at(g, k)] = true;
            outputs++;
        }
    if (!outputs) {
        st = qd_fail(err, QD_E_NOT_FOUND, "no output of the network depends on input '%s'", input);
        goto out;
    }
    for (qd_node_id id = n - 1; id >= 0; id--) {
        const qd_node *node = qd_graph_node(g, id);
        for (int k = 0; needed[id] && k < node->n_inputs; k++)
            if (node->input[k] >= 0)
                needed[node->input[k]] = true;
    }
    st = qd_graph_new(&part, err);
    if (st)
        goto out;
    for (qd_node_id id = 0; id < n; id++)
        if (needed[id])
            qd_graph_copy_node(part, g, id, map);
    for (int k = 0; k < qd_graph_outputs(g); k++)
        if (depends[qd_graph_output_at(g, k)])
            qd_graph_output(part, qd_graph_output_name(g, k), map[qd_graph_output_at(g, k)]);
    st = qd_graph_verify(part, err);
    if (st)
        goto out;
    *out = part;
    part = NULL;
out:
    qd_graph_free(part);
    qd_free(map);
    qd_free(needed);
    qd_free(depends);
    return st;
}

qd_status qd_zoo_random(const char *config_json, uint64_t seed, qd_graph **graph, qd_err *err)
{
    const qd_network_kind *kind;
    qd_config *config = NULL;
    qd_weight_source *weights = NULL;
    qd_status st = qd_config_parse(config_json, strlen(config_json), "config", &config, err);
    if (st)
        goto out;
    st = kind_of(config, &kind, err);
    if (st)
        goto out;
    st = qd_weight_source_random(seed, NULL, &weights, err);
    if (st)
        goto out;
    st = kind->build(config, weights, NULL, graph, err);
out:
    qd_weight_source_free(weights);
    qd_config_free(config);
    return st;
}
