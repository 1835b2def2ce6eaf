/* The prices of the model executor: many steps are the sum of single ones, a step is the sum of its
 * parts, and the whole is what arithmetic says. */
#include "sim/engine/model_executor.h"

#include <math.h>
#include <string.h>

#include "sim/base/random.h"
#include "sim/engine/simulation.h"

/* A set-up and its executor. */
typedef struct {
  KvSetup *setup;
  KvExecutor *executor;
} Priced;

static Priced priced_new(const char *settings) {
  g_autoptr(KvScenario) scenario = kv_scenario_new();
  g_auto(GStrv) words = g_strsplit(settings, " ", -1);
  g_autoptr(GError) error = NULL;
  Priced p;
  for (guint i = 0; words[i]; i++)
    if (*words[i])
      g_assert_true(kv_scenario_set(scenario, words[i], &error));
  p.setup = kv_setup_new(scenario, FALSE, &error);
  g_assert_no_error(error);
  p.executor =
      kv_model_executor_new(p.setup->model, p.setup->plan, &p.setup->curves, p.setup->platform,
                            &p.setup->scenario->engine, p.setup->scenario->tensor_parallel);
  return p;
}

static void priced_clear(Priced *p) {
  p->executor->class->destroy(p->executor);
  kv_setup_free(p->setup);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Priced, priced_clear)

enum { MOST = 32 };

/* Decoding sequences: prompts, and contexts with the next token counted. */
typedef struct {
  guint n;
  double prompt[MOST], context[MOST];
  double values[KV_MAX_CHANNELS], slopes[KV_MAX_CHANNELS];
} Set;

/* The step of the set when each context has grown by `ahead`. *valid is for how many further steps
 * no law bends. */
static KvStep decode_step(const Priced *p, Set *set, double ahead, guint64 repeat, double *valid) {
  KvStep step = {.repeat = repeat, .decode = {.n = set->n}};
  *valid = G_MAXDOUBLE;
  for (guint c = 0; c < p->setup->curves.n_channels; c++) {
    set->values[c] = set->slopes[c] = 0.0;
    for (guint i = 0; i < set->n; i++) {
      double slope, piece;
      set->values[c] += kv_law_value(&p->setup->curves.laws[c], set->context[i] + ahead,
                                     set->prompt[i], TRUE, &slope, &piece);
      set->slopes[c] += slope;
      *valid = MIN(*valid, piece);
    }
  }
  for (guint i = 0; i < set->n; i++) {
    step.decode.context_tokens += set->context[i] + ahead;
    step.decode.longest_tokens = MAX(step.decode.longest_tokens, set->context[i] + ahead);
  }
  step.decode.values = set->values;
  step.decode.slopes = set->slopes;
  return step;
}

static KvStepCost price_one(const Priced *p, const KvStep *step) {
  KvStepCost cost;
  g_assert_true(p->executor->class->step(p->executor, step, &cost, NULL));
  return cost;
}

static Set one_sequence(double context) {
  return (Set){.n = 1, .prompt = {context - 1.0}, .context = {context}};
}

static void random_set(KvRandom *random, Set *set) {
  set->n = (guint)kv_random_integer(random, 1, MOST);
  double longest = exp(kv_random_unit(random) * log(20000.0));
  for (guint i = 0; i < set->n; i++) {
    set->prompt[i] = (double)kv_random_integer(random, 1, 1 + (gint64)longest);
    set->context[i] = set->prompt[i] + (double)kv_random_integer(random, 1, 300);
  }
}

static void assert_near(double a, double b, double share) {
  if (fabs(a - b) > share * fmax(fabs(a), fabs(b)))
    g_error("%.15g is not %.15g within %g", a, b, share);
}

static const char *const stacks[] = {
    "model=llama-3.1-8b",
    "model=llama-3.1-8b platform=4xh200 deployment.tensor_parallel=4",
    "model=llama-3.1-8b platform=a100-80gb engine.cuda_graphs=false",
    "model=llama-3.1-8b use=kivi",
    "model=llama-3.1-8b use=kivi:impl=released",
    "model=llama-3.1-8b use=snapkv:budget=256,kivi:bits=4",
    "model=gemma-3-1b",
    "model=deepseek-v2-lite",
    "model=mixtral-8x7b",
    "model=opt-13b use=flexgen",
    "model=llama-3.1-8b use=h2o",
    "model=opt-13b use=h2o,flexgen:cpu_cache_compute=off",
    "model=llama-3.1-8b use=pyramidkv:budget=256",
    "model=llama-2-7b use=fastgen",
    "model=llama-3.1-8b use=leankv",
    "model=llama-3.1-8b use=retrieval-attention",
    "model=llama-3.1-8b use=shadowkv:sparse_budget=256",
    "model=opt-13b use=infinigen",
    "model=llama-2-7b use=lckv:w=2,quarot",
    "model=llama-3.1-8b use=palu:bits=4:rank_spread=0.2",
    "model=llama-2-7b use=minicache,kivi:bits=4",
    "model=llama-2-7b use=less:impl=released",
    "model=llama-3.1-8b use=dmc,kvquant",
    "model=llama-3.1-8b use=mamba",
    "model=llama-3.1-8b use=goldfinch",
    "model=llama-3.1-8b use=block-transformer",
};

/* Any number of steps of a jump, from one to all, costs what they cost one by one. */
static void test_sum_of_steps(gconstpointer data) {
  g_auto(Priced) p = priced_new(data);
  const KvExecutorClass *class = p.executor->class;
  KvPricing *pricing = class->pricing_new(p.executor);
  KvRandom random;
  guint64 jumped = 0;
  kv_random_seed(&random, 1, g_str_hash(data));
  for (guint run = 0; run < 60; run++) {
    Set set;
    double valid, unused, seconds = 0.0, flops = 0.0, bytes = 0.0;
    KvStepCost cost = {0};
    random_set(&random, &set);
    guint64 wanted = (guint64)exp(kv_random_unit(&random) * log(1000.0));
    decode_step(&p, &set, 0.0, 1, &valid);
    guint64 repeat = (guint64)MIN((double)wanted, valid + 1.0);
    KvStep jump = decode_step(&p, &set, 0.0, repeat, &valid);
    guint64 covered = class->price(p.executor, &jump, pricing);
    guint64 part = (guint64)kv_random_integer(&random, 1, (gint64)covered);
    g_assert_cmpuint(covered, <=, repeat);
    for (guint64 i = 0; i < covered; i++) {
      KvStep single = decode_step(&p, &set, (double)i, 1, &unused);
      KvStepCost one = price_one(&p, &single);
      seconds += one.seconds;
      flops += one.flops;
      bytes += one.hbm_bytes;
      if (i + 1 == part)
        assert_near(class->seconds(pricing, part), seconds, 1e-7);
      if (i + 1 == covered) {
        class->cost(p.executor, pricing, covered, &cost);
        assert_near(cost.last_seconds, one.seconds, 1e-5);
      }
    }
    assert_near(cost.seconds, seconds, 1e-7);
    assert_near(cost.flops, flops, 1e-8);
    assert_near(cost.hbm_bytes, bytes, 1e-8);
    jumped += covered;
  }
  class->pricing_free(pricing);
  g_assert_cmpuint(jumped, >, 300);
}

/* Of a step, components and kernels both make up the whole. */
static void test_parts(gconstpointer data) {
  g_auto(Priced) p = priced_new(data);
  KvRandom random;
  kv_random_seed(&random, 2, g_str_hash(data));
  for (guint run = 0; run < 20; run++) {
    Set set;
    double unused, seconds = 0.0, flops = 0.0, bytes = 0.0, kernels = 0.0;
    random_set(&random, &set);
    KvStep step = decode_step(&p, &set, 0.0, 1, &unused);
    KvChunk chunks[] = {{.past = 100, .tokens = 400, .last = TRUE}, {.past = 0, .tokens = 900}};
    if (run % 2) {
      step.chunks = chunks;
      step.n_chunks = G_N_ELEMENTS(chunks);
    }
    KvStepCost cost = price_one(&p, &step);
    for (guint c = 0; c < KV_N_COMPONENTS; c++) {
      g_assert_cmpfloat(cost.component_seconds[c], >=, 0.0);
      seconds += cost.component_seconds[c];
      flops += cost.component_flops[c];
      bytes += cost.component_bytes[c];
    }
    assert_near(seconds, cost.seconds, 1e-12);
    assert_near(flops, cost.flops, 1e-12);
    assert_near(bytes, cost.hbm_bytes, 1e-12);
    assert_near(cost.first_seconds, cost.seconds, 1e-12);
    g_autoptr(GArray) list = kv_model_executor_kernels(p.executor, &step);
    flops = bytes = 0.0;
    for (guint i = 0; i < list->len; i++) {
      const KvPricedKernel *k = &g_array_index(list, KvPricedKernel, i);
      kernels += k->cost.seconds;
      flops += k->cost.flops;
      bytes += k->cost.bytes;
    }
    assert_near(kernels, cost.seconds, 1e-12);
    assert_near(flops, cost.flops, 1e-12);
    assert_near(bytes, cost.hbm_bytes, 1e-12);
  }
}

/* Of everything, a longer context costs at least as much. */
static void test_longer_costs_more(gconstpointer data) {
  g_auto(Priced) p = priced_new(data);
  double before = 0.0;
  for (guint context = 2; context <= 4096; context += context < 64 ? 1 : context / 8) {
    double unused;
    /* The context is all prompt: what grows is not what a technique defers. */
    Set set = one_sequence(context);
    KvStep step = decode_step(&p, &set, 0.0, 1, &unused);
    double seconds = price_one(&p, &step).seconds;
    if (seconds < before * (1.0 - 1e-9))
      g_error("a context of %u costs %.9g s, one before %.9g s", context, seconds, before);
    before = seconds;
  }
}

/* Decoding one sequence of Llama-3-8B reads all its 8.03e9 parameters but the embedding once, two
 * bytes each: 15.0 GB, at 4.8 TB/s 3.1 ms, and some more. */
static void test_decode_by_hand(void) {
  g_auto(Priced) p = priced_new("model=llama-3-8b platform=h200");
  double unused;
  Set set = one_sequence(1000);
  KvStep step = decode_step(&p, &set, 0.0, 1, &unused);
  KvStepCost cost = price_one(&p, &step);
  double layer = 4096.0 * (4096 + 2 * 1024) + 4096.0 * 4096 + 3.0 * 4096 * 14336;
  double weights = 2.0 * (32.0 * layer + 4096.0 * 128256.0);
  double cache = 1000.0 * 2 * 32 * 8 * 128 * 2; /* 128 KiB a token */
  g_assert_cmpfloat(cost.hbm_bytes, >, weights + cache);
  g_assert_cmpfloat(cost.hbm_bytes, <, 1.02 * (weights + cache));
  double floor_seconds = (weights + cache) / 4.8e12;
  g_assert_cmpfloat(cost.seconds, >, floor_seconds);
  g_assert_cmpfloat(cost.seconds, <, 2.0 * floor_seconds);
  /* Multiplications and additions: two a weight, and for each token of the context two for its key
   * and two for its value in each of 32 heads of 128. */
  assert_near(cost.flops, weights + 1000.0 * 32 * 4 * 32 * 128, 0.01);
}

/* A prompt: two FLOPs a weight and token, the head for one token only; causal attention sees half
 * of each pair. At 989 TFLOP/s. */
static void test_prefill_by_hand(void) {
  g_auto(Priced) p = priced_new("model=llama-3-8b platform=h200");
  KvChunk chunk = {.tokens = 4096, .last = TRUE};
  KvStep step = {.chunks = &chunk, .n_chunks = 1, .repeat = 1};
  KvStepCost cost = price_one(&p, &step);
  double layer = 4096.0 * (4096 + 2 * 1024) + 4096.0 * 4096 + 3.0 * 4096 * 14336;
  double flops = 2.0 * (4096.0 * 32.0 * layer + 4096.0 * 128256.0) +
                 32.0 * 4.0 * 32 * 128 * 4096.0 * 4096.0 / 2.0;
  assert_near(cost.flops, flops, 0.01);
  g_assert_cmpfloat(cost.seconds, >, flops / 989.4e12);
  g_assert_cmpfloat(cost.seconds, <, 2.0 * flops / 989.4e12);
  /* In two chunks the same arithmetic, and more time. */
  KvChunk halves[] = {{.tokens = 2048}, {.past = 2048, .tokens = 2048, .last = TRUE}};
  double seconds = 0.0, parts = 0.0;
  for (guint i = 0; i < 2; i++) {
    KvStep half = {.chunks = &halves[i], .n_chunks = 1, .repeat = 1};
    KvStepCost one = price_one(&p, &half);
    seconds += one.seconds;
    parts += one.flops;
  }
  assert_near(parts, cost.flops, 1e-3);
  g_assert_cmpfloat(seconds, >, cost.seconds);
}

/* What is fetched in short rows beside the step takes as much longer as the link gives less. */
static void test_rows_fetched_beside_the_step(void) {
  g_auto(Priced) whole = priced_new("model=opt-13b use=infinigen:gather_efficiency=1:overlap=on");
  g_auto(Priced) rows = priced_new("model=opt-13b use=infinigen:gather_efficiency=0.1:overlap=on");
  Set set = one_sequence(20001);
  double valid;
  KvStep step = decode_step(&whole, &set, 0.0, 1, &valid);
  const KvLink *link = whole.setup->platform->host_link;
  double up = link->peak_Bps * link->achievable_share;
  /* 40 layers of 2 * 5120 fp16 elements a token; the first fetches all and the others a tenth. */
  double layer = 20001.0 * 2 * 5120 * 2, first = layer / up, others = 39 * 0.1 * layer / up;
  KvStepCost a = price_one(&whole, &step), b = price_one(&rows, &step);
  assert_near(b.seconds, first + others / 0.1, 1e-6);
  g_assert_cmpfloat(a.seconds, <, b.seconds);
  assert_near(a.fetched_bytes[KV_TIER_DRAM], (1 + 3.9) * layer, 1e-9);
  assert_near(b.fetched_bytes[KV_TIER_DRAM], (1 + 3.9) * layer, 1e-9);
}

/* A prompt leaves on the host what of it stays there: all of it, or the slots that H2O keeps. */
static void test_prompt_written_to_the_host(void) {
  static const struct {
    const char *stack;
    double share;
  } cases[] = {{"h2o:hh_ratio=0.05:recent_ratio=0.05,flexgen:wg=100:wc=0:hg=100:hc=0", 0.1},
               {"h2o:hh_ratio=0.3:recent_ratio=0.3,flexgen:wg=100:wc=0:hg=100:hc=0", 0.6}};
  double left[G_N_ELEMENTS(cases)];
  const KvLink *link = NULL;
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++) {
    g_autofree char *settings = g_strdup_printf("model=opt-13b use=%s", cases[i].stack);
    g_auto(Priced) p = priced_new(settings);
    /* Slow enough for the link to be all that counts. */
    p.setup->platform->host_link->peak_Bps = 1e6;
    link = p.setup->platform->host_link;
    KvChunk chunk = {.tokens = 1000, .last = TRUE};
    KvStep step = {.chunks = &chunk, .n_chunks = 1, .repeat = 1};
    left[i] = price_one(&p, &step).seconds * link->peak_Bps * link->achievable_share;
    /* 40 layers of 2 * 5120 fp16 elements and 40 fp16 scores a token. */
    assert_near(left[i], cases[i].share * 1000 * 40 * (2.0 * 5120 * 2 + 40 * 2), 1e-3);
  }
}

/* Two GPUs hold half of each product's weights, and all of the tokens pass between them. */
static void test_tensor_parallel(void) {
  g_auto(Priced) one = priced_new("model=llama-3-8b platform=4xh200");
  g_auto(Priced) two = priced_new("model=llama-3-8b platform=4xh200 deployment.tensor_parallel=2");
  static const KvComponent products[] = {KV_COMPONENT_QKV, KV_COMPONENT_OUTPUT_PROJECTION,
                                         KV_COMPONENT_MLP, KV_COMPONENT_LM_HEAD,
                                         KV_COMPONENT_DECODE_ATTENTION};
  double unused;
  Set set = one_sequence(4000);
  KvStep step = decode_step(&one, &set, 0.0, 1, &unused);
  KvStepCost a = price_one(&one, &step), b = price_one(&two, &step);
  for (guint i = 0; i < G_N_ELEMENTS(products); i++) {
    assert_near(b.component_bytes[products[i]], 0.5 * a.component_bytes[products[i]], 0.01);
    assert_near(b.component_flops[products[i]], 0.5 * a.component_flops[products[i]], 1e-9);
    g_assert_cmpfloat(b.component_seconds[products[i]], <, a.component_seconds[products[i]]);
  }
  g_assert_cmpfloat(a.link_bytes, ==, 0.0);
  assert_near(b.link_bytes, 2.0 * 32 * 4096 * 2, 1e-9); /* two all-reduces a layer */
  g_assert_cmpfloat(b.component_seconds[KV_COMPONENT_COMMUNICATION], >, 0.0);
  g_assert_cmpfloat(b.seconds, <, a.seconds);
}

/* Rows that are computed on after their end cost as much as rows that live. */
static void test_padding(void) {
  g_auto(Priced) p = priced_new("model=llama-3-8b");
  double unused;
  Set one = one_sequence(500), two = {.n = 2, .prompt = {499, 499}, .context = {500, 500}};
  KvStep padded = decode_step(&p, &one, 0.0, 1, &unused);
  padded.decode.padding = 1;
  KvStep full = decode_step(&p, &two, 0.0, 1, &unused);
  assert_near(price_one(&p, &padded).seconds, price_one(&p, &full).seconds, 1e-12);
}

/* A latent cannot be split by heads: each of two GPUs reads all of it, with half of the FLOPs. */
static void test_latent_in_parallel(void) {
  g_auto(Priced) one = priced_new("model=deepseek-v2-lite platform=4xh200");
  g_auto(Priced) two =
      priced_new("model=deepseek-v2-lite platform=4xh200 deployment.tensor_parallel=2");
  double unused;
  Set set = one_sequence(4000);
  KvStep step = decode_step(&one, &set, 0.0, 1, &unused);
  KvStepCost a = price_one(&one, &step), b = price_one(&two, &step);
  KvComponent attention = KV_COMPONENT_DECODE_ATTENTION;
  assert_near(b.component_bytes[attention], a.component_bytes[attention], 1e-9);
  assert_near(b.component_flops[attention], 0.5 * a.component_flops[attention], 1e-9);
}

/* A block's mixer is multiplied by each token: 64 blocks of 4096, 6.25 D^2 and a little each. */
static void test_recurrent_by_hand(void) {
  g_auto(Priced) p = priced_new("model=llama-2-7b platform=h200 use=mamba");
  KvChunk chunk = {.tokens = 1024, .last = TRUE};
  KvStep step = {.chunks = &chunk, .n_chunks = 1, .repeat = 1};
  KvStepCost cost = price_one(&p, &step);
  assert_near(cost.component_flops[KV_COMPONENT_QKV], 2.0 * 1024 * 64 * 6.25 * 4096 * 4096, 0.02);
  assert_near(cost.component_flops[KV_COMPONENT_TECHNIQUE], 1024.0 * 64 * 2 * 4096 * 152, 1e-9);
  g_assert_cmpfloat(cost.component_flops[KV_COMPONENT_MLP], ==, 0.0);
  /* A decode step reads and writes 20 numbers of 2 bytes for each of 8192 channels and 64 blocks.
   */
  double unused;
  Set set = one_sequence(1000);
  KvStep decode = decode_step(&p, &set, 0.0, 1, &unused);
  assert_near(price_one(&p, &decode).component_bytes[KV_COMPONENT_DECODE_ATTENTION],
              2.0 * 64 * 8192 * 20 * 2, 1e-9);
}

static void add(const char *name, const char *stack, GTestDataFunc test) {
  g_autofree char *path = g_strdup_printf("/sim/model-executor/%s/%s", name, stack);
  g_strdelimit(path + strlen("/sim/model-executor/") + strlen(name) + 1, " /", '+');
  g_test_add_data_func(path, stack, test);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  for (guint i = 0; i < G_N_ELEMENTS(stacks); i++) {
    add("sum-of-steps", stacks[i], test_sum_of_steps);
    add("parts", stacks[i], test_parts);
    /* A flush makes a cache smaller; a pyramid, where it begins, makes equal layers unequal. */
    if (!strstr(stacks[i], "kivi") && !strstr(stacks[i], "pyramidkv"))
      add("longer-costs-more", stacks[i], test_longer_costs_more);
  }
  g_test_add_func("/sim/model-executor/decode-by-hand", test_decode_by_hand);
  g_test_add_func("/sim/model-executor/prefill-by-hand", test_prefill_by_hand);
  g_test_add_func("/sim/model-executor/tensor-parallel", test_tensor_parallel);
  g_test_add_func("/sim/model-executor/padding", test_padding);
  g_test_add_func("/sim/model-executor/rows-fetched", test_rows_fetched_beside_the_step);
  g_test_add_func("/sim/model-executor/prompt-written", test_prompt_written_to_the_host);
  g_test_add_func("/sim/model-executor/latent-in-parallel", test_latent_in_parallel);
  g_test_add_func("/sim/model-executor/recurrent-by-hand", test_recurrent_by_hand);
  return g_test_run();
}
