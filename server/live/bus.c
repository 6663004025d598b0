/* bus.c - copies of what was just stored, handed to whoever listens; and the shapes of API.md 4: envelope, time, binary frame. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "live/live.h"

typedef struct counted {
    sv_message m; /* first: a message handed out is the counted one */
    atomic_int refs;
} counted;

struct sv_listener {
    char job_id[40]; /* "" = all */
    void (*fn)(void *ctx, const sv_message *m);
    void *ctx;
    sv_listener *next;
};

struct sv_bus {
    pthread_mutex_t lock; /* held while listeners are called, so that unlisten can promise silence */
    sv_listener *first;
};

const sv_message *sv_message_ref(const sv_message *m)
{
    atomic_fetch_add(&((counted *)m)->refs, 1);
    return m;
}

void sv_message_unref(const sv_message *m)
{
    counted *c = (counted *)m;

    if (!c || atomic_fetch_sub(&c->refs, 1) != 1)
        return;
    qd_free(c->m.envelope);
    qd_free(c->m.frame);
    qd_free(c);
}

static counted *message_new(const char *job_id, int64_t seq, const char *type, const char *envelope, const void *frame,
                            size_t frame_size)
{
    counted *c = qd_calloc(1, sizeof(*c));

    if (!c)
        return NULL;
    atomic_init(&c->refs, 1);
    snprintf(c->m.job_id, sizeof(c->m.job_id), "%s", job_id);
    snprintf(c->m.type, sizeof(c->m.type), "%s", type);
    c->m.seq = seq;
    c->m.envelope = qd_strdup(envelope ? envelope : "");
    if (frame) {
        c->m.frame = qd_alloc(frame_size);
        if (c->m.frame)
            memcpy(c->m.frame, frame, frame_size);
        c->m.frame_size = frame_size;
    }
    if (!c->m.envelope || (frame && !c->m.frame)) {
        sv_message_unref(&c->m);
        return NULL;
    }
    return c;
}

qd_status sv_bus_new(sv_bus **out, qd_err *err)
{
    sv_bus *b = qd_calloc(1, sizeof(*b));

    if (!b)
        return qd_fail(err, QD_E_NOMEM, "out of memory while making the bus");
    pthread_mutex_init(&b->lock, NULL);
    *out = b;
    return QD_OK;
}

void sv_bus_free(sv_bus *b)
{
    if (!b)
        return;
    while (b->first) {
        sv_listener *l = b->first;
        b->first = l->next;
        qd_free(l);
    }
    pthread_mutex_destroy(&b->lock);
    qd_free(b);
}

static bool wants(const sv_listener *l, const char *job_id)
{
    return !l->job_id[0] || strcmp(l->job_id, job_id) == 0;
}

void sv_bus_publish(sv_bus *b, const char *job_id, int64_t seq, const char *type, const char *envelope,
                    const void *frame, size_t frame_size)
{
    counted *c = NULL;

    pthread_mutex_lock(&b->lock);
    for (sv_listener *l = b->first; l; l = l->next) {
        if (!wants(l, job_id))
            continue;
        if (!c) /* nobody listens most of the time: copy only when somebody does */
            c = message_new(job_id, seq, type, envelope, frame, frame_size);
        if (!c)
            break;
        l->fn(l->ctx, &c->m);
    }
    pthread_mutex_unlock(&b->lock);
    if (c)
        sv_message_unref(&c->m);
}

sv_listener *sv_bus_listen(sv_bus *b, const char *job_id, void (*fn)(void *ctx, const sv_message *m), void *ctx)
{
    sv_listener *l = qd_calloc(1, sizeof(*l));

    if (!l)
        return NULL;
    snprintf(l->job_id, sizeof(l->job_id), "%s", job_id ? job_id : "");
    l->fn = fn;
    l->ctx = ctx;
    pthread_mutex_lock(&b->lock);
    l->next = b->first;
    b->first = l;
    pthread_mutex_unlock(&b->lock);
    return l;
}

void sv_bus_unlisten(sv_bus *b, sv_listener *gone)
{
    if (!gone)
        return;
    pthread_mutex_lock(&b->lock);
    for (sv_listener **at = &b->first; *at; at = &(*at)->next) {
        if (*at == gone) {
            *at = gone->next;
            break;
        }
    }
    pthread_mutex_unlock(&b->lock);
    qd_free(gone);
}

const char *sv_time_text(int64_t ms, char out[32])
{
    time_t seconds = (time_t)(ms / 1000);
    int rest = (int)(ms % 1000);
    struct tm tm;

    if (rest < 0) {
        rest += 1000;
        seconds--;
    }
    if (!gmtime_r(&seconds, &tm) || tm.tm_year > 9999 - 1900) { /* beyond what RFC 3339 can write */
        snprintf(out, 32, "9999-12-31T23:59:59.999Z");
        return out;
    }
    const size_t n = strftime(out, 32, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(out + n, 32 - n, ".%03dZ", rest);
    return out;
}

char *sv_envelope(const char *job_id, int64_t seq, int64_t ts_ms, int attempt, const char *type, const char *data_json)
{
    qd_buf b;
    char ts[32];

    qd_buf_init(&b, 0);
    qd_buf_addf(&b, "{\"seq\":%lld,\"ts\":\"%s\",\"job\":", (long long)seq, sv_time_text(ts_ms, ts));
    qd_buf_add_json_string(&b, job_id);
    qd_buf_addf(&b, ",\"attempt\":%d,\"type\":", attempt);
    qd_buf_add_json_string(&b, type);
    qd_buf_adds(&b, ",\"data\":");
    qd_buf_adds(&b, data_json && data_json[0] ? data_json : "{}");
    qd_buf_adds(&b, "}");
    if (b.failed) {
        qd_buf_clear(&b);
        return NULL;
    }
    return qd_buf_take(&b, NULL);
}

uint8_t *sv_frame_make(uint32_t kind, const char *header_json, const void *bytes, size_t n, size_t *size)
{
    const size_t header = strlen(header_json);
    qd_buf b;

    if (header > UINT32_MAX)
        return NULL;
    qd_buf_init(&b, 0);
    qd_buf_add_u32be(&b, kind);
    qd_buf_add_u32be(&b, (uint32_t)header);
    qd_buf_add(&b, header_json, header);
    qd_buf_add(&b, bytes, n);
    if (b.failed) {
        qd_buf_clear(&b);
        return NULL;
    }
    return (uint8_t *)qd_buf_take(&b, size);
}
