/* report_page.c - the report of a quantized denoiser as a page to read: one file, no scripts, nothing from elsewhere.
 *
 * It is well-formed as HTML and as XML, and made of report.json alone: whoever keeps one can have the other. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/mem.h"
#include "jobs/jobs_int.h"

enum { SHEET_BYTES = 16 << 20, SHEET_PX = 960, NAMES_SHOWN = 12 };

static const char style[] =
    ":root{--ink:#16211f;--muted:#5a6866;--paper:#fbfcfb;--card:#fff;--line:#d9e0de;--a:#1f6f78;--b:#c2410c;"
    "font:15px/1.5 system-ui,sans-serif;color-scheme:light dark}"
    "@media(prefers-color-scheme:dark){:root{--ink:#e4ebe9;--muted:#9dacaa;--paper:#101615;--card:#18201f;"
    "--line:#2d3938;--a:#6cc3cc;--b:#f2a65a}}"
    "*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink)}"
    "main{max-width:72rem;margin:0 auto;padding:1.2rem}h1{font-size:1.4rem;margin:.2rem 0;overflow-wrap:anywhere}"
    "h2{font-size:1.05rem;margin:1.8rem 0 .4rem}p{margin:.3rem 0;overflow-wrap:anywhere}"
    ".muted,figcaption,small{color:var(--muted)}.mono,code,pre{font-family:ui-monospace,monospace;font-size:.88em}"
    ".figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.7rem;margin:.9rem 0}"
    ".figures div{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.5rem .9rem}"
    ".figures b{display:block;font-size:1.4rem;line-height:1.25}.figures span{display:block}"
    ".plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(22rem,100%),1fr));gap:.8rem}"
    "figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.6rem}"
    "figcaption{font-size:.88rem}figcaption b{color:var(--ink)}.key{white-space:nowrap}"
    "svg text{fill:var(--muted);font:10px ui-monospace,monospace}.plot{width:100%;height:auto;display:block}"
    ".grid{stroke:var(--line)}polyline{fill:none;stroke-width:1.8}polyline.a{stroke:var(--a)}circle.a{fill:var(--a)}"
    "polyline.b{stroke:var(--b);stroke-dasharray:5 3}circle.b{fill:var(--b)}.legend{display:block;max-width:100%}"
    ".c0{fill:#00224e}.c1{fill:#123570}.c2{fill:#3b496c}.c3{fill:#575d6d}.c4{fill:#707173}.c5{fill:#8a8678}"
    ".c6{fill:#a59c74}.c7{fill:#c3b369}.c8{fill:#e1cc55}.c9{fill:#fee838}.cx{fill:var(--line)}"
    "#noise-map{display:block}#noise-map rect{stroke:var(--card);stroke-width:1}#noise-map rect:hover{stroke:var(--ink)}"
    ".scroll{overflow-x:auto}.tall{max-height:40rem;overflow:auto}"
    "table{border-collapse:collapse;width:100%;background:var(--card);border:1px solid var(--line)}"
    "th,td{text-align:left;padding:.2rem .7rem;border-bottom:1px solid var(--line);vertical-align:top}"
    "th{color:var(--muted);font-size:.85rem;position:sticky;top:0;background:var(--card)}"
    "td.n,th.n{text-align:right;white-space:nowrap}td.mono{overflow-wrap:anywhere;min-width:12rem}"
    "img{max-width:100%;height:auto;image-rendering:pixelated;display:block;border-radius:4px}"
    "dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(13rem,1fr));gap:.2rem 1rem;margin:0}"
    "dt{color:var(--muted);font-size:.85rem}dd{margin:0 0 .3rem;overflow-wrap:anywhere}"
    "pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.7rem;white-space:pre-wrap;"
    "overflow-wrap:anywhere}@media(max-width:40rem){main{padding:.8rem}}"
    "@media print{.tall{max-height:none}}";

/* --- small parts --- */

void sv_page_text(qd_buf *b, const char *text)
{
    const char *from = text;
    for (const char *p = text;; p++) {
        const char *as = *p == '&'    ? "&amp;"
                         : *p == '<'  ? "&lt;"
                         : *p == '>'  ? "&gt;"
                         : *p == '"'  ? "&quot;"
                         : *p == '\'' ? "&#39;"
                         : ((unsigned char)*p < 0x20 && *p != '\n' && *p != '\t') || *p == 0x7f
                             ? "\xef\xbf\xbd" /* XML has no way to write it */
                             : NULL;
        if (*p && !as)
            continue;
        qd_buf_add(b, from, (size_t)(p - from));
        if (!*p)
            return;
        qd_buf_adds(b, as);
        from = p + 1;
    }
}

double sv_page_number(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

static const char *string(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

static void bytes(qd_buf *b, double n)
{
    static const char *const units[] = { "B", "kB", "MB", "GB", "TB" };
    int k = 0;
    while (n >= 1000 && k < 4) {
        n /= 1000;
        k++;
    }
    qd_buf_addf(b, k ? "%.3g %s" : "%.0f %s", n, units[k]);
}

static void seconds(qd_buf *b, double s)
{
    if (s < 1)
        qd_buf_addf(b, "%.3g ms", s * 1e3);
    else
        qd_buf_addf(b, "%.3g s", s);
}

/* A cell with a figure, or with a dash where there is none. */
static void cell(qd_buf *b, const char *fmt, double v)
{
    char text[40];
    snprintf(text, sizeof text, fmt, v); /* fmt: a literal of this file with one %f or %g */
    qd_buf_addf(b, "<td class=\"n\">%s</td>", isfinite(v) ? text : "\xe2\x80\x93");
}

static void text_cell(qd_buf *b, const char *class, const char *text)
{
    qd_buf_addf(b, "<td class=\"%s\">", class);
    sv_page_text(b, text);
    qd_buf_adds(b, "</td>");
}

/* --- the top --- */

static void add_head(qd_buf *b, const json_t *r)
{
    const json_t *f = json_object_get(r, "figures");
    qd_buf_adds(b, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>"
                   "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/><title>");
    sv_page_text(b, string(r, "name"));
    qd_buf_adds(b, " \xc2\xb7 ");
    sv_page_text(b, string(f, "method"));
    qd_buf_addf(b, "</title><style>%s</style></head>\n<body><main>\n<h1>", style);
    sv_page_text(b, string(r, "name"));
    qd_buf_adds(b, " \xc2\xb7 ");
    sv_page_text(b, string(f, "method"));
    if (sv_page_number(f, "weight_bits") > 0 && sv_page_number(f, "activation_bits") > 0)
        qd_buf_addf(b, " W%.0fA%.0f", sv_page_number(f, "weight_bits"), sv_page_number(f, "activation_bits"));
    qd_buf_adds(b, "</h1>\n<p class=\"muted\">Float model <span class=\"mono\">sha256 ");
    sv_page_text(b, string(json_object_get(r, "source"), "sha256"));
    qd_buf_adds(b, "</span></p>\n<p class=\"muted\">Quantized model <span class=\"mono\">sha256 ");
    sv_page_text(b, string(json_object_get(r, "bundle"), "sha256"));
    qd_buf_adds(b, "</span></p>\n<p class=\"muted\">Made by quantd ");
    sv_page_text(b, string(r, "quantd"));
    qd_buf_adds(b, ", job <span class=\"mono\">");
    sv_page_text(b, string(r, "job"));
    qd_buf_adds(b, "</span></p>\n");
}

static void figure(qd_buf *b, const char *fmt, double v, const char *label)
{
    char text[40];
    if (!isfinite(v))
        return;
    snprintf(text, sizeof text, fmt, v);
    qd_buf_addf(b, "<div><b>%s</b><span>%s</span><small>", text, label);
}

static void add_figures(qd_buf *b, const json_t *r)
{
    static const char end[] = "</small></div>\n";
    const json_t *f = json_object_get(r, "figures");
    qd_buf_adds(b, "<div class=\"figures\">\n");
    if (isfinite(sv_page_number(f, "ratio"))) {
        figure(b, "%.2f\xc3\x97", sv_page_number(f, "ratio"), "smaller");
        bytes(b, sv_page_number(f, "float_bytes"));
        qd_buf_adds(b, " of constants to ");
        bytes(b, sv_page_number(f, "quantized_bytes"));
        qd_buf_adds(b, end);
    }
    if (isfinite(sv_page_number(f, "eps_sqnr_db"))) {
        figure(b, "%.1f dB", sv_page_number(f, "eps_sqnr_db"), "eps SQNR");
        qd_buf_addf(b, "signal against quantization noise, over time steps%s", end);
    }
    if (isfinite(sv_page_number(f, "psnr_db_mean"))) {
        figure(b, "%.1f dB", sv_page_number(f, "psnr_db_mean"), "image PSNR");
        qd_buf_addf(b, "%.0f pairs from the same noise, the worst %.1f dB%s", sv_page_number(f, "pairs"),
                    sv_page_number(f, "psnr_db_min"), end);
    }
    const double calls = sv_page_number(f, "calls_int8"), plain = sv_page_number(f, "calls_float");
    if (isfinite(calls) && isfinite(plain)) {
        figure(b, "%.0f", calls, "calls of the network per image");
        if (calls > plain)
            qd_buf_addf(b, "%.0f of the sampler and %.0f of the probe (%+.0f %%)%s", plain, calls - plain,
                        100 * (calls / plain - 1), end);
        else
            qd_buf_addf(b, "as many as the float model%s", end);
    }
    if (isfinite(sv_page_number(f, "seconds_per_image_int8"))) {
        figure(b, "%.2f\xc3\x97", sv_page_number(f, "speedup"), "as fast per image");
        seconds(b, sv_page_number(f, "seconds_per_image_float"));
        qd_buf_adds(b, " float, ");
        seconds(b, sv_page_number(f, "seconds_per_image_int8"));
        qd_buf_addf(b, " quantized, %.0f threads%s", sv_page_number(f, "threads"), end);
    }
    if (isfinite(sv_page_number(f, "drift_std_max"))) {
        figure(b, "%.3g", sv_page_number(f, "drift_std_max"), "largest drift of std");
        qd_buf_addf(b, "of the mean %.3g, over all steps%s", sv_page_number(f, "drift_mean_max"), end);
    }
    qd_buf_adds(b, "</div>\n");
}

/* --- what is on codes and what is not --- */

/* Layers in float by reason, in the order of the first of each. */
static void add_reasons(qd_buf *b, const json_t *layers)
{
    const size_t n = json_array_size(layers);
    for (size_t k = 0; k < n; k++) {
        const char *note = string(json_array_get(layers, k), "note");
        bool earlier = false;
        size_t count = 0;
        for (size_t i = 0; i < n && note[0]; i++) {
            const bool same = strcmp(note, string(json_array_get(layers, i), "note")) == 0;
            earlier |= same && i < k;
            count += same;
        }
        if (!note[0] || earlier)
            continue;
        qd_buf_addf(b, "<li>%zu layer%s: ", count, count == 1 ? "" : "s");
        sv_page_text(b, note);
        qd_buf_adds(b, ". <span class=\"mono muted\">");
        size_t shown = 0;
        for (size_t i = k; i < n && shown < NAMES_SHOWN; i++) {
            const json_t *l = json_array_get(layers, i);
            if (strcmp(note, string(l, "note")) != 0)
                continue;
            qd_buf_adds(b, shown++ ? ", " : "");
            sv_page_text(b, string(l, "name"));
        }
        qd_buf_addf(b, "%s</span></li>\n", count > shown ? ", \xe2\x80\xa6" : "");
    }
}

static void add_policy(qd_buf *b, const json_t *r)
{
    static const struct {
        const char *name, *words;
    } policies[] = {
        { "linear", "layers of tokens are quantized as all others, the products of attention stay in float" },
        { "fp", "layers of tokens and the products of attention stay in float" },
        { "w8a8", "layers of tokens and the products of attention run on codes of 8 bits" },
        { "wXaY", "layers of tokens and the products of attention run on codes of the bits above" },
    };
    const json_t *f = json_object_get(r, "figures"), *p = json_object_get(r, "params");
    const char *policy = string(p, "transformer"), *words = "";
    for (size_t k = 0; k < sizeof policies / sizeof policies[0]; k++)
        if (strcmp(policy, policies[k].name) == 0)
            words = policies[k].words;
    qd_buf_addf(b, "<h2>What runs on codes</h2>\n<ul>\n<li>%.0f rows of layers in integers, %.0f in float.</li>\n",
                sv_page_number(f, "layers_quantized"), sv_page_number(f, "layers_float"));
    add_reasons(b, json_object_get(r, "layers"));
    if (policy[0]) {
        qd_buf_adds(b, "<li>Transformer policy ");
        sv_page_text(b, policy);
        qd_buf_addf(b, ": %s.</li>\n", words);
    }
    if (string(f, "correction")[0]) {
        qd_buf_adds(b, "<li>Correction while sampling: ");
        sv_page_text(b, string(f, "correction"));
        qd_buf_adds(b, ".</li>\n");
    }
    qd_buf_adds(b, "</ul>\n");
}

/* --- pairs --- */

static void add_base64(qd_buf *b, const unsigned char *p, size_t n)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t k = 0; k < n; k += 3) {
        const size_t left = n - k;
        const unsigned v = (unsigned)p[k] << 16 | (left > 1 ? (unsigned)p[k + 1] << 8 : 0) | (left > 2 ? p[k + 2] : 0);
        const char four[4] = { digits[v >> 18], digits[v >> 12 & 63], left > 1 ? digits[v >> 6 & 63] : '=',
                               left > 2 ? digits[v & 63] : '=' };
        qd_buf_add(b, four, 4);
    }
}

static void add_sheet(qd_buf *b, const void *sheet, size_t size)
{
    qd_reader head;
    qd_buf_adds(b, "<h2>Pairs</h2>\n");
    if (size == 0 || size > SHEET_BYTES) {
        qd_buf_addf(b, "<p class=\"muted\">%s</p>\n",
                    size ? "The sheet is too large to stand here: see samples.png of the job." : "None were drawn.");
        return;
    }
    qd_reader_init(&head, sheet, size);
    qd_read_bytes(&head, 16); /* signature and the head of IHDR */
    const uint32_t width = qd_read_u32be(&head), height = qd_read_u32be(&head);
    const uint32_t zoom = width > 0 && width < SHEET_PX ? SHEET_PX / width : 1;
    qd_buf_adds(
        b, "<p class=\"muted\">Float on the left, quantized on the right of each pair; both from the same noise.</p>\n"
           "<figure><img alt=\"pairs of pictures, float and quantized\" src=\"data:image/png;base64,");
    add_base64(b, sheet, size);
    qd_buf_addf(b, "\" width=\"%u\" height=\"%u\"/></figure>\n", width * zoom, height * zoom);
}

/* --- curves and the map --- */

static void add_plots(qd_buf *b, const json_t *r)
{
    const json_t *eps = json_object_get(r, "eps"), *walk = json_object_get(r, "trajectory"),
                 *correction = json_object_get(r, "correction"), *table = json_object_get(correction, "table"),
                 *probe = json_object_get(correction, "probe");
    const sv_plot plots[] = {
        { "eps SQNR", "in dB, on the same x_t; higher is better", eps, { "sqnr_db" }, { "eps SQNR" } },
        { "Mean of x_t", "", walk, { "mean_float", "mean_quantized" }, { "float", "quantized" } },
        { "Deviation of x_t", "", walk, { "std_float", "std_quantized" }, { "float", "quantized" } },
        { "Correction: slope", "of the noise on eps", table, { "slope" }, { "slope" } },
        { "Correction: bias", "mean over channels", table, { "bias" }, { "bias" } },
        { "Correction: sigma", "of what neither explains", table, { "sigma" }, { "sigma" } },
        { "Probe: mean", "of the float model's own answer", probe, { "mean" }, { "mean" } },
        { "Probe: spread", "between samples", probe, { "spread" }, { "spread" } },
    };
    qd_buf_adds(
        b,
        "<h2>Noise by time step</h2>\n<p class=\"muted\">Sampling runs from left to right.</p>\n<div class=\"plots\">\n");
    for (size_t k = 0; k < sizeof plots / sizeof plots[0]; k++)
        if (json_array_size(plots[k].rows) > 0)
            sv_plot_add(b, &plots[k]);
    qd_buf_adds(b, "</div>\n");
}

static qd_status add_map(qd_buf *b, const json_t *r, qd_err *err)
{
    const json_t *map = json_object_get(r, "noise_map");
    qd_buf_adds(b, "<h2>Noise by layer and time step</h2>\n");
    if (json_array_size(json_object_get(map, "layers")) == 0) {
        qd_buf_adds(b, "<p class=\"muted\">No map was asked for (noise_map_steps).</p>\n");
        return QD_OK;
    }
    qd_buf_adds(
        b,
        "<p class=\"muted\">SQNR of what each layer makes, quantized against float, given the same x_t: noise of its "
        "own and of all layers before it. Point at a cell for its figures.</p>\n");
    return sv_noise_map_add(b, map, err);
}

/* --- tables --- */

typedef struct harm {
    double db; /* the lower one of its SQNRs */
    size_t row;
} harm;

static int worst_first(const void *a, const void *b)
{
    const harm *x = a, *y = b;
    if (x->db != y->db)
        return x->db < y->db ? -1 : 1;
    return (x->row > y->row) - (x->row < y->row);
}

static void bits_cell(qd_buf *b, double n)
{
    if (n > 0)
        qd_buf_addf(b, "<td class=\"n\">%.0f</td>", n);
    else
        qd_buf_adds(b, "<td class=\"n\">float</td>");
}

static qd_status add_layers(qd_buf *b, const json_t *layers, qd_err *err)
{
    const size_t n = json_array_size(layers);
    harm *order = qd_calloc(n ? n : 1, sizeof *order);
    if (!order)
        return qd_fail(err, QD_E_NOMEM, "no memory for a table of %zu layers", n);
    for (size_t k = 0; k < n; k++) {
        const json_t *l = json_array_get(layers, k);
        const double db = fmin(sv_page_number(l, "weight_sqnr_db"), sv_page_number(l, "input_sqnr_db"));
        order[k] = (harm){ isfinite(db) ? db : INFINITY, k };
    }
    qsort(order, n, sizeof *order, worst_first);
    qd_buf_adds(
        b, "<h2>Layers</h2>\n<p class=\"muted\">Sorted by harm: the lowest SQNR, of weights or of input, first.</p>\n"
           "<div class=\"scroll tall\"><table id=\"layers\"><thead><tr><th>Layer</th><th>Operator</th>"
           "<th class=\"n\">Weight bits</th><th class=\"n\">Input bits</th><th class=\"n\">Weight SQNR, dB</th>"
           "<th class=\"n\">Input SQNR, dB</th><th>Note</th></tr></thead><tbody>\n");
    for (size_t k = 0; k < n; k++) {
        const json_t *l = json_array_get(layers, order[k].row);
        qd_buf_adds(b, "<tr>");
        text_cell(b, "mono", string(l, "name"));
        text_cell(b, "", string(l, "op"));
        bits_cell(b, sv_page_number(l, "weight_bits"));
        bits_cell(b, sv_page_number(l, "activation_bits"));
        cell(b, "%.1f", sv_page_number(l, "weight_sqnr_db"));
        cell(b, "%.1f", sv_page_number(l, "input_sqnr_db"));
        text_cell(b, "", string(l, "note"));
        qd_buf_adds(b, "</tr>\n");
    }
    qd_buf_adds(b, "</tbody></table></div>\n");
    qd_free(order);
    return QD_OK;
}

static void add_reconstruction(qd_buf *b, const json_t *blocks)
{
    if (json_array_size(blocks) == 0)
        return;
    qd_buf_adds(
        b,
        "<h2>Reconstruction</h2>\n<p class=\"muted\">Rounding learned block by block; the error is of a block's output on "
        "the calibration set.</p>\n<div class=\"scroll tall\"><table id=\"blocks\"><thead><tr><th>Block</th><th>Kind</th>"
        "<th class=\"n\">Layers</th><th class=\"n\">Iterations</th><th class=\"n\">Error, nearest</th>"
        "<th class=\"n\">Error, learned</th><th class=\"n\">Less by, dB</th><th>Note</th></tr></thead><tbody>\n");
    for (size_t k = 0; k < json_array_size(blocks); k++) {
        const json_t *o = json_array_get(blocks, k);
        const double before = sv_page_number(o, "mse_nearest"), after = sv_page_number(o, "mse_learned");
        qd_buf_adds(b, "<tr>");
        text_cell(b, "mono", string(o, "name"));
        text_cell(b, "", string(o, "kind"));
        cell(b, "%.0f", sv_page_number(o, "layers"));
        cell(b, "%.0f", sv_page_number(o, "iterations"));
        cell(b, "%.4g", before);
        cell(b, "%.4g", after);
        cell(b, "%.2f", before > 0 && after > 0 ? 10 * log10(before / after) : NAN);
        const bool kept = json_is_true(json_object_get(o, "kept_nearest"));
        text_cell(b, "", string(o, "note")[0] ? string(o, "note") : kept ? "no gain: stays rounded to nearest" : "");
        qd_buf_adds(b, "</tr>\n");
    }
    qd_buf_adds(b, "</tbody></table></div>\n");
}

/* --- how it was made, and how to make it again --- */

/* Inside single quotes of a shell. */
static void shell_text(qd_buf *b, const char *text)
{
    char one[2] = { 0 };
    for (const char *p = text; *p; p++)
        if (*p == '\'') {
            sv_page_text(b, "'\\''");
        } else {
            one[0] = *p;
            sv_page_text(b, one);
        }
}

static qd_status add_recipe(qd_buf *b, const json_t *r, qd_err *err)
{
    const char *key;
    json_t *v, *params = json_deep_copy(json_object_get(r, "params"));
    char *text = NULL;
    qd_status st = QD_OK;

    json_object_set_new(params, "method", json_string(string(json_object_get(r, "figures"), "method")));
    text = params ? sv_json_text(params) : NULL;
    if (!text) {
        st = qd_fail(err, QD_E_NOMEM, "no memory for the parameters of a job");
        goto out;
    }
    qd_buf_adds(b, "<h2>Parameters</h2>\n<dl>\n");
    json_object_foreach(json_object_get(r, "params"), key, v)
    {
        if (json_is_string(v) && !json_string_length(v))
            continue;
        qd_buf_adds(b, "<div><dt>");
        sv_page_text(b, key);
        qd_buf_adds(b, "</dt><dd>");
        if (json_is_string(v))
            sv_page_text(b, json_string_value(v));
        else if (json_is_number(v))
            qd_buf_add_json_number(b, json_number_value(v));
        else
            qd_buf_adds(b, json_is_true(v) ? "true" : "false");
        qd_buf_adds(b, "</dd></div>\n");
    }
    qd_buf_adds(
        b,
        "</dl>\n<h2>To make it again</h2>\n<p class=\"muted\">The same float model, parameters and seed give the same "
        "quantized model, byte for byte, on one kind of processor. QUANTD is the daemon's address.</p>\n"
        "<pre>curl -sS -T FILE \"$QUANTD/v1/models/again\"\n"
        "curl -sS \"$QUANTD/v1/jobs\" -H 'Content-Type: application/json' -d '{\"kind\":\"quantize\",\"model\":\"again\","
        "\"params\":");
    shell_text(b, text);
    qd_buf_adds(b, "}'</pre>\n");
out:
    qd_free(text);
    json_decref(params);
    return st;
}

qd_status sv_report_page(const json_t *report, const void *sheet, size_t sheet_size, qd_buf *out, qd_err *err)
{
    qd_status st;
    add_head(out, report);
    add_figures(out, report);
    add_policy(out, report);
    add_sheet(out, sheet, sheet_size);
    add_plots(out, report);
    st = add_map(out, report, err);
    if (!st)
        st = add_layers(out, json_object_get(report, "layers"), err);
    if (st)
        return st;
    add_reconstruction(out, json_object_get(report, "reconstruction"));
    st = add_recipe(out, report, err);
    if (st)
        return st;
    qd_buf_adds(out, "</main></body></html>\n");
    return out->failed ? qd_fail(err, QD_E_NOMEM, "no memory for the page of a report") : QD_OK;
}
