#include "sim/base/json.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/names.h"

enum { LARGEST_DOCUMENT_BYTES = 64 << 20 };

struct KvJson {
  char *name;
  char *text; /* NUL-terminated copy, for finding lines */
  json_t *root;
  GError *error; /* the first problem */
};

KvJson *kv_json_parse(const char *name, const char *text, gsize length, GError **error) {
  json_error_t where;
  /* Nothing at all may come as a NULL pointer, which jansson calls a wrong argument. */
  json_t *root =
      json_loadb(length ? text : "", length, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &where);
  if (!root) {
    kv_error_at(error, name, where.line > 0 ? (guint64)where.line : 1,
                "not valid JSON: %s, expected one JSON value", where.text);
    return NULL;
  }
  KvJson *json = g_new0(KvJson, 1);
  json->name = g_strdup(name);
  json->text = g_strndup(text, length);
  json->root = root;
  return json;
}

/* The file's bytes, at most LARGEST_DOCUMENT_BYTES + 1 of them: a device or a huge file given by
 * mistake costs no more than that. NULL with errno set if it cannot be read. */
static GByteArray *read_document(const char *path) {
  FILE *file = fopen(path, "rbe");
  if (!file)
    return NULL;
  GByteArray *bytes = g_byte_array_new();
  guint8 chunk[1 << 14];
  for (gsize n; (n = fread(chunk, 1, sizeof chunk, file)) > 0;) {
    g_byte_array_append(bytes, chunk, (guint)n);
    if (bytes->len > LARGEST_DOCUMENT_BYTES)
      break;
  }
  int problem = ferror(file) ? errno : 0;
  fclose(file);
  if (problem) {
    g_byte_array_unref(bytes);
    errno = problem;
    return NULL;
  }
  return bytes;
}

KvJson *kv_json_load(const char *path, GError **error) {
  g_autoptr(GByteArray) bytes = read_document(path);
  if (!bytes) {
    kv_error_at(error, path, 0, "cannot be read (%s), expected a JSON document", g_strerror(errno));
    return NULL;
  }
  if (bytes->len > LARGEST_DOCUMENT_BYTES) {
    kv_error_at(error, path, 0, "is larger than %d MiB, expected a JSON document",
                LARGEST_DOCUMENT_BYTES >> 20);
    return NULL;
  }
  return kv_json_parse(path, (const char *)bytes->data, bytes->len, error);
}

void kv_json_free(KvJson *json) {
  if (!json)
    return;
  g_free(json->name);
  g_free(json->text);
  json_decref(json->root);
  g_clear_error(&json->error);
  g_free(json);
}

json_t *kv_json_root(const KvJson *json) {
  return json->root;
}

const char *kv_json_name(const KvJson *json) {
  return json->name;
}

gboolean kv_json_has(json_t *object, const char *key) {
  return json_object_get(object, key) != NULL;
}

/* The text is known to be valid, so a cursor can walk it in step with the tree: containers keep
 * their order and keys do not repeat. */
typedef struct {
  const char *at;
  guint64 line;
  const json_t *wanted; /* container looked for */
  const char *key;      /* its member, or NULL for the container itself */
  guint64 found;
} Locator;

static void skip_blank(Locator *l) {
  for (; *l->at && strchr(" \t\r\n", *l->at); l->at++)
    l->line += *l->at == '\n';
}

static void skip_string(Locator *l) {
  for (l->at++; *l->at && *l->at != '"'; l->at++)
    if (*l->at == '\\' && l->at[1])
      l->at++;
  if (*l->at)
    l->at++;
}

static void locate(Locator *l, json_t *value) {
  skip_blank(l);
  if (value == l->wanted && !l->key)
    l->found = l->line;
  if (json_is_object(value)) {
    const char *key;
    json_t *member;
    l->at++;
    json_object_foreach(value, key, member) {
      skip_blank(l);
      if (value == l->wanted && l->key && strcmp(key, l->key) == 0)
        l->found = l->line;
      skip_string(l);
      skip_blank(l);
      l->at++; /* colon */
      locate(l, member);
      skip_blank(l);
      l->at++; /* comma or closing brace */
      if (l->found)
        return;
    }
    if (json_object_size(value) == 0) {
      skip_blank(l);
      l->at++;
    }
  } else if (json_is_array(value)) {
    gsize index;
    json_t *member;
    l->at++;
    json_array_foreach(value, index, member) {
      locate(l, member);
      skip_blank(l);
      l->at++;
      if (l->found)
        return;
    }
    if (json_array_size(value) == 0) {
      skip_blank(l);
      l->at++;
    }
  } else if (json_is_string(value)) {
    skip_string(l);
  } else {
    while (*l->at && !strchr(",]} \t\r\n", *l->at))
      l->at++;
  }
}

static guint64 line_of(const KvJson *json, const json_t *object, const char *key) {
  Locator l = {.at = json->text, .line = 1, .wanted = object, .key = key};
  locate(&l, json->root);
  if (!l.found && key) /* an absent member: the line of its object */
    return line_of(json, object, NULL);
  return l.found ? l.found : 1;
}

void kv_json_fail(KvJson *json, json_t *object, const char *key, const char *format, ...) {
  if (json->error)
    return;
  va_list args;
  va_start(args, format);
  g_autofree char *message = g_strdup_vprintf(format, args);
  va_end(args);
  kv_error_at(&json->error, json->name, line_of(json, object, key), "%s", message);
}

gboolean kv_json_finish(KvJson *json, GError **error) {
  if (!json->error)
    return TRUE;
  g_propagate_error(error, g_steal_pointer(&json->error));
  return FALSE;
}

static const char *type_name(const json_t *value) {
  switch (json_typeof(value)) {
  case JSON_OBJECT:
    return "an object";
  case JSON_ARRAY:
    return "an array";
  case JSON_STRING:
    return "a string";
  case JSON_INTEGER:
  case JSON_REAL:
    return "a number";
  case JSON_TRUE:
  case JSON_FALSE:
    return "a boolean";
  case JSON_NULL:
    break;
  }
  return "null";
}

/* The member, or NULL after complaint if the object is none or the member is missing and required.
 */
static json_t *member(KvJson *json, json_t *object, const char *key, gboolean required) {
  if (!json_is_object(object)) {
    kv_json_fail(json, object, NULL, "expected an object with the field '%s', found %s", key,
                 object ? type_name(object) : "nothing");
    return NULL;
  }
  json_t *value = json_object_get(object, key);
  if (!value && required)
    kv_json_fail(json, object, key, "the field '%s' is missing", key);
  return value;
}

double kv_json_number(KvJson *json, json_t *object, const char *key, double fallback, double min,
                      double max) {
  gboolean required = fallback == KV_JSON_REQUIRED;
  json_t *value = member(json, object, key, required);
  if (!value)
    return required ? min : fallback;
  if (!json_is_number(value)) {
    kv_json_fail(json, object, key, "'%s' is %s, expected a number", key, type_name(value));
    return min;
  }
  double number = json_number_value(value);
  if (isfinite(number) && number >= min && number <= max)
    return number;
  if (max == G_MAXDOUBLE)
    kv_json_fail(json, object, key, "'%s' is %.15g, expected a number of at least %.15g", key,
                 number, min);
  else
    kv_json_fail(json, object, key, "'%s' is %.15g, expected a number from %.15g to %.15g", key,
                 number, min, max);
  return min;
}

/* The nearest whole number that fits: a plain cast of 2^63 or more is undefined. */
static gint64 whole(double number) {
  return number >= 0x1p63 ? G_MAXINT64 : number <= -0x1p63 ? G_MININT64 : (gint64)number;
}

gint64 kv_json_integer(KvJson *json, json_t *object, const char *key, double fallback, gint64 min,
                       gint64 max) {
  gboolean required = fallback == KV_JSON_REQUIRED;
  json_t *value = member(json, object, key, required);
  if (!value)
    return required ? min : whole(fallback);
  if (!json_is_number(value)) {
    kv_json_fail(json, object, key, "'%s' is %s, expected a whole number", key, type_name(value));
    return min;
  }
  double real = json_number_value(value);
  if (json_is_real(value) && real != floor(real)) {
    kv_json_fail(json, object, key, "'%s' is %.15g, expected a whole number", key, real);
    return min;
  }
  /* Compared as whole numbers: as doubles, those past 2^53 would run together. */
  gint64 number = json_is_integer(value) ? json_integer_value(value) : whole(real);
  gboolean fits = json_is_integer(value) || (real >= -0x1p63 && real < 0x1p63);
  if (fits && number >= min && number <= max)
    return number;
  g_autofree char *found = json_is_integer(value) ? g_strdup_printf("%" G_GINT64_FORMAT, number)
                                                  : g_strdup_printf("%.15g", real);
  if (max == G_MAXINT64)
    kv_json_fail(json, object, key,
                 "'%s' is %s, expected a whole number of at least %" G_GINT64_FORMAT, key, found,
                 min);
  else
    kv_json_fail(json, object, key,
                 "'%s' is %s, expected a whole number from %" G_GINT64_FORMAT
                 " to %" G_GINT64_FORMAT,
                 key, found, min, max);
  return min;
}

gboolean kv_json_boolean(KvJson *json, json_t *object, const char *key, gboolean fallback) {
  json_t *value = member(json, object, key, FALSE);
  if (!value)
    return fallback;
  if (!json_is_boolean(value))
    kv_json_fail(json, object, key, "'%s' is %s, expected true or false", key, type_name(value));
  return json_is_true(value);
}

const char *kv_json_string(KvJson *json, json_t *object, const char *key, const char *fallback,
                           gboolean required) {
  json_t *value = member(json, object, key, required);
  if (!value)
    return required ? "" : fallback;
  if (!json_is_string(value)) {
    kv_json_fail(json, object, key, "'%s' is %s, expected a string", key, type_name(value));
    return fallback ? fallback : "";
  }
  return json_string_value(value);
}

guint kv_json_choice(KvJson *json, json_t *object, const char *key, const char *const *choices,
                     guint fallback) {
  const char *name = kv_json_string(json, object, key, NULL, FALSE);
  if (!name)
    return fallback;
  for (guint i = 0; choices[i]; i++)
    if (strcmp(choices[i], name) == 0)
      return i;
  g_autofree char *list = g_strjoinv("|", (char **)choices);
  kv_json_fail(json, object, key, "'%s' is '%.60s', expected %s", key, name, list);
  return fallback;
}

static json_t *container(KvJson *json, json_t *object, const char *key, gboolean required,
                         json_type type, const char *expected) {
  json_t *value = member(json, object, key, required);
  if (value && json_typeof(value) != type) {
    kv_json_fail(json, object, key, "'%s' is %s, expected %s", key, type_name(value), expected);
    return NULL;
  }
  return value;
}

json_t *kv_json_object(KvJson *json, json_t *object, const char *key, gboolean required) {
  return container(json, object, key, required, JSON_OBJECT, "an object");
}

json_t *kv_json_array(KvJson *json, json_t *object, const char *key, gboolean required) {
  return container(json, object, key, required, JSON_ARRAY, "an array");
}

void kv_json_only(KvJson *json, json_t *object, const char *const *known) {
  const char *key;
  json_t *value;
  if (!json_is_object(object))
    return;
  json_object_foreach(object, key, value) {
    if (!g_strv_contains(known, key)) {
      g_autofree char *message = kv_names_unknown("field", key, known);
      kv_json_fail(json, object, key, "%s", message);
      return;
    }
  }
}
