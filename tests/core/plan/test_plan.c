/* test_plan.c - the plan as its callers see it: observing, cancelling, budgets, failures, instruction sets. */
#include "core/plan/plan_case.h"

#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cpu.h"

/* A U-Net block in float and int8: norm, time, residual, concat, attention, upsample. */
static plan_case block(uint64_t seed, int64_t n)
{
    plan_case c = case_new(seed);
    const case_conv_shape same = { .in = 24, .out = 24, .kernel = 3, .pads = { 1, 1, 1, 1 } };
    const qd_node_id image = case_input(&c, QD_SHAPE(n, 3, 12, 12));
    const qd_node_id t = case_linear(&c, case_input(&c, QD_SHAPE(n, 16)), 16, 24);
    const qd_node_id x =
        case_conv(&c, image, (case_conv_shape){ .in = 3, .out = 24, .kernel = 3, .pads = { 1, 1, 1, 1 } });
    qd_node_id h = case_conv(&c, case_unary(&c, &qd_op_silu, case_norm(&c, x, 24, 6)), same);
    h = case_binary(&c, &qd_op_add, h, case_ints(&c, &qd_op_reshape, t, "shape", CASE_DIMS(0, 24, 1, 1)));
    h = case_unary(&c, &qd_op_silu, case_norm(&c, h, 24, 6));
    h = case_qconv(&c, case_quantize(&c, h, false, 30, -1), 30, same);
    h = case_binary(&c, &qd_op_add, x, h);
    const qd_node_id skip = h;
    h = case_ints(&c, &qd_op_reshape, case_norm(&c, h, 24, 6), "shape", CASE_DIMS(0, 24, 144));
    h = case_ints(&c, &qd_op_permute, h, "perm", CASE_DIMS(0, 2, 1));
    h = qd_graph_add(c.g, &qd_op_attention, case_name(&c),
                     QD_IN(case_linear(&c, h, 24, 24), case_linear(&c, h, 24, 24), case_linear(&c, h, 24, 24)),
                     QD_ATTRS(QD_INT("heads", 2), QD_FLOAT("scale", 0.3)));
    h = case_ints(&c, &qd_op_permute, case_linear(&c, h, 24, 24), "perm", CASE_DIMS(0, 2, 1));
    h = case_binary(&c, &qd_op_add, case_ints(&c, &qd_op_reshape, h, "shape", CASE_DIMS(0, 24, 12, 12)), skip);
    h = case_concat(&c, h, x);
    const qd_node_id short_cut = case_conv(&c, h, (case_conv_shape){ .in = 48, .out = 8, .kernel = 1 });
    h = case_unary(&c, &qd_op_silu, case_norm(&c, h, 48, 8));
    h = case_conv(&c, h, (case_conv_shape){ .in = 48, .out = 8, .kernel = 3, .pads = { 1, 1, 1, 1 } });
    h = case_binary(&c, &qd_op_add, short_cut, h);
    h = case_ints(&c, &qd_op_upsample, h, "factor", CASE_DIMS(2, 2));
    case_output(&c, case_conv(&c, h, (case_conv_shape){ .in = 8, .out = 3, .kernel = 3, .pads = { 1, 1, 1, 1 } }));
    return c;
}

static void test_block(void **state)
{
    for (uint64_t n = 1; n <= 3; n++) {
        plan_case c = block(n, (int64_t)n);
        case_check(&c, 2e-2); /* codes may flip */
    }
}

/* --- observing --- */

#define SEEN 256
typedef struct seen {
    int n, node[SEEN];
    float *data[SEEN];
    int64_t count[SEEN];
} seen;

static void see(void *ctx, qd_node_id id, const float *data, const qd_shape *shape)
{
    seen *s = ctx;
    int64_t count = 0;
    assert_int_equal(qd_shape_count(shape, &count, NULL), QD_OK);
    assert_true(s->n < SEEN);
    s->node[s->n] = id;
    s->count[s->n] = count;
    s->data[s->n] = malloc(sizeof(float) * (size_t)count);
    memcpy(s->data[s->n++], data, sizeof(float) * (size_t)count);
}

static void look(const plan_case *c, const qd_backend *backend, const qd_node_id *ids, int n, seen *s)
{
    qd_plan *p;
    qd_err err = { 0 };
    case_data d = case_data_new(c);
    const qd_plan_options o = { .input_shapes = c->inputs,
                                .n_inputs = c->n_inputs,
                                .backend = backend,
                                .observed = ids,
                                .n_observed = n,
                                .observe = see,
                                .observe_ctx = s };
    check_ok(qd_plan_compile(c->g, &o, &p, &err), &err);
    check_ok(qd_plan_check_memory(p, &err), &err);
    case_run(p, &d);
    qd_plan_free(p);
    case_data_clear(&d);
}

static const float *shown(const seen *s, qd_node_id id, int64_t *count)
{
    for (int k = 0; k < s->n; k++)
        if (s->node[k] == id) {
            *count = s->count[k];
            return s->data[k];
        }
    fail_msg("node %d was not shown", (int)id);
    return NULL;
}

static void seen_clear(seen *s)
{
    for (int k = 0; k < s->n; k++)
        free(s->data[k]);
}

/* All at once, and each alone: the others stay fused around it. */
static void test_observed(void **state)
{
    plan_case c = block(4, 2);
    qd_node_id ids[SEEN];
    int n = 0;
    for (qd_node_id id = 0; id < qd_graph_size(c.g); id++)
        if (qd_graph_node(c.g, id)->op != &qd_op_const)
            ids[n++] = id;
    seen want = { .n = 0 }, all = { .n = 0 };
    look(&c, &qd_backend_ref, ids, n, &want);
    look(&c, &qd_backend_cpu, ids, n, &all);
    assert_int_equal(want.n, n);
    assert_int_equal(all.n, n);
    for (int k = 0; k < n; k++) {
        int64_t count, same;
        const float *w = shown(&want, ids[k], &count), *g = shown(&all, ids[k], &same);
        const bool codes = qd_graph_node(c.g, ids[k])->op == &qd_op_quantize;
        assert_int_equal(count, same);
        check_close(g, w, count, codes ? 1.0 : 0.0, 2e-2);
        seen one = { .n = 0 };
        look(&c, &qd_backend_cpu, &ids[k], 1, &one);
        assert_int_equal(one.n, 1);
        check_close(one.data[0], w, count, codes ? 1.0 : 0.0, 2e-2);
        seen_clear(&one);
    }
    seen_clear(&want);
    seen_clear(&all);
    qd_graph_free(c.g);
}

/* --- refusing and stopping --- */

static void test_bad_options(void **state)
{
    plan_case c = block(5, 1);
    qd_plan *p = NULL;
    qd_err err = { 0 };
    const qd_node_id nowhere = 100000;
    qd_plan_options o = { .input_shapes = c.inputs, .n_inputs = 1 };
    check_fails(qd_plan_compile(c.g, &o, &p, &err), QD_E_INVALID, "2 inputs", &err);
    o.n_inputs = 2;
    o.threads = -1;
    check_fails(qd_plan_compile(c.g, &o, &p, &err), QD_E_INVALID, "threads", &err);
    o.threads = 1;
    o.observed = &nowhere;
    o.n_observed = 1;
    check_fails(qd_plan_compile(c.g, &o, &p, &err), QD_E_INVALID, "callback", &err);
    o.observe = see;
    check_fails(qd_plan_compile(c.g, &o, &p, &err), QD_E_INVALID, "100000", &err);
    o.n_observed = 0;
    c.inputs[0].dim[0] = -1;
    check_fails(qd_plan_compile(c.g, &o, &p, &err), QD_E_INVALID, "dim 0", &err);
    c.inputs[0].dim[0] = 1;
    c.inputs[0].dim[1] = 4;
    check_fails(qd_plan_compile(c.g, &o, &p, &err), QD_E_INVALID, NULL, &err);
    assert_null(p);
    qd_graph_free(c.g);
}

static void test_budget(void **state)
{
    plan_case c = block(6, 2);
    qd_plan *p = NULL;
    qd_err err = { 0 };
    qd_budget budget;
    qd_budget_init(&budget, 0);
    qd_plan_options o = { .input_shapes = c.inputs, .n_inputs = 2, .budget = &budget };
    check_ok(qd_plan_compile(c.g, &o, &p, &err), &err);
    const size_t whole = budget.used_bytes;
    assert_int_equal(whole, qd_plan_arena_bytes(p) + qd_plan_weight_bytes(p));
    qd_plan_free(p);
    assert_int_equal(budget.used_bytes, 0);

    p = NULL;
    qd_budget_init(&budget, whole - 1);
    check_fails(qd_plan_compile(c.g, &o, &p, &err), QD_E_LIMIT, "limit", &err);
    assert_null(p);
    assert_int_equal(budget.used_bytes, 0);
    qd_budget_init(&budget, whole / 8);
    check_fails(qd_plan_compile(c.g, &o, &p, &err), QD_E_LIMIT, "limit", &err);
    assert_int_equal(budget.used_bytes, 0);
    qd_graph_free(c.g);
}

static void test_every_allocation_may_fail(void **state)
{
    const qd_backend *const backends[] = { &qd_backend_cpu, &qd_backend_ref };
    for (int b = 0; b < 2; b++) {
        plan_case c = block(7, 1);
        qd_budget budget;
        qd_budget_init(&budget, 0);
        const qd_plan_options o = {
            .input_shapes = c.inputs, .n_inputs = 2, .backend = backends[b], .budget = &budget
        };
        for (long k = 0;; k++) {
            qd_plan *p = NULL;
            qd_err err = { 0 };
            qd_mem_fault_set(k);
            const qd_status st = qd_plan_compile(c.g, &o, &p, &err);
            const bool hit = qd_mem_fault_hit();
            qd_mem_fault_set(-1);
            if (!hit) {
                check_ok(st, &err);
                assert_true(k > 20);
                qd_plan_free(p);
                break;
            }
            assert_int_equal(st, QD_E_NOMEM);
            assert_null(p);
            assert_int_equal(budget.used_bytes, 0);
        }
        qd_graph_free(c.g);
    }
}

typedef struct stopper {
    atomic_bool flag;
    int shown;
} stopper;

static void stop_soon(void *ctx, qd_node_id id, const float *data, const qd_shape *shape)
{
    stopper *s = ctx;
    s->shown++;
    atomic_store(&s->flag, true);
}

static void test_cancel(void **state)
{
    plan_case c = block(8, 1);
    stopper s = { .shown = 0 };
    qd_plan *p;
    qd_err err = { 0 };
    qd_node_id ids[SEEN];
    int n = 0;
    for (qd_node_id id = 0; id < qd_graph_size(c.g); id++)
        if (qd_graph_node(c.g, id)->op == &qd_op_conv2d)
            ids[n++] = id;
    const qd_plan_options o = { .input_shapes = c.inputs,
                                .n_inputs = 2,
                                .observed = ids,
                                .n_observed = n,
                                .observe = stop_soon,
                                .observe_ctx = &s };
    const qd_run run = { .cancel = &s.flag };
    case_data d = case_data_new(&c);
    check_ok(qd_plan_compile(c.g, &o, &p, &err), &err);
    check_fails(qd_plan_run(p, &run, (const void *const *)d.in, (void *const *)d.out, &err), QD_E_CANCELLED, NULL,
                &err);
    assert_int_equal(s.shown, 1); /* it stopped before the next */
    atomic_store(&s.flag, false);
    check_fails(qd_plan_run(p, &run, (const void *const *)d.in, (void *const *)d.out, &err), QD_E_CANCELLED, NULL,
                &err);
    qd_plan_free(p);
    case_data_clear(&d);
    qd_graph_free(c.g);
}

/* --- telling --- */

static void test_print_and_profile(void **state)
{
    plan_case c = block(9, 1);
    qd_plan *p;
    qd_err err = { 0 };
    qd_buf b;
    const qd_plan_options o = { .input_shapes = c.inputs, .n_inputs = 2, .profile = true, .backend = &qd_backend_cpu };
    case_data d = case_data_new(&c);
    check_ok(qd_plan_compile(c.g, &o, &p, &err), &err);
    case_run(p, &d);
    case_run(p, &d);
    double seconds = 0.0;
    int64_t macs = 0, want = 0;
    for (int k = 0; k < qd_plan_steps(p); k++) {
        qd_plan_step s;
        qd_plan_step_at(p, k, &s);
        assert_int_equal(s.runs, 2);
        seconds += s.seconds;
        macs += s.macs;
    }
    assert_true(seconds > 0.0);
    check_ok(qd_graph_cost(c.g, c.inputs, 2, &want, &err), &err);
    assert_int_equal(macs, want); /* fusing loses no work */
    qd_buf_init(&b, 0);
    qd_plan_print(p, &b);
    assert_non_null(strstr(b.data, "add+norm+silu+quantize"));
    assert_non_null(strstr(b.data, "linear+add"));
    qd_buf_clear(&b);
    assert_non_null(strstr(qd_plan_libraries(), "oneDNN"));
    qd_plan_free(p);
    case_data_clear(&d);
    qd_graph_free(c.g);
}

static void test_backends(void **state)
{
    assert_ptr_equal(qd_backend_find("ref"), &qd_backend_ref);
    assert_ptr_equal(qd_backend_find("cpu"), &qd_backend_cpu);
    assert_null(qd_backend_find("gpu"));
    for (int k = 0; qd_backends[k]; k++)
        assert_ptr_equal(qd_backend_find(qd_backend_name(qd_backends[k])), qd_backends[k]);
    setenv("QD_KERNELS", "ref", 1);
    assert_ptr_equal(qd_backend_default(), &qd_backend_ref);
    unsetenv("QD_KERNELS");
    assert_ptr_equal(qd_backend_default(), &qd_backend_cpu);
}

/* --- instruction sets: oneDNN takes its own once per process, so each is asked in a child of its own --- */

#define ISA_FLOATS 4096
#define ISA_CASES 2
static float *isa_out; // [3][ISA_CASES][ISA_FLOATS], shared with the children
static int isa_status[3];

/* A whole block, and a convolution of random codes and weights of the full range, whose integers must be exact everywhere. */
static plan_case isa_case(int k)
{
    if (k == 0)
        return block(10, 2);
    plan_case c = case_new(11);
    const qd_node_id x = case_input(&c, QD_SHAPE(2, 20, 9, 9));
    case_output(&c, case_qconv(&c, case_quantize(&c, x, false, 128, -1), 128,
                               (case_conv_shape){ .in = 20, .out = 24, .kernel = 3, .pads = { 1, 1, 1, 1 } }));
    return c;
}

static int run_child(float *out)
{
    for (int k = 0; k < ISA_CASES; k++) {
        plan_case c = isa_case(k);
        case_data one = case_data_new(&c), two = case_data_new(&c);
        qd_plan *p = case_compile(&c, &qd_backend_cpu, 1), *wide = case_compile(&c, &qd_backend_cpu, 2);
        if (one.count[0] > ISA_FLOATS)
            return 2;
        case_run(p, &one);
        case_run(wide, &two);
        if (memcmp(one.out[0], two.out[0], (size_t)one.count[0] * sizeof(float)) != 0)
            return 3;
        memcpy(out + k * ISA_FLOATS, one.out[0], (size_t)one.count[0] * sizeof(float));
    }
    return 0;
}

static void ask_children(void)
{
    isa_out = mmap(NULL, 3 * ISA_CASES * ISA_FLOATS * sizeof(float), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                   -1, 0);
    for (int k = 0; k < 3; k++) {
        const pid_t child = fork();
        if (child == 0) {
            setenv("QUANTD_ISA", qd_isa_name((qd_isa)k), 1);
            _exit(run_child(isa_out + k * ISA_CASES * ISA_FLOATS));
        }
        waitpid(child, &isa_status[k], 0);
    }
}

static void test_instruction_sets_agree(void **state)
{
    for (int j = 0; j < ISA_CASES; j++) {
        plan_case c = isa_case(j);
        case_data want = case_data_new(&c);
        qd_plan *ref = case_compile(&c, &qd_backend_ref, 1);
        case_run(ref, &want);
        for (int k = 0; k < 3; k++) {
            print_message("instruction set %s, case %d\n", qd_isa_name((qd_isa)k), j);
            assert_true(WIFEXITED(isa_status[k]));
            assert_int_equal(WEXITSTATUS(isa_status[k]),
                             0); /* 2: too large; 3: two threads gave other bytes than one */
            check_close(isa_out + (k * ISA_CASES + j) * ISA_FLOATS, want.out[0], want.count[0], 0.0, j ? 1e-5 : 2e-2);
        }
        qd_plan_free(ref);
        case_data_clear(&want);
        qd_graph_free(c.g);
    }
}

int main(void)
{
    ask_children(); /* before this process has threads */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_block),
        cmocka_unit_test(test_observed),
        cmocka_unit_test(test_bad_options),
        cmocka_unit_test(test_budget),
        cmocka_unit_test(test_every_allocation_may_fail),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_print_and_profile),
        cmocka_unit_test(test_backends),
        cmocka_unit_test(test_instruction_sets_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
