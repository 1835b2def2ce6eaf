/* Steps that a real executor carried out, each with its exact shape and its measured time, and what
 * the model executor says of the same shape: validation's second rung, on runs of our own.
 *
 * A step's shape is its chunks of prompts (cached tokens before, new tokens, whether a token is
 * sampled after), the context of every sequence that decodes in it, the new token counted, and what
 * of the contexts is read once for several. That is all that a price depends on, so a step can be
 * priced again without a GPU.
 *
 * As a file (steps.csv, or gzip of it): a first line `# ` and a JSON object with "kvsim_steps": 1,
 * the executor, the complete scenario to price with, and what is known of the GPU; a header; then a
 * row a step. `chunks` and `contexts` are lists with spaces: chunks `PAST+TOKENS`, with `*` if a
 * token is sampled; contexts `TOKENS`, or `TOKENSxN` for N sequences in a row, and `&ONCE+AGAIN` at
 * the end where a technique reads once what several share: its distinct tokens, and those that need
 * not be read again. Times are microseconds; parts are those of steps that were timed part by part.
 */
#ifndef KV_SIM_VALIDATE_STEP_LOG_H
#define KV_SIM_VALIDATE_STEP_LOG_H

#include <glib.h>
#include <jansson.h>

#include "sim/engine/executor.h"
#include "sim/engine/simulation.h"

typedef struct {
  guint first_chunk, n_chunks;                       /* in the log's chunks */
  guint first_context, n_decode;                     /* in the log's contexts */
  double shared_once_tokens, shared_repeated_tokens; /* as of KvDecodeBatch */
  double measured_seconds, predicted_seconds;
  double measured_parts[KV_N_COMPONENTS]; /* all zero: the step was timed as a whole */
  double predicted_parts[KV_N_COMPONENTS];
} KvLoggedStep;

typedef struct {
  KvCopy copy;                                /* of no sequence */
  double measured_seconds, predicted_seconds; /* of the copy alone on its link */
} KvLoggedCopy;

typedef struct {
  char *executor;       /* who measured */
  json_t *gpu;          /* what is known of it, or NULL */
  KvScenario *scenario; /* to price with: executor `model` */
  GArray *steps;        /* of KvLoggedStep */
  GArray *chunks;       /* of KvChunk without sequences */
  GArray *contexts;     /* of guint32 */
  GArray *copies;       /* of KvLoggedCopy; not in the file */
} KvStepLog;

KvStepLog *kv_step_log_new(const char *executor);
void kv_step_log_free(KvStepLog *log);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvStepLog, kv_step_log_free)

/* Whether the file at `path` begins as such a log does. */
gboolean kv_step_log_recognise(const char *path);
/* The log at `path`, not priced. `platform` stands for the file's own if it is not NULL. */
KvStepLog *kv_step_log_read(const char *path, const char *platform, GError **error);
gboolean kv_step_log_write(const KvStepLog *log, const char *path, GError **error);

/* Price every step and copy by the log's scenario. */
gboolean kv_step_log_price(KvStepLog *log, GError **error);
/* The same by the times that `device` gives, on the platform of the scenario. */
gboolean kv_step_log_price_by(KvStepLog *log, const KvDevice *device, GError **error);

/* What a step is called in tables. */
typedef enum { KV_STEP_DECODE, KV_STEP_PREFILL, KV_STEP_MIXED, KV_N_STEP_KINDS } KvStepKind;
extern const char *const kv_step_kind_names[];
KvStepKind kv_logged_step_kind(const KvLoggedStep *step);

/* How far predictions are from measurements, of one kind of operation. */
typedef struct {
  const char *name;
  guint n;
  double measured_seconds, predicted_seconds; /* of all together */
  double median, p95,
      bias; /* of |predicted / measured - 1|; the median of predicted/measured - 1 */
} KvOperationAccuracy;

/* Of a priced log: steps by kind, all steps, the parts of steps that were timed part by part, then
 * copies by direction. Of KvOperationAccuracy. */
GArray *kv_step_log_accuracy(const KvStepLog *log);
/* A priced log for the terminal; with `each`, a row per step before it. Newly allocated. */
char *kv_step_log_table(const KvStepLog *log, gboolean each);
json_t *kv_step_log_to_json(const KvStepLog *log); /* a new reference: the accuracies */

#endif
