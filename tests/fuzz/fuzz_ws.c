/* fuzz_ws.c - any bytes from a WebSocket client: frames as they are (first byte even), or each line as an operation of a client that
 * has said hello (first byte odd). The socket is given back once, whatever happens, and the loop is left empty. */
#include "fuzz.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/fs.h"
#include "live/live_int.h"
#include "store/store.h"

static int given_back;

static void give_back(void *handle)
{
    close(*(int *)handle);
    given_back++;
}

static qd_status cancel(void *ctx, const char *job_id, char **reply_json, qd_err *err)
{
    return qd_fail(err, QD_E_NOT_FOUND, "there is no job '%s'", job_id);
}

static char dir[] = "/tmp/quantd-fuzz-XXXXXX";

static void remove_dir(void)
{
    qd_fs_remove_tree(dir, NULL);
}

/* A loop over a database with one running job, made once. The threads of the pool open the file later: it goes at the end. */
static sv_loop *shared_loop(void)
{
    static sv_loop *loop;
    char path[64], id[] = "job_1", kind[] = "sample", body[] = "{}";
    sv_loop_options o = { .cancel = cancel };
    sv_tuning t = sv_tuning_default;
    qd_err err = { 0 };
    sv_job_row in = { .id = id, .kind = kind, .body = body, .max_attempts = 1 }, row = { 0 };

    if (loop)
        return loop;
    must(mkdtemp(dir));
    atexit(remove_dir);
    snprintf(path, sizeof path, "%s/db", dir);
    must(sv_store_open(path, &o.store, &err) == QD_OK);
    must(sv_jobs_add(o.store, &in, NULL, &row, NULL, &err) == QD_OK);
    sv_job_row_clear(&row);
    must(sv_jobs_claim(o.store, "w", sv_now_ms(), 1000, &row, &err) == QD_OK);
    sv_job_row_clear(&row);
    must(sv_bus_new(&o.bus, &err) == QD_OK);
    t.tick_ms = 1;
    t.close_ms = 5;
    must(sv_loop_new_tuned(&o, &t, &loop, &err) == QD_OK);
    return loop;
}

/* A text message as a client sends it, with a mask of zeros. */
static void add_message(qd_buf *b, const void *text, size_t n)
{
    const uint8_t head[4] = { 0x81, n < 126 ? (uint8_t)(0x80 | n) : 0xfe, (uint8_t)(n >> 8), (uint8_t)n };

    qd_buf_add(b, head, n < 126 ? 2 : 4);
    qd_buf_add(b, "\0\0\0\0", 4);
    qd_buf_add(b, text, n);
}

static void add_operations(qd_buf *b, const uint8_t *data, size_t size)
{
    static const char hello[] = "{\"op\":\"hello\",\"features\":[\"binary_samples\"]}";

    add_message(b, hello, sizeof hello - 1);
    while (size) {
        const uint8_t *end = memchr(data, '\n', size);
        const size_t n = end ? (size_t)(end - data) : size;
        add_message(b, data, n < 65535 ? n : 65535);
        data += n + (end != NULL);
        size -= n + (end != NULL);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sv_loop *l = shared_loop();
    int pair[2];
    qd_buf b;

    if (!size || size > 100000) /* what a socket pair holds at once */
        return 0;
    qd_buf_init(&b, 0);
    if (data[0] % 2)
        add_operations(&b, data + 1, size - 1);
    else
        qd_buf_add(&b, data + 1, size - 1);
    must(!b.failed);
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    given_back = 0;
    sv_loop_adopt(l, pair[1], b.data, b.size < 7 ? b.size : 7, give_back, &pair[1]);
    if (b.size > 7 && send(pair[0], b.data + 7, b.size - 7, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        uv_run(&l->uv, UV_RUN_NOWAIT);
    uv_run(&l->uv, UV_RUN_NOWAIT);
    uv_run(&l->uv, UV_RUN_NOWAIT);
    close(pair[0]);
    for (int i = 0; i < 1000 && (l->peers || !given_back); i++)
        uv_run(&l->uv, UV_RUN_ONCE);
    must(given_back == 1);
    must(!l->peers && sv_loop_sockets(l) == 0 && atomic_load(&l->followers) == 0);
    qd_buf_clear(&b);
    return 0;
}
