/* settings.h - every setting is one row: a flag (--listen), an environment variable (QUANTD_LISTEN), a line of quantd.conf. */
#ifndef SV_SETTINGS_H
#define SV_SETTINGS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"
#include "base/param.h"

typedef struct sv_settings {
    char *listen_host; /* from `listen` "127.0.0.1:8420"; an IPv6 address without its brackets */
    int listen_port;   /* 0 = any free port, printed at start */
    char *data_dir;
    int workers; /* worker threads; 0 = none (queue only) */
    int threads; /* threads of each job; workers * threads <= cores by default */
    int64_t max_upload_bytes;
    int64_t max_unpacked_bytes;
    int64_t job_memory_bytes; /* budget of one job */
    int lease_ms, heartbeat_ms;
    int http_threads;
    char *log_level;
    bool insecure; /* listen beyond loopback without keys */
} sv_settings;

extern const qd_param sv_setting_rows[];

/* Order of precedence: flag, environment, file (`config` flag, or none), default. argv starts after the subcommand. Flags are
 * --name value or --name=value, with - or _; a bool flag may stand alone; sizes may end in KiB, MiB, GiB or TiB. */
qd_status sv_settings_load(sv_settings *s, int argc, char **argv, qd_err *err);
void sv_settings_clear(sv_settings *s);

/* Every setting with its summary and default, for --help. */
void sv_settings_help(FILE *out);

#endif
