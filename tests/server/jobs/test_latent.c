/* test_latent.c - jobs on conditional latent diffusion: what is said when something is missing, pictures that are decoded, a bundle
 * that finds the first stage of the model it came from. */
#include "../../core/nn/pipeline_dir.h"
#include "jobs_common.h"

#include "data/data.h"

static const char unet[] =
    "{\"_class_name\":\"UNet2DConditionModel\",\"sample_size\":8,\"in_channels\":4,\"out_channels\":4,"
    "\"block_out_channels\":[8,16],\"layers_per_block\":1,\"norm_num_groups\":4,\"attention_head_dim\":2,"
    "\"cross_attention_dim\":6,\"context_length\":3,\"down_block_types\":[\"CrossAttnDownBlock2D\",\"DownBlock2D\"],"
    "\"up_block_types\":[\"UpBlock2D\",\"CrossAttnUpBlock2D\"]}";
static const char vae[] =
    "{\"_class_name\":\"AutoencoderKL\",\"sample_size\":64,\"latent_channels\":4,\"block_out_channels\":[8,16],"
    "\"layers_per_block\":1,\"norm_num_groups\":4,\"down_block_types\":[\"DownEncoderBlock2D\",\"DownEncoderBlock2D\"],"
    "\"up_block_types\":[\"UpDecoderBlock2D\",\"UpDecoderBlock2D\"]}";
static const char scheduler[] =
    "{\"_class_name\":\"DDIMScheduler\",\"beta_schedule\":\"scaled_linear\",\"beta_start\":0.00085,"
    "\"beta_end\":0.012,\"steps_offset\":1,\"set_alpha_to_one\":false,\"clip_sample\":false}";

static char pipeline_path[512], unet_path[512], context_path[600], other_path[600];

static int make_files(void **state)
{
    snprintf(pipeline_path, sizeof pipeline_path, "%s", harness_tmp());
    write_pipeline_dir(pipeline_path, unet, vae, scheduler);
    snprintf(unet_path, sizeof unet_path, "%s", harness_tmp());
    write_pipeline_dir(unet_path, unet, NULL, scheduler);
    const char *dir = harness_tmp();
    write_tensor(dir, "three.safetensors", "context", QD_SHAPE(3, 3, 6), 1);
    write_tensor(dir, "wide.safetensors", "prompt_embeds", QD_SHAPE(2, 3, 7), 1);
    snprintf(context_path, sizeof context_path, "%s/three.safetensors", dir);
    snprintf(other_path, sizeof other_path, "%s/wide.safetensors", dir);
    return 0;
}

/* A model or data set under that name; its bytes are known by a made-up hash. */
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

static void place_latent(place *p)
{
    place_open(p);
    shelve(p, true, "pipeline", pipeline_path);
    shelve(p, true, "lone-unet", unet_path);
    shelve(p, false, "prompts", context_path);
    shelve(p, false, "other-prompts", other_path);
}

/* The finished job; *result is its result (or error) object. */
static void run_job(place *p, const char *kind, const char *model, const char *params, const char *status,
                    sv_job_row *job, json_t **result)
{
    sv_workers *w = NULL;
    qd_err err = { 0 };
    char id[40];
    submit(p, kind, model, params, "", id);
    check_ok(sv_workers_start(&p->settings, p->store, p->bus, &w, &err), &err);
    wait_for(p, id, false, job);
    sv_workers_stop(w);
    if (strcmp(job->status, status) != 0)
        fail_msg("%s of %s: %s, %s", kind, model, job->status, job->error);
    *result = json_loads(job->result[0] ? job->result : job->error, 0, NULL);
    assert_non_null(*result);
}

static void what_is_missing_is_said_at_once(void **state)
{
    static const struct {
        const char *kind, *model, *params, *pointer, *words;
    } table[] = {
        { "sample", "pipeline", "{}", "/params/context", "needs encoder_hidden_states [n, 3, 6]: give context=" },
        { "quantize", "pipeline", "{\"method\":\"minmax\"}", "/params/context", "[n, 3, 6]: give context=" },
        { "sample", "pipeline", "{\"context\":\"nothing\"}", "/params/context", "'nothing' does not exist" },
        { "sample", "pipeline", "{\"context\":\"other-prompts\"}", "/params/context", "has [2, 3, 7]" },
        { "sample", "pipeline", "{\"context\":\"prompts\",\"decoder\":\"nobody\"}", "/params/decoder", "'nobody'" },
        { "sample", "pipeline", "{\"context\":\"prompts\",\"guidance\":-2}", "/params/guidance", "params.guidance" },
        { "sample", "shipped", "{\"guidance\":3}", "/params/guidance", "takes no condition" },
    };
    place p;
    place_latent(&p);
    for (size_t k = 0; k < sizeof table / sizeof table[0]; k++) {
        sv_job_row job = { 0 };
        char pointer[128];
        qd_err err = { 0 };
        if (strcmp(table[k].model, "shipped") == 0 && !p.model[0])
            continue;
        json_t *body = body_of(table[k].kind, table[k].model, table[k].params, "");
        check_fails(sv_job_parse(p.store, body, &job, pointer, &err), QD_E_INVALID, table[k].words, &err);
        assert_string_equal(pointer, table[k].pointer);
        json_decref(body);
    }
    place_close(&p);
}

static void pictures_are_decoded(void **state)
{
    place p;
    sv_job_row job = { 0 };
    sv_sample_row *rows = NULL;
    json_t *result;
    qd_err err = { 0 };
    int n = 0;
    place_latent(&p);
    run_job(&p, "sample", "pipeline",
            "{\"context\":\"prompts\",\"guidance\":3,\"steps\":4,\"count\":3,\"batch\":2,\"preview_every\":2}",
            "succeeded", &job, &result);
    assert_true(json_number_value(json_object_get(result, "guidance")) == 3.0);
    assert_true(json_number_value(json_object_get(result, "seconds_per_decode")) > 0);
    check_ok(sv_samples_list(p.store, job.id, &rows, &n, &err), &err);
    assert_int_equal(n, 3 + 2 * 2); /* three pictures, and two previews of each batch */
    for (int k = 0; k < n; k++)     /* 16 x 16 shown seven times as large, not the 64 of the first stage's config */
        assert_int_equal(rows[k].width, 7 * 16);
    sv_sample_rows_free(rows, n);
    json_decref(result);

    run_job(&p, "sample", "pipeline", "{\"context\":\"prompts\",\"steps\":2,\"count\":1,\"decoder\":\"none\"}",
            "succeeded", &job, &result);
    assert_null(json_object_get(result, "seconds_per_decode"));
    json_decref(result);
    run_job(&p, "sample", "lone-unet", "{\"guidance\":0,\"steps\":2,\"count\":1,\"decoder\":\"pipeline\"}", "succeeded",
            &job, &result);
    assert_non_null(json_object_get(result, "seconds_per_decode"));
    json_decref(result);
    run_job(&p, "sample", "pipeline", "{\"context\":\"prompts\",\"steps\":2,\"count\":1,\"decoder\":\"lone-unet\"}",
            "failed", &job, &result);
    assert_non_null(strstr(json_string_value(json_object_get(result, "message")), "has no first stage"));
    json_decref(result);
    sv_job_row_clear(&job);
    place_close(&p);
}

static void quantized_and_sampled(void **state)
{
    place p;
    sv_job_row job = { 0 };
    sv_model_row row = { 0 };
    json_t *result, *drawn;
    qd_err err = { 0 };
    char model[40];
    bool last, last_blob;
    place_latent(&p);
    run_job(&p, "quantize", "pipeline",
            "{\"method\":\"minmax\",\"context\":\"prompts\",\"guidance\":2,\"steps\":4,\"calibration_samples\":16,"
            "\"calibration_steps\":2,\"measure_samples\":1,\"pairs\":1}",
            "succeeded", &job, &result);
    assert_true(json_number_value(json_object_get(result, "eps_sqnr_db")) > 10);
    assert_true(json_integer_value(json_object_get(result, "layers_quantized")) > 10);
    snprintf(model, sizeof model, "%s", json_string_value(json_object_get(result, "model")));
    json_decref(result);

    /* The bundle finds the first stage of what it was made from; and says so when that is gone. */
    run_job(&p, "sample", model, "{\"context\":\"prompts\",\"guidance\":2,\"steps\":2,\"count\":1}", "succeeded", &job,
            &drawn);
    assert_true(json_is_true(json_object_get(drawn, "quantized")));
    assert_non_null(json_object_get(drawn, "seconds_per_decode"));
    json_decref(drawn);
    check_ok(sv_models_get(p.store, "pipeline", &row, &err), &err);
    check_ok(sv_models_delete(p.store, row.id, &last, &last_blob, &err), &err);
    sv_model_row_clear(&row);
    run_job(&p, "sample", model, "{\"context\":\"prompts\",\"steps\":2,\"count\":1}", "failed", &job, &drawn);
    assert_non_null(strstr(json_string_value(json_object_get(drawn, "message")), "give decoder="));
    json_decref(drawn);
    run_job(&p, "sample", model, "{\"steps\":2,\"count\":1,\"decoder\":\"none\"}", "failed", &job, &drawn);
    assert_non_null(strstr(json_string_value(json_object_get(drawn, "message")), "[n, 3, 6]: give context="));
    json_decref(drawn);
    sv_job_row_clear(&job);
    place_close(&p);
}

static void paths_instead_of_names(void **state)
{
    const sv_settings s = { .data_dir = (char *)"unused",
                            .workers = 1,
                            .threads = 1,
                            .lease_ms = 60000,
                            .heartbeat_ms = 1000,
                            .job_memory_bytes = 1 << 30 };
    char folder[512];
    qd_err err = { 0 };
    snprintf(folder, sizeof folder, "%s", harness_tmp());
    char *job = qd_fs_join(folder, "job.in"), *picture = qd_fs_join(folder, "0000.png");
    char *body = qd_asprintf("{\"kind\":\"sample\",\"model\":\"%s\",\"params\":{\"context\":\"%s\",\"decoder\":\"%s\","
                             "\"steps\":2,\"count\":1}}",
                             unet_path, context_path, pipeline_path);
    check_ok(qd_fs_write(job, body, strlen(body), &err), &err);
    check_ok(sv_run_once(&s, job, folder, &err), &err);
    assert_true(qd_fs_exists(picture));
    qd_free(body);
    qd_free(picture);
    qd_free(job);
}

static void contexts_are_data_sets_of_their_own(void **state)
{
    place p;
    sv_dataset_row row = { 0 };
    sv_job_row job = { 0 };
    char pointer[128];
    qd_err err = { 0 };
    place_latent(&p);
    check_ok(sv_datasets_get(p.store, "prompts", &row, &err), &err);
    assert_string_equal(row.role, "context");
    json_t *o = json_loads(row.summary, 0, NULL);
    assert_int_equal(json_integer_value(json_object_get(o, "count")), 3);
    assert_int_equal(json_integer_value(json_object_get(o, "tokens")), 3);
    assert_int_equal(json_integer_value(json_object_get(o, "width")), 6);
    assert_true(json_is_false(json_object_get(o, "null_context")));
    json_decref(o);
    sv_model_row_clear(&row);

    check_ok(sv_models_get(p.store, "pipeline", &row, &err), &err);
    o = json_loads(row.summary, 0, NULL);
    assert_true(json_integer_value(json_object_get(json_object_get(o, "first_stage"), "macs")) > 0);
    json_decref(o);
    sv_model_row_clear(&row);

    json_t *body = json_pack("{s:s, s:s, s:s, s:{s:s}}", "kind", "evaluate", "model", "pipeline", "dataset", "prompts",
                             "params", "method", "accuracy");
    assert_true(sv_job_parse(p.store, body, &job, pointer, &err) == QD_E_INVALID);
    json_decref(body);
    place_close(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_missing_is_said_at_once),
        cmocka_unit_test(pictures_are_decoded),
        cmocka_unit_test(quantized_and_sampled),
        cmocka_unit_test(paths_instead_of_names),
        cmocka_unit_test(contexts_are_data_sets_of_their_own),
    };
    return cmocka_run_group_tests(tests, make_files, NULL);
}
