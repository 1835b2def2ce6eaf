/* sim/base/json.h: every getter's value, and every error with its exact line. */
#include "sim/base/json.h"

#include <errno.h>
#include <glib/gstdio.h>
#include <math.h>
#include <string.h>

#include "sim/base/error.h"

static KvJson *parse(const char *text) {
  g_autoptr(GError) error = NULL;
  KvJson *json = kv_json_parse("s.json", text, strlen(text), &error);
  g_assert_no_error(error);
  return json;
}

static void getters_return_what_is_there(void) {
  g_autoptr(KvJson) json =
      parse("{\"n\": 1.5, \"whole\": 3, \"i\": -7, \"real\": 2e3, \"yes\": true, \"no\": false,"
            " \"s\": \"text\", \"c\": \"two\", \"o\": {\"a\": 1}, \"l\": [1, 2], \"z\": null}");
  json_t *root = kv_json_root(json);
  const char *const choices[] = {"one", "two", NULL};
  g_assert_cmpstr(kv_json_name(json), ==, "s.json");
  g_assert_true(kv_json_has(root, "z"));
  g_assert_false(kv_json_has(root, "Z"));
  g_assert_cmpfloat(kv_json_number(json, root, "n", 0, 0, 10), ==, 1.5);
  g_assert_cmpfloat(kv_json_number(json, root, "whole", 0, 3, 3), ==, 3);
  g_assert_cmpint(kv_json_integer(json, root, "i", 0, -7, -7), ==, -7);
  g_assert_cmpint(kv_json_integer(json, root, "real", 0, 0, 2000), ==, 2000);
  g_assert_true(kv_json_boolean(json, root, "yes", FALSE));
  g_assert_false(kv_json_boolean(json, root, "no", TRUE));
  g_assert_cmpstr(kv_json_string(json, root, "s", NULL, TRUE), ==, "text");
  g_assert_cmpuint(kv_json_choice(json, root, "c", choices, 0), ==, 1);
  g_assert_cmpuint(json_object_size(kv_json_object(json, root, "o", TRUE)), ==, 1);
  g_assert_cmpuint(json_array_size(kv_json_array(json, root, "l", TRUE)), ==, 2);
  g_assert_true(kv_json_finish(json, NULL));
}

static void absent_fields_give_the_fallback(void) {
  g_autoptr(KvJson) json = parse("{}");
  json_t *root = kv_json_root(json);
  const char *const choices[] = {"one", "two", NULL};
  g_assert_cmpfloat(kv_json_number(json, root, "a", -1.5, 0, 10), ==, -1.5);
  g_assert_cmpint(kv_json_integer(json, root, "a", -1, 0, 10), ==, -1);
  g_assert_cmpint(kv_json_integer(json, root, "a", (double)G_MAXINT64, 0, 10), ==, G_MAXINT64);
  g_assert_true(kv_json_boolean(json, root, "a", TRUE));
  g_assert_cmpstr(kv_json_string(json, root, "a", "none", FALSE), ==, "none");
  g_assert_null(kv_json_string(json, root, "a", NULL, FALSE));
  g_assert_cmpuint(kv_json_choice(json, root, "a", choices, 1), ==, 1);
  g_assert_null(kv_json_object(json, root, "a", FALSE));
  g_assert_null(kv_json_array(json, root, "a", FALSE));
  g_assert_true(kv_json_finish(json, NULL));
}

static void whole_numbers_are_exact_at_the_ends(void) {
  g_autoptr(KvJson) json = parse("{\"max\": 9223372036854775807, \"min\": -9223372036854775808,"
                                 " \"odd\": 9007199254740993, \"low\": -9.223372036854775808e18}");
  json_t *root = kv_json_root(json);
  g_assert_cmpint(kv_json_integer(json, root, "max", 0, 0, G_MAXINT64), ==, G_MAXINT64);
  g_assert_cmpint(kv_json_integer(json, root, "min", 0, G_MININT64, 0), ==, G_MININT64);
  g_assert_cmpint(kv_json_integer(json, root, "odd", 0, 0, 9007199254740993), ==, 9007199254740993);
  g_assert_cmpint(kv_json_integer(json, root, "low", 0, G_MININT64, 0), ==, G_MININT64);
  g_assert_true(kv_json_finish(json, NULL));
  /* As doubles the two would be equal. */
  kv_json_integer(json, root, "odd", 0, 0, 9007199254740992);
  g_assert_false(kv_json_finish(json, NULL));
}

/* One getter applied to the field "x" of `object`, with the result that a reader goes on with. */
typedef void (*Get)(KvJson *json, json_t *object);

static void get_number(KvJson *json, json_t *object) {
  g_assert_cmpfloat(kv_json_number(json, object, "x", KV_JSON_REQUIRED, 1, 1000000), ==, 1);
}

static void get_positive(KvJson *json, json_t *object) {
  g_assert_cmpfloat(kv_json_number(json, object, "x", KV_JSON_REQUIRED, 0, G_MAXDOUBLE), ==, 0);
}

static void get_integer(KvJson *json, json_t *object) {
  g_assert_cmpint(kv_json_integer(json, object, "x", KV_JSON_REQUIRED, 1, 1000000), ==, 1);
}

static void get_count(KvJson *json, json_t *object) {
  g_assert_cmpint(kv_json_integer(json, object, "x", KV_JSON_REQUIRED, 1, G_MAXINT64), ==, 1);
}

static void get_boolean(KvJson *json, json_t *object) {
  kv_json_boolean(json, object, "x", TRUE);
}

static void get_string(KvJson *json, json_t *object) {
  g_assert_cmpstr(kv_json_string(json, object, "x", NULL, TRUE), ==, "");
}

static void get_choice(KvJson *json, json_t *object) {
  const char *const choices[] = {"lru", "fifo", NULL};
  g_assert_cmpuint(kv_json_choice(json, object, "x", choices, 1), ==, 1);
}

static void get_object(KvJson *json, json_t *object) {
  g_assert_null(kv_json_object(json, object, "x", TRUE));
}

static void get_array(KvJson *json, json_t *object) {
  g_assert_null(kv_json_array(json, object, "x", TRUE));
}

static void get_only(KvJson *json, json_t *object) {
  const char *const known[] = {"block_size", "seed", NULL};
  kv_json_only(json, object, known);
}

/* A document, what is read from its top value, and the one line that the user gets. */
static const struct {
  const char *text;
  Get get;
  const char *message;
} wrong[] = {
    {"{\n\"x\":\n\"1\"}", get_number, "2: 'x' is a string, expected a number"},
    {"{\n\n}", get_number, "1: the field 'x' is missing"},
    {"\n\n{\"y\": 1}", get_number, "3: the field 'x' is missing"},
    {"{\"y\": {\"x\": 5},\n \"x\": 0.5}", get_number,
     "2: 'x' is 0.5, expected a number from 1 to 1000000"},
    {"{\"x\": 1000001}", get_number, "1: 'x' is 1000001, expected a number from 1 to 1000000"},
    {"{\"x\": -1e-9}", get_positive, "1: 'x' is -1e-09, expected a number of at least 0"},
    {"{\"x\": null}", get_number, "1: 'x' is null, expected a number"},
    {"{\"a\": [[], {}, [{}]],\r\n\"b\": \"}\\\"{\\\\\",\r\n\"x\": true}", get_integer,
     "3: 'x' is a boolean, expected a whole number"},
    {"{\"x\": 1.5}", get_integer, "1: 'x' is 1.5, expected a whole number"},
    {"{\"x\": 0}", get_integer, "1: 'x' is 0, expected a whole number from 1 to 1000000"},
    {"{\"x\": 1e300}", get_integer, "1: 'x' is 1e+300, expected a whole number from 1 to 1000000"},
    {"{\"x\": 9223372036854775808.0}", get_count,
     "1: 'x' is 9.22337203685478e+18, expected a whole number of at least 1"},
    {"{\"x\": -1e300}", get_count, "1: 'x' is -1e+300, expected a whole number of at least 1"},
    {"{}", get_integer, "1: the field 'x' is missing"},
    {"{\n\n\"x\": 1}", get_boolean, "3: 'x' is a number, expected true or false"},
    {"{\"x\": []}", get_string, "1: 'x' is an array, expected a string"},
    {"{ }", get_string, "1: the field 'x' is missing"},
    {"{\"x\": {}}", get_choice, "1: 'x' is an object, expected a string"},
    {"{\"x\": \"LRU\"}", get_choice, "1: 'x' is 'LRU', expected lru|fifo"},
    {"{\"x\": \"l\\nru\"}", get_choice, "1: 'x' is 'l?ru', expected lru|fifo"},
    {"{\"a\": {\n\"x\": {}},\n\"x\": []}", get_object, "3: 'x' is an array, expected an object"},
    {"{}", get_object, "1: the field 'x' is missing"},
    {"{\"x\": {}}", get_array, "1: 'x' is an object, expected an array"},
    {"{}", get_array, "1: the field 'x' is missing"},
    {"[\n1]", get_number, "1: expected an object with the field 'x', found an array"},
    {"\n7", get_string, "2: expected an object with the field 'x', found a number"},
    {"{\"seed\": 1,\n\"blocksize\": 2,\n\"seeed\": 3}", get_only,
     "2: unknown field 'blocksize', did you mean 'block_size'?"},
    {"{\"a\\nb\": 1}", get_only, "1: unknown field 'a?b'"},
};

static void errors_name_their_line(void) {
  for (guint i = 0; i < G_N_ELEMENTS(wrong); i++) {
    g_autoptr(KvJson) json = parse(wrong[i].text);
    g_autoptr(GError) error = NULL;
    wrong[i].get(json, kv_json_root(json));
    g_assert_false(kv_json_finish(json, &error));
    g_assert_error(error, KV_ERROR, KV_ERROR_INPUT);
    g_autofree char *expected = g_strconcat("s.json:", wrong[i].message, NULL);
    g_assert_cmpstr(error->message, ==, expected);
  }
}

static void line_is_that_of_the_member_among_many(void) {
  g_autoptr(KvJson) json =
      parse("{\"list\": [\n  {\"x\": 1},\n  {\"y\": [],\n   \"x\": \"no\"},\n  {}\n]}");
  json_t *list = kv_json_array(json, kv_json_root(json), "list", TRUE);
  for (gsize i = 0; i < json_array_size(list); i++)
    kv_json_number(json, json_array_get(list, i), "x", 0, 0, 9);
  g_autoptr(GError) error = NULL;
  g_assert_false(kv_json_finish(json, &error));
  g_assert_cmpstr(error->message, ==, "s.json:4: 'x' is a string, expected a number");
}

static void missing_member_has_its_objects_line(void) {
  g_autoptr(KvJson) json = parse("{\"list\": [\n  {\"x\": 1},\n  {\"y\": 2,\n   \"z\": 3}\n]}");
  json_t *list = kv_json_array(json, kv_json_root(json), "list", TRUE);
  kv_json_number(json, json_array_get(list, 1), "x", KV_JSON_REQUIRED, 0, 9);
  g_autoptr(GError) error = NULL;
  g_assert_false(kv_json_finish(json, &error));
  g_assert_cmpstr(error->message, ==, "s.json:3: the field 'x' is missing");
}

static void first_error_is_the_one_told(void) {
  g_autoptr(KvJson) json = parse("{\"a\": 1,\n\"b\": 2}");
  json_t *root = kv_json_root(json);
  kv_json_fail(json, root, "b", "%s of %d", "second", 2);
  kv_json_string(json, root, "a", NULL, TRUE);
  kv_json_fail(json, root, NULL, "whole");
  g_autoptr(GError) error = NULL;
  g_assert_false(kv_json_finish(json, &error));
  g_assert_cmpstr(error->message, ==, "s.json:2: second of 2");
}

static void reader_of_nothing_is_told_so(void) {
  g_autoptr(KvJson) json = parse("{}");
  g_assert_cmpfloat(kv_json_number(json, NULL, "x", 4, 0, 9), ==, 4);
  g_autoptr(GError) error = NULL;
  g_assert_false(kv_json_finish(json, &error));
  g_assert_cmpstr(error->message, ==,
                  "s.json:1: expected an object with the field 'x', found nothing");
}

/* What is not JSON, and the line where it stops being. */
static void invalid_documents_are_refused(void) {
  const struct {
    const char *text;
    gssize length;
    guint line;
  } cases[] = {
      {"", 0, 1},
      {" \n \n ", -1, 3},
      {"{\n\"a\": 1,\n", -1, 3},
      {"{\"a\": NaN}", -1, 1},
      {"{\n\"a\": Infinity}", -1, 2},
      {"{\"a\": 1e999}", -1, 1},
      {"{\"a\": 99999999999999999999}", -1, 1},
      {"{\"a\": 1,\n\"a\": 2}", -1, 2},
      {"{\"a\": 1}\n{}", -1, 2},
      {"{'a': 1}", -1, 1},
      {"{\"a\": \"\\u0000\"}", -1, 1},
      {"{}\0{}", 5, 1},
      {"{\n\"a\": \"\xff\"}", -1, 2},
      {"{\"a\": \"b\nc\"}", -1, 1},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(GError) error = NULL;
    gsize length = cases[i].length < 0 ? strlen(cases[i].text) : (gsize)cases[i].length;
    g_assert_null(kv_json_parse("s.json", cases[i].text, length, &error));
    g_assert_error(error, KV_ERROR, KV_ERROR_INPUT);
    g_autofree char *start = g_strdup_printf("s.json:%u: not valid JSON: ", cases[i].line);
    g_test_message("%s", error->message);
    g_assert_true(g_str_has_prefix(error->message, start));
    g_assert_true(g_str_has_suffix(error->message, ", expected one JSON value"));
    g_assert_null(strchr(error->message, '\n'));
  }
}

static void deep_documents_are_no_trouble(void) {
  GString *text = g_string_new(NULL);
  for (guint i = 0; i < 1000; i++)
    g_string_append(text, "{\"a\":[");
  g_string_append(text, "\n{\"x\": 1}");
  for (guint i = 0; i < 1000; i++)
    g_string_append(text, "]}");
  g_autoptr(KvJson) json = parse(text->str);
  json_t *value = kv_json_root(json);
  for (guint i = 0; i < 1000; i++)
    value = json_array_get(kv_json_array(json, value, "a", TRUE), 0);
  kv_json_string(json, value, "x", NULL, TRUE);
  g_autoptr(GError) error = NULL;
  g_assert_false(kv_json_finish(json, &error));
  g_assert_cmpstr(error->message, ==, "s.json:2: 'x' is a number, expected a string");
  g_string_assign(text, "");
  for (guint i = 0; i < 1000000; i++)
    g_string_append_c(text, '[');
  g_clear_error(&error);
  g_assert_null(kv_json_parse("s.json", text->str, text->len, &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_INPUT);
  g_string_free(text, TRUE);
}

static void files_are_loaded(void) {
  g_autofree char *folder = g_dir_make_tmp("kvsim-json-XXXXXX", NULL);
  g_autofree char *path = g_build_filename(folder, "s.json", NULL);
  g_autoptr(GError) error = NULL;
  g_assert_true(g_file_set_contents(path, "{\"x\":\n 3}\n", -1, NULL));
  g_autoptr(KvJson) json = kv_json_load(path, &error);
  g_assert_no_error(error);
  g_assert_cmpstr(kv_json_name(json), ==, path);
  g_assert_cmpint(kv_json_integer(json, kv_json_root(json), "x", 0, 0, 9), ==, 3);
  g_remove(path);
  g_rmdir(folder);
}

static void unreadable_files_are_refused(void) {
  const struct {
    const char *path;
    int problem;
  } cases[] = {
      {"/nonexistent/s.json", ENOENT}, {"/", EISDIR}, {"/dev/null/s.json", ENOTDIR}, {"", ENOENT}};
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(GError) error = NULL;
    g_assert_null(kv_json_load(cases[i].path, &error));
    g_assert_error(error, KV_ERROR, KV_ERROR_INPUT);
    g_autofree char *expected = g_strdup_printf("%s: cannot be read (%s), expected a JSON document",
                                                cases[i].path, g_strerror(cases[i].problem));
    g_assert_cmpstr(error->message, ==, expected);
  }
}

static void endless_files_are_refused(void) {
  g_autoptr(GError) error = NULL;
  g_assert_null(kv_json_load("/dev/zero", &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_INPUT);
  g_assert_cmpstr(error->message, ==, "/dev/zero: is larger than 64 MiB, expected a JSON document");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/json/getters-return-what-is-there", getters_return_what_is_there);
  g_test_add_func("/json/absent-fields-give-the-fallback", absent_fields_give_the_fallback);
  g_test_add_func("/json/whole-numbers-are-exact-at-the-ends", whole_numbers_are_exact_at_the_ends);
  g_test_add_func("/json/errors-name-their-line", errors_name_their_line);
  g_test_add_func("/json/line-is-that-of-the-member-among-many",
                  line_is_that_of_the_member_among_many);
  g_test_add_func("/json/missing-member-has-its-objects-line", missing_member_has_its_objects_line);
  g_test_add_func("/json/first-error-is-the-one-told", first_error_is_the_one_told);
  g_test_add_func("/json/reader-of-nothing-is-told-so", reader_of_nothing_is_told_so);
  g_test_add_func("/json/invalid-documents-are-refused", invalid_documents_are_refused);
  g_test_add_func("/json/deep-documents-are-no-trouble", deep_documents_are_no_trouble);
  g_test_add_func("/json/files-are-loaded", files_are_loaded);
  g_test_add_func("/json/unreadable-files-are-refused", unreadable_files_are_refused);
  g_test_add_func("/json/endless-files-are-refused", endless_files_are_refused);
  return g_test_run();
}
