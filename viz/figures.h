/* The key figures of a run, as one table: what `compare` prints, what the report tabulates, what
 * the bars show. */
#ifndef KV_VIZ_FIGURES_H
#define KV_VIZ_FIGURES_H

#include <glib.h>

#include "sim/engine/summary.h"
#include "viz/format.h"

typedef enum { KV_BETTER_NEITHER, KV_BETTER_LOWER, KV_BETTER_HIGHER } KvBetter;

typedef struct {
  const char *group, *label;
  KvUnit unit;
  KvBetter better;
  gsize offset;   /* of the field in KvSummary */
  gboolean whole; /* the field is a guint64, else a double */
  int latency;    /* the KvLatency it is of: no value without a sample; -1 for none */
  gboolean bar;   /* drawn in the comparison picture */
} KvFigure;

extern const KvFigure kv_figures[];
extern const guint kv_n_figures;

/* The figure's value in `run`; NaN where the run has none (no finished request, no SLO,
 * fragmentation of a compressed cache). */
double kv_figure_value(const KvFigure *figure, const KvSummary *run);

/* Is the change from `baseline` to `value` an improvement (1), a loss (-1), or neither (0)? Below 1
 * % it is neither. */
int kv_figure_judge(const KvFigure *figure, double value, double baseline);

/* Titles of the components and tiers for people, in the order of their enumerations. */
extern const char *const kv_component_titles[KV_N_COMPONENTS];
extern const char *const kv_tier_titles[KV_N_TIERS];

/* The components of `run`, most time first, into `order`; the number that took any time, their sum
 * in *total. */
guint kv_components_by_time(const KvSummary *run, KvComponent order[KV_N_COMPONENTS],
                            double *total);

/* Is an SLO set on the run? */
gboolean kv_summary_has_slo(const KvSummary *run);

#endif
