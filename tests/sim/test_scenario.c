/* sim/scenario.h: every field through JSON and through --set; bad scenarios (data/scenarios:
 * NAME.json, and in NAME.error the line that it must give; up to "…", where the rest is the JSON
 * library's own). */
#include "sim/scenario.h"

#include <string.h>

#include "sim/base/error.h"

/* What a field's JSON value is in the complete scenario; borrowed from `root`. */
static json_t *value_of(json_t *root, const KvScenarioField *f) {
  json_t *object = *f->section ? json_object_get(root, f->section) : root;
  json_t *value = json_object_get(object, f->key);
  if (!value)
    g_error("%s.%s is not in the complete scenario", f->section, f->key);
  return value;
}

static char *name_of(const KvScenarioField *f) {
  return *f->section ? g_strconcat(f->section, ".", f->key, NULL) : g_strdup(f->key);
}

static char *text_of(const KvScenario *scenario) {
  json_t *root = kv_scenario_to_json(scenario);
  char *text = json_dumps(root, JSON_INDENT(2));
  json_decref(root);
  return text;
}

static KvScenario *parsed(const char *text) {
  g_autoptr(GError) error = NULL;
  KvScenario *scenario = kv_scenario_new();
  kv_scenario_parse(scenario, "text", text, strlen(text), &error);
  g_assert_no_error(error);
  return scenario;
}

/* Values to try: for each field as --set takes them, and as they must stand in the JSON. */
static GPtrArray *values_for(const KvScenarioField *f) {
  GPtrArray *values = g_ptr_array_new_with_free_func(g_free);
  if (f->choices) {
    for (guint i = 0; f->choices[i]; i++)
      g_ptr_array_add(values, g_strdup(f->choices[i]));
  } else if (f->kind == KV_FIELD_TEXT) {
    g_ptr_array_add(values, g_strdup("a \"quoted\" name=with, é: {signs}"));
    g_ptr_array_add(values, g_strdup(""));
  } else if (f->kind == KV_FIELD_FLAG) {
    g_ptr_array_add(values, g_strdup("true"));
    g_ptr_array_add(values, g_strdup("false"));
  } else if (f->kind == KV_FIELD_REAL) {
    g_ptr_array_add(values, g_strdup_printf("%.17g", f->min));
    g_ptr_array_add(values, g_strdup_printf("%.17g", f->max));
    g_ptr_array_add(values, g_strdup_printf("%.17g", f->min + (f->max - f->min) / 3.0));
  } else {
    g_ptr_array_add(values, g_strdup_printf("%.0f", f->min));
    g_ptr_array_add(values, g_strdup_printf("%.0f", f->max));
    g_ptr_array_add(values, g_strdup_printf("%.0f", f->min + 7.0));
  }
  return values;
}

static void assert_holds(json_t *value, const KvScenarioField *f, const char *expected) {
  switch (f->kind) {
  case KV_FIELD_TEXT:
  case KV_FIELD_NAME:
  case KV_FIELD_CHOICE:
    g_assert_cmpstr(json_string_value(value), ==, expected);
    break;
  case KV_FIELD_COUNT:
  case KV_FIELD_COUNT64:
    g_assert_true(json_is_integer(value));
    g_assert_cmpint(json_integer_value(value), ==, g_ascii_strtoll(expected, NULL, 10));
    break;
  case KV_FIELD_REAL:
    g_assert_true(json_is_real(value));
    g_assert_cmpfloat(json_real_value(value), ==, g_ascii_strtod(expected, NULL));
    break;
  case KV_FIELD_FLAG:
    g_assert_cmpint(json_is_true(value), ==, strcmp(expected, "true") == 0);
    break;
  }
}

static void every_field_round_trips(void) {
  for (const KvScenarioField *f = kv_scenario_fields; f->key; f++) {
    g_autofree char *name = name_of(f);
    g_autoptr(GPtrArray) values = values_for(f);
    for (guint i = 0; i < values->len; i++) {
      g_autoptr(GError) error = NULL;
      g_autoptr(KvScenario) set = kv_scenario_new();
      const char *value = g_ptr_array_index(values, i);
      g_autofree char *assignment = g_strconcat(name, "=", value, NULL);
      kv_scenario_set(set, assignment, &error);
      g_assert_no_error(error);
      g_autofree char *first = text_of(set);
      g_autoptr(KvScenario) again = parsed(first);
      g_autofree char *second = text_of(again);
      g_assert_cmpstr(first, ==, second);
      json_t *root = kv_scenario_to_json(again), *defaults;
      g_autoptr(KvScenario) unchanged = kv_scenario_new();
      defaults = kv_scenario_to_json(unchanged);
      for (const KvScenarioField *other = kv_scenario_fields; other->key; other++) {
        if (other == f)
          assert_holds(value_of(root, f), f, value);
        else /* no two fields share their place */
          g_assert_true(json_equal(value_of(root, other), value_of(defaults, other)));
      }
      json_decref(root);
      json_decref(defaults);
    }
  }
}

/* What a run stores is what repeats it. */
static void defaults_are_valid(void) {
  g_autoptr(KvScenario) fresh = kv_scenario_new();
  g_autofree char *text = text_of(fresh);
  g_autoptr(KvScenario) again = parsed(text);
  g_autofree char *second = text_of(again);
  g_assert_cmpstr(text, ==, second);
}

static void fields_are_described(void) {
  for (const KvScenarioField *f = kv_scenario_fields; f->key; f++) {
    g_assert_nonnull(f->help);
    g_assert_cmpuint(strlen(f->help), >, 5);
    g_assert_true(f->choices || f->kind == KV_FIELD_TEXT || f->kind == KV_FIELD_FLAG ||
                  f->min < f->max);
    for (const KvScenarioField *other = kv_scenario_fields; other < f; other++) {
      g_assert_false(strcmp(f->section, other->section) == 0 && strcmp(f->key, other->key) == 0);
      /* A section's fields stand together: the reader of a document relies on it. */
      g_assert_false(strcmp(f->section, other->section) == 0 &&
                     strcmp(f->section, f[-1].section) != 0);
    }
  }
}

static void only_what_is_set_changes(void) {
  g_autoptr(KvScenario) scenario = kv_scenario_new();
  g_autoptr(GError) error = NULL;
  static const char text[] = "{\"model\": \"qwen3-8b\", \"engine\": {\"max_seqs\": 7}}";
  g_assert_true(kv_scenario_set(scenario, "engine.block_tokens=32", NULL));
  g_assert_true(kv_scenario_set(scenario, "platform=h100-sxm", NULL));
  g_assert_true(kv_scenario_parse(scenario, "text", text, strlen(text), &error));
  g_assert_cmpstr(scenario->model, ==, "qwen3-8b");
  g_assert_cmpstr(scenario->platform, ==, "h100-sxm");
  g_assert_cmpuint(scenario->engine.max_seqs, ==, 7);
  g_assert_cmpuint(scenario->engine.block_tokens, ==, 32);
  g_assert_cmpuint(scenario->concurrency, ==, 64);
}

static void copies_are_their_own(void) {
  g_autoptr(KvScenario) scenario = kv_scenario_new();
  g_autoptr(KvScenario) copy = kv_scenario_copy(scenario);
  g_assert_true(kv_scenario_set(copy, "model=other", NULL));
  g_assert_true(kv_scenario_set(copy, "executor=host", NULL));
  g_assert_cmpstr(scenario->model, ==, "llama-3.1-8b");
  g_assert_cmpstr(scenario->executor, ==, "model");
  kv_scenario_free(NULL);
}

static void bad_settings_are_told(void) {
  const struct {
    const char *assignment, *message;
  } cases[] = {
      {"engine.max_seq=3",
       "--set engine.max_seq=3: unknown field 'engine.max_seq', did you mean 'engine.max_seqs'?"},
      {"modle=x", "--set modle=x: unknown field 'modle', did you mean 'model'?"},
      {"zzzzzzzzzz=1", "--set zzzzzzzzzz=1: unknown field 'zzzzzzzzzz'"},
      {"engine.max_seqs", "--set engine.max_seqs: no value, expected KEY=VALUE"},
      {"engine.max_seqs=", "--set engine.max_seqs: '', expected a whole number from 0 to 1000000"},
      {"engine.max_seqs=1.5",
       "--set engine.max_seqs: '1.5', expected a whole number from 0 to 1000000"},
      {"engine.max_seqs=-1",
       "--set engine.max_seqs: '-1', expected a whole number from 0 to 1000000"},
      {"engine.max_seqs=8k",
       "--set engine.max_seqs: '8k', expected a whole number from 0 to 1000000"},
      {"engine.max_seqs=nan",
       "--set engine.max_seqs: 'nan', expected a whole number from 0 to 1000000"},
      {"seed=9000000000000001",
       "--set seed: '9000000000000001', expected a whole number from 0 to 9000000000000000"},
      {"arrivals.rate_scale=inf",
       "--set arrivals.rate_scale: 'inf', expected a number from 1e-06 to 1000000"},
      {"arrivals.rate_scale=0",
       "--set arrivals.rate_scale: '0', expected a number from 1e-06 to 1000000"},
      {"engine.chunked_prefill=yes", "--set engine.chunked_prefill: 'yes', expected true or false"},
      {"prefix_cache.tier=hdd", "--set prefix_cache.tier: 'hdd', expected none|dram|ssd"},
      {"executor=gpu", "--set executor: 'gpu', expected model|host|cuda"},
      {"engine.scheduler=",
       "--set engine.scheduler: '', expected vllm-v1|sglang|trtllm|vllm-v0|vllm-2023|vllm-2023-mixed|orca|static|flexgen|vtensor|fastserve|lamps|distserve|neo"},
      {"label=\xff", "--set label: not UTF-8, expected text"},
      {"=3", "--set =3: unknown field ''"},
      {"a\nb=3", "--set a?b=3: unknown field 'a?b'"},
      {"executor=a\nb", "--set executor: 'a?b', expected model|host|cuda"},
      {"", "--set : unknown field ''"},
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(GError) error = NULL;
    g_autoptr(KvScenario) scenario = kv_scenario_new();
    g_autofree char *before = text_of(scenario);
    g_assert_false(kv_scenario_set(scenario, cases[i].assignment, &error));
    g_assert_error(error, KV_ERROR, KV_ERROR_USAGE);
    g_assert_cmpstr(error->message, ==, cases[i].message);
    g_autofree char *after = text_of(scenario);
    g_assert_cmpstr(before, ==, after);
  }
}

static void absent_file_is_told(void) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvScenario) scenario = kv_scenario_new();
  g_assert_false(kv_scenario_load(scenario, "/no/such/scenario.json", &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_INPUT);
  g_assert_cmpstr(error->message, ==,
                  "/no/such/scenario.json: cannot be read, expected a scenario file");
}

static void case_of_folder(gconstpointer path) {
  g_autofree char *text = NULL, *expected = NULL, *name = g_path_get_basename(path);
  g_autofree char *stem = g_strndup(path, strlen(path) - strlen(".json"));
  g_autofree char *error_path = g_strconcat(stem, ".error", NULL);
  gsize length;
  g_autoptr(GError) error = NULL;
  g_autoptr(KvScenario) scenario = kv_scenario_new();
  g_assert_true(g_file_get_contents(path, &text, &length, NULL));
  gboolean bad = g_file_get_contents(error_path, &expected, NULL, NULL);
  g_assert_cmpint(kv_scenario_parse(scenario, name, text, length, &error), ==, !bad);
  if (!bad)
    return;
  char *rest = strstr(expected, "…\n");
  if (rest) {
    *rest = '\0';
    g_assert_true(g_str_has_prefix(error->message, expected));
  } else {
    g_strchomp(expected);
    g_assert_cmpstr(error->message, ==, expected);
  }
  g_assert_error(error, KV_ERROR, KV_ERROR_INPUT);
  g_assert_null(strchr(error->message, '\n'));
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/scenario/defaults-are-valid", defaults_are_valid);
  g_test_add_func("/scenario/every-field-round-trips", every_field_round_trips);
  g_test_add_func("/scenario/fields-are-described", fields_are_described);
  g_test_add_func("/scenario/only-what-is-set-changes", only_what_is_set_changes);
  g_test_add_func("/scenario/copies-are-their-own", copies_are_their_own);
  g_test_add_func("/scenario/bad-settings-are-told", bad_settings_are_told);
  g_test_add_func("/scenario/absent-file-is-told", absent_file_is_told);
  g_autofree char *folder = g_build_filename(g_getenv("KV_TEST_DATA"), "scenarios", NULL);
  g_autoptr(GDir) dir = g_dir_open(folder, 0, NULL);
  g_autoptr(GPtrArray) paths = g_ptr_array_new_with_free_func(g_free);
  for (const char *name; dir && (name = g_dir_read_name(dir));)
    if (g_str_has_suffix(name, ".json"))
      g_ptr_array_add(paths, g_build_filename(folder, name, NULL));
  g_assert_cmpuint(paths->len, >, 20);
  for (guint i = 0; i < paths->len; i++) {
    g_autofree char *name = g_path_get_basename(g_ptr_array_index(paths, i));
    g_autofree char *test = g_strconcat("/scenario/cases/", name, NULL);
    g_test_add_data_func(test, g_ptr_array_index(paths, i), case_of_folder);
  }
  return g_test_run();
}
