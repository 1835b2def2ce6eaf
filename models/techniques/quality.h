/* What a stack does to the quality of answers, as far as papers measured it.
 *
 * A technique's quality points (technique.h) form curves: points of one model, task and part (keys
 * or values alone, or both) that differ in one parameter. At the stack's setting of that parameter
 * a curve gives a change, exact at a point and interpolated linearly between two neighbours;
 * outside its points it gives none. The changes over all curves are a range, because tasks and
 * models differ more than settings do. A stack of several techniques that change quality gets the
 * sum of their ranges, which nobody measured: it is marked as assumed.
 *
 * Changes are relative to the unchanged model, negative for worse; of a perplexity more is worse.
 */
#ifndef KV_MODELS_TECHNIQUES_QUALITY_H
#define KV_MODELS_TECHNIQUES_QUALITY_H

#include "models/techniques/technique.h"

typedef struct {
  const KvTechnique *technique;
  const KvQualityPoint *below, *above; /* the same at a point */
  double baseline, value;              /* at the stack's setting, in the task's unit */
  double change;                       /* relative */
} KvQualityEstimate;

typedef struct {
  gboolean exact;    /* nothing in the stack changes an answer */
  gboolean known;    /* every technique that does has points that cover its setting */
  gboolean assumed;  /* several do: their changes are added */
  double low, high;  /* relative changes, if known (0 if exact) */
  GArray *estimates; /* of KvQualityEstimate */
  GPtrArray
      *notes; /* of char *: settings outside the points, parameters that the points leave out */
} KvQuality;

KvQuality *kv_stack_quality(const KvStack *stack);
void kv_quality_free(KvQuality *quality);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvQuality, kv_quality_free)

/* The range, e.g. "-29.5 % to +0.2 % over 6 published results"; newly allocated. */
char *kv_quality_describe(const KvQuality *quality);

/* The worst and the best result with their sources, and every note, as sentences; "" if there is
 * nothing to say. Newly allocated. */
char *kv_quality_explain(const KvQuality *quality);

/* Estimates and notes in full, as JSON; a new reference. */
json_t *kv_quality_to_json(const KvQuality *quality);

#endif
