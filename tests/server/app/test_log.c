/* test_log.c - one line per event, whatever the values hold. */
#include "harness/harness.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log.h"

/* What `speak` writes to standard error. */
static const char *heard(void (*speak)(void))
{
    static char text[65536];
    FILE *file = tmpfile();
    const int saved = dup(STDERR_FILENO);

    assert_non_null(file);
    dup2(fileno(file), STDERR_FILENO);
    speak();
    dup2(saved, STDERR_FILENO);
    close(saved);
    rewind(file);
    const size_t n = fread(text, 1, sizeof text - 1, file);
    text[n] = '\0';
    fclose(file);
    return text;
}

static void speak_plain(void)
{
    sv_log(SV_INFO, "job_done", "job", "job_1", "seconds", "1.5", "note", NULL, NULL);
}

static void speak_hostile(void)
{
    sv_log(SV_ERROR, "evil", "name", "a \"b\" \\ c\nd\te\x1b[31m\x7f\xc2\x9b f=g", "utf8", "\xc3\xa9t\xc3\xa9", NULL);
}

static void speak_below(void)
{
    sv_log(SV_DEBUG, "quiet", NULL);
}

static void speak_long(void)
{
    static char value[10000];
    memset(value, '\n', sizeof value - 1);
    sv_log(SV_WARN, "long", "value", value, "after", "x", NULL);
}

static void a_line_has_time_level_event_pairs(void **state)
{
    int year, ms;
    char rest[256];
    const char *text = heard(speak_plain);

    assert_int_equal(sscanf(text, "%4d-%*2d-%*2dT%*2d:%*2d:%*2d.%3dZ %255[^\n]", &year, &ms, rest), 3);
    assert_true(year >= 2024);
    assert_string_equal(rest, "info job_done job=job_1 seconds=1.5 note=\"\"");
    assert_int_equal(text[strlen(text) - 1], '\n');
}

static void strange_values_stay_in_their_quotes(void **state)
{
    const char *text = heard(speak_hostile);

    assert_non_null(strstr(
        text,
        " error evil name=\"a \\\"b\\\" \\\\ c\\nd\\te\\x1b[31m\\x7f\\xc2\x9b f=g\" utf8=\"\xc3\xa9t\xc3\xa9\"\n"));
    assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
}

static void levels_filter(void **state)
{
    assert_string_equal(heard(speak_below), "");
    assert_true(sv_log_level_named("debug"));
    assert_non_null(strstr(heard(speak_below), " debug quiet\n"));
    assert_true(sv_log_level_named("error"));
    assert_string_equal(heard(speak_plain), "");
    assert_false(sv_log_level_named("loud"));
    sv_log_level(SV_INFO);
}

static void a_long_line_is_cut_and_says_so(void **state)
{
    const char *text = heard(speak_long);
    const size_t n = strlen(text);

    assert_true(n <= 4096);
    assert_string_equal(text + n - 7, "\\n...\"\n");
    assert_null(strstr(text, "after"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_has_time_level_event_pairs),
        cmocka_unit_test(strange_values_stay_in_their_quotes),
        cmocka_unit_test(levels_filter),
        cmocka_unit_test(a_long_line_is_cut_and_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
