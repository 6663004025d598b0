/* http_int.h - what the files of this room share: requests, replies, routes, parsers of strangers' bytes, parked connections. */
#ifndef SV_HTTP_INT_H
#define SV_HTTP_INT_H

#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/fs.h"
#include "http/http.h"

typedef struct sv_request sv_request;
typedef struct sv_upload sv_upload;
typedef struct sv_stream sv_stream;
typedef struct sv_intake sv_intake;

/* --- target.c: the request target, decoded exactly once --- */
enum { SV_MAX_SEGMENTS = 8, SV_MAX_QUERY = 16, SV_MAX_TARGET_BYTES = 8192 };
typedef struct sv_query_pair {
    const char *name, *value;
} sv_query_pair;
typedef struct sv_target {
    char *memory;                          /* everything below points into it */
    const char *authority;                 /* of an absolute-form target, or NULL */
    const char *path;                      /* decoded, for the asset table and for messages */
    const char *segments[SV_MAX_SEGMENTS]; /* decoded; "/" has none */
    int segment_count;                     /* SV_MAX_SEGMENTS + 1 = deeper than anything here */
    sv_query_pair query[SV_MAX_QUERY];
    int query_count;
} sv_target;
/* QD_E_INVALID for bytes that must not be there: bad escapes, NUL and other controls, escaped slashes, "." and "..", not UTF-8,
 * a name given twice. QD_E_LIMIT: longer than SV_MAX_TARGET_BYTES or more than SV_MAX_QUERY pairs. */
qd_status sv_target_parse(const char *raw, sv_target *out, qd_err *err);
void sv_target_clear(sv_target *t);
const char *sv_target_query(const sv_target *t, const char *name); /* lent, NULL when absent */
/* Does the pattern ("/v1/jobs/{id}/events") fit? captures get the segments that stand in braces, lent. */
bool sv_path_match(const char *pattern, const sv_target *t, const char *captures[2]);

/* --- fields.c: values of header fields --- */
typedef enum sv_range_kind { SV_RANGE_NONE, SV_RANGE_ONE, SV_RANGE_UNSATISFIABLE } sv_range_kind;
/* RFC 9110 14.2 over `size` bytes. Absent, malformed, other units and several ranges count as NONE (the whole is sent). */
sv_range_kind sv_range_parse(const char *field, uint64_t size, uint64_t *first, uint64_t *length);
/* Is `etag` (quoted, strong) in an If-None-Match list? Weak comparison; "*" fits everything. */
bool sv_etag_in(const char *field, const char *etag);
/* Index of the offered type the Accept field likes best (earlier wins a tie), -1 when it refuses all. NULL field = anything. */
int sv_accept_pick(const char *field, const char *const *offered, int n);
/* Prefer: wait=N. Seconds 0..30, -1 when not asked for. */
int sv_prefer_wait(const char *field);
/* Whole decimal number in [min, max]; nothing else around it. */
bool sv_parse_int64(const char *text, int64_t min, int64_t max, int64_t *out);
/* The type/subtype of a Content-Type, without parameters, is `type`? */
bool sv_content_type_is(const char *field, const char *type);
/* A comma-separated list holds the token (case-insensitive)? For Connection and Sec-WebSocket-Protocol. */
bool sv_list_has(const char *field, const char *token);
/* Nested no deeper than `limit` arrays and objects? Only brackets outside strings count. */
bool sv_json_depth_ok(const char *text, size_t size, int limit);

/* --- sha1.c: for the WebSocket handshake alone (RFC 6455 4.2.2) --- */
void sv_sha1(const void *data, size_t n, uint8_t digest[20]);
bool sv_ws_key_ok(const char *key);               /* base64 of 16 bytes */
void sv_ws_accept(const char *key, char out[29]); /* key of 24 characters */

/* --- auth.c: who may speak to us --- */
/* Host: a loopback name or address or the configured one, with any port. A daemon bound to every address takes address literals. */
bool sv_host_allowed(const char *host, const char *listen_host);
/* Origin: the same host and port as Host says. "null" is another. */
bool sv_origin_matches(const char *origin, const char *host);
bool sv_is_loopback(const char *name);

/* --- replies --- */
typedef enum sv_body {
    SV_BODY_NONE,
    SV_BODY_BYTES, /* owned */
    SV_BODY_LENT,  /* static storage */
    SV_BODY_FILE,  /* fd, offset, size */
    SV_BODY_STREAM,
    SV_BODY_SOCKET, /* 101 */
} sv_body;
typedef struct sv_field {
    char *name, *value;
} sv_field;
typedef struct sv_reply {
    int status; /* 0 = not made yet */
    sv_body kind;
    char *bytes;
    const char *lent;
    uint64_t offset, size; // bytes
    int fd;
    sv_stream *stream;
    sv_field fields[16];
    int field_count;
    bool close;         /* the connection ends with this reply */
    bool cache_decided; /* somebody set Cache-Control */
} sv_reply;

/* One row for every kind of trouble HTTP itself can be in; what the core says comes through sv_reply_error. */
typedef enum sv_problem {
    SV_P_BAD_REQUEST,
    SV_P_MALFORMED_JSON,
    SV_P_INVALID_QUERY,
    SV_P_FORBIDDEN_HOST,
    SV_P_FORBIDDEN_ORIGIN,
    SV_P_NOT_FOUND,
    SV_P_METHOD_NOT_ALLOWED,
    SV_P_NOT_ACCEPTABLE,
    SV_P_CONFLICT,
    SV_P_PRUNED,
    SV_P_TOO_LARGE,
    SV_P_TARGET_TOO_LONG,
    SV_P_UNSUPPORTED_TYPE,
    SV_P_RANGE,
    SV_P_INVALID_PARAM,
    SV_P_INVALID_MODEL,
    SV_P_INVALID_DATASET,
    SV_P_KEY_REUSED,
    SV_P_UPGRADE_REQUIRED,
    SV_P_FIELDS_TOO_LARGE,
    SV_P_DRAINING,
    SV_P_OVERLOADED,
    SV_P_STORAGE_FULL,
    SV_P_INTERNAL,
} sv_problem;

void sv_reply_init(sv_reply *r);
void sv_reply_clear(sv_reply *r); /* also ends a stream nobody took */
void sv_reply_field(sv_request *q, const char *name, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void sv_reply_json(sv_request *q, int status, json_t *body); /* takes the reference; NULL body = out of memory */
void sv_reply_text(sv_request *q, int status, const char *type, char *text, size_t size); /* takes text (qd_free) */
void sv_reply_lent(sv_request *q, int status, const char *type, const void *data, size_t size);
void sv_reply_empty(sv_request *q, int status);
/* problem+json. pointer may be NULL; a JSON pointer, or a query parameter's name. Replaces a reply made before. */
void sv_reply_problem(sv_request *q, sv_problem p, const char *pointer, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* The status of a failed call and its words. IO and INTERNAL words go to the log, not to strangers. */
void sv_reply_error(sv_request *q, qd_status st, const qd_err *err, const char *pointer);
/* The Repr-Digest field (RFC 9530) of a body whose SHA-256 is known. */
void sv_repr_digest(sv_request *q, const char *sha256_hex);
typedef struct sv_file_reply {
    const char *path; /* absolute */
    const char *mime;
    const char *filename; /* Content-Disposition, or NULL */
    const char *sha256;   /* strong ETag and Repr-Digest, or NULL: the ETag comes from inode, size and time */
    bool inline_view;
} sv_file_reply;
/* GET and HEAD of a file: Range, If-Range, If-None-Match. (file.c) */
void sv_reply_file(sv_request *q, const sv_file_reply *f);
/* A body already in memory with a strong ETag: 200 or 304. */
void sv_reply_asset(sv_request *q, const char *type, const char *etag, const void *data, size_t size);

/* --- parked connections: park.c. A pool thread never waits; a connection that must is suspended until woken or due. --- */
typedef struct sv_park {
    struct sv_park *prev, *next;
    sv_http *http;
    void *connection;
    int64_t due_ms; /* monotonic; when the ticker wakes it anyway */
    bool suspended, woken, listed;
} sv_park;
int64_t sv_mono_ms(void);
void sv_park_open(sv_park *p, sv_http *h, void *connection);
void sv_park_close(sv_park *p);
/* Suspends until woken or due and says true; false when a wake came before: go on at once. Only from libmicrohttpd's callbacks. */
bool sv_park_wait(sv_park *p, int64_t due_ms);
void sv_park_wake(sv_park *p);
void sv_park_wake_at(sv_park *p, int64_t when_ms); /* no later than that */

/* --- routes --- */
typedef enum sv_scope { SV_SCOPE_OPEN, SV_SCOPE_READ, SV_SCOPE_SUBMIT, SV_SCOPE_ADMIN } sv_scope;
enum {
    SV_TAKES_JSON = 1,   /* a JSON object is required */
    SV_TAKES_FILE = 2,   /* the body is a file, streamed to disk */
    SV_NOT_DRAINING = 4, /* 503 while draining */
    SV_ANY_QUERY = 8,    /* parameters in the query are nobody's business */
    SV_NO_HEAD = 16,
};
typedef struct sv_query_row {
    const char *name, *summary, *type; /* JSON Schema type */
} sv_query_row;
typedef struct sv_route {
    const char *method, *pattern;
    void (*handle)(sv_request *q);
    const char *operation, *summary;
    sv_scope scope;
    unsigned flags;
    const char *request, *response; /* schema names, or NULL */
    const char *media;              /* of the reply when not application/json */
    int status;                     /* when all goes well */
    const sv_query_row *query;      /* ends with a NULL name; NULL = none */
} sv_route;
extern const sv_route sv_routes[]; /* ends with a NULL method */
/* The row for method and path; NULL with *problem NOT_FOUND or METHOD_NOT_ALLOWED, and then `allow` lists what fits. */
const sv_route *sv_route_find(const char *method, const sv_target *t, const char *captures[2], sv_problem *problem,
                              char allow[64]);

/* --- requests --- */
struct sv_request {
    sv_http *http;
    void *connection; /* libmicrohttpd's */
    char id[40];      /* "req_..." */
    char *raw_target;
    sv_target target;
    const char *method; /* lent by the connection */
    bool head, begun;
    bool
        parked; /* the last call of the handler left the connection suspended; the reply is then another thread's to make */
    const sv_route *route;
    const char *captures[2];
    int64_t content_length; // bytes; -1 = unknown (chunked) or none
    bool has_body, expects_continue;
    qd_buf body;
    uint64_t swallowed; // bytes of a body nobody wants
    sv_upload *upload;
    sv_park park;
    void *state; /* a handler's own, between its calls */
    void (*state_free)(void *state);
    sv_reply reply;
};
const char *sv_request_field(const sv_request *q, const char *name); /* lent, NULL when absent */
/* The body as a JSON object (borrowed: json_decref it), or NULL with a problem made. */
json_t *sv_request_json(sv_request *q);
/* A query parameter as a number in [min, max]; `fallback` when absent; false with a problem made. */
bool sv_request_int(sv_request *q, const char *name, int64_t min, int64_t max, int64_t fallback, int64_t *out);

struct sv_http {
    sv_http_options o;
    struct MHD_Daemon *daemon;
    int port, listen_fd;
    atomic_bool draining, stopping;
    atomic_int requests_open;
    atomic_int sockets_open;
    atomic_uint_fast64_t requests[8][600]; /* by method and code, for /metrics */
    pthread_mutex_t files_lock;            /* publishing and deleting of blobs and models/ */
    sv_intake *intake;
    /* park.c, under park_lock */
    pthread_mutex_t park_lock;
    pthread_cond_t park_cond;
    pthread_t park_thread;
    bool park_running;
    sv_park *parks;
    struct sv_peer *peers; /* open connections, with the time by which they must have said something */
};
qd_status sv_parks_start(sv_http *h, qd_err *err);
void sv_parks_stop(sv_http *h);
void sv_parks_wake_all(sv_http *h);
/* A connection that dribbles its header is cut off. due_ms 0 = a request is being answered. */
typedef struct sv_peer {
    struct sv_peer *prev, *next;
    int fd;
    int64_t due_ms; // monotonic
} sv_peer;
void sv_peer_add(sv_http *h, sv_peer *p);
void sv_peer_remove(sv_http *h, sv_peer *p);
void sv_peer_due(sv_http *h, sv_peer *p, int64_t due_ms);

/* mhd.c, for park.c and stream.c */
void sv_mhd_suspend(void *connection);
void sv_mhd_resume(void *connection);
int sv_mhd_fd(void *connection);

extern const char *const sv_method_names[8]; /* rows of sv_http.requests; the last is "OTHER" */

/* --- collections.c: what may be uploaded, a row each --- */
typedef struct sv_collection {
    const char *noun, *prefix;                /* "data set", and of its ids: "dst_" */
    const char *folder;                       /* below the data folder, and in paths: /v1/FOLDER */
    const char *file;                         /* what a single file is called in its tree, */
    const char *(*file_of)(const char *path); /* unless its bytes tell another name; may be NULL, and give it */
    sv_problem invalid;
    int max_entries; /* of an archive */
    bool (*is_archive)(const char *path);
    /* Say what a stranger's tree holds, and at which path below it that begins ("" = at its top). All are the caller's (qd_free). */
    qd_status (*look_into)(const sv_settings *s, const char *tree, char **root, char **format, char **role,
                           char **summary, qd_err *err);
    qd_status (*add)(sv_store *s, const sv_model_row *row, sv_model_row *out, bool *existing, qd_err *err);
    qd_status (*get)(sv_store *s, const char *id_or_name, sv_model_row *out, qd_err *err);
    qd_status (*list)(sv_store *s, const sv_list_query *q, sv_model_row **rows, int *n, bool *more, qd_err *err);
    qd_status (*remove)(sv_store *s, const char *id, bool *last, bool *last_of_blob, qd_err *err);
    bool (*pruned)(sv_store *s, const char *id);
    json_t *(*json)(const sv_model_row *row);
} sv_collection;
extern const sv_collection sv_models, sv_datasets;

/* --- upload.c --- */
qd_status sv_intake_start(sv_http *h, qd_err *err);
void sv_intake_stop(sv_http *h); /* finishes what it has in hand, refuses the rest, joins */
void sv_intake_free(sv_http *h); /* when no request is left */
/* Room on disk, size under the limit? Makes a problem and says false otherwise. */
bool sv_upload_begin(sv_request *q);
void sv_upload_data(sv_request *q, const void *data, size_t n); /* makes a problem when it cannot go on */
void sv_upload_free(sv_upload *u);                              /* removes whatever is in tmp/ */
/* Register blob data_dir/blobs/<sha256> (when upload is NULL) or the upload; runs on an intake thread while the connection is
 * parked; makes the reply in the end. */
void sv_intake_take(sv_request *q, const sv_collection *into, const char *name, const char *blob_sha256);
bool sv_upload_name_ok(const char *name);                           /* no id's prefix in front */
char *sv_http_path(const sv_http *h, const char *a, const char *b); /* data_dir/a[/b], qd_free */

/* --- stream.c --- */
/* Events of a job after a number as SSE or NDJSON. */
void sv_reply_stream(sv_request *q, const char *job_id, int64_t after, bool sse);
/* >0 bytes written, 0 = parked, -1 = the end. */
long sv_stream_read(sv_stream *s, char *buf, size_t max);
void sv_stream_free(sv_stream *s);

/* --- handlers: api_system.c, api_models.c, api_jobs.c, api_results.c, socket.c --- */
void sv_get_root(sv_request *q);
void sv_get_asset(sv_request *q);
void sv_get_healthz(sv_request *q);
void sv_get_readyz(sv_request *q);
void sv_get_metrics(sv_request *q);
void sv_get_openapi(sv_request *q);
void sv_get_kinds(sv_request *q);
void sv_get_kind(sv_request *q);
void sv_post_model(sv_request *q);
void sv_put_model(sv_request *q);
void sv_list_models(sv_request *q);
void sv_get_model(sv_request *q);
void sv_get_model_content(sv_request *q);
void sv_delete_model(sv_request *q);
void sv_post_dataset(sv_request *q);
void sv_put_dataset(sv_request *q);
void sv_list_datasets(sv_request *q);
void sv_get_dataset(sv_request *q);
void sv_get_dataset_content(sv_request *q);
void sv_delete_dataset(sv_request *q);
void sv_head_blob(sv_request *q);
void sv_post_estimate(sv_request *q);
void sv_post_job(sv_request *q);
void sv_put_job(sv_request *q);
void sv_list_jobs(sv_request *q);
void sv_get_job(sv_request *q);
void sv_delete_job(sv_request *q);
void sv_cancel_job(sv_request *q);
void sv_retry_job(sv_request *q);
void sv_get_attempts(sv_request *q);
void sv_get_events(sv_request *q);
void sv_get_job_metrics(sv_request *q);
void sv_get_layers(sv_request *q);
void sv_list_samples(sv_request *q);
void sv_get_sample(sv_request *q);
void sv_list_artifacts(sv_request *q);
void sv_get_artifact(sv_request *q);
void sv_get_socket(sv_request *q);

bool sv_json_dump(const json_t *value,
                  qd_buf *out);        /* compact, with a final newline; out is initialised here, cleared on false */
bool sv_job_over(const sv_job_row *j); /* its state is final */
/* {"object":"list","data":[..],"has_more":..,"next_cursor":..}; takes data. */
json_t *sv_list_json(json_t *data, bool more, const char *cursor);
bool sv_request_order(sv_request *q, bool *ascending); /* ?order=asc|desc; false with a problem made */
void sv_reply_list_error(sv_request *q, qd_status st,
                         const qd_err *err); /* an unknown cursor is the client's mistake */
/* The job, or a 404 or 410 made. */
bool sv_find_job(sv_request *q, const char *id, sv_job_row *out);

#endif
