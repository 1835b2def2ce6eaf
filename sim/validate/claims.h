/* What papers claim, replayed.
 *
 * A claim file is JSON (models/claims/ID.json, or a user's own): a technique, its paper, and
 * claims. A claim is a figure of a paper together with what it takes to ask the simulator for the
 * same figure: a scenario with the technique, one without it where the figure is a ratio, a
 * workload and a metric. Nothing is fitted to a claim; one set of device files serves all. What
 * cannot be replayed stays in the file with the reason. docs/claims-format.md describes every
 * field.
 *
 * Units: seconds, bytes, tokens; a ratio ("x") is the figure with the technique over the figure
 * without it.
 */
#ifndef KV_SIM_VALIDATE_CLAIMS_H
#define KV_SIM_VALIDATE_CLAIMS_H

#include <glib.h>

#include "models/techniques/technique.h"
#include "sim/scenario.h"

typedef enum {
  KV_CLAIM_PLAN,  /* the cache of sequences at one length, without time */
  KV_CLAIM_STEP,  /* one step */
  KV_CLAIM_BATCH, /* requests of one shape, all at once */
  KV_CLAIM_LOAD,  /* requests that arrive over time */
  KV_N_CLAIM_WORKLOADS,
} KvClaimWorkloadKind;

typedef struct {
  KvClaimWorkloadKind kind;
  guint context_tokens, prompt_tokens, output_tokens;
  char *prompt_lengths, *output_lengths; /* distributions, where not fixed; else NULL */
  guint shared_tokens;        /* that all prompts begin with, of their length; batch and load */
  guint batch, batch_without; /* 0: what memory holds */
  gboolean prefill;           /* of a step */
  char *trace;                /* id of a preset of traces */
  guint64 requests;
  double rate; /* requests/s; 0: the metric searches for it */
  double slo_ttft_seconds, slo_tpot_seconds, attainment; /* goodput */
  double latency_per_token_seconds;                      /* sustained_rate */
} KvClaimWorkload;

typedef struct KvClaimMetric KvClaimMetric;

typedef struct {
  char *place; /* FILE, and the claim's id: for errors */
  char *technique, *paper, *id;
  char *metric_name, *unit, *source;
  char *unsaid, *assumed, *found; /* NULL where there is nothing to say */
  char *cannot;                   /* why it cannot be replayed; then the rest below is unset */
  double claimed;
  gboolean is_ratio;
  const KvClaimMetric *metric;
  KvClaimWorkload workload;
  KvScenario *with, *without;
} KvClaim;

void kv_claim_free(KvClaim *claim);

/* Append the claims of the file at `path`, or of the built-in file of the technique `name`. */
gboolean kv_claims_load(const char *path, GPtrArray *claims, GError **error);
gboolean kv_claims_builtin(const char *technique, GPtrArray *claims, GError **error);
/* Techniques that have a built-in file, sorted; free with g_strfreev(). */
char **kv_claims_techniques(void);

struct KvClaimMetric {
  const char *name;
  KvClaimWorkloadKind kind;
  const char *help;
};
extern const KvClaimMetric kv_claim_metrics[]; /* ends with name NULL */

typedef struct {
  const KvClaim *claim;
  double with, without; /* the metric of each; NAN where it was not needed or failed */
  double simulated;     /* what stands beside the claimed value; NAN if it could not be had */
  char *problem;        /* why not, or NULL */
} KvClaimResult;

typedef enum {
  KV_VERDICT_CLOSE, /* within 15 % */
  KV_VERDICT_NEAR,  /* within 30 % */
  KV_VERDICT_OFF,
  KV_VERDICT_NOT_REPLAYED,
  KV_VERDICT_FAILED,
} KvVerdict;
extern const char *const kv_verdict_names[];

/* Replay one claim. Only an interruption is an error; whatever else goes wrong is the result's
 * problem. Clear the result with kv_claim_result_clear(). */
gboolean kv_claim_replay(const KvClaim *claim, const volatile gint *interrupted,
                         KvClaimResult *result, GError **error);
void kv_claim_result_clear(KvClaimResult *result);
KvVerdict kv_claim_verdict(const KvClaimResult *result);

/* How well the results agree: counts, and |log(simulated / claimed)| over those replayed. */
typedef struct {
  guint n, replayed, within_15, within_30;
  double median_error, bias; /* |log ratio| and log ratio, as fractions */
} KvClaimSummary;
KvClaimSummary kv_claims_summarize(const GArray *results);

/* Tables of results (KvClaimResult), grouped by survey section; newly allocated. */
char *kv_claims_table(const GArray *results, gboolean details);
char *kv_claims_markdown(const GArray *results);
json_t *kv_claims_to_json(const GArray *results);

#endif
