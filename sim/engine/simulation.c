#include "sim/engine/simulation.h"

#include <math.h>
#include <string.h>

#include "models/techniques/quality.h"
#include "reference/cuda/executor.h"
#include "reference/host/executor.h"
#include "reference/host/format.h"
#include "reference/host/recurrent.h"
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
  if (!e->chunked_prefill &&
      e->prefill_instances == 0) /* whose batches a longer prompt is alone in */
    e->max_batched_tokens = MAX(e->max_batched_tokens, e->max_model_len);
  if (e->max_seqs == 0)
    e->max_seqs = big ? 1024 : 256;
  e->max_seqs = MIN(e->max_seqs, e->max_batched_tokens);
  if (e->cuda_graph_max_tokens == 0)
    e->cuda_graph_max_tokens = MIN(2 * e->max_seqs, 512);
  const KvSchedulerClass *scheduler = kv_scheduler_find(e->scheduler);
  if (scheduler->holds_rows || strcmp(e->scheduler, "orca") == 0)
    e->allocator = "reserved";
  if (e->between_steps_seconds < 0.0)
    e->between_steps_seconds = scheduler->between_steps_seconds;
  if (strcmp(e->allocator, "reserved") == 0 || !scheduler->shares_prefixes)
    e->prefix_caching = FALSE;
  if (strcmp(e->scheduler, "static") == 0 && e->static_batch == 0 && !e->scheduled_by)
    e->reservation = KV_RESERVE_ORACLE;
}

/* Chunks of each layer's keys and values on each GPU (vAttention, vTensor): tokens that one holds.
 */
static guint chunk_tokens(const KvModel *model, double element_bytes, double chunk_bytes,
                          guint tensor_parallel) {
  double per_token = 1.0;
  for (guint g = 0; g < model->n_groups; g++)
    per_token = MAX(per_token, (double)model->groups[g].attention.n_kv_heads *
                                   model->groups[g].attention.head_dim * element_bytes);
  return (guint)MAX(1.0, floor(chunk_bytes * tensor_parallel / per_token));
}

/* The session store takes what its technique says, as far as the platform has it; HBM keeps nothing
 * between turns. */
static void resolve_store(KvScenario *s, const KvPlatform *platform) {
  KvEngineConfig *e = &s->engine;
  double share = (double)platform->n_nodes / s->replicas;
  if (!e->store.policy)
    return;
  e->store.dram_bytes = fmin(e->store.dram_bytes, platform->host_memory->capacity_bytes * share);
  e->store.ssd_bytes =
      platform->ssd ? fmin(e->store.ssd_bytes, platform->ssd->capacity_bytes * share) : 0.0;
  e->prefix_caching = FALSE;
}

/* What the stack says of the drives that compute. */
static void set_csd(const KvEngineConfig *config, KvStorage *csd) {
  if (config->csd_channels > 0 || config->csd_channel_Bps > 0.0) {
    /* The share that pages let through stays as it is on the reference drive. */
    static const double CHANNELS = 8.0, CHANNEL_BPS = 1.4e9;
    double channels = config->csd_channels > 0 ? config->csd_channels : CHANNELS;
    double each = config->csd_channel_Bps > 0.0 ? config->csd_channel_Bps : CHANNEL_BPS;
    csd->internal_Bps *= channels * each / (CHANNELS * CHANNEL_BPS);
  }
  if (config->csd_link_Bps > 0.0)
    csd->read_Bps = config->csd_link_Bps;
  if (config->csd_flops > 0.0)
    csd->internal_flops = config->csd_flops;
  double drives = config->csd_drives > 0 ? config->csd_drives : 1.0;
  double *scaled[] = {&csd->capacity_bytes, &csd->read_Bps, &csd->write_Bps, &csd->internal_Bps,
                      &csd->internal_flops};
  for (guint i = 0; i < G_N_ELEMENTS(scaled); i++)
    *scaled[i] *= drives;
}

static guint n_instances(const KvSetup *setup) {
  guint n = 0;
  for (guint f = 0; f < setup->n_fleets; f++)
    n += setup->fleets[f].instances;
  return n;
}

/* The fleet of instance `i`: prompts' instances come first. */
static const KvFleet *fleet_of(const KvSetup *setup, guint i) {
  return &setup->fleets[i < setup->fleets[0].instances ? 0 : 1];
}

/* Who computes what, on how many GPUs. */
static gboolean set_fleets(KvSetup *setup, GError **error) {
  const KvScenario *s = setup->scenario;
  const KvEngineConfig *e = &s->engine;
  guint tp = s->tensor_parallel;
  gboolean apart = e->prefill_instances > 0 || e->decode_instances > 0;
  if (kv_scheduler_find(e->scheduler)->offloads && strcmp(s->executor, "model") != 0) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "executor %s has no attention on the CPU beside the GPU's, expected executor=model",
                s->executor);
    return FALSE;
  }
  if (e->load_race && s->tier == 0)
    setup->scenario->tier = 2; /* a race needs something to load from: the SSD */
  if (e->load_race && (!e->prefix_caching || strcmp(e->scheduler, "vllm-v1") != 0 ||
                       strcmp(s->executor, "model") != 0)) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "prefixes are loaded and computed at once by the default engine only, expected "
                "engine.prefix_caching, engine.scheduler=vllm-v1 and executor=model");
    return FALSE;
  }
  gboolean scheduled = strcmp(e->scheduler, "distserve") == 0;
  setup->n_fleets = 1;
  setup->fleets[0] = (KvFleet){.instances = s->replicas, .tensor_parallel = tp};
  if (!apart && !scheduled)
    return TRUE;
  const char *expected = NULL;
  if (e->prefill_instances == 0 || e->decode_instances == 0)
    expected = "deployment.prefill_instances and deployment.decode_instances of at least 1";
  else if (!scheduled)
    expected = "engine.scheduler=distserve";
  else if (s->replicas != 1 || e->data_parallel != 1 || e->context_parallel != 1)
    expected = "deployment.replicas, data_parallel and context_parallel of 1";
  else if (strcmp(s->executor, "model") != 0)
    expected = "executor=model";
  else if (strcmp(e->allocator, "paged") != 0)
    expected = "engine.allocator=paged";
  if (expected) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "prompts and answers on instances of their own: expected %s", expected);
    return FALSE;
  }
  setup->n_fleets = 2;
  setup->fleets[0] = (KvFleet){
      .role = KV_INSTANCE_PREFILL,
      .instances = e->prefill_instances,
      .tensor_parallel = e->prefill_tensor_parallel ? e->prefill_tensor_parallel : tp,
  };
  setup->fleets[1] = (KvFleet){
      .role = KV_INSTANCE_DECODE,
      .instances = e->decode_instances,
      .tensor_parallel = e->decode_tensor_parallel ? e->decode_tensor_parallel : tp,
  };
  return TRUE;
}

/* The node of each instance: a prefill and a decode instance in turn, each on the first node with
 * room, so that pairs share a node where they can. FALSE if there is no room. */
static gboolean place_instances(const KvSetup *setup, guint *nodes) {
  const KvPlatform *p = setup->platform;
  g_autofree guint *used = g_new0(guint, p->n_nodes);
  guint most = MAX(setup->fleets[0].instances, setup->fleets[1].instances);
  for (guint turn = 0; turn < most; turn++) {
    for (guint f = 0, first = 0; f < setup->n_fleets; first += setup->fleets[f++].instances) {
      guint node = 0, tp = setup->fleets[f].tensor_parallel;
      if (turn >= setup->fleets[f].instances)
        continue;
      while (node < p->n_nodes && used[node] + tp > p->n_gpus_per_node)
        node++;
      if (node == p->n_nodes)
        return FALSE;
      used[node] += tp;
      nodes[first + turn] = node;
    }
  }
  return TRUE;
}

static gboolean check_fleets(const KvSetup *setup, GError **error) {
  const KvPlatform *p = setup->platform;
  guint gpus = 0, heads = setup->model->groups[0].attention.n_heads;
  for (guint f = 0; f < setup->n_fleets; f++) {
    const KvFleet *fleet = &setup->fleets[f];
    gpus += fleet->instances * fleet->tensor_parallel;
    if (heads % fleet->tensor_parallel) {
      g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                  "tensor parallelism %u of %s instances does not divide the %u heads of %s, "
                  "expected a divisor",
                  fleet->tensor_parallel, kv_instance_role_names[fleet->role], heads,
                  setup->model->id);
      return FALSE;
    }
  }
  g_autofree guint *nodes = g_new0(guint, n_instances(setup));
  if (place_instances(setup, nodes))
    return TRUE;
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
              "%u prefill instances of %u GPUs and %u decode instances of %u have no room on "
              "platform %s (%u GPUs a node, %u nodes), expected a larger platform such as %ux%s",
              setup->fleets[0].instances, setup->fleets[0].tensor_parallel,
              setup->fleets[1].instances, setup->fleets[1].tensor_parallel, p->id,
              p->n_gpus_per_node, p->n_nodes, gpus, p->device->id);
  return FALSE;
}

static gboolean check_parallelism(const KvSetup *setup, GError **error) {
  const KvScenario *s = setup->scenario;
  guint per_node = setup->platform->n_gpus_per_node, all = per_node * setup->platform->n_nodes;
  guint heads = setup->model->groups[0].attention.n_heads;
  guint one = s->tensor_parallel * s->engine.data_parallel;
  if (setup->n_fleets > 1)
    return check_fleets(setup, error);
  if (s->engine.context_parallel == 0)
    setup->scenario->engine.context_parallel = MAX(1, all / MAX(1, one * s->replicas));
  guint groups = s->engine.context_parallel;
  if (groups > 1 && s->engine.data_parallel > 1) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "ranks that attend apart have whole caches, expected deployment.data_parallel of 1 "
                "with deployment.context_parallel %u",
                groups);
    return FALSE;
  }
  if (groups > 1 && (one > per_node || one * groups * s->replicas > all)) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "%u replicas of %u groups of %u GPUs need %u GPUs, platform %s has %u (%u a node), "
                "expected a larger platform such as %ux%s",
                s->replicas, groups, one, one * groups * s->replicas, setup->platform->id, all,
                per_node, one * groups * s->replicas, setup->platform->device->id);
    return FALSE;
  }
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

/* Where whole prompts go through the layers one by one, each layer's surplus is gone before the
 * next layer's comes. */
static double peak_share(const KvPlan *plan, const KvEngineConfig *config) {
  double layers = 0.0;
  for (guint i = 0; i < plan->caches->len; i++)
    layers += g_array_index(plan->caches, KvCache, i).layers;
  return config->chunked_prefill || layers <= 0.0 ? 1.0
                                                  : fmin(1.0, plan->prefill_peak_layers / layers);
}

char *kv_setup_unmeasured(const KvSetup *setup) {
  const KvDevice *device = setup->platform->device;
  if (!device->calibrated)
    return NULL;
  gboolean experts = FALSE;
  for (guint g = 0; g < setup->model->n_groups; g++)
    experts = experts || setup->model->groups[g].mlp.n_experts > 0;
  KvDtype dtype = setup->plan->weights.dtype;
  if (!device->efficiency[KV_KERNEL_GEMM][dtype].fitted)
    return g_strdup_printf("%s products", kv_dtype_names[dtype]);
  dtype = kv_memory_expert_dtype(setup->model, setup->plan);
  /* Experts are composed of products where they were not fitted as a whole. */
  if (experts && !device->efficiency[KV_KERNEL_MOE][dtype].fitted &&
      !device->efficiency[KV_KERNEL_GEMM][dtype].fitted)
    return g_strdup_printf("%s experts", kv_dtype_names[dtype]);
  return NULL;
}

/* An executor that computes may take more memory for a block than the plan counts: the host's
 * numbers are fp32, and of a recurrent state both keep two, in fp32. */
static void limit_blocks(KvSetup *setup) {
  gboolean host = strcmp(setup->scenario->executor, "host") == 0;
  gboolean recurrent =
      kv_host_is_recurrent(setup->model) && !kv_host_weights_obstacle(setup->model);
  double bytes = 2.0 * setup->demand.block_bytes, planned = setup->demand.block_bytes;
  if (!host && !recurrent)
    return;
  if (recurrent) {
    bytes = 0.0;
    for (guint g = 0; g < setup->model->n_groups; g++)
      bytes += 2.0 * setup->model->groups[g].count * sizeof(float) *
               (double)kv_host_state_floats(&setup->model->groups[g].attention);
  }
  guint64 most =
      (guint64)(host ? HOST_CACHE_BYTES / bytes : (double)setup->memory.blocks * planned / bytes);
  setup->fleets[0].memory.blocks = setup->memory.blocks = MIN(setup->memory.blocks, most);
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
    setup->plan->weights.bytes_per_parameter = kv_dtype_weight_bytes(dtype);
  }
  setup->plan->weights.expert_dtype = s->expert_dtype;
  if (!kv_plan_compile(setup->plan, &setup->curves, error) || !set_fleets(setup, error) ||
      !check_parallelism(setup, error))
    return NULL;
  resolve_engine(s, setup->model, setup->platform);
  set_csd(&s->engine, setup->platform->csd);
  resolve_store(s, setup->platform);
  if (strcmp(s->engine.allocator, "chunked") == 0) {
    s->engine.block_tokens = chunk_tokens(setup->model, setup->plan->element_bytes,
                                          s->engine.chunks.chunk_bytes, s->tensor_parallel);
    s->engine.prefix_caching &= s->engine.chunks.shares;
  }
  kv_demand_init(&setup->demand, &setup->curves, s->engine.block_tokens);
  setup->demand.slack_tokens = s->engine.chunks.slack_tokens;
  setup->demand.peak_share = peak_share(setup->plan, &s->engine);
  for (guint f = 0; f < setup->n_fleets; f++) {
    KvFleet *fleet = &setup->fleets[f];
    fleet->engine = s->engine;
    if (fleet->role == KV_INSTANCE_DECODE && s->engine.decode_max_seqs > 0)
      fleet->engine.max_seqs = s->engine.decode_max_seqs;
    if (with_memory &&
        !kv_memory_divide(setup->model, setup->plan, &setup->demand, setup->platform,
                          &fleet->engine, fleet->tensor_parallel, &fleet->memory, error))
      return NULL;
  }
  setup->memory = setup->fleets[0].memory;
  if (strcmp(s->executor, "model") != 0 && s->engine.num_blocks == 0)
    limit_blocks(setup);
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
  gpointer router_state;
  guint n;
  KvInstance **instances;
  KvExecutor **executors;
  KvEventQueue *events; /* by instance */
  double *tokenized;    /* by instance's server: when it has tokenized all that it was given */
  GSequence *sent;      /* of KvSequence that the engine does not see yet, by seen_seconds */
  guint64 in_flight;
  gint64 wall_origin; /* pace_wall: the wall's microseconds at the run's second 0; 0: not begun */
  GError *problem;    /* with what came */
} Run;

static void router_finished(Run *run, const KvSequence *sequence, double now) {
  if (run->router_state)
    run->router->finished(run->router_state, sequence, now);
}

static void finished(KvInstance *instance, KvSequence *sequence, gpointer user) {
  Run *run = user;
  kv_arrival_source_finished(run->source, sequence, instance->now);
  router_finished(run, sequence, instance->now);
  if (run->options->left)
    run->options->left(sequence, run->options->user);
  kv_sequence_free(sequence);
  run->in_flight--;
}

/* A prefill instance has computed a prompt: announce it to the least loaded decode instance, of the
 * same node if there is one. */
static void computed(KvInstance *instance, KvSequence *sequence, gpointer user) {
  Run *run = user;
  const KvSetup *setup = run->setup;
  guint first = setup->fleets[0].instances, n = 0;
  g_autofree KvInstance **near = g_new(KvInstance *, setup->fleets[1].instances);
  for (guint i = first; i < run->n && setup->scenario->engine.pull_in_node; i++)
    if (run->instances[i]->node == instance->node)
      near[n++] = run->instances[i];
  KvInstance *const *among = n > 0 ? near : run->instances + first;
  const KvRouterClass *least = kv_router_find("least-loaded");
  KvInstance *to = among[least->choose(NULL, among, n > 0 ? n : run->n - first, sequence)];
  kv_instance_announce(to, sequence, to->node == instance->node, instance->now);
  kv_event_queue_set(run->events, to->index, kv_instance_next(to));
}

static void pulled(KvInstance *instance, KvSequence *left_behind, gpointer user) {
  Run *run = user;
  KvInstance *from = run->instances[left_behind->instance];
  kv_instance_release(from, left_behind, instance->now);
  kv_event_queue_set(run->events, from->index, kv_instance_next(from));
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

/* Host blocks of an executor that computes: swap space, then the prefix cache's lower tier if it
 * lies there. */
static guint64 dram_blocks(const Run *run) {
  const KvSetup *u = run->setup;
  return kv_instance_swap_blocks(&u->scenario->engine, &u->demand) +
         (u->scenario->tier == 1 ? tier_blocks(run) : 0);
}

/* Blocks of its file. */
static guint64 ssd_blocks(const Run *run) {
  return run->setup->scenario->tier == 2 ? tier_blocks(run) : 0;
}

/* A real drive has no more than is free on it, so the user says how much of that it may be. */
static gboolean check_ssd(const Run *run, GError **error) {
  const KvScenario *s = run->setup->scenario;
  if (ssd_blocks(run) == 0 || s->tier_GB > 0.0)
    return TRUE;
  g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
              "prefix_cache.tier=ssd: executor '%s' keeps it in a file, expected its size in "
              "prefix_cache.tier_GB (and its folder in prefix_cache.tier_folder)",
              s->executor);
  return FALSE;
}

/* The model's folder, if weights lie in it. */
static const char *checkpoint_of(const KvScenario *s) {
  return kv_checkpoint_exists(s->model) ? s->model : NULL;
}

/* A real executor computes what it is told to: a cache that it does not know how to hold is
 * refused. */
gboolean kv_setup_compression(const KvSetup *setup, KvHostCompression *compression,
                              GError **error) {
  const KvScenario *s = setup->scenario;
  for (guint i = 0; i < setup->stack->uses->len; i++) {
    const KvTechnique *t = g_array_index(setup->stack->uses, KvTechniqueUse, i).technique;
    if (t->arch && checkpoint_of(s)) {
      g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                  "%s changes the model, for which the checkpoint in %s has no weights, expected a "
                  "catalogue model, with weights from the seed",
                  t->id, s->model);
      return FALSE;
    }
    if (!t->plan || t->executed)
      continue;
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "%s changes the cache, which executor '%s' does not carry out, expected "
                "--executor model",
                t->id, s->executor);
    return FALSE;
  }
  if (!kv_host_compression_init(compression, setup->stack, setup->model, (KvDtype)s->cache_dtype,
                                &s->engine, error))
    return FALSE;
  /* The plan's engine reserves a prompt that is cut layer by layer; here it stands whole, until all
   * layers are done, in blocks that come with its chunks. */
  const KvHostFormatClass *format = kv_host_format(compression->format);
  return !format->kept || s->engine.chunked_prefill ||
         kv_host_format_refuse(error, format->technique, "engine.chunked_prefill=false",
                               "engine.chunked_prefill=true");
}

static KvExecutor *new_host_executor(Run *run, GError **error) {
  const KvSetup *u = run->setup;
  const KvScenario *s = u->scenario;
  const char *folder = checkpoint_of(s);
  KvHostCompression compression;
  if (!kv_setup_compression(u, &compression, error) || !check_ssd(run, error))
    return NULL;
  KvHostWeights *weights = folder ? kv_host_weights_load(u->model, folder, error)
                                  : kv_host_weights_new(u->model, s->seed, error);
  KvExecutor *host = weights ? kv_host_executor_new_with(weights, u->model, s->engine.block_tokens,
                                                         u->memory.blocks, dram_blocks(run),
                                                         run->hash_block_tokens, error)
                             : NULL;
  if (host && ssd_blocks(run) > 0 &&
      !kv_host_executor_open_file(host, s->tier_folder, ssd_blocks(run), error))
    host->class->destroy(g_steal_pointer(&host));
  if (host) {
    kv_host_executor_set_compression(host, &compression);
    kv_host_executor_set_sink(host, run->options->generated, run->options->user);
    kv_host_executor_set_measured(host, run->options->pace_wall);
  }
  return host;
}

static KvExecutor *new_cuda_executor(Run *run, GError **error) {
  const KvSetup *u = run->setup;
  const KvScenario *s = u->scenario;
  KvHostCompression compression;
  if (!kv_setup_compression(u, &compression, error) || !check_ssd(run, error))
    return NULL;
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
      .ssd_blocks = ssd_blocks(run),
      .ssd_folder = s->tier_folder,
      .hash_block_tokens = run->hash_block_tokens,
      .max_positions = s->engine.max_model_len,
      .graph_rows = s->engine.cuda_graphs ? s->engine.cuda_graph_max_tokens : 0,
      .seed = s->seed,
      .compression = &compression,
      .sink = run->options->generated,
      .sink_user = run->options->user,
  };
  return kv_cuda_executor_new(&settings, error);
}

/* An executor that carries the work out, as the caller wants to see it. */
static KvExecutor *wrapped(Run *run, KvExecutor *real) {
  return real && run->options->wrap ? run->options->wrap(real, run->options->user) : real;
}

static KvExecutor *new_executor(Run *run, guint i, GError **error) {
  const KvSetup *u = run->setup;
  const KvFleet *fleet = fleet_of(u, i);
  const KvScenario *s = u->scenario;
  if (strcmp(s->executor, "model") != 0 && s->engine.store.policy) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "executor '%s' has no session store, expected executor model", s->executor);
    return NULL;
  }
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
  gboolean alike = i > 0 && fleet_of(u, i - 1) == fleet;
  KvExecutor *executor = alike ? kv_model_executor_twin(run->executors[i - 1])
                               : kv_model_executor_new(u->model, u->plan, &u->curves, u->platform,
                                                       &fleet->engine, fleet->tensor_parallel);
  if (fleet->role == KV_INSTANCE_DECODE) /* both ends send over as many ports */
    kv_model_executor_set_ports(executor,
                                MIN(u->fleets[0].tensor_parallel, u->fleets[1].tensor_parallel));
  return executor;
}

/* Tokens of the prefix blocks that instances look for. Chunks are as the model makes them: where
 * they and the trace's blocks do not divide one another, no chunk is named. */
static guint prefix_block_tokens(const Run *run) {
  const KvEngineConfig *e = &run->setup->scenario->engine;
  guint block = e->block_tokens, hash = run->hash_block_tokens;
  gboolean chunked = strcmp(e->allocator, "chunked") == 0;
  if (!e->prefix_caching || (chunked && hash > 0 && hash % block != 0 && block % hash != 0))
    return 0;
  return hash;
}

static gboolean check_blocks(Run *run, const char *trace, GError **error) {
  guint block = run->setup->scenario->engine.block_tokens, hash = prefix_block_tokens(run);
  if (hash == 0 || hash % block == 0 || block % hash == 0)
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
  if (run->source && s->engine.cache_answers && s->output_scale == 1.0)
    kv_arrival_source_name_answers(run->source);
  if (!run->source || !check_blocks(run, kv_trace_reader_name(reader), error))
    return FALSE;
  run->router = kv_router_find(s->engine.router);
  run->router_state = run->router->state_new ? run->router->state_new() : NULL;
  run->sent = g_sequence_new(NULL);
  run->n = n_instances(run->setup);
  g_autofree guint *nodes = g_new0(guint, run->n);
  if (run->setup->n_fleets > 1)
    place_instances(run->setup, nodes);
  run->tokenized = g_new0(double, run->n);
  run->instances = g_new0(KvInstance *, run->n);
  run->executors = g_new0(KvExecutor *, run->n);
  run->events = kv_event_queue_new(run->n);
  for (guint i = 0; i < run->n; i++) {
    if (!(run->executors[i] = new_executor(run, i, error)))
      return FALSE;
    const KvFleet *fleet = fleet_of(run->setup, i);
    run->instances[i] = kv_instance_new(
        i, &fleet->engine, &run->setup->curves, run->executors[i],
        kv_metrics_observer(run->metrics), fleet->memory.blocks,
        fleet->role == KV_INSTANCE_DECODE ? 0 : prefix_block_tokens(run), run->setup->plan);
    run->instances[i]->role = fleet->role;
    run->instances[i]->node = nodes[i];
    run->instances[i]->demand = run->setup->demand; /* with the shares of its tiers */
    run->instances[i]->finished = finished;
    run->instances[i]->computed = computed;
    run->instances[i]->pulled = pulled;
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
      free_queue(&instance->bridge);
      free_queue(&instance->pulling);
      free_queue(&instance->paused);
      free_queue(&instance->loading);
      if (instance->calling)
        g_sequence_foreach(instance->calling, (GFunc)(void (*)(void))kv_sequence_free, NULL);
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
  g_free(run->tokenized);
  if (run->router_state)
    run->router->state_free(run->router_state);
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
  /* One thread of each instance's server tokenizes, prompt after prompt. Which server it is shows
   * only when the engine sees the request, so the one that is free first stands for it. */
  double *tokenized = &run->tokenized[0];
  for (guint i = 1; i < run->n; i++)
    if (run->tokenized[i] < *tokenized)
      tokenized = &run->tokenized[i];
  *tokenized = MAX(*tokenized, now + s->client_request_seconds) +
               s->client_token_seconds * (double)sequence->input_tokens;
  sequence->seen_seconds = *tokenized;
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

/* Calls keep their places in the answer; two that fall together are one after the other. */
static void scale_output(KvSequence *sequence, double scale) {
  guint32 n = 0, after = 0;
  sequence->output_tokens = (guint32)MAX(1.0, round(sequence->output_tokens * scale));
  for (guint32 i = 0; i < sequence->n_calls; i++) {
    KvTraceCall call = sequence->calls[i];
    call.position = (guint32)MAX(after + 1.0, round(call.position * scale));
    if (call.position >= sequence->output_tokens)
      break;
    after = call.position;
    sequence->calls[n++] = call;
  }
  for (; sequence->n_calls > n; sequence->n_calls--)
    sequence->call_tokens -= sequence->calls[sequence->n_calls - 1].returned_tokens;
}

/* The engine sees it. */
static void enter(Run *run, KvSequence *sequence, double now) {
  double scale = run->setup->scenario->output_scale;
  if (scale != 1.0)
    scale_output(sequence, scale);
  kv_metrics_arrived(run->metrics, sequence);
  if (sequence->n_calls > 0 && !run->executors[0]->class->closed_form && !run->problem)
    g_set_error(&run->problem, KV_ERROR, KV_ERROR_USAGE,
                "request %" G_GINT64_FORMAT
                " has api_calls, whose returned tokens executor '%s' does "
                "not know, expected executor model",
                sequence->id, run->executors[0]->class->name);
  guint n = run->setup->fleets[0].instances;
  guint to = n > 1 ? run->router->choose(run->router_state, run->instances, n, sequence) : 0;
  KvInstance *instance = run->instances[to];
  if (!kv_instance_can_ever_serve(instance, sequence) ||
      !kv_instance_can_ever_serve(run->instances[run->n - 1], sequence)) {
    kv_metrics_rejected(run->metrics, sequence);
    kv_arrival_source_finished(run->source, sequence, now);
    router_finished(run, sequence, now);
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
    if (run->problem) {
      g_propagate_error(error, g_steal_pointer(&run->problem));
      return FALSE;
    }
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
  g_autofree char *unmeasured = kv_setup_unmeasured(u);
  s->calibrated = u->platform->device->calibrated && !unmeasured;
  s->n_instances = n_instances(u);
  s->tensor_parallel = u->fleets[0].tensor_parallel;
  s->executor = run->executors[0]->class->name;
  s->block_tokens = sc->engine.block_tokens;
  double blocks = 0.0;
  for (guint f = 0; f < u->n_fleets; f++) {
    const KvFleet *fleet = &u->fleets[f];
    s->n_gpus += fleet->instances * fleet->tensor_parallel * sc->engine.data_parallel *
                 sc->engine.context_parallel;
    blocks += (double)fleet->memory.blocks * fleet->instances / s->n_instances;
    if (u->n_fleets > 1)
      s->roles[s->n_roles++] = (KvRoleSummary){.role = fleet->role,
                                               .instances = fleet->instances,
                                               .tensor_parallel = fleet->tensor_parallel,
                                               .total_blocks = fleet->memory.blocks};
  }
  s->total_blocks = (guint64)blocks;
  s->block_bytes = u->demand.block_bytes /
                   (s->tensor_parallel * sc->engine.data_parallel * sc->engine.context_parallel);
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
