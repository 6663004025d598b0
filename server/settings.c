/* settings.c - the table of settings, and how flags, environment and quantd.conf fill it. */
#include "settings.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <inttypes.h>
#include <limits.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/mem.h"

#define CONF_MAX_BYTES 65536
#define NAME_MAX_BYTES 40

static const char *const log_levels[] = { "debug", "info", "warn", "error", NULL };

/* Sizes in the conf file end in KiB, MiB, ..; the table itself speaks in bytes, 0 = worked out from the machine. */
const qd_param sv_setting_rows[] = {
    { "listen", QD_PARAM_STRING,
      "Address and port to listen on, \"127.0.0.1:8420\" or \"[::1]:8420\"; port 0 takes any free one.",
      "127.0.0.1:8420", 0, 255, NULL },
    { "data", QD_PARAM_STRING, "Folder for the database, models and results; made when it is missing.", "./quantd-data",
      0, 4000, NULL },
    { "workers", QD_PARAM_INT, "Jobs that run at the same time; 0 only takes jobs in.", "1", 0, 64, NULL },
    { "threads", QD_PARAM_INT, "Threads of each job; 0 = the processors divided by the workers.", "0", 0, 1024, NULL },
    { "max_upload", QD_PARAM_INT, "Largest upload taken, in bytes.", "4294967296", 1, 0x1p52, NULL },
    { "max_unpacked", QD_PARAM_INT, "Largest size of an unpacked archive, in bytes.", "17179869184", 1, 0x1p52, NULL },
    { "job_memory", QD_PARAM_INT,
      "Memory one job may use for tensors, in bytes; 0 = three quarters of the machine's, divided by the workers.", "0",
      0, 0x1p52, NULL },
    { "lease_ms", QD_PARAM_INT, "A job whose worker was silent for so many milliseconds goes back to the queue.",
      "60000", 1000, 3600000, NULL },
    { "heartbeat_ms", QD_PARAM_INT, "How often a worker renews its lease, in milliseconds; at most half of lease_ms.",
      "15000", 100, 1800000, NULL },
    { "http_threads", QD_PARAM_INT, "Threads that answer requests.", "4", 1, 64, NULL },
    { "log_level", QD_PARAM_CHOICE, "Least urgent log lines written: debug, info, warn, error.", "info", 0, 0,
      log_levels },
    { "insecure", QD_PARAM_BOOL,
      "Listen beyond this machine although no keys exist: everyone who can connect may do everything.", "false", 0, 0,
      NULL },
    { "config", QD_PARAM_STRING, "File of \"name = value\" lines; environment and flags win over it.", "", 0, 4000,
      NULL },
    { NULL },
};

/* --- one value --- */

/* "4GiB" -> "4294967296". Other text is left to the row's own check. */
static void size_expand(const char *text, char out[32])
{
    static const char *const units[] = { "KiB", "MiB", "GiB", "TiB" };
    char *end;
    int64_t v;

    snprintf(out, 32, "%s", text);
    if (!isdigit((unsigned char)text[0]))
        return;
    v = strtoll(text, &end, 10);
    while (*end == ' ')
        end++;
    for (int i = 0; i < 4; i++)
        if (strcmp(end, units[i]) == 0 && !__builtin_mul_overflow(v, (int64_t)1 << (10 * (i + 1)), &v))
            snprintf(out, 32, "%" PRId64, v);
}

/* `where` leads the words: "flag --workers", "QUANTD_WORKERS", "quantd.conf:3". */
static qd_status value_set(qd_params *p, const qd_param *row, const char *text, const char *where, qd_err *err)
{
    char number[32];
    qd_err why = { 0 };
    qd_status st;

    if (row->type == QD_PARAM_BOOL && (strcmp(text, "1") == 0 || strcmp(text, "0") == 0)) {
        text = text[0] == '1' ? "true" : "false";
    } else if (row->type == QD_PARAM_INT && strlen(text) < sizeof(number)) {
        size_expand(text, number);
        text = number;
    }
    st = qd_params_set_text(p, row->name, text, &why);
    if (st) {
        const char *words = strncmp(why.text, "params.", 7) == 0 ? why.text + 7 : why.text;
        return qd_fail(err, st, "%s: %s", where, words);
    }
    return QD_OK;
}

/* --- the three sources --- */

static qd_status flag_row(const char *arg, const qd_param **row, const char **value, qd_err *err)
{
    const char *eq = strchr(arg, '=');
    const size_t n = eq ? (size_t)(eq - arg) : strlen(arg);
    char name[NAME_MAX_BYTES] = "";

    if (strncmp(arg, "--", 2) != 0)
        return qd_fail(err, QD_E_INVALID, "unexpected argument '%.80s': settings look like --name value", arg);
    if (n - 2 < sizeof(name)) {
        for (size_t i = 2; i < n; i++)
            name[i - 2] = arg[i] == '-' ? '_' : arg[i];
        name[n - 2] = '\0';
    }
    *row = qd_param_find(sv_setting_rows, name);
    if (!*row)
        return qd_fail(err, QD_E_INVALID, "unknown flag '%.80s'; --help lists them", arg);
    *value = eq ? eq + 1 : NULL;
    return QD_OK;
}

/* only != NULL: just that setting. */
static qd_status flags_read(qd_params *p, int argc, char **argv, const char *only, qd_err *err)
{
    for (int i = 0; i < argc; i++) {
        const qd_param *row = NULL;
        const char *value = NULL;
        char where[NAME_MAX_BYTES + 16];
        qd_status st = flag_row(argv[i], &row, &value, err);

        if (st)
            return st;
        if (!value && row->type == QD_PARAM_BOOL) {
            const bool given = i + 1 < argc && (strcmp(argv[i + 1], "true") == 0 || strcmp(argv[i + 1], "false") == 0);
            value = given ? argv[++i] : "true";
        } else if (!value) {
            if (i + 1 == argc)
                return qd_fail(err, QD_E_INVALID, "flag %s needs a value", argv[i]);
            value = argv[++i];
        }
        if (only && strcmp(row->name, only) != 0)
            continue;
        snprintf(where, sizeof(where), "flag --%s", row->name);
        st = value_set(p, row, value, where, err);
        if (st)
            return st;
    }
    return QD_OK;
}

static const char *env_get(const qd_param *row, char name[NAME_MAX_BYTES])
{
    snprintf(name, NAME_MAX_BYTES, "QUANTD_%s", row->name);
    for (char *c = name; *c; c++)
        *c = (char)toupper((unsigned char)*c);
    return getenv(name);
}

static qd_status env_read(qd_params *p, qd_err *err)
{
    qd_status st = QD_OK;

    for (const qd_param *row = sv_setting_rows; row->name && !st; row++) {
        char name[NAME_MAX_BYTES];
        const char *value = env_get(row, name);
        if (value)
            st = value_set(p, row, value, name, err);
    }
    return st;
}

/* Without blanks at both ends, in place. */
static char *trim(char *s)
{
    char *end;

    while (isspace((unsigned char)*s))
        s++;
    end = s + strlen(s);
    while (end > s && isspace((unsigned char)end[-1]))
        end--;
    *end = '\0';
    return s;
}

/* One line: nothing, a comment, or name = value. */
static qd_status conf_line(qd_params *p, char *text, const char *where, qd_err *err)
{
    char *line = trim(text), *eq;
    const qd_param *row;

    if (!*line || *line == '#')
        return QD_OK;
    eq = strchr(line, '=');
    if (!eq)
        return qd_fail(err, QD_E_INVALID, "%s: '%.80s' is not \"name = value\"", where, line);
    *eq = '\0';
    line = trim(line);
    row = qd_param_find(sv_setting_rows, line);
    if (!row || strcmp(line, "config") == 0)
        return qd_fail(err, QD_E_INVALID, "%s: '%.80s' is not a setting", where, line);
    return value_set(p, row, trim(eq + 1), where, err);
}

static qd_status conf_read(qd_params *p, const char *path, qd_err *err)
{
    char *text = NULL, *line;
    size_t size;
    int number = 1;
    qd_status st = qd_fs_take(path, CONF_MAX_BYTES, &text, &size, err);

    if (!st && strlen(text) != size)
        st = qd_fail(err, QD_E_FORMAT, "%s is not a text file", path);
    for (line = text; !st && line; number++) {
        char where[300];
        char *end = strchr(line, '\n');
        if (end)
            *end++ = '\0';
        snprintf(where, sizeof(where), "%.256s:%d", path, number);
        st = conf_line(p, line, where, err);
        line = end;
    }
    qd_free(text);
    return st;
}

/* The file comes from the flag, else from QUANTD_CONFIG; then file, environment and flags overwrite each other in this order. */
static qd_status sources_read(qd_params *p, int argc, char **argv, qd_err *err)
{
    char name[NAME_MAX_BYTES], *path = NULL;
    const char *env = env_get(qd_param_find(sv_setting_rows, "config"), name);
    qd_status st = flags_read(p, argc, argv, "config", err);

    if (st)
        return st;
    path = qd_strdup(qd_params_given(p, "config") || !env ? qd_params_string(p, "config") : env);
    if (!path)
        return qd_fail(err, QD_E_NOMEM, "out of memory while reading the settings");
    if (*path)
        st = conf_read(p, path, err);
    if (!st)
        st = env_read(p, err);
    if (!st)
        st = flags_read(p, argc, argv, NULL, err);
    qd_free(path);
    return st;
}

/* --- what the values mean --- */

static bool is_loopback(const char *host)
{
    struct in_addr v4;
    struct in6_addr v6;

    if (strcmp(host, "localhost") == 0)
        return true;
    if (inet_pton(AF_INET, host, &v4) == 1)
        return ntohl(v4.s_addr) >> 24 == 127;
    if (inet_pton(AF_INET6, host, &v6) == 1)
        return IN6_IS_ADDR_LOOPBACK(&v6) || (IN6_IS_ADDR_V4MAPPED(&v6) && v6.s6_addr[12] == 127);
    return false;
}

/* "host:port" or "[v6]:port" into its parts. */
static qd_status listen_split(const char *text, char **host, int *port, qd_err *err)
{
    const char *colon = strrchr(text, ':');
    const char *from = text, *to = colon;
    char *end;
    long value;

    if (text[0] == '[') {
        from = text + 1;
        to = strchr(text, ']');
        if (!to || to[1] != ':')
            colon = NULL;
        else
            colon = to + 1;
    }
    if (!colon || to == from || !isdigit((unsigned char)colon[1]))
        return qd_fail(err, QD_E_INVALID, "listen must look like 127.0.0.1:8420 or [::1]:8420, got '%s'", text);
    if (text[0] != '[' && memchr(text, ':', (size_t)(colon - text)))
        return qd_fail(err, QD_E_INVALID, "listen: an IPv6 address goes into brackets, as in [::1]:8420; got '%s'",
                       text);
    value = strtol(colon + 1, &end, 10);
    if (*end || value > 65535)
        return qd_fail(err, QD_E_INVALID, "listen: the port must be 0..65535, got '%s'", colon + 1);
    *host = qd_strndup(from, (size_t)(to - from));
    if (!*host)
        return qd_fail(err, QD_E_NOMEM, "out of memory while reading the settings");
    *port = (int)value;
    return QD_OK;
}

static int cores(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0)
        return CPU_COUNT(&set);
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

/* Three quarters of what this machine, or the container around us, has; each worker its share. */
static int64_t memory_share(int workers)
{
    int64_t bytes = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    char *text = NULL;
    size_t size;

    if (!qd_fs_take("/sys/fs/cgroup/memory.max", 64, &text, &size, NULL)) {
        char *end;
        const long long limit = strtoll(text, &end, 10); /* "max" when there is none */
        if (end != text && limit > 0 && limit < bytes)
            bytes = limit;
        qd_free(text);
    }
    return bytes / 4 * 3 / (workers > 1 ? workers : 1);
}

static qd_status settings_fill(sv_settings *s, const qd_params *p, qd_err *err)
{
    qd_status st = listen_split(qd_params_string(p, "listen"), &s->listen_host, &s->listen_port, err);

    if (st)
        return st;
    s->insecure = qd_params_bool(p, "insecure");
    if (!s->insecure && !is_loopback(s->listen_host))
        return qd_fail(
            err, QD_E_INVALID,
            "listen %s: other machines could reach it, and there are no keys to ask them for; listen on 127.0.0.1 (a proxy "
            "may stand in front) or say --insecure",
            qd_params_string(p, "listen"));
    s->data_dir = qd_strdup(qd_params_string(p, "data"));
    s->log_level = qd_strdup(qd_params_string(p, "log_level"));
    if (!s->data_dir || !s->log_level)
        return qd_fail(err, QD_E_NOMEM, "out of memory while reading the settings");
    if (!s->data_dir[0])
        return qd_fail(err, QD_E_INVALID, "data must name a folder");
    s->workers = (int)qd_params_int(p, "workers");
    s->threads = (int)qd_params_int(p, "threads");
    if (s->threads == 0) {
        s->threads = cores() / (s->workers > 1 ? s->workers : 1);
        if (s->threads < 1)
            s->threads = 1;
    }
    s->max_upload_bytes = qd_params_int(p, "max_upload");
    s->max_unpacked_bytes = qd_params_int(p, "max_unpacked");
    s->job_memory_bytes = qd_params_int(p, "job_memory");
    if (s->job_memory_bytes == 0)
        s->job_memory_bytes = memory_share(s->workers);
    s->lease_ms = (int)qd_params_int(p, "lease_ms");
    s->heartbeat_ms = (int)qd_params_int(p, "heartbeat_ms");
    if (s->heartbeat_ms > s->lease_ms / 2)
        return qd_fail(err, QD_E_INVALID, "heartbeat_ms must be at most half of lease_ms, got %d and %d",
                       s->heartbeat_ms, s->lease_ms);
    s->http_threads = (int)qd_params_int(p, "http_threads");
    return QD_OK;
}

qd_status sv_settings_load(sv_settings *s, int argc, char **argv, qd_err *err)
{
    sv_settings made = { 0 };
    qd_params *p = NULL;
    qd_status st = qd_params_new(sv_setting_rows, &p, err);

    if (!st)
        st = sources_read(p, argc, argv, err);
    if (!st)
        st = settings_fill(&made, p, err);
    qd_params_free(p);
    if (st)
        sv_settings_clear(&made);
    else
        *s = made;
    return st;
}

void sv_settings_clear(sv_settings *s)
{
    qd_free(s->listen_host);
    qd_free(s->data_dir);
    qd_free(s->log_level);
    memset(s, 0, sizeof(*s));
}

void sv_settings_help(FILE *out)
{
    fprintf(out, "Settings, as a flag, an environment variable (QUANTD_NAME) or a line of the config file:\n\n");
    for (const qd_param *row = sv_setting_rows; row->name; row++) {
        char flag[NAME_MAX_BYTES];
        snprintf(flag, sizeof(flag), "%s", row->name);
        for (char *c = flag; *c; c++)
            if (*c == '_')
                *c = '-';
        fprintf(out, "  --%-14s %s\n", flag, row->summary);
        if (row->fallback[0])
            fprintf(out, "  %-16s default: %s\n", "", row->fallback);
    }
}
