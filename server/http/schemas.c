/* schemas.c - the shapes of what goes in and out, one row for each field, as JSON Schema. */
#include "http/http_int.h"
#include "http/schemas_int.h"

#include <string.h>

/* Types: a JSON type; "time" (RFC 3339); "any"; "=word" a constant; "@Name" another schema; "[Name" a list of it. '?' in front:
 * may be null. '!' in front of a field's name: required. */
typedef struct field_row {
    const char *schema, *name, *type, *summary;
} field_row;

static const field_row fields[] = {
    { "Discovery", "!object", "=discovery", NULL },
    { "Discovery", "!name", "string", NULL },
    { "Discovery", "!version", "string", NULL },
    { "Discovery", "!documentation", "string", "Where the OpenAPI document is." },
    { "Discovery", "!links", "object", "Paths by operation." },

    { "Health", "!status", "=ok", NULL },
    { "Health", "!version", "string", NULL },
    { "Health", "!uptime_s", "integer", "Seconds since the start." },

    { "Readiness", "!status", "string", "READY, BUSY, DRAINING or DEGRADED." },
    { "Readiness", "!reason", "string", "Why it is not READY; empty when it is." },
    { "Readiness", "!workers", "integer", NULL },
    { "Readiness", "!running", "integer", "Jobs running." },
    { "Readiness", "!queued", "integer", "Jobs waiting." },

    { "Problem", "!type", "string", "https://quantd.dev/problems/ and the code." },
    { "Problem", "!title", "string", NULL },
    { "Problem", "!status", "integer", "The HTTP status." },
    { "Problem", "!code", "string", "The kind of trouble, for programs." },
    { "Problem", "!detail", "string", "Which thing, which value, which limit." },
    { "Problem", "!request_id", "string", "The same as X-Request-Id." },
    { "Problem", "!retryable", "boolean", "Could the same request succeed later?" },
    { "Problem", "param", "string", "JSON pointer into the body, or the name of a query parameter." },
    { "Problem", "errors", "[ProblemItem", NULL },
    { "ProblemItem", "!pointer", "string", NULL },
    { "ProblemItem", "!detail", "string", NULL },

    { "Kind", "!object", "=kind", NULL },
    { "Kind", "!name", "string", NULL },
    { "Kind", "!summary", "string", NULL },
    { "Kind", "!default_method", "string", NULL },
    { "Kind", "!model_roles", "[String", "Roles of models it takes." },
    { "Kind", "!takes_float", "boolean", NULL },
    { "Kind", "!takes_quantized", "boolean", NULL },
    { "Kind", "!methods", "[KindMethod", NULL },
    { "Kind", "max_drop_metrics", "[String", "What max_drop may name." },
    { "KindMethod", "!name", "string", NULL },
    { "KindMethod", "!summary", "string", NULL },
    { "KindMethod", "!params", "object", "JSON Schema of params." },
    { "KindMethod", "!presets", "object", "What each preset sets." },

    { "ModelReference", "!blob", "string", "sha256: and 64 hexadecimal digits: bytes that are here already." },
    { "ModelReference", "name", "string", NULL },
    { "Model", "!id", "string", NULL },
    { "Model", "!object", "=model", NULL },
    { "Model", "!name", "?string", NULL },
    { "Model", "!sha256", "string", "Of the bytes as they were uploaded." },
    { "Model", "!size_bytes", "integer", NULL },
    { "Model", "!format", "string", NULL },
    { "Model", "!role", "string", NULL },
    { "Model", "!summary", "object", "What was read without loading the weights." },
    { "Model", "!job", "?string", "The job that made it." },
    { "Model", "!created_at", "time", NULL },
    { "Model", "!links", "object", NULL },

    { "Dataset", "!id", "string", NULL },
    { "Dataset", "!object", "=dataset", NULL },
    { "Dataset", "!name", "?string", NULL },
    { "Dataset", "!sha256", "string", "Of the bytes as they were uploaded." },
    { "Dataset", "!size_bytes", "integer", NULL },
    { "Dataset", "!format", "string", NULL },
    { "Dataset", "!role", "string", "labelled, unlabelled, or context." },
    { "Dataset", "!summary", "object", "Count, sizes, classes, and mean and deviation of the pixels in 0..1." },
    { "Dataset", "!job", "?string", "The job that made it." },
    { "Dataset", "!created_at", "time", NULL },
    { "Dataset", "!links", "object", NULL },

    { "Estimate", "!object", "=estimate", NULL },
    { "Estimate", "!kind", "string", NULL },
    { "Estimate", "!method", "string", NULL },
    { "Estimate", "!model", "string", NULL },
    { "Estimate", "!output", "?@EstimateOutput", "Constants before and after; null when the job makes no model." },
    { "Estimate", "!memory", "@EstimateMemory", NULL },
    { "Estimate", "!macs", "?number", "Multiply-adds of the whole job, where its parameters tell." },
    { "Estimate", "!seconds", "?@EstimateSeconds", "Of running; null when nothing is known." },
    { "Estimate", "!unsupported", "[String", "What cannot be done with this model, or is left as it is." },
    { "EstimateOutput", "!float_bytes", "integer", NULL },
    { "EstimateOutput", "!quantized_bytes", "integer", NULL },
    { "EstimateOutput", "!ratio", "number", NULL },
    { "EstimateMemory", "!weights_bytes", "integer", "Weights and the copies that plans pack." },
    { "EstimateMemory", "!activation_bytes", "integer", "Alive at the widest point, for the pictures of one call." },
    { "EstimateMemory", "!data_bytes", "integer", "Pictures and calibration inputs that are kept." },
    { "EstimateMemory", "!peak_bytes", "integer", NULL },
    { "EstimateMemory", "!limit_bytes", "?integer", "Of one job; null = none." },
    { "EstimateMemory", "!fits", "boolean", NULL },
    { "EstimateSeconds", "!p50", "number", NULL },
    { "EstimateSeconds", "!p90", "number", NULL },
    { "EstimateSeconds", "!basis", "string", "history: earlier jobs of this kind and method; assumed: a rough speed." },
    { "EstimateSeconds", "jobs", "integer", "How many earlier jobs." },
    { "EstimateSeconds", "macs_per_second", "number", "The speed assumed." },

    { "MaxDrop", "!metric", "string", NULL },
    { "MaxDrop", "!value", "number", NULL },
    { "Progress", "!phase", "string", NULL },
    { "Progress", "!done", "integer", NULL },
    { "Progress", "!total", "integer", NULL },
    { "Progress", "layer", "string", NULL },
    { "Eta", "!start", "?time", NULL },
    { "Eta", "!finish_p50", "time", NULL },
    { "Eta", "!finish_p90", "time", NULL },
    { "Job", "!id", "string", NULL },
    { "Job", "!object", "=job", NULL },
    { "Job", "!kind", "string", NULL },
    { "Job", "!method", "string", NULL },
    { "Job", "!status", "string",
      "scheduled, queued, running, paused, retry_wait, succeeded, failed, canceled or dead." },
    { "Job", "!model", "string", NULL },
    { "Job", "!dataset", "?string", NULL },
    { "Job", "!params", "object", "All values filled in." },
    { "Job", "!metadata", "object", NULL },
    { "Job", "!retry_of", "?string", "The job that this one tries again." },
    { "Job", "max_drop", "@MaxDrop", NULL },
    { "Job", "!estimate", "?@Estimate", "What was expected when it was submitted." },
    { "Job", "!priority", "integer", "Lower runs first." },
    { "Job", "!position", "?integer", "How many queued jobs come before it." },
    { "Job", "!eta", "?@Eta", NULL },
    { "Job", "!attempt", "integer", NULL },
    { "Job", "!max_attempts", "integer", NULL },
    { "Job", "!time_limit_s", "integer", "Seconds of running; waiting does not count." },
    { "Job", "!created_at", "time", NULL },
    { "Job", "!run_at", "?time", NULL },
    { "Job", "!started_at", "?time", NULL },
    { "Job", "!finished_at", "?time", NULL },
    { "Job", "!cancel_requested_at", "?time", NULL },
    { "Job", "!progress", "@Progress", NULL },
    { "Job", "!last_seq", "integer", "Number of its last event." },
    { "Job", "!error", "?object", NULL },
    { "Job", "!result", "?object", NULL },
    { "Job", "!links", "object", NULL },
    { "Cancellation", "!canceled", "boolean", NULL },
    { "Cancellation", "!status", "string", NULL },
    { "Cancellation", "cancel_requested_at", "time", "The worker stops within two seconds." },

    { "Attempt", "!attempt", "integer", NULL },
    { "Attempt", "!started_at", "?time", NULL },
    { "Attempt", "!finished_at", "?time", NULL },
    { "Attempt", "!worker", "string", NULL },
    { "Attempt", "!outcome", "?string", NULL },
    { "Attempt", "!error", "?object", NULL },
    { "Event", "!seq", "integer", "1, 2, 3, .. for each job, without gaps." },
    { "Event", "!ts", "time", NULL },
    { "Event", "!job", "string", NULL },
    { "Event", "!attempt", "integer", NULL },
    { "Event", "!type", "string", NULL },
    { "Event", "!data", "object", NULL },
    { "Metric", "!seq", "integer", NULL },
    { "Metric", "!ts", "time", NULL },
    { "Metric", "!attempt", "integer", NULL },
    { "Metric", "!name", "string", NULL },
    { "Metric", "!step", "integer", NULL },
    { "Metric", "!value", "?number", NULL },
    { "Layer", "!seq", "integer", NULL },
    { "Layer", "!ts", "time", NULL },
    { "Layer", "!attempt", "integer", NULL },
    { "Layer", "!name", "string", NULL },
    { "Layer", "!step", "?integer", "Time step; null = over all." },
    { "Layer", "!weight_bits", "integer", "0 = float." },
    { "Layer", "!activation_bits", "integer", "0 = float." },
    { "Layer", "!sqnr_db", "?number", NULL },
    { "Layer", "!lo", "?number", NULL },
    { "Layer", "!hi", "?number", NULL },
    { "Sample", "!n", "integer", NULL },
    { "Sample", "!kind", "string", "sample, or pair: float on the left, quantized on the right." },
    { "Sample", "!step", "integer", NULL },
    { "Sample", "!index", "integer", NULL },
    { "Sample", "!width", "integer", "Pixels." },
    { "Sample", "!height", "integer", "Pixels." },
    { "Sample", "!psnr_db", "?number", NULL },
    { "Sample", "!mime", "string", NULL },
    { "Sample", "!url", "string", NULL },
    { "Artifact", "!id", "string", NULL },
    { "Artifact", "!object", "=artifact", NULL },
    { "Artifact", "!name", "string", NULL },
    { "Artifact", "!mime", "string", NULL },
    { "Artifact", "!sha256", "string", NULL },
    { "Artifact", "!size_bytes", "integer", NULL },
    { "Artifact", "!created_at", "time", NULL },
    { "Artifact", "!url", "string", NULL },

    /* What `data` of an event holds, by type. */
    { "data:state", "!status", "string", "The job's new state." },
    { "data:progress", "!phase", "string", NULL },
    { "data:progress", "!done", "integer", NULL },
    { "data:progress", "!total", "integer", NULL },
    { "data:progress", "layer", "string", "What it works on." },
    { "data:progress", "eta_s", "number", "Seconds left in this phase." },
    { "data:metric", "!name", "string", NULL },
    { "data:metric", "!step", "integer", NULL },
    { "data:metric", "!value", "?number", NULL },
    { "data:layer", "!name", "string", NULL },
    { "data:layer", "!step", "?integer", NULL },
    { "data:layer", "!bits", "integer", "Of the weights." },
    { "data:layer", "!weight_bits", "integer", NULL },
    { "data:layer", "!activation_bits", "integer", NULL },
    { "data:layer", "!sqnr_db", "?number", NULL },
    { "data:layer", "!lo", "?number", NULL },
    { "data:layer", "!hi", "?number", NULL },
    { "data:sample", "!index", "integer", NULL },
    { "data:sample", "!step", "integer", NULL },
    { "data:sample", "!kind", "string", NULL },
    { "data:sample", "!mime", "string", NULL },
    { "data:sample", "!width", "integer", NULL },
    { "data:sample", "!height", "integer", NULL },
    { "data:sample", "!psnr_db", "?number", NULL },
    { "data:sample", "!url", "string", NULL },
    { "data:artifact", "!name", "string", NULL },
    { "data:artifact", "!sha256", "string", NULL },
    { "data:artifact", "!size_bytes", "integer", NULL },
    { "data:log", "!message", "string", NULL },
    { "data:warning", "!message", "string", NULL },
    { "data:reset", "!id", "string", "The job as GET /v1/jobs/{id} shows it." },
    { "data:end", "!status", "string", "The final state." },
};
enum { FIELDS = sizeof fields / sizeof fields[0] };

static const char *const lists[] = { "KindList",  "ModelList",  "DatasetList", "JobList",    "AttemptList",
                                     "EventList", "MetricList", "LayerList",   "SampleList", "ArtifactList" };

static json_t *reference(const char *name, size_t n)
{
    return json_pack("{so}", "$ref", json_sprintf("#/components/schemas/%.*s", (int)n, name));
}

static json_t *type_schema(const char *type)
{
    const bool nullable = *type == '?';
    json_t *s;
    type += nullable;
    if (*type == '@')
        s = reference(type + 1, strlen(type + 1));
    else if (!strcmp(type, "[String"))
        s = json_pack("{ss s{ss}}", "type", "array", "items", "type", "string");
    else if (*type == '[')
        s = json_pack("{ss so}", "type", "array", "items", reference(type + 1, strlen(type + 1)));
    else if (*type == '=')
        s = json_pack("{ss ss}", "type", "string", "const", type + 1);
    else if (!strcmp(type, "time"))
        s = json_pack("{ss ss}", "type", nullable ? "" : "string", "format", "date-time");
    else
        s = json_pack("{ss}", "type", type);
    if (!nullable)
        return s;
    if (*type == '@')
        return json_pack("{s[o{ss}]}", "oneOf", s, "type", "null");
    json_object_set_new(s, "type", json_pack("[ss]", !strcmp(type, "time") ? "string" : type, "null"));
    return s;
}

json_t *sv_schema(const char *name)
{
    json_t *properties = json_object(), *required = json_array();
    for (int i = 0; i < FIELDS; i++) {
        const field_row *f = &fields[i];
        if (strcmp(f->schema, name))
            continue;
        const bool must = *f->name == '!';
        json_t *s = type_schema(f->type);
        if (f->summary)
            json_object_set_new(s, "description", json_string(f->summary));
        json_object_set_new(properties, f->name + must, s);
        if (must)
            json_array_append_new(required, json_string(f->name + 1));
    }
    json_t *o = json_pack("{ss so}", "type", "object", "properties", properties);
    if (json_array_size(required))
        json_object_set(o, "required", required);
    json_decref(required);
    return o;
}

static json_t *list_schema(const char *name)
{
    return json_pack("{ss s{s{ss ss} s{ss so} s{ss} s{s[ss] ss}} s[ssss]}", "type", "object", "properties", "object",
                     "type", "string", "const", "list", "data", "type", "array", "items",
                     reference(name, strlen(name) - 4), "has_more", "type", "boolean", "next_cursor", "type", "string",
                     "null", "description", "For ?after= of the next page.", "required", "object", "data", "has_more",
                     "next_cursor");
}

/* A job's body: one shape for each kind, its params one for each method. */
static json_t *job_request(void)
{
    json_t *kinds = json_array(), *names = json_array();
    for (int i = 0; sv_kinds[i]; i++) {
        json_t *schema = sv_kind_schema(sv_kinds[i]), *methods = json_array(), *m;
        size_t at;
        json_array_foreach(json_object_get(schema, "methods"), at, m)
        {
            json_array_append(methods, json_object_get(m, "params"));
        }
        json_array_append_new(kinds, json_pack("{ss s{s{ss} s{so}}}", "title", sv_kinds[i]->name, "properties", "kind",
                                               "const", sv_kinds[i]->name, "params", "anyOf", methods));
        json_array_append_new(names, json_string(sv_kinds[i]->name));
        json_decref(schema);
    }
    json_t *properties = json_pack(
        "{s{ss so} s{ss ss} s{s[ss]} s{ss} s{ss si si si ss} s{s[ss] ss} s{ss si ss} so s{ss ss}}", "kind", "type",
        "string", "enum", names, "model", "type", "string", "description", "Id or name.", "dataset", "type", "string",
        "null", "params", "type", "object", "priority", "type", "integer", "minimum", -1000, "maximum", 1000, "default",
        0, "description", "Lower runs first.", "run_at", "type", "string", "null", "format", "date-time",
        "time_limit_s", "type", "integer", "minimum", 1, "description", "Seconds of running.", "max_drop",
        reference("MaxDrop", 7), "metadata", "type", "object", "description", "Anything; kept and shown.");
    return json_pack("{ss so s[ss] sb so}", "type", "object", "properties", properties, "required", "kind", "model",
                     "additionalProperties", 0, "oneOf", kinds);
}

json_t *sv_schemas(void)
{
    json_t *all = json_object();
    for (int i = 0; i < FIELDS; i++)
        if (!strchr(fields[i].schema, ':') && !json_object_get(all, fields[i].schema))
            json_object_set_new(all, fields[i].schema, sv_schema(fields[i].schema));
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++)
        json_object_set_new(all, lists[i], list_schema(lists[i]));
    json_object_set_new(all, "JobRequest", job_request());
    return all;
}

json_t *sv_event_types(void)
{
    json_t *types = json_object();
    for (int i = 0; i < FIELDS; i++)
        if (!strncmp(fields[i].schema, "data:", 5) && !json_object_get(types, fields[i].schema + 5))
            json_object_set_new(types, fields[i].schema + 5, sv_schema(fields[i].schema));
    return types;
}
