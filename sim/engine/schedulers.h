/* The entries of kv_schedulers: one file each. */
#ifndef KV_SIM_ENGINE_SCHEDULERS_H
#define KV_SIM_ENGINE_SCHEDULERS_H

#include "sim/engine/scheduler.h"

extern const KvSchedulerClass kv_scheduler_vllm_v1;         /* scheduler_vllm_v1.c */
extern const KvSchedulerClass kv_scheduler_vllm_v0;         /* scheduler_vllm_v0.c */
extern const KvSchedulerClass kv_scheduler_vllm_2023;       /* scheduler_vllm_2023.c */
extern const KvSchedulerClass kv_scheduler_vllm_2023_mixed; /* scheduler_vllm_2023.c */
extern const KvSchedulerClass kv_scheduler_vtensor;         /* scheduler_vllm_2023.c */
extern const KvSchedulerClass kv_scheduler_fastserve;       /* scheduler_fastserve.c */
extern const KvSchedulerClass kv_scheduler_lamps;           /* scheduler_lamps.c */
extern const KvSchedulerClass kv_scheduler_sglang;          /* scheduler_sglang.c */
extern const KvSchedulerClass kv_scheduler_trtllm;          /* scheduler_trtllm.c */
extern const KvSchedulerClass kv_scheduler_orca;            /* scheduler_orca.c */
extern const KvSchedulerClass kv_scheduler_static;          /* scheduler_static.c */
extern const KvSchedulerClass kv_scheduler_flexgen;         /* scheduler_static.c */
extern const KvSchedulerClass kv_scheduler_distserve;       /* scheduler_distserve.c */
extern const KvSchedulerClass kv_scheduler_neo;             /* scheduler_neo.c */

#endif
