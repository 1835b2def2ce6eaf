/* Made traces: arrivals, lengths, shared prompts and sessions from distributions, the same for the
 * same seed.
 *
 * Single calls (turns_mean 1) arrive at times of their own (KV_TRACE_TIMED). With more turns a
 * trace of sessions results: a turn's prompt is the one before, its answer, and new tokens; it
 * comes after a think time. What starts at the given rate are then the sessions. Arrivals, lengths,
 * sessions and sharing draw from streams of their own, so changing one leaves the others as they
 * were. */
#ifndef KV_TRACES_GENERATE_H
#define KV_TRACES_GENERATE_H

#include "traces/trace.h"

typedef enum {
  KV_ARRIVALS_POISSON,
  KV_ARRIVALS_GAMMA,   /* gaps of coefficient of variation `cv` */
  KV_ARRIVALS_WEIBULL, /* gaps of shape `shape` */
  KV_ARRIVALS_CONSTANT,
  KV_ARRIVALS_AT_ONCE, /* all at 0 */
} KvArrivalsKind;

typedef struct {
  KvArrivalsKind kind;
  double rate_rps, cv, shape;
} KvArrivals;

typedef enum {
  KV_LENGTHS_FIXED,     /* a */
  KV_LENGTHS_UNIFORM,   /* whole numbers from a to b */
  KV_LENGTHS_LOGNORMAL, /* mean a, median b (a >= b) */
  KV_LENGTHS_QUANTILES, /* log-linear between the points of `quantiles` */
} KvLengthsKind;

typedef struct {
  double share, value; /* this share of the values is at most `value` */
} KvQuantilePoint;

typedef struct {
  KvLengthsKind kind;
  double a, b;
  const KvQuantilePoint *quantiles; /* ascending, from share 0 to 1; borrowed */
  guint n_quantiles;
  guint32 largest_tokens; /* a longer draw is cut to it; 0 is no limit */
} KvLengths;

typedef struct {
  guint64 n_requests, seed;
  guint32 block_tokens; /* 0: no prefix blocks */
  KvArrivals arrivals;
  KvLengths input_tokens, output_tokens;
  const char *lengths_path; /* draw pairs of both from this trace instead; borrowed, NULL is none */

  /* A system prompt of shared_tokens, one of `shared_prompts` of popularity rank^-zipf, then the
   * few-shot header of header_tokens (one for each system prompt) stand before the drawn prompt; or
   * within it: `total`. */
  guint32 shared_prompts, shared_tokens, header_tokens;
  double zipf;
  gboolean input_is_total;

  double turns_mean;                            /* geometric; 1: single calls */
  KvLengths turn_input_tokens;                  /* new tokens of later turns */
  double think_mean_seconds, think_p50_seconds; /* log-normal; p50 0: exponential */
  /* A later prompt over the limit is cut to compact_tokens, of which only the shared prompt is as
   * it was. */
  guint32 context_limit_tokens, compact_tokens;

  double calls_mean; /* API calls in an answer, geometric; 0: none. Anywhere in it */
  double call_mean_seconds, call_p50_seconds; /* log-normal; p50 0: exponential */
  KvLengths call_tokens;                      /* that a call returns */
} KvTraceGenerator;

/* Poisson at 1/s, 1,000 requests of 512 and 128 tokens, blocks of 16 tokens. */
void kv_trace_generator_default(KvTraceGenerator *generator);

/* A reader of what `generator` says (copied); NULL with *error if that makes no sense. */
KvTraceReader *kv_trace_generate(const KvTraceGenerator *generator, GError **error);

/* A distribution as a user writes it: fixed:N, uniform:LOW:HIGH, lognormal:MEAN:P50. `what` names
 * it in errors. */
gboolean kv_lengths_parse(const char *text, const char *what, KvLengths *lengths, GError **error);

/* Workloads with published statistics. */
typedef struct {
  const char *id, *description;
  const char
      *source; /* of the figures, and what is seen, measured, derived, recalled or estimated */
  KvTraceGenerator generator;
  /* What was published, and what the generator must meet within `tolerance` (a share); 0 is not
   * published. For sessions `input` means what the note in `description` says. */
  double input_mean, input_p50, output_mean, output_p50, tolerance;
} KvTracePreset;

/* Every preset; the last has the id NULL. */
extern const KvTracePreset kv_trace_presets[];

/* The preset called `id`, or NULL with *error. */
const KvTracePreset *kv_trace_preset(const char *id, GError **error);

#endif
