/* The formats that kv_trace_formats lists, one file each. */
#ifndef KV_TRACES_FORMATS_H
#define KV_TRACES_FORMATS_H

#include "traces/trace.h"

extern const KvTraceFormat kv_trace_native, kv_trace_azure, kv_trace_vidur, kv_trace_splitwise,
    kv_trace_burstgpt, kv_trace_lengths, kv_trace_sharegpt_tokens, kv_trace_agent_sessions,
    kv_trace_replay_csv, kv_trace_bailian, kv_trace_vllm_bench;

#endif
