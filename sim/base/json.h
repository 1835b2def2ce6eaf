/* Reading a JSON document that a person wrote, and saying precisely what is wrong with it.
 *
 * A KvJson holds one parsed document, its name, its text and the first error. The getters never
 * fail visibly: they return a usable value and remember the first problem with its line, so code
 * that reads a document stays a flat list of fields; kv_json_finish() then reports. A getter whose
 * fallback is the constant KV_JSON_REQUIRED (numbers) or NULL with `required` set complains about a
 * missing field.
 *
 * Ownership: json_t pointers returned are borrowed from the document.
 */
#ifndef KV_SIM_BASE_JSON_H
#define KV_SIM_BASE_JSON_H

#include <glib.h>
#include <jansson.h>

typedef struct KvJson KvJson;

/* Pass as the fallback of a number that has none. */
#define KV_JSON_REQUIRED G_MAXDOUBLE

/* Parse the file at `path` (at most 64 MiB). */
KvJson *kv_json_load(const char *path, GError **error);

/* Parse `length` bytes of `text`, which errors will call `name`. */
KvJson *kv_json_parse(const char *name, const char *text, gsize length, GError **error);

void kv_json_free(KvJson *json);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvJson, kv_json_free)

/* The document's top value, and its name as errors give it. */
json_t *kv_json_root(const KvJson *json);
const char *kv_json_name(const KvJson *json);

gboolean kv_json_has(json_t *object, const char *key);

/* The number at `key` of `object`, in [min, max] and finite; `fallback` if it is absent. */
double kv_json_number(KvJson *json, json_t *object, const char *key, double fallback, double min,
                      double max);

/* The same for a whole number; the fallback KV_JSON_REQUIRED works here too. */
gint64 kv_json_integer(KvJson *json, json_t *object, const char *key, double fallback, gint64 min,
                       gint64 max);

gboolean kv_json_boolean(KvJson *json, json_t *object, const char *key, gboolean fallback);

/* The string at `key`, borrowed; `fallback` if it is absent and not required. Never NULL if
 * required. */
const char *kv_json_string(KvJson *json, json_t *object, const char *key, const char *fallback,
                           gboolean required);

/* The index of the string at `key` in the NULL-terminated `choices`; `fallback` if it is absent. */
guint kv_json_choice(KvJson *json, json_t *object, const char *key, const char *const *choices,
                     guint fallback);

/* The object or array at `key`, borrowed; NULL if it is absent (an error if it is required). */
json_t *kv_json_object(KvJson *json, json_t *object, const char *key, gboolean required);
json_t *kv_json_array(KvJson *json, json_t *object, const char *key, gboolean required);

/* Complain about the first member of `object` that the NULL-terminated `known` does not list. */
void kv_json_only(KvJson *json, json_t *object, const char *const *known);

/* Remember the error "FILE:LINE: message" for the member `key` of `object` (or `object` itself:
 * NULL), unless an earlier one is remembered. */
void kv_json_fail(KvJson *json, json_t *object, const char *key, const char *format, ...)
    G_GNUC_PRINTF(4, 5);

/* FALSE, with *error set, if anything was wrong. */
gboolean kv_json_finish(KvJson *json, GError **error);

#endif
