/* fuzz_config.c - any bytes as a configuration: refused, or every getter answers, and the canonical text stands still. */
#include "fuzz.h"

#include <string.h>

#include "model/model.h"

static void ask_everything(const qd_config *c, const char *key)
{
    int64_t i = 0, ints[4];
    double d = 0, numbers[4];
    bool b = false;
    const char *s = NULL, *strings[4];
    int n = 0;

    qd_err err = { 0 };

    if (qd_config_int(c, key, -5, 1000, &i, &err) == QD_OK)
        must(i >= -5 && i <= 1000);
    qd_config_number(c, key, &d, &err);
    qd_config_bool(c, key, &b, &err);
    qd_config_string(c, key, &s, &err);
    if (qd_config_ints(c, key, -5, 1000, ints, 4, &n, &err) == QD_OK)
        for (int k = 0; k < n; k++)
            must(ints[k] >= -5 && ints[k] <= 1000);
    qd_config_numbers(c, key, numbers, 4, &n, &err);
    qd_config_strings(c, key, strings, 4, &n, &err);
    must(n >= 0 && n <= 4);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qd_config *c = NULL, *again = NULL;
    qd_err err = { 0 };

    if (qd_config_parse((const char *)data, size, "fuzz", &c, &err)) {
        must(!c && err.text[0]);
        return 0;
    }
    for (int k = 0; k < qd_config_count(c); k++)
        ask_everything(c, qd_config_key(c, k));
    must(qd_config_parse(qd_config_text(c), strlen(qd_config_text(c)), "again", &again, &err) == QD_OK);
    must(strcmp(qd_config_text(c), qd_config_text(again)) == 0);
    qd_config_free(again);
    qd_config_free(c);
    return 0;
}
