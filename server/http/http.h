/* http.h - requests in, replies out, over libmicrohttpd. Handlers turn a request into a reply and never compute. */
#ifndef SV_HTTP_HTTP_H
#define SV_HTTP_HTTP_H

#include "base/err.h"
#include "jobs/jobs.h"
#include "live/live.h"
#include "settings.h"
#include "store/store.h"

typedef struct sv_http sv_http;
typedef struct sv_http_options {
    const sv_settings *settings;
    sv_store *store;
    sv_bus *bus;
    sv_loop *loop;
    sv_workers *workers;
    int64_t started_ms;
} sv_http_options;

qd_status sv_http_start(const sv_http_options *o, sv_http **out, qd_err *err);
int sv_http_port(const sv_http *h);
void sv_http_drain(sv_http *h); /* readiness DRAINING, new submissions 503 */
void sv_http_stop(sv_http *h);  /* stops listening, ends streams, joins, frees */

/* OpenAPI 3.1 and events documents made from the tables (qd_free), for `quantd schema` and GET /openapi.json. */
char *sv_openapi_text(void);
char *sv_events_schema_text(void);

#endif
