#include "sim/scenario.h"

#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/base/json.h"
#include "sim/base/names.h"

static const char *const weight_dtype_names[] = {"model", "fp32",      "bf16",      "fp16",
                                                 "fp8",   "int8",      "fp4",       "int4",
                                                 "mxfp4", "mxfp4-fp8", "fp8-block", NULL};
static const char *const cache_dtype_names[] = {"fp32", "bf16", "fp16", "fp8",
                                                "int8", "fp4",  "int4", NULL};
static const char *const tier_names[] = {"none", "dram", "ssd", NULL};
static const char *const scheduler_names[] = {
    "vllm-v1",         "sglang", "trtllm",    "vllm-v0", "vllm-2023",
    "vllm-2023-mixed", "orca",   "static",    "flexgen", "vtensor",
    "fastserve",       "lamps",  "distserve", "neo",     NULL};
static const char *const allocator_names[] = {"paged", "chunked", "reserved", NULL};
static const char *const router_names[] = {"round-robin", "least-loaded",   "prefix", "session",
                                           "connection",  "shortest-queue", NULL};
static const char *const executor_names[] = {"model", "host", "cuda", NULL};

#define AT(member) G_STRUCT_OFFSET(KvScenario, member)
#define ENGINE(member) G_STRUCT_OFFSET(KvScenario, engine.member)

const KvScenarioField kv_scenario_fields[] = {
    {"", "label", KV_FIELD_TEXT, AT(label), 0, 0, NULL,
     "name of the run in tables and plots; empty: the stack"},
    {"", "model", KV_FIELD_TEXT, AT(model), 0, 0, NULL,
     "catalogue id, or a JSON file (kvsim list models)"},
    {"", "platform", KV_FIELD_TEXT, AT(platform), 0, 0, NULL,
     "GPU id, 4xh100-sxm, 2x8xh200, or a JSON file"},
    {"", "use", KV_FIELD_TEXT, AT(use), 0, 0, NULL,
     "technique stack, applied left to right: id:param=value,id"},
    {"", "executor", KV_FIELD_TEXT, AT(executor), 0, 0, executor_names,
     "who carries out operations"},
    {"", "seed", KV_FIELD_COUNT64, AT(seed), 0, 9e15, NULL, "of everything random"},
    {"deployment", "replicas", KV_FIELD_COUNT, AT(replicas), 1, 4096, NULL,
     "instances behind the router"},
    {"deployment", "tensor_parallel", KV_FIELD_COUNT, AT(tensor_parallel), 1, 1024, NULL,
     "GPUs of one instance"},
    {"deployment", "data_parallel", KV_FIELD_COUNT, ENGINE(data_parallel), 1, 1024, NULL,
     "ranks of tensor_parallel GPUs in an instance that attend apart and step together"},
    {"deployment", "pad_ranks", KV_FIELD_FLAG, ENGINE(pad_ranks), 0, 0, NULL,
     "ranks that step together compute as many tokens as the fullest (vLLM)"},
    {"deployment", "expert_parallel", KV_FIELD_COUNT, ENGINE(expert_parallel), 0, 4096, NULL,
     "GPUs, of all instances, that whole experts are spread over; 0: split as other weights"},
    {"deployment", "router", KV_FIELD_NAME, ENGINE(router), 0, 0, router_names,
     "which instance a request goes to"},
    {"deployment", "context_parallel", KV_FIELD_COUNT, ENGINE(context_parallel), 0, 1024, NULL,
     "groups of tensor_parallel GPUs over which a sequence's cache is split along its tokens; 0: all"},
    {"deployment", "combine", KV_FIELD_CHOICE, ENGINE(combine), 0, 0, kv_combine_names,
     "how the groups' attention of a step becomes one"},
    {"deployment", "combine_fused", KV_FIELD_FLAG, ENGINE(combine_fused), 0, 0, NULL,
     "tree: sums of weights are reduced with the outputs, two reductions a layer and not three"},
    {"deployment", "prefill_instances", KV_FIELD_COUNT, ENGINE(prefill_instances), 0, 4096, NULL,
     "instances that compute prompts only; 0: each replica does everything"},
    {"deployment", "decode_instances", KV_FIELD_COUNT, ENGINE(decode_instances), 0, 4096, NULL,
     "instances that decode only, from caches that they pull"},
    {"deployment", "prefill_tensor_parallel", KV_FIELD_COUNT, ENGINE(prefill_tensor_parallel), 0,
     1024, NULL, "GPUs of a prefill instance; 0: tensor_parallel"},
    {"deployment", "decode_tensor_parallel", KV_FIELD_COUNT, ENGINE(decode_tensor_parallel), 0,
     1024, NULL, "GPUs of a decode instance; 0: tensor_parallel"},
    {"deployment", "decode_max_seqs", KV_FIELD_COUNT, ENGINE(decode_max_seqs), 0, 1e6, NULL,
     "running sequences of a decode instance; 0: engine.max_seqs"},
    {"deployment", "pull_share", KV_FIELD_REAL, ENGINE(pull_share), 1e-6, 1, NULL,
     "a decode instance pulls while what waits there takes less than this share of its blocks"},
    {"deployment", "pull_in_node", KV_FIELD_FLAG, ENGINE(pull_in_node), 0, 0, NULL,
     "a prompt goes to a decode instance of the same node, where there is one"},
    {"precision", "weights", KV_FIELD_CHOICE, AT(weight_dtype), 0, 0, weight_dtype_names,
     "element type of weights; model: as published"},
    {"precision", "experts", KV_FIELD_CHOICE, AT(expert_dtype), 0, 0, weight_dtype_names,
     "element type of routed experts, and how they are multiplied; model: as the weights or as "
     "published"},
    {"precision", "cache", KV_FIELD_CHOICE, AT(cache_dtype), 0, 0, cache_dtype_names,
     "element type of the unchanged KV cache"},
    {"engine", "scheduler", KV_FIELD_NAME, ENGINE(scheduler), 0, 0, scheduler_names,
     "kvsim list schedulers"},
    {"engine", "allocator", KV_FIELD_NAME, ENGINE(allocator), 0, 0, allocator_names,
     "kvsim list allocators"},
    {"engine", "block_tokens", KV_FIELD_COUNT, ENGINE(block_tokens), 1, 65536, NULL,
     "tokens of a block"},
    {"engine", "max_batched_tokens", KV_FIELD_COUNT, ENGINE(max_batched_tokens), 0, 1e7, NULL,
     "token budget of a step; 0: by GPU, as vLLM does"},
    {"engine", "max_seqs", KV_FIELD_COUNT, ENGINE(max_seqs), 0, 1e6, NULL,
     "running sequences; 0: by GPU"},
    {"engine", "max_model_len", KV_FIELD_COUNT, ENGINE(max_model_len), 0, 1e8, NULL,
     "prompt plus output tokens; 0: the model's own"},
    {"engine", "chunked_prefill", KV_FIELD_FLAG, ENGINE(chunked_prefill), 0, 0, NULL,
     "split prompts over steps"},
    {"engine", "long_prefill_threshold", KV_FIELD_COUNT, ENGINE(long_prefill_threshold), 0, 1e7,
     NULL, "tokens of one prompt in a step; 0: no limit"},
    {"engine", "prefix_caching", KV_FIELD_FLAG, ENGINE(prefix_caching), 0, 0, NULL,
     "keep and share blocks of equal prefixes"},
    {"engine", "async_scheduling", KV_FIELD_FLAG, ENGINE(async_scheduling), 0, 0, NULL,
     "decide a step while the one before it runs"},
    {"engine", "reserve_full_prompt", KV_FIELD_FLAG, ENGINE(reserve_full_prompt), 0, 0, NULL,
     "admit only if the whole prompt's blocks are free"},
    {"engine", "cuda_graphs", KV_FIELD_FLAG, ENGINE(cuda_graphs), 0, 0, NULL,
     "replay captured graphs for small steps"},
    {"engine", "cuda_graph_max_tokens", KV_FIELD_COUNT, ENGINE(cuda_graph_max_tokens), 0, 1e6, NULL,
     "largest captured step; 0: min(2 max_seqs, 512)"},
    {"engine", "cuda_graph_prompts", KV_FIELD_FLAG, ENGINE(cuda_graph_prompts), 0, 0, NULL,
     "replay steps with a prompt in them too"},
    {"engine", "memory_utilization", KV_FIELD_REAL, ENGINE(memory_utilization), 0.01, 1, NULL,
     "share of the GPU's memory that the engine may use"},
    {"engine", "batch_wait_steps", KV_FIELD_COUNT, ENGINE(batch_wait_steps), 0, 1e6, NULL,
     "trtllm: decode steps that prompts are withheld for, to be batched; 0: none"},
    {"engine", "batch_wait_share", KV_FIELD_REAL, ENGINE(batch_wait_share), 0, 1, NULL,
     "trtllm: share of the step's token budget at which they wait no longer"},
    {"engine", "watermark", KV_FIELD_REAL, ENGINE(watermark), 0, 0.9, NULL,
     "share of blocks kept free at admission"},
    {"engine", "preemption", KV_FIELD_CHOICE, ENGINE(preemption), 0, 0, kv_preemption_names,
     "what happens to a preempted sequence's cache"},
    {"engine", "reservation", KV_FIELD_CHOICE, ENGINE(reservation), 0, 0, kv_reservation_names,
     "what the reserved allocator sets aside"},
    {"engine", "swap_bytes", KV_FIELD_REAL, ENGINE(swap_bytes), 0, 1e15, NULL,
     "host memory for swapped blocks, bytes per instance"},
    {"engine", "swap_in_below", KV_FIELD_REAL, ENGINE(swap_in_below), 0, 1, NULL,
     "neo: share of the GPU's blocks in use below which sequences come back from the CPU"},
    {"engine", "least_step_tokens", KV_FIELD_COUNT, ENGINE(least_step_tokens), 0, 1e6, NULL,
     "neo: prompts are not put off while the step would have fewer tokens"},
    {"engine", "host_launch_seconds", KV_FIELD_REAL, ENGINE(host_launch_seconds), 0, 1, NULL,
     "neo: added to each layer's attention of a sub-batch on the CPU"},
    {"engine", "num_blocks", KV_FIELD_COUNT64, ENGINE(num_blocks), 0, 1e12, NULL,
     "blocks of an instance; 0: what memory allows"},
    {"engine", "step_gap_seconds", KV_FIELD_REAL, ENGINE(step_gap_seconds), 0, 10, NULL,
     "CPU time from a step's end to the next one's launch"},
    {"engine", "between_steps_seconds", KV_FIELD_REAL, ENGINE(between_steps_seconds), -1, 10, NULL,
     "GPU time between two steps that no scheduling hides; negative: the scheduler's"},
    {"engine", "eager_kernel_seconds", KV_FIELD_REAL, ENGINE(eager_kernel_seconds), 0, 1, NULL,
     "CPU time to launch a kernel outside CUDA graphs; the slower of CPU and GPU decides"},
    {"engine", "per_sequence_seconds", KV_FIELD_REAL, ENGINE(per_sequence_seconds), 0, 1, NULL,
     "CPU time of a step per sequence in it"},
    {"engine", "as_executed", KV_FIELD_FLAG, ENGINE(as_executed), 0, 0, NULL,
     "price what the reference engine does where that is not what the systems do: finished rows of a "
     "static batch are left out, GPU batches of a block go through a layer together, token tables "
     "stay on the GPU"},
    {"engine", "step_by_step", KV_FIELD_FLAG, ENGINE(step_by_step), 0, 0, NULL,
     "debugging: price every step by itself"},
    {"engine", "static_batch", KV_FIELD_COUNT, ENGINE(static_batch), 0, 1e6, NULL,
     "sequences of a static batch; 0: as memory allows"},
    {"engine", "gpu_batch", KV_FIELD_COUNT, ENGINE(gpu_batch), 1, 1e5, NULL,
     "FlexGen: sequences of a GPU batch"},
    {"engine", "n_gpu_batches", KV_FIELD_COUNT, ENGINE(n_gpu_batches), 1, 1e4, NULL,
     "FlexGen: GPU batches of a block"},
    {"prefix_cache", "tier", KV_FIELD_CHOICE, AT(tier), 0, 0, tier_names,
     "where prefix blocks go beside HBM"},
    {"prefix_cache", "tier_GB", KV_FIELD_REAL, AT(tier_GB), 0, 1e9, NULL,
     "its size per instance, 1e9 bytes; 0: all the platform has"},
    {"prefix_cache", "tier_folder", KV_FIELD_TEXT, AT(tier_folder), 0, 0, NULL,
     "executors that compute: where the file of an ssd tier is made; empty: $TMPDIR"},
    {"prefix_cache", "race", KV_FIELD_FLAG, ENGINE(load_race), 0, 0, NULL,
     "compute a prefix from its start while it loads from its end (vllm-v1 only)"},
    {"prefix_cache", "load_chunk_tokens", KV_FIELD_COUNT, ENGINE(load_chunk_tokens), 1, 1e6, NULL,
     "race: tokens of a step, and of a load"},
    {"prefix_cache", "load_Bps", KV_FIELD_REAL, ENGINE(load_Bps), 0, 1e15, NULL,
     "bytes per second at which the tier is read; 0: its own rate"},
    {"prefix_cache", "load_share", KV_FIELD_REAL, ENGINE(load_share), 0.01, 1, NULL,
     "bytes of the stored form over those of the cache"},
    {"prefix_cache", "tier_only", KV_FIELD_FLAG, ENGINE(tier_only), 0, 0, NULL,
     "load every hit from the lower tier, as LMCache does beside an engine without prefix caching"},
    {"arrivals", "mode", KV_FIELD_CHOICE, AT(arrivals), 0, 0, kv_arrival_mode_names,
     "auto: what the trace says"},
    {"arrivals", "concurrency", KV_FIELD_COUNT, AT(concurrency), 1, 1e6, NULL,
     "requests (closed, limited) or sessions in flight"},
    {"arrivals", "requests", KV_FIELD_COUNT64, AT(requests), 0, 1e15, NULL,
     "stop after so many; 0: all"},
    {"arrivals", "rate_scale", KV_FIELD_REAL, AT(rate_scale), 1e-6, 1e6, NULL,
     "arrivals so many times as fast"},
    {"arrivals", "smear_seconds", KV_FIELD_REAL, AT(smear_seconds), 0, 86400, NULL,
     "spread arrivals of one recorded time over such a tick"},
    {"arrivals", "output_scale", KV_FIELD_REAL, AT(output_scale), 1e-3, 1e3, NULL,
     "outputs so many times as long"},
    {"client", "request_seconds", KV_FIELD_REAL, AT(client_request_seconds), 0, 100, NULL,
     "from a client's sending to the engine's queue: HTTP, routing, template"},
    {"client", "prompt_token_seconds", KV_FIELD_REAL, AT(client_token_seconds), 0, 1, NULL,
     "the same for each token of the prompt: tokenization"},
    {"slo", "ttft_seconds", KV_FIELD_REAL, AT(slo_ttft_seconds), 0, 1e6, NULL,
     "time to first token; 0: no limit"},
    {"slo", "tpot_seconds", KV_FIELD_REAL, AT(slo_tpot_seconds), 0, 1e6, NULL,
     "time per output token; 0: no limit"},
    {"prices", "usd_per_gpu_hour", KV_FIELD_REAL, AT(usd_per_gpu_hour), -1, 1e6, NULL,
     "negative: the catalogue's median"},
    {NULL, NULL, KV_FIELD_TEXT, 0, 0, 0, NULL, NULL},
};

static gpointer place(const KvScenario *scenario, const KvScenarioField *field) {
  return G_STRUCT_MEMBER_P(scenario, field->offset);
}

KvScenario *kv_scenario_new(void) {
  KvScenario *s = g_new0(KvScenario, 1);
  s->label = g_strdup("");
  s->model = g_strdup("llama-3.1-8b");
  s->platform = g_strdup("h200");
  s->use = g_strdup("");
  s->executor = g_strdup("model");
  s->tier_folder = g_strdup("");
  s->replicas = s->tensor_parallel = 1;
  s->cache_dtype = KV_DTYPE_BF16;
  kv_engine_config_init(&s->engine);
  s->concurrency = 64;
  s->rate_scale = s->output_scale = 1.0;
  s->slo_ttft_seconds = 2.0;
  s->slo_tpot_seconds = 0.1;
  s->usd_per_gpu_hour = -1.0;
  return s;
}

KvScenario *kv_scenario_copy(const KvScenario *scenario) {
  KvScenario *copy = g_memdup2(scenario, sizeof *scenario);
  for (const KvScenarioField *f = kv_scenario_fields; f->key; f++)
    if (f->kind == KV_FIELD_TEXT)
      *(char **)place(copy, f) = g_strdup(*(char **)place(scenario, f));
  return copy;
}

void kv_scenario_free(KvScenario *scenario) {
  if (!scenario)
    return;
  for (const KvScenarioField *f = kv_scenario_fields; f->key; f++)
    if (f->kind == KV_FIELD_TEXT)
      g_free(*(char **)place(scenario, f));
  g_free(scenario);
}

static void store_text(KvScenario *scenario, const KvScenarioField *field, const char *text) {
  char **at = place(scenario, field);
  g_free(*at);
  *at = g_strdup(text);
}

/* Store a number; the caller has checked its range. */
static void store_number(KvScenario *scenario, const KvScenarioField *field, double number) {
  gpointer at = place(scenario, field);
  switch (field->kind) {
  case KV_FIELD_COUNT:
  case KV_FIELD_CHOICE:
    *(guint *)at = (guint)number;
    break;
  case KV_FIELD_COUNT64:
    *(guint64 *)at = (guint64)number;
    break;
  case KV_FIELD_REAL:
    *(double *)at = number;
    break;
  case KV_FIELD_FLAG:
    *(gboolean *)at = number != 0.0;
    break;
  case KV_FIELD_NAME:
    *(const char **)at = field->choices[(guint)number];
    break;
  case KV_FIELD_TEXT:
    break;
  }
}

static void read_field(KvScenario *scenario, const KvScenarioField *field, KvJson *json,
                       json_t *object) {
  switch (field->kind) {
  case KV_FIELD_TEXT:
    if (field->choices)
      store_text(scenario, field,
                 field->choices[kv_json_choice(json, object, field->key, field->choices, 0)]);
    else
      store_text(scenario, field, kv_json_string(json, object, field->key, "", FALSE));
    break;
  case KV_FIELD_NAME:
  case KV_FIELD_CHOICE:
    store_number(scenario, field, kv_json_choice(json, object, field->key, field->choices, 0));
    break;
  case KV_FIELD_COUNT:
  case KV_FIELD_COUNT64:
    store_number(scenario, field,
                 (double)kv_json_integer(json, object, field->key, KV_JSON_REQUIRED,
                                         (gint64)field->min, (gint64)field->max));
    break;
  case KV_FIELD_REAL:
    store_number(
        scenario, field,
        kv_json_number(json, object, field->key, KV_JSON_REQUIRED, field->min, field->max));
    break;
  case KV_FIELD_FLAG:
    store_number(scenario, field, kv_json_boolean(json, object, field->key, FALSE));
    break;
  }
}

/* Names that may stand in `section`: its fields, and at the top the sections. NULL-terminated; free
 * the array. */
static const char **names_in(const char *section) {
  GPtrArray *names = g_ptr_array_new();
  for (const KvScenarioField *f = kv_scenario_fields; f->key; f++) {
    gboolean first = f == kv_scenario_fields || strcmp(f->section, f[-1].section) != 0;
    if (strcmp(f->section, section) == 0)
      g_ptr_array_add(names, (gpointer)f->key);
    else if (*section == '\0' && first)
      g_ptr_array_add(names, (gpointer)f->section);
  }
  g_ptr_array_add(names, NULL);
  return (const char **)g_ptr_array_free(names, FALSE);
}

gboolean kv_scenario_parse(KvScenario *scenario, const char *name, const char *text, gsize length,
                           GError **error) {
  g_autoptr(KvJson) json = kv_json_parse(name, text, length, error);
  if (!json)
    return FALSE;
  json_t *root = kv_json_root(json);
  if (!json_is_object(root))
    kv_json_fail(json, root, NULL, "is not an object, expected a scenario");
  for (const KvScenarioField *f = kv_scenario_fields; f->key && json_is_object(root); f++) {
    gboolean first = f == kv_scenario_fields || strcmp(f->section, f[-1].section) != 0;
    json_t *object = *f->section ? kv_json_object(json, root, f->section, FALSE) : root;
    if (object && first) {
      g_autofree const char **names = names_in(f->section);
      kv_json_only(json, object, names);
    }
    if (object && kv_json_has(object, f->key))
      read_field(scenario, f, json, object);
  }
  return kv_json_finish(json, error);
}

gboolean kv_scenario_load(KvScenario *scenario, const char *path, GError **error) {
  g_autofree char *text = NULL;
  gsize length;
  g_autoptr(GError) problem = NULL;
  if (!g_file_get_contents(path, &text, &length, &problem)) {
    g_set_error(error, KV_ERROR, KV_ERROR_INPUT, "%s: cannot be read, expected a scenario file",
                path);
    return FALSE;
  }
  return kv_scenario_parse(scenario, path, text, length, error);
}

static const KvScenarioField *find_field(const char *name) {
  for (const KvScenarioField *f = kv_scenario_fields; f->key; f++) {
    g_autofree char *full =
        *f->section ? g_strconcat(f->section, ".", f->key, NULL) : g_strdup(f->key);
    if (strcmp(full, name) == 0)
      return f;
  }
  return NULL;
}

static gboolean set_fail(GError **error, const char *format, ...) G_GNUC_PRINTF(2, 3);
static gboolean set_fail(GError **error, const char *format, ...) {
  va_list args;
  va_start(args, format);
  g_autofree char *message = kv_error_one_line(g_strdup_vprintf(format, args));
  va_end(args);
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "--set %s", message);
  return FALSE;
}

gboolean kv_scenario_set(KvScenario *scenario, const char *assignment, GError **error) {
  const char *equals = strchr(assignment, '=');
  g_autofree char *name =
      g_strndup(assignment, equals ? (gsize)(equals - assignment) : strlen(assignment));
  const KvScenarioField *field = find_field(name);
  if (!equals || !field) {
    g_autoptr(GPtrArray) known = g_ptr_array_new_with_free_func(g_free);
    for (const KvScenarioField *f = kv_scenario_fields; f->key; f++)
      g_ptr_array_add(known,
                      *f->section ? g_strconcat(f->section, ".", f->key, NULL) : g_strdup(f->key));
    g_ptr_array_add(known, NULL);
    g_autofree char *unknown = kv_names_unknown("field", name, (const char *const *)known->pdata);
    return set_fail(error, "%s: %s", assignment, field ? "no value, expected KEY=VALUE" : unknown);
  }
  const char *value = equals + 1;
  if (!g_utf8_validate(value, -1, NULL)) /* it could not be stored with the run */
    return set_fail(error, "%s: not UTF-8, expected text", name);
  if (field->kind == KV_FIELD_TEXT && !field->choices) {
    store_text(scenario, field, value);
    return TRUE;
  }
  if (field->choices) {
    for (guint i = 0; field->choices[i]; i++) {
      if (strcmp(field->choices[i], value) == 0) {
        if (field->kind == KV_FIELD_TEXT)
          store_text(scenario, field, value);
        else
          store_number(scenario, field, i);
        return TRUE;
      }
    }
    g_autofree char *list = g_strjoinv("|", (char **)field->choices);
    return set_fail(error, "%s: '%s', expected %s", name, value, list);
  }
  if (field->kind == KV_FIELD_FLAG) {
    gboolean yes = strcmp(value, "true") == 0 || strcmp(value, "1") == 0;
    if (!yes && strcmp(value, "false") != 0 && strcmp(value, "0") != 0) {
      return set_fail(error, "%s: '%s', expected true or false", name, value);
    }
    store_number(scenario, field, yes);
    return TRUE;
  }
  char *end;
  double number = g_ascii_strtod(value, &end);
  gboolean whole = field->kind != KV_FIELD_REAL;
  if (end == value || *end || !isfinite(number) || number < field->min || number > field->max ||
      (whole && number != floor(number))) {
    return set_fail(error, "%s: '%s', expected a %s from %.16g to %.16g", name, value,
                    whole ? "whole number" : "number", field->min, field->max);
  }
  store_number(scenario, field, number);
  return TRUE;
}

static json_t *field_to_json(const KvScenario *scenario, const KvScenarioField *field) {
  gpointer at = place(scenario, field);
  switch (field->kind) {
  case KV_FIELD_TEXT:
    return json_string(*(char **)at);
  case KV_FIELD_NAME:
    return json_string(*(const char **)at);
  case KV_FIELD_COUNT:
    return json_integer(*(guint *)at);
  case KV_FIELD_COUNT64:
    return json_integer((json_int_t) * (guint64 *)at);
  case KV_FIELD_REAL:
    return json_real(*(double *)at);
  case KV_FIELD_FLAG:
    return json_boolean(*(gboolean *)at);
  case KV_FIELD_CHOICE:
    break;
  }
  return json_string(field->choices[*(guint *)at]);
}

json_t *kv_scenario_to_json(const KvScenario *scenario) {
  json_t *root = json_object();
  for (const KvScenarioField *f = kv_scenario_fields; f->key; f++) {
    json_t *object = root;
    if (*f->section) {
      object = json_object_get(root, f->section);
      if (!object) {
        object = json_object();
        json_object_set_new(root, f->section, object);
      }
    }
    json_object_set_new(object, f->key, field_to_json(scenario, f));
  }
  return root;
}
