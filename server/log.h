/* log.h - one line per event: time, level, event name, key=value pairs. error = someone must act, warn = we went on, info = state
 * changed. Values are quoted and escaped where they need it, so strings from outside are safe. Never secrets, never bytes. */
#ifndef SV_LOG_H
#define SV_LOG_H

#include <stdbool.h>

typedef enum sv_level { SV_DEBUG, SV_INFO, SV_WARN, SV_ERROR } sv_level;

void sv_log_level(sv_level least);
bool sv_log_level_named(const char *name); /* "debug", "info", "warn", "error"; false for any other */

/* fields: "key", value pairs, ended by NULL; a NULL value counts as "". Lines over 4 kB are cut and end in "...". Any thread. */
void sv_log(sv_level level, const char *event, ... /* const char *key, const char *value, ..., NULL */)
    __attribute__((sentinel));

#endif
