/* What the tests of techniques share: two models by hand, a stack applied to one, and a refusal. */
#ifndef KV_TESTS_MODELS_APPLIED_H
#define KV_TESTS_MODELS_APPLIED_H

#include <string.h>

#include "models/techniques/technique.h"

/* Models by hand, so that no figure here depends on the catalogue. */
static KvLayerGroup group G_GNUC_UNUSED;

static inline KvModel model_of(const char *id, guint layers, guint heads, guint kv_heads) {
  group = (KvLayerGroup){.count = layers,
                         .attention = {.kind = KV_ATTENTION_FULL,
                                       .n_heads = heads,
                                       .n_kv_heads = kv_heads,
                                       .head_dim = 128,
                                       .value_head_dim = 128}};
  return (KvModel){.id = (char *)id,
                   .hidden = 4096,
                   .vocab = 32000,
                   .embedding_dim = 4096,
                   .max_context_tokens = 4096,
                   .weight_dtype = KV_DTYPE_FP16,
                   .n_groups = 1,
                   .groups = &group};
}

static inline KvModel llama2_7b(void) {
  return model_of("llama-2-7b", 32, 32, 32);
}

static inline KvModel llama3_8b(void) {
  return model_of("llama-3-8b", 32, 32, 8);
}

/* A copy that architecture techniques may change; kept reachable to the end of the test. */
static inline KvModel *own_copy(const KvModel *model) {
  static GPtrArray *copies;
  if (!copies)
    copies = g_ptr_array_new();
  KvModel *copy = kv_model_copy(model);
  g_ptr_array_add(copies, copy);
  return copy;
}

typedef struct {
  KvModel model;
  KvPlan *plan;
  KvPlanCurves curves;
  KvEngineConfig config;
} Applied;

static inline Applied apply(KvModel model, const char *text) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvStack) stack = kv_stack_parse(text, &error);
  g_assert_no_error(error);
  KvModel *owned = own_copy(&model);
  Applied x = {0};
  kv_engine_config_init(&x.config);
  x.plan = kv_stack_apply(stack, owned, KV_DTYPE_FP16, &x.config, &error);
  g_assert_no_error(error);
  x.model = *owned;
  g_assert_true(kv_plan_compile(x.plan, &x.curves, &error));
  return x;
}

static inline KvPlanCost cost(const Applied *x, double n, double prompt) {
  return kv_plan_cost(x->plan, &x->curves, n, prompt, TRUE);
}

static inline double hbm_bytes(KvModel model, const char *text, double n, double prompt) {
  Applied x = apply(model, text);
  double bytes = cost(&x, n, prompt).resident_bytes[KV_TIER_HBM];
  kv_plan_free(x.plan);
  return bytes;
}

static inline const KvWork *work_of(const Applied *x, const char *name) {
  for (guint i = 0; i < x->plan->work->len; i++)
    if (strcmp(g_array_index(x->plan->work, KvWork, i).name, name) == 0)
      return &g_array_index(x->plan->work, KvWork, i);
  g_assert_not_reached();
}

static inline void refused(KvModel model, const char *text, const char *message) {
  g_autoptr(GError) error = NULL;
  g_autoptr(KvStack) stack = kv_stack_parse(text, &error);
  KvEngineConfig config;
  kv_engine_config_init(&config);
  g_autoptr(KvPlan) plan = NULL;
  if (stack)
    plan = kv_stack_apply(stack, own_copy(&model), KV_DTYPE_FP16, &config, &error);
  g_assert_null(plan);
  g_assert_nonnull(error);
  g_assert_cmpstr(error->message, ==, message);
}

#endif
