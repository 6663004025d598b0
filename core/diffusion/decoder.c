/* decoder.c - the second half of latent diffusion: a latent to its image, one at a time (diffusion_models.md 5). */
#include "diffusion/diffusion.h"
#include "plan/plan.h"

struct qd_decoder {
    qd_plan *plan;
    qd_shape image; // [K, H, W]
};

void qd_decoder_free(qd_decoder *d)
{
    if (!d)
        return;
    qd_plan_free(d->plan);
    qd_free(d);
}

/* Shape of the only output for one latent. */
static qd_status image_shape(const qd_graph *g, const qd_shape *latent, qd_shape *image, qd_err *err)
{
    char text[96];
    qd_shape *shapes = qd_calloc((size_t)qd_graph_size(g), sizeof(*shapes));
    if (!shapes)
        return qd_fail(err, QD_E_NOMEM, "out of memory for the shapes of %d nodes", qd_graph_size(g));
    qd_status st = qd_graph_shapes(g, latent, 1, shapes, err);
    if (!st) {
        const qd_shape *out = &shapes[qd_graph_output_at(g, 0)];
        if (out->rank != 4 || out->dim[0] != 1)
            st = qd_fail(err, QD_E_UNSUPPORTED,
                         "a decoder makes one picture [1, K, H, W] of a latent; this one makes %s",
                         qd_shape_text(out, text, sizeof(text)));
        else
            *image = qd_shape_of(3, out->dim + 1);
    }
    qd_free(shapes);
    return st;
}

qd_status qd_decoder_new(const qd_graph *g, int threads, const struct qd_backend *backend, qd_budget *budget,
                         qd_decoder **out, qd_err *err)
{
    if (qd_graph_inputs(g) != 1 || qd_graph_outputs(g) != 1)
        return qd_fail(err, QD_E_UNSUPPORTED, "the graph has %d inputs and %d outputs; a decoder has one of each",
                       qd_graph_inputs(g), qd_graph_outputs(g));
    const qd_node *input = qd_graph_node(g, qd_graph_input_at(g, 0));
    if (input->shape.rank != 4 || input->dtype != QD_F32)
        return qd_fail(err, QD_E_UNSUPPORTED, "input '%s' of a decoder must be f32 [N, C, H, W]", input->name);
    qd_shape latent = input->shape;
    latent.dim[0] = 1;
    qd_decoder *d = qd_calloc(1, sizeof(*d));
    if (!d)
        return qd_fail(err, QD_E_NOMEM, "out of memory for a decoder");
    const qd_plan_options o = {
        .input_shapes = &latent, .n_inputs = 1, .threads = threads, .backend = backend, .budget = budget
    };
    qd_status st = image_shape(g, &latent, &d->image, err);
    if (!st)
        st = qd_plan_compile(g, &o, &d->plan, err);
    if (st) {
        qd_decoder_free(d);
        return st;
    }
    *out = d;
    return QD_OK;
}

qd_shape qd_decoder_image(const qd_decoder *d)
{
    return d->image;
}

qd_status qd_decoder_run(qd_decoder *d, const qd_run *run, const float *latent, float *image, qd_err *err)
{
    const void *inputs[1] = { latent };
    void *outputs[1] = { image };
    return qd_plan_run(d->plan, run, inputs, outputs, err);
}
