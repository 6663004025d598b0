/* test_groups.c - qncd-plus beyond smoothing: the table of time steps, ranges by groups of them (qncd.md 11). */
#include "harness/harness.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"
#include "graph/op.h"
#include "metrics/metrics.h"
#include "quant/qncd_int.h"

enum { STEPS = 10, SIZE = 28 * 28, BATCH = 2 };

typedef struct shipped {
    qd_model *model;
    qd_graph *graph;
    qd_schedule *schedule;
} shipped;

static int open_shipped(void **state)
{
    qd_err err = { 0 };
    qd_role role;
    shipped *s = qd_calloc(1, sizeof *s);
    check_ok(qd_model_open(harness_source("deploy/models/fmnist-ddpm-unet"), NULL, &s->model, &err), &err);
    check_ok(qd_zoo_build(s->model, NULL, &s->graph, &role, &err), &err);
    check_ok(qd_schedule_open(s->model->scheduler, &s->schedule, &err), &err);
    *state = s;
    return 0;
}

static int close_shipped(void **state)
{
    shipped *s = *state;
    qd_schedule_free(s->schedule);
    qd_graph_free(s->graph);
    qd_model_free(s->model);
    qd_free(s);
    return 0;
}

static void eps_at(const qd_graph *g, const qd_correction *c, int t, float *out)
{
    qd_err err = { 0 };
    qd_grouped *d = NULL;
    static float x[BATCH * SIZE];
    const qd_denoiser_options o = { .batch = BATCH };
    harness_normal(x, BATCH * SIZE, 7, 1);
    check_ok(qd_grouped_new(g, c, &o, &d, &err), &err);
    const qd_predictor p = qd_grouped_predictor(d);
    check_ok(p.predict(p.ctx, NULL, x, t, out, &err), &err);
    qd_grouped_free(d);
}

/* On its time steps the table is the network; between them nearly; and the layers it stands for are gone. */
static void a_table_of_time_steps(void **state)
{
    const shipped *s = *state;
    qd_err err = { 0 };
    qd_graph *g = NULL;
    int t[STEPS];
    static float want[BATCH * SIZE], got[BATCH * SIZE];
    check_ok(qd_timesteps(s->schedule, QD_SPACING_LEADING, STEPS, t, &err), &err);
    check_ok(qd_time_table(s->graph, s->schedule, t, STEPS, NULL, &g, &err), &err);
    for (int k = 0; k < STEPS; k += 3) {
        eps_at(s->graph, NULL, t[k], want);
        eps_at(g, NULL, t[k], got);
        check_close(got, want, BATCH * SIZE, 0, 2e-6);
    }
    eps_at(s->graph, NULL, 450, want);
    eps_at(g, NULL, 450, got);
    const double db = qd_sqnr_db(want, got, BATCH * SIZE);
    print_message("between two of %d time steps: %.1f dB\n", STEPS, db);
    assert_true(db > 20);
    for (qd_node_id id = 0; id < qd_graph_size(g); id++)
        assert_null(strstr(qd_graph_node(g, id)->name, "time_emb_proj.weight"));
    /* Outside the table its ends hold, also for nonsense. */
    eps_at(g, NULL, 999, got);
    for (int k = 0; k < BATCH * SIZE; k++)
        assert_true(isfinite(got[k]));
    qd_graph_free(g);
}

static void quantize(const shipped *s, const char *method, const char *groups, qd_graph **out, qd_quant_report *r)
{
    qd_err err = { 0 };
    qd_params *p = NULL;
    const qd_method *m = qd_method_find(method);
    const char *const rows[][2] = {
        { "weight_bits", "8" },          { "activation_bits", "6" },     { "steps", "10" },
        { "calibration_samples", "16" }, { "calibration_steps", "10" },  { "measure_samples", "2" },
        { "reference_samples", "2" },    { "activation_groups", groups }
    };
    check_ok(qd_params_new(m->params, &p, &err), &err);
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++)
        check_ok(qd_params_set_text(p, rows[k][0], rows[k][1], &err), &err);
    const qd_run run = { .seed = 3 };
    const qd_quant_task task = { .graph = s->graph, .role = QD_ROLE_DENOISER, .schedule = s->schedule, .params = p };
    check_ok(m->run(&task, &run, out, r, &err), &err);
    qd_params_free(p);
}

static void ranges_by_groups(void **state)
{
    const shipped *s = *state;
    qd_err err = { 0 };
    qd_graph *one = NULL, *ten = NULL;
    qd_quant_report plain = { 0 }, grouped = { 0 };
    quantize(s, "qncd-plus", "1", &one, &plain);
    quantize(s, "qncd-plus", "5", &ten, &grouped);
    print_message("W8A6, eps SQNR: %.2f dB with one range for all time steps, %.2f dB with five\n",
                  plain.eps_sqnr_mean_db, grouped.eps_sqnr_mean_db);
    assert_true(grouped.eps_sqnr_mean_db > plain.eps_sqnr_mean_db + 0.3);
    const qd_correction *c = grouped.correction;
    assert_int_equal(plain.correction->n_groups, 0);
    assert_int_equal(c->n_groups, 5);
    /* Ten stored steps at t = 900, 800, .. 0: two to a group, the border half way. */
    static const int until[] = { 750, 550, 350, 150, 0 };
    assert_memory_equal(c->group_until, until, sizeof until);
    assert_true(c->n_maps > 20);

    /* Each time step runs on its group's maps. */
    static const struct {
        int t, group;
    } places[] = { { 999, 0 }, { 750, 0 }, { 749, 1 }, { 400, 2 }, { 150, 3 }, { 149, 4 }, { 0, 4 } };
    static float want[BATCH * SIZE], got[BATCH * SIZE];
    for (size_t k = 0; k < sizeof places / sizeof *places; k++) {
        qd_graph *g = NULL;
        check_ok(qd_group_graph(ten, c, places[k].group, &g, &err), &err);
        eps_at(g, NULL, places[k].t, want);
        eps_at(ten, c, places[k].t, got);
        assert_memory_equal(got, want, sizeof want);
        const qd_node *q = qd_graph_node(g, qd_graph_find(g, c->map_name[3]));
        assert_true((float)qd_node_float(q, "scale") == c->map_scale[places[k].group * c->n_maps + 3]);
        qd_graph_free(g);
    }

    /* The text carries them; a name that is not this graph's is refused. */
    qd_buf b;
    qd_correction *back = NULL;
    qd_graph *g = NULL;
    qd_buf_init(&b, 0);
    check_ok(qd_correction_text(c, &b, &err), &err);
    check_ok(qd_correction_parse(b.data, b.size, &back, &err), &err);
    eps_at(ten, back, 400, got);
    eps_at(ten, c, 400, want);
    assert_memory_equal(got, want, sizeof want);
    strcpy(back->map_name[0], "elsewhere");
    check_fails(qd_group_graph(ten, back, 0, &g, &err), QD_E_FORMAT, "belong to this network", &err);
    qd_correction_free(back);
    qd_buf_clear(&b);
    qd_quant_report_clear(&plain);
    qd_quant_report_clear(&grouped);
    qd_graph_free(one);
    qd_graph_free(ten);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_table_of_time_steps),
        cmocka_unit_test(ranges_by_groups),
    };
    return cmocka_run_group_tests(tests, open_shipped, close_shipped);
}
