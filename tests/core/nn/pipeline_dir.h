/* pipeline_dir.h - for tests of latent diffusion: a pipeline as a folder on disk, its weights those of the golden networks. */
#ifndef PIPELINE_DIR_H
#define PIPELINE_DIR_H

#include "base/fs.h"
#include "golden_nets.h"

static inline char *below(const char *dir, const char *name)
{
    char *path = qd_fs_join(dir, name);
    assert_non_null(path);
    return path;
}

static inline void write_text(const char *dir, const char *name, const char *text)
{
    qd_err err = { 0 };
    char *path = below(dir, name);
    check_ok(qd_fs_write(path, text, strlen(text), &err), &err);
    qd_free(path);
}

static inline void write_network(const char *root, const char *part, const char *config)
{
    qd_err err = { 0 };
    char *dir = below(root, part);
    check_ok(qd_fs_mkdirs(dir, &err), &err);
    write_text(dir, "config.json", config);
    qd_weights *w = filled_weights(config);
    char *path = below(dir, "diffusion_pytorch_model.safetensors");
    check_ok(qd_safetensors_save(path, w, NULL, NULL, &err), &err);
    qd_free(path);
    qd_weights_free(w);
    qd_free(dir);
}

/* unet/, vae/ or vqvae/ (stage NULL: neither), scheduler/. */
static inline void write_pipeline_dir(const char *root, const char *unet, const char *stage, const char *scheduler)
{
    qd_err err = { 0 };
    write_text(root, "model_index.json", "{\"_class_name\":\"LatentPipeline\"}");
    write_network(root, "unet", unet);
    if (stage)
        write_network(root, strstr(stage, "VQModel") ? "vqvae" : "vae", stage);
    char *dir = below(root, "scheduler");
    check_ok(qd_fs_mkdirs(dir, &err), &err);
    write_text(dir, "scheduler_config.json", scheduler);
    qd_free(dir);
}

/* A safetensors file of one tensor of normal numbers. */
static inline void write_tensor(const char *dir, const char *file, const char *name, qd_shape shape, uint64_t seed)
{
    qd_err err = { 0 };
    qd_weights *w = NULL;
    qd_tensor t = { 0 };
    char *path = below(dir, file);
    check_ok(qd_weights_new(&w, &err), &err);
    check_ok(qd_tensor_init(&t, QD_F32, &shape, NULL, &err), &err);
    harness_normal(qd_f32(&t), qd_tensor_count(&t), seed, 1.0f);
    check_ok(qd_weights_add(w, name, &t, &err), &err);
    check_ok(qd_safetensors_save(path, w, NULL, NULL, &err), &err);
    qd_tensor_clear(&t);
    qd_weights_free(w);
    qd_free(path);
}

#endif
