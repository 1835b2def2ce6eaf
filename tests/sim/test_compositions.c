/* Every pair of techniques, and a sample of triples: refused with a reason, or a small trace runs
 * to its end with every invariant held. */
#include <math.h>
#include <string.h>

#include "models/techniques/technique.h"
#include "sim/base/error.h"
#include "sim/base/random.h"
#include "sim/engine/simulation.h"

/* Long enough for windows, budgets, flushes and sharing to come into play; two turns of a session,
 * equal prefixes, a prompt of one token. */
static const char trace[] =
    "{\"kvsim_trace\":1,\"block_tokens\":512}\n"
    "{\"timestamp\":0,\"input_length\":3000,\"output_length\":40,\"hash_ids\":[1,2,3,4,5,6]}\n"
    "{\"timestamp\":0,\"input_length\":3000,\"output_length\":300,\"hash_ids\":[1,2,3,4,5,7]}\n"
    "{\"timestamp\":5,\"input_length\":1,\"output_length\":5,\"hash_ids\":[8]}\n"
    "{\"timestamp\":10,\"input_length\":600,\"output_length\":1,\"hash_ids\":[9,10]}\n"
    "{\"timestamp\":4000,\"input_length\":3300,\"output_length\":20,\"hash_ids\":[1,2,3,4,5,6,11]}\n";

static guint n_ran, n_refused;

static KvScenario *scenario_of(const char *use) {
  KvScenario *s = kv_scenario_new();
  g_free(s->model);
  g_free(s->platform);
  g_free(s->use);
  s->model = g_strdup("llama-2-7b");
  s->platform = g_strdup("4xa100-80gb");
  s->use = g_strdup(use);
  return s;
}

/* A refusal names what it expected. */
static void check_refusal(const char *use, const GError *error) {
  if (error->domain != KV_ERROR || error->code != KV_ERROR_USAGE ||
      !strstr(error->message, "expected"))
    g_error("%s: refused by '%s', expected a reason and what was expected", use, error->message);
  n_refused++;
}

static void check_run(const char *use, const KvSetup *setup) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvTraceReader) reader =
      kv_trace_reader_open_memory("trace", trace, strlen(trace), NULL, &error);
  KvSimulateOptions options = {.check = TRUE};
  g_autoptr(KvSummary) s = kv_simulate(setup, reader, &options, &error);
  if (!s)
    g_error("%s: %s", use, error->message);
  if (s->requests_finished + s->requests_rejected != 5 || s->requests_finished == 0)
    g_error("%s: %" G_GUINT64_FORMAT " requests finished", use, s->requests_finished);
  if (!(s->makespan_seconds > 0.0) || !isfinite(s->makespan_seconds) || !(s->flops > 0.0) ||
      !(s->hbm_bytes > 0.0) || !(s->block_bytes > 0.0))
    g_error("%s: a figure is not a positive number", use);
  for (guint c = 0; c < KV_N_COMPONENTS; c++)
    if (!(s->component_seconds[c] >= 0.0))
      g_error("%s: component %u took %g s", use, c, s->component_seconds[c]);
  n_ran++;
}

static void check(const char *use) {
  g_autoptr(KvScenario) scenario = scenario_of(use);
  g_autoptr(GError) error = NULL;
  g_autoptr(KvSetup) setup = kv_setup_new(scenario, TRUE, &error);
  if (setup)
    check_run(use, setup);
  else
    check_refusal(use, error);
}

static guint n_techniques(void) {
  guint n = 0;
  while (kv_techniques[n])
    n++;
  return n;
}

static void test_each_alone(void) {
  for (guint i = 0; kv_techniques[i]; i++) {
    guint before = n_refused;
    check(kv_techniques[i]->id);
    g_assert_cmpuint(n_refused, ==, before); /* its defaults suit a plain model */
  }
}

static void test_pairs(void) {
  for (guint i = 0; kv_techniques[i]; i++)
    for (guint k = 0; kv_techniques[k]; k++) {
      if (i == k)
        continue;
      g_autofree char *use = g_strdup_printf("%s,%s", kv_techniques[i]->id, kv_techniques[k]->id);
      check(use);
    }
  g_test_message("%u stacks ran, %u were refused", n_ran, n_refused);
  g_assert_cmpuint(n_ran, >, 0);
  g_assert_cmpuint(n_refused, >, 0);
}

static void test_triples(void) {
  KvRandom random;
  kv_random_seed(&random, 4, 0);
  gint64 last = (gint64)n_techniques() - 1;
  for (guint i = 0; i < 300; i++) {
    const char *a = kv_techniques[kv_random_integer(&random, 0, last)]->id;
    const char *b = kv_techniques[kv_random_integer(&random, 0, last)]->id;
    const char *c = kv_techniques[kv_random_integer(&random, 0, last)]->id;
    g_autofree char *use = g_strdup_printf("%s,%s,%s", a, b, c);
    check(use);
  }
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/compositions/alone", test_each_alone);
  g_test_add_func("/compositions/pairs", test_pairs);
  g_test_add_func("/compositions/triples", test_triples);
  return g_test_run();
}
