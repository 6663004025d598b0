/* web.h - the dashboard's files, compiled in. */
#ifndef SV_WEB_WEB_H
#define SV_WEB_WEB_H

#include <stddef.h>

typedef struct sv_asset {
    const char *path; /* "/index.html" */
    const char *type; /* Content-Type */
    const char *etag; /* strong, with its quotes: of the bytes */
    const void *data;
    size_t size; // bytes
} sv_asset;
extern const sv_asset sv_assets[];               /* ends with path NULL; made by embed_assets.py */
const sv_asset *sv_asset_find(const char *path); /* NULL when there is none */

#endif
