#include "sim/engine/summary.h"

#include "sim/engine/instance.h"

#include <math.h>

const char *const kv_latency_names[] = {"queue", "ttft", "tpot", "itl", "e2e", NULL};
const char *const kv_latency_titles[] = {"Queueing", "TTFT", "TPOT", "ITL", "E2E", NULL};

void kv_summary_free(KvSummary *summary) {
  if (!summary)
    return;
  g_free(summary->trace);
  g_free(summary->label);
  g_free(summary->model);
  g_free(summary->platform);
  g_free(summary->quality);
  g_free(summary->quality_detail);
  g_clear_pointer(&summary->timeline, g_array_unref);
  g_free(summary);
}

typedef enum { TEXT, REAL, WHOLE, SMALL, TRUTH } FieldType;

typedef struct {
  const char *key;
  FieldType type;
  gsize offset;
} Field;

/* How a member of KvSummary is written, from its C type; `const char *` and `char *` alike are
 * text. */
#define TYPE_OF(member)                                                                            \
  _Generic(((KvSummary *)0)->member, double : REAL, guint64 : WHOLE, guint : SMALL,                \
           gboolean : TRUTH, char * : TEXT, const char * : TEXT)
#define AS(key, member)                                                                            \
  { key, TYPE_OF(member), G_STRUCT_OFFSET(KvSummary, member) }
#define SAME(member) AS(#member, member)

static const Field head[] = {
    SAME(trace),
    SAME(label),
    SAME(model),
    SAME(platform),
    AS("gpus", n_gpus),
    AS("instances", n_instances),
    SAME(tensor_parallel),
    SAME(executor),
    SAME(calibrated),
    SAME(requests_arrived),
    SAME(requests_finished),
    SAME(requests_rejected),
    SAME(makespan_seconds),
    SAME(prompt_tokens),
    SAME(output_tokens),
    SAME(requests_per_second),
    SAME(prompt_tokens_per_second),
    SAME(output_tokens_per_second),
    SAME(total_tokens_per_second),
};

static const Field service_levels[] = {
    SAME(slo_ttft_seconds),
    SAME(slo_tpot_seconds),
    SAME(goodput_requests_per_second),
    SAME(slo_attainment),
};

static const Field tail[] = {
    SAME(prefix_hit_ratio),
    SAME(lower_tier_hit_ratio),
    SAME(hit_tokens),
    SAME(looked_up_tokens),
    SAME(block_tokens),
    SAME(total_blocks),
    AS("block_bytes_per_gpu", block_bytes),
    AS("cache_bytes_per_gpu", cache_bytes),
    AS("weight_bytes_per_gpu", weight_bytes),
    AS("activation_bytes_per_gpu", activation_bytes),
    SAME(mean_blocks_held_share),
    SAME(peak_blocks_held_share),

    AS("mean_running_sequences", mean_running),
    AS("peak_running_sequences", peak_running),
    AS("mean_waiting_sequences", mean_waiting),
    AS("peak_waiting_sequences", peak_waiting),
    SAME(preemptions),
    SAME(recomputed_tokens),
    SAME(swapped_out_blocks),
    SAME(swapped_in_blocks),
    SAME(steps),
    SAME(busy_share),
    SAME(prefill_busy_share),
    AS("mfu_share", mfu),
    AS("mbu_share", mbu),
    SAME(flops),
    SAME(hbm_bytes),
    SAME(link_bytes),
    AS("peak_flops_per_second", peak_flops_rate),
    AS("peak_hbm_bytes_per_second", peak_hbm_Bps),
    SAME(energy_joules),
    SAME(energy_joules_per_output_token),
    SAME(cost_usd),
    SAME(usd_per_million_output_tokens),
    SAME(carbon_grams),
    SAME(quality),
    SAME(quality_detail),
    AS("quality_relative_change_low", quality_low),
    AS("quality_relative_change_high", quality_high),
};

static const Field pulls[] = {
    SAME(pulled_requests),   SAME(pulled_bytes),         SAME(mean_pull_wait_seconds),
    SAME(mean_pull_seconds), SAME(longest_pull_seconds),
};

/* JSON has no NaN and no infinity: what has no value is null. */
static json_t *real_or_null(double value) {
  return isfinite(value) ? json_real(value) : json_null();
}

static json_t *field_value(const KvSummary *summary, const Field *field) {
  const void *member = G_STRUCT_MEMBER_P(summary, field->offset);
  switch (field->type) {
  case TEXT: {
    const char *text = *(const char *const *)member;
    g_autofree char *valid =
        text ? g_utf8_make_valid(text, -1) : NULL; /* a file name may be anything */
    return valid ? json_string(valid) : json_null();
  }
  case REAL:
    return real_or_null(*(const double *)member);
  case WHOLE:
    return json_integer((json_int_t) * (const guint64 *)member);
  case SMALL:
    return json_integer(*(const guint *)member);
  case TRUTH:
    return json_boolean(*(const gboolean *)member);
  }
  return json_null();
}

static void add_fields(json_t *object, const KvSummary *summary, const Field *fields, guint n) {
  for (guint i = 0; i < n; i++)
    json_object_set_new(object, fields[i].key, field_value(summary, &fields[i]));
}

static json_t *distribution_to_json(const KvDistribution *d) {
  gboolean any = d->n > 0;
  json_t *object = json_object();
  json_object_set_new(object, "n", json_integer((json_int_t)d->n));
  const struct {
    const char *key;
    double value;
  } statistics[] = {
      {"mean", d->mean}, {"p50", d->p50}, {"p90", d->p90}, {"p95", d->p95},
      {"p99", d->p99},   {"min", d->min}, {"max", d->max},
  };
  for (guint i = 0; i < G_N_ELEMENTS(statistics); i++)
    json_object_set_new(object, statistics[i].key,
                        any ? real_or_null(statistics[i].value) : json_null());
  return object;
}

/* A name as a JSON key: "LM head" is lm_head. */
static char *key_of(const char *name) {
  char *key = g_ascii_strdown(name, -1);
  return g_strcanon(key, "abcdefghijklmnopqrstuvwxyz0123456789", '_');
}

static json_t *named_values(const char *const *names, const double *values, guint n) {
  json_t *object = json_object();
  for (guint i = 0; i < n; i++) {
    g_autofree char *key = key_of(names[i]);
    json_object_set_new(object, key, real_or_null(values[i]));
  }
  return object;
}

static void add_service_levels(json_t *object, const KvSummary *summary) {
  gboolean ttft = summary->slo_ttft_seconds > 0, tpot = summary->slo_tpot_seconds > 0;
  const gboolean is_set[] = {ttft, tpot, ttft || tpot, ttft || tpot};
  G_STATIC_ASSERT(G_N_ELEMENTS(is_set) == G_N_ELEMENTS(service_levels));
  for (guint i = 0; i < G_N_ELEMENTS(service_levels); i++)
    json_object_set_new(object, service_levels[i].key,
                        is_set[i] ? field_value(summary, &service_levels[i]) : json_null());
}

static gboolean any_of(const double *values, guint n) {
  for (guint i = 0; i < n; i++)
    if (values[i] != 0)
      return TRUE;
  return FALSE;
}

static json_t *roles_to_json(const KvSummary *summary) {
  json_t *roles = json_array();
  for (guint r = 0; r < summary->n_roles; r++) {
    const KvRoleSummary *role = &summary->roles[r];
    json_array_append_new(
        roles,
        json_pack("{s:s, s:i, s:i, s:I, s:f, s:f, s:f, s:I}", "role",
                  kv_instance_role_names[role->role], "instances", (int)role->instances,
                  "tensor_parallel", (int)role->tensor_parallel, "total_blocks",
                  (json_int_t)role->total_blocks, "busy_share", role->busy_share,
                  "mean_blocks_held_share", role->mean_blocks_held_share, "peak_blocks_held_share",
                  role->peak_blocks_held_share, "steps", (json_int_t)role->steps));
  }
  return roles;
}

json_t *kv_summary_to_json(const KvSummary *summary) {
  g_return_val_if_fail(summary, NULL);
  json_t *object = json_object();
  add_fields(object, summary, head, G_N_ELEMENTS(head));
  for (guint i = 0; i < KV_N_LATENCIES; i++) {
    g_autofree char *key = g_strconcat(kv_latency_names[i], "_seconds", NULL);
    json_object_set_new(object, key, distribution_to_json(&summary->latency[i]));
  }
  add_service_levels(object, summary);
  add_fields(object, summary, tail, G_N_ELEMENTS(tail));
  json_object_set_new(object, "fragmentation_share",
                      summary->compressed ? json_null() : real_or_null(summary->fragmentation));
  const struct {
    const char *key;
    const char *const *names;
    const double *values;
    guint n;
    gboolean if_told; /* left out where the executor does not tell it */
  } named[] = {
      {"fetched_bytes", kv_tier_names, summary->fetched_bytes, KV_N_TIERS, FALSE},
      {"stored_bytes", kv_tier_names, summary->stored_bytes, KV_N_TIERS, FALSE},
      {"component_seconds", kv_component_names, summary->component_seconds, KV_N_COMPONENTS, FALSE},
      {"component_flops", kv_component_names, summary->component_flops, KV_N_COMPONENTS, TRUE},
      {"component_hbm_bytes", kv_component_names, summary->component_bytes, KV_N_COMPONENTS, TRUE},
  };
  for (guint i = 0; i < G_N_ELEMENTS(named); i++)
    if (!named[i].if_told || any_of(named[i].values, named[i].n))
      json_object_set_new(object, named[i].key,
                          named_values(named[i].names, named[i].values, named[i].n));
  if (summary->n_roles > 0) {
    json_object_set_new(object, "roles", roles_to_json(summary));
    add_fields(object, summary, pulls, G_N_ELEMENTS(pulls));
  }
  return object;
}
