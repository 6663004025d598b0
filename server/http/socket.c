/* socket.c - GET /v1/ws: the handshake of RFC 6455; afterwards the socket is the event loop's. */
#include "http/http_int.h"

#include <string.h>

void sv_get_socket(sv_request *q)
{
    const char *key = sv_request_field(q, "Sec-WebSocket-Key");
    const char *version = sv_request_field(q, "Sec-WebSocket-Version");
    char accept[29];
    if (atomic_load(&q->http->draining)) {
        sv_reply_problem(q, SV_P_DRAINING, NULL, "the daemon is shutting down");
        return;
    }
    if (!sv_list_has(sv_request_field(q, "Upgrade"), "websocket") ||
        !sv_list_has(sv_request_field(q, "Connection"), "upgrade")) {
        sv_reply_field(q, "Upgrade", "websocket");
        sv_reply_problem(q, SV_P_UPGRADE_REQUIRED, NULL,
                         "this is a WebSocket: Upgrade: websocket and Connection: Upgrade are needed");
        return;
    }
    if (!version || strcmp(version, "13")) {
        sv_reply_field(q, "Sec-WebSocket-Version", "13");
        sv_reply_problem(q, SV_P_UPGRADE_REQUIRED, NULL, "Sec-WebSocket-Version must be 13, not %.20s",
                         version ? version : "absent");
        return;
    }
    if (!sv_ws_key_ok(key)) {
        sv_reply_problem(q, SV_P_BAD_REQUEST, NULL, "Sec-WebSocket-Key must be 16 bytes in base64");
        return;
    }
    const char *protocols = sv_request_field(q, "Sec-WebSocket-Protocol");
    if (protocols && !sv_list_has(protocols, "quantd.v1")) {
        sv_reply_problem(q, SV_P_BAD_REQUEST, NULL, "the only subprotocol here is quantd.v1");
        return;
    }
    sv_ws_accept(key, accept);
    sv_reply_field(q, "Upgrade", "websocket");
    sv_reply_field(q, "Sec-WebSocket-Accept", "%s", accept);
    if (protocols)
        sv_reply_field(q, "Sec-WebSocket-Protocol", "quantd.v1");
    q->reply.status = 101;
    q->reply.kind = SV_BODY_SOCKET;
}
