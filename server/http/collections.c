/* collections.c - what may be uploaded: models and data sets, one row each; looking into what strangers sent. */
#include <dirent.h>
#include <string.h>

#include "base/mem.h"
#include "data/data.h"
#include "http/http_int.h"
#include "model/model.h"

/* A single top-level folder is not the model but its wrapping: go in until there is more than one entry, or a file. */
static char *find_root(const char *dir)
{
    char *at = qd_strdup(dir);
    for (int depth = 0; at && depth < 4; depth++) {
        DIR *d = opendir(at);
        char *only = NULL;
        int entries = 0;
        if (!d)
            break;
        for (struct dirent *e; (e = readdir(d));) {
            if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
                continue;
            if (entries++ == 0)
                only = qd_fs_join(at, e->d_name);
        }
        closedir(d);
        if (entries != 1 || !only || !qd_fs_is_dir(only)) {
            qd_free(only);
            break;
        }
        /* "unet/" alone is the layout itself, not wrapping. */
        const char *slash = strrchr(only, '/');
        if (!strcmp(slash, "/unet")) {
            qd_free(only);
            break;
        }
        qd_free(at);
        at = only;
    }
    return at;
}

/* The only thing in a folder when that is a file under the name we give one that came alone (qd_free); NULL otherwise. */
static char *only_file(const char *dir)
{
    DIR *d = opendir(dir);
    char *only = NULL;
    int entries = 0;
    for (struct dirent *e; d && (e = readdir(d));)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 && entries++ == 0)
            only = qd_fs_join(dir, e->d_name);
    if (d)
        closedir(d);
    const char *told = entries == 1 && only && !qd_fs_is_dir(only) ? qd_model_file_name(only) : NULL;
    if (told && strcmp(strrchr(only, '/') + 1, told) == 0)
        return only;
    qd_free(only);
    return NULL;
}

/* A checkpoint of PyTorch is a zip too, and one model as it is. */
static bool is_model_archive(const char *path)
{
    return qd_archive_sniff(path) && !qd_torch_sniff(path);
}

/* The one place that reads a stranger's model; on this thread now, a sandboxed child can take over behind the same signature. */
static qd_status look_into_model(const sv_settings *s, const char *tree, char **root, char **format, char **role,
                                 char **summary, qd_err *err)
{
    char *dir = find_root(tree);
    char *file = dir ? qd_fs_join(dir, "model.safetensors") : NULL;
    char *config = dir ? qd_fs_join(dir, "config.json") : NULL;
    char *alone = dir ? only_file(dir) : NULL;
    qd_status st;
    if (!file || !config) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
        goto out;
    }
    const bool single = qd_fs_exists(file) && !qd_fs_exists(config);
    const char *path = single ? file : alone ? alone : dir;
    st = sv_model_inspect(path, s, format, role, summary, err);
    if (st)
        goto out;
    *root = qd_strdup(path[strlen(tree)] ? path + strlen(tree) + 1 : "");
    if (!*root)
        st = qd_fail(err, QD_E_NOMEM, "no memory for a path");
out:
    qd_free(alone);
    qd_free(file);
    qd_free(config);
    qd_free(dir);
    return st;
}

/* Readers of data sets find their way through a tree themselves. */
static qd_status look_into_dataset(const sv_settings *s, const char *tree, char **root, char **format, char **role,
                                   char **summary, qd_err *err)
{
    char *file = qd_fs_join(tree, sv_datasets.file);
    const bool single = file && qd_fs_exists(file);
    qd_status st = file ? sv_dataset_inspect(single ? file : tree, s, format, role, summary, err)
                        : qd_fail(err, QD_E_NOMEM, "no memory for a path");
    qd_free(file);
    if (st)
        return st;
    *root = qd_strdup(single ? sv_datasets.file : "");
    return *root ? QD_OK : qd_fail(err, QD_E_NOMEM, "no memory for a path");
}

const sv_collection sv_models = {
    .noun = "model",
    .prefix = "mdl_",
    .folder = "models",
    .file = "model.safetensors",
    .file_of = qd_model_file_name,
    .invalid = SV_P_INVALID_MODEL,
    .max_entries = 4096,
    .is_archive = is_model_archive,
    .look_into = look_into_model,
    .add = sv_models_add,
    .get = sv_models_get,
    .list = sv_models_list,
    .remove = sv_models_delete,
    .pruned = sv_models_pruned,
    .json = sv_model_json,
};

/* A gzip of one file is a data set as it is; a folder for each class may hold many pictures. */
const sv_collection sv_datasets = {
    .noun = "data set",
    .prefix = "dst_",
    .folder = "datasets",
    .file = "data",
    .invalid = SV_P_INVALID_DATASET,
    .max_entries = 1 << 20,
    .is_archive = qd_archive_has_files,
    .look_into = look_into_dataset,
    .add = sv_datasets_add,
    .get = sv_datasets_get,
    .list = sv_datasets_list,
    .remove = sv_datasets_delete,
    .pruned = sv_datasets_pruned,
    .json = sv_dataset_json,
};
