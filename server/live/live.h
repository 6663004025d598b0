/* live.h - what moves while a job runs: the bus, the event loop, the WebSocket hub.
 *
 * The stored event log is the truth; the bus only carries copies of what was just stored, so that listeners need not poll. A
 * listener that sees a gap in seq reads the missing rows from the store. */
#ifndef SV_LIVE_LIVE_H
#define SV_LIVE_LIVE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

typedef struct sv_store sv_store;
typedef struct sv_job_row sv_job_row;

/* One message: counted, immutable once published. */
typedef struct sv_message {
    char job_id[40];
    int64_t seq;    /* 0 = not in the log */
    char type[16];  /* "progress", "sample", "state", "end", ... */
    char *envelope; /* the JSON envelope of API.md 4 */
    uint8_t *frame; /* a complete binary frame body (kind, n, header, bytes) or NULL */
    size_t frame_size;
} sv_message;

/* A listener that wants to keep a message takes a reference; the last one to let go frees it. Any thread. */
const sv_message *sv_message_ref(const sv_message *m);
void sv_message_unref(const sv_message *m); /* NULL is fine */

typedef struct sv_bus sv_bus;
qd_status sv_bus_new(sv_bus **out, qd_err *err);
void sv_bus_free(sv_bus *b);
/* Copies. Never blocks for longer than a mutex. Out of memory the message is lost, which listeners see as a gap in seq. */
void sv_bus_publish(sv_bus *b, const char *job_id, int64_t seq, const char *type, const char *envelope,
                    const void *frame, size_t frame_size);
/* fn runs on the publisher's thread under the bus's own mutex: it must only note and wake, and not call the bus. job_id NULL = all.
 * NULL when out of memory. */
typedef struct sv_listener sv_listener;
sv_listener *sv_bus_listen(sv_bus *b, const char *job_id, void (*fn)(void *ctx, const sv_message *m), void *ctx);
void sv_bus_unlisten(sv_bus *b, sv_listener *l); /* after return fn is not running and will not run again */

/* The envelope as JSON text (qd_free), from the parts stored. */
char *sv_envelope(const char *job_id, int64_t seq, int64_t ts_ms, int attempt, const char *type, const char *data_json);
/* RFC 3339 UTC with milliseconds into out[32]. */
const char *sv_time_text(int64_t ms, char out[32]);
/* Binary frame body of API.md 4: u32 kind, u32 n, header JSON, bytes. qd_free. */
uint8_t *sv_frame_make(uint32_t kind, const char *header_json, const void *bytes, size_t n, size_t *size);

/* The loop thread: libuv; signals, timers, WebSockets. Everything that could wait goes to libuv's pool. */
typedef struct sv_loop sv_loop;
typedef struct sv_loop_options {
    sv_bus *bus;
    sv_store *store;
    void (*on_signal)(void *ctx, int signum); /* SIGTERM, SIGINT; on the loop thread */
    /* The WebSocket op "cancel": reply_json an object (qd_free). On a thread of libuv's pool, because it asks the store. */
    qd_status (*cancel)(void *ctx, const char *job_id, char **reply_json, qd_err *err);
    /* The job as API.md 3 shows it (qd_free), for "reset" events; also on a pool thread. NULL = the row's main fields. */
    char *(*snapshot)(void *ctx, const sv_job_row *job);
    bool (*allow)(void *ctx, const char *token); /* may this token (NULL = none was sent) come in? NULL = everybody */
    void *ctx;
} sv_loop_options;
qd_status sv_loop_new(const sv_loop_options *o, sv_loop **out, qd_err *err);
/* Runs until sv_loop_stop; call on the main thread. */
void sv_loop_run(sv_loop *l);
void sv_loop_stop(sv_loop *l); /* from any thread: sends 1001 to every socket, waits up to 2 s for them, leaves */
void sv_loop_free(sv_loop *l);

/* Hand over an upgraded socket (any thread). `close` is libmicrohttpd's own way to give it back; called exactly once. extra: bytes
 * already read past the request. */
void sv_loop_adopt(sv_loop *l, int fd, const void *extra, size_t extra_size, void (*close)(void *handle), void *handle);
int sv_loop_sockets(const sv_loop *l); /* open WebSockets, for /metrics */

#endif
