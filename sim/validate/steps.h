/* Measured steps of whole models, held against predictions: the second rung of accuracy.
 *
 * Two kinds of file, told apart by their content: JSON of our own (an object with "steps", or the
 * list itself: model, phase, batch, context, us, and at the top or beside it the device), of which
 * the quickest backend of a case counts; and Splitwise's CSV (model, hardware, prompt and batch
 * sizes, times in ms), of which the median of a case's repeats counts. What was measured is the
 * GPU's time for one step, launches included.
 */
#ifndef KV_SIM_VALIDATE_STEPS_H
#define KV_SIM_VALIDATE_STEPS_H

#include <glib.h>

typedef struct {
  char *group; /* model, platform and phase: rows that a summary puts together */
  char *model, *platform;
  guint tensor_parallel, batch, context_tokens;
  gboolean decode, eager; /* eager: launched kernel by kernel, no CUDA graphs */
  double measured_seconds, predicted_seconds;
} KvMeasuredStep;

/* The steps of the file at `path`, predicted; of KvMeasuredStep, free with g_array_unref().
 * `platform` stands for the file's own device if it is not NULL. */
GArray *kv_measured_steps(const char *path, const char *platform, GError **error);

/* The table, by group: n, median, 95th percentile, bias; with `each`, before it a row per step.
 * Newly allocated Markdown. */
char *kv_measured_steps_table(const GArray *steps, gboolean each);

#endif
