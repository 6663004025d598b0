/* routes.c - the table of endpoints: dispatch, Allow and the OpenAPI document are made from it. */
#include "http/http_int.h"

#include <stdio.h>
#include <string.h>

#include "web/web.h"

static const sv_query_row list_jobs_query[] = {
    { "status", "Only these states, comma-separated.", "string" },
    { "kind", "Only this kind.", "string" },
    { "limit", "At most so many, 1 to 100; 50 when not given.", "integer" },
    { "after", "The next_cursor of the page before.", "string" },
    { "order", "desc (newest first) or asc.", "string" },
    { NULL },
};
static const sv_query_row list_models_query[] = {
    { "limit", "At most so many, 1 to 100; 50 when not given.", "integer" },
    { "after", "The next_cursor of the page before.", "string" },
    { "order", "desc (newest first) or asc.", "string" },
    { NULL },
};
static const sv_query_row name_query[] = {
    { "name", "A name: letters, digits, '.', '_' and '-'.", "string" },
    { NULL },
};
static const sv_query_row events_query[] = {
    { "after", "Only events with a higher number.", "integer" },
    { "limit", "At most so many (JSON only), 1 to 1000; 100 when not given.", "integer" },
    { NULL },
};
static const sv_query_row metrics_query[] = {
    { "name", "Only this curve.", "string" },
    { "after", "Only points with a higher event number.", "integer" },
    { "limit", "At most so many, 1 to 1000; 1000 when not given.", "integer" },
    { NULL },
};
static const sv_query_row layers_query[] = {
    { "after", "Only rows with a higher event number.", "integer" },
    { "limit", "At most so many, 1 to 1000; 1000 when not given.", "integer" },
    { NULL },
};

const sv_route sv_routes[] = {
    { "GET", "/", sv_get_root, "getRoot", "The dashboard, or the discovery document, by Accept.", SV_SCOPE_OPEN,
      SV_ANY_QUERY, NULL, "Discovery", NULL, 200, NULL },
    { "GET", "/healthz", sv_get_healthz, "getHealth", "Is the process alive?", SV_SCOPE_OPEN, SV_ANY_QUERY, NULL,
      "Health", NULL, 200, NULL },
    { "GET", "/readyz", sv_get_readyz, "getReadiness", "Does it take work, and if not, why? 503 when it does not.",
      SV_SCOPE_OPEN, SV_ANY_QUERY, NULL, "Readiness", NULL, 200, NULL },
    { "GET", "/metrics", sv_get_metrics, "getMetrics", "Figures of the daemon as Prometheus text.", SV_SCOPE_OPEN,
      SV_ANY_QUERY, NULL, NULL, "text/plain", 200, NULL },
    { "GET", "/openapi.json", sv_get_openapi, "getOpenapi", "This document.", SV_SCOPE_OPEN, SV_ANY_QUERY, NULL, "Any",
      NULL, 200, NULL },
    { "GET", "/v1/kinds", sv_get_kinds, "listKinds", "Kinds of job with their methods and parameters.", SV_SCOPE_OPEN,
      0, NULL, "KindList", NULL, 200, NULL },
    { "GET", "/v1/kinds/{kind}", sv_get_kind, "getKind", "One kind of job.", SV_SCOPE_OPEN, 0, NULL, "Kind", NULL, 200,
      NULL },
    { "HEAD", "/v1/blobs/sha256:{hex}", sv_head_blob, "headBlob", "Are these bytes here already?", SV_SCOPE_READ, 0,
      NULL, NULL, NULL, 200, NULL },
    { "POST", "/v1/models", sv_post_model, "createModel", "Upload a model: the body is the file, or {\"blob\":..}.",
      SV_SCOPE_SUBMIT, SV_TAKES_FILE | SV_NOT_DRAINING, "ModelUpload", "Model", NULL, 201, name_query },
    { "PUT", "/v1/models/{name}", sv_put_model, "putModel", "Upload a model under a name.", SV_SCOPE_SUBMIT,
      SV_TAKES_FILE | SV_NOT_DRAINING, "ModelUpload", "Model", NULL, 201, NULL },
    { "GET", "/v1/models", sv_list_models, "listModels", "Models, newest first.", SV_SCOPE_READ, 0, NULL, "ModelList",
      NULL, 200, list_models_query },
    { "GET", "/v1/models/{id}", sv_get_model, "getModel", "One model, by id or by name (the newest of it).",
      SV_SCOPE_READ, 0, NULL, "Model", NULL, 200, NULL },
    { "DELETE", "/v1/models/{id}", sv_delete_model, "deleteModel",
      "Forget a model; its bytes go with the last that uses them.", SV_SCOPE_SUBMIT, 0, NULL, NULL, NULL, 204, NULL },
    { "GET", "/v1/models/{id}/content", sv_get_model_content, "getModelContent", "The bytes as they were uploaded.",
      SV_SCOPE_READ, 0, NULL, NULL, "application/octet-stream", 200, NULL },
    { "POST", "/v1/datasets", sv_post_dataset, "createDataset",
      "Upload a data set: the body is the file or an archive, or {\"blob\":..}.", SV_SCOPE_SUBMIT,
      SV_TAKES_FILE | SV_NOT_DRAINING, "ModelUpload", "Dataset", NULL, 201, name_query },
    { "PUT", "/v1/datasets/{name}", sv_put_dataset, "putDataset", "Upload a data set under a name.", SV_SCOPE_SUBMIT,
      SV_TAKES_FILE | SV_NOT_DRAINING, "ModelUpload", "Dataset", NULL, 201, NULL },
    { "GET", "/v1/datasets", sv_list_datasets, "listDatasets", "Data sets, newest first.", SV_SCOPE_READ, 0, NULL,
      "DatasetList", NULL, 200, list_models_query },
    { "GET", "/v1/datasets/{id}", sv_get_dataset, "getDataset", "One data set, by id or by name (the newest of it).",
      SV_SCOPE_READ, 0, NULL, "Dataset", NULL, 200, NULL },
    { "DELETE", "/v1/datasets/{id}", sv_delete_dataset, "deleteDataset",
      "Forget a data set; its bytes go with the last that uses them.", SV_SCOPE_SUBMIT, 0, NULL, NULL, NULL, 204,
      NULL },
    { "GET", "/v1/datasets/{id}/content", sv_get_dataset_content, "getDatasetContent",
      "The bytes as they were uploaded.", SV_SCOPE_READ, 0, NULL, NULL, "application/octet-stream", 200, NULL },
    { "POST", "/v1/estimates", sv_post_estimate, "createEstimate",
      "What a job would cost, by the same body; nothing is queued or kept.", SV_SCOPE_READ, SV_TAKES_JSON, "JobRequest",
      "Estimate", NULL, 200, NULL },
    { "POST", "/v1/jobs", sv_post_job, "createJob", "Submit a job.", SV_SCOPE_SUBMIT, SV_TAKES_JSON | SV_NOT_DRAINING,
      "JobRequest", "Job", NULL, 202, NULL },
    { "GET", "/v1/jobs", sv_list_jobs, "listJobs", "Jobs, newest first.", SV_SCOPE_READ, 0, NULL, "JobList", NULL, 200,
      list_jobs_query },
    { "PUT", "/v1/jobs/{client_id}", sv_put_job, "putJob", "Submit a job under an id of the client's own; idempotent.",
      SV_SCOPE_SUBMIT, SV_TAKES_JSON | SV_NOT_DRAINING, "JobRequest", "Job", NULL, 202, NULL },
    { "GET", "/v1/jobs/{id}", sv_get_job, "getJob", "One job.", SV_SCOPE_READ, 0, NULL, "Job", NULL, 200, NULL },
    { "DELETE", "/v1/jobs/{id}", sv_delete_job, "deleteJob", "Forget a finished job and its files.", SV_SCOPE_SUBMIT, 0,
      NULL, NULL, NULL, 204, NULL },
    { "POST", "/v1/jobs/{id}/cancel", sv_cancel_job, "cancelJob", "Stop a job; idempotent.", SV_SCOPE_SUBMIT, 0, NULL,
      "Cancellation", NULL, 200, NULL },
    { "POST", "/v1/jobs/{id}/retry", sv_retry_job, "retryJob",
      "Try a failed, dead or canceled job again, as a new job; the same one while it is unfinished.", SV_SCOPE_SUBMIT,
      SV_NOT_DRAINING, NULL, "Job", NULL, 202, NULL },
    { "GET", "/v1/jobs/{id}/attempts", sv_get_attempts, "listAttempts", "One row for each try.", SV_SCOPE_READ, 0, NULL,
      "AttemptList", NULL, 200, NULL },
    { "GET", "/v1/jobs/{id}/events", sv_get_events, "listEvents",
      "Events: JSON, NDJSON or server-sent events by Accept.", SV_SCOPE_READ, SV_NO_HEAD, NULL, "EventList", NULL, 200,
      events_query },
    { "GET", "/v1/jobs/{id}/metrics", sv_get_job_metrics, "listMetrics", "Points of the job's curves.", SV_SCOPE_READ,
      0, NULL, "MetricList", NULL, 200, metrics_query },
    { "GET", "/v1/jobs/{id}/layers", sv_get_layers, "listLayers", "Figures for each layer.", SV_SCOPE_READ, 0, NULL,
      "LayerList", NULL, 200, layers_query },
    { "GET", "/v1/jobs/{id}/samples", sv_list_samples, "listSamples", "Images the job made.", SV_SCOPE_READ, 0, NULL,
      "SampleList", NULL, 200, NULL },
    { "GET", "/v1/jobs/{id}/samples/{n}", sv_get_sample, "getSample", "One image.", SV_SCOPE_READ, 0, NULL, NULL,
      "image/png", 200, NULL },
    { "GET", "/v1/jobs/{id}/artifacts", sv_list_artifacts, "listArtifacts", "Files the job made.", SV_SCOPE_READ, 0,
      NULL, "ArtifactList", NULL, 200, NULL },
    { "GET", "/v1/jobs/{id}/artifacts/{name}", sv_get_artifact, "getArtifact", "One file.", SV_SCOPE_READ, 0, NULL,
      NULL, "application/octet-stream", 200, NULL },
    { "GET", "/v1/ws", sv_get_socket, "openSocket", "WebSocket, subprotocol quantd.v1.", SV_SCOPE_READ, SV_NO_HEAD,
      NULL, NULL, NULL, 101, NULL },
    { NULL },
};

/* Files of the dashboard stand beside the table: every path web/ has. */
static const sv_route asset_route = { "GET",         "/{asset}",   sv_get_asset, "getAsset", "A file of the dashboard.",
                                      SV_SCOPE_OPEN, SV_ANY_QUERY, NULL,         NULL,       NULL,
                                      200,           NULL };

static bool method_fits(const sv_route *r, const char *method)
{
    if (!strcmp(r->method, method))
        return true;
    return !strcmp(method, "HEAD") && !strcmp(r->method, "GET") && !(r->flags & SV_NO_HEAD);
}

static void add_allow(char allow[64], const char *method)
{
    const size_t n = strlen(allow);
    snprintf(allow + n, 64 - n, "%s%s", n ? ", " : "", method);
}

const sv_route *sv_route_find(const char *method, const sv_target *t, const char *captures[2], sv_problem *problem,
                              char allow[64])
{
    bool there = false;
    allow[0] = '\0';
    for (const sv_route *r = sv_routes; r->method; r++) {
        if (!sv_path_match(r->pattern, t, captures))
            continue;
        if (method_fits(r, method))
            return r;
        there = true;
        add_allow(allow, r->method);
        if (!strcmp(r->method, "GET") && !(r->flags & SV_NO_HEAD))
            add_allow(allow, "HEAD");
    }
    if (!there && sv_asset_find(t->path)) {
        if (method_fits(&asset_route, method))
            return &asset_route;
        there = true;
        add_allow(allow, "GET, HEAD");
    }
    if (there)
        add_allow(allow, "OPTIONS");
    *problem = there ? SV_P_METHOD_NOT_ALLOWED : SV_P_NOT_FOUND;
    return NULL;
}
