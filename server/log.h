/* log.h - one line per event: time, level, event name, key=value pairs. error = someone must act, warn = we went on, info = state
 * changed. Strings from outside go through sv_log_quote-like %q handling: use SV_S("key", value). Never secrets, never bytes. */
#ifndef SV_LOG_H
#define SV_LOG_H

typedef enum sv_level { SV_DEBUG, SV_INFO, SV_WARN, SV_ERROR } sv_level;

void sv_log_level(sv_level least);
/* fields: "key", value pairs, ended by NULL; values are quoted and escaped when they need it. */
void sv_log(sv_level level, const char *event, ... /* const char *key, const char *value, ..., NULL */)
    __attribute__((sentinel));

#endif
