/* Finding a model by its name: in the catalogue, or in a file of either form. */
#include "models/llm/llm.h"

#include <string.h>

#include "models/catalogue.h"
#include "models/llm/document.h"
#include "sim/base/error.h"
#include "sim/base/names.h"

static const KvCatalogue *catalogue(void) {
  static KvCatalogue *opened;
  if (g_once_init_enter(&opened))
    g_once_init_leave(&opened, kv_catalogue_open("/kvsim/llm/", "models"));
  return opened;
}

const char *const *kv_model_ids(void) {
  return catalogue()->ids;
}

/* Which form a document has is said by fields that only that form has. */
static KvModel *read_document(KvJson *json, const char *id) {
  static const char *const huggingface[] = {"model_type", "architectures", "hidden_size", "n_embd",
                                            "d_model",    "text_config",   NULL};
  json_t *root = kv_json_root(json);
  if (json_is_object(root) && !kv_json_has(root, "groups")) {
    for (guint i = 0; huggingface[i]; i++)
      if (kv_json_has(root, huggingface[i]))
        return kv_model_read_huggingface(json, id);
    kv_json_fail(json, root, NULL,
                 "neither 'groups' nor 'hidden_size' is there, expected a model or a Hugging Face "
                 "config.json");
  }
  return kv_model_read(json, root);
}

static KvModel *finish(KvJson *json, KvModel *model, GError **error) {
  if (kv_json_finish(json, error))
    return model;
  kv_model_free(model);
  return NULL;
}

/* A config.json does not say what it is called: its folder does, or the file's own name. */
static char *id_of_path(const char *path) {
  g_autofree char *base = g_path_get_basename(path);
  if (strcmp(base, "config.json") == 0) {
    g_autofree char *folder = g_path_get_dirname(path);
    if (strcmp(folder, ".") != 0)
      return g_path_get_basename(folder);
  }
  char *dot = strrchr(base, '.');
  return dot && dot != base ? g_strndup(base, (gsize)(dot - base)) : g_steal_pointer(&base);
}

KvModel *kv_model_parse(const char *name, const char *text, gsize length, GError **error) {
  g_autoptr(KvJson) json = kv_json_parse(name, text, length, error);
  if (!json)
    return NULL;
  g_autofree char *id = id_of_path(name);
  return finish(json, read_document(json, id), error);
}

static KvModel *load_file(const char *path, GError **error) {
  g_autofree char *inside = NULL;
  if (g_file_test(path, G_FILE_TEST_IS_DIR))
    path = inside = g_build_filename(path, "config.json", NULL);
  g_autoptr(KvJson) json = kv_json_load(path, error);
  if (!json)
    return NULL;
  g_autofree char *id = id_of_path(path);
  return finish(json, read_document(json, id), error);
}

KvModel *kv_model_load(const char *name, GError **error) {
  g_return_val_if_fail(name != NULL, NULL);
  const KvCatalogueEntry *entry = kv_catalogue_find(catalogue(), name);
  if (entry)
    return finish(entry->document, kv_model_read(entry->document, entry->object), error);
  if (g_str_has_suffix(name, ".json") || g_file_test(name, G_FILE_TEST_EXISTS))
    return load_file(name, error);
  g_autofree char *unknown = kv_names_unknown("model", name, kv_model_ids());
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "%s (see `kvsim list models`, or name a JSON file)",
              unknown);
  return NULL;
}
