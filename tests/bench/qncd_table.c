/* qncd_table.c - modes of QNCD against widths on the shipped denoiser: Frechet distance, likeness to float, time; one JSON line a row.
 *
 * qncd_table [--samples N] [--steps N] [--bits W8A8,W4A8,..] [--modes minmax,qncd-plus,..] [--seeds 1,2,..] [--threads N]
 *            [--set NAME=VALUE]..
 *
 * Samples are DDIM without clipping from the same noise for every row; the distance is to the 10,000 test images of Fashion-MNIST in
 * the 128 features of fmnist-dwnet, pixels cut to 8 bits. --set gives a parameter to every method that has it. Leaves with 77 when the data are not there. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cpu.h"
#include "base/mem.h"
#include "data/data.h"
#include "harness/harness.h"
#include "metrics/metrics.h"
#include "quant/quant.h"

enum { MOST = 16, SIZE = 28 * 28, BATCH = 25, SAMPLE_SEED = 1000 };

typedef struct list {
    const char *item[MOST];
    int n;
} list;

typedef struct bench {
    int samples, steps, threads;
    list bits, modes, seeds, set;
    qd_graph *graph;
    qd_schedule *schedule;
    qd_features *features;
    qd_feature_stats *test;
    float *reference; // [samples, SIZE] of the float model
} bench;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static list split(char *text)
{
    list l = { .n = 0 };
    for (char *s = strtok(text, ","); s && l.n < MOST; s = strtok(NULL, ","))
        l.item[l.n++] = s;
    return l;
}

static bool open_all(bench *b)
{
    qd_err err = { 0 };
    qd_role role;
    qd_model *denoiser = NULL, *net = NULL;
    qd_graph *net_graph = NULL;
    qd_dataset *test = NULL;
    const qd_run run = { .threads = b->threads };
    char images[512];
    const char *path = harness_data("datasets/fashion-mnist/t10k-images-idx3-ubyte.gz");
    if (!path)
        return false;
    snprintf(images, sizeof images, "%s", path);
    path = harness_data("weights/fmnist-dwnet/dwnet.onnx");
    if (!path)
        return false;
    check_ok(qd_model_open(path, NULL, &net, &err), &err);
    check_ok(qd_zoo_build(net, NULL, &net_graph, &role, &err), &err);
    check_ok(qd_model_open(harness_source("deploy/models/fmnist-ddpm-unet"), NULL, &denoiser, &err), &err);
    check_ok(qd_zoo_build(denoiser, NULL, &b->graph, &role, &err), &err);
    check_ok(qd_schedule_open(denoiser->scheduler, &b->schedule, &err), &err);
    const qd_feature_options o = {
        .features = "features", .pixels = QD_PIXEL_TRUNCATE, .mean = "0.2860", .std = "0.3530"
    };
    check_ok(qd_features_new(net_graph, &o, &run, &b->features, &err), &err);
    const qd_data_limits limits = { .max_bytes = 1ull << 30, .max_count = 1000000 };
    check_ok(qd_dataset_open(images, &limits, NULL, &test, &err), &err);
    check_ok(qd_feature_stats_new(b->features, 0, 0, NULL, &b->test, &err), &err);
    check_ok(qd_feature_stats_add_dataset(b->test, b->features, test, NULL, test->count, "test", &run, &err), &err);
    qd_dataset_free(test);
    qd_graph_free(net_graph);
    qd_model_free(net);
    qd_model_free(denoiser);
    return true;
}

/* Draws all samples; returns seconds. */
static double draw(const bench *b, const qd_graph *g, const qd_correction *r, qd_correction_mode mode, float *out,
                   int *calls)
{
    qd_err err = { 0 };
    qd_corrected *c = NULL;
    const qd_run run = { .threads = b->threads };
    const qd_corrected_options o = { .graph = g,
                                     .correction = r,
                                     .mode = mode,
                                     .schedule = b->schedule,
                                     .sampler = qd_sampler_find("ddim"),
                                     .batch = BATCH,
                                     .threads = b->threads };
    qd_sample_options ask = { .steps = b->steps, .spacing = QD_SPACING_LEADING, .clip = 0, .seed = SAMPLE_SEED };
    check_ok(qd_corrected_new(&o, &c, &err), &err);
    const double start = now();
    for (int first = 0; first < b->samples; first += BATCH) {
        ask.first_sample = first;
        qd_sample_noise(out + (size_t)first * SIZE, BATCH, SIZE, SAMPLE_SEED, first);
        check_ok(qd_corrected_run(c, &ask, NULL, &run, out + (size_t)first * SIZE, &err), &err);
    }
    const double seconds = now() - start;
    *calls = qd_corrected_calls(c, &ask, NULL);
    qd_corrected_free(c);
    return seconds;
}

static double distance(const bench *b, const float *x)
{
    qd_err err = { 0 };
    qd_feature_stats *s = NULL;
    double fid = NAN;
    const qd_run run = { .threads = b->threads };
    check_ok(qd_feature_stats_new(b->features, 0, 0, NULL, &s, &err), &err);
    check_ok(qd_feature_stats_add(s, b->features, x, b->samples, 1, 28, 28, &run, &err), &err);
    check_ok(qd_fid(s, b->test, b->threads, &fid, &err), &err);
    qd_feature_stats_free(s);
    return fid;
}

static double by_value_psnr(const float *a, const float *b)
{
    double mse = 0;
    for (int k = 0; k < SIZE; k++) {
        const double x = fmin(fmax(a[k], -1), 1), y = fmin(fmax(b[k], -1), 1);
        mse += (x - y) * (x - y) / SIZE;
    }
    return mse > 0 ? 10 * log10(4 / mse) : 99;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median_psnr(const bench *b, const float *x)
{
    double *psnr = qd_calloc((size_t)b->samples, sizeof *psnr);
    for (int k = 0; k < b->samples; k++)
        psnr[k] = by_value_psnr(b->reference + (size_t)k * SIZE, x + (size_t)k * SIZE);
    qsort(psnr, (size_t)b->samples, sizeof *psnr, compare);
    const double m = psnr[b->samples / 2];
    qd_free(psnr);
    return m;
}

/* Gives a parameter, where the method has it. */
static void set(qd_params *p, const char *name, const char *value)
{
    qd_err err = { 0 };
    if (qd_param_find(qd_params_rows(p), name))
        check_ok(qd_params_set_text(p, name, value, &err), &err);
}

static void row(const bench *b, const char *mode, const char *bits, const char *seed, double float_fid, double float_s,
                float *x)
{
    qd_err err = { 0 };
    int w = 8, a = 8, calls = 0;
    char text[32];
    qd_params *p = NULL;
    qd_graph *quantized = NULL;
    qd_quant_report r = { 0 };
    const qd_method *m = qd_method_find(mode);
    if (!m || sscanf(bits, "W%dA%d", &w, &a) != 2) {
        fprintf(stderr, "no method '%s' or no width '%s'\n", mode, bits);
        exit(2);
    }
    check_ok(qd_params_new(m->params, &p, &err), &err);
    snprintf(text, sizeof text, "%d", w);
    set(p, "weight_bits", text);
    snprintf(text, sizeof text, "%d", a);
    set(p, "activation_bits", text);
    snprintf(text, sizeof text, "%d", b->steps);
    set(p, "steps", text);
    set(p, "clip", "off");
    for (int k = 0; k < b->set.n; k++) {
        char name[64];
        const char *value = strchr(b->set.item[k], '=');
        snprintf(name, sizeof name, "%.*s", (int)(value - b->set.item[k]), b->set.item[k]);
        set(p, name, value + 1);
    }
    const qd_run run = { .threads = b->threads, .seed = strtoull(seed, NULL, 10) };
    const qd_quant_task task = { .graph = b->graph, .role = QD_ROLE_DENOISER, .schedule = b->schedule, .params = p };
    double start = now();
    check_ok(m->run(&task, &run, &quantized, &r, &err), &err);
    const double quantize_s = now() - start;
    const double sample_s = draw(b, quantized, r.correction, qd_correction_default(r.correction), x, &calls);
    const double fid = distance(b, x);
    printf("{\"bench\":\"qncd\",\"mode\":\"%s\",\"bits\":\"%s\",\"seed\":%s,\"steps\":%d,\"samples\":%d,\"fid\":%.4f,"
           "\"fid_over_float\":%.4f,\"psnr_db_median\":%.2f,\"eps_sqnr_db\":%.2f,\"calls\":%d,\"quantize_s\":%.1f,"
           "\"sample_s\":%.1f,\"speedup\":%.2f,\"ratio\":%.2f}\n",
           mode, bits, seed, b->steps, b->samples, fid, fid / float_fid, median_psnr(b, x), r.eps_sqnr_mean_db, calls,
           quantize_s, sample_s, float_s / sample_s, (double)r.float_bytes / (double)r.quantized_bytes);
    fflush(stdout);
    qd_quant_report_clear(&r);
    qd_graph_free(quantized);
    qd_params_free(p);
}

int main(int argc, char **argv)
{
    qd_cpu_prepare(argv);
    char bits[] = "W8A8,W4A8,W6A6,W4A6", seeds[] = "1";
    char modes[] = "minmax,mse,qdiff,qncd-intra,qncd-inter,qncd,qncd-compat,qncd-plus";
    bench b = { .samples = 2000, .steps = 50, .threads = 2 };
    b.bits = split(bits);
    b.seeds = split(seeds);
    b.modes = split(modes);
    for (int k = 1; k + 1 < argc; k += 2) {
        if (strcmp(argv[k], "--samples") == 0)
            b.samples = atoi(argv[k + 1]) / BATCH * BATCH;
        else if (strcmp(argv[k], "--steps") == 0)
            b.steps = atoi(argv[k + 1]);
        else if (strcmp(argv[k], "--threads") == 0)
            b.threads = atoi(argv[k + 1]);
        else if (strcmp(argv[k], "--bits") == 0)
            b.bits = split(argv[k + 1]);
        else if (strcmp(argv[k], "--modes") == 0)
            b.modes = split(argv[k + 1]);
        else if (strcmp(argv[k], "--seeds") == 0)
            b.seeds = split(argv[k + 1]);
        else if (strcmp(argv[k], "--set") == 0 && b.set.n < MOST && strchr(argv[k + 1], '='))
            b.set.item[b.set.n++] = argv[k + 1];
        else
            return fprintf(stderr, "qncd_table: what is '%s %s'?\n", argv[k], argv[k + 1]), 2;
    }
    if (!open_all(&b)) {
        printf("skipped: Fashion-MNIST or the feature network is not there\n");
        return 77;
    }
    b.reference = qd_calloc((size_t)b.samples * SIZE, sizeof(float));
    float *x = qd_calloc((size_t)b.samples * SIZE, sizeof(float));
    int calls;
    const double float_s = draw(&b, b.graph, NULL, QD_CORRECT_NONE, b.reference, &calls);
    const double fid = distance(&b, b.reference);
    printf(
        "{\"bench\":\"qncd\",\"mode\":\"float\",\"steps\":%d,\"samples\":%d,\"fid\":%.4f,\"calls\":%d,\"sample_s\":%.1f}\n",
        b.steps, b.samples, fid, calls, float_s);
    fflush(stdout);
    for (int i = 0; i < b.bits.n; i++)
        for (int k = 0; k < b.modes.n; k++)
            for (int s = 0; s < b.seeds.n; s++)
                row(&b, b.modes.item[k], b.bits.item[i], b.seeds.item[s], fid, float_s, x);
    qd_free(x);
    qd_free(b.reference);
    qd_feature_stats_free(b.test);
    qd_features_free(b.features);
    qd_schedule_free(b.schedule);
    qd_graph_free(b.graph);
    return 0;
}
