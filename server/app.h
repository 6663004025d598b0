/* app.h - builds every part once, hands out pointers, takes down in reverse. */
#ifndef SV_APP_H
#define SV_APP_H

#include "base/err.h"
#include "settings.h"

/* Runs the daemon until SIGTERM or SIGINT. Prints one line with the address when it is ready. */
qd_status sv_app_serve(const sv_settings *settings, qd_err *err);

#endif
