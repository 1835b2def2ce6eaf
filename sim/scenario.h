/* The scenario: everything that a run depends on beside the trace.
 *
 * A flat struct described by one table, kv_scenario_fields: the JSON file, --set KEY=VALUE,
 * --print-scenario, the documentation and the checks all read it. Every field has a default; the
 * complete scenario is stored with each run, so a run can be repeated from its own output.
 */
#ifndef KV_SIM_SCENARIO_H
#define KV_SIM_SCENARIO_H

#include <glib.h>
#include <jansson.h>

#include "sim/base/dtype.h"
#include "sim/engine/arrival_source.h"
#include "sim/engine/config.h"

typedef struct {
  char *label, *model, *platform, *use, *executor;
  guint replicas, tensor_parallel;
  guint weight_dtype; /* 0: as the model's; else 1 + KvDtype */
  guint expert_dtype; /* of routed experts; 0: as published or as weight_dtype */
  guint cache_dtype;  /* KvDtype */
  KvEngineConfig engine;
  guint tier;        /* of the prefix cache below HBM: 0 none, 1 dram, 2 ssd */
  double tier_GB;    /* 0: all there is */
  char *tier_folder; /* of the executors that compute: where the file of an ssd tier goes */
  guint arrivals;    /* KvArrivalMode */
  guint concurrency;
  guint64 requests; /* at most; 0: all */
  double rate_scale, smear_seconds, output_scale;
  double client_request_seconds, client_token_seconds; /* before the engine sees a request */
  double slo_ttft_seconds, slo_tpot_seconds;
  double usd_per_gpu_hour; /* negative: the catalogue's */
  guint64 seed;
} KvScenario;

typedef enum {
  KV_FIELD_TEXT,
  KV_FIELD_NAME, /* interned: a const char * from a list */
  KV_FIELD_COUNT,
  KV_FIELD_COUNT64,
  KV_FIELD_REAL,
  KV_FIELD_FLAG,
  KV_FIELD_CHOICE, /* index into choices */
} KvFieldKind;

typedef struct {
  const char *section, *key; /* section "" is the top of the document */
  KvFieldKind kind;
  gsize offset;
  double min, max;
  const char *const *choices;
  const char *help; /* one line, with the unit and what the default means */
} KvScenarioField;

extern const KvScenarioField kv_scenario_fields[]; /* ends with key NULL */

KvScenario *kv_scenario_new(void);
KvScenario *kv_scenario_copy(const KvScenario *scenario);
void kv_scenario_free(KvScenario *scenario);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvScenario, kv_scenario_free)

/* Overlay what the JSON file `path` sets. */
gboolean kv_scenario_load(KvScenario *scenario, const char *path, GError **error);
/* The same of `length` bytes of text, which errors call `name`. */
gboolean kv_scenario_parse(KvScenario *scenario, const char *name, const char *text, gsize length,
                           GError **error);
/* Overlay "section.key=value" (or "key=value" for the top). */
gboolean kv_scenario_set(KvScenario *scenario, const char *assignment, GError **error);

/* The complete scenario; a new reference. */
json_t *kv_scenario_to_json(const KvScenario *scenario);

#endif
