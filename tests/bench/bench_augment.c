/* bench_augment.c - views of 32 x 32 pictures for contrastive training, thousands a second on one core, PyTorch's beside it.
 *
 * bench_augment [--torch] [--preset NAME] [--side N]: one JSON line; medians of ROUNDS rounds of PICTURES views each. With --torch
 * bench_augment_torch.py makes the same steps with the same probabilities, picture by picture as a DataLoader's worker does, between
 * our rounds; with Pillow and torchvision too where they are installed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cpu.h"
#include "data/data.h"
#include "harness/harness.h"

enum { PICTURES = 4000, ROUNDS = 7 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Smooth colours with noise on them. */
static void paint(uint8_t *px, int side, uint64_t seed)
{
    qd_rng r;
    qd_rng_init(&r, seed, 0);
    for (int c = 0; c < 3; c++) {
        const int dx = (int)qd_rng_below(&r, 7), dy = (int)qd_rng_below(&r, 7), base = (int)qd_rng_below(&r, 256);
        for (int y = 0; y < side; y++)
            for (int x = 0; x < side; x++)
                *px++ = (uint8_t)(base + dx * x + dy * y + (int)qd_rng_below(&r, 16));
    }
}

/* Views a second of PyTorch's loop and of torchvision on Pillow's pictures (0 = not there), on one thread. */
static bool theirs(const char *preset, int side, double *torch, double *pillow)
{
    int ends[2], status;
    char text[128] = { 0 }, n[16];
    if (pipe(ends))
        return false;
    const pid_t pid = fork();
    if (pid == 0) {
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]);
        snprintf(n, sizeof n, "%d", side);
        execl("/usr/bin/python3", "python3", harness_source("tests/bench/bench_augment_torch.py"), preset, n,
              (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    size_t used = 0;
    for (ssize_t got; used + 1 < sizeof text && (got = read(ends[0], text + used, sizeof text - 1 - used)) > 0;)
        used += (size_t)got;
    close(ends[0]);
    return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0 && sscanf(text, "%lf %lf", torch, pillow) == 2;
}

int main(int argc, char **argv)
{
    const char *preset = "simclr-cifar";
    bool beside = false;
    int side = 32;
    qd_err err = { 0 };
    qd_augment a;
    qd_view_room *room = NULL;
    double round[ROUNDS], torch = 0, pillow = 0;
    qd_cpu_prepare(argv);
    for (int k = 1; k < argc; k++) {
        beside |= strcmp(argv[k], "--torch") == 0;
        if (strcmp(argv[k], "--preset") == 0 && k + 1 < argc)
            preset = argv[++k];
        else if (strcmp(argv[k], "--side") == 0 && k + 1 < argc)
            side = (int)strtol(argv[++k], NULL, 10);
    }
    const size_t size = (size_t)(3 * side * side);
    int out_h, out_w;
    uint8_t *px = malloc(size * 64);
    if (side < 1 || side > 1024 || !px || qd_augment_find(preset, 3, &a, &err) ||
        qd_view_room_new(&a, 3, NULL, &room, &err) || qd_view_room_fit(room, side, side, &err)) {
        fprintf(stderr, "bench_augment: %s\n", err.text);
        return 1;
    }
    for (size_t k = 0; k < 64; k++)
        paint(px + k * size, side, k);
    qd_augment_size(&a, side, side, &out_h, &out_w);
    float *out = malloc(sizeof *out * 3 * (size_t)(out_h * out_w));
    const int pictures = side > 64 ? PICTURES / 20 : PICTURES;
    for (int r = 0; r < ROUNDS; r++) {
        const double start = now();
        for (int k = 0; k < pictures; k++) {
            const qd_pixels src = { .data = px + (size_t)(k % 64) * size,
                                    .channels = 3,
                                    .height = side,
                                    .width = side,
                                    .plane = side * side,
                                    .row = side,
                                    .column = 1 };
            const qd_view_key key = { .seed = 1, .epoch = r, .sample = k };
            qd_view v;
            qd_view_draw(&v, &a, side, side, &key);
            qd_view_floats(out, &src, &v, room);
        }
        round[r] = pictures / (now() - start);
    }
    qsort(round, ROUNDS, sizeof *round, by_value);
    const double ours = round[ROUNDS / 2];
    printf("{\"bench\":\"augment\",\"preset\":\"%s\",\"side\":%d,\"views_per_s\":%.0f", preset, side, ours);
    if (beside && theirs(preset, side, &torch, &pillow)) {
        printf(",\"torch_views_per_s\":%.0f,\"ratio\":%.1f", torch, ours / torch);
        if (pillow > 0)
            printf(",\"pillow_views_per_s\":%.0f,\"pillow_ratio\":%.1f", pillow, ours / pillow);
    }
    printf("}\n");
    qd_view_room_free(room);
    free(out);
    free(px);
    return 0;
}
