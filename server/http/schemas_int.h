/* schemas_int.h - the shapes of schemas.c, for openapi.c. */
#ifndef SV_HTTP_SCHEMAS_INT_H
#define SV_HTTP_SCHEMAS_INT_H

#include <jansson.h>

json_t *sv_schema(const char *name); /* one, by its rows (new reference) */
json_t *sv_schemas(void);            /* all of them by name, for components/schemas (new reference) */
json_t *sv_event_types(void);        /* type of event -> schema of its data (new reference) */

#endif
