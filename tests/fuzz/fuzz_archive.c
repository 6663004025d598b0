/* fuzz_archive.c - any bytes as an archive: refused leaving an empty folder, or plain files and folders within the limits. */
#include "fuzz.h"

#include <ftw.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "data/data.h"

#define MAX_BYTES (1u << 20)
#define MAX_ENTRIES 64

static char dest[64];
static uint64_t seen_bytes;
static int seen_entries;

static int look(const char *path, const struct stat *info, int kind, struct FTW *where)
{
    must(S_ISREG(info->st_mode) || S_ISDIR(info->st_mode));
    if (where->level > 0)
        seen_entries++;
    if (S_ISREG(info->st_mode))
        seen_bytes += (uint64_t)info->st_size;
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const qd_unpack_limits limits = { .max_bytes = MAX_BYTES, .max_entries = MAX_ENTRIES };
    const int fd = memfd_create("fuzz", MFD_CLOEXEC);
    char path[64];
    qd_err err = { 0 };
    qd_status st;

    must(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    if (!dest[0]) {
        strcpy(dest, access("/dev/shm", W_OK) == 0 ? "/dev/shm/quantd-fuzz-XXXXXX" : "/tmp/quantd-fuzz-XXXXXX");
        must(mkdtemp(dest));
    } else {
        must(mkdir(dest, 0700) == 0);
    }
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    qd_archive_sniff(path);
    st = qd_archive_unpack(path, dest, &limits, &err);
    close(fd);
    seen_entries = 0;
    seen_bytes = 0;
    must(nftw(dest, look, 16, FTW_PHYS) == 0);
    if (st)
        must(seen_entries == 0 && err.text[0]);
    must(seen_entries <= MAX_ENTRIES && seen_bytes <= MAX_BYTES);
    must(qd_fs_remove_tree(dest, &err) == QD_OK);
    return 0;
}
