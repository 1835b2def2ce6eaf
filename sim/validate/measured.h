/* Measured runs of real engines, as the simulator would repeat them.
 *
 * A measured run is a scenario (the engine's settings, from the file that recorded them), a
 * workload (a trace file, or one made from the load generator's own rule), and what was measured:
 * per request, as aggregates, or both. A kind of file is one entry of kv_measured_kinds and one
 * file here, read_*.c; it is recognised by its content. Figures that a file does not hold are NaN.
 *
 * Units: seconds, tokens, tokens/s. Everything in a KvMeasuredRun is its own.
 */
#ifndef KV_SIM_VALIDATE_MEASURED_H
#define KV_SIM_VALIDATE_MEASURED_H

#include <glib.h>

#include "sim/base/json.h"
#include "sim/engine/sequence.h"
#include "sim/engine/summary.h"
#include "sim/scenario.h"

/* The statistics of a latency that files give. */
typedef enum {
  KV_STATISTIC_MEAN,
  KV_STATISTIC_P50,
  KV_STATISTIC_P90,
  KV_STATISTIC_P95,
  KV_STATISTIC_P99,
  KV_N_STATISTICS,
} KvStatistic;

extern const char *const kv_statistic_names[];

/* What a run as a whole does. */
typedef enum {
  KV_RATE_MAKESPAN,      /* seconds */
  KV_RATE_REQUESTS,      /* requests/s */
  KV_RATE_OUTPUT_TOKENS, /* tokens/s */
  KV_RATE_TOTAL_TOKENS,  /* tokens/s, prompt and output */
  KV_N_RATES,
} KvRate;

extern const char *const kv_rate_names[];

typedef struct {
  guint32 input_tokens, output_tokens;
  double arrival_seconds;
  double seconds[KV_N_LATENCIES]; /* KV_LATENCY_ITL: NaN */
} KvMeasuredRequest;

typedef struct {
  double seconds, running, waiting;
} KvMeasuredLevel;

typedef struct {
  char *kind;   /* id of the kind of file */
  char *name;   /* in tables: model, GPUs, engine, load */
  char *group;  /* runs that a summary puts together: model, GPU, engine */
  char *source; /* FILE or FILE:LINE */
  KvScenario *scenario;
  char *trace;    /* a trace file; NULL: `workload` */
  char *workload; /* a trace in kvsim's own format */
  GArray
      *requests;  /* of KvMeasuredRequest in the trace's order; NULL if only aggregates are known */
  GArray *levels; /* of KvMeasuredLevel; NULL if unknown */
  double latency[KV_N_LATENCIES][KV_N_STATISTICS];
  double rate[KV_N_RATES];
  guint64 warm_requests; /* of the workload's beginning: simulated, and not compared */
  gboolean
      from_drain; /* latencies count from when the engine took the request in, not from arrival */
} KvMeasuredRun;

typedef struct {
  const char *const *trace_folders; /* where to look for traces that files name; NULL-terminated */
  const char *platform;             /* instead of the one that the file names; NULL: that one */
} KvMeasuredOptions;

typedef struct {
  const char *id, *description;
  /* Whether text that begins with these bytes is ours. */
  gboolean (*recognise)(const char *head, gsize length);
  /* Append the KvMeasuredRuns of the file. */
  gboolean (*read)(const char *path, const KvMeasuredOptions *options, GPtrArray *runs,
                   GError **error);
} KvMeasuredKind;

extern const KvMeasuredKind *const kv_measured_kinds[]; /* NULL-terminated */

/* Append the runs of `path`: a file, or a folder of which every recognised file below is read. An
 * error if there is none, or if a file that is named itself is of no known kind. */
gboolean kv_measured_read(const char *path, const KvMeasuredOptions *options, GPtrArray *runs,
                          GError **error);

/* A run of which nothing is known yet; readers fill it. */
KvMeasuredRun *kv_measured_run_new(const char *kind);
void kv_measured_run_free(KvMeasuredRun *run);

/* For readers. */

/* Append to `runs` the one run of the JSON file `path`, as `fill` describes it; nothing is appended
 * where the file cannot be read or `fill` fails. */
typedef gboolean (*KvMeasuredFill)(KvMeasuredRun *run, const char *path, KvJson *json,
                                   const KvMeasuredOptions *options, GError **error);
gboolean kv_measured_read_json(const char *kind, const char *path, KvMeasuredFill fill,
                               const KvMeasuredOptions *options, GPtrArray *runs, GError **error);

/* The catalogue's model or device that a file calls `name`: the same letters and digits, or the
 * longest that one of them begins with. NULL if none. */
const char *kv_measured_model(const char *name);
const char *kv_measured_device(const char *name);

/* The trace that `dataset` names: below the folders that the options name, and beside each folder
 * above the file `log` (`traces/` and its folders there too), plain or gzip. NULL if it is nowhere.
 */
char *kv_measured_find_trace(const char *dataset, const char *log,
                             const KvMeasuredOptions *options);

/* A simulated or served request that has left as a measured one; `from_drain` as in a run. */
void kv_measured_request_of(const KvSequence *sequence, gboolean from_drain,
                            KvMeasuredRequest *request);

/* What requests (KvMeasuredRequest) do together; NaN if they take no time. */
void kv_measured_rates(const GArray *requests, double rate[KV_N_RATES]);

/* Set the scenario's model, and its platform of `n_gpus` GPUs (or what the options say). FALSE with
 * *error, which names `place`, if the catalogue lacks one. */
gboolean kv_measured_name(KvMeasuredRun *run, const char *place, const char *model,
                          const char *device, guint n_gpus, const KvMeasuredOptions *options,
                          GError **error);

/* The client sent text over HTTP: set the time until the engine sees a request. */
void kv_measured_over_http(KvScenario *scenario);

/* The server is a vLLM before 0.14: each step is prepared after the one before it has ended. */
void kv_measured_synchronous(KvScenario *scenario);

/* Prompt and output lengths drawn uniformly from [share, 1] times nominal, as a workload. */
char *kv_measured_closed_workload(guint64 n, guint32 input_tokens, guint32 output_tokens,
                                  double share);

#endif
