/* file.c - files as replies: strong ETags, conditions, one range, digests, names. */
#include "http/http_int.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"

void sv_repr_digest(sv_request *q, const char *sha256_hex)
{
    uint8_t digest[32];
    char text[sodium_base64_ENCODED_LEN(32, sodium_base64_VARIANT_ORIGINAL)];
    size_t n = 0;
    if (sodium_hex2bin(digest, sizeof digest, sha256_hex, strlen(sha256_hex), NULL, &n, NULL) || n != sizeof digest)
        return;
    sodium_bin2base64(text, sizeof text, digest, sizeof digest, sodium_base64_VARIANT_ORIGINAL);
    sv_reply_field(q, "Repr-Digest", "sha-256=:%s:", text);
}

/* RFC 6266: a plain name for everybody, and the exact one in UTF-8 when it differs. */
static void disposition(sv_request *q, const sv_file_reply *f)
{
    static const char hex[] = "0123456789ABCDEF";
    char plain[256], exact[3 * 255 + 1];
    size_t n = 0, w = 0;
    bool differs = false;
    for (const char *p = f->filename; *p && n < 255; p++, n++) {
        const unsigned char c = (unsigned char)*p;
        const bool fine = c >= 0x20 && c < 0x7f && c != '"' && c != '\\' && c != '/' && c != '%';
        plain[n] = fine ? (char)c : '_';
        differs |= !fine;
        if (isalnum(c) || c == '.' || c == '-' || c == '_') {
            exact[w++] = (char)c;
        } else {
            exact[w++] = '%';
            exact[w++] = hex[c >> 4];
            exact[w++] = hex[c & 15];
        }
    }
    plain[n] = '\0';
    exact[w] = '\0';
    const char *how = f->inline_view ? "inline" : "attachment";
    if (differs)
        sv_reply_field(q, "Content-Disposition", "%s; filename=\"%s\"; filename*=UTF-8''%s", how, plain, exact);
    else
        sv_reply_field(q, "Content-Disposition", "%s; filename=\"%s\"", how, plain);
}

void sv_reply_file(sv_request *q, const sv_file_reply *f)
{
    struct stat s;
    const int fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || fstat(fd, &s) || !S_ISREG(s.st_mode)) {
        const int why = errno;
        if (fd >= 0)
            close(fd);
        if (fd < 0 && why != ENOENT) {
            qd_err err = { 0 };
            qd_fail(&err, QD_E_IO, "%s: %s", f->path, strerror(why));
            sv_reply_error(q, QD_E_IO, &err, NULL);
        } else {
            sv_reply_problem(q, SV_P_PRUNED, NULL, "the bytes are not kept any more");
        }
        return;
    }

    char etag[96];
    if (f->sha256)
        snprintf(etag, sizeof etag, "\"%.64s\"", f->sha256);
    else
        snprintf(etag, sizeof etag, "\"%llx-%llx-%llx\"", (unsigned long long)s.st_ino, (unsigned long long)s.st_size,
                 (unsigned long long)s.st_mtim.tv_sec * 1000000000ull + (unsigned long long)s.st_mtim.tv_nsec);
    const uint64_t size = (uint64_t)s.st_size;
    uint64_t first = 0, length = size;
    sv_reply *r = &q->reply;

    sv_reply_field(q, "ETag", "%s", etag);
    sv_reply_field(q, "Cache-Control", "private, no-cache");
    sv_reply_field(q, "Accept-Ranges", "bytes");
    if (sv_etag_in(sv_request_field(q, "If-None-Match"), etag)) {
        close(fd);
        sv_reply_empty(q, 304);
        return;
    }
    /* A range belongs to the bytes the client has; when If-Range says they changed, it gets all of the new ones. */
    const char *condition = sv_request_field(q, "If-Range");
    const char *range = sv_request_field(q, "Range");
    if (condition && strcmp(condition, etag))
        range = NULL;
    const sv_range_kind kind = sv_range_parse(range, size, &first, &length);
    if (kind == SV_RANGE_UNSATISFIABLE) {
        close(fd);
        sv_reply_field(q, "Content-Range", "bytes */%llu", (unsigned long long)size);
        sv_reply_problem(q, SV_P_RANGE, NULL, "the file has %llu bytes; '%.64s' is outside", (unsigned long long)size,
                         range);
        return;
    }
    if (kind == SV_RANGE_ONE)
        sv_reply_field(q, "Content-Range", "bytes %llu-%llu/%llu", (unsigned long long)first,
                       (unsigned long long)(first + length - 1), (unsigned long long)size);
    sv_reply_field(q, "Content-Type", "%s", f->mime);
    if (f->filename)
        disposition(q, f);
    if (f->sha256)
        sv_repr_digest(q, f->sha256);
    r->status = kind == SV_RANGE_ONE ? 206 : 200;
    r->kind = SV_BODY_FILE;
    r->fd = fd;
    r->offset = first;
    r->size = length;
}

void sv_reply_asset(sv_request *q, const char *type, const char *etag, const void *data, size_t size)
{
    sv_reply_field(q, "ETag", "%s", etag);
    sv_reply_field(q, "Cache-Control", "no-cache");
    if (sv_etag_in(sv_request_field(q, "If-None-Match"), etag))
        sv_reply_empty(q, 304);
    else
        sv_reply_lent(q, 200, type, data, size);
}
