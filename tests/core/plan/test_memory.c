/* test_memory.c - the arena: its judge catches what it should, and reuse keeps it small. */
#include "core/plan/plan_case.h"

static plan_case chain(int length)
{
    plan_case c = case_new(1);
    qd_node_id x = case_input(&c, QD_SHAPE(1, 16, 16, 16));
    for (int k = 0; k < length; k++)
        x = case_conv(&c, x, (case_conv_shape){ .in = 16, .out = 16, .kernel = 3, .pads = { 1, 1, 1, 1 } });
    case_output(&c, x);
    return c;
}

static void test_reuse(void **state)
{
    const qd_backend *const backends[] = { &qd_backend_ref, &qd_backend_cpu };
    for (int b = 0; b < 2; b++) {
        plan_case few = chain(3), many = chain(30);
        qd_plan *p = case_compile(&few, backends[b], 1), *q = case_compile(&many, backends[b], 1);
        assert_int_equal(qd_plan_arena_bytes(p),
                         qd_plan_arena_bytes(q)); /* two values live at a time, however long the chain */
        qd_plan_free(p);
        qd_plan_free(q);
        qd_graph_free(few.g);
        qd_graph_free(many.g);
    }
}

static void test_judge_sees_overlap(void **state)
{
    plan_case c = chain(4);
    qd_err err = { 0 };
    qd_plan *p = case_compile(&c, &qd_backend_ref, 1);
    const int32_t a = p->values[p->steps[1].in[0]].buffer, b = p->values[p->steps[1].out].buffer;
    const size_t kept = p->buffers[b].offset;
    p->buffers[b].offset = p->buffers[a].offset;
    check_fails(qd_plan_check_memory(p, &err), QD_E_INTERNAL, "share bytes", &err);
    p->buffers[b].offset = p->arena_bytes;
    check_fails(qd_plan_check_memory(p, &err), QD_E_INTERNAL, "leaves the arena", &err);
    p->buffers[b].offset = kept;
    p->buffers[b].same_as = a; /* merged, though step 2 reads the old value's successor */
    p->steps[2].in[0] = p->steps[1].in[0];
    check_fails(qd_plan_check_memory(p, &err), QD_E_INTERNAL, "holds another value", &err);
    qd_plan_free(p);
    qd_graph_free(c.g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reuse),
        cmocka_unit_test(test_judge_sees_overlap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
