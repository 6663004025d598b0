/* openapi.c - the OpenAPI 3.1 document and the schema of events, made from the tables that answer requests. */
#include "http/http_int.h"
#include "http/schemas_int.h"

#include <stdio.h>
#include <string.h>

#include "base/mem.h"

static int add_piece(const char *data, size_t n, void *ctx)
{
    return qd_buf_add(ctx, data, n) ? 0 : -1;
}

/* Indented for people and for diffs; takes the reference. */
static char *document(json_t *o)
{
    qd_buf b;
    char *text = NULL;
    qd_buf_init(&b, 0);
    if (o && !json_dump_callback(o, add_piece, &b, JSON_INDENT(1)) && qd_buf_adds(&b, "\n"))
        text = qd_buf_take(&b, NULL);
    qd_buf_clear(&b);
    json_decref(o);
    return text;
}

static json_t *schema_ref(const char *name)
{
    if (!strcmp(name, "Any"))
        return json_pack("{ss}", "type", "object");
    return json_pack("{so}", "$ref", json_sprintf("#/components/schemas/%s", name));
}

/* {name} in the pattern and ?name= of the query. */
static json_t *parameters(const sv_route *r)
{
    json_t *list = json_array();
    for (const char *p = r->pattern; (p = strchr(p, '{')); p++) {
        const size_t n = strcspn(p + 1, "}");
        json_array_append_new(list, json_pack("{so ss sb s{ss}}", "name", json_stringn(p + 1, n), "in", "path",
                                              "required", 1, "schema", "type", "string"));
    }
    for (const sv_query_row *row = r->query; row && row->name; row++)
        json_array_append_new(list, json_pack("{ss ss ss s{ss}}", "name", row->name, "in", "query", "description",
                                              row->summary, "schema", "type", row->type));
    if (r->flags & SV_TAKES_JSON)
        json_array_append_new(list, json_pack("{ss ss ss s{ss}}", "name", "Prefer", "in", "header", "description",
                                              "wait=N: answer when the job is over, at most 30 seconds.", "schema",
                                              "type", "string"));
    if (!strcmp(r->operation, "createJob"))
        json_array_append_new(list, json_pack("{ss ss ss s{ss}}", "name", "Idempotency-Key", "in", "header",
                                              "description", "Kept 24 hours: the same key and body are the same job.",
                                              "schema", "type", "string"));
    if (!strcmp(r->operation, "listEvents"))
        json_array_append_new(list, json_pack("{ss ss ss s{ss}}", "name", "Last-Event-ID", "in", "header",
                                              "description", "Replay after this number.", "schema", "type", "string"));
    return list;
}

static json_t *request_body(const sv_route *r)
{
    json_t *content = json_object();
    if (r->flags & SV_TAKES_FILE) {
        json_object_set_new(content, "application/octet-stream", json_object());
        json_object_set_new(content, "application/json", json_pack("{so}", "schema", schema_ref("ModelReference")));
    } else {
        json_object_set_new(content, "application/json", json_pack("{so}", "schema", schema_ref(r->request)));
    }
    return json_pack("{sb so}", "required", 1, "content", content);
}

static json_t *responses(const sv_route *r)
{
    char code[8];
    json_t *good = json_pack("{ss}", "description", r->status == 101 ? "Switching to WebSocket." : "As asked.");
    if (r->response || r->media) {
        json_t *content = json_object();
        json_object_set_new(content, r->media ? r->media : "application/json",
                            r->response ? json_pack("{so}", "schema", schema_ref(r->response)) : json_object());
        if (!strcmp(r->operation, "getRoot"))
            json_object_set_new(content, "text/html", json_object());
        if (!strcmp(r->operation, "listEvents")) {
            json_object_set_new(content, "text/event-stream", json_object());
            json_object_set_new(content, "application/x-ndjson", json_object());
        }
        json_object_set_new(good, "content", content);
    }
    snprintf(code, sizeof code, "%d", r->status);
    json_t *all = json_object();
    json_object_set_new(all, code, good);
    if (r->status == 202 || r->status == 201) /* submitted or uploaded before: the same thing again */
        json_object_set(all, "200", good);
    json_object_set_new(all, "default", json_pack("{ss}", "$ref", "#/components/responses/Problem"));
    return all;
}

static json_t *operation(const sv_route *r)
{
    static const char *const scopes[] = { "open", "read", "submit", "admin" };
    json_t *o =
        json_pack("{ss ss ss}", "operationId", r->operation, "summary", r->summary, "x-scope", scopes[r->scope]);
    json_t *list = parameters(r);
    if (json_array_size(list))
        json_object_set(o, "parameters", list);
    json_decref(list);
    if (r->request)
        json_object_set_new(o, "requestBody", request_body(r));
    json_object_set_new(o, "responses", responses(r));
    return o;
}

static json_t *paths(void)
{
    json_t *all = json_object();
    for (const sv_route *r = sv_routes; r->method; r++) {
        char method[16];
        size_t i = 0;
        for (; r->method[i] && i + 1 < sizeof method; i++)
            method[i] = (char)(r->method[i] | 0x20);
        method[i] = '\0';
        json_t *path = json_object_get(all, r->pattern);
        if (!path) {
            path = json_object();
            json_object_set_new(all, r->pattern, path);
        }
        json_object_set_new(path, method, operation(r));
    }
    return all;
}

char *sv_openapi_text(void)
{
    json_t *problem = json_pack("{ss s{s{so}}}", "description", "What is wrong, in words (RFC 9457).", "content",
                                "application/problem+json", "schema", schema_ref("Problem"));
    return document(json_pack("{ss s{ss ss ss s{ss}} so s{so s{so}}}", "openapi", "3.1.0", "info", "title", "quantd",
                              "version", SV_VERSION, "summary", "Makes trained networks smaller, as a service.",
                              "license", "name", "MIT", "paths", paths(), "components", "schemas", sv_schemas(),
                              "responses", "Problem", problem));
}

char *sv_events_schema_text(void)
{
    json_t *cases = json_array(), *types = json_array(), *data = sv_event_types(), *schema;
    const char *type;
    json_object_foreach(data, type, schema)
    {
        json_array_append_new(types, json_string(type));
        json_array_append_new(cases, json_pack("{s{s{ss} sO}}", "properties", "type", "const", type, "data", schema));
    }
    json_decref(data);
    json_t *event = sv_schema("Event");
    json_object_set_new(json_object_get(json_object_get(event, "properties"), "type"), "enum", types);
    json_object_set_new(event, "oneOf", cases);
    json_object_set_new(event, "$schema", json_string("https://json-schema.org/draft/2020-12/schema"));
    json_object_set_new(event, "title", json_string("One event of a job"));
    return document(event);
}
