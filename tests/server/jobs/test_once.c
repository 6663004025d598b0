/* test_once.c - one job without a server: results under their names, nothing else left behind. */
#include "jobs_common.h"

#include <dirent.h>

static sv_settings settings_here(void)
{
    return (sv_settings){ .data_dir = (char *)"unused",
                          .workers = 1,
                          .threads = 1,
                          .lease_ms = 60000,
                          .heartbeat_ms = 1000,
                          .job_memory_bytes = 1 << 30 };
}

/* The job's file in a fresh folder; %s of `text` is the model that ships. */
static void write_job(char folder[512], char path[600], const char *text)
{
    char body[1024];
    qd_err err = { 0 };
    snprintf(folder, 512, "%s", harness_tmp());
    snprintf(path, 600, "%s/job.in", folder);
    const char *at = strstr(text, "%s");
    snprintf(body, sizeof body, "%.*s%s%s", at ? (int)(at - text) : (int)strlen(text), text,
             at ? harness_source("deploy/models/fmnist-ddpm-unet") : "", at ? at + 2 : "");
    check_ok(qd_fs_write(path, body, strlen(body), &err), &err);
}

static int count_entries(const char *folder)
{
    int n = 0;
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    for (struct dirent *e = readdir(dir); e; e = readdir(dir))
        n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    closedir(dir);
    return n;
}

static bool has(const char *folder, const char *name)
{
    char *path = qd_fs_join(folder, name);
    const bool there = qd_fs_exists(path);
    qd_free(path);
    return there;
}

static void results_lie_where_they_were_asked_for(void **state)
{
    const sv_settings s = settings_here();
    char folder[512], path[600];
    qd_err err = { 0 };
    if (!qd_fs_exists(harness_source("deploy/models/fmnist-ddpm-unet")))
        skip();
    write_job(folder, path, "{\"kind\":\"sample\",\"model\":\"%s\",\"params\":{\"steps\":3,\"count\":2}}");
    check_ok(sv_run_once(&s, path, folder, &err), &err);
    assert_true(has(folder, "samples.png") && has(folder, "samples.safetensors") && has(folder, "0000.png") &&
                has(folder, "0001.png") && has(folder, "job.json"));
    assert_int_equal(count_entries(folder), 6); /* with job.in: no scratch folder is left */
}

static void failures_are_said_and_cleaned_up(void **state)
{
    static const struct {
        const char *text;
        qd_status st;
        const char *words;
    } table[] = {
        { "{\"kind\":", QD_E_FORMAT, "line 1" },
        { "[]", QD_E_FORMAT, "not a JSON object" },
        { "{\"kind\":\"sample\"}", QD_E_INVALID, "path of a model" },
        { "{\"kind\":\"sample\",\"model\":\"/nowhere\"}", QD_E_NOT_FOUND, "/nowhere" },
        { "{\"kind\":\"sample\",\"model\":\"%s\",\"params\":{\"steps\":0}}", QD_E_INVALID, "params.steps" },
        { "{\"kind\":\"sample\",\"model\":\"%s\",\"params\":{\"steps\":1001,\"count\":1}}", QD_E_INTERNAL,
          "the job failed: " },
    };
    const sv_settings s = settings_here();
    if (!qd_fs_exists(harness_source("deploy/models/fmnist-ddpm-unet")))
        skip();
    for (size_t k = 0; k < sizeof table / sizeof table[0]; k++) {
        char folder[512], path[600];
        qd_err err = { 0 };
        write_job(folder, path, table[k].text);
        check_fails(sv_run_once(&s, path, folder, &err), table[k].st, table[k].words, &err);
        assert_in_range(count_entries(folder), 1, 2); /* the job, and job.json when it came to a run */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(results_lie_where_they_were_asked_for),
        cmocka_unit_test(failures_are_said_and_cleaned_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
