/* jpeg.c - the door of libjpeg: strangers' pictures in, with limits. */
#include "data/data.h"

#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

/* Progressive files are decoded once for each of their scans, and an attacker may write thousands. */
#define SCANS_MAX 200
#define MEMORY_MAX (256l << 20)

/* Everything a longjmp may leave behind lives here, never in a local that changes between setjmp and longjmp. */
typedef struct session {
    struct jpeg_decompress_struct jpeg;
    struct jpeg_error_mgr errors;
    struct jpeg_progress_mgr progress;
    jmp_buf back;
    char words[JMSG_LENGTH_MAX];
    bool no_memory, too_large;
    qd_image image;
} session;

static void on_error(j_common_ptr common)
{
    session *s = common->client_data;
    common->err->format_message(common, s->words);
    s->no_memory = strstr(s->words, "Insufficient memory") != NULL;
    longjmp(s->back, 1);
}

/* Damage the library can patch over is damage all the same: no grey filling taken for a picture. */
static void on_message(j_common_ptr common, int level)
{
    if (level < 0)
        on_error(common);
}

static void on_progress(j_common_ptr common)
{
    session *s = common->client_data;
    if (s->jpeg.input_scan_number > SCANS_MAX) {
        snprintf(s->words, sizeof s->words, "more than %d scans", SCANS_MAX);
        longjmp(s->back, 1);
    }
}

static void fail_here(session *s, const char *words)
{
    snprintf(s->words, sizeof s->words, "%s", words);
    longjmp(s->back, 1);
}

static void read_all(session *s, const void *data, size_t size, uint64_t max_pixels)
{
    struct jpeg_decompress_struct *j = &s->jpeg;
    jpeg_create_decompress(j);
    j->client_data = s; /* create clears it */
    j->mem->max_memory_to_use = MEMORY_MAX;
    j->progress = &s->progress;
    s->progress.progress_monitor = on_progress;
    jpeg_mem_src(j, data, (unsigned long)size);
    jpeg_read_header(j, TRUE);
    if ((uint64_t)j->image_width * j->image_height > max_pixels) {
        s->too_large = true;
        longjmp(s->back, 1);
    }
    if (j->num_components != 1 && j->num_components != 3)
        fail_here(s, "neither grey nor three colours");
    j->out_color_space = j->num_components == 1 ? JCS_GRAYSCALE : JCS_RGB;
    /* Slow and exact: the same pixels everywhere. */
    j->dct_method = JDCT_ISLOW;
    jpeg_start_decompress(j);

    const size_t row = (size_t)j->output_width * (size_t)j->output_components;
    s->image = (qd_image){ .width = (int)j->output_width,
                           .height = (int)j->output_height,
                           .channels = j->output_components,
                           .pixels = qd_calloc(j->output_height, row) };
    if (!s->image.pixels) {
        s->no_memory = true;
        longjmp(s->back, 1);
    }
    while (j->output_scanline < j->output_height) {
        JSAMPROW line = s->image.pixels + (size_t)j->output_scanline * row;
        jpeg_read_scanlines(j, &line, 1);
    }
    jpeg_finish_decompress(j);
}

qd_status qd_jpeg_decode(const void *data, size_t size, uint64_t max_pixels, qd_image *out, qd_err *err)
{
    session *s = qd_calloc(1, sizeof *s);
    qd_status st = QD_OK;
    if (!s)
        return qd_fail(err, QD_E_NOMEM, "no memory to read a JPEG");
    s->jpeg.err = jpeg_std_error(&s->errors);
    s->jpeg.client_data = s;
    s->errors.error_exit = on_error;
    s->errors.emit_message = on_message;
    if (setjmp(s->back) == 0) {
        read_all(s, data, size, max_pixels);
        *out = s->image;
        s->image.pixels = NULL; /* it is the caller's now */
    } else if (s->no_memory) {
        st = qd_fail(err, QD_E_NOMEM, "no memory to read a JPEG");
    } else if (s->too_large) {
        st = qd_fail(err, QD_E_LIMIT, "the JPEG is %u x %u, over the limit of %llu pixels", s->jpeg.image_width,
                     s->jpeg.image_height, (unsigned long long)max_pixels);
    } else {
        st = qd_fail(err, QD_E_FORMAT, "not a readable JPEG: %.150s", s->words);
    }
    jpeg_destroy_decompress(&s->jpeg);
    qd_image_clear(&s->image);
    qd_free(s);
    return st;
}
