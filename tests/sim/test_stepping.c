/* One step at a time and many at once are the same run: the same decisions, the same times. */
#include "replay.h"

#include <math.h>
#include <string.h>

#include "traces/generate.h"

typedef struct {
  const char *name, *settings;
  guint runs;
  gboolean shares; /* prompts have common prefixes */
} Case;

/* Settings that are drawn anew for each run: token budget, sequences, blocks, replicas. */
static char *drawn_settings(KvRandom *random, const Case *c) {
  static const char *const routers[] = {"round-robin", "least-loaded"}; /* prefix: below */
  GString *text = g_string_new(c->settings);
  gint64 replicas = kv_random_unit(random) < 0.3 ? kv_random_integer(random, 2, 3) : 1;
  g_string_append_printf(text, " engine.max_seqs=%d", (int)kv_random_integer(random, 2, 24));
  if (!strstr(c->settings, "max_batched_tokens"))
    g_string_append_printf(text, " engine.max_batched_tokens=%d",
                           (int)kv_random_integer(random, 64, 1024));
  if (!strstr(c->settings, "num_blocks"))
    g_string_append_printf(text, " engine.num_blocks=%d", (int)kv_random_integer(random, 60, 160));
  if (kv_random_unit(random) < 0.3)
    g_string_append(text, " engine.long_prefill_threshold=100");
  if (kv_random_unit(random) < 0.3)
    g_string_append(text, " engine.reserve_full_prompt=false");
  if (replicas > 1 && !strstr(c->settings, "replicas"))
    g_string_append_printf(text, " platform=8xh200 deployment.replicas=%d deployment.router=%s",
                           (int)replicas, routers[kv_random_integer(random, 0, 1)]);
  return g_string_free(text, FALSE);
}

static gboolean near(double a, double b) {
  return fabs(a - b) <= 1e-6 * fmax(fabs(a), fabs(b));
}

/* Whatever of the summary does not depend on how often state was sampled. */
static void assert_same_summary(const KvSummary *a, const KvSummary *b, const char *settings) {
#define SAME(member)                                                                               \
  { #member, a->member, b->member }
  const struct {
    const char *name;
    double jumps, steps;
  } same[] = {
      SAME(latency[KV_LATENCY_QUEUE].mean),
      SAME(latency[KV_LATENCY_TTFT].mean),
      SAME(latency[KV_LATENCY_TPOT].mean),
      SAME(latency[KV_LATENCY_ITL].mean),
      SAME(latency[KV_LATENCY_ITL].n),
      SAME(latency[KV_LATENCY_E2E].mean),
      SAME(flops),
      SAME(hbm_bytes),
      SAME(link_bytes),
      SAME(busy_share),
      SAME(prefill_busy_share),
      SAME(mfu),
      SAME(mbu),
      SAME(energy_joules),
      SAME(swapped_out_blocks),
      SAME(preemptions),
      SAME(recomputed_tokens),
      SAME(hit_tokens),
      SAME(output_tokens),
      SAME(prompt_tokens),
      SAME(steps),
      SAME(makespan_seconds),
      SAME(goodput_requests_per_second),
  };
#undef SAME
  for (guint i = 0; i < G_N_ELEMENTS(same); i++)
    if (!near(same[i].jumps, same[i].steps))
      g_error("%s is %.9g, step by step %.9g; with %s", same[i].name, same[i].jumps, same[i].steps,
              settings);
  for (guint c = 0; c < KV_N_COMPONENTS; c++)
    if (!near(a->component_seconds[c], b->component_seconds[c]))
      g_error("%s takes %.9g s, step by step %.9g; with %s", kv_component_names[c],
              a->component_seconds[c], b->component_seconds[c], settings);
}

static void assert_same(const Replay *jumps, const Replay *steps, const char *settings) {
  for (guint i = 0; i < jumps->n; i++) {
    const Outcome *a = &jumps->outcomes[i], *b = &steps->outcomes[i];
    if (a->rejected != b->rejected || a->instance != b->instance ||
        a->hit_tokens != b->hit_tokens || a->preemptions != b->preemptions ||
        a->recomputed_tokens != b->recomputed_tokens || !near(a->scheduled, b->scheduled) ||
        !near(a->first, b->first) || !near(a->last, b->last))
      g_error("request %u: %.9f %.9f %.9f s, %u hit, %u preempted; step by step %.9f %.9f %.9f s, "
              "%u hit, %u preempted; with %s",
              i, a->scheduled, a->first, a->last, a->hit_tokens, a->preemptions, b->scheduled,
              b->first, b->last, b->hit_tokens, b->preemptions, settings);
  }
  assert_same_summary(jumps->summary, steps->summary, settings);
  g_assert_cmpuint(steps->n_operations, ==, steps->summary->steps);
}

/* Sessions: a turn comes when the answer before it is complete and has been thought about. */
static Workload *sessions(guint64 seed) {
  KvTraceGenerator g;
  g_autoptr(GError) error = NULL;
  kv_trace_generator_default(&g);
  g.n_requests = 60;
  g.seed = seed;
  g.input_tokens = g.turn_input_tokens = (KvLengths){.kind = KV_LENGTHS_UNIFORM, .a = 10, .b = 120};
  g.output_tokens = (KvLengths){.kind = KV_LENGTHS_UNIFORM, .a = 1, .b = 60};
  g.turns_mean = 4.0;
  g.think_mean_seconds = 0.3;
  KvTraceReader *reader = kv_trace_generate(&g, &error);
  g_assert_no_error(error);
  return workload_read(reader);
}

/* Answers that call APIs in the middle. */
static Workload *calls(guint64 seed) {
  KvTraceGenerator g;
  g_autoptr(GError) error = NULL;
  kv_trace_generator_default(&g);
  g.n_requests = 50;
  g.seed = seed;
  g.block_tokens = 0;
  g.arrivals.rate_rps = seed % 2 ? 10.0 : 60.0;
  g.input_tokens = (KvLengths){.kind = KV_LENGTHS_UNIFORM, .a = 10, .b = 400};
  g.output_tokens = (KvLengths){.kind = KV_LENGTHS_UNIFORM, .a = 1, .b = 150};
  g.calls_mean = 1.5;
  g.call_mean_seconds = 0.4;
  g.call_tokens = (KvLengths){.kind = KV_LENGTHS_UNIFORM, .a = 1, .b = 100};
  KvTraceReader *reader = kv_trace_generate(&g, &error);
  g_assert_no_error(error);
  return workload_read(reader);
}

static void test_case(gconstpointer data) {
  const Case *c = data;
  guint64 jumped = 0, preempted = 0, hit = 0;
  for (guint run = 0; run < c->runs; run++) {
    KvRandom random;
    kv_random_seed(&random, run, g_str_hash(c->name));
    double rate = exp(log(2.0) + kv_random_unit(&random) * log(200.0));
    guint32 most_output = kv_random_unit(&random) < 0.5 ? 40 : 300;
    g_autoptr(Workload) workload =
        strstr(c->name, "sessions") ? sessions(run)
        : strstr(c->name, "calls")
            ? calls(run)
            : workload_random(&random, 40, 600, most_output, rate, 16, c->shares ? 0.6 : 0.0);
    g_autofree char *settings = drawn_settings(&random, c);
    g_test_message("run %u: %s", run, settings);
    g_autoptr(Replay) jumps = replay(workload, "%s", settings);
    g_autoptr(Replay) steps = replay(workload, "%s engine.step_by_step=true", settings);
    assert_same(jumps, steps, settings);
    jumped += steps->n_operations - jumps->n_operations;
    preempted += jumps->summary->preemptions;
    hit += jumps->summary->hit_tokens;
  }
  /* The comparison compared something. */
  g_assert_cmpuint(jumped, >, 0);
  if (strstr(c->name, "preempt"))
    g_assert_cmpuint(preempted, >, 0);
  if (c->shares)
    g_assert_cmpuint(hit, >, 0);
}

static const Case cases[] = {
    {"vllm-v1-async-preempt", "", 8, TRUE},
    {"vllm-v1-sync-preempt", "engine.async_scheduling=false", 8, TRUE},
    {"vllm-v1-cpu-time", "engine.async_scheduling=false engine.per_sequence_seconds=1e-5", 3, TRUE},
    {"vllm-v1-no-chunks", "engine.chunked_prefill=false engine.max_model_len=1024", 4, TRUE},
    {"vllm-v1-closed-loop", "arrivals.mode=closed arrivals.concurrency=6", 4, TRUE},
    {"vllm-v1-sessions", "arrivals.mode=sessions arrivals.concurrency=8 engine.num_blocks=150", 4,
     TRUE},
    {"vllm-v1-sessions-sync",
     "arrivals.mode=sessions arrivals.concurrency=8 engine.num_blocks=150 "
     "engine.async_scheduling=false",
     4, TRUE},
    {"vllm-v1-blocks-of-64", "engine.block_tokens=64 engine.num_blocks=40", 3, TRUE},
    {"vllm-v1-tier", "prefix_cache.tier=dram prefix_cache.tier_GB=1", 4, TRUE},
    {"vllm-v1-tp", "platform=8xh200 deployment.tensor_parallel=2 engine.num_blocks=120", 2, TRUE},
    {"router-80-2",
     "platform=8xh200 deployment.replicas=2 deployment.router=prefix engine.num_blocks=80", 6,
     TRUE},
    {"sglang-preempt", "engine.scheduler=sglang", 6, TRUE},
    {"sglang-sync", "engine.scheduler=sglang engine.async_scheduling=false", 3, TRUE},
    {"radixattention", "use=radixattention:page_size=16", 6, TRUE},
    {"radixattention-tokens", "use=radixattention engine.num_blocks=1400", 4, TRUE},
    {"radixattention-dfs", "use=radixattention:policy=dfs-weight:page_size=16", 3, TRUE},
    {"chunkattention", "use=chunkattention engine.num_blocks=40 engine.max_model_len=1024", 5,
     TRUE},
    {"vtensor", "use=vtensor model=llama-2-7b engine.num_blocks=24", 5, FALSE},
    {"fastserve-preempt", "use=fastserve:max_batch_size=4:check_period=1 engine.num_blocks=90", 6,
     FALSE},
    {"fastserve-reactive-preempt",
     "use=fastserve:max_batch_size=4:proactive=off:impl=released:check_period=50 engine.num_blocks=90",
     4, FALSE},
    {"fastserve-no-host-preempt", "use=fastserve:max_batch_size=6:swap_space=0:cpu_guard=0", 4,
     FALSE},
    {"calls-vllm-v1", "", 4, FALSE},
    {"calls-vllm-v1-sync", "engine.async_scheduling=false", 3, FALSE},
    {"calls-sglang", "engine.scheduler=sglang", 3, FALSE},
    {"calls-static", "engine.scheduler=static engine.num_blocks=300", 2, FALSE},
    {"calls-fastserve", "use=fastserve:max_batch_size=4", 3, FALSE},
    {"calls-lamps", "use=lamps:block_size=16:threshold=20", 6, FALSE},
    {"calls-lamps-preserve", "use=lamps:block_size=16:strategy=preserve:predictor_ms=0", 4, FALSE},
    {"calls-lamps-swap", "use=lamps:block_size=16:strategy=swap:impl=released", 4, FALSE},
    {"calls-lamps-fcfs", "use=lamps:block_size=16:rank=off:bin_tokens=0", 3, FALSE},
    {"cachedattention-sessions", "use=cachedattention arrivals.concurrency=12", 4, TRUE},
    {"cachedattention-lru-sessions",
     "use=cachedattention:policy=lru:dram=0.2:ssd=0.0005 arrivals.concurrency=12", 4, TRUE},
    {"vllm-2023-preempt", "use=vllm", 4, FALSE},
    {"vllm-2023-swap-preempt", "use=vllm:preemption_mode=swap", 4, FALSE},
    {"vllm-2023-mixed-preempt", "use=vllm:version=2023-mixed", 4, FALSE},
    {"vllm-2023-mixed-swap-preempt", "use=vllm:version=2023-mixed:preemption_mode=swap", 4, FALSE},
    {"distserve", "use=distserve:decode_instances=2 platform=8xh200 deployment.replicas=1", 6,
     FALSE},
    {"distserve-swap-preempt",
     "use=distserve:prefill_instances=2:pull_threshold=0.3 platform=8xh200 deployment.replicas=1 "
     "engine.num_blocks=60",
     6, FALSE},
    {"distserve-recompute-preempt",
     "use=distserve:swap_space=0:pull_threshold=0.2:decode_max_batch=8 platform=8xh200 "
     "deployment.replicas=1 engine.num_blocks=60",
     6, FALSE},
    {"neo-preempt", "use=neo:max_batch_size=12:max_tokens_in_batch=900 engine.num_blocks=60", 4,
     FALSE},
    {"neo-little-host-preempt",
     "use=neo:swap_space=0.2:launch_ms=0.001 platform=a10 model=llama-2-7b "
     "engine.num_blocks=60",
     4, FALSE},
    {"cake-race", "use=cake:chunk=64:bandwidth=8 prefix_cache.tier=dram prefix_cache.tier_GB=1", 4,
     TRUE},
    {"orca-max", "use=orca:max_bs=8 engine.max_model_len=1024 engine.num_blocks=256", 2, FALSE},
    {"orca-pow2", "use=orca:max_bs=8:reservation=pow2", 2, FALSE},
    {"orca-oracle", "use=orca:max_bs=8:reservation=oracle", 2, FALSE},
    {"static", "engine.scheduler=static", 3, FALSE},
    {"static-batch",
     "engine.scheduler=static engine.static_batch=4 engine.max_model_len=1024 "
     "engine.num_blocks=400",
     2, FALSE},
    {"flexgen", "use=flexgen model=opt-13b platform=h200", 2, FALSE},
    {"kivi", "use=kivi model=llama-2-7b", 4, FALSE},
    {"kivi-sync", "use=kivi engine.async_scheduling=false", 2, FALSE},
    {"snapkv", "use=snapkv:budget=128", 4, FALSE},
    {"snapkv-kivi", "use=snapkv:budget=128,kivi", 2, FALSE},
    {"gqa", "use=gqa model=llama-2-7b", 2, TRUE},
    {"gemma-sliding", "model=gemma-3-1b engine.num_blocks=400", 3, TRUE},
    {"deepseek-latent", "model=deepseek-v2-lite", 2, TRUE},
};

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autofree char *path = g_strconcat("/sim/stepping/", cases[i].name, NULL);
    g_test_add_data_func(path, &cases[i], test_case);
  }
  return g_test_run();
}
