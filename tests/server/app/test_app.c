/* test_app.c - the daemon as a whole: up, alone in its folder, swept, down by SIGTERM with status 0. */
#include "harness/harness.h"

#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "app.h"
#include "base/fs.h"
#include "base/mem.h"
#include "store/store.h"

static sv_settings settings_at(char *data)
{
    return (sv_settings){ .listen_host = (char *)"127.0.0.1",
                          .data_dir = data,
                          .workers = 1,
                          .threads = 1,
                          .max_upload_bytes = 1 << 20,
                          .max_unpacked_bytes = 1 << 20,
                          .job_memory_bytes = 1 << 28,
                          .lease_ms = 10000,
                          .heartbeat_ms = 1000,
                          .http_threads = 2,
                          .log_level = (char *)"warn" };
}

/* A child that serves; *line gets what it prints when it is ready ("" when it ends before). */
static pid_t serve(const sv_settings *s, char line[256])
{
    int pipe_fd[2];
    assert_int_equal(pipe(pipe_fd), 0);
    fflush(stdout);
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        qd_err err = { 0 };
        dup2(pipe_fd[1], STDOUT_FILENO);
        close(pipe_fd[0]);
        close(pipe_fd[1]);
        const qd_status st = sv_app_serve(s, &err);
        if (st)
            fprintf(stderr, "%s\n", err.text);
        _exit(st ? 1 : 0);
    }
    close(pipe_fd[1]);
    FILE *out = fdopen(pipe_fd[0], "r");
    line[0] = '\0';
    if (!fgets(line, 256, out))
        line[0] = '\0';
    fclose(out);
    return pid;
}

static int stop(pid_t pid, int signum)
{
    int status = 0;
    kill(pid, signum);
    for (int k = 0; k < 500; k++) {
        if (waitpid(pid, &status, WNOHANG) == pid)
            return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
        nanosleep(&(struct timespec){ .tv_nsec = 10000000 }, NULL);
    }
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    fail_msg("the daemon did not end within 5 s of signal %d", signum);
    return -1;
}

static int port_of(const char *line)
{
    const char *at = strstr(line, "http://127.0.0.1:");
    if (strncmp(line, "quantd ", 7) != 0 || !at)
        fail_msg("the daemon said '%s'", line);
    return (int)strtol(at + strlen("http://127.0.0.1:"), NULL, 10);
}

/* The first line of the answer to GET /healthz. */
static void healthz(int port, char line[64])
{
    static const char ask[] = "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n";
    const struct sockaddr_in to = { .sin_family = AF_INET,
                                    .sin_port = htons((uint16_t)port),
                                    .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (const struct sockaddr *)&to, sizeof to), 0);
    assert_int_equal(write(fd, ask, sizeof ask - 1), sizeof ask - 1);
    const ssize_t n = read(fd, line, 63);
    assert_true(n > 0);
    line[n] = '\0';
    close(fd);
}

static void one_daemon_for_each_folder(void **state)
{
    char data[512], line[256], answer[64];
    qd_err err = { 0 };
    snprintf(data, sizeof data, "%s/data", harness_tmp());
    char *scratch = qd_fs_join(data, "tmp/job_dead-1"), *half = qd_fs_join(data, "tmp/job_dead-1/half");
    check_ok(qd_fs_mkdirs(scratch, &err), &err);
    check_ok(qd_fs_write(half, "half", 4, &err), &err);
    /* A model's file without a row, and a file that is not ours. */
    static const char hash[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    char orphan[700], mine[600];
    char *models = qd_fs_join(data, "models");
    check_ok(qd_fs_mkdirs(models, &err), &err);
    snprintf(orphan, sizeof orphan, "%s/models/%s.safetensors", data, hash);
    snprintf(mine, sizeof mine, "%s/models/README", data);
    check_ok(qd_fs_write(orphan, "x", 1, &err), &err);
    check_ok(qd_fs_write(mine, "x", 1, &err), &err);
    qd_free(models);
    const sv_settings s = settings_at(data);

    const pid_t pid = serve(&s, line);
    assert_non_null(strstr(line, data));
    assert_false(qd_fs_exists(orphan));
    assert_true(qd_fs_exists(mine));
    healthz(port_of(line), answer);
    assert_non_null(strstr(answer, " 200 "));
    /* What an attempt of a dead daemon left is gone, and a second daemon is told why it may not start. */
    assert_false(qd_fs_exists(scratch));
    check_fails(sv_app_serve(&s, &err), QD_E_CONFLICT, "another quantd works in", &err);
    healthz(port_of(line), answer);
    assert_int_equal(stop(pid, SIGTERM), 0);

    const pid_t again = serve(&s, line); /* the lock went with the process */
    port_of(line);
    assert_int_equal(stop(again, SIGINT), 0);
    qd_free(half);
    qd_free(scratch);
}

static void killed_daemons_leave_nothing_locked(void **state)
{
    char data[512], line[256];
    snprintf(data, sizeof data, "%s/data", harness_tmp());
    const sv_settings s = settings_at(data);
    const pid_t pid = serve(&s, line);
    port_of(line);
    assert_int_equal(stop(pid, SIGKILL), -SIGKILL);
    const pid_t again = serve(&s, line);
    port_of(line);
    assert_int_equal(stop(again, SIGTERM), 0);
}

static void what_cannot_start_says_why(void **state)
{
    char data[512], file[600];
    qd_err err = { 0 };
    snprintf(data, sizeof data, "%s/data", harness_tmp());
    sv_settings s = settings_at(data);

    /* The port is taken. */
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof at;
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (const struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &size), 0);
    s.listen_port = ntohs(at.sin_port);
    const qd_status st = sv_app_serve(&s, &err);
    assert_true(st != QD_OK);
    assert_true(err.text[0] != '\0');
    close(fd);

    /* The data folder is a file. */
    snprintf(file, sizeof file, "%s/file", data);
    check_ok(qd_fs_write(file, "x", 1, &err), &err);
    s.data_dir = file;
    err = (qd_err){ 0 };
    assert_true(sv_app_serve(&s, &err) != QD_OK);
    assert_non_null(strstr(err.text, "file"));

    /* The database is none. */
    char *folder = qd_fs_join(data, "other"), *db = qd_fs_join(data, "other/db.sqlite3");
    check_ok(qd_fs_mkdirs(folder, &err), &err);
    check_ok(qd_fs_write(
                 db,
                 "this is no database, and it is long enough to be looked at: 0123456789012345678901234567890123456789",
                 100, &err),
             &err);
    s.data_dir = folder;
    err = (qd_err){ 0 };
    assert_true(sv_app_serve(&s, &err) != QD_OK);
    assert_non_null(strstr(err.text, "database"));
    qd_free(folder);
    qd_free(db);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_daemon_for_each_folder),
        cmocka_unit_test(killed_daemons_leave_nothing_locked),
        cmocka_unit_test(what_cannot_start_says_why),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
