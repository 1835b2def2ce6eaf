#include "models/catalogue.h"

#include <gio/gio.h>
#include <string.h>

KvJson *kv_catalogue_document(const char *path) {
  g_autoptr(GError) error = NULL;
  g_autoptr(GBytes) bytes = g_resources_lookup_data(path, G_RESOURCE_LOOKUP_FLAGS_NONE, &error);
  if (!bytes)
    g_error("built-in document: %s", error->message);
  gsize length;
  const char *text = g_bytes_get_data(bytes, &length);
  g_autofree char *name = g_strconcat("built-in ", strrchr(path, '/') + 1, NULL);
  KvJson *json = kv_json_parse(name, text, length, &error);
  if (!json)
    g_error("%s", error->message);
  return json;
}

static void add_entry(KvCatalogue *catalogue, KvJson *document, json_t *object) {
  const char *id = kv_json_string(document, object, "id", NULL, TRUE);
  if (g_hash_table_contains(catalogue->entries, id))
    g_error("%s: two built-in entries are called '%s'", kv_json_name(document), id);
  KvCatalogueEntry *entry = g_new0(KvCatalogueEntry, 1);
  *entry = (KvCatalogueEntry){document, object};
  g_hash_table_insert(catalogue->entries, (char *)id, entry);
}

static void add_document(KvCatalogue *catalogue, const char *path, const char *entries_key) {
  KvJson *document = kv_catalogue_document(path);
  g_ptr_array_add(catalogue->documents, document);
  json_t *entries = json_object_get(kv_json_root(document), entries_key);
  if (!entries) {
    add_entry(catalogue, document, kv_json_root(document));
    return;
  }
  gsize i;
  json_t *object;
  json_array_foreach(entries, i, object) {
    add_entry(catalogue, document, object);
  }
}

static int compare_ids(const void *a, const void *b) {
  return strcmp(*(const char *const *)a, *(const char *const *)b);
}

KvCatalogue *kv_catalogue_open(const char *prefix, const char *entries_key) {
  KvCatalogue *catalogue = g_new0(KvCatalogue, 1);
  catalogue->documents = g_ptr_array_new();
  catalogue->entries = g_hash_table_new(g_str_hash, g_str_equal);
  if (g_str_has_suffix(prefix, ".json")) {
    add_document(catalogue, prefix, entries_key);
  } else {
    g_autoptr(GError) error = NULL;
    g_auto(GStrv) names =
        g_resources_enumerate_children(prefix, G_RESOURCE_LOOKUP_FLAGS_NONE, &error);
    if (!names)
      g_error("built-in documents: %s", error->message);
    for (char **name = names; *name; name++) {
      g_autofree char *path = g_strconcat(prefix, *name, NULL);
      add_document(catalogue, path, entries_key);
    }
  }
  guint n;
  catalogue->ids = (const char **)g_hash_table_get_keys_as_array(catalogue->entries, &n);
  qsort(catalogue->ids, n, sizeof *catalogue->ids, compare_ids);
  return catalogue;
}

const KvCatalogueEntry *kv_catalogue_find(const KvCatalogue *catalogue, const char *id) {
  return g_hash_table_lookup(catalogue->entries, id);
}
