/* bench_train.c - training steps, ours and PyTorch's in turns.
 *
 * bench_train [--net NAME] [--torch] [--profile] [--batch N] [--threads T] [--rounds R]: all networks of train_nets.c or one of them,
 * with 1 and 2 threads. With --torch the same steps are made by train_nets.py in another process, which waits while
 * ours runs and the other way round; the ratio of the medians is printed. One JSON line for each, medians of R steps after WARM, by the
 * clock and of the processor (on a busy machine the second says more of one thread). --profile adds the time by kind of step and the
 * whole plan. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cpu.h"
#include "bench/train_nets.h"
#include "harness/harness.h"
#include "plan/plan.h"

enum { WARM = 3, MOST_ROUNDS = 200, MOST_KINDS = 200 };

typedef struct options {
    const char *net;
    bool torch, profile;
    int64_t batch;
    int threads, rounds;
} options;

typedef struct times {
    double clock, cpu; // seconds
} times;

static times now(void)
{
    struct timespec t, c;
    clock_gettime(CLOCK_MONOTONIC, &t);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &c);
    return (times){ (double)t.tv_sec + 1e-9 * (double)t.tv_nsec, (double)c.tv_sec + 1e-9 * (double)c.tv_nsec };
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static times median(const times *t, int n)
{
    double clock[MOST_ROUNDS], cpu[MOST_ROUNDS];
    for (int k = 0; k < n; k++) {
        clock[k] = t[k].clock;
        cpu[k] = t[k].cpu;
    }
    qsort(clock, (size_t)n, sizeof *clock, compare);
    qsort(cpu, (size_t)n, sizeof *cpu, compare);
    return (times){ clock[n / 2], cpu[n / 2] };
}

/* --- PyTorch in a process of its own --- */

typedef struct other {
    pid_t pid;
    FILE *to, *from;
} other;

static bool other_start(other *o, const char *net, int64_t batch, int threads)
{
    int to[2], from[2];
    char n[32], t[32], line[64];
    snprintf(n, sizeof n, "%lld", (long long)batch);
    snprintf(t, sizeof t, "%d", threads);
    const char *script = harness_source("tests/bench/train_nets.py");
    if (pipe(to) || pipe(from))
        return false;
    o->pid = fork();
    if (o->pid < 0)
        return false;
    if (o->pid == 0) {
        dup2(to[0], 0);
        dup2(from[1], 1);
        close(to[1]);
        close(from[0]);
        unsetenv("OPENBLAS_NUM_THREADS"); /* qd_cpu_prepare's settings are for us */
        unsetenv("OPENBLAS_CORETYPE");
        unsetenv("GOMP_SPINCOUNT");
        execl("/usr/bin/python3", "python3", script, net, n, t, (char *)NULL);
        _exit(127);
    }
    close(to[0]);
    close(from[1]);
    o->to = fdopen(to[1], "w");
    o->from = fdopen(from[0], "r");
    return o->to && o->from && fgets(line, sizeof line, o->from) && strncmp(line, "ready", 5) == 0;
}

static bool other_step(const other *o, times *t)
{
    fputs("step\n", o->to);
    fflush(o->to);
    return fscanf(o->from, "%lf %lf", &t->clock, &t->cpu) == 2;
}

static void other_stop(other *o)
{
    if (o->to)
        fclose(o->to);
    if (o->from)
        fclose(o->from);
    if (o->pid > 0)
        waitpid(o->pid, NULL, 0);
}

/* --- ours --- */

typedef struct filled {
    const train_net *net;
    int64_t n;
} filled;

/* The same data every time: only the step is measured. */
static qd_status batch(void *ctx, qd_rng *rng, int64_t step, void *const *inputs, qd_err *err)
{
    const filled *f = ctx;
    if (step == 0)
        f->net->fill(f->n, inputs);
    return QD_OK;
}

static qd_status loss(void *ctx, qd_graph *g, const qd_node_id *outputs, int n, qd_node_id *out, qd_err *err)
{
    return ((const filled *)ctx)->net->loss(NULL, g, outputs, n, out, err);
}

typedef struct kind {
    char name[96];
    double seconds;
    int steps;
} kind;

static int by_seconds(const void *a, const void *b)
{
    const kind *x = a, *y = b;
    return (x->seconds < y->seconds) - (x->seconds > y->seconds);
}

/* Where the time goes: by kind of step and who runs it. */
static void print_kinds(const qd_plan *p, int runs)
{
    kind kinds[MOST_KINDS];
    int n = 0;
    double total = 0.0;
    for (int k = 0; k < qd_plan_steps(p); k++) {
        qd_plan_step s;
        char name[96];
        int at = 0;
        qd_plan_step_at(p, k, &s);
        snprintf(name, sizeof name, "%s (%s)", s.kind, s.impl);
        while (at < n && strcmp(kinds[at].name, name) != 0)
            at++;
        if (at == MOST_KINDS)
            continue;
        if (at == n) {
            kinds[n] = (kind){ .seconds = 0.0 };
            snprintf(kinds[n++].name, sizeof kinds->name, "%s", name);
        }
        kinds[at].seconds += s.seconds;
        kinds[at].steps++;
        total += s.seconds;
    }
    qsort(kinds, (size_t)n, sizeof *kinds, by_seconds);
    for (int k = 0; k < n; k++)
        printf("%6.2f %%  %9.3f ms  %4d  %s\n", 100.0 * kinds[k].seconds / total, kinds[k].seconds * 1e3 / runs,
               kinds[k].steps, kinds[k].name);
}

static void print_plan(const qd_plan *p, int runs)
{
    qd_buf b;
    print_kinds(p, runs);
    qd_buf_init(&b, 1 << 22);
    qd_plan_print(p, &b);
    fwrite(b.data, 1, b.size, stdout);
    qd_buf_clear(&b);
}

static bool measure(const train_net *net, const options *o, int threads)
{
    qd_err err = { 0 };
    qd_graph *g = net->make();
    qd_trainer *t = NULL;
    times ours[MOST_ROUNDS], theirs[MOST_ROUNDS];
    other torch = { 0 };
    const qd_run run = { .threads = threads, .seed = 1 };
    filled f = { .net = net, .n = o->batch ? o->batch : net->batch };
    qd_trainer_options trainer = { .network = g,
                                   .trains = train_net_trains,
                                   .batch_norm = net->batch_norm,
                                   .loss = loss,
                                   .batch = batch,
                                   .ctx = &f,
                                   .batch_size = f.n,
                                   .optim = net->optim->defaults,
                                   .schedule = { .lr = net->lr },
                                   .profile = o->profile };
    bool beside = o->torch && net->in_torch;
    trainer.optim.weight_decay = net->optim == &qd_optim_sgd ? 1e-4 : 0.0;
    qd_status st = qd_trainer_new(&trainer, &run, &t, &err);
    if (!st)
        st = qd_trainer_run(t, &run, WARM, &err);
    if (beside && !other_start(&torch, net->name, f.n, threads)) {
        fprintf(stderr, "bench_train: PyTorch did not start\n");
        beside = false;
    }
    for (int k = 0; k < o->rounds && !st; k++) {
        const times start = now();
        st = qd_trainer_run(t, &run, WARM + k + 1, &err);
        const times end = now();
        ours[k] = (times){ end.clock - start.clock, end.cpu - start.cpu };
        beside = beside && other_step(&torch, &theirs[k]);
    }
    other_stop(&torch);
    if (st) {
        fprintf(stderr, "bench_train: %s\n", err.text);
    } else {
        const times m = median(ours, o->rounds);
        printf("{\"bench\":\"train\",\"net\":\"%s\",\"batch\":%lld,\"threads\":%d,\"ms\":%.1f,\"cpu_ms\":%.1f,"
               "\"samples_per_s\":%.0f,\"arena_mb\":%.0f",
               net->name, (long long)f.n, threads, m.clock * 1e3, m.cpu * 1e3, (double)f.n / m.clock,
               (double)qd_plan_arena_bytes(qd_trainer_plan(t)) / 1048576.0);
        if (beside) {
            const times b = median(theirs, o->rounds);
            printf(",\"torch_ms\":%.1f,\"torch_cpu_ms\":%.1f,\"ratio\":%.2f,\"cpu_ratio\":%.2f", b.clock * 1e3,
                   b.cpu * 1e3, b.clock / m.clock, b.cpu / m.cpu);
        }
        printf(",\"loss\":%.4f}\n", qd_trainer_loss(t));
        if (o->profile)
            print_plan(qd_trainer_plan(t), WARM + o->rounds);
        fflush(stdout);
    }
    qd_trainer_free(t);
    qd_graph_free(g);
    return !st;
}

int main(int argc, char **argv)
{
    qd_cpu_prepare(argv); /* as the daemon does: the libraries read their settings while they are loaded */
    options o = { .rounds = 9 };
    bool good = true, any = false;
    for (int k = 1; k < argc; k++) {
        const bool more = k + 1 < argc;
        o.torch |= strcmp(argv[k], "--torch") == 0;
        o.profile |= strcmp(argv[k], "--profile") == 0;
        if (more && strcmp(argv[k], "--net") == 0)
            o.net = argv[++k];
        else if (more && strcmp(argv[k], "--batch") == 0)
            o.batch = atoll(argv[++k]);
        else if (more && strcmp(argv[k], "--threads") == 0)
            o.threads = atoi(argv[++k]);
        else if (more && strcmp(argv[k], "--rounds") == 0)
            o.rounds = atoi(argv[++k]);
    }
    if (o.batch < 0 || o.threads < 0 || o.rounds < 1 || o.rounds > MOST_ROUNDS)
        return 2;
    for (const train_net *net = train_nets; net->name; net++)
        for (int threads = 1; threads <= 2 && (!o.net || strcmp(o.net, net->name) == 0); threads++)
            if (!o.threads || o.threads == threads) {
                any = true;
                good &= measure(net, &o, threads);
            }
    return any && good ? 0 : 1;
}
