/* folder.c - models as folders: a diffusers pipeline with its parts, a bare network beside its config, sharded weights
 * (diffusion_models.md 1). */
#include "model/model_int.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>

#include "base/fs.h"

#define CONFIG_MAX_BYTES (8u << 20)
#define INDEX_SUFFIX ".safetensors.index.json"
#define WEIGHTS_SUFFIX ".safetensors"
#define TORCH_INDEX_SUFFIX ".bin.index.json"
#define MAIN_WEIGHTS "diffusion_pytorch_model"
#define MAIN_TORCH "pytorch_model"
#define CONTEXT_FILE "context.safetensors"

static bool ends_with(const char *s, const char *suffix)
{
    const size_t n = strlen(s), k = strlen(suffix);
    return n >= k && strcmp(s + n - k, suffix) == 0;
}

/* *out = a/b, whether it exists or not. */
static qd_status join(const char *a, const char *b, char **out, qd_err *err)
{
    *out = qd_fs_join(a, b);
    return *out ? QD_OK : qd_fail(err, QD_E_NOMEM, "out of memory for a path");
}

static bool has(const char *dir, const char *name)
{
    char *path = qd_fs_join(dir, name);
    const bool yes = path && qd_fs_exists(path);

    qd_free(path);
    return yes;
}

/* What packers leave beside the model: dot files, and the folder of resource forks. */
static bool is_litter(const char *name)
{
    return name[0] == '.' || strcmp(name, "__MACOSX") == 0;
}

/* What a network is told is no network. */
static bool is_listed(const char *name, const char *suffix)
{
    return !is_litter(name) && ends_with(name, suffix) && strcmp(name, CONTEXT_FILE) != 0;
}

/* --- where things are --- */

/* The only entry of `dir`, when that is a folder; NULL otherwise (and out of memory, which the next step will meet again). */
static char *only_folder_in(const char *dir)
{
    DIR *d = opendir(dir);
    char *found = NULL;
    int n = 0;

    if (!d)
        return NULL;
    for (struct dirent *e; (e = readdir(d));) {
        if (is_litter(e->d_name))
            continue;
        if (++n > 1)
            break;
        found = qd_fs_join(dir, e->d_name);
    }
    closedir(d);
    if (n != 1 || !found || !qd_fs_is_dir(found)) {
        qd_free(found);
        return NULL;
    }
    return found;
}

/* Names in `dir` that end in `suffix`: how many there are, and the first two in alphabetical order (qd_free). */
typedef struct listing {
    int n;
    char *first, *second;
} listing;

static void listing_clear(listing *l)
{
    qd_free(l->first);
    qd_free(l->second);
    *l = (listing){ 0 };
}

static qd_status list(const char *dir, const char *suffix, listing *l, qd_err *err)
{
    DIR *d = opendir(dir);
    qd_status st = QD_OK;

    if (!d)
        return qd_fail(err, QD_E_IO, "cannot list '%.200s': %s", qd_base_name(dir), strerror(errno));
    for (struct dirent *e; (e = readdir(d));) {
        char *name;

        if (!is_listed(e->d_name, suffix))
            continue;
        l->n++;
        if (l->second && strcmp(e->d_name, l->second) > 0)
            continue;
        name = qd_strdup(e->d_name);
        if (!name) {
            st = qd_fail(err, QD_E_NOMEM, "out of memory for a file name");
            break;
        }
        if (!l->first || strcmp(name, l->first) < 0) {
            qd_free(l->second);
            l->second = l->first;
            l->first = name;
        } else {
            qd_free(l->second);
            l->second = name;
        }
    }
    closedir(d);
    if (st)
        listing_clear(l);
    return st;
}

/* What checkpoints of PyTorch are called, indices of sharded ones first. */
static const char *const torch_suffixes[] = { TORCH_INDEX_SUFFIX, ".bin", ".ckpt", ".pt", ".pth", ".th", NULL };

/* Which file of `dir` holds the weights: by the names diffusers uses, then the only one there is. */
static qd_status find_weights(const char *dir, char **out, qd_err *err)
{
    static const char *const usual[] = { MAIN_WEIGHTS INDEX_SUFFIX, MAIN_WEIGHTS WEIGHTS_SUFFIX,
                                         MAIN_WEIGHTS ".fp16" INDEX_SUFFIX, MAIN_WEIGHTS ".fp16" WEIGHTS_SUFFIX };
    /* Checkpoints of PyTorch are looked for where there is nothing better. */
    static const char *const pickled[] = { MAIN_WEIGHTS TORCH_INDEX_SUFFIX, MAIN_WEIGHTS ".bin",
                                           MAIN_WEIGHTS ".fp16.bin", MAIN_TORCH TORCH_INDEX_SUFFIX, MAIN_TORCH ".bin" };
    listing l = { 0 };
    qd_status st;

    for (size_t k = 0; k < sizeof(usual) / sizeof(usual[0]); k++)
        if (has(dir, usual[k]))
            return join(dir, usual[k], out, err);
    st = list(dir, INDEX_SUFFIX, &l, err);
    if (!st && l.n == 0)
        st = list(dir, WEIGHTS_SUFFIX, &l, err);
    if (st)
        goto out;
    for (size_t k = 0; l.n == 0 && k < sizeof(pickled) / sizeof(pickled[0]); k++)
        if (has(dir, pickled[k])) {
            st = join(dir, pickled[k], out, err);
            goto out;
        }
    for (int k = 0; l.n == 0 && torch_suffixes[k]; k++) {
        st = list(dir, torch_suffixes[k], &l, err);
        if (st)
            goto out;
    }
    if (l.n > 1) {
        st = qd_fail(err, QD_E_FORMAT,
                     "'%.100s' has %d weight files and none is called " MAIN_WEIGHTS WEIGHTS_SUFFIX
                     ": '%.100s', '%.100s', ..",
                     qd_base_name(dir), l.n, l.first, l.second);
        goto out;
    }
    if (l.n == 0) {
        st = qd_fail(err, QD_E_NOT_FOUND,
                     "'%.100s' has no *.safetensors file and no checkpoint of PyTorch (.bin, .ckpt, ..)",
                     qd_base_name(dir));
        goto out;
    }
    st = join(dir, l.first, out, err);
out:
    listing_clear(&l);
    return st;
}

/* --- what they hold --- */

/* dir/name as a configuration; *out stays NULL when there is no such file. */
static qd_status load_config(const char *dir, const char *name, qd_config **out, qd_err *err)
{
    char *path = NULL, *text = NULL;
    size_t size = 0;
    qd_status st = join(dir, name, &path, err);

    if (st || !qd_fs_exists(path))
        goto out;
    st = qd_fs_take(path, CONFIG_MAX_BYTES, &text, &size, err);
    if (!st)
        st = qd_config_parse(text, size, name, out, err);
out:
    qd_free(text);
    qd_free(path);
    return st;
}

/* One weight file, by its name. */
static qd_status load_weights(const char *path, qd_budget *budget, qd_weights **out, qd_meta *meta, uint64_t *bytes,
                              qd_err *err)
{
    return ends_with(path, WEIGHTS_SUFFIX) ? qd_safetensors_load(path, budget, out, meta, bytes, err)
                                           : qd_torch_open(path, budget, out, meta, bytes, err);
}

/* A shard must be a plain file name of its own folder: an index may not reach anywhere else. */
static qd_status check_shard(const char *index, const char *file, qd_err *err)
{
    const char *suffix = ends_with(index, TORCH_INDEX_SUFFIX) ? ".bin" : WEIGHTS_SUFFIX;

    if (file[0] == '.' || strchr(file, '/') || strchr(file, '\\') || !ends_with(file, suffix))
        return qd_fail(err, QD_E_FORMAT, "%.100s: '%.200s' is not the name of a %s file in the same folder", index,
                       file, suffix);
    return QD_OK;
}

/* Every tensor of the shard that was just read must be one the index expects from it. */
static qd_status check_shard_tensors(const char *index, const char *file, const qd_weights *shard, const qd_meta *map,
                                     qd_err *err)
{
    for (int k = 0; k < qd_weights_count(shard); k++) {
        const char *name = qd_weights_name(shard, k), *where = qd_meta_find(map, name);

        if (!where || strcmp(where, file) != 0)
            return qd_fail(err, QD_E_FORMAT, "%.100s: '%.100s' holds tensor '%.150s', which the index puts into %.100s",
                           index, file, name, where ? where : "no file");
    }
    return QD_OK;
}

/* All shards of an index, tensors in the order of its weight_map. */
static qd_status load_shards(const char *dir, const char *index, qd_budget *budget, qd_model *m, qd_err *err)
{
    qd_config *c = NULL;
    qd_meta *map = NULL;
    qd_names files = { 0 };
    qd_weights **shard = NULL, *all = NULL;
    char *path = NULL;
    qd_status st;

    st = load_config(dir, index, &c, err);
    if (!st)
        st = qd_meta_new(&map, err);
    if (!st)
        st = qd_config_string_map(c, "weight_map", map, err);
    for (int k = 0; !st && k < qd_meta_count(map); k++) {
        const char *tensor, *file;

        qd_meta_at(map, k, &tensor, &file);
        if (qd_names_find(&files, file) >= 0)
            continue;
        st = check_shard(index, file, err);
        if (!st)
            st = qd_names_add(&files, file, err);
    }
    if (st)
        goto out;

    shard = qd_calloc((size_t)files.count, sizeof(*shard));
    if (!shard) {
        st = qd_fail(err, QD_E_NOMEM, "out of memory for %d shards", files.count);
        goto out;
    }
    for (int k = 0; k < files.count; k++) {
        uint64_t bytes = 0;

        st = join(dir, files.name[k], &path, err);
        if (!st)
            st = load_weights(path, budget, &shard[k], m->meta, &bytes, err);
        if (!st)
            st = check_shard_tensors(index, files.name[k], shard[k], map, err);
        if (st)
            goto out;
        m->file_bytes += bytes;
        qd_free(path);
        path = NULL;
    }

    st = qd_weights_new(&all, err);
    for (int k = 0; !st && k < qd_meta_count(map); k++) {
        const char *tensor, *file;
        const qd_tensor *t;

        qd_meta_at(map, k, &tensor, &file);
        t = qd_weights_find(shard[qd_names_find(&files, file)], tensor);
        if (t)
            st = qd_weights_add(all, tensor, t, err);
        else
            st = qd_fail(err, QD_E_FORMAT, "%.100s: tensor '%.150s' is not in '%.100s'", index, tensor, file);
    }
    if (st)
        goto out;
    m->weights = all;
    all = NULL;
out:
    for (int k = 0; shard && k < files.count; k++)
        qd_weights_free(shard[k]);
    qd_free(shard);
    qd_weights_free(all);
    qd_free(path);
    qd_names_clear(&files);
    qd_meta_free(map);
    qd_config_free(c);
    return st;
}

/* --- for other rows of folders --- */

qd_status qd_folder_list(const char *dir, const char *suffix, int *n, char **first, qd_err *err)
{
    listing l = { 0 };
    const qd_status st = list(dir, suffix, &l, err);

    if (st)
        return st;
    *n = l.n;
    *first = l.first;
    qd_free(l.second);
    return QD_OK;
}

char *qd_folder_root(const char *path)
{
    char *nested = only_folder_in(path);
    return nested ? nested : qd_strdup(path);
}

qd_status qd_folder_scheduler(const char *dir, qd_config **out, qd_err *err)
{
    return load_config(dir, "scheduler_config.json", out, err);
}

/* --- the row --- */

bool qd_folder_sniff(const char *path)
{
    return qd_fs_is_dir(path);
}

/* Configuration and weights of the network in `dir`. */
static qd_status load_network(const char *dir, qd_budget *budget, qd_model *m, qd_err *err)
{
    char *weights = NULL;
    qd_status st = find_weights(dir, &weights, err);

    if (!st)
        st = load_config(dir, "config.json", &m->config, err);
    if (st)
        goto out;
    if (ends_with(weights, INDEX_SUFFIX) || ends_with(weights, TORCH_INDEX_SUFFIX))
        st = load_shards(dir, qd_base_name(weights), budget, m, err);
    else if (m->config && !qd_bundle_sniff(weights))
        st = load_weights(weights, budget, &m->weights, m->meta, &m->file_bytes, err);
    else
        st = qd_model_load_file(weights, budget, m, err); /* the file says by itself what it is */
out:
    qd_free(weights);
    return st;
}

/* The first stage of a pipeline, in a folder of its own. */
static qd_status load_first_stage(const char *root, qd_budget *budget, qd_model *m, qd_err *err)
{
    static const char *const names[] = { "vae", "vqvae" };
    char *dir = NULL;
    qd_model *part = NULL;
    qd_err why = { 0 };
    qd_status st = QD_OK;

    for (size_t k = 0; k < sizeof(names) / sizeof(names[0]) && !dir; k++)
        if (has(root, names[k]))
            st = join(root, names[k], &dir, err);
    if (st || !dir || !qd_fs_is_dir(dir))
        goto out;
    part = qd_calloc(1, sizeof(*part));
    st = part ? qd_meta_new(&part->meta, err) : qd_fail(err, QD_E_NOMEM, "out of memory for a first stage");
    if (st)
        goto out;
    st = load_network(dir, budget, part, &why);
    if (st) { /* the denoiser is worth something without it, as long as somebody says so */
        st = st == QD_E_NOT_FOUND || st == QD_E_UNSUPPORTED
                 ? qd_meta_set(m->meta, QD_FIRST_STAGE_MISSING, why.text, err)
                 : qd_fail(err, st, "%s", why.text);
        goto out;
    }
    part->format = m->format;
    m->file_bytes += part->file_bytes;
    m->first_stage = part;
    part = NULL;
out:
    qd_model_free(part);
    qd_free(dir);
    return st;
}

static qd_status load_context(const char *root, qd_budget *budget, qd_model *m, qd_err *err)
{
    char *path = NULL;
    qd_status st = join(root, CONTEXT_FILE, &path, err);

    if (!st && qd_fs_exists(path))
        st = qd_safetensors_load(path, budget, &m->context, NULL, NULL, err);
    qd_free(path);
    return st;
}

qd_status qd_folder_load(const char *path, qd_budget *budget, qd_model *m, qd_err *err)
{
    char *nested = NULL, *net = NULL, *scheduler = NULL;
    const char *root = path, *dir;
    qd_status st;

    if (!has(root, "unet")) { /* a lone unet/ is the pipeline itself, not the folder an archive left around a model */
        nested = only_folder_in(root);
        if (nested)
            root = nested;
    }
    st = join(root, "unet", &net, err);
    if (!st)
        st = join(root, "scheduler", &scheduler, err);
    if (st)
        goto out;
    dir = qd_fs_is_dir(net) ? net : root;
    if (dir == root && has(root, "model_index.json")) {
        st = qd_fail(err, QD_E_UNSUPPORTED, "'%.100s' is a pipeline without a 'unet' folder", qd_base_name(root));
        goto out;
    }

    st = load_network(dir, budget, m, err);
    if (!st)
        st = load_config(scheduler, "scheduler_config.json", &m->scheduler, err);
    if (!st && !m->scheduler)
        st = load_config(root, "scheduler_config.json", &m->scheduler, err);
    if (!st && !m->scheduler && dir != root)
        st = load_config(dir, "scheduler_config.json", &m->scheduler, err);
    if (!st && dir != root)
        st = load_first_stage(root, budget, m, err);
    if (!st)
        st = load_context(root, budget, m, err);
out:
    qd_free(scheduler);
    qd_free(net);
    qd_free(nested);
    return st;
}
