/* Any bytes as a scenario: an error of one line, or a scenario whose complete form reads back as
 * itself; and each line of them as a --set. */
#include <stdint.h>
#include <string.h>

#include "sim/scenario.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static char *complete(const KvScenario *scenario) {
  json_t *root = kv_scenario_to_json(scenario);
  char *text = json_dumps(root, JSON_COMPACT);
  json_decref(root);
  g_assert(text);
  return text;
}

/* What was read is within the ranges that reading checks. */
static void read_back(const KvScenario *scenario) {
  g_autoptr(GError) error = NULL;
  g_autofree char *text = complete(scenario);
  g_autoptr(KvScenario) again = kv_scenario_new();
  gboolean ok = kv_scenario_parse(again, "again.json", text, strlen(text), &error);
  g_assert_no_error(error);
  g_assert(ok);
  g_autofree char *second = complete(again);
  g_assert_cmpstr(text, ==, second);
}

static void check_error(gboolean ok, const GError *error) {
  g_assert(ok == (error == NULL));
  g_assert(!error || !strchr(error->message, '\n'));
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvScenario) scenario = kv_scenario_new();
  gboolean ok = kv_scenario_parse(scenario, "fuzz.json", (const char *)bytes, size, &error);
  check_error(ok, error);
  if (ok)
    read_back(scenario);
  g_autofree char *text = g_strndup(size ? (const char *)bytes : "", size);
  g_auto(GStrv) lines = g_strsplit(text, "\n", 100);
  g_autoptr(KvScenario) set = kv_scenario_new();
  if (size > 0 && size < 4096 &&
      strchr(text, '\n')) { /* a line break is no part of any value but a text */
    g_autoptr(GError) problem = NULL;
    ok = kv_scenario_set(set, text, &problem);
    check_error(ok, problem);
  }
  for (guint i = 0; lines[i]; i++) {
    g_autoptr(GError) problem = NULL;
    ok = kv_scenario_set(set, lines[i], &problem);
    check_error(ok, problem);
  }
  read_back(set);
  return 0;
}
