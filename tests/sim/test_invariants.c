/* What must hold of any run, on random scenarios. replay() has the engine check its blocks at every
 * decision. */
#include "replay.h"

#include <glib/gstdio.h>
#include <math.h>
#include <string.h>

#include "traces/generate.h"
#include "traces/statistics.h"

/* Serving systems and stacks that every random scenario draws from. */
static const char *const stacks[] = {
    "",
    "engine.async_scheduling=false",
    "engine.chunked_prefill=false engine.max_model_len=900",
    "engine.reserve_full_prompt=false engine.long_prefill_threshold=64",
    "engine.allocator=chunked engine.num_blocks=12",
    "prefix_cache.tier=dram prefix_cache.tier_GB=0.5",
    "prefix_cache.tier=ssd prefix_cache.tier_GB=0.5",
    "use=vllm",
    "use=vllm:version=2023-mixed",
    "use=vllm:preemption_mode=swap",
    "use=vllm:version=2023-mixed:preemption_mode=swap",
    "engine.scheduler=sglang",
    "use=radixattention:page_size=16",
    "use=radixattention:page_size=16:policy=dfs-weight engine.async_scheduling=false",
    "use=radixattention engine.num_blocks=1200",
    "use=chunkattention:c=64 engine.num_blocks=20 engine.max_model_len=1100",
    "use=chunkattention:c=16 engine.max_model_len=900",
    "use=vtensor model=llama-2-7b engine.num_blocks=18 engine.max_model_len=1000",
    "use=vtensor:slack=0:cache_seqs=4:cache_tokens=2 model=llama-2-7b engine.num_blocks=18",
    "use=fastserve:max_batch_size=4",
    "use=fastserve:max_batch_size=4:proactive=off",
    "use=fastserve:max_batch_size=8:swap_space=0.05:cpu_guard=0",
    "use=lamps:block_size=16",
    "use=cachedattention",
    "use=orca:reservation=pow2",
    "use=orca:reservation=oracle",
    "engine.scheduler=static",
    "use=kivi model=llama-2-7b",
    "use=snapkv:budget=64",
    "use=snapkv:budget=64,vllm",
    "model=gemma-3-1b engine.num_blocks=250",
    "use=distserve:prefill_instances=2:pull_threshold=0.2 platform=8xh200",
    "use=distserve:decode_instances=3:swap_space=0.1 platform=8xh200",
    "use=neo model=llama-2-7b",
    "use=neo:swap_space=0.3:launch_ms=0 model=llama-2-7b",
    "use=cake:chunk=64:bandwidth=4 prefix_cache.tier=dram prefix_cache.tier_GB=0.5",
    "use=tree-attention:P=4 platform=8xh200",
    "use=instinfer model=llama-2-7b",
    "platform=8xh200 deployment.replicas=3 deployment.router=prefix",
    "platform=8xh200 deployment.replicas=2 deployment.tensor_parallel=4 deployment.router=prefix",
};

/* The least a step can take: the weights once through HBM at its peak. */
static double least_step_seconds(const Replay *run) {
  return run->summary->weight_bytes / run->summary->peak_hbm_Bps;
}

static void assert_sound(const Replay *run) {
  const KvSummary *s = run->summary;
  double floor_seconds = least_step_seconds(run);
  guint rejected = 0;
  guint64 output = 0;
  g_assert_cmpuint(run->n_left, ==, run->n);
  for (guint i = 0; i < run->n; i++) {
    const Outcome *o = &run->outcomes[i];
    rejected += o->rejected;
    if (o->rejected)
      continue;
    output += o->output_tokens;
    g_assert_cmpfloat(o->scheduled, >=, o->arrival);
    g_assert_cmpfloat(o->first, >=, o->scheduled + floor_seconds);
    g_assert_cmpfloat(o->last, >=, o->first + (o->output_tokens - 1) * floor_seconds);
    g_assert_cmpuint(o->hit_tokens, <, o->input_tokens);
    g_assert_cmpuint(o->tier_tokens, <=, o->hit_tokens);
  }
  g_assert_cmpuint(s->requests_arrived, ==, run->n);
  g_assert_cmpuint(s->requests_finished, ==, run->n - rejected);
  g_assert_cmpuint(s->requests_rejected, ==, rejected);
  g_assert_cmpuint(s->output_tokens, ==, output);
}

/* Batches of an instance follow one another. */
static void assert_time_passes(const Replay *run) {
  double ends[16] = {0};
  for (guint i = 0; i < run->n_operations; i++) {
    const Operation *o = &run->operations[i];
    g_assert_cmpuint(o->instance, <, G_N_ELEMENTS(ends));
    g_assert_cmpfloat(o->seconds, >, 0.0);
    g_assert_cmpfloat(o->start, >=, ends[o->instance] - 2e-9); /* the file has nine decimals */
    ends[o->instance] = o->start + o->seconds;
  }
}

static void test_random(gconstpointer data) {
  const char *stack = data;
  guint64 left = 0;
  for (guint seed = 0; seed < 3; seed++) {
    KvRandom random;
    kv_random_seed(&random, seed, g_str_hash(stack));
    g_autoptr(Workload) workload =
        workload_random(&random, 60, 700, seed ? 300 : 20, seed == 2 ? 3.0 : 100.0, 16, 0.5);
    /* Tight: a long prompt and its answer take up to 62 of the blocks, and some are too long. */
    g_autoptr(Replay) run =
        replay(workload, "engine.max_seqs=%d engine.max_batched_tokens=%d engine.num_blocks=%d %s",
               (int)kv_random_integer(&random, 3, 20), (int)kv_random_integer(&random, 50, 900),
               (int)kv_random_integer(&random, 52, 90), stack);
    assert_sound(run);
    assert_time_passes(run);
    left += run->summary->requests_finished;
  }
  g_assert_cmpuint(left, >, 30);
}

/* A prompt that can never fit is counted and the run goes on; the rest is as if it had not been. */
static void test_rejected(void) {
  g_autoptr(Workload) with = workload_new(0), without = workload_new(0);
  workload_add(with, 0.0, 900, 5, -1, 0); /* 57 blocks */
  workload_add(with, 0.0, 100, 5, -1, 0);
  workload_add(with, 0.0, 100, 2000, -1, 0); /* longer than the model's limit below */
  workload_add(without, 0.0, 100, 5, -1, 0);
  g_autoptr(Replay) a = replay(with, "engine.num_blocks=50 engine.max_model_len=1000");
  g_autoptr(Replay) b = replay(without, "engine.num_blocks=50 engine.max_model_len=1000");
  g_assert_true(a->outcomes[0].rejected && a->outcomes[2].rejected);
  g_assert_cmpfloat(a->outcomes[1].last, ==, b->outcomes[0].last);
  g_assert_cmpuint(a->summary->requests_rejected, ==, 2);
  /* The longest that fits is served. */
  g_autoptr(Workload) fits = workload_new(0);
  workload_add(fits, 0.0, 795, 5, -1, 0);
  g_autoptr(Replay) c = replay(fits, "engine.num_blocks=50");
  g_assert_cmpuint(c->summary->requests_finished, ==, 1);
}

/* Where prompts are evicted a sequence takes few blocks, but all of them again if it is preempted:
 * what could not come back is not taken in, and nobody is stuck. */
static void test_evicted_prompts(void) {
  static const char *const uses[] = {"snapkv:budget=64", "snapkv:budget=64,vllm",
                                     "snapkv:budget=64,vllm:preemption_mode=swap",
                                     "snapkv:budget=64,vllm:version=2023-mixed"};
  guint preempted = 0, rejected = 0;
  KvRandom random;
  kv_random_seed(&random, 8, 0);
  g_autoptr(Workload) workload = workload_new(0);
  for (guint i = 0; i < 60; i++)
    workload_add(workload, 0.02 * i, (guint32)kv_random_integer(&random, 300, 600),
                 (guint32)kv_random_integer(&random, 100, 400), -1, 0);
  for (guint u = 0; u < G_N_ELEMENTS(uses); u++)
    for (guint blocks = 38; blocks <= 62; blocks += 8) {
      g_autoptr(Replay) run =
          replay(workload, "model=llama-2-7b use=%s engine.num_blocks=%u", uses[u], blocks);
      assert_sound(run);
      preempted += run->summary->preemptions;
      rejected += run->summary->requests_rejected;
    }
  g_assert_cmpuint(preempted, >, 0);
  g_assert_cmpuint(rejected, >, 0);
}

/* A platform of one GPU whose bandwidths are given. */
static char *platform_file(const char *folder, const char *name, double hbm_GBps,
                           double host_GBps) {
  char *path = g_build_filename(folder, name, NULL);
  g_autofree char *json = g_strdup_printf(
      "{\"id\": \"%s\", \"gpus_per_node\": 1, \"host_memory\": \"ddr5-4800-8ch\","
      " \"host_link\": {\"id\": \"link\", \"GBps\": %g},"
      " \"device\": {\"id\": \"gpu\", \"memory_GB\": 80, \"memory_GBps\": %g, \"sm_count\": 132,"
      " \"dense_TFLOPs\": {\"bf16\": 900}, \"host_link\": \"pcie5-x16\"}}",
      name, host_GBps, hbm_GBps);
  g_assert_true(g_file_set_contents(path, json, -1, NULL));
  return path;
}

/* With equal decisions nobody is later where memory or the link to the host is faster. What arrives
 * at once, or because another has finished, makes decisions that do not depend on time. */
static void test_bandwidth(void) {
  static const char *const equal[] = {
      "",
      "engine.async_scheduling=false",
      "arrivals.mode=closed arrivals.concurrency=5",
      "use=vllm engine.max_seqs=8",
      "use=vllm:preemption_mode=swap engine.max_seqs=8",
      "use=orca:reservation=oracle",
      "engine.scheduler=static engine.static_batch=4",
      "use=kivi model=llama-2-7b",
      "use=flexgen model=opt-13b",
  };
  g_autofree char *folder = g_dir_make_tmp("kvsim-platform-XXXXXX", NULL);
  g_autofree char *plain = platform_file(folder, "plain.json", 2000, 32);
  g_autofree char *memory = platform_file(folder, "memory.json", 3000, 32);
  g_autofree char *link = platform_file(folder, "link.json", 2000, 48);
  KvRandom random;
  kv_random_seed(&random, 3, 3);
  g_autoptr(Workload) workload = workload_random(&random, 30, 500, 200, 1e9, 0, 0.0);
  guint memory_helped = 0, link_helped = 0;
  for (guint i = 0; i < workload->requests->len; i++)
    g_array_index(workload->requests, Request, i).arrival_seconds = 0.0;
  for (guint e = 0; e < G_N_ELEMENTS(equal); e++) {
    const char *rest = "engine.max_batched_tokens=600 engine.num_blocks=90";
    g_autoptr(Replay) a = replay(workload, "platform=%s %s %s", plain, rest, equal[e]);
    g_autoptr(Replay) b = replay(workload, "platform=%s %s %s", memory, rest, equal[e]);
    g_autoptr(Replay) c = replay(workload, "platform=%s %s %s", link, rest, equal[e]);
    for (guint i = 0; i < a->n; i++) {
      g_assert_cmpuint(a->outcomes[i].preemptions, ==, b->outcomes[i].preemptions);
      g_assert_cmpfloat(b->outcomes[i].first, <=, a->outcomes[i].first);
      g_assert_cmpfloat(b->outcomes[i].last, <=, a->outcomes[i].last);
      g_assert_cmpfloat(c->outcomes[i].first, <=, a->outcomes[i].first);
      g_assert_cmpfloat(c->outcomes[i].last, <=, a->outcomes[i].last);
      memory_helped += b->outcomes[i].last < a->outcomes[i].last;
      link_helped += c->outcomes[i].last < a->outcomes[i].last;
    }
  }
  g_assert_cmpuint(memory_helped, >, 100);
  g_assert_cmpuint(link_helped, >, 10);
  g_unlink(plain);
  g_unlink(memory);
  g_unlink(link);
  g_rmdir(folder);
}

static Workload *generated(guint64 seed) {
  KvTraceGenerator g;
  g_autoptr(GError) error = NULL;
  kv_trace_generator_default(&g);
  g.n_requests = 300;
  g.seed = seed;
  g.block_tokens = 16;
  g.arrivals.rate_rps = 20.0;
  g.input_tokens = (KvLengths){.kind = KV_LENGTHS_UNIFORM, .a = 20, .b = 600};
  g.output_tokens = (KvLengths){.kind = KV_LENGTHS_UNIFORM, .a = 1, .b = 60};
  g.shared_prompts = 5;
  g.shared_tokens = 300;
  g.header_tokens = 100;
  g.zipf = 1.0;
  KvTraceReader *reader = kv_trace_generate(&g, &error);
  g_assert_no_error(error);
  return workload_read(reader);
}

static void forget_prefixes(Workload *workload) {
  workload->block_tokens = 0;
  for (guint i = 0; i < workload->requests->len; i++)
    g_clear_pointer(&g_array_index(workload->requests, Request, i).hashes, g_array_unref);
}

/* Without a cache it makes no difference that prompts have prefixes in common. */
static void test_no_cache(void) {
  g_autoptr(Workload) known = generated(1), unknown = generated(1);
  forget_prefixes(unknown);
  g_autoptr(Replay) with = replay(known, "engine.num_blocks=300");
  g_autoptr(Replay) off = replay(known, "engine.num_blocks=300 engine.prefix_caching=false");
  g_autoptr(Replay) nothing_known =
      replay(unknown, "engine.num_blocks=300 engine.prefix_caching=false");
  g_autoptr(Replay) on = replay(unknown, "engine.num_blocks=300");
  g_assert_cmpuint(with->summary->hit_tokens, >, 0);
  g_assert_cmpuint(off->summary->hit_tokens, ==, 0);
  g_assert_cmpstr(off->requests_csv, ==, nothing_known->requests_csv);
  g_assert_cmpstr(off->operations_csv, ==, nothing_known->operations_csv);
  /* Only a preempted request may still find what it left itself. */
  g_assert_cmpuint(on->summary->hit_tokens, ==, 0);
}

/* A cache of unlimited size finds what the trace allows, and no more. */
static void test_ideal_hits(void) {
  static const guint engine_blocks[] = {4, 16, 64};
  for (guint i = 0; i < G_N_ELEMENTS(engine_blocks); i++) {
    g_autoptr(Workload) workload = generated(i);
    g_autoptr(KvTraceReader) reader = workload_reader(workload);
    KvTraceStatistics ideal;
    g_assert_true(kv_trace_statistics(reader, &ideal, NULL));
    double share = (double)ideal.hit_tokens / (double)ideal.sum_input_tokens;
    g_autoptr(Replay) run = replay(workload, "engine.block_tokens=%u", engine_blocks[i]);
    g_autoptr(Replay) small = replay(workload, "engine.block_tokens=%u engine.num_blocks=%u",
                                     engine_blocks[i], 1600 / engine_blocks[i]);
    g_assert_cmpfloat(share, >, 0.4);
    g_assert_cmpfloat(run->summary->prefix_hit_ratio, <=, share);
    if (engine_blocks[i] <= 16)
      g_assert_cmpfloat(run->summary->prefix_hit_ratio, >=, share - 0.01);
    g_assert_cmpfloat(small->summary->prefix_hit_ratio, <, run->summary->prefix_hit_ratio);
    g_assert_cmpuint(run->summary->hit_tokens, <=, ideal.hit_tokens);
  }
}

/* A lower tier that is never needed changes nothing. */
static void test_idle_tier(void) {
  g_autoptr(Workload) known = generated(4), unknown = generated(4);
  forget_prefixes(unknown);
  static const char *const tiers[] = {"dram", "ssd"};
  for (guint t = 0; t < G_N_ELEMENTS(tiers); t++) {
    g_autoptr(Replay) a = replay(known, "prefix_cache.tier=none");
    g_autoptr(Replay) b = replay(known, "prefix_cache.tier=%s", tiers[t]);
    g_autoptr(Replay) c = replay(unknown, "engine.num_blocks=200");
    g_autoptr(Replay) d = replay(unknown, "engine.num_blocks=200 prefix_cache.tier=%s", tiers[t]);
    g_assert_cmpstr(a->requests_csv, ==, b->requests_csv);
    g_assert_cmpstr(c->requests_csv, ==, d->requests_csv);
    g_assert_cmpstr(c->operations_csv, ==, d->operations_csv);
  }
}

/* A tier that is needed finds what HBM alone has lost. */
static void test_busy_tier(void) {
  g_autoptr(Workload) workload = generated(5);
  g_autoptr(Replay) without = replay(workload, "engine.num_blocks=100");
  g_autoptr(Replay) with = replay(workload, "engine.num_blocks=100 prefix_cache.tier=dram");
  g_assert_cmpuint(with->summary->hit_tokens, >, without->summary->hit_tokens);
  g_assert_cmpfloat(with->summary->lower_tier_hit_ratio, >, 0.0);
  g_assert_cmpfloat(with->summary->fetched_bytes[KV_TIER_DRAM], >, 0.0);
}

/* Blocks so few that loaded prefixes and unfinished prompts crowd one another out: it goes on. */
static void test_tight_tier(void) {
  guint64 loaded = 0, preempted = 0;
  for (guint seed = 0; seed < 40; seed++) {
    KvRandom random;
    kv_random_seed(&random, seed, 5);
    g_autoptr(Workload) workload = workload_random(&random, 50, 600, 30, 50.0, 16, 0.7);
    g_autoptr(Replay) run = replay(
        workload,
        "prefix_cache.tier=dram engine.num_blocks=%d engine.max_batched_tokens=300 "
        "engine.long_prefill_threshold=%d engine.async_scheduling=%s engine.max_seqs=8",
        (int)kv_random_integer(&random, 40, 50), seed % 4 ? 60 : 0, seed % 3 ? "false" : "true");
    assert_sound(run);
    loaded += (guint64)run->summary->fetched_bytes[KV_TIER_DRAM];
    preempted += run->summary->preemptions;
  }
  g_assert_cmpuint(loaded, >, 0);
  g_assert_cmpuint(preempted, >, 0);
}

/* Equal inputs give equal bytes; the seed matters to nothing that is not random. */
static void test_deterministic(void) {
  static const char *const settings[] = {
      "engine.num_blocks=150",
      "engine.num_blocks=150 platform=8xh200 deployment.replicas=4 deployment.router=prefix",
      "engine.num_blocks=150 prefix_cache.tier=dram",
      "use=vllm:preemption_mode=swap engine.num_blocks=150",
      "use=kivi,snapkv model=llama-2-7b",
  };
  for (guint i = 0; i < G_N_ELEMENTS(settings); i++) {
    g_autoptr(Workload) workload = generated(6);
    g_autoptr(Replay) a = replay(workload, "%s", settings[i]);
    g_autoptr(Replay) b = replay(workload, "%s", settings[i]);
    g_autoptr(Replay) c = replay(workload, "%s seed=99", settings[i]);
    g_assert_cmpstr(a->requests_csv, ==, b->requests_csv);
    g_assert_cmpstr(a->operations_csv, ==, b->operations_csv);
    g_assert_cmpstr(a->summary_json, ==, b->summary_json);
    g_assert_cmpstr(a->requests_csv, ==, c->requests_csv);
    g_autoptr(Workload) other = generated(7);
    g_autoptr(Replay) d = replay(other, "%s", settings[i]);
    g_assert_cmpstr(a->requests_csv, !=, d->requests_csv);
  }
}

/* What a run costs the simulator is its decisions; longer answers do not make more of them. */
static void test_decisions(void) {
  g_autoptr(Workload) workload = generated(9);
  g_autoptr(Replay) once = replay(workload, "arrivals.output_scale=1");
  g_autoptr(Replay) twice = replay(workload, "arrivals.output_scale=2");
  g_autoptr(Replay) often = replay(workload, "arrivals.output_scale=16");
  g_assert_cmpuint(twice->summary->steps, >, once->summary->steps);
  g_assert_cmpfloat(twice->n_operations, <=, 1.1 * once->n_operations);
  g_assert_cmpfloat(often->n_operations, <=, 1.1 * once->n_operations);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  for (guint i = 0; i < G_N_ELEMENTS(stacks); i++) {
    g_autofree char *path = g_strdup_printf("/sim/invariants/random/%u:%s", i, stacks[i]);
    g_strdelimit(path + strlen("/sim/invariants/random/"), " /", '+');
    g_test_add_data_func(path, stacks[i], test_random);
  }
  g_test_add_func("/sim/invariants/rejected", test_rejected);
  g_test_add_func("/sim/invariants/evicted-prompts", test_evicted_prompts);
  g_test_add_func("/sim/invariants/bandwidth", test_bandwidth);
  g_test_add_func("/sim/invariants/no-cache", test_no_cache);
  g_test_add_func("/sim/invariants/ideal-hits", test_ideal_hits);
  g_test_add_func("/sim/invariants/idle-tier", test_idle_tier);
  g_test_add_func("/sim/invariants/busy-tier", test_busy_tier);
  g_test_add_func("/sim/invariants/tight-tier", test_tight_tier);
  g_test_add_func("/sim/invariants/decisions", test_decisions);
  g_test_add_func("/sim/invariants/deterministic", test_deterministic);
  return g_test_run();
}
