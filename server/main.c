/* main.c - the command line: one row for each command. Exit status 0 done, 1 failed, 2 asked the wrong way. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"
#include "base/cpu.h"
#include "base/fs.h"
#include "base/mem.h"
#include "data/data.h"
#include "http/http.h"
#include "jobs/jobs.h"
#include "log.h"
#include "model/model.h"
#include "nn/nn.h"
#include "plan/plan.h"
#include "profile.h"
#include "settings.h"
#include "store/store.h"

enum { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

typedef struct command {
    const char *name, *usage, *summary;
    int (*run)(const struct command *c, int argc, char **argv); /* argv starts after the command */
    bool settings;                                              /* takes the settings as flags */
} command;

static int failed(const qd_err *err)
{
    fprintf(stderr, "quantd: %s\n", err->text);
    return EXIT_FAILED;
}

static int misused(const command *c, const char *words, const char *arg)
{
    fprintf(stderr, "quantd %s: %s%s%s%s\nusage: quantd %s %s\n", c->name, words, arg ? " '" : "", arg ? arg : "",
            arg ? "'" : "", c->name, c->usage);
    return EXIT_USAGE;
}

/* A flag of a command itself, "--name value" or "--name=value", taken out of argv. *value stays when it is not there; false when it
 * lacks its value. */
static bool take_flag(int *argc, char **argv, const char *name, const char **value)
{
    const size_t n = strlen(name);
    for (int k = 0; k < *argc; k++) {
        int used = 0;
        if (strcmp(argv[k], name) == 0) {
            if (k + 1 >= *argc)
                return false;
            *value = argv[k + 1];
            used = 2;
        } else if (strncmp(argv[k], name, n) == 0 && argv[k][n] == '=') {
            *value = argv[k] + n + 1;
            used = 1;
        }
        if (used) {
            memmove(&argv[k], &argv[k + used], (size_t)(*argc - k - used) * sizeof *argv);
            *argc -= used;
            k--;
        }
    }
    return true;
}

/* A flag without a value, taken out of argv. */
static bool take_word(int *argc, char **argv, const char *name)
{
    for (int k = 0; k < *argc; k++)
        if (strcmp(argv[k], name) == 0) {
            memmove(&argv[k], &argv[k + 1], (size_t)(*argc - k - 1) * sizeof *argv);
            (*argc)--;
            return true;
        }
    return false;
}

/* The one argument without dashes, taken out of argv; NULL when there is none before the first flag. */
static const char *take_path(int *argc, char **argv)
{
    if (*argc == 0 || argv[0][0] == '-')
        return NULL;
    const char *path = argv[0];
    memmove(&argv[0], &argv[1], (size_t)(*argc - 1) * sizeof *argv);
    (*argc)--;
    return path;
}

static bool whole_number(const char *text, long min, long max, long *out)
{
    char *end;
    const long v = strtol(text, &end, 10);
    if (end == text || *end || v < min || v > max)
        return false;
    *out = v;
    return true;
}

static bool read_settings(sv_settings *s, int argc, char **argv, int *status)
{
    qd_err err = { 0 };
    if (!sv_settings_load(s, argc, argv, &err)) {
        sv_log_level_named(s->log_level);
        return true;
    }
    fprintf(stderr, "quantd: %s\n", err.text);
    *status = err.status == QD_E_INVALID ? EXIT_USAGE : EXIT_FAILED;
    return false;
}

/* --- serve, run, check --- */

static int run_serve(const command *c, int argc, char **argv)
{
    sv_settings s = { 0 };
    qd_err err = { 0 };
    int status = EXIT_DONE;
    if (!read_settings(&s, argc, argv, &status))
        return status;
    if (sv_app_serve(&s, &err))
        status = failed(&err);
    sv_settings_clear(&s);
    return status;
}

static int run_run(const command *c, int argc, char **argv)
{
    sv_settings s = { 0 };
    qd_err err = { 0 };
    const char *out = ".";
    int status = EXIT_DONE;

    if (!take_flag(&argc, argv, "--out", &out))
        return misused(c, "--out needs a folder", NULL);
    const char *path = take_path(&argc, argv);
    if (!path)
        return misused(c, "which job? Name a JSON file", NULL);
    if (!read_settings(&s, argc, argv, &status))
        return status;
    if (qd_fs_mkdirs(out, &err) || sv_run_once(&s, path, out, &err))
        status = failed(&err);
    sv_settings_clear(&s);
    return status;
}

/* The database is whole, and every model's file is where its row says. */
static qd_status check_data(const sv_settings *s, int *missing, qd_err *err)
{
    sv_store *store = NULL;
    sv_model_row *rows = NULL;
    char *db = qd_fs_join(s->data_dir, "db.sqlite3"), *after = NULL;
    int n = 0;
    bool more = true;
    qd_status st;

    *missing = 0;
    if (!db || !qd_fs_exists(db)) {
        st = qd_fail(err, QD_E_NOT_FOUND, "there is no database '%s'", db ? db : s->data_dir);
        goto out;
    }
    if ((st = sv_store_open(db, &store, err)) || (st = sv_store_check(store, err)))
        goto out;
    while (more) {
        const sv_list_query q = { .limit = 100, .ascending = true, .after = after };
        st = sv_models_list(store, &q, &rows, &n, &more, err);
        if (st)
            goto out;
        for (int k = 0; k < n; k++) {
            char *path = qd_fs_join(s->data_dir, rows[k].path);
            if (path && !qd_fs_exists(path)) {
                printf("model %s: '%s' is missing\n", rows[k].id, path);
                (*missing)++;
            }
            qd_free(path);
        }
        qd_free(after);
        after = n > 0 ? qd_strdup(rows[n - 1].id) : NULL;
        more = more && after;
        sv_model_rows_free(rows, n);
    }
out:
    qd_free(after);
    sv_store_close(store);
    qd_free(db);
    return st;
}

/* What an upload of it would be told: as a model first, then as a data set. */
static qd_status check_found(const sv_settings *s, const char *path, const char *shown, qd_err *err)
{
    qd_err as_model = { 0 }, as_data = { 0 };
    char *format = NULL, *role = NULL, *summary = NULL;
    const char *what = "model";
    qd_status st = sv_model_inspect(path, s, &format, &role, &summary, &as_model);
    if (st) {
        what = "data set";
        st = sv_dataset_inspect(path, s, &format, &role, &summary, &as_data);
    }
    if (st)
        return qd_fail(err, st, "'%.100s' is neither: as a model, %.170s; as a data set, %.170s", shown, as_model.text,
                       as_data.text);
    printf("%s: %s, %s, %s\n%s\n", shown, what, format, role, summary);
    qd_free(format);
    qd_free(role);
    qd_free(summary);
    return QD_OK;
}

/* A file, a folder, or an archive of one, unpacked for the while. */
static qd_status check_path(const sv_settings *s, const char *path, qd_err *err)
{
    const qd_unpack_limits limits = { .max_bytes = (uint64_t)s->max_unpacked_bytes, .max_entries = 1 << 20 };
    const char *tmp = getenv("TMPDIR");
    if (!qd_fs_exists(path))
        return qd_fail(err, QD_E_NOT_FOUND, "there is no file or folder '%.200s'", path);
    if (qd_fs_is_dir(path) || qd_torch_sniff(path) || !qd_archive_has_files(path))
        return check_found(s, path, path, err);
    char *dir = qd_asprintf("%s/quantd-check-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (!dir || !mkdtemp(dir)) {
        qd_free(dir);
        return qd_fail(err, QD_E_IO, "cannot make a folder to unpack '%.200s' into", path);
    }
    qd_status st = qd_archive_unpack(path, dir, &limits, err);
    if (!st)
        st = check_found(s, dir, path, err);
    qd_fs_remove_tree(dir, NULL);
    qd_free(dir);
    return st;
}

static int run_check(const command *c, int argc, char **argv)
{
    sv_settings s = { 0 };
    qd_err err = { 0 };
    int status = EXIT_DONE, missing;
    const char *path = take_path(&argc, argv);
    if (!read_settings(&s, argc, argv, &status))
        return status;
    if (path) {
        if (check_path(&s, path, &err))
            status = failed(&err);
        sv_settings_clear(&s);
        return status;
    }
    if (check_data(&s, &missing, &err))
        status = failed(&err);
    else if (missing > 0)
        status = EXIT_FAILED;
    else
        printf("%s: the database is whole and every model is there\n", s.data_dir);
    sv_settings_clear(&s);
    return status;
}

/* --- dump, profile --- */

typedef struct opened {
    qd_model *model;
    qd_graph *graph;
    qd_shape shapes[QD_MAX_INPUTS];
    int n_inputs;
} opened;

static void on_warn(void *ctx, const char *text)
{
    fprintf(stderr, "quantd: warning: %s\n", text);
}

static qd_status open_model(const char *path, int64_t batch, opened *out, qd_err *err)
{
    const qd_run run = { .warn = on_warn };
    qd_role role;
    qd_status st = qd_model_open(path, NULL, &out->model, err);
    if (!st)
        st = qd_zoo_build(out->model, &run, &out->graph, &role, err);
    if (st)
        return st;
    out->n_inputs = qd_graph_inputs(out->graph);
    if (out->n_inputs > QD_MAX_INPUTS)
        return qd_fail(err, QD_E_UNSUPPORTED, "the network has %d inputs, the limit is %d", out->n_inputs,
                       QD_MAX_INPUTS);
    for (int k = 0; k < out->n_inputs; k++) {
        out->shapes[k] = qd_graph_node(out->graph, qd_graph_input_at(out->graph, k))->shape;
        for (int i = 0; i < out->shapes[k].rank; i++)
            if (out->shapes[k].dim[i] < 0)
                out->shapes[k].dim[i] = batch;
    }
    return QD_OK;
}

static void close_model(opened *o)
{
    qd_graph_free(o->graph);
    qd_model_free(o->model);
}

static int run_dump(const command *c, int argc, char **argv)
{
    opened o = { 0 };
    qd_err err = { 0 };
    qd_buf text;
    int64_t macs = 0;
    int status = EXIT_DONE;
    const char *path = take_path(&argc, argv);

    if (!path)
        return misused(c, "which model? Name a file or folder", NULL);
    if (argc > 0)
        return misused(c, "unknown argument", argv[0]);
    qd_buf_init(&text, 0);
    if (open_model(path, 1, &o, &err) || qd_graph_cost(o.graph, o.shapes, o.n_inputs, &macs, &err)) {
        status = failed(&err);
        goto out;
    }
    qd_graph_print(o.graph, &text);
    fwrite(text.data, 1, text.size, stdout);
    printf("%s: %d nodes, %lld parameters in %zu bytes, %lld multiply-adds at batch 1\n", o.model->format,
           qd_graph_size(o.graph), (long long)qd_graph_param_count(o.graph), qd_graph_param_bytes(o.graph),
           (long long)macs);
out:
    qd_buf_clear(&text);
    close_model(&o);
    return status;
}

static int run_profile(const command *c, int argc, char **argv)
{
    opened o = { 0 };
    qd_err err = { 0 };
    qd_buf text;
    const char *batch = "1", *threads = "1", *runs = "20", *backend = qd_backend_name(qd_backend_default());
    long n_threads;
    sv_profile_options options = { 0 };
    int status = EXIT_DONE;

    options.json = take_word(&argc, argv, "--json");
    options.by_time = take_word(&argc, argv, "--slowest-first");
    if (!take_flag(&argc, argv, "--batch", &batch) || !take_flag(&argc, argv, "--threads", &threads) ||
        !take_flag(&argc, argv, "--runs", &runs) || !take_flag(&argc, argv, "--backend", &backend))
        return misused(c, "a flag lacks its value", NULL);
    const char *path = take_path(&argc, argv);
    if (!path)
        return misused(c, "which model? Name a file or folder", NULL);
    if (argc > 0)
        return misused(c, "unknown argument", argv[0]);
    if (!whole_number(batch, 1, 4096, &options.batch))
        return misused(c, "--batch must be 1..4096, got", batch);
    if (!whole_number(threads, 1, 1024, &n_threads))
        return misused(c, "--threads must be 1..1024, got", threads);
    if (!whole_number(runs, 1, 10000, &options.runs))
        return misused(c, "--runs must be 1..10000, got", runs);
    if (!qd_backend_find(backend))
        return misused(c, "no such backend:", backend);

    options.title = path;
    options.threads = (int)n_threads;
    options.backend = qd_backend_find(backend);
    qd_buf_init(&text, 0);
    if (open_model(path, options.batch, &o, &err) || sv_profile(o.graph, o.shapes, o.n_inputs, &options, &text, &err))
        status = failed(&err);
    else
        fwrite(text.data, 1, text.size, stdout);
    qd_buf_clear(&text);
    close_model(&o);
    return status;
}

/* --- schema, version, help --- */

static int run_schema(const command *c, int argc, char **argv)
{
    qd_err err = { 0 };
    const char *out = "proto";
    char *texts[2] = { NULL }, *paths[2] = { NULL };
    int status = EXIT_DONE;

    if (!take_flag(&argc, argv, "--out", &out))
        return misused(c, "--out needs a folder", NULL);
    if (argc > 0)
        return misused(c, "unknown argument", argv[0]);
    texts[0] = sv_openapi_text();
    texts[1] = sv_events_schema_text();
    paths[0] = qd_fs_join(out, "openapi.json");
    paths[1] = qd_fs_join(out, "events.json");
    if (!texts[0] || !texts[1] || !paths[0] || !paths[1]) {
        qd_fail(&err, QD_E_NOMEM, "no memory for the documents");
        status = failed(&err);
    } else if (qd_fs_mkdirs(out, &err) || qd_fs_write(paths[0], texts[0], strlen(texts[0]), &err) ||
               qd_fs_write(paths[1], texts[1], strlen(texts[1]), &err)) {
        status = failed(&err);
    }
    for (int k = 0; k < 2; k++) {
        qd_free(texts[k]);
        qd_free(paths[k]);
    }
    return status;
}

static int run_version(const command *c, int argc, char **argv)
{
    if (argc > 0)
        return misused(c, "unknown argument", argv[0]);
    const char *core = getenv("OPENBLAS_CORETYPE");
    printf("quantd %s\n", SV_VERSION);
    printf("instruction set    %s%s\n", qd_isa_name(qd_cpu_isa()), qd_cpu_has_vnni() ? " with VNNI" : "");
    printf("OpenBLAS core type %s\n",
           core ? core : "chosen by the library"); /* what was asked for; `libraries` says what came of it */
    printf("backends          ");
    for (int k = 0; qd_backends[k]; k++)
        printf(" %s%s", qd_backend_name(qd_backends[k]), qd_backends[k] == qd_backend_default() ? " (default)" : "");
    printf("\nlibraries          %s\n", qd_plan_libraries());
    return EXIT_DONE;
}

static int run_help(const command *c, int argc, char **argv);

static const command commands[] = {
    { "serve", "[settings]", "Run the daemon until SIGTERM or SIGINT.", run_serve, true },
    { "run", "JOB.json [--out DIR] [settings]",
      "Run one job here, without a server. The job is what POST /v1/jobs takes, its \"model\" a path; results go to DIR.",
      run_run, true },
    { "dump", "MODEL", "Print a model's graph, its parameters and multiply-adds.", run_dump, false },
    { "profile", "MODEL [--batch N] [--threads N] [--runs N] [--backend NAME] [--slowest-first] [--json]",
      "Compile a model and print how long each layer takes, what it could take on this processor, and where time is lost.",
      run_profile, false },
    { "schema", "[--out DIR]", "Write openapi.json and events.json, made from the tables, to DIR (proto).", run_schema,
      false },
    { "check", "[FILE] [settings]",
      "Look at FILE, a model, a data set or an archive of one, as an upload would be; without it, check the database and that every "
      "model's file is there.",
      run_check, true },
    { "version", "", "Print the version and what this processor is used for.", run_version, false },
    { "help", "[COMMAND]", "Print this, or a command's own help.", run_help, false },
    { .name = NULL },
};

static const command *find_command(const char *name)
{
    for (const command *c = commands; c->name; c++)
        if (strcmp(c->name, name) == 0)
            return c;
    return NULL;
}

static void print_help(FILE *out)
{
    fprintf(out, "quantd makes trained networks smaller, as a service.\n\nusage: quantd COMMAND ...\n\n");
    for (const command *c = commands; c->name; c++)
        fprintf(out, "  %-8s %s\n           %s\n", c->name, c->usage, c->summary);
    fprintf(out, "\nquantd COMMAND --help says more. Exit status: 0 done, 1 failed, 2 asked the wrong way.\n");
}

static void print_command_help(const command *c)
{
    printf("usage: quantd %s %s\n\n%s\n", c->name, c->usage, c->summary);
    if (c->settings) {
        printf("\n");
        sv_settings_help(stdout);
    }
}

static int run_help(const command *c, int argc, char **argv)
{
    if (argc == 0) {
        print_help(stdout);
        return EXIT_DONE;
    }
    const command *about = find_command(argv[0]);
    if (!about)
        return misused(c, "there is no command", argv[0]);
    print_command_help(about);
    return EXIT_DONE;
}

int main(int argc, char **argv)
{
    qd_cpu_prepare(argv);
    qd_mem_give_back();
    if (argc < 2) {
        print_help(stderr);
        return EXIT_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)
        name = "help";
    else if (strcmp(name, "--version") == 0)
        name = "version";
    const command *c = find_command(name);
    if (!c) {
        fprintf(stderr, "quantd: there is no command '%s'; quantd help lists them\n", name);
        return EXIT_USAGE;
    }
    for (int k = 2; k < argc; k++)
        if (strcmp(argv[k], "--help") == 0 || strcmp(argv[k], "-h") == 0) {
            print_command_help(c);
            return EXIT_DONE;
        }
    return c->run(c, argc - 2, argv + 2);
}
