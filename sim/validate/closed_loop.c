#include "sim/validate/closed_loop.h"

#include <string.h>

#include "sim/base/error.h"

/* The servers' settings in InferenceMAX's scripts of autumn 2025, by engine: section 2 of the notes
 * on load generators. max_seqs 0: the loop's concurrency. */
typedef struct {
  const char *engine, *scheduler;
  guint max_batched_tokens, max_seqs;
  double memory_utilization;
} Server;

static const Server servers[] = {
    {"vllm", "vllm-v1", 8192, 0, 0.9},
    {"sglang", "sglang", 32768, 512, 0.82},
    {"trt", "trtllm", 16384, 0, 0.85},
};

static const Server *server_of(const char *engine) {
  for (guint i = 0; i < G_N_ELEMENTS(servers); i++)
    if (g_str_has_prefix(engine, servers[i].engine))
      return &servers[i];
  return NULL;
}

/* Checkpoints that store one type throughout; others (gpt-oss) are as published. */
static guint weight_dtype(const KvClosedLoop *loop) {
  gboolean as_published = strstr(loop->model, "gpt-oss") != NULL;
  if (as_published)
    return 0;
  gboolean in_blocks = strstr(loop->model, "DeepSeek") != NULL; /* scales of 128 x 128 weights */
  return strcmp(loop->precision, "fp4") == 0   ? 1 + KV_DTYPE_FP4
         : strcmp(loop->precision, "fp8") == 0 ? 1 + (in_blocks ? KV_DTYPE_FP8_BLOCK : KV_DTYPE_FP8)
                                               : 0;
}

/* On Blackwell the scripts of vLLM and TensorRT-LLM have the kernels of gpt-oss's experts multiply
 * them with 8-bit activations. */
static guint expert_dtype(const KvClosedLoop *loop) {
  gboolean gpt_oss = strstr(loop->model, "gpt-oss") != NULL;
  return gpt_oss && g_str_has_prefix(loop->device, "b200") ? 1 + KV_DTYPE_MXFP4_FP8 : 0;
}

/* Whole prompts, blocks of 32 tokens. DeepSeek's script leaves room for one prompt beside all
 * decodes; that of Llama lets prompts of 1k wait up to 20 steps on fewer than 8 GPUs. */
static void set_trtllm(const KvClosedLoop *loop, KvEngineConfig *e) {
  e->chunked_prefill = FALSE;
  e->block_tokens = 32;
  if (strstr(loop->model, "DeepSeek"))
    e->max_batched_tokens = (loop->concurrency + loop->input_tokens + 64 + 63) / 64 * 64;
  if (strstr(loop->model, "gpt-oss"))
    e->max_batched_tokens = 20000;
  if (strstr(loop->model, "Llama") && loop->input_tokens == 1024 && loop->output_tokens == 1024 &&
      loop->tensor_parallel < 8) {
    e->batch_wait_steps = 20;
    e->batch_wait_share = 0.9;
  }
}

gboolean kv_closed_loop_fill(const KvClosedLoop *loop, KvMeasuredRun *run,
                             const KvMeasuredOptions *options, GError **error) {
  const Server *server = server_of(loop->engine);
  if (!server) {
    g_set_error(error, KV_ERROR, KV_ERROR_INPUT,
                "%s: engine '%s' is not known, expected vllm, sglang or trt", loop->place,
                loop->engine);
    return FALSE;
  }
  if (!kv_measured_name(run, loop->place, loop->model, loop->device, loop->tensor_parallel, options,
                        error))
    return FALSE;
  KvScenario *s = run->scenario;
  KvEngineConfig *e = &s->engine;
  s->tensor_parallel = loop->tensor_parallel;
  e->expert_parallel = loop->expert_parallel > 1 ? loop->expert_parallel : 0;
  s->weight_dtype = weight_dtype(loop);
  s->expert_dtype = expert_dtype(loop);
  if (s->weight_dtype > 0) /* the quantized checkpoints bring an fp8 cache */
    s->cache_dtype = KV_DTYPE_FP8;
  s->arrivals = KV_ARRIVE_CLOSED;
  s->concurrency = loop->concurrency;
  e->scheduler = g_intern_string(server->scheduler);
  e->max_batched_tokens = server->max_batched_tokens;
  e->max_seqs = server->max_seqs ? server->max_seqs : loop->concurrency;
  e->memory_utilization = server->memory_utilization;
  e->prefix_caching = FALSE;
  if (strcmp(server->scheduler, "trtllm") == 0)
    set_trtllm(loop, e);
  if (loop->attention_parallel) {
    e->data_parallel = s->tensor_parallel;
    e->pad_ranks = strcmp(server->scheduler, "vllm-v1") == 0;
    s->tensor_parallel = 1;
  }
  e->max_model_len = loop->input_tokens + loop->output_tokens + 256;
  kv_measured_over_http(s);
  run->workload = kv_measured_closed_workload(10 * (guint64)loop->concurrency, loop->input_tokens,
                                              loop->output_tokens, 0.8);
  run->group =
      g_strdup_printf("%s %s, %s, %s", s->model, loop->precision, loop->device, server->engine);
  run->name = g_strdup_printf("%s %s on %s, %s, %u/%u tokens, %u in flight", s->model,
                              loop->precision, s->platform, loop->engine, loop->input_tokens,
                              loop->output_tokens, loop->concurrency);
  return TRUE;
}
