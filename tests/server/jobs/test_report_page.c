/* test_report_page.c - the page of a report: nothing from outside becomes markup, every cell is there, same report, same bytes. */
#include <string.h>

#include "base/mem.h"
#include "harness/harness.h"
#include "jobs/jobs_int.h"

/* A report with hostile names, one layer without noise, one time step, figures that are missing. */
static const char report_text[] =
    "{\"name\":\"<script>alert(1)</script>&\\u0001\",\"quantd\":\"x\",\"job\":\"job_1\",\"source\":{\"sha256\":\"aa\"},"
    "\"bundle\":{\"sha256\":\"bb\"},\"figures\":{\"method\":\"mse\",\"ratio\":3.5,\"float_bytes\":7000,"
    "\"quantized_bytes\":2000,\"layers_quantized\":2,\"layers_float\":1,\"calls_float\":10,\"calls_int8\":13},"
    "\"params\":{\"seed\":7,\"mu_max\":0.05,\"skip_layers\":\"it's\\\"<\",\"transformer\":\"linear\"},"
    "\"layers\":[{\"name\":\"quiet\",\"op\":\"conv2d\",\"weight_bits\":4,\"activation_bits\":8,\"weight_sqnr_db\":30,"
    "\"input_sqnr_db\":40,\"note\":\"\"},{\"name\":\"kept\",\"op\":\"conv2d\",\"weight_bits\":0,\"activation_bits\":0,"
    "\"note\":\"why < not\"},{\"name\":\"loud\",\"op\":\"linear\",\"weight_bits\":4,\"activation_bits\":8,"
    "\"weight_sqnr_db\":12.25,\"input_sqnr_db\":null,\"note\":\"\"}],"
    "\"eps\":[{\"t\":500,\"sqnr_db\":null}],\"trajectory\":[{\"t\":500,\"mean_float\":0,\"mean_quantized\":0,"
    "\"std_float\":1,\"std_quantized\":1.0000000000000002}],"
    "\"noise_map\":{\"t\":[500],\"layers\":[{\"name\":\"quiet'\",\"sqnr_db\":[null],\"cosine\":[1]},"
    "{\"name\":\"loud\",\"sqnr_db\":[-3.5],\"cosine\":[null]}]}}";

static char *page_of(const char *text, const void *sheet, size_t size)
{
    qd_buf b;
    qd_err err = { 0 };
    json_t *r = json_loads(text, 0, NULL);
    assert_non_null(r);
    qd_buf_init(&b, 0);
    check_ok(sv_report_page(r, sheet, size, &b, &err), &err);
    json_decref(r);
    return qd_buf_take(&b, NULL);
}

static int count(const char *text, const char *what)
{
    int n = 0;
    for (const char *p = strstr(text, what); p; p = strstr(p + 1, what))
        n++;
    return n;
}

static void page_escapes_and_counts(void **state)
{
    char *page = page_of(report_text, NULL, 0);
    assert_null(strstr(page, "<script"));
    assert_null(strchr(page, '\x01'));
    assert_non_null(strstr(page, "&lt;script&gt;alert(1)&lt;/script&gt;&amp;"));
    assert_non_null(strstr(page, "why &lt; not"));
    /* A quote in a parameter leaves the shell's quotes closed; then JSON's own escape, and HTML's. */
    assert_non_null(strstr(page, "it&#39;\\&#39;&#39;s\\&quot;&lt;"));
    assert_non_null(strstr(page, "0.05</dd>"));
    assert_null(strstr(page, "http"));
    assert_null(strstr(page, "nan"));
    /* Two layers by one step. */
    const char *map = strstr(page, "id=\"noise-map\"");
    assert_non_null(map);
    assert_int_equal(count(map, "<rect "), 2);
    assert_non_null(strstr(map, "quiet&#39;, t 500: no noise, cosine 1"));
    assert_non_null(strstr(map, "loud, t 500: -3.5 dB</title>"));
    /* Worst first, float last. */
    const char *table = strstr(page, "id=\"layers\"");
    assert_true(strstr(table, ">loud<") < strstr(table, ">quiet<"));
    assert_true(strstr(table, ">quiet<") < strstr(table, ">kept<"));
    assert_non_null(strstr(page, "10 of the sampler and 3 of the probe (+30 %)"));
    qd_free(page);
}

/* RFC 4648, section 10. */
static void sheet_is_embedded(void **state)
{
    static const char *const vectors[][2] = { { "f", "base64,Zg==\"" },
                                              { "fo", "base64,Zm8=\"" },
                                              { "foo", "base64,Zm9v\"" },
                                              { "foobar", "base64,Zm9vYmFy\"" } };
    for (size_t k = 0; k < sizeof vectors / sizeof vectors[0]; k++) {
        char *page = page_of(report_text, vectors[k][0], strlen(vectors[k][0]));
        assert_non_null(strstr(page, vectors[k][1]));
        qd_free(page);
    }
}

static void same_report_same_bytes(void **state)
{
    char *a = page_of(report_text, "foo", 3), *b = page_of(report_text, "foo", 3);
    assert_string_equal(a, b);
    qd_free(a);
    qd_free(b);
}

static void no_memory_is_said(void **state)
{
    qd_buf b;
    qd_err err = { 0 };
    json_t *r = json_loads(report_text, 0, NULL);
    qd_buf_init(&b, 4096); /* a ceiling lower than any page */
    check_fails(sv_report_page(r, NULL, 0, &b, &err), QD_E_NOMEM, "page", &err);
    qd_buf_clear(&b);
    json_decref(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(page_escapes_and_counts),
        cmocka_unit_test(sheet_is_embedded),
        cmocka_unit_test(same_report_same_bytes),
        cmocka_unit_test(no_memory_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
