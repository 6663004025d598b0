/* fuzz_bundle.c - any bytes as a bundle, or any text as the graph of one: refused, or a graph that verifies.
 *
 * An input that starts with '{' is graph text, NUL, tensor entries of the header, NUL, data; so the fuzzer need not learn JSON
 * inside JSON strings. Anything else is the file itself. */
#include "fuzz.h"

#include <string.h>

#include "base/bytes.h"
#include "model/model.h"

#define TEXT_MAX (1u << 20)

/* Up to the next NUL, NUL-terminated in place of it; *p moves behind it. */
static char *take_text(const uint8_t **p, const uint8_t *end)
{
    const uint8_t *nul = memchr(*p, 0, (size_t)(end - *p));
    const size_t n = nul ? (size_t)(nul - *p) : (size_t)(end - *p);
    char *text = malloc(n + 1);

    must(text);
    memcpy(text, *p, n);
    text[n] = '\0';
    *p += n + (nul != NULL);
    return text;
}

static void wrap(const uint8_t *data, size_t size, qd_buf *file)
{
    const uint8_t *p = data, *end = data + size;
    char *graph = take_text(&p, end), *entries = take_text(&p, end);
    char length[8];

    qd_buf_add(file, "\0\0\0\0\0\0\0\0", 8);
    qd_buf_adds(file, "{\"__metadata__\":{\"format\":\"" QD_BUNDLE_FORMAT "\",\"graph\":");
    qd_buf_add_json_string(file, graph);
    qd_buf_adds(file, entries[0] ? "}," : "}");
    qd_buf_adds(file, entries);
    qd_buf_adds(file, "}");
    for (int k = 0; k < 8; k++)
        length[k] = (char)((uint64_t)(file->size - 8) >> (8 * k));
    memcpy(file->data, length, 8);
    qd_buf_add(file, p, (size_t)(end - p));
    free(graph);
    free(entries);
}

static void check(const void *data, size_t size)
{
    qd_graph *g = NULL;
    qd_meta *meta = NULL;
    qd_err err = { 0 };
    qd_buf text;

    if (qd_bundle_parse(data, size, &g, &meta, &err)) {
        must(!g && !meta && err.text[0]);
        return;
    }
    must(qd_graph_verify(g, &err) == QD_OK);
    must(qd_graph_outputs(g) > 0);
    qd_buf_init(&text, TEXT_MAX);
    qd_graph_print(g, &text);
    qd_buf_clear(&text);
    qd_graph_free(g);
    qd_meta_free(meta);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qd_buf file;

    if (size == 0 || data[0] != '{') {
        check(data, size);
        return 0;
    }
    qd_buf_init(&file, 0);
    wrap(data, size, &file);
    if (!file.failed)
        check(file.data, file.size);
    qd_buf_clear(&file);
    return 0;
}
