/* test_crash.c - kill -9 at any instant: the database stays sound, and nothing that was acknowledged is lost.
 *
 * A child submits, claims, reports and finishes jobs in a loop and writes a line into a pipe after every call that returned. It is
 * killed at a random moment; then the parent holds the database against the lines. */
#include "store_common.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ROUNDS = 30 };

static void say(int fd, char what, const char *id, int64_t n)
{
    char line[64];
    const int size = snprintf(line, sizeof line, "%c %s %lld\n", what, id, (long long)n);
    if (write(fd, line, (size_t)size) != size)
        _exit(3);
}

/* Never returns. Any refusal is a bug: this is the only user. */
static void child(const char *path, int round, int fd)
{
    sv_store *s = NULL;

    if (sv_store_open(path, &s, NULL))
        _exit(4);
    for (int i = 0;; i++) {
        char id[40];
        sv_job_row in, row = { 0 };
        int64_t seq = 0;

        snprintf(id, sizeof id, "job_%d_%d", round, i);
        in = job_words(id, "{}");
        if (sv_jobs_add(s, &in, NULL, &row, NULL, NULL))
            _exit(5);
        sv_job_row_clear(&row);
        say(fd, 'a', id, 1);
        /* Leases of earlier lives have run out: their jobs come back here, too. */
        if (sv_jobs_claim(s, "child", sv_now_ms(), i % 4 ? 60000 : 0, &row, NULL))
            _exit(6);
        say(fd, 'c', row.id, row.fence);
        for (int k = 0; k < 3; k++) {
            if (sv_events_add(s, row.id, row.fence, row.attempt, "log", "{}", 1, &seq, NULL))
                _exit(7);
            say(fd, 'e', row.id, seq);
        }
        if (i % 3 == 0 && sv_jobs_requeue(s, row.id, row.fence, NULL, sv_now_ms(), NULL))
            _exit(8);
        if (i % 3 != 0) {
            if (sv_jobs_finish(s, row.id, row.fence, "succeeded", NULL, "{}", sv_now_ms(), &seq, NULL))
                _exit(9);
            say(fd, 'f', row.id, seq);
        }
        sv_job_row_clear(&row);
    }
}

static int hold_against(sv_store *s, FILE *lines)
{
    char line[80], id[40], what;
    long long n;
    int acknowledged = 0;
    qd_err err = { 0 };

    while (fgets(line, sizeof line, lines)) {
        sv_job_row row = { 0 };
        if (!strchr(line, '\n'))
            break; /* the kill came in the middle of it */
        assert_int_equal(sscanf(line, "%c %39s %lld", &what, id, &n), 3);
        check_ok(sv_jobs_get(s, id, &row, &err), &err);
        if (what == 'c')
            assert_true(row.fence >= n);
        else
            assert_true(row.last_seq >= n);
        if (what == 'f')
            assert_string_equal(row.status, "succeeded");
        sv_job_row_clear(&row);
        acknowledged++;
    }
    return acknowledged;
}

/* Every job's log has no gap and agrees with its row. */
static void every_log_is_whole(sv_store *s)
{
    qd_err err = { 0 };
    sv_job_row *rows = NULL;
    int n = 0;
    bool more;

    check_ok(sv_jobs_list(s, &(sv_list_query){ .limit = 200 }, &rows, &n, &more, &err), &err);
    for (int i = 0; i < n; i++) {
        sv_event_row *events = NULL;
        int count = 0;
        check_ok(sv_events_read(s, rows[i].id, 0, NULL, 1000, &events, &count, &err), &err);
        assert_int_equal(count, rows[i].last_seq);
        for (int k = 0; k < count; k++)
            assert_int_equal(events[k].seq, k + 1);
        const bool over = strcmp(rows[i].status, "succeeded") == 0 || strcmp(rows[i].status, "failed") == 0;
        assert_int_equal(over, strcmp(events[count - 1].type, "end") == 0);
        sv_event_rows_free(events, count);
    }
    sv_job_rows_free(rows, n);
}

static void killed_thirty_times(void **state)
{
    char path[512];
    qd_err err = { 0 };
    int acknowledged = 0;
    unsigned seed = (unsigned)time(NULL);

    printf("seed %u\n", seed);
    snprintf(path, sizeof path, "%s/quantd.db", harness_tmp());
    for (int round = 0; round < ROUNDS; round++) {
        int ends[2], status;
        assert_int_equal(pipe(ends), 0);
        fflush(NULL);
        const pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            close(ends[0]);
            child(path, round, ends[1]);
        }
        close(ends[1]);
        const long us = rand_r(&seed) % 150000; /* some rounds die while the schema is made */
        nanosleep(&(struct timespec){ .tv_nsec = us * 1000 }, NULL);
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (!WIFSIGNALED(status))
            fail_msg("the child of round %d ended by itself with %d", round, WEXITSTATUS(status));

        sv_store *s = NULL;
        check_ok(sv_store_open(path, &s, &err), &err);
        check_ok(sv_store_check(s, &err), &err);
        FILE *lines = fdopen(ends[0], "r");
        acknowledged += hold_against(s, lines);
        fclose(lines);
        every_log_is_whole(s);
        sv_store_close(s);
    }
    printf("%d acknowledged calls held\n", acknowledged);
    assert_true(acknowledged > ROUNDS);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(killed_thirty_times) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
