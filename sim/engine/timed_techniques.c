#include "sim/engine/timed_techniques.h"

#include <string.h>

static void add(KvTimedTechniques *timed, const KvDevice *device, const char *id) {
  const KvTechniqueTimes *times = kv_device_technique(device, id);
  if (times && timed->n < KV_MAX_TIMED)
    timed->times[timed->n++] = times;
}

void kv_timed_techniques_init(KvTimedTechniques *timed, const KvDevice *device,
                              const KvModel *model, const KvPlan *plan) {
  *timed = (KvTimedTechniques){0};
  gboolean recurrent = FALSE, latent = FALSE;
  for (guint g = 0; g < model->n_groups; g++) {
    const KvAttention *a = &model->groups[g].attention;
    timed->layers += model->groups[g].count;
    recurrent |= a->inner > 0;
    latent |= a->kind == KV_ATTENTION_LATENT;
    if (a->kind != KV_ATTENTION_NONE)
      timed->token_bytes +=
          2.0 * model->groups[g].count * a->n_kv_heads * (a->head_dim + a->value_head_dim);
  }
  for (guint i = 0; i < plan->techniques->len; i++)
    add(timed, device, g_ptr_array_index(plan->techniques, i));
  if (plan->techniques->len == 0 && plan->element_bytes == 1.0)
    add(timed, device, "fp8");
  if (recurrent)
    add(timed, device, "recurrent");
  if (latent)
    add(timed, device, "latent");
}

gboolean kv_timed_techniques_cover(const KvTimedTechniques *timed, const KvWork *work) {
  if (!work->technique || !work->critical || work->processor != KV_PROCESSOR_GPU)
    return FALSE;
  for (guint i = 0; i < timed->n; i++)
    if (strcmp(timed->times[i]->id, work->technique) == 0)
      return TRUE;
  return FALSE;
}

double kv_timed_techniques_seconds(const KvTimedTechniques *timed, const KvStep *step, double at,
                                   double prefill_attention_seconds) {
  double n = (double)step->decode.n, amounts[KV_N_TECHNIQUE_PARTS] = {0}, seconds = 0.0;
  for (guint i = 0; i < step->n_chunks; i++) {
    const KvChunk *chunk = &step->chunks[i];
    amounts[KV_TECHNIQUE_CHUNK] += timed->layers;
    amounts[KV_TECHNIQUE_TOKEN] += timed->layers * chunk->tokens;
    amounts[KV_TECHNIQUE_PROMPT] += chunk->last ? timed->layers : 0.0;
    amounts[KV_TECHNIQUE_CONTEXT] += timed->token_bytes * ((double)chunk->past + chunk->tokens);
  }
  amounts[KV_TECHNIQUE_ATTENTION] = prefill_attention_seconds;
  if (n > 0.0) {
    amounts[KV_TECHNIQUE_STEP] = timed->layers;
    amounts[KV_TECHNIQUE_SEQUENCE] = timed->layers * n;
    amounts[KV_TECHNIQUE_CACHE] = timed->token_bytes * (step->decode.context_tokens + at * n);
  }
  for (guint i = 0; i < timed->n; i++)
    for (guint p = 0; p < KV_N_TECHNIQUE_PARTS; p++)
      seconds += timed->times[i]->seconds[p] * amounts[p];
  return seconds;
}
