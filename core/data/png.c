/* png.c - the door of libpng: pictures out with fixed settings, strangers' pictures in with limits. */
#include "data/data.h"

#include <png.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include "base/mem.h"

#define COMPRESSION 6
#define DECODE_MAX_SIDE 65535
#define DECODE_MAX_CHUNK (8u << 20)

/* What the library's callbacks see. Everything a longjmp may leave behind lives here or in memory, never in a local that
 * changes between setjmp and longjmp. */
typedef struct session {
    png_structp png;
    png_infop info;
    char words[160];
    bool no_memory, too_large;
    qd_buf *out;    /* writing */
    qd_reader in;   /* reading */
    qd_image image; /* reading */
} session;

static void on_error(png_structp png, png_const_charp words)
{
    session *s = png_get_error_ptr(png);

    snprintf(s->words, sizeof(s->words), "%s", words);
    png_longjmp(png, 1);
}

static void on_warning(png_structp png, png_const_charp words)
{
    /* Damage that matters is an error; the rest does not concern pixels. */
}

static png_voidp on_malloc(png_structp png, png_alloc_size_t n)
{
    session *s = png_get_mem_ptr(png);
    void *p = qd_alloc(n);

    if (!p)
        s->no_memory = true;
    return p;
}

static void on_free(png_structp png, png_voidp p)
{
    qd_free(p);
}

static void on_write(png_structp png, png_bytep data, size_t n)
{
    session *s = png_get_io_ptr(png);

    if (!qd_buf_add(s->out, data, n)) {
        s->no_memory = true;
        png_error(png, "no room in the buffer");
    }
}

static void on_flush(png_structp png)
{
}

static void on_read(png_structp png, png_bytep data, size_t n)
{
    session *s = png_get_io_ptr(png);
    const uint8_t *p = qd_read_bytes(&s->in, n);

    if (!p)
        png_error(png, "the file ends too early");
    memcpy(data, p, n);
}

static qd_status failed(const session *s, const char *verb, qd_err *err)
{
    if (s->no_memory)
        return qd_fail(err, QD_E_NOMEM, "out of memory while %s a PNG", verb);
    return qd_fail(err, QD_E_FORMAT, "%s a PNG: %s", verb, s->words[0] ? s->words : "the library refused");
}

/* --- out --- */

/* Everything that may longjmp. */
static void write_image(session *s, const qd_image *im)
{
    const size_t row = (size_t)im->width * (size_t)im->channels;

    /* One filter, one level, no strategy left to the library's taste: same pixels, same bytes. */
    png_set_compression_level(s->png, COMPRESSION);
    png_set_filter(s->png, PNG_FILTER_TYPE_BASE, PNG_FILTER_SUB);
    png_set_IHDR(s->png, s->info, (png_uint_32)im->width, (png_uint_32)im->height, 8,
                 im->channels == 1 ? PNG_COLOR_TYPE_GRAY : PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_write_info(s->png, s->info);
    for (int y = 0; y < im->height; y++)
        png_write_row(s->png, im->pixels + (size_t)y * row);
    png_write_end(s->png, s->info);
}

/* 0, or what was thrown. Apart, so that no local of the caller lives across the jump. */
static int try_write(session *s, const qd_image *im)
{
    const int thrown = setjmp(png_jmpbuf(s->png));

    if (thrown)
        return thrown;
    s->info = png_create_info_struct(s->png);
    if (!s->info)
        png_error(s->png, "no info struct");
    png_set_write_fn(s->png, s, on_write, on_flush);
    write_image(s, im);
    return 0;
}

qd_status qd_png_encode(const qd_image *im, qd_buf *buf, qd_err *err)
{
    qd_buf bytes;
    session s = { .out = &bytes };
    qd_status st = QD_OK;

    qd_buf_init(&bytes, 0);
    s.png = png_create_write_struct_2(PNG_LIBPNG_VER_STRING, &s, on_error, on_warning, &s, on_malloc, on_free);
    if (!s.png || try_write(&s, im) != 0)
        st = failed(&s, "writing", err);
    else if (!qd_buf_add(buf, bytes.data, bytes.size)) /* whole, or not at all */
        st = qd_fail(err, QD_E_LIMIT, "no room for a PNG of %zu bytes", bytes.size);
    png_destroy_write_struct(&s.png, &s.info);
    qd_buf_clear(&bytes);
    return st;
}

/* --- in --- */

/* Any PNG becomes 8-bit grey or RGB: palettes and small greys expanded, 16 bit rounded, alpha dropped. */
static void set_transforms(session *s)
{
    const int colour = png_get_color_type(s->png, s->info);

    png_set_expand(s->png);
    png_set_scale_16(s->png);
    if ((colour & PNG_COLOR_MASK_ALPHA) || png_get_valid(s->png, s->info, PNG_INFO_tRNS))
        png_set_strip_alpha(s->png);
}

/* Everything that may longjmp. */
static void read_image(session *s, uint64_t max_pixels)
{
    png_uint_32 width, height;
    int passes;

    png_set_user_limits(s->png, DECODE_MAX_SIDE, DECODE_MAX_SIDE);
    png_set_chunk_malloc_max(s->png, DECODE_MAX_CHUNK);
    png_set_keep_unknown_chunks(s->png, PNG_HANDLE_CHUNK_NEVER, NULL, -1); /* text, profiles, times: not ours */
    png_read_info(s->png, s->info);
    width = png_get_image_width(s->png, s->info);
    height = png_get_image_height(s->png, s->info);
    if ((uint64_t)width * height > max_pixels) {
        snprintf(s->words, sizeof(s->words), "%u x %u pixels, the limit is %llu", width, height,
                 (unsigned long long)max_pixels);
        s->too_large = true;
        png_longjmp(s->png, 1);
    }
    set_transforms(s);
    passes = png_set_interlace_handling(s->png);
    png_read_update_info(s->png, s->info);
    s->image.width = (int)width;
    s->image.height = (int)height;
    s->image.channels = png_get_channels(s->png, s->info);
    if ((s->image.channels != 1 && s->image.channels != 3) ||
        png_get_rowbytes(s->png, s->info) != (size_t)width * (size_t)s->image.channels)
        png_error(s->png, "neither grey nor RGB");
    s->image.pixels = qd_calloc((size_t)width * height, (size_t)s->image.channels);
    if (!s->image.pixels) {
        s->no_memory = true;
        png_error(s->png, "no memory for the pixels");
    }
    for (int pass = 0; pass < passes; pass++)
        for (png_uint_32 y = 0; y < height; y++)
            png_read_row(s->png, s->image.pixels + (size_t)y * width * (size_t)s->image.channels, NULL);
    png_read_end(s->png, NULL);
}

static int try_read(session *s, uint64_t max_pixels)
{
    const int thrown = setjmp(png_jmpbuf(s->png));

    if (thrown)
        return thrown;
    s->info = png_create_info_struct(s->png);
    if (!s->info)
        png_error(s->png, "no info struct");
    png_set_read_fn(s->png, s, on_read);
    read_image(s, max_pixels);
    return 0;
}

qd_status qd_png_decode(const void *data, size_t size, uint64_t max_pixels, qd_image *out, qd_err *err)
{
    session s = { 0 };
    qd_status st = QD_OK;

    qd_reader_init(&s.in, data, size);
    s.png = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, &s, on_error, on_warning, &s, on_malloc, on_free);
    if (!s.png || try_read(&s, max_pixels) != 0) {
        st = s.too_large ? qd_fail(err, QD_E_LIMIT, "reading a PNG: %s", s.words) : failed(&s, "reading", err);
        goto out;
    }
    *out = s.image;
    s.image = (qd_image){ 0 };
out:
    png_destroy_read_struct(&s.png, &s.info, NULL);
    qd_image_clear(&s.image);
    return st;
}
