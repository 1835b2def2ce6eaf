#include <math.h>

#include "models/techniques/quality.h"

static KvQuality *quality_of(const char *text) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvStack) stack = kv_stack_parse(text, &error);
  g_assert_no_error(error);
  return kv_stack_quality(stack);
}

static const KvQualityEstimate *estimate_of(const KvQuality *quality, const char *model,
                                            const char *task) {
  for (guint i = 0; i < quality->estimates->len; i++) {
    const KvQualityEstimate *x = &g_array_index(quality->estimates, KvQualityEstimate, i);
    if (g_str_equal(x->below->model, model) && g_str_equal(x->below->task, task))
      return x;
  }
  return NULL;
}

static void near(double x, double y) {
  g_assert_cmpfloat(fabs(x - y), <, 1e-9);
}

static void test_exact(void) {
  static const char *const stacks[] = {"", "vllm", "hf-eager", "flexgen:wg=100:wc=0"};
  for (guint i = 0; i < G_N_ELEMENTS(stacks); i++) {
    g_autoptr(KvQuality) quality = quality_of(stacks[i]);
    g_assert_true(quality->exact && quality->known);
    near(quality->low, 0.0);
    near(quality->high, 0.0);
  }
  g_autoptr(KvQuality) compressed = quality_of("flexgen:compress_cache:cpu_cache_compute=off");
  g_assert_false(compressed->exact);
}

/* SnapKV's README: LongBench of Mistral-7B 41.45 at 1,024 and 41.99 at 2,048, 42.56 unchanged. */
static void test_interpolates_between_a_papers_points_only(void) {
  g_autoptr(KvQuality) at = quality_of("snapkv:budget=2048");
  const KvQualityEstimate *x = estimate_of(at, "Mistral-7B-Instruct-v0.2", "LongBench 16-task avg");
  g_assert_true(x && x->below == x->above);
  near(x->change, 41.99 / 42.56 - 1.0);
  g_autoptr(KvQuality) between = quality_of("snapkv:budget=1536");
  x = estimate_of(between, "Mistral-7B-Instruct-v0.2", "LongBench 16-task avg");
  g_assert_true(x && x->below != x->above);
  near(x->value, (41.45 + 41.99) / 2.0);
  g_autoptr(KvQuality) outside = quality_of("snapkv:budget=64");
  g_assert_null(estimate_of(outside, "Mistral-7B-Instruct-v0.2", "LongBench 16-task avg"));
  g_assert_false(outside->known);
  g_assert_true(isnan(outside->low));
  g_assert_cmpuint(outside->notes->len, >, 0);
}

/* KIVI's curve along G was measured at 2 bits. */
static void test_other_settings_keep_a_curve_out(void) {
  g_autoptr(KvQuality) usual = quality_of("kivi:bits=2:G=64:R=64");
  g_assert_cmpuint(usual->estimates->len, ==, 1);
  near(g_array_index(usual->estimates, KvQualityEstimate, 0).value, 21.00);
  g_assert_cmpuint(usual->notes->len, ==, 1); /* R is not the points' */
  g_autoptr(KvQuality) both = quality_of("kivi:bits=4:G=64:R=64");
  g_assert_false(both->known);
}

static void test_less_perplexity_is_better(void) {
  g_autoptr(KvQuality) quality = quality_of("flexgen:compress_cache:cpu_cache_compute=off");
  const KvQualityEstimate *x = estimate_of(quality, "OPT-30B", "WikiText ppl");
  g_assert_nonnull(x);
  near(x->change, -(12.9 - 12.72) / 12.72);
}

static void test_a_composition_adds_and_says_so(void) {
  g_autoptr(KvQuality) kivi = quality_of("kivi:bits=4");
  g_autoptr(KvQuality) snapkv = quality_of("snapkv:budget=2048");
  g_autoptr(KvQuality) both = quality_of("snapkv:budget=2048,kivi:bits=4");
  g_assert_true(both->assumed && !kivi->assumed);
  near(both->low, kivi->low + snapkv->low);
  near(both->high, kivi->high + snapkv->high);
  g_autofree char *said = kv_quality_describe(both);
  g_assert_nonnull(strstr(said, "assumption"));
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/quality/exact", test_exact);
  g_test_add_func("/quality/interpolation", test_interpolates_between_a_papers_points_only);
  g_test_add_func("/quality/other-settings", test_other_settings_keep_a_curve_out);
  g_test_add_func("/quality/perplexity", test_less_perplexity_is_better);
  g_test_add_func("/quality/composition", test_a_composition_adds_and_says_so);
  return g_test_run();
}
