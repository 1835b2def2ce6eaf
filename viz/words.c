#include "viz/words.h"

#include <math.h>
#include <string.h>

#include "viz/figures.h"

/* What a run can be limited by; after LIMIT_KV_MEMORY, what sets the speed of a step. */
typedef enum {
  LIMIT_NOTHING_RAN,
  LIMIT_KV_MEMORY,
  LIMIT_TRANSFERS,
  LIMIT_LAUNCHES,
  LIMIT_COMMUNICATION,
  LIMIT_COMPUTE,
  LIMIT_BANDWIDTH,
} Limit;

static const char *const limit_names[] = {
    [LIMIT_NOTHING_RAN] = "nothing",
    [LIMIT_KV_MEMORY] = "memory for the KV cache",
    [LIMIT_TRANSFERS] = "transfers from lower tiers",
    [LIMIT_LAUNCHES] = "kernel launches and the CPU",
    [LIMIT_COMMUNICATION] = "communication between GPUs",
    [LIMIT_COMPUTE] = "arithmetic",
    [LIMIT_BANDWIDTH] = "memory bandwidth",
};

/* Thresholds chosen for reading, not measured: a queue or a component below them does not shape a
 * run. */
static const double notable_share = 0.1, dominant_component = 0.25, full = 0.95;

static double queue_share(const KvSummary *run) {
  double e2e = run->latency[KV_LATENCY_E2E].mean;
  return e2e > 0 ? run->latency[KV_LATENCY_QUEUE].mean / e2e : 0;
}

static double component_share(const KvSummary *run, KvComponent component) {
  KvComponent order[KV_N_COMPONENTS];
  double total;
  return kv_components_by_time(run, order, &total) ? run->component_seconds[component] / total : 0;
}

static gboolean memory_is_full(const KvSummary *run) {
  return run->peak_blocks_held_share >= full;
}

static gboolean is_queued(const KvSummary *run) {
  return queue_share(run) >= notable_share;
}

static Limit limit_of(const KvSummary *run) {
  static const struct {
    KvComponent component;
    Limit limit;
  } by_component[] = {
      {KV_COMPONENT_TRANSFER, LIMIT_TRANSFERS},
      {KV_COMPONENT_LAUNCH, LIMIT_LAUNCHES},
      {KV_COMPONENT_COMMUNICATION, LIMIT_COMMUNICATION},
  };
  if (run->requests_finished == 0)
    return LIMIT_NOTHING_RAN;
  if (memory_is_full(run) && (is_queued(run) || run->preemptions))
    return LIMIT_KV_MEMORY;
  for (guint i = 0; i < G_N_ELEMENTS(by_component); i++)
    if (component_share(run, by_component[i].component) >= dominant_component)
      return by_component[i].limit;
  return run->mfu >= run->mbu ? LIMIT_COMPUTE : LIMIT_BANDWIDTH;
}

char *kv_words_limit(const KvSummary *run) {
  Limit limit = limit_of(run);
  if (limit == LIMIT_NOTHING_RAN)
    return g_strdup("No request finished");
  if (limit == LIMIT_KV_MEMORY || is_queued(run))
    return g_strdup_printf("Limited by %s", limit_names[limit]);
  /* A decode step keeps a GPU busy however few sequences it has: without a queue, there is room for
   * more load. */
  return g_strdup_printf("It kept up with the load; its pace is set by %s", limit_names[limit]);
}

char *kv_words_platform(const KvSummary *run) {
  GString *text = g_string_new(run->platform ? run->platform : "?");
  for (guint r = 0; r < run->n_roles; r++) {
    const KvRoleSummary *role = &run->roles[r];
    g_string_append_printf(text, "%s%u for %s of TP %u", r ? " and " : ", ", role->instances,
                           r ? "answers" : "prompts", role->tensor_parallel);
  }
  if (run->n_roles > 0)
    return g_string_free(text, FALSE);
  if (run->n_instances > 1)
    g_string_append_printf(text, ", %u replicas", run->n_instances);
  if (run->tensor_parallel > 1)
    g_string_append_printf(text, "%s TP %u", run->n_instances > 1 ? " of" : ",",
                           run->tensor_parallel);
  return g_string_free(text, FALSE);
}

static const char *gpus(const KvSummary *run) {
  return run->n_gpus > 1 ? "GPUs were" : "GPU was";
}

char *kv_words_headline(const KvSummary *run) {
  g_autofree char *where = kv_words_platform(run),
                  *finished = kv_format_whole(run->requests_finished);
  g_autofree char *span = kv_format(KV_UNIT_SECONDS, run->makespan_seconds);
  GString *text = g_string_new(NULL);
  g_string_append_printf(text, "%s on %s served %s request%s in %s", run->model ? run->model : "?",
                         where, finished, run->requests_finished == 1 ? "" : "s", span);
  if (run->requests_finished) {
    g_autofree char *ttft = kv_format(KV_UNIT_SECONDS, run->latency[KV_LATENCY_TTFT].p50);
    g_autofree char *rate = kv_format(KV_UNIT_NONE, run->output_tokens_per_second);
    g_string_append_printf(text, ": a first token after %s (median)", ttft);
    if (run->latency[KV_LATENCY_TPOT].n) {
      g_autofree char *tpot = kv_format(KV_UNIT_SECONDS, run->latency[KV_LATENCY_TPOT].p50);
      g_string_append_printf(text, ", then one every %s", tpot);
    }
    g_string_append_printf(text, "; %s output tokens per second", rate);
  }
  g_string_append(text, ".");
  KvComponent order[KV_N_COMPONENTS];
  double total;
  if (kv_components_by_time(run, order, &total)) {
    g_autofree char *busy = kv_format(KV_UNIT_SHARE, run->busy_share);
    g_autofree char *most = kv_format(KV_UNIT_SHARE, run->component_seconds[order[0]] / total);
    g_string_append_printf(text, " The %s busy for %s of the time, and spent %s of that on: %s.",
                           gpus(run), busy, most, kv_component_titles[order[0]]);
  }
  return g_string_free(text, FALSE);
}

typedef char *(*Sentence)(const KvSummary *run);

static char *say_busy(const KvSummary *run) {
  KvComponent order[KV_N_COMPONENTS];
  double total;
  guint n = kv_components_by_time(run, order, &total);
  if (n == 0)
    return NULL;
  g_autofree char *busy = kv_format(KV_UNIT_SHARE, run->busy_share);
  GString *text = g_string_new(NULL);
  g_string_append_printf(text, "The %s busy for %s of the run", gpus(run), busy);
  for (guint i = 0; i < MIN(n, 3u); i++) {
    g_autofree char *share = kv_format(KV_UNIT_SHARE, run->component_seconds[order[i]] / total);
    g_string_append_printf(text, "%s%s (%s)", i == 0 ? "; the busy time went first to: " : ", ",
                           kv_component_titles[order[i]], share);
  }
  g_autofree char *running = kv_format(KV_UNIT_NONE, run->mean_running);
  g_autofree char *peak = kv_format(KV_UNIT_COUNT, run->peak_running);
  g_string_append_printf(text, ". On average %s sequences ran together, %s at most.", running,
                         peak);
  return g_string_free(text, FALSE);
}

static char *say_roofline(const KvSummary *run) {
  if (!(run->hbm_bytes > 0 && run->peak_hbm_Bps > 0 && run->peak_flops_rate > 0))
    return NULL;
  double intensity = run->flops / run->hbm_bytes, ridge = run->peak_flops_rate / run->peak_hbm_Bps;
  g_autofree char *did = kv_format(KV_UNIT_NONE, intensity),
                  *balance = kv_format(KV_UNIT_NONE, ridge);
  g_autofree char *mfu = kv_format(KV_UNIT_SHARE, run->mfu),
                  *mbu = kv_format(KV_UNIT_SHARE, run->mbu);
  return g_strdup_printf(
      "It did %s FLOPs per byte of HBM traffic; this GPU balances at %s, so on the whole %s. "
      "While busy it reached %s of its peak arithmetic (MFU) and %s of its peak "
      "bandwidth (MBU).",
      did, balance,
      intensity < ridge ? "reading memory costs more time than arithmetic"
                        : "arithmetic costs more time than reading memory",
      mfu, mbu);
}

static char *say_queue(const KvSummary *run) {
  double share = queue_share(run);
  if (!run->requests_finished)
    return NULL;
  g_autofree char *mean = kv_format(KV_UNIT_SECONDS, run->latency[KV_LATENCY_QUEUE].mean);
  g_autofree char *part = kv_format(KV_UNIT_SHARE, share);
  g_autofree char *peak = kv_format(KV_UNIT_SHARE, run->peak_blocks_held_share);
  if (share < 0.01)
    return g_strdup_printf(
        "Queueing hardly mattered: requests waited %s on average before they were scheduled.",
        mean);
  const char *cause =
      memory_is_full(run)
          ? "at its fullest the KV cache was %s in use, so new requests had to wait for blocks"
          : "the KV cache was never more than %s in use, so they waited for a place in the steps: more "
            "arrived than the token budget or the limit on running sequences let in";
  GString *text = g_string_new(NULL);
  g_string_append_printf(
      text, "Requests waited %s on average before they were scheduled, %s of their time; ", mean,
      part);
  const char *place = strstr(cause, "%s");
  g_string_append_len(text, cause, place - cause);
  g_string_append_printf(text, "%s%s.", peak, place + 2);
  return g_string_free(text, FALSE);
}

static char *say_preemptions(const KvSummary *run) {
  if (!run->preemptions)
    return NULL;
  g_autofree char *n = kv_format_whole(run->preemptions);
  g_autofree char *tokens = kv_format(KV_UNIT_COUNT, (double)run->recomputed_tokens);
  double processed = (double)(run->prompt_tokens + run->output_tokens);
  g_autofree char *share =
      kv_format(KV_UNIT_SHARE, processed > 0 ? (double)run->recomputed_tokens / processed : 0);
  if (!run->recomputed_tokens)
    return g_strdup_printf("Memory ran out %s times while requests were running (preemptions).", n);
  return g_strdup_printf(
      "Memory ran out %s times while requests were running (preemptions), and %s tokens had to "
      "be computed again, %s of all tokens.",
      n, tokens, share);
}

static char *say_prefix(const KvSummary *run) {
  if (!run->hit_tokens)
    return NULL;
  g_autofree char *share = kv_format(KV_UNIT_SHARE, run->prefix_hit_ratio);
  g_autofree char *tokens = kv_format(KV_UNIT_COUNT, (double)run->hit_tokens);
  return g_strdup_printf(
      "The prefix cache saved the computation of %s prompt tokens, %s of them all.", tokens, share);
}

static char *say_rejected(const KvSummary *run) {
  if (!run->requests_rejected)
    return NULL;
  g_autofree char *n = kv_format_whole(run->requests_rejected);
  return g_strdup_printf(
      "%s request%s rejected: longer than the model's context or than the whole KV cache.", n,
      run->requests_rejected == 1 ? " was" : "s were");
}

char **kv_words_explain(const KvSummary *run) {
  static const Sentence sentences[] = {say_busy,        say_roofline, say_queue,
                                       say_preemptions, say_prefix,   say_rejected};
  GPtrArray *said = g_ptr_array_new();
  for (guint i = 0; i < G_N_ELEMENTS(sentences); i++) {
    char *text = sentences[i](run);
    if (text)
      g_ptr_array_add(said, text);
  }
  g_ptr_array_add(said, NULL);
  return (char **)g_ptr_array_free(said, FALSE);
}

char *kv_words_change(const KvSummary *baseline, const KvSummary *run) {
  static const struct {
    const char *words;
    gsize offset;
    KvUnit unit;
    int latency;
  } told[] = {
      {"output tokens per second", G_STRUCT_OFFSET(KvSummary, output_tokens_per_second),
       KV_UNIT_NONE, -1},
      {"median TTFT", G_STRUCT_OFFSET(KvSummary, latency[KV_LATENCY_TTFT].p50), KV_UNIT_SECONDS,
       KV_LATENCY_TTFT},
      {"median TPOT", G_STRUCT_OFFSET(KvSummary, latency[KV_LATENCY_TPOT].p50), KV_UNIT_SECONDS,
       KV_LATENCY_TPOT},
      {"energy per output token", G_STRUCT_OFFSET(KvSummary, energy_joules_per_output_token),
       KV_UNIT_JOULES, -1},
  };
  GString *text = g_string_new(NULL);
  for (guint i = 0; i < G_N_ELEMENTS(told); i++) {
    gboolean absent = told[i].latency >= 0 &&
                      (!run->latency[told[i].latency].n || !baseline->latency[told[i].latency].n);
    double was = *(const double *)G_STRUCT_MEMBER_P(baseline, told[i].offset);
    double is = *(const double *)G_STRUCT_MEMBER_P(run, told[i].offset);
    g_autofree char *change = kv_format_change(told[i].unit, absent ? NAN : is, was);
    g_string_append_printf(text, "%s%s %s", i ? ", " : "", told[i].words,
                           strcmp(change, "=") == 0 ? "unchanged" : change);
  }
  return g_string_free(text, FALSE);
}
