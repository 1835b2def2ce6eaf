/* The entries of kv_measured_kinds: one file each. */
#ifndef KV_SIM_VALIDATE_KINDS_H
#define KV_SIM_VALIDATE_KINDS_H

#include "sim/validate/measured.h"

extern const KvMeasuredKind kv_measured_vllm_log;       /* read_vllm_log.c */
extern const KvMeasuredKind kv_measured_inferencemax;   /* read_inferencemax.c */
extern const KvMeasuredKind kv_measured_silicon;        /* read_silicon.c */
extern const KvMeasuredKind kv_measured_inference_perf; /* read_inference_perf.c */
extern const KvMeasuredKind kv_measured_multi_round_qa; /* read_multi_round_qa.c */
extern const KvMeasuredKind kv_measured_vllm_bench;     /* read_vllm_bench.c */
extern const KvMeasuredKind kv_measured_reference;      /* read_reference.c */

#endif
