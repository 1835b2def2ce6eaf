#include "sim/validate/comparison.h"

#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "sim/engine/simulation.h"
#include "traces/transform.h"

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

/* Linear between the closest ranks, as numpy does. */
static double quantile(const double *sorted, guint n, double share) {
  double at = share * (n - 1.0);
  guint low = (guint)at;
  return low + 1 < n ? sorted[low] + (at - low) * (sorted[low + 1] - sorted[low]) : sorted[n - 1];
}

static double statistic_of(const double *sorted, guint n, KvStatistic statistic) {
  static const double shares[] = {0.0, 0.5, 0.9, 0.95, 0.99};
  if (n == 0)
    return NAN;
  if (statistic != KV_STATISTIC_MEAN)
    return quantile(sorted, n, shares[statistic]);
  double sum = 0.0;
  for (guint i = 0; i < n; i++)
    sum += sorted[i];
  return sum / n;
}

/* One latency of every request that has it, sorted; newly allocated. */
static double *sorted_of(const GArray *requests, KvLatency latency, guint *n) {
  double *values = g_new(double, requests->len + 1);
  *n = 0;
  for (guint i = 0; i < requests->len; i++) {
    double value = g_array_index(requests, KvMeasuredRequest, i).seconds[latency];
    if (isfinite(value))
      values[(*n)++] = value;
  }
  qsort(values, *n, sizeof *values, by_value);
  return values;
}

static double ks_distance(const double *a, guint n_a, const double *b, guint n_b) {
  double largest = 0.0;
  for (guint i = 0, j = 0; i < n_a && j < n_b;) {
    double at = MIN(a[i], b[j]);
    while (i < n_a && a[i] <= at)
      i++;
    while (j < n_b && b[j] <= at)
      j++;
    largest = MAX(largest, fabs((double)i / n_a - (double)j / n_b));
  }
  return largest;
}

static void add_row(KvComparison *c, const char *metric, const char *statistic, double measured,
                    double predicted) {
  KvComparisonRow row = {metric, statistic, measured, predicted};
  if (isfinite(measured) && isfinite(predicted))
    g_array_append_val(c->rows, row);
}

/* Statistics of requests where they are known one by one, else those that the file gives. */
static void compare_latency(KvComparison *c, KvLatency latency) {
  guint n_predicted, n_measured = 0;
  g_autofree double *predicted = sorted_of(c->requests, latency, &n_predicted);
  g_autofree double *measured =
      c->run->requests ? sorted_of(c->run->requests, latency, &n_measured) : NULL;
  for (guint s = 0; s < KV_N_STATISTICS; s++)
    add_row(c, kv_latency_names[latency], kv_statistic_names[s],
            measured ? statistic_of(measured, n_measured, s) : c->run->latency[latency][s],
            statistic_of(predicted, n_predicted, s));
  c->agreement[latency] = (KvAgreement){NAN, NAN};
  if (n_measured == 0 || n_predicted == 0)
    return;
  guint n = 0, both = MIN(c->requests->len, c->run->requests->len);
  g_autofree double *errors = g_new(double, both + 1);
  for (guint i = 0; i < both; i++) {
    double x = g_array_index(c->run->requests, KvMeasuredRequest, i).seconds[latency];
    double y = g_array_index(c->requests, KvMeasuredRequest, i).seconds[latency];
    if (isfinite(x) && isfinite(y) && x > 0.0)
      errors[n++] = fabs(y / x - 1.0);
  }
  qsort(errors, n, sizeof *errors, by_value);
  c->agreement[latency] = (KvAgreement){ks_distance(measured, n_measured, predicted, n_predicted),
                                        n ? quantile(errors, n, 0.5) : NAN};
}

static void compare_rates(KvComparison *c) {
  double predicted[KV_N_RATES];
  kv_measured_rates(c->requests, predicted);
  for (guint r = 0; r < KV_N_RATES; r++)
    add_row(c, kv_rate_names[r], "", c->run->rate[r], predicted[r]);
}

/* The timeline's level at `seconds` from the first arrival. */
static const KvInterval *interval_at(const KvSummary *s, double seconds) {
  for (guint i = 0; i < s->timeline->len; i++) {
    const KvInterval *interval = &g_array_index(s->timeline, KvInterval, i);
    if (seconds < interval->start_seconds + interval->seconds)
      return interval;
  }
  return NULL;
}

static void compare_levels(KvComparison *c) {
  double running = 0.0, waiting = 0.0;
  c->running_rms = c->waiting_rms = NAN;
  if (!c->run->levels || c->run->levels->len == 0)
    return;
  for (guint i = 0; i < c->run->levels->len; i++) {
    const KvMeasuredLevel *level = &g_array_index(c->run->levels, KvMeasuredLevel, i);
    const KvInterval *at = interval_at(c->summary, level->seconds);
    double r = (at ? at->running : 0.0) - level->running;
    double w = (at ? at->waiting : 0.0) - level->waiting;
    running += r * r;
    waiting += w * w;
  }
  c->running_rms = sqrt(running / c->run->levels->len);
  c->waiting_rms = sqrt(waiting / c->run->levels->len);
}

static void note_request(const KvSequence *s, gpointer user) {
  KvComparison *c = user;
  if (s->index < c->run->warm_requests || s->scheduled_seconds < 0.0)
    return;
  guint at = (guint)(s->index - c->run->warm_requests);
  if (at >= c->requests->len)
    g_array_set_size(c->requests, at + 1);
  kv_measured_request_of(s, c->run->from_drain, &g_array_index(c->requests, KvMeasuredRequest, at));
}

/* The log and the trace must speak of the same requests, or their comparison means nothing. */
static gboolean same_requests(const KvComparison *c, GError **error) {
  if (!c->run->requests)
    return TRUE;
  for (guint i = 0; i < c->requests->len && i < c->run->requests->len; i++) {
    const KvMeasuredRequest *measured = &g_array_index(c->run->requests, KvMeasuredRequest, i);
    const KvMeasuredRequest *made = &g_array_index(c->requests, KvMeasuredRequest, i);
    if (made->input_tokens == measured->input_tokens &&
        made->output_tokens == measured->output_tokens)
      continue;
    g_set_error(error, KV_ERROR, KV_ERROR_INPUT,
                "%s: request %u has %u and %u tokens, %s gives %u and %u, expected the trace of "
                "this run",
                c->run->source, i, measured->input_tokens, measured->output_tokens,
                c->run->trace ? c->run->trace : "the workload", made->input_tokens,
                made->output_tokens);
    return FALSE;
  }
  return TRUE;
}

KvComparison *kv_comparison_new(const KvMeasuredRun *run, const volatile gint *interrupted,
                                GError **error) {
  g_autoptr(KvSetup) setup = kv_setup_new(run->scenario, TRUE, error);
  if (!setup) {
    g_prefix_error(error, "%s: ", run->source);
    return NULL;
  }
  g_autoptr(KvTraceReader) reader =
      run->trace ? kv_trace_reader_open(run->trace, NULL, error)
                 : kv_trace_reader_open_memory(run->source, run->workload, strlen(run->workload),
                                               NULL, error);
  if (reader && setup->scenario->smear_seconds > 0.0)
    reader = kv_trace_smear(g_steal_pointer(&reader), setup->scenario->smear_seconds,
                            setup->scenario->seed, error);
  if (!reader)
    return NULL;
  g_autoptr(KvComparison) c = g_new0(KvComparison, 1);
  c->run = run;
  c->rows = g_array_new(FALSE, FALSE, sizeof(KvComparisonRow));
  c->requests = g_array_new(FALSE, TRUE, sizeof(KvMeasuredRequest));
  KvSimulateOptions options = {.left = note_request, .user = c, .interrupted = interrupted};
  if (!(c->summary = kv_simulate(setup, reader, &options, error)) || !same_requests(c, error))
    return NULL;
  for (guint l = 0; l < KV_N_LATENCIES; l++)
    compare_latency(c, l);
  compare_rates(c);
  compare_levels(c);
  return g_steal_pointer(&c);
}

void kv_comparison_free(KvComparison *c) {
  if (!c)
    return;
  g_clear_pointer(&c->summary, kv_summary_free);
  g_clear_pointer(&c->rows, g_array_unref);
  g_clear_pointer(&c->requests, g_array_unref);
  g_free(c);
}

double kv_comparison_error(const KvComparisonRow *row) {
  return row->measured > 0.0 ? row->predicted / row->measured - 1.0 : NAN;
}
