/* report_plots.c - pictures of a report as SVG: curves over time steps, and the noise map. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "jobs/jobs_int.h"

/* --- curves --- */

/* In units of the view box, which a phone shows about one to one. */
enum { WIDTH = 380, HEIGHT = 210, LEFT = 50, RIGHT = 10, TOP = 12, BOTTOM = 36, POINTS_MAX = 120 };

typedef struct frame {
    double t0, t1, y0, y1; /* smallest and largest of each */
} frame;

static double across(const frame *f, double t)
{
    const double width = WIDTH - LEFT - RIGHT;
    return LEFT + width * (f->t1 > f->t0 ? (f->t1 - t) / (f->t1 - f->t0) : 0.5);
}

static double down(const frame *f, double y)
{
    return TOP + (HEIGHT - TOP - BOTTOM) * (f->y1 - y) / (f->y1 - f->y0);
}

/* Value k of one curve; false when there is none. */
static bool point(const sv_plot *p, int curve, size_t k, double *t, double *y)
{
    const json_t *row = json_array_get(p->rows, k);
    *t = sv_page_number(row, "t");
    *y = sv_page_number(row, p->key[curve]);
    return isfinite(*t) && isfinite(*y);
}

static int curves(const sv_plot *p)
{
    return p->key[1] ? 2 : 1;
}

static bool measure(const sv_plot *p, frame *f)
{
    double t, y;
    *f = (frame){ .t0 = INFINITY, .t1 = -INFINITY, .y0 = INFINITY, .y1 = -INFINITY };
    for (int c = 0; c < curves(p); c++)
        for (size_t k = 0; k < json_array_size(p->rows); k++) {
            if (!point(p, c, k, &t, &y))
                continue;
            f->t0 = fmin(f->t0, t);
            f->t1 = fmax(f->t1, t);
            f->y0 = fmin(f->y0, y);
            f->y1 = fmax(f->y1, y);
        }
    if (f->y0 > f->y1)
        return false;
    /* A flat curve, rounding aside, lies in the middle. */
    const double span = f->y1 - f->y0, size = fmax(fabs(f->y0), fabs(f->y1));
    const double room = span > 1e-9 * size ? 0.08 * span : fmax(1e-6, 0.1 * size);
    f->y0 -= room;
    f->y1 += room;
    return true;
}

/* 1, 2 or 5 times a power of ten, so that about n of them fill the span. */
static double tick_of(double span, int n)
{
    const double raw = span / n, power = pow(10, floor(log10(raw))), unit = raw / power;
    return power * (unit <= 1 ? 1 : unit <= 2 ? 2 : unit <= 5 ? 5 : 10);
}

static void add_axes(qd_buf *b, const frame *f)
{
    const double dy = tick_of(f->y1 - f->y0, 4);
    for (double k = ceil(f->y0 / dy); k * dy <= f->y1; k++) {
        const double at = down(f, k * dy);
        qd_buf_addf(b,
                    "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>"
                    "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.4g</text>",
                    LEFT, WIDTH - RIGHT, at, at, LEFT - 5, at + 4, k == 0 ? 0.0 : k * dy);
    }
    const double dt = f->t1 > f->t0 ? fmax(1, tick_of(f->t1 - f->t0, 5)) : 1;
    for (double k = ceil(f->t0 / dt); k * dt <= f->t1; k++)
        qd_buf_addf(b, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.4g</text>", across(f, k * dt),
                    HEIGHT - BOTTOM + 15, k * dt);
    qd_buf_addf(b, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">time step t</text>", (LEFT + WIDTH - RIGHT) / 2,
                HEIGHT - 5);
}

static void add_curve(qd_buf *b, const sv_plot *p, int c, const frame *f)
{
    static const char *const look[2] = { "a", "b" };
    const size_t n = json_array_size(p->rows);
    double t, y;
    const char *blank = "";
    qd_buf_addf(b, "<polyline class=\"%s\" points=\"", look[c]);
    for (size_t k = 0; k < n; k++)
        if (point(p, c, k, &t, &y)) {
            qd_buf_addf(b, "%s%.1f,%.1f", blank, across(f, t), down(f, y));
            blank = " ";
        }
    qd_buf_adds(b, "\"/>");
    for (size_t k = 0; n <= POINTS_MAX && k < n; k++)
        if (point(p, c, k, &t, &y)) {
            qd_buf_addf(b, "<circle class=\"%s\" cx=\"%.1f\" cy=\"%.1f\" r=\"2.4\"><title>", look[c], across(f, t),
                        down(f, y));
            sv_page_text(b, p->label[c]);
            qd_buf_addf(b, ", t %.0f: %.5g</title></circle>", t, y);
        }
}

void sv_plot_add(qd_buf *b, const sv_plot *p)
{
    static const char *const look[2] = { "a", "b" };
    frame f;
    qd_buf_adds(b, "<figure><figcaption><b>");
    sv_page_text(b, p->title);
    qd_buf_adds(b, "</b> ");
    sv_page_text(b, p->note);
    for (int c = 0; curves(p) == 2 && c < 2; c++) {
        qd_buf_addf(b,
                    " <span class=\"key\"><svg viewBox=\"0 0 26 10\" width=\"26\" height=\"10\" aria-hidden=\"true\">"
                    "<polyline class=\"%s\" points=\"1,5 25,5\"/></svg> ",
                    look[c]);
        sv_page_text(b, p->label[c]);
        qd_buf_adds(b, "</span>");
    }
    qd_buf_adds(b, "</figcaption>");
    if (!measure(p, &f)) {
        qd_buf_adds(b, "<p class=\"muted\">No figures.</p></figure>\n");
        return;
    }
    qd_buf_addf(b, "<svg class=\"plot\" viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", WIDTH, HEIGHT);
    sv_page_text(b, p->title);
    qd_buf_adds(b, " by time step\">");
    add_axes(b, &f);
    for (int c = 0; c < curves(p); c++)
        add_curve(b, p, c, &f);
    qd_buf_adds(b, "</svg></figure>\n");
}

/* --- the noise map --- */

enum { SHADES = 10, CELL_W = 17, CELL_H = 14, HEAD_H = 18, LABEL_CHARS = 40, CHAR_W = 6 };

typedef struct shades {
    double clean, noisy; // dB
} shades;

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* From the fifth percentile to at most the ninety-fifth, so that one bad cell does not make all others look alike; and not so far up
 * that a few exact layers do: the middle of all figures stays a third of the way. */
static qd_status find_shades(const json_t *layers, size_t steps, shades *out, qd_err *err)
{
    size_t n = 0;
    const size_t rows = json_array_size(layers);
    double *values = qd_calloc(rows ? rows * steps : 1, sizeof *values);
    if (!values)
        return qd_fail(err, QD_E_NOMEM, "no memory for a noise map of %zu layers", rows);
    for (size_t k = 0; k < rows; k++) {
        const json_t *row = json_object_get(json_array_get(layers, k), "sqnr_db");
        for (size_t i = 0; i < steps; i++)
            if (json_is_number(json_array_get(row, i)))
                values[n++] = json_number_value(json_array_get(row, i));
    }
    qsort(values, n, sizeof *values, ascending);
    *out = (shades){ 0 };
    if (n > 0) {
        out->noisy = floor(values[n / 20]);
        out->clean = ceil(fmin(values[n - 1 - n / 20], out->noisy + 3 * (values[n / 2] - out->noisy)));
    }
    out->clean = fmax(out->clean, out->noisy + 1);
    qd_free(values);
    return QD_OK;
}

/* 0 = clean .. SHADES - 1 = noisy */
static int shade_of(const shades *s, double db)
{
    const double k = floor((s->clean - db) / (s->clean - s->noisy) * SHADES);
    return (int)fmin(fmax(k, 0), SHADES - 1);
}

static void add_legend(qd_buf *b, const shades *s)
{
    const int bar = SHADES * 24;
    qd_buf_addf(
        b,
        "<svg class=\"legend\" viewBox=\"0 0 %d 34\" width=\"%d\" height=\"34\" role=\"img\" aria-label=\"dark: %.0f dB "
        "or more, bright: %.0f dB or less\">",
        bar + 110, bar + 110, s->clean, s->noisy);
    for (int k = 0; k < SHADES; k++)
        qd_buf_addf(b, "<rect class=\"c%d\" x=\"%d\" y=\"2\" width=\"24\" height=\"12\"/>", k, k * 24);
    qd_buf_addf(
        b,
        "<text x=\"0\" y=\"28\">%.0f dB or more</text><text x=\"%d\" y=\"28\" text-anchor=\"end\">%.0f dB or less</text>"
        "<rect class=\"cx\" x=\"%d\" y=\"2\" width=\"24\" height=\"12\"/><text x=\"%d\" y=\"28\">no noise</text></svg>",
        s->clean, bar, s->noisy, bar + 30, bar + 30);
}

/* The end of a name, which tells layers apart; never starts inside a character. */
static const char *tail_of(const char *name)
{
    const size_t n = strlen(name);
    if (n <= LABEL_CHARS)
        return name;
    const char *p = name + n - LABEL_CHARS + 1;
    while (((unsigned char)*p & 0xc0) == 0x80)
        p++;
    return p;
}

static void add_cells(qd_buf *b, const char *name, const json_t *layer, const json_t *t, const shades *s, int left)
{
    const json_t *db = json_object_get(layer, "sqnr_db"), *cosine = json_object_get(layer, "cosine");
    for (size_t k = 0; k < json_array_size(t); k++) {
        const json_t *v = json_array_get(db, k), *c = json_array_get(cosine, k);
        const int x = left + (int)k * CELL_W;
        if (json_is_number(v))
            qd_buf_addf(b, "<rect class=\"c%d\"", shade_of(s, json_number_value(v)));
        else
            qd_buf_adds(b, "<rect class=\"cx\"");
        qd_buf_addf(b, " x=\"%d\" width=\"%d\" height=\"%d\"><title>", x, CELL_W, CELL_H);
        sv_page_text(b, name);
        qd_buf_addf(b, ", t %.0f: ", json_number_value(json_array_get(t, k)));
        if (json_is_number(v))
            qd_buf_addf(b, "%.1f dB", json_number_value(v));
        else
            qd_buf_adds(b, "no noise");
        if (json_is_number(c))
            qd_buf_addf(b, ", cosine %.5g", json_number_value(c));
        qd_buf_adds(b, "</title></rect>");
    }
}

qd_status sv_noise_map_add(qd_buf *b, const json_t *map, qd_err *err)
{
    const json_t *layers = json_object_get(map, "layers"), *t = json_object_get(map, "t");
    const size_t rows = json_array_size(layers), steps = json_array_size(t);
    size_t longest = 0;
    shades s = { 0 };
    const qd_status st = find_shades(layers, steps, &s, err);
    if (st)
        return st;
    for (size_t k = 0; k < rows; k++) {
        const char *name = json_string_value(json_object_get(json_array_get(layers, k), "name"));
        const size_t n = name ? strlen(name) : 0;
        longest = n > longest ? n : longest;
    }
    const int left = (int)(longest < LABEL_CHARS ? longest : LABEL_CHARS) * CHAR_W + 8;
    const int width = left + (int)steps * CELL_W + 12, height = HEAD_H + (int)rows * CELL_H + 2;

    add_legend(b, &s);
    qd_buf_addf(
        b,
        "<div class=\"scroll\"><svg id=\"noise-map\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" role=\"img\" "
        "aria-label=\"noise map, %zu layers by %zu time steps\">\n",
        width, height, width, height, rows, steps);
    /* Every second label where numbers of four digits would touch. */
    for (size_t k = 0; k < steps; k += 2)
        qd_buf_addf(b, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">%.0f</text>",
                    left + (int)k * CELL_W + CELL_W / 2, HEAD_H - 5, json_number_value(json_array_get(t, k)));
    for (size_t k = 0; k < rows; k++) {
        const json_t *layer = json_array_get(layers, k);
        const char *name = json_string_value(json_object_get(layer, "name"));
        const char *tail = tail_of(name ? name : "");
        qd_buf_addf(b, "<g transform=\"translate(0,%d)\"><text x=\"%d\" y=\"%d\" text-anchor=\"end\">",
                    HEAD_H + (int)k * CELL_H, left - 5, CELL_H - 4);
        qd_buf_adds(b, tail == name ? "" : "\xe2\x80\xa6");
        sv_page_text(b, tail);
        qd_buf_adds(b, "</text>");
        add_cells(b, name ? name : "", layer, t, &s, left);
        qd_buf_adds(b, "</g>\n");
    }
    qd_buf_adds(b, "</svg></div>\n");
    return QD_OK;
}
