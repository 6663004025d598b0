/* replay.c - the main of a fuzz target in ordinary builds: every file of the given corpus folders once. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int visible(const struct dirent *e)
{
    return e->d_name[0] != '.';
}

/* In an allocation of exactly its size, so that a sanitizer sees the first byte read past it. */
static int replay(const char *dir, const char *name)
{
    char path[4096];
    FILE *f;
    long size;
    uint8_t *data;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END) != 0 || (size = ftell(f)) < 0 || fseek(f, 0, SEEK_SET) != 0) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(1);
    }
    data = malloc(size ? (size_t)size : 1);
    if (!data || fread(data, 1, (size_t)size, f) != (size_t)size) {
        fprintf(stderr, "cannot read %s\n", path);
        exit(1);
    }
    fclose(f);
    LLVMFuzzerTestOneInput(data, (size_t)size);
    free(data);
    return 1;
}

int main(int argc, char **argv)
{
    int n = 0;

    for (int k = 1; k < argc; k++) {
        struct dirent **names;
        const int count = scandir(argv[k], &names, visible, alphasort);

        for (int j = 0; j < count; j++) {
            n += replay(argv[k], names[j]->d_name);
            free(names[j]);
        }
        if (count >= 0)
            free(names);
    }
    if (n == 0) {
        fprintf(stderr, "no corpus: name its folders\n");
        return 1;
    }
    printf("%d files\n", n);
    return 0;
}
