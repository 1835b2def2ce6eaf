/* The JSON documents built into the library: one index of their entries by id.
 *
 * A document below the folder is one entry (an object with an `id`), or many (an object whose
 * array `entries_key` holds them). The index is made once and lives as long as the program. */
#ifndef KV_MODELS_CATALOGUE_H
#define KV_MODELS_CATALOGUE_H

#include <glib.h>

#include "sim/base/json.h"

typedef struct {
  GPtrArray *documents; /* KvJson */
  GHashTable *entries;  /* id -> KvCatalogueEntry */
  const char **ids;     /* sorted, NULL-terminated */
} KvCatalogue;

typedef struct {
  KvJson *document;
  json_t *object;
} KvCatalogueEntry;

/* The index of every built-in document whose path starts with `prefix` ("/kvsim/hardware/devices/",
 * or a file). */
KvCatalogue *kv_catalogue_open(const char *prefix, const char *entries_key);
const KvCatalogueEntry *kv_catalogue_find(const KvCatalogue *catalogue, const char *id);

/* The built-in document at `path`, parsed; the caller frees it. */
KvJson *kv_catalogue_document(const char *path);

#endif
