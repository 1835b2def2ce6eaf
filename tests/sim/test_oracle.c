/* What is generated does not depend on how it is served: a small transformer computes every step
 * through the block tables that the engine decided, and every run must give the same tokens. */
#include "replay.h"

#include <glib/gstdio.h>
#include <string.h>

static const char model_json[] =
    "{\"model_type\": \"llama\", \"hidden_size\": 64, \"intermediate_size\": 96,"
    " \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"num_hidden_layers\": 2,"
    " \"vocab_size\": 199, \"max_position_embeddings\": 512, \"torch_dtype\": \"float32\"}";

static char *model_path;
static Replay *plain; /* everything at leisure: what the others are compared with */

/* Bursts that queue, prompts that continue one another, answers of one token and of many. */
static Workload *workload_make(void) {
  KvRandom random;
  kv_random_seed(&random, 7, 0);
  return workload_random(&random, 24, 90, 30, 400.0, 16, 0.6);
}

static Replay *run_with(const Workload *workload, const char *settings) {
  return replay(workload, "model=%s executor=host seed=5 engine.max_model_len=128 %s", model_path,
                settings);
}

typedef struct {
  const char *name, *settings;
  gboolean preempts;
  gint hits; /* some, none, or (negative) either */
} Case;

static const Case cases[] = {
    {"chunks-of-7", "engine.max_batched_tokens=7", FALSE, TRUE},
    {"chunks-of-16", "engine.max_batched_tokens=16", FALSE, TRUE},
    {"chunks-of-64", "engine.max_batched_tokens=64", FALSE, TRUE},
    {"long-prefill-threshold", "engine.long_prefill_threshold=5", FALSE, TRUE},
    {"whole-prompts", "engine.chunked_prefill=false", FALSE, TRUE},
    {"no-prefix-caching", "engine.prefix_caching=false", FALSE, FALSE},
    {"no-prefix-caching-chunks", "engine.prefix_caching=false engine.max_batched_tokens=10", FALSE,
     FALSE},
    {"synchronous", "engine.async_scheduling=false", FALSE, TRUE},
    {"one-at-a-time", "engine.max_seqs=1", FALSE, TRUE},
    {"blocks-of-1", "engine.block_tokens=1 engine.num_blocks=2000", FALSE, TRUE},
    {"blocks-of-4", "engine.block_tokens=4 engine.num_blocks=500", FALSE, TRUE},
    {"blocks-of-32", "engine.block_tokens=32 engine.num_blocks=100", FALSE, TRUE},
    {"blocks-of-3", "engine.block_tokens=3 engine.num_blocks=600 engine.prefix_caching=false",
     FALSE, FALSE},
    {"few-blocks", "engine.num_blocks=18", TRUE, TRUE},
    {"few-blocks-chunks", "engine.num_blocks=18 engine.max_batched_tokens=24", TRUE, TRUE},
    {"few-blocks-sync", "engine.num_blocks=18 engine.async_scheduling=false", TRUE, TRUE},
    {"few-blocks-no-caching", "engine.num_blocks=18 engine.prefix_caching=false", TRUE, FALSE},
    {"few-blocks-of-1",
     "engine.block_tokens=1 engine.num_blocks=280 engine.reserve_full_prompt=false "
     "engine.max_batched_tokens=30",
     TRUE, TRUE},
    {"few-blocks-of-32", "engine.block_tokens=32 engine.num_blocks=9", TRUE, TRUE},
    {"three-replicas", "platform=8xh200 deployment.replicas=3", FALSE, -1},
    {"three-replicas-prefix",
     "platform=8xh200 deployment.replicas=3 deployment.router=prefix engine.num_blocks=9", FALSE,
     TRUE},
    {"closed-loop", "arrivals.mode=closed arrivals.concurrency=5", FALSE, TRUE},
    {"vllm-2023", "use=vllm:swap_space=0.001", FALSE, FALSE},
    {"vllm-2023-few-blocks", "use=vllm:swap_space=0.001 engine.num_blocks=20", TRUE, FALSE},
    {"vllm-2023-mixed", "use=vllm:version=2023-mixed:swap_space=0.001", FALSE, FALSE},
    {"vllm-2023-mixed-few-blocks",
     "use=vllm:version=2023-mixed:swap_space=0.001 engine.num_blocks=20", TRUE, FALSE},
    {"vllm-2023-swap", "use=vllm:preemption_mode=swap:swap_space=0.001 engine.num_blocks=20", TRUE,
     FALSE},
    {"vllm-2023-mixed-swap",
     "use=vllm:version=2023-mixed:swap_space=0.001:preemption_mode=swap engine.num_blocks=20", TRUE,
     FALSE},
    {"lower-tier", "prefix_cache.tier=dram prefix_cache.tier_GB=0.001 engine.num_blocks=12", FALSE,
     TRUE},
    {"lower-tier-small",
     "prefix_cache.tier=dram prefix_cache.tier_GB=0.0001 engine.num_blocks=12 "
     "engine.async_scheduling=false engine.max_batched_tokens=20",
     FALSE, TRUE},
    {"lower-tier-blocks-of-4",
     "prefix_cache.tier=dram prefix_cache.tier_GB=0.001 engine.num_blocks=48 "
     "engine.block_tokens=4",
     FALSE, TRUE},
    {"lower-tier-file", "prefix_cache.tier=ssd prefix_cache.tier_GB=0.001 engine.num_blocks=12",
     FALSE, TRUE},
    {"lower-tier-file-small",
     "prefix_cache.tier=ssd prefix_cache.tier_GB=0.0001 engine.num_blocks=12 "
     "engine.async_scheduling=false engine.max_batched_tokens=20",
     FALSE, TRUE},
    {"orca-max", "use=orca", FALSE, FALSE},
    {"orca-pow2", "use=orca:reservation=pow2", FALSE, FALSE},
    {"orca-oracle", "use=orca:reservation=oracle", FALSE, FALSE},
    {"static", "engine.scheduler=static", FALSE, FALSE},
    {"static-batch", "engine.scheduler=static engine.static_batch=3", FALSE, FALSE},
    {"flexgen", "engine.scheduler=flexgen engine.gpu_batch=2 engine.n_gpu_batches=2", FALSE, FALSE},
    {"flexgen-streamed",
     "use=flexgen:gbs=2:num_gpu_batches=2:cg=0:cc=100:hg=100:hc=0:cpu_cache_compute=off", FALSE,
     FALSE},
    {"flexgen-cpu", "use=flexgen:gbs=2:num_gpu_batches=2:hg=100:hc=0", FALSE, FALSE},
    {"flexgen-shares",
     "use=flexgen:gbs=3:num_gpu_batches=1:cg=35:cc=65:hg=100:hc=0:cpu_cache_compute=off "
     "engine.block_tokens=8 engine.num_blocks=90",
     FALSE, FALSE},
};

static void test_case(gconstpointer data) {
  const Case *c = data;
  g_autoptr(Workload) workload = workload_make();
  g_autofree char *settings = g_strconcat("engine.num_blocks=64 ", c->settings, NULL);
  if (!plain)
    plain = run_with(workload, "engine.num_blocks=400");
  g_autoptr(Replay) other = run_with(workload, settings);
  g_assert_cmpuint(plain->summary->preemptions, ==, 0);
  g_assert_cmpuint(other->summary->requests_finished, ==, other->n);
  if (strstr(c->name, "swap"))
    g_assert_cmpuint(other->summary->swapped_in_blocks, >, 0);
  if (strstr(c->name, "lower-tier"))
    g_assert_cmpfloat(other->summary->lower_tier_hit_ratio, >, 0.0);
  if (c->preempts)
    g_assert_cmpuint(other->summary->preemptions, >, 0);
  if (c->hits > 0)
    g_assert_cmpuint(other->summary->hit_tokens, >, 0);
  if (c->hits == 0)
    g_assert_cmpuint(other->summary->hit_tokens, ==, 0);
  for (guint i = 0; i < plain->n; i++) {
    const GArray *a = plain->outcomes[i].tokens, *b = other->outcomes[i].tokens;
    g_assert_cmpuint(a->len, ==, plain->outcomes[i].output_tokens);
    g_assert_cmpmem(b->data, b->len * sizeof(guint32), a->data, a->len * sizeof(guint32));
  }
}

/* The oracle can tell: other prompts and other weights give other tokens. */
static void test_sensitive(void) {
  g_autoptr(Workload) workload = workload_make();
  g_autoptr(Replay) a = run_with(workload, "engine.num_blocks=400");
  g_autoptr(Replay) b = run_with(workload, "engine.num_blocks=400 seed=6");
  guint different = 0, distinct = 0;
  for (guint i = 0; i < a->n; i++) {
    const GArray *x = a->outcomes[i].tokens, *y = b->outcomes[i].tokens;
    different += memcmp(x->data, y->data, x->len * sizeof(guint32)) != 0;
    distinct += i > 0 && g_array_index(x, guint32, 0) !=
                             g_array_index(a->outcomes[i - 1].tokens, guint32, 0);
  }
  g_assert_cmpuint(different, >, a->n / 2);
  g_assert_cmpuint(distinct, >, a->n / 2);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_autofree char *folder = g_dir_make_tmp("kvsim-oracle-XXXXXX", NULL);
  model_path = g_build_filename(folder, "tiny.json", NULL);
  g_assert_true(g_file_set_contents(model_path, model_json, -1, NULL));
  g_test_add_func("/sim/oracle/sensitive", test_sensitive);
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autofree char *path = g_strconcat("/sim/oracle/", cases[i].name, NULL);
    g_test_add_data_func(path, &cases[i], test_case);
  }
  int status = g_test_run();
  g_clear_pointer(&plain, replay_free);
  g_unlink(model_path);
  g_rmdir(folder);
  g_free(model_path);
  return status;
}
