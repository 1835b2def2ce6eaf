#include "sim/engine/scheduler.h"

#include <string.h>

#include "sim/engine/schedulers.h"

const KvSchedulerClass *const kv_schedulers[] = {
    &kv_scheduler_vllm_v1,   &kv_scheduler_sglang,    &kv_scheduler_trtllm,
    &kv_scheduler_vllm_v0,   &kv_scheduler_vllm_2023, &kv_scheduler_vllm_2023_mixed,
    &kv_scheduler_orca,      &kv_scheduler_static,    &kv_scheduler_flexgen,
    &kv_scheduler_vtensor,   &kv_scheduler_fastserve, &kv_scheduler_lamps,
    &kv_scheduler_distserve, &kv_scheduler_neo,       NULL,
};

const KvSchedulerClass *kv_scheduler_find(const char *name) {
  for (guint i = 0; kv_schedulers[i]; i++)
    if (strcmp(kv_schedulers[i]->name, name) == 0)
      return kv_schedulers[i];
  return NULL;
}
