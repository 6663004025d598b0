/* web.c - finding a file of the dashboard. */
#include "web/web.h"

#include <string.h>

const sv_asset *sv_asset_find(const char *path)
{
    for (const sv_asset *a = sv_assets; a->path; a++)
        if (!strcmp(a->path, path))
            return a;
    return NULL;
}
