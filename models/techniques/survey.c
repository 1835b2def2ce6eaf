#include "models/techniques/survey.h"

#include "models/catalogue.h"

static void read_entry(const KvCatalogueEntry *from, KvSurveyEntry *entry) {
  KvJson *json = from->document;
  entry->id = kv_json_string(json, from->object, "id", NULL, TRUE);
  entry->name = kv_json_string(json, from->object, "name", NULL, TRUE);
  entry->paper = kv_json_string(json, from->object, "paper", "", FALSE);
  entry->year = (guint)kv_json_integer(json, from->object, "year", KV_JSON_REQUIRED, 1990, 2100);
  g_autoptr(GPtrArray) sections = g_ptr_array_new();
  gsize i;
  json_t *section;
  json_array_foreach(kv_json_array(json, from->object, "sections", TRUE), i, section) {
    g_ptr_array_add(sections, (gpointer)json_string_value(section));
  }
  g_ptr_array_add(sections, NULL);
  entry->sections = (char **)g_ptr_array_steal(sections, NULL);
}

const KvSurveyEntry *kv_survey(guint *n) {
  static KvSurveyEntry *entries;
  static guint count;
  static KvCatalogue *catalogue; /* holds what the entries point into */
  static gsize made;
  if (g_once_init_enter(&made)) {
    catalogue = kv_catalogue_open("/kvsim/survey/survey.json", "entries");
    count = g_strv_length((char **)catalogue->ids);
    entries = g_new0(KvSurveyEntry, count);
    for (guint i = 0; i < count; i++)
      read_entry(kv_catalogue_find(catalogue, catalogue->ids[i]), &entries[i]);
    g_once_init_leave(&made, 1);
  }
  *n = count;
  return entries;
}
