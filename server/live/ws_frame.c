/* ws_frame.c - frames and messages of one WebSocket by wslay, behind a face that knows only bytes in and bytes out. */
#include <stdlib.h>
#include <string.h>
#include <wslay/wslay.h>

#include "base/mem.h"
#include "live/live_int.h"

#define MESSAGE_COST 128 /* bytes that a queued message takes besides its own, roughly */

struct sv_ws {
    wslay_event_context_ptr ctx;
    sv_ws_io io;
    bool broken;  /* the bytes below us have ended */
    bool refused; /* the frames made no sense: nothing is read any more, and the close frame says so */
};

static ssize_t on_read(wslay_event_context_ptr ctx, uint8_t *data, size_t n, int flags, void *user)
{
    sv_ws *w = user;
    const ssize_t got = w->io.read(w->io.ctx, data, n);

    if (got == SV_WS_BROKEN)
        w->broken = true;
    if (got < 0)
        wslay_event_set_error(ctx, got == SV_WS_AGAIN ? WSLAY_ERR_WOULDBLOCK : WSLAY_ERR_CALLBACK_FAILURE);
    return got < 0 ? -1 : got;
}

static ssize_t on_write(wslay_event_context_ptr ctx, const uint8_t *data, size_t n, int flags, void *user)
{
    sv_ws *w = user;
    const ssize_t sent = w->io.write(w->io.ctx, data, n);

    if (sent == SV_WS_BROKEN)
        w->broken = true;
    if (sent < 0)
        wslay_event_set_error(ctx, sent == SV_WS_AGAIN ? WSLAY_ERR_WOULDBLOCK : WSLAY_ERR_CALLBACK_FAILURE);
    return sent < 0 ? -1 : sent;
}

static void on_message(wslay_event_context_ptr ctx, const struct wslay_event_on_msg_recv_arg *m, void *user)
{
    sv_ws *w = user;

    if (!wslay_is_ctrl_frame(m->opcode)) /* pings and closes are answered by wslay */
        w->io.message(w->io.ctx, m->opcode == WSLAY_BINARY_FRAME, m->msg, m->msg_length);
}

qd_status sv_ws_new(const sv_ws_io *io, size_t message_max, sv_ws **out, qd_err *err)
{
    const struct wslay_event_callbacks calls = { .recv_callback = on_read,
                                                 .send_callback = on_write,
                                                 .on_msg_recv_callback = on_message };
    sv_ws *w = qd_calloc(1, sizeof(*w));

    if (!w || wslay_event_context_server_init(&w->ctx, &calls, w) != 0) {
        qd_free(w);
        return qd_fail(err, QD_E_NOMEM, "out of memory while opening a WebSocket");
    }
    w->io = *io;
    wslay_event_config_set_max_recv_msg_length(w->ctx, message_max);
    *out = w;
    return QD_OK;
}

void sv_ws_free(sv_ws *w)
{
    if (!w)
        return;
    wslay_event_context_free(w->ctx);
    qd_free(w);
}

bool sv_ws_read(sv_ws *w)
{
    if (!w->refused && wslay_event_recv(w->ctx) != 0)
        w->refused = true;
    return !w->broken;
}

bool sv_ws_write(sv_ws *w)
{
    return wslay_event_send(w->ctx) == 0 && !w->broken;
}

bool sv_ws_send(sv_ws *w, bool binary, const void *data, size_t n)
{
    const struct wslay_event_msg m = { .opcode = binary ? WSLAY_BINARY_FRAME : WSLAY_TEXT_FRAME,
                                       .msg = data,
                                       .msg_length = n };
    return wslay_event_queue_msg(w->ctx, &m) == 0;
}

void sv_ws_ping(sv_ws *w)
{
    const struct wslay_event_msg m = { .opcode = WSLAY_PING };
    wslay_event_queue_msg(w->ctx, &m);
}

void sv_ws_close(sv_ws *w, int code, const char *reason)
{
    wslay_event_queue_close(w->ctx, (uint16_t)code, (const uint8_t *)reason, strlen(reason));
}

bool sv_ws_wants_read(const sv_ws *w)
{
    return !w->broken && !w->refused && wslay_event_want_read(w->ctx);
}

bool sv_ws_wants_write(const sv_ws *w)
{
    return !w->broken && wslay_event_want_write(w->ctx);
}

bool sv_ws_close_sent(const sv_ws *w)
{
    return wslay_event_get_close_sent(w->ctx);
}

size_t sv_ws_queued(const sv_ws *w)
{
    return wslay_event_get_queued_msg_length(w->ctx) + wslay_event_get_queued_msg_count(w->ctx) * MESSAGE_COST;
}
