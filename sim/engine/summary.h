/* What a run found: everything that the terminal table, summary.json, the plots, the report and
 * `compare` show.
 *
 * One struct, filled once at the end of a run by sim/engine/metrics.c. Definitions of every metric
 * stand in docs/metrics.md. Seconds, tokens, bytes, joules and US dollars.
 */
#ifndef KV_SIM_ENGINE_SUMMARY_H
#define KV_SIM_ENGINE_SUMMARY_H

#include <glib.h>
#include <jansson.h>

#include "models/kernels/kernels.h"
#include "sim/engine/executor.h"

typedef struct {
  guint64 n;
  double mean, p50, p90, p95, p99, min, max;
} KvDistribution;

/* A cumulative distribution for plotting: value at `n` evenly spaced probabilities, from 0 to 1. */
enum { KV_CDF_POINTS = 201 };
typedef struct {
  double value[KV_CDF_POINTS];
} KvCdf;

/* The latencies a request has; in this order everywhere. */
typedef enum {
  KV_LATENCY_QUEUE,
  KV_LATENCY_TTFT,
  KV_LATENCY_TPOT,
  KV_LATENCY_ITL,
  KV_LATENCY_E2E,
  KV_N_LATENCIES,
} KvLatency;

extern const char *const kv_latency_names[];  /* "queue", "ttft", "tpot", "itl", "e2e" */
extern const char *const kv_latency_titles[]; /* "Queueing", "TTFT", ... */

/* State averaged over one interval of the run (time-weighted), and what happened in it. */
typedef struct {
  double start_seconds, seconds;
  double running, waiting; /* sequences */
  double blocks_held, blocks_cached,
      blocks_free;               /* in use; free but still findable; empty. Over all instances */
  double tier_bytes[KV_N_TIERS]; /* prefix cache held on lower tiers */
  double link_bytes, host_bytes; /* moved between GPUs, and over host links, in the interval */
  double prompt_tokens, output_tokens; /* processed in the interval */
  double busy_seconds;                 /* summed over instances */
  double ttft_sum, tpot_sum;           /* of requests that had their first / last token in it */
  guint64 ttft_count, tpot_count, finished, preemptions;
} KvInterval;

/* What instances of one role did, where prompts and answers are computed apart. */
typedef struct {
  guint role; /* KvInstanceRole */
  guint instances, tensor_parallel;
  guint64 total_blocks; /* of one of them */
  double busy_share, mean_blocks_held_share, peak_blocks_held_share;
  guint64 steps;
} KvRoleSummary;

enum { KV_MAX_ROLES = 2 };

typedef struct {
  char *trace, *label;    /* label: the stack or the user's name for it */
  char *model, *platform; /* ids */
  guint n_gpus, n_instances, tensor_parallel;
  gboolean calibrated;
  const char *executor;

  guint64 requests_arrived, requests_finished, requests_rejected;
  double makespan_seconds; /* from the first arrival to the last token */
  guint64 prompt_tokens, output_tokens;
  double requests_per_second, prompt_tokens_per_second, output_tokens_per_second,
      total_tokens_per_second;

  KvDistribution latency[KV_N_LATENCIES];
  KvCdf cdf[KV_N_LATENCIES];

  double slo_ttft_seconds, slo_tpot_seconds; /* 0: not set */
  double goodput_requests_per_second, slo_attainment;

  double
      prefix_hit_ratio; /* prompt tokens found in the cache / prompt tokens, at first admission */
  double lower_tier_hit_ratio; /* prompt tokens loaded from a lower tier / prompt tokens */
  guint64 hit_tokens, looked_up_tokens;

  guint64 block_tokens, total_blocks;
  double block_bytes, cache_bytes, weight_bytes, activation_bytes; /* per GPU */
  double mean_blocks_held_share, peak_blocks_held_share;
  double fragmentation; /* share of held block space that holds no token, time-weighted */
  gboolean compressed;  /* the stack shrinks the cache: fragmentation is not defined */
  double mean_running, peak_running, mean_waiting, peak_waiting;

  guint64 preemptions, recomputed_tokens, swapped_out_blocks, swapped_in_blocks;
  guint64 steps;             /* engine iterations */
  double busy_share;         /* of the GPUs' time */
  double prefill_busy_share; /* of busy time: steps with more prompt than decode tokens */
  double mfu, mbu;           /* model FLOPs and HBM bytes over peak, while busy */
  double component_seconds[KV_N_COMPONENTS];
  double component_flops[KV_N_COMPONENTS],
      component_bytes[KV_N_COMPONENTS]; /* for the roofline picture */
  double flops, hbm_bytes, link_bytes, fetched_bytes[KV_N_TIERS], stored_bytes[KV_N_TIERS];
  double peak_flops_rate, peak_hbm_Bps; /* of one GPU, for the roofline picture */

  double energy_joules, energy_joules_per_output_token; /* facility: PUE included */
  double cost_usd, usd_per_million_output_tokens;
  double carbon_grams;

  guint n_roles; /* 0: every instance does everything */
  KvRoleSummary roles[KV_MAX_ROLES];
  guint64 pulled_requests;
  double pulled_bytes;
  double mean_pull_wait_seconds; /* from the first token until a decode instance pulls the cache */
  double mean_pull_seconds, longest_pull_seconds; /* and until it is there */

  char *quality;                    /* what the stack does to answers: a range, in words */
  char *quality_detail;             /* its ends with their sources, and cautions */
  double quality_low, quality_high; /* relative changes; NaN where nothing is published */

  GArray *timeline; /* of KvInterval */
  double
      simulated_requests_per_second; /* wall clock: speed of the simulator; not written to files */
  double wall_seconds;
} KvSummary;

void kv_summary_free(KvSummary *summary);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvSummary, kv_summary_free)

/* summary.json: every aggregate, units in the names. A new reference. */
json_t *kv_summary_to_json(const KvSummary *summary);

#endif
