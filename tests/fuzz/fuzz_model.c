/* Any bytes as a model file: an error or a model whose numbers are finite and whose own JSON reads
 * back. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "models/llm/llm.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvModel) model = kv_model_parse("fuzz.json", (const char *)bytes, size, &error);
  g_assert((model == NULL) == (error != NULL));
  if (!model)
    return 0;
  g_assert(kv_model_layers(model) > 0);
  g_assert(kv_model_active_parameters(model) <= kv_model_parameters(model));
  g_assert(isfinite(kv_model_weight_bytes(model)));
  g_assert(isfinite(kv_model_cache_bytes_per_token(model, 2)));
  json_t *json = kv_model_to_json(model);
  g_autofree char *text = json_dumps(json, JSON_COMPACT);
  g_autoptr(KvModel) again = kv_model_parse("fuzz.json", text, strlen(text), &error);
  g_assert_no_error(error);
  g_assert(kv_model_parameters(again) == kv_model_parameters(model));
  json_decref(json);
  return 0;
}
