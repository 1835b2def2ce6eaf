#include "sim/engine/simulation.h"

#include <math.h>
#include <string.h>

#include "models/techniques/quality.h"
#include "reference/cuda/executor.h"
#include "reference/host/executor.h"
#include "reference/host/tensors.h"
#include "sim/base/error.h"
#include "sim/engine/arrival_source.h"
#include "sim/engine/event_queue.h"
#include "sim/engine/instance.h"
#include "sim/engine/metrics.h"
#include "sim/engine/model_executor.h"
#include "sim/engine/router.h"
#include "traces/transform.h"

/* Events between looks at the clock and at interruptions. */
enum { PROGRESS_EVERY = 4096 };

/* The host executor holds its cache in this machine's memory: more than this must be asked for by
 * engine.num_blocks. */
static const double HOST_CACHE_BYTES = 67108864.0;

/* Settings that vLLM derives from the GPU (section 3 of its notes): a GPU with at least 70 GiB that
 * is not an A100 gets 8,192 tokens and 1,024 sequences, any other 2,048 and 256. */
static void resolve_engine(KvScenario *s, const KvModel *model, const KvPlatform *platform) {
  KvEngineConfig *e = &s->engine;
  gboolean big = platform->device->memory_bytes >= 70.0 * 1073741824.0 &&
                 !g_str_has_prefix(platform->device->id, "a100");
  if (e->max_model_len == 0)
    e->max_model_len = model->max_context_tokens;
  if (e->max_batched_tokens == 0)
    e->max_batched_tokens = big ? 8192 : 2048;
  if (!e->chunked_prefill)
    e->max_batched_tokens = MAX(e->max_batched_tokens, e->max_model_len);
  if (e->max_seqs == 0)
    e->max_seqs = big ? 1024 : 256;
  e->max_seqs = MIN(e->max_seqs, e->max_batched_tokens);
  if (e->cuda_graph_max_tokens == 0)
    e->cuda_graph_max_tokens = MIN(2 * e->max_seqs, 512);
  const KvSchedulerClass *scheduler = kv_scheduler_find(e->scheduler);
  if (scheduler->holds_rows || strcmp(e->scheduler, "orca") == 0)
    e->allocator = "reserved";
  if (strcmp(e->allocator, "reserved") == 0 || !scheduler->async)
    e->prefix_caching = FALSE;
  if (strcmp(e->scheduler, "static") == 0 && e->static_batch == 0)
    e->reservation = KV_RESERVE_ORACLE;
}

/* 2 MiB chunks per layer of keys and of values (vAttention, vTensor): tokens that one holds. */
static guint chunk_tokens(const KvModel *model, double element_bytes) {
  double per_token = 1.0;
  for (guint g = 0; g < model->n_groups; g++)
    per_token = MAX(per_token, (double)model->groups[g].attention.n_kv_heads *
                                   model->groups[g].attention.head_dim * element_bytes);
  return (guint)MAX(1.0, floor(2097152.0 / per_token));
}

static gboolean check_parallelism(const KvSetup *setup, GError **error) {
  const KvScenario *s = setup->scenario;
  guint per_node = setup->platform->n_gpus_per_node, all = per_node * setup->platform->n_nodes;
  guint heads = setup->model->groups[0].attention.n_heads;
  guint one = s->tensor_parallel * s->engine.data_parallel;
  if (one > per_node || one * s->replicas > all) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "%u replicas of %u GPUs need %u GPUs, platform %s has %u (%u a node), "
                "expected a larger platform such as %ux%s",
                s->replicas, one, one * s->replicas, setup->platform->id, all, per_node,
                one * s->replicas, setup->platform->device->id);
    return FALSE;
  }
  if (heads % s->tensor_parallel) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "tensor_parallel %u does not divide the %u heads of %s", s->tensor_parallel, heads,
                setup->model->id);
    return FALSE;
  }
  return TRUE;
}

KvSetup *kv_setup_new(const KvScenario *scenario, gboolean with_memory, GError **error) {
  g_autoptr(KvSetup) setup = g_new0(KvSetup, 1);
  setup->scenario = kv_scenario_copy(scenario);
  KvScenario *s = setup->scenario;
  if (!(setup->model = kv_model_load(s->model, error)) ||
      !(setup->platform = kv_platform_load(s->platform, error)) ||
      !(setup->stack = kv_stack_parse(s->use, error)))
    return NULL;
  if (!kv_stack_tune(setup->stack, setup->model, setup->platform, error))
    return NULL;
  setup->plan = kv_stack_apply(setup->stack, setup->model, s->cache_dtype, &s->engine, error);
  if (!setup->plan)
    return NULL;
  if (s->weight_dtype > 0) {
    KvDtype dtype = s->weight_dtype - 1;
    setup->plan->weights.dtype = dtype;
    setup->plan->weights.bytes_per_parameter = kv_dtype_bytes(dtype);
  }
  if (!kv_plan_compile(setup->plan, &setup->curves, error) || !check_parallelism(setup, error))
    return NULL;
  resolve_engine(s, setup->model, setup->platform);
  if (strcmp(s->engine.allocator, "chunked") == 0) {
    s->engine.block_tokens = chunk_tokens(setup->model, setup->plan->element_bytes);
    s->engine.prefix_caching = FALSE;
  }
  kv_demand_init(&setup->demand, &setup->curves, s->engine.block_tokens);
  if (with_memory && !kv_memory_divide(setup->model, setup->plan, &setup->demand, setup->platform,
                                       &s->engine, s->tensor_parallel, &setup->memory, error))
    return NULL;
  if (strcmp(s->executor, "host") == 0 && s->engine.num_blocks == 0) /* fp32: twice the bytes */
    setup->memory.blocks =
        MIN(setup->memory.blocks, (guint64)(HOST_CACHE_BYTES / (2.0 * setup->demand.block_bytes)));
  return g_steal_pointer(&setup);
}

void kv_setup_free(KvSetup *setup) {
  if (!setup)
    return;
  kv_scenario_free(setup->scenario);
  g_clear_pointer(&setup->model, kv_model_free);
  g_clear_pointer(&setup->platform, kv_platform_free);
  g_clear_pointer(&setup->stack, kv_stack_free);
  g_clear_pointer(&setup->plan, kv_plan_free);
  g_free(setup);
}

/* What a run holds. */
typedef struct {
  const KvSetup *setup;
  const KvSimulateOptions *options;
  guint hash_block_tokens;
  KvMetrics *metrics;
  KvArrivalSource *source;
  const KvRouterClass *router;
  guint n;
  KvInstance **instances;
  KvExecutor **executors;
  KvEventQueue *events; /* by instance */
  double tokenized;     /* when the prompt that came last is tokenized */
  GSequence *sent;      /* of KvSequence that the engine does not see yet, by seen_seconds */
  guint64 in_flight;
  gint64 wall_origin; /* pace_wall: the wall's microseconds at the run's second 0; 0: not begun */
} Run;

static void finished(KvInstance *instance, KvSequence *sequence, gpointer user) {
  Run *run = user;
  kv_arrival_source_finished(run->source, sequence, instance->now);
  if (run->options->left)
    run->options->left(sequence, run->options->user);
  kv_sequence_free(sequence);
  run->in_flight--;
}

/* Blocks of one instance's lower tier of the prefix cache. */
static guint64 tier_blocks(const Run *run) {
  const KvScenario *s = run->setup->scenario;
  const KvPlatform *p = run->setup->platform;
  const KvStorage *storage = s->tier == 1 ? p->host_memory : s->tier == 2 ? p->ssd : NULL;
  if (!storage || !s->engine.prefix_caching)
    return 0;
  double bytes =
      s->tier_GB > 0.0 ? s->tier_GB * 1e9 : storage->capacity_bytes * p->n_nodes / s->replicas;
  return (guint64)(bytes / run->setup->demand.block_bytes);
}

/* Host blocks of an executor that computes: swap space, then the prefix cache's lower tier. */
static guint64 dram_blocks(const Run *run) {
  const KvSetup *u = run->setup;
  return kv_instance_swap_blocks(&u->scenario->engine, &u->demand) + tier_blocks(run);
}

/* The model's folder, if weights lie in it. */
static const char *checkpoint_of(const KvScenario *s) {
  return kv_checkpoint_exists(s->model) ? s->model : NULL;
}

static KvExecutor *new_host_executor(Run *run, GError **error) {
  const KvSetup *u = run->setup;
  const KvScenario *s = u->scenario;
  const char *folder = checkpoint_of(s);
  KvHostWeights *weights = folder ? kv_host_weights_load(u->model, folder, error)
                                  : kv_host_weights_new(u->model, s->seed, error);
  KvExecutor *host = weights ? kv_host_executor_new_with(weights, u->model, s->engine.block_tokens,
                                                         u->memory.blocks, dram_blocks(run),
                                                         run->hash_block_tokens, error)
                             : NULL;
  if (host) {
    kv_host_executor_set_sink(host, run->options->generated, run->options->user);
    kv_host_executor_set_measured(host, run->options->pace_wall);
  }
  return host;
}

static KvExecutor *new_cuda_executor(Run *run, GError **error) {
  const KvSetup *u = run->setup;
  const KvScenario *s = u->scenario;
  if (run->n > 1 || s->tensor_parallel > 1) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "%u replicas of %u GPUs, the cuda executor computes on one GPU", run->n,
                s->tensor_parallel);
    return NULL;
  }
  const KvCudaSettings settings = {
      .model = u->model,
      .checkpoint = checkpoint_of(s),
      .block_tokens = s->engine.block_tokens,
      .hbm_blocks = u->memory.blocks,
      .dram_blocks = dram_blocks(run),
      .hash_block_tokens = run->hash_block_tokens,
      .max_positions = s->engine.max_model_len,
      .graph_rows = s->engine.cuda_graphs ? s->engine.cuda_graph_max_tokens : 0,
      .seed = s->seed,
      .sink = run->options->generated,
      .sink_user = run->options->user,
  };
  return kv_cuda_executor_new(&settings, error);
}

/* An executor that carries the work out, as the caller wants to see it. */
static KvExecutor *wrapped(Run *run, KvExecutor *real) {
  return real && run->options->wrap ? run->options->wrap(real, run->options->user) : real;
}

static KvExecutor *new_executor(Run *run, GError **error) {
  const KvSetup *u = run->setup;
  const KvScenario *s = u->scenario;
  if (strcmp(s->executor, "host") == 0)
    return wrapped(run, new_host_executor(run, error));
  if (strcmp(s->executor, "cuda") == 0)
    return wrapped(run, new_cuda_executor(run, error));
  if (run->options->pace_wall) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "pace 'wall': the model executor has no real time, expected --executor cuda or "
                "host");
    return NULL;
  }
  if (run->executors[0])
    return kv_model_executor_twin(run->executors[0]);
  return kv_model_executor_new(u->model, u->plan, &u->curves, u->platform, &s->engine,
                               s->tensor_parallel);
}

static gboolean check_blocks(Run *run, const char *trace, GError **error) {
  guint block = run->setup->scenario->engine.block_tokens, hash = run->hash_block_tokens;
  if (!run->setup->scenario->engine.prefix_caching || hash == 0 || hash % block == 0 ||
      block % hash == 0)
    return TRUE;
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
              "%s: prefix blocks of %u tokens and engine blocks of %u: one must divide the other, "
              "expected another engine.block_tokens (or engine.prefix_caching=false)",
              trace, hash, block);
  return FALSE;
}

static gboolean run_begin(Run *run, KvTraceReader *reader, GError **error) {
  const KvScenario *s = run->setup->scenario;
  run->hash_block_tokens = kv_trace_reader_block_tokens(reader);
  run->metrics = kv_metrics_new(s->slo_ttft_seconds, s->slo_tpot_seconds, run->options->requests,
                                run->options->operations);
  run->source =
      kv_arrival_source_new(reader, s->arrivals, s->concurrency, s->rate_scale, s->requests, error);
  if (!run->source || !check_blocks(run, kv_trace_reader_name(reader), error))
    return FALSE;
  run->router = kv_router_find(s->engine.router);
  run->sent = g_sequence_new(NULL);
  run->n = s->replicas;
  run->instances = g_new0(KvInstance *, run->n);
  run->executors = g_new0(KvExecutor *, run->n);
  run->events = kv_event_queue_new(run->n);
  for (guint i = 0; i < run->n; i++) {
    if (!(run->executors[i] = new_executor(run, error)))
      return FALSE;
    run->instances[i] =
        kv_instance_new(i, &s->engine, &run->setup->curves, run->executors[i],
                        kv_metrics_observer(run->metrics), run->setup->memory.blocks,
                        s->engine.prefix_caching ? run->hash_block_tokens : 0, run->setup->plan);
    run->instances[i]->finished = finished;
    run->instances[i]->user = run;
    if (tier_blocks(run) > 0)
      kv_instance_set_tier(run->instances[i], s->tier == 1 ? KV_TIER_DRAM : KV_TIER_SSD,
                           tier_blocks(run));
  }
  return TRUE;
}

static void free_queue(KvQueue *queue) {
  for (KvSequence *s = queue->head, *next; s; s = next) {
    next = s->next;
    kv_sequence_free(s);
  }
}

static void run_end(Run *run) {
  for (guint i = 0; i < run->n && run->instances; i++) {
    KvInstance *instance = run->instances[i];
    if (instance) { /* interrupted: what is still in flight */
      free_queue(&instance->waiting);
      free_queue(&instance->running);
      free_queue(&instance->swapped);
      for (guint b = 0; b < instance->n_batches; b++)
        g_ptr_array_foreach(instance->batches[b]->ending, (GFunc)(void (*)(void))kv_sequence_free,
                            NULL);
      g_ptr_array_foreach(instance->held_rows, (GFunc)(void (*)(void))kv_sequence_free, NULL);
      kv_instance_free(instance);
    }
    if (run->executors[i])
      run->executors[i]->class->destroy(run->executors[i]);
  }
  g_free(run->instances);
  g_free(run->executors);
  kv_event_queue_free(run->events);
  if (run->sent) {
    g_sequence_foreach(run->sent, (GFunc)(void (*)(void))kv_sequence_free, NULL);
    g_sequence_free(run->sent);
  }
  kv_arrival_source_free(run->source);
  kv_metrics_free(run->metrics);
}

static gint by_seen(gconstpointer a, gconstpointer b, gpointer user) {
  const KvSequence *x = a, *y = b;
  if (x->seen_seconds != y->seen_seconds)
    return x->seen_seconds < y->seen_seconds ? -1 : 1;
  return x->index < y->index ? -1 : x->index > y->index;
}

/* When the engine sees a request that is on its way; G_MAXDOUBLE if there is none. */
static double next_seen(const Run *run) {
  GSequenceIter *first = g_sequence_get_begin_iter(run->sent);
  return g_sequence_iter_is_end(first) ? G_MAXDOUBLE
                                       : ((KvSequence *)g_sequence_get(first))->seen_seconds;
}

static void enter(Run *run, KvSequence *sequence, double now);

/* A client sends a request. */
static void arrive(Run *run, double now) {
  KvSequence *sequence = kv_arrival_source_take(run->source);
  const KvScenario *s = run->setup->scenario;
  /* One thread tokenizes, prompt after prompt. */
  run->tokenized = MAX(run->tokenized, now + s->client_request_seconds) +
                   s->client_token_seconds * (double)sequence->input_tokens;
  sequence->seen_seconds = run->tokenized;
  if (sequence->seen_seconds > now)
    g_sequence_insert_sorted(run->sent, sequence, by_seen, NULL);
  else
    enter(run, sequence, now);
}

static void enter_next(Run *run) {
  GSequenceIter *first = g_sequence_get_begin_iter(run->sent);
  KvSequence *sequence = g_sequence_get(first);
  g_sequence_remove(first);
  enter(run, sequence, sequence->seen_seconds);
}

/* The engine sees it. */
static void enter(Run *run, KvSequence *sequence, double now) {
  double scale = run->setup->scenario->output_scale;
  if (scale != 1.0)
    sequence->output_tokens = (guint32)MAX(1.0, round(sequence->output_tokens * scale));
  kv_metrics_arrived(run->metrics, sequence);
  guint to = run->n > 1 ? run->router->choose(run->instances, run->n, sequence) : 0;
  KvInstance *instance = run->instances[to];
  if (!kv_instance_can_ever_serve(instance, sequence)) {
    kv_metrics_rejected(run->metrics, sequence);
    kv_arrival_source_finished(run->source, sequence, now);
    if (run->options->left)
      run->options->left(sequence, run->options->user);
    kv_sequence_free(sequence);
    return;
  }
  run->in_flight++;
  kv_instance_arrive(instance, sequence, now);
  kv_event_queue_set(run->events, to, kv_instance_next(instance));
}

static void report_progress(Run *run, KvTraceReader *reader) {
  guint64 done, total, requests = kv_metrics_done(run->metrics);
  kv_trace_reader_progress(reader, &done, &total);
  double share = total ? (double)done / (double)total : -1.0;
  if (run->setup->scenario->requests)
    share = (double)requests / (double)run->setup->scenario->requests;
  run->options->progress(share, requests, kv_metrics_now(run->metrics), run->options->user);
}

/* Real time: the run's clock is the wall's from the first event on. */
static double wall_now(const Run *run) {
  return (double)(g_get_monotonic_time() - run->wall_origin) * 1e-6;
}

/* Sleep until the wall's clock shows `when`, in pieces so that the user can stop it. */
static void wait_for_wall(Run *run, double when) {
  static const double longest_sleep = 0.05;
  if (when == G_MAXDOUBLE)
    return;
  if (!run->wall_origin)
    run->wall_origin = g_get_monotonic_time() - (gint64)(when * 1e6);
  for (double left; (left = when - wall_now(run)) > 0.0;) {
    if (run->options->interrupted && g_atomic_int_get(run->options->interrupted))
      return;
    g_usleep((gulong)(1e6 * MIN(left, longest_sleep)) + 1);
  }
}

static gboolean run_loop(Run *run, KvTraceReader *reader, GError **error) {
  for (guint64 events = 0;; events++) {
    double arrival;
    guint source = 0;
    if (!kv_arrival_source_next(run->source, &arrival, error))
      return FALSE;
    double wake = kv_event_queue_next(run->events, &source);
    double seen = next_seen(run);
    if (arrival == G_MAXDOUBLE && wake == G_MAXDOUBLE && seen == G_MAXDOUBLE)
      break;
    if (run->options->pace_wall) {
      wait_for_wall(run, MIN(arrival, MIN(wake, seen)));
      if (wake < G_MAXDOUBLE) /* what the host needed has passed, too */
        wake = MAX(wake, wall_now(run));
    }
    if (seen <= wake && seen <= arrival) {
      enter_next(run);
    } else if (arrival <=
               wake) { /* what arrives as a step ends is seen by the decision made then */
      arrive(run, arrival);
    } else {
      KvInstance *instance = run->instances[source];
      if (!kv_instance_wake(instance, wake, error))
        return FALSE;
      kv_event_queue_set(run->events, source, kv_instance_next(instance));
      const char *broken = run->options->check ? kv_instance_check(instance) : NULL;
      if (broken) {
        g_set_error(error, KV_ERROR, KV_ERROR_FAILED, "instance %u at %.6f s: %s", source, wake,
                    broken);
        return FALSE;
      }
    }
    if (events % PROGRESS_EVERY == 0) {
      if (run->options->progress)
        report_progress(run, reader);
      if (run->options->interrupted && g_atomic_int_get(run->options->interrupted)) {
        g_set_error(error, KV_ERROR, KV_ERROR_INTERRUPTED, "interrupted");
        return FALSE;
      }
    }
  }
  if (run->in_flight > 0) {
    g_set_error(error, KV_ERROR, KV_ERROR_FAILED,
                "%" G_GUINT64_FORMAT " requests could not make progress: the engine is stuck",
                run->in_flight);
    return FALSE;
  }
  return TRUE;
}

/* Board power by phase times busy time, idle power for the rest, the hosts, and the facility's
 * overhead. */
static void price_run(const KvSetup *setup, KvSummary *s) {
  const KvPlatform *p = setup->platform;
  const KvDevice *d = p->device;
  double gpu_seconds = s->makespan_seconds * s->n_gpus;
  double busy = s->busy_share * gpu_seconds, prefill = busy * s->prefill_busy_share;
  double watts =
      d->tdp_watts * (prefill * d->prefill_watts_share + (busy - prefill) * d->decode_watts_share +
                      (gpu_seconds - busy) * d->idle_watts_share);
  double nodes = ceil((double)s->n_gpus / p->n_gpus_per_node);
  /* A host is charged for the share of its GPUs that the deployment uses. */
  double host = p->host_watts * nodes * s->makespan_seconds *
                MIN(1.0, (double)s->n_gpus / (nodes * p->n_gpus_per_node));
  double pue = p->pue > 0.0 ? p->pue : 1.0;
  s->energy_joules = (watts + host) * pue;
  s->energy_joules_per_output_token =
      s->output_tokens ? s->energy_joules / (double)s->output_tokens : 0.0;
  double price = setup->scenario->usd_per_gpu_hour >= 0.0 ? setup->scenario->usd_per_gpu_hour
                                                          : d->price_per_hour;
  s->cost_usd = price * gpu_seconds / 3600.0;
  s->usd_per_million_output_tokens =
      s->output_tokens ? s->cost_usd / (double)s->output_tokens * 1e6 : 0.0;
  s->carbon_grams = s->energy_joules / 3.6e6 * p->carbon_g_per_kWh;
}

static void judge_quality(const KvSetup *setup, KvSummary *s) {
  g_autoptr(KvQuality) quality = kv_stack_quality(setup->stack);
  s->quality = kv_quality_describe(quality);
  s->quality_detail = kv_quality_explain(quality);
  s->quality_low = quality->low;
  s->quality_high = quality->high;
}

static KvSummary *summarize(Run *run, const char *trace) {
  const KvSetup *u = run->setup;
  const KvScenario *sc = u->scenario;
  KvSummary *s = g_new0(KvSummary, 1);
  s->trace = g_path_get_basename(trace);
  s->label = g_strdup(*sc->label ? sc->label : *sc->use ? sc->use : "baseline");
  s->model = g_strdup(u->model->id);
  s->platform = g_strdup(u->platform->id);
  s->n_instances = sc->replicas;
  s->tensor_parallel = sc->tensor_parallel;
  s->n_gpus = sc->replicas * sc->tensor_parallel * sc->engine.data_parallel;
  s->calibrated = u->platform->device->calibrated;
  s->executor = run->executors[0]->class->name;
  s->block_tokens = sc->engine.block_tokens;
  s->total_blocks = u->memory.blocks;
  s->block_bytes = u->demand.block_bytes / (sc->tensor_parallel * sc->engine.data_parallel);
  s->cache_bytes = (double)u->memory.blocks * s->block_bytes;
  s->weight_bytes = u->memory.weight_bytes;
  s->activation_bytes = u->memory.activation_bytes;
  s->compressed = !u->demand.simple || u->demand.law.kind != KV_LAW_ALL;
  s->peak_flops_rate = u->platform->device->peak_flops[u->plan->weights.dtype];
  if (s->peak_flops_rate <= 0.0)
    s->peak_flops_rate = u->platform->device->peak_flops[KV_DTYPE_FP16];
  s->peak_hbm_Bps = u->platform->device->memory_Bps;
  kv_metrics_summarize(run->metrics, s);
  price_run(u, s);
  judge_quality(u, s);
  return s;
}

KvSummary *kv_simulate(const KvSetup *setup, KvTraceReader *reader,
                       const KvSimulateOptions *options, GError **error) {
  static const KvSimulateOptions none = {0};
  Run run = {.setup = setup, .options = options ? options : &none};
  gint64 began = g_get_monotonic_time();
  KvSummary *summary = NULL;
  if (run_begin(&run, reader, error) && run_loop(&run, reader, error)) {
    summary = summarize(&run, kv_trace_reader_name(reader));
    summary->wall_seconds = (double)(g_get_monotonic_time() - began) * 1e-6;
    summary->simulated_requests_per_second =
        (double)kv_metrics_done(run.metrics) / MAX(summary->wall_seconds, 1e-9);
  }
  run_end(&run);
  return summary;
}
