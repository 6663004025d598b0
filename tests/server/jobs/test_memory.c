/* test_memory.c - what an estimate says of memory against what a job really takes: the most that was resident, in a process of its own. */
#include "../../core/nn/pipeline_dir.h"
#include "jobs_common.h"

#include <fcntl.h>
#include <malloc.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#define SHADOWED 1 /* a sanitizer's own memory is most of what is resident */
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SHADOWED 1
#endif
#endif
#ifndef SHADOWED
#define SHADOWED 0
#endif

/* An estimate is good when it is between these times the truth. */
#define LEAST 0.8
#define MOST 1.5

/* 14 million parameters, 56 MB. */
static const char net[] =
    "{\"_class_name\":\"UNet2DModel\",\"sample_size\":32,\"in_channels\":3,\"out_channels\":3,\"norm_num_groups\":32,"
    "\"block_out_channels\":[96,192,192],\"layers_per_block\":2,\"attention_head_dim\":null,"
    "\"down_block_types\":[\"DownBlock2D\",\"AttnDownBlock2D\",\"DownBlock2D\"],"
    "\"up_block_types\":[\"UpBlock2D\",\"AttnUpBlock2D\",\"UpBlock2D\"]}";
static const char unet[] =
    "{\"_class_name\":\"UNet2DConditionModel\",\"sample_size\":32,\"in_channels\":4,\"out_channels\":4,"
    "\"block_out_channels\":[128,256],\"layers_per_block\":2,\"norm_num_groups\":32,\"attention_head_dim\":8,"
    "\"cross_attention_dim\":64,\"context_length\":16,\"down_block_types\":[\"CrossAttnDownBlock2D\",\"DownBlock2D\"],"
    "\"up_block_types\":[\"UpBlock2D\",\"CrossAttnUpBlock2D\"]}";
static const char vae[] =
    "{\"_class_name\":\"AutoencoderKL\",\"latent_channels\":4,\"block_out_channels\":[64,128,128],\"layers_per_block\":1,"
    "\"norm_num_groups\":32,\"down_block_types\":[\"DownEncoderBlock2D\",\"DownEncoderBlock2D\",\"DownEncoderBlock2D\"],"
    "\"up_block_types\":[\"UpDecoderBlock2D\",\"UpDecoderBlock2D\",\"UpDecoderBlock2D\"]}";

static char net_path[512], pipeline_path[512], context_path[600];

static int make_files(void **state)
{
    snprintf(net_path, sizeof net_path, "%s", harness_tmp());
    write_pipeline_dir(net_path, net, NULL, "{\"_class_name\":\"DDIMScheduler\"}");
    snprintf(pipeline_path, sizeof pipeline_path, "%s", harness_tmp());
    write_pipeline_dir(pipeline_path, unet, vae, "{\"_class_name\":\"DDIMScheduler\",\"clip_sample\":false}");
    const char *dir = harness_tmp();
    write_tensor(dir, "context.safetensors", "context", QD_SHAPE(2, 16, 64), 1);
    snprintf(context_path, sizeof context_path, "%s/context.safetensors", dir);
    return 0;
}

static double status_bytes(const char *key)
{
    char line[256];
    double kib = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, key, strlen(key)) == 0)
            kib = strtod(line + strlen(key), NULL);
    if (f)
        fclose(f);
    return kib * 1024;
}

static sv_settings settings_here(void)
{
    return (sv_settings){
        .data_dir = (char *)"unused", .workers = 1, .threads = 1, .lease_ms = 60000, .heartbeat_ms = 1000
    };
}

static void run_job(const char *kind, const char *model, const char *params)
{
    const sv_settings s = settings_here();
    qd_err err = { 0 };
    char folder[512];
    snprintf(folder, sizeof folder, "%s", harness_tmp());
    char *job = qd_fs_join(folder, "job.in");
    char *body = qd_asprintf("{\"kind\":\"%s\",\"model\":\"%s\",\"params\":%s}", kind, model, params);
    if (qd_fs_write(job, body, strlen(body), &err) || sv_run_once(&s, job, folder, &err)) {
        fprintf(stderr, "%s\n", err.text);
        _exit(1);
    }
    qd_free(body);
    qd_free(job);
}

/* The most that the job added to what was resident. A small job goes before it, for what libraries take once. */
static double measured(const char *kind, const char *model, const char *params, const char *small)
{
    int ends[2], status = 0;
    double most = 0;
    fflush(NULL);
    assert_int_equal(pipe(ends), 0);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        const int quiet = open("/dev/null", O_WRONLY);
        dup2(quiet, 1);
        dup2(quiet, 2);
        qd_mem_give_back(); /* as the daemon does */
        run_job("sample", model, small);
        malloc_trim(0); /* what it left in the heap would be used again, and not be seen */
        FILE *f = fopen("/proc/self/clear_refs", "w"); /* 5: the peak begins anew */
        if (!f || fputs("5", f) < 0 || fclose(f) != 0)
            _exit(2);
        const double before = status_bytes("VmRSS:");
        run_job(kind, model, params);
        most = status_bytes("VmHWM:") - before;
        _exit(write(ends[1], &most, sizeof most) == sizeof most ? 0 : 3);
    }
    close(ends[1]);
    const bool told = read(ends[0], &most, sizeof most) == sizeof most;
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!told)
        fail_msg("the job did not run: status %d", status);
    return most;
}

static double estimated(place *p, const char *kind, const char *params)
{
    json_t *body = body_of(kind, "model", params, ""), *o = NULL;
    sv_job_row row = { 0 };
    qd_err err = { 0 };
    char pointer[128];
    check_ok(sv_job_parse(p->store, body, &row, pointer, &err), &err);
    check_ok(sv_job_estimate(p->store, &p->settings, &row, &o, &err), &err);
    const double bytes = json_number_value(json_object_get(json_object_get(o, "memory"), "peak_bytes"));
    json_decref(o);
    json_decref(body);
    sv_job_row_clear(&row);
    return bytes;
}

static void shelve(place *p, bool model, const char *name, const char *path)
{
    sv_model_row row = { .created_ms = sv_now_ms() }, added = { 0 };
    qd_err err = { 0 };
    char id[40];
    bool existing;
    check_ok(
        (model ? sv_model_inspect : sv_dataset_inspect)(path, &p->settings, &row.format, &row.role, &row.summary, &err),
        &err);
    sv_id_new(id, model ? "mdl_" : "dst_");
    row.id = qd_strdup(id);
    row.name = qd_strdup(name);
    row.sha256 = qd_asprintf("%064d", (int)strlen(name));
    row.path = qd_strdup(path);
    row.job_id = qd_strdup("");
    check_ok((model ? sv_models_add : sv_datasets_add)(p->store, &row, &added, &existing, &err), &err);
    sv_model_row_clear(&row);
    sv_model_row_clear(&added);
}

static void check(const char *kind, const char *model, const char *params)
{
    place p;
    place_open(&p);
    shelve(&p, true, "model", model);
    shelve(&p, false, "prompts", context_path);
    const double says = estimated(&p, kind, params);
    place_close(&p);
    /* In the job itself the context is a path. */
    char *mine = qd_strdup(params), *name = strstr(mine, "prompts");
    char *own = name ? qd_asprintf("%.*s%s%s", (int)(name - mine), mine, context_path, name + strlen("prompts"))
                     : qd_strdup(params);
    char *small = name ? qd_asprintf("{\"count\":1,\"steps\":1,\"context\":\"%s\"}", context_path)
                       : qd_strdup("{\"count\":1,\"steps\":1}");
    const double took = measured(kind, model, own, small);
    print_message("%s %s: estimated %.1f MB, took %.1f MB, %.2f\n", kind, params, says * 1e-6, took * 1e-6,
                  says / took);
    assert_true(says > LEAST * took && says < MOST * took);
    qd_free(small);
    qd_free(own);
    qd_free(mine);
}

static void sampling(void **state)
{
    if (SHADOWED)
        skip();
    check("sample", net_path, "{\"count\":8,\"batch\":8,\"steps\":2}");
    check("sample", net_path, "{\"count\":3,\"batch\":2,\"steps\":2}"); /* two plans, so the graph stays */
}

static void sampling_with_all_parts(void **state)
{
    if (SHADOWED)
        skip();
    check("sample", pipeline_path, "{\"count\":4,\"batch\":4,\"steps\":2,\"guidance\":3,\"context\":\"prompts\"}");
}

static void quantizing(void **state)
{
    if (SHADOWED)
        skip();
    check("quantize", net_path,
          "{\"method\":\"minmax\",\"steps\":2,\"calibration_samples\":16,\"calibration_steps\":2,\"measure_samples\":8,"
          "\"pairs\":1}");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sampling),
        cmocka_unit_test(sampling_with_all_parts),
        cmocka_unit_test(quantizing),
    };
    return cmocka_run_group_tests(tests, make_files, NULL);
}
