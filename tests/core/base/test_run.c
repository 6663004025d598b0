/* test_run.c - a quiet run is fine, a loud one hears everything, cancel is seen; the parallel loop does each piece once. */
#include "harness/harness.h"

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cpu.h"
#include "base/par.h"
#include "base/run.h"

typedef struct heard {
    int progress, metric, layer;
    char warn[64];
} heard;

static void on_progress(void *ctx, const char *phase, const char *item, int64_t done, int64_t total)
{
    ((heard *)ctx)->progress += (int)(done * 100 + total);
}

static void on_metric(void *ctx, const char *name, int64_t step, double value)
{
    ((heard *)ctx)->metric += (int)(value * 10);
}

static void on_layer(void *ctx, const char *name, int64_t step, int wb, int ab, double sqnr_db, double lo, double hi)
{
    ((heard *)ctx)->layer += wb * 100 + ab;
}

static void on_warn(void *ctx, const char *text)
{
    strncpy(((heard *)ctx)->warn, text, sizeof((heard *)ctx)->warn - 1);
}

static void quiet_and_loud(void **state)
{
    qd_err err = { 0 };
    const qd_run quiet = { 0 };
    const qd_run *const silent[] = { NULL, &quiet };
    for (int k = 0; k < 2; k++) {
        check_ok(qd_run_check(silent[k], &err), &err);
        qd_run_progress(silent[k], "p", NULL, 0, 1);
        qd_run_metric(silent[k], "m", 0, 0);
        qd_run_layer(silent[k], "l", 0, 8, 8, 0, 0, 0);
        qd_run_warn(silent[k], "w %d", 1);
        assert_int_equal(qd_run_threads(silent[k]), 1);
        assert_null(qd_run_budget(silent[k]));
    }

    heard h = { 0 };
    atomic_bool cancel = false;
    qd_budget budget;
    const qd_run loud = { .ctx = &h,
                          .progress = on_progress,
                          .metric = on_metric,
                          .layer = on_layer,
                          .warn = on_warn,
                          .cancel = &cancel,
                          .threads = 3,
                          .budget = &budget };
    qd_run_progress(&loud, "p", NULL, 2, 5);
    qd_run_metric(&loud, "m", 0, 1.5);
    qd_run_layer(&loud, "l", 0, 4, 8, 0, 0, 0);
    qd_run_warn(&loud, "layer %s", "x");
    assert_int_equal(h.progress, 205);
    assert_int_equal(h.metric, 15);
    assert_int_equal(h.layer, 408);
    assert_string_equal(h.warn, "layer x");
    assert_int_equal(qd_run_threads(&loud), 3);
    assert_ptr_equal(qd_run_budget(&loud), &budget);
    check_ok(qd_run_check(&loud, &err), &err);
    atomic_store(&cancel, true);
    check_fails(qd_run_check(&loud, &err), QD_E_CANCELLED, "cancelled", &err);
}

static void add_one(void *ctx, int64_t i)
{
    ((int *)ctx)[i]++;
}

static void each_piece_once(void **state)
{
    for (int threads = 0; threads <= 4; threads++) {
        for (int64_t n = 0; n < 40; n++) {
            int done[40] = { 0 };
            qd_par_for(threads, n, add_one, done);
            for (int64_t k = 0; k < 40; k++)
                assert_int_equal(done[k], k < n);
        }
    }
}

static void isa_only_goes_down(void **state)
{
    unsetenv("QUANTD_ISA");
    const qd_isa have = qd_cpu_isa();
    for (qd_isa isa = QD_ISA_BASE; isa <= QD_ISA_AVX512; isa++) {
        setenv("QUANTD_ISA", qd_isa_name(isa), 1);
        assert_int_equal(qd_cpu_isa(), isa < have ? isa : have);
        if (isa < QD_ISA_AVX512)
            assert_false(qd_cpu_has_vnni());
    }
    setenv("QUANTD_ISA", "nonsense", 1);
    assert_int_equal(qd_cpu_isa(), have);
    unsetenv("QUANTD_ISA");
}

static char **program_argv;

/* Run ourselves with `word` as only argument and return the exit status. */
static int run_self(const char *word)
{
    const pid_t pid = fork();
    if (pid == 0) {
        execl("/proc/self/exe", program_argv[0], word, (char *)NULL);
        _exit(99);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void prepare_sets_what_is_unset_once(void **state)
{
    const bool wide = (unsetenv("QUANTD_ISA"), qd_cpu_isa() == QD_ISA_AVX512);
    unsetenv("QUANTD_PREPARED");
    unsetenv("OPENBLAS_CORETYPE");
    unsetenv("GOMP_SPINCOUNT");
    unsetenv("OMP_WAIT_POLICY");
    assert_int_equal(run_self("prepare"), wide ? 10 : 11);
    setenv("OPENBLAS_CORETYPE", "Haswell", 1);
    assert_int_equal(run_self("prepare"), 12);
    unsetenv("OPENBLAS_CORETYPE");
    setenv("QUANTD_ISA", "base", 1);
    assert_int_equal(run_self("prepare"), 11);
    unsetenv("QUANTD_ISA");
    setenv("OMP_WAIT_POLICY", "passive", 1); /* the user has said how to wait */
    assert_int_equal(run_self("prepare"), wide ? 30 : 31);
    setenv("QUANTD_PREPARED", "1", 1); /* been here: never run again */
    assert_int_equal(run_self("prepare"), 31);
    unsetenv("QUANTD_PREPARED");
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "prepare") == 0) {
        qd_cpu_prepare(argv);
        const char *type = getenv("OPENBLAS_CORETYPE"), *spin = getenv("GOMP_SPINCOUNT");
        return (!type ? 11 : strcmp(type, "SkylakeX") == 0 ? 10 : 12) + (spin && strcmp(spin, "3000") == 0 ? 0 : 20);
    }
    program_argv = argv;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(quiet_and_loud),
        cmocka_unit_test(each_piece_once),
        cmocka_unit_test(isa_only_goes_down),
        cmocka_unit_test(prepare_sets_what_is_unset_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
