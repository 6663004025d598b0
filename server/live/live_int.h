/* live_int.h - inside the live room: WebSocket frames, the sockets on the loop, and what each of them follows. */
#ifndef SV_LIVE_LIVE_INT_H
#define SV_LIVE_LIVE_INT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <sys/types.h>
#include <uv.h>

#include "live/live.h"

/* --- ws_frame.c: one WebSocket, server side, no extensions (RFC 6455). Knows nothing of sockets or JSON. --- */
typedef struct sv_ws sv_ws;

#define SV_WS_AGAIN (-1)  /* nothing now */
#define SV_WS_BROKEN (-2) /* nothing ever again */
typedef struct sv_ws_io {
    ssize_t (*read)(void *ctx, uint8_t *data, size_t n); /* bytes read, SV_WS_AGAIN, or SV_WS_BROKEN at the end too */
    ssize_t (*write)(void *ctx, const uint8_t *data, size_t n);
    void (*message)(void *ctx, bool binary, const uint8_t *data, size_t n); /* a whole message; text is valid UTF-8 */
    void *ctx;
} sv_ws_io;

/* Messages over message_max bytes are answered with close 1009, bad UTF-8 with 1007, broken frames with 1002, or without a code when
 * already their first two bytes are impossible. */
qd_status sv_ws_new(const sv_ws_io *io, size_t message_max, sv_ws **out, qd_err *err);
void sv_ws_free(sv_ws *w);
bool sv_ws_read(sv_ws *w);  /* until the reader says AGAIN; false: broken */
bool sv_ws_write(sv_ws *w); /* until the writer says AGAIN or the queue is empty; false: broken */
/* Queue a message (copied). false: out of memory or closing, the message is not sent. */
bool sv_ws_send(sv_ws *w, bool binary, const void *data, size_t n);
void sv_ws_ping(sv_ws *w);
void sv_ws_close(sv_ws *w, int code, const char *reason); /* queue a close frame; later sends are refused */
bool sv_ws_wants_read(const sv_ws *w);
bool sv_ws_wants_write(const sv_ws *w);
bool sv_ws_close_sent(const sv_ws *w);
size_t sv_ws_queued(const sv_ws *w); /* bytes waiting to be sent, with what each message costs besides */

/* --- the numbers: one place, and tests may shrink them --- */
typedef struct sv_tuning {
    int tick_ms;   /* timers are looked at this often while sockets are open */
    int ping_ms;   /* we ping after so long */
    int silent_ms; /* a peer not heard of for so long is dead */
    int close_ms;  /* how long a close handshake, or the end of the daemon, waits for a peer */
    int slow_ms;   /* progress and metric: at most two each for a job in so long */
    int check_ms;  /* a quiet subscription looks into the log after so long, should a message have been lost */
    int window;    /* binary frames on the way without an ack */
    int rows;      /* events read from the store at once */
    int sockets_max;
    int tracks_max;      /* of one socket, and works in flight for it */
    size_t message_max;  /* bytes of one message from a client */
    size_t queue_max;    /* bytes queued for a client before it counts as too far behind */
    size_t queue_resume; /* and below which we go on feeding it */
    size_t inbox_max;    /* bytes of messages between the bus and the loop */
} sv_tuning;
extern const sv_tuning sv_tuning_default;

#define SV_WINDOW_MAX 32 /* room for sv_tuning.window */

#define SV_EARLY_MAX 8

/* --- one job followed by one socket --- */
typedef struct sv_track {
    uint64_t id; /* names it to works in flight, which may outlive it */
    char job[40];
    bool by_name; /* subscribed itself; else seen through "*" */
    bool fresh;   /* nothing was read yet, so a failure is the answer to the subscription */
    bool over;    /* its end was sent; kept under "*" so that late copies are known as such */
    enum {
        SV_READING,
        SV_LIVE,
        SV_BEHIND
    } mode;           /* reading the log; fed by the bus; waiting for the queue to drain, then reset */
    bool working;     /* a store work is in flight */
    int64_t last;     /* number of the last event sent or passed over */
    int64_t known;    /* newest number heard of on the bus while not live */
    int64_t quiet_ms; /* when it last got or checked something */
    struct {
        int64_t sent_ms[2];                /* when the last two went out, older first */
        const sv_message *held;            /* the newest one waiting for its turn, or NULL */
    } slow[2];                             /* progress, metric */
    const sv_message *early[SV_EARLY_MAX]; /* samples heard of before their events were read from the log */
    int n_early;
    struct sv_track *next;
} sv_track;

/* --- one socket --- */
typedef struct sv_peer {
    sv_loop *loop;
    uv_poll_t poll;
    int fd, watched; /* watched: events asked of uv_poll */
    void (*give_back)(void *handle);
    void *handle;
    uint8_t *extra; /* bytes that came with the request */
    size_t extra_size, extra_at, turn_bytes;
    sv_ws *ws;
    enum { SV_OPEN, SV_CLOSING, SV_LINGERING, SV_GONE } state;
    bool hello, binary, all; /* all: follows "*" */
    int64_t heard_ms, pinged_ms, deadline_ms;
    sv_track *tracks;
    int n_tracks;
    struct {
        char job[40];
        int64_t seq;
    } window[SV_WINDOW_MAX]; /* binary frames without an ack */
    int n_window;
    int refs; /* the open poll handle, and each work in flight */
    struct sv_peer *prev, *next;
} sv_peer;

/* --- the loop --- */
typedef struct sv_adoption {
    int fd;
    uint8_t *extra;
    size_t extra_size;
    void (*give_back)(void *handle);
    void *handle;
    struct sv_adoption *next;
} sv_adoption;

typedef struct sv_note {
    const sv_message *message;
    struct sv_note *next;
} sv_note;

struct sv_loop {
    sv_loop_options o;
    sv_tuning t;
    uv_loop_t uv;
    uv_async_t wake;
    uv_signal_t signals[2];
    uv_timer_t tick;
    sv_listener *listener;
    char generation[40];

    pthread_mutex_t lock; /* guards the six below */
    sv_adoption *adoptions;
    sv_note *first, **last;
    size_t inbox_bytes;
    bool stop_asked, ended; /* ended: the handles are closing, nothing is taken in any more */

    atomic_int sockets, followers; /* followers: peers with a subscription; messages are not even noted without */
    sv_peer *peers;
    uint64_t track_ids;
    bool stopping;
    int64_t stop_ms;
};

qd_status sv_loop_new_tuned(const sv_loop_options *o, const sv_tuning *t, sv_loop **out, qd_err *err);
int64_t sv_loop_now(const sv_loop *l); /* ms, monotonic */
void sv_loop_peer_gone(sv_loop *l);    /* the last one ends a stopping loop */

/* ws_peer.c */
void sv_peer_adopt(sv_loop *l, sv_adoption *a); /* takes `a` */
void sv_peer_close(sv_peer *p, int code, const char *reason);
void sv_peer_drop(sv_peer *p); /* at once; p stays until its works are back */
void sv_peer_tick(sv_peer *p, int64_t now_ms);
void sv_peer_flush(sv_peer *p); /* write what can be written, watch for the rest */
/* One more work in flight; false when there are too many. unref when it is back, after the last use of p. */
bool sv_peer_ref(sv_peer *p);
void sv_peer_unref(sv_peer *p);

/* ws_ops.c */
void sv_ops_message(sv_peer *p, bool binary, const uint8_t *data, size_t n);
/* {"op":"error", ...problem..}; job may be NULL. */
void sv_ops_error(sv_peer *p, int http_status, const char *code, const char *title, const char *detail,
                  const char *job);
void sv_ops_fail(sv_peer *p, const qd_err *err, const char *job); /* the same from a status and its words */

/* ws_track.c */
sv_track *sv_feed_find(sv_peer *p, const char *job);
void sv_feed_clear(sv_peer *p);
sv_track *sv_track_by_id(sv_peer *p, uint64_t id);
sv_track *sv_track_add(sv_peer *p, const char *job, int64_t last); /* NULL: out of memory, or too many by name */
void sv_track_remove(sv_peer *p, sv_track *t);
void sv_track_end(sv_peer *p, sv_track *t); /* its end was sent; t may be gone afterwards */
void sv_track_drop_held(sv_track *t);
void sv_track_drop_early(sv_track *t);
void sv_track_add_early(sv_peer *p, sv_track *t, const sv_message *m);
void sv_track_send_early(sv_peer *p, sv_track *t);
bool sv_peer_is_full(const sv_peer *p, size_t more); /* would `more` bytes pass the queue's limit? */
void sv_send_envelope(sv_peer *p, const char *op, const char *envelope);
void sv_send_event(sv_peer *p, const char *type, const char *envelope); /* op "event", or "end" for that type */
void sv_send_end(sv_peer *p, const sv_track *t);
void sv_send_frame(sv_peer *p, const sv_message *m); /* or not: see there */

/* ws_read.c: ask the pool for the next piece, or for a reset when behind; nothing while the queue to the client is full. */
void sv_read_start(sv_peer *p, sv_track *t);

/* ws_feed.c */
void sv_feed_follow(sv_peer *p, const char *job, int64_t after); /* job "*" = all */
void sv_feed_unfollow(sv_peer *p, const char *job);
void sv_feed_message(sv_peer *p, const sv_message *m); /* from the bus */
void sv_feed_ack(sv_peer *p, const char *job, int64_t seq);
void sv_feed_tick(sv_peer *p, int64_t now_ms);
void sv_feed_drained(sv_peer *p); /* bytes were written: go on where the queue was full */

#endif
