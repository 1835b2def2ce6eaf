#include "models/llm/llm.h"

#include <glib/gstdio.h>
#include <math.h>
#include <string.h>

#include "sim/base/error.h"

static KvModel *load(const char *name) {
  g_autoptr(GError) error = NULL;
  KvModel *model = kv_model_load(name, &error);
  g_assert_no_error(error);
  return model;
}

/* The count over all matrices is what catches a wrong hidden size, head count or expert width. */
static void test_parameters_match_published(void) {
  guint n = 0;
  for (const char *const *id = kv_model_ids(); *id; id++, n++) {
    g_autoptr(KvModel) model = load(*id);
    g_assert_cmpuint(model->published_parameters, >, 0);
    double ratio = (double)kv_model_parameters(model) / (double)model->published_parameters;
    if (fabs(ratio - 1) > 0.015)
      g_test_message("%s is off by %+.2f %%", *id, 100 * (ratio - 1));
    g_assert_cmpfloat_with_epsilon(ratio, 1, 0.015);
    g_assert_cmpstr(model->id, ==, *id);
    g_assert_cmpuint(strlen(model->source), >, 0);
  }
  g_assert_cmpuint(n, >=, 100);
}

static void test_ids_are_sorted(void) {
  const char *const *ids = kv_model_ids();
  for (guint i = 1; ids[i]; i++)
    g_assert_cmpint(strcmp(ids[i - 1], ids[i]), <, 0);
}

/* Active parameters as the authors give them, to the precision they give. */
static void test_active_parameters(void) {
  static const struct {
    const char *id;
    double billions, tolerance;
  } published[] = {
      {"llama-3.1-8b", 8.03, 0.01},   {"mixtral-8x7b", 12.9, 0.1},  {"mixtral-8x22b", 39, 0.5},
      {"qwen3-30b-a3b", 3.3, 0.1},    {"qwen3-235b-a22b", 22, 0.5}, {"deepseek-v2", 21, 0.5},
      {"deepseek-v2-lite", 2.6, 0.2}, {"deepseek-v3", 37, 0.8},     {"gpt-oss-120b", 5.7, 0.1},
      {"gpt-oss-20b", 4.2, 0.1},
  };
  for (guint i = 0; i < G_N_ELEMENTS(published); i++) {
    g_autoptr(KvModel) model = load(published[i].id);
    g_assert_cmpfloat_with_epsilon((double)kv_model_active_parameters(model) / 1e9,
                                   published[i].billions, published[i].tolerance);
  }
}

/* By hand, at two bytes: 2 * layers * kv_heads * head_dim * 2, or layers * (rank + rope) * 2. */
static void test_cache_bytes_per_token(void) {
  static const struct {
    const char *id;
    double bytes;
  } by_hand[] = {
      {"llama-3.1-8b", 2.0 * 32 * 8 * 128 * 2},
      {"llama-2-13b", 2.0 * 40 * 40 * 128 * 2},
      {"llama-3.1-405b", 2.0 * 126 * 8 * 128 * 2},
      {"qwen2.5-7b", 2.0 * 28 * 4 * 128 * 2},
      {"falcon-7b", 2.0 * 32 * 1 * 64 * 2},
      {"gemma-3-27b", 2.0 * 62 * 16 * 128 * 2},
      {"deepseek-v2", 60 * (512 + 64) * 2.0},
      {"deepseek-v3", 61 * 576 * 2.0},
      {"opt-13b", 2.0 * 40 * 5120 * 2},
  };
  for (guint i = 0; i < G_N_ELEMENTS(by_hand); i++) {
    g_autoptr(KvModel) model = load(by_hand[i].id);
    g_assert_cmpfloat(kv_model_cache_bytes_per_token(model, 2), ==, by_hand[i].bytes);
  }
}

static guint layers_of(const KvModel *model, KvAttentionKind kind) {
  guint n = 0;
  for (guint i = 0; i < model->n_groups; i++)
    if (model->groups[i].attention.kind == kind)
      n += model->groups[i].count;
  return n;
}

static void test_sliding_layers(void) {
  static const struct {
    const char *id;
    guint sliding, full, window;
  } families[] = {
      {"mistral-7b-v0.1", 32, 0, 4096}, {"mistral-7b-v0.3", 0, 32, 0}, {"gemma-2-9b", 21, 21, 4096},
      {"gemma-3-1b", 22, 4, 512},       {"gemma-3-27b", 52, 10, 1024}, {"gpt-oss-20b", 12, 12, 128},
  };
  for (guint i = 0; i < G_N_ELEMENTS(families); i++) {
    g_autoptr(KvModel) model = load(families[i].id);
    g_assert_cmpuint(layers_of(model, KV_ATTENTION_SLIDING), ==, families[i].sliding);
    g_assert_cmpuint(layers_of(model, KV_ATTENTION_FULL), ==, families[i].full);
    g_assert_cmpuint(kv_model_layers(model), ==, families[i].sliding + families[i].full);
    for (guint g = 0; g < model->n_groups; g++)
      if (model->groups[g].attention.kind == KV_ATTENTION_SLIDING)
        g_assert_cmpuint(model->groups[g].attention.window_tokens, ==, families[i].window);
  }
}

/* gpt-oss-120b is published at about 61 GB with its scales; four bits an expert weight alone are
 * less. */
static void test_weight_bytes(void) {
  g_autoptr(KvModel) oss = load("gpt-oss-120b");
  g_assert_cmpfloat_with_epsilon(kv_model_weight_bytes(oss) / 1e9, 61.5, 0.5);
  g_autoptr(KvModel) llama = load("llama-3.1-8b");
  g_assert_cmpfloat(kv_model_weight_bytes(llama), ==, 2.0 * (double)kv_model_parameters(llama));
}

static void assert_same_json(const KvModel *a, const KvModel *b) {
  json_t *x = kv_model_to_json(a), *y = kv_model_to_json(b);
  g_autofree char *s = json_dumps(x, JSON_COMPACT), *t = json_dumps(y, JSON_COMPACT);
  g_assert_cmpstr(s, ==, t);
  json_decref(x);
  json_decref(y);
}

static void test_round_trip(void) {
  for (const char *const *id = kv_model_ids(); *id; id++) {
    g_autoptr(KvModel) model = load(*id);
    g_autoptr(KvModel) copy = kv_model_copy(model);
    json_t *json = kv_model_to_json(model);
    g_autofree char *text = json_dumps(json, JSON_INDENT(2));
    g_autoptr(GError) error = NULL;
    g_autoptr(KvModel) again = kv_model_parse("text", text, strlen(text), &error);
    g_assert_no_error(error);
    assert_same_json(model, copy);
    assert_same_json(model, again);
    json_decref(json);
  }
}

static GPtrArray *json_files(const char *folder, char **path) {
  g_autoptr(GError) error = NULL;
  *path = g_build_filename(g_getenv("KV_TEST_DATA"), folder, NULL);
  g_autoptr(GDir) dir = g_dir_open(*path, 0, &error);
  g_assert_no_error(error);
  GPtrArray *names = g_ptr_array_new_with_free_func(g_free);
  for (const char *name; (name = g_dir_read_name(dir));)
    if (g_str_has_suffix(name, ".json"))
      g_ptr_array_add(names, g_strdup(name));
  g_assert_cmpuint(names->len, >, 0);
  return names;
}

/* What a published config.json says gives the very model of the catalogue. */
static void test_huggingface_agrees_with_catalogue(void) {
  g_autofree char *folder = NULL;
  g_autoptr(GPtrArray) names = json_files("huggingface", &folder);
  for (guint i = 0; i < names->len; i++) {
    g_autofree char *path = g_build_filename(folder, names->pdata[i], NULL);
    g_autoptr(KvModel) model = load(path);
    g_autoptr(KvModel) expected = load(model->id);
    g_test_message("%s", model->id);
    expected->published_parameters = 0;
    g_free(expected->name);
    expected->name = g_strdup(model->name);
    g_free(expected->source);
    expected->source = g_strdup(model->source);
    assert_same_json(model, expected);
  }
}

static void test_a_folder_stands_for_its_config(void) {
  g_autoptr(GError) error = NULL;
  g_autofree char *folder = g_dir_make_tmp("kv-model-XXXXXX", &error);
  g_autofree char *path = g_build_filename(folder, "config.json", NULL);
  static const char text[] = "{\"hidden_size\": 64, \"num_attention_heads\": 4, \"vocab_size\": 10,"
                             "\"num_hidden_layers\": 3, \"intermediate_size\": 96,"
                             "\"max_position_embeddings\": 32, \"model_type\": \"brand_new\"}";
  g_assert_true(g_file_set_contents(path, text, -1, &error));
  g_autoptr(KvModel) model = load(folder);
  g_autofree char *base = g_path_get_basename(folder);
  g_assert_cmpstr(model->id, ==, base);
  g_assert_cmpuint(kv_model_layers(model), ==, 3);
  /* Read as a Llama: 4 d^2 and 3 d E a layer, two norms, the final one and two tables. */
  g_assert_cmpuint(kv_model_parameters(model), ==,
                   3 * (4 * 64 * 64 + 3 * 64 * 96 + 2 * 64) + 64 + 2 * 10 * 64);
  g_assert_cmpint(g_unlink(path), ==, 0);
  g_assert_cmpint(g_rmdir(folder), ==, 0);
}

/* docs/models.md prints this file. */
static void test_example(void) {
  g_autofree char *path = g_build_filename(g_getenv("KV_EXAMPLES"), "my-model.json", NULL);
  g_autoptr(KvModel) model = load(path);
  g_assert_cmpstr(model->id, ==, "my-model");
  g_assert_cmpuint(layers_of(model, KV_ATTENTION_SLIDING), ==, 20);
  g_assert_cmpuint(layers_of(model, KV_ATTENTION_FULL), ==, 4);
  /* A token leaves 14 of the 16 experts of each of four layers out. */
  g_assert_cmpuint(kv_model_parameters(model) - kv_model_active_parameters(model), ==,
                   4ull * 14 * 3 * 2048 * 2048);
}

static void test_unknown_name_is_suggested(void) {
  g_autoptr(GError) error = NULL;
  g_assert_null(kv_model_load("lama-3.1-8b", &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_USAGE);
  g_assert_cmpstr(error->message, ==,
                  "unknown model 'lama-3.1-8b', did you mean 'llama-3.1-8b'? (see `kvsim list "
                  "models`, or name a JSON file)");
  g_clear_error(&error);
  g_assert_null(kv_model_load("no-such-file.json", &error));
  g_assert_error(error, KV_ERROR, KV_ERROR_INPUT);
}

/* Each file beside its error line. */
static void test_bad_files(void) {
  g_autofree char *folder = NULL;
  g_autoptr(GPtrArray) names = json_files("bad-models", &folder);
  for (guint i = 0; i < names->len; i++) {
    g_autofree char *path = g_build_filename(folder, names->pdata[i], NULL);
    g_autofree char *expected_path = g_strndup(path, strlen(path) - strlen("json"));
    g_autofree char *expected_file = g_strconcat(expected_path, "error", NULL);
    g_autofree char *expected = NULL;
    g_autoptr(GError) error = NULL;
    g_assert_true(g_file_get_contents(expected_file, &expected, NULL, &error));
    g_assert_null(kv_model_load(path, &error));
    g_assert_error(error, KV_ERROR, KV_ERROR_INPUT);
    g_assert_true(g_str_has_prefix(error->message, folder));
    g_assert_cmpstr(error->message + strlen(folder) + 1, ==, g_strchomp(expected));
  }
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/llm/parameters-match-published", test_parameters_match_published);
  g_test_add_func("/llm/ids-are-sorted", test_ids_are_sorted);
  g_test_add_func("/llm/active-parameters", test_active_parameters);
  g_test_add_func("/llm/cache-bytes-per-token", test_cache_bytes_per_token);
  g_test_add_func("/llm/sliding-layers", test_sliding_layers);
  g_test_add_func("/llm/weight-bytes", test_weight_bytes);
  g_test_add_func("/llm/round-trip", test_round_trip);
  g_test_add_func("/llm/huggingface-agrees-with-catalogue", test_huggingface_agrees_with_catalogue);
  g_test_add_func("/llm/a-folder-stands-for-its-config", test_a_folder_stands_for_its_config);
  g_test_add_func("/llm/example", test_example);
  g_test_add_func("/llm/unknown-name-is-suggested", test_unknown_name_is_suggested);
  g_test_add_func("/llm/bad-files", test_bad_files);
  return g_test_run();
}
