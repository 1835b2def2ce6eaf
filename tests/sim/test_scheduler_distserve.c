/* DistServe's two schedulers and the pull between them, decision by decision, on examples small
 * enough to follow by hand. Instance 0 (and 1, where there are two) computes prompts. */
#include <math.h>

#include "replay.h"

#define STEPS " platform=4xh200 engine.step_by_step=true "

/* The operations of one instance, as replay_shape() writes them. */
static void assert_instance(const Replay *run, guint instance, const char *expected) {
  g_autoptr(GString) text = g_string_new(NULL);
  for (guint i = 0; i < run->n_operations; i++) {
    const Operation *o = &run->operations[i];
    if (o->instance == instance)
      g_string_append_printf(text, "%s%u:%u:%u", text->len ? " " : "", (guint)o->chunks,
                             (guint)o->chunk_tokens, (guint)o->decodes);
  }
  g_assert_cmpstr(text->str, ==, expected);
}

/* Whole prompts in order up to the budget, one beyond it alone; the batch has a limit of its own.
 */
static void test_prompts(void) {
  g_autoptr(Workload) workload = workload_new(0);
  const guint32 prompts[] = {60, 41, 10, 150, 5};
  for (guint i = 0; i < G_N_ELEMENTS(prompts); i++)
    workload_add(workload, 0.0, prompts[i], 1, -1, 0);
  g_autoptr(Replay) budget = replay(workload, "use=distserve:prefill_max_tokens=100" STEPS);
  assert_instance(budget, 0, "1:60:0 2:51:0 1:150:0 1:5:0");
  assert_instance(budget, 1, ""); /* answers of one token need no decoding */
  g_autoptr(Replay) exact = replay(workload, "use=distserve:prefill_max_tokens=101" STEPS);
  assert_instance(exact, 0, "2:101:0 1:10:0 1:150:0 1:5:0");
  g_autoptr(Replay) few = replay(workload, "use=distserve:prefill_max_batch=2" STEPS);
  assert_instance(few, 0, "2:101:0 2:160:0 1:5:0");
}

/* A prompt goes where the fewest prompt tokens are queued; its answer to the least loaded. */
static void test_dispatch(void) {
  g_autoptr(Workload) workload = workload_new(0);
  const guint32 prompts[] = {100, 10, 20, 30};
  for (guint i = 0; i < G_N_ELEMENTS(prompts); i++)
    workload_add(workload, 0.0, prompts[i], 2, -1, 0);
  g_autoptr(Replay) run =
      replay(workload, "use=distserve:prefill_instances=2:decode_instances=2" STEPS);
  assert_instance(run, 0, "1:100:0");
  assert_instance(run, 1, "3:60:0");
  guint on[4] = {0};
  for (guint i = 0; i < run->n; i++)
    on[run->outcomes[i].instance]++;
  g_assert_cmpuint(on[2], ==, 2);
  g_assert_cmpuint(on[3], ==, 2);
}

/* 20 blocks on each side, prompts of 4, one sequence decodes at a time. 0 is pulled and runs; 1 is
 * pulled, since nothing waits; 2 is not, because 1 holds 4 blocks and a twentieth is 1. So 2 to 6
 * fill the prefill side, and 7 is computed only when 0 is done, 1 runs and 2 has been pulled. */
static void test_pull(void) {
  g_autoptr(Workload) workload = workload_new(0);
  for (guint i = 0; i < 8; i++)
    workload_add(workload, 0.0, 64, 100, -1, 0);
  g_autoptr(Replay) run = replay(
      workload, "use=distserve:decode_max_batch=1:prefill_max_batch=1 engine.num_blocks=20" STEPS);
  const Outcome *o = run->outcomes;
  g_assert_cmpfloat(o[6].scheduled, <, o[0].last);
  g_assert_cmpfloat(o[7].scheduled, >, o[0].last);
  g_assert_cmpfloat(o[7].scheduled, <, o[1].last);
  /* With half of the blocks, 0 to 3 are pulled (1 and 2 hold 8 < 10) and the last prompt waits for
   * nobody. */
  g_autoptr(Replay) half =
      replay(workload, "use=distserve:decode_max_batch=1:prefill_max_batch=1:pull_threshold=0.5 "
                       "engine.num_blocks=20" STEPS);
  g_assert_cmpfloat(half->outcomes[7].scheduled, <, half->outcomes[0].last);
  /* First come, first served on both sides. */
  for (guint i = 1; i < 8; i++)
    g_assert_cmpfloat(o[i - 1].last, <, o[i].last);
  g_assert_cmpuint(run->summary->pulled_requests, ==, 8);
  /* Four blocks of 16 tokens each. */
  g_assert_cmpfloat_with_epsilon(run->summary->pulled_bytes, 8 * 4 * run->setup->demand.block_bytes,
                                 1.0);
}

/* Two sequences outgrow the 10 blocks: the last is swapped out with its 5 blocks when both are to
 * take a sixth, and comes back when the first is done. */
static void test_swap(void) {
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 63, 40, -1, 0);
  workload_add(workload, 0.0, 63, 40, -1, 0);
  g_autoptr(Replay) run =
      replay(workload, "use=distserve engine.num_blocks=10 deployment.pull_share=0.5" STEPS);
  g_assert_cmpuint(run->outcomes[0].preemptions, ==, 0);
  g_assert_cmpuint(run->outcomes[1].preemptions, ==, 1);
  g_assert_cmpuint(run->summary->swapped_out_blocks, ==, 5);
  g_assert_cmpuint(run->summary->swapped_in_blocks, ==, 5);
  g_assert_cmpuint(run->summary->recomputed_tokens, ==, 0);
  /* Without swap space it is computed again, by the decode instance. */
  g_autoptr(Replay) again =
      replay(workload, "use=distserve:swap_space=0 engine.num_blocks=10" STEPS);
  g_assert_cmpuint(again->outcomes[1].preemptions, ==, 1);
  g_assert_cmpuint(again->summary->recomputed_tokens, >, 63);
  g_assert_cmpuint(again->summary->swapped_out_blocks, ==, 0);
}

/* In a node the cache crosses the links between GPUs, between nodes the network; with two GPUs on
 * each side, over two ports. */
static void test_links(void) {
  static const struct {
    const char *platform;
    gboolean network;
  } cases[] = {{"4xh200", FALSE}, {"2x2xh200", TRUE}};
  for (guint c = 0; c < G_N_ELEMENTS(cases); c++) {
    g_autoptr(Workload) workload = workload_new(0);
    workload_add(workload, 0.0, 1600, 10, -1, 0);
    g_autoptr(Replay) run =
        replay(workload, "use=distserve:prefill_tp=2:decode_tp=2 platform=%s", cases[c].platform);
    const KvPlatform *p = run->setup->platform;
    const KvLink *link = cases[c].network ? p->network : p->gpu_link;
    double seconds =
        link->latency_seconds + 100 * link->per_copy_seconds +
        100 * run->setup->demand.block_bytes / (2 * link->peak_Bps * link->achievable_share);
    g_assert_cmpfloat_with_epsilon(run->summary->mean_pull_seconds, seconds, 1e-9);
    g_assert_cmpuint(run->summary->n_gpus, ==, 4);
    g_assert_cmpuint(run->summary->roles[1].tensor_parallel, ==, 2);
  }
}

/* The two sides are memories of their own: what tensor parallelism leaves beside the weights. */
static void test_roles(void) {
  g_autoptr(Workload) workload = workload_new(0);
  for (guint i = 0; i < 20; i++)
    workload_add(workload, 0.01 * i, 500, 100, -1, 0);
  g_autoptr(Replay) run = replay(workload, "use=distserve:prefill_tp=2 platform=4xh200");
  const KvRoleSummary *prefill = &run->summary->roles[0], *decode = &run->summary->roles[1];
  g_assert_cmpuint(prefill->total_blocks, >, 2 * decode->total_blocks);
  g_assert_cmpuint(run->summary->n_gpus, ==, 3);
  g_assert_cmpfloat(decode->busy_share, >, prefill->busy_share);
  g_assert_cmpuint(prefill->steps + decode->steps, ==, run->summary->steps);
  g_assert_cmpfloat_with_epsilon(run->summary->busy_share,
                                 (2 * prefill->busy_share + decode->busy_share) / 3, 1e-12);
  /* Every token after the first has a gap: 20 sequences of 99. */
  g_assert_cmpuint(run->summary->latency[KV_LATENCY_ITL].n, ==, (guint64)20 * 99);
}

static void test_refused(void) {
  static const struct {
    const char *settings, *message;
  } cases[] = {
      {"engine.scheduler=distserve",
       "prompts and answers on instances of their own: expected deployment.prefill_instances and "
       "deployment.decode_instances of at least 1"},
      {"deployment.prefill_instances=1 deployment.decode_instances=1",
       "prompts and answers on instances of their own: expected engine.scheduler=distserve"},
      {"use=distserve deployment.replicas=2 platform=4xh200",
       "prompts and answers on instances of their own: expected deployment.replicas, "
       "data_parallel and context_parallel of 1"},
      {"use=distserve executor=host model=pythia-160m platform=2xh200",
       "prompts and answers on instances of their own: expected executor=model"},
      {"use=distserve:prefill_tp=3 platform=4xh200",
       "tensor parallelism 3 of prefill instances does not divide the 32 heads of llama-3.1-8b, "
       "expected a divisor"},
      {"use=distserve:prefill_tp=2 platform=2xh200",
       "1 prefill instances of 2 GPUs and 1 decode instances of 1 have no room on platform 2xh200 "
       "(2 GPUs a node, 1 nodes), expected a larger platform such as 3xh200"},
      {"use=distserve,vllm platform=2xh200",
       "vllm: scheduling and memory are already those of distserve, expected one serving system"},
  };
  g_autoptr(Workload) workload = workload_new(0);
  workload_add(workload, 0.0, 10, 2, -1, 0);
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autoptr(GError) error = NULL;
    g_autoptr(Replay) run = replay_try(workload, cases[i].settings, &error);
    g_assert_null(run);
    g_assert_cmpstr(error->message, ==, cases[i].message);
  }
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/sim/distserve/prompts", test_prompts);
  g_test_add_func("/sim/distserve/dispatch", test_dispatch);
  g_test_add_func("/sim/distserve/pull", test_pull);
  g_test_add_func("/sim/distserve/swap", test_swap);
  g_test_add_func("/sim/distserve/links", test_links);
  g_test_add_func("/sim/distserve/roles", test_roles);
  g_test_add_func("/sim/distserve/refused", test_refused);
  return g_test_run();
}
