#include "traces/statistics.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sim/base/error.h"
#include "traces/table.h"

/* Arrivals stand on ticks if this share of them repeats the time before, and this share of the
 * other gaps is a multiple of the commonest gap to within a two-hundredth of it: chosen so that
 * Mooncake's 3-second ticks (with their jitter of a ms) count and dates in whole seconds under a
 * low rate do not. */
#define TICK_SAME_SHARE 0.2
#define TICK_MULTIPLE_SHARE 0.9
#define TICK_TOLERANCE 0.005
#define SMALLEST_TICK_SECONDS 0.01
enum { MOST_GAPS = 1 << 20 };

typedef struct {
  KvTable input, output, total, gaps_us; /* value -> count */
  KvTable turns;                         /* session -> turns */
  KvTable blocks;                        /* block -> uses */
  GArray *think;                         /* double */
  double last_seconds, gap_mean, gap_m2; /* Welford */
  guint64 n_gaps, n_same;
} Pass;

static int by_key(const void *a, const void *b) {
  const KvTableSlot *x = a, *y = b;
  return x->key < y->key ? -1 : x->key > y->key;
}

/* The table's members in the order of their keys; their number is table->n_used. */
static KvTableSlot *sorted(const KvTable *table) {
  KvTableSlot *members = g_new(KvTableSlot, table->n_used + 1);
  gsize n = 0;
  for (gsize i = 0; i < table->n_slots; i++)
    if (table->slots[i].value != 0)
      members[n++] = table->slots[i];
  qsort(members, n, sizeof *members, by_key);
  return members;
}

/* The value of rank `rank`, from 0, among the counted ones. */
static double value_of_rank(const KvTableSlot *members, gsize n, guint64 rank) {
  guint64 below = 0;
  for (gsize i = 0; i < n; i++) {
    below += members[i].value;
    if (rank < below)
      return (double)members[i].key;
  }
  return n > 0 ? (double)members[n - 1].key : 0;
}

static double quantile(const KvTableSlot *members, gsize n, guint64 count, double p) {
  double at = p * (double)(count - 1), low = floor(at);
  double a = value_of_rank(members, n, (guint64)low);
  double b = at > low ? value_of_rank(members, n, (guint64)low + 1) : a;
  return a + (at - low) * (b - a);
}

static KvTraceDistribution distribution(const KvTable *counts, guint64 count, double sum) {
  g_autofree KvTableSlot *members = sorted(counts);
  gsize n = counts->n_used;
  return (KvTraceDistribution){.mean = sum / (double)count,
                               .p50 = quantile(members, n, count, 0.50),
                               .p95 = quantile(members, n, count, 0.95),
                               .p99 = quantile(members, n, count, 0.99),
                               .max = (double)members[n - 1].key};
}

static void count_gap(Pass *p, double seconds) {
  double gap = seconds - p->last_seconds;
  double delta = gap - p->gap_mean;
  p->gap_mean += delta / (double)++p->n_gaps;
  p->gap_m2 += delta * (gap - p->gap_mean);
  p->n_same += gap <= 0;
  if (gap > 0 && p->gaps_us.n_used < MOST_GAPS)
    ++*kv_table_at(&p->gaps_us, (guint64)llround(MIN(gap, 1e12) * 1e6));
}

static void count_blocks(Pass *p, const KvTraceRequest *q, KvTraceStatistics *s) {
  guint32 hit = 0;
  while (hit < q->n_hashes && kv_table_get(&p->blocks, q->hashes[hit]) > 0)
    hit++;
  for (guint32 i = 0; i < q->n_hashes; i++) {
    guint64 uses = ++*kv_table_at(&p->blocks, q->hashes[i]);
    s->most_reused = MAX(s->most_reused, uses);
  }
  s->n_blocks += q->n_hashes;
  s->hit_blocks += hit;
  if (q->n_hashes > 0)
    s->hit_tokens += hit == q->n_hashes ? q->input_tokens : (guint64)hit * s->block_tokens;
}

static void count(Pass *p, const KvTraceRequest *q, KvTraceStatistics *s) {
  if (s->timing == KV_TRACE_TIMED) {
    if (s->n_requests == 0)
      s->first_seconds = q->arrival_seconds;
    else
      count_gap(p, q->arrival_seconds);
    p->last_seconds = q->arrival_seconds;
  }
  s->n_requests++;
  s->sum_input_tokens += q->input_tokens;
  s->sum_output_tokens += q->output_tokens;
  ++*kv_table_at(&p->input, q->input_tokens);
  ++*kv_table_at(&p->output, q->output_tokens);
  ++*kv_table_at(&p->total, (guint64)q->input_tokens + q->output_tokens);
  if (q->session >= 0) {
    guint64 turns = ++*kv_table_at(&p->turns, (guint64)q->session);
    s->turns_max = MAX(s->turns_max, (double)turns);
    if (q->turn > 0)
      g_array_append_val(p->think, q->think_seconds);
  }
  count_blocks(p, q, s);
}

/* The size of the ticks on which arrivals stand, or 0. */
static double find_tick(const Pass *p, double same_share) {
  guint64 n_gaps = p->n_gaps - p->n_same, on_tick = 0, commonest = 0, tick_us = 0;
  if (same_share < TICK_SAME_SHARE || n_gaps == 0)
    return 0;
  g_autofree KvTableSlot *gaps = sorted(&p->gaps_us);
  for (gsize i = 0; i < p->gaps_us.n_used; i++)
    if (gaps[i].value > commonest) {
      commonest = gaps[i].value;
      tick_us = gaps[i].key;
    }
  if ((double)tick_us < SMALLEST_TICK_SECONDS * 1e6)
    return 0;
  for (gsize i = 0; i < p->gaps_us.n_used; i++) {
    double multiples = (double)gaps[i].key / (double)tick_us;
    if (round(multiples) >= 1 && fabs(multiples - round(multiples)) <= TICK_TOLERANCE)
      on_tick += gaps[i].value;
  }
  return (double)on_tick >= TICK_MULTIPLE_SHARE * (double)n_gaps ? (double)tick_us / 1e6 : 0;
}

static int by_double(gconstpointer a, gconstpointer b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static void finish(Pass *p, KvTraceStatistics *s) {
  guint64 n = s->n_requests;
  s->input_tokens = distribution(&p->input, n, (double)s->sum_input_tokens);
  s->output_tokens = distribution(&p->output, n, (double)s->sum_output_tokens);
  s->total_tokens =
      distribution(&p->total, n, (double)(s->sum_input_tokens + s->sum_output_tokens));
  s->last_seconds = p->last_seconds;
  double span = s->last_seconds - s->first_seconds;
  s->rate_rps = span > 0 ? (double)(n - 1) / span : 0;
  if (p->n_gaps > 0) {
    s->inter_arrival_cv = p->gap_mean > 0 ? sqrt(p->gap_m2 / (double)p->n_gaps) / p->gap_mean : 0;
    s->same_time_share = (double)p->n_same / (double)p->n_gaps;
    s->tick_seconds = find_tick(p, s->same_time_share);
  }
  s->n_sessions = p->turns.n_used;
  guint64 turns = 0;
  for (gsize i = 0; i < p->turns.n_slots; i++)
    turns += p->turns.slots[i].value;
  s->turns_mean = s->n_sessions ? (double)turns / (double)s->n_sessions : 0;
  s->n_distinct_blocks = p->blocks.n_used;
  guint n_think = p->think->len;
  if (n_think == 0)
    return;
  g_array_sort(p->think, by_double);
  for (guint i = 0; i < n_think; i++)
    s->think_seconds_mean += g_array_index(p->think, double, i) / n_think;
  s->think_seconds_p50 = (g_array_index(p->think, double, (n_think - 1) / 2) +
                          g_array_index(p->think, double, n_think / 2)) /
                         2;
}

gboolean kv_trace_statistics(KvTraceReader *reader, KvTraceStatistics *s, GError **error) {
  Pass p = {.think = g_array_new(FALSE, FALSE, sizeof(double))};
  KvTable *tables[] = {&p.input, &p.output, &p.total, &p.gaps_us, &p.turns, &p.blocks};
  for (guint i = 0; i < G_N_ELEMENTS(tables); i++)
    kv_table_begin(tables[i]);
  KvTraceRequest request;
  GError *problem = NULL;
  *s = (KvTraceStatistics){.timing = kv_trace_reader_timing(reader)};
  while (kv_trace_reader_next(reader, &request, &problem)) {
    s->block_tokens = kv_trace_reader_block_tokens(reader);
    count(&p, &request, s);
  }
  if (!problem && s->n_requests == 0)
    kv_error_at(&problem, kv_trace_reader_name(reader), 0, "has no request, expected some");
  if (!problem)
    finish(&p, s);
  for (guint i = 0; i < G_N_ELEMENTS(tables); i++)
    kv_table_clear(tables[i]);
  g_array_unref(p.think);
  if (problem)
    g_propagate_error(error, problem);
  return problem == NULL;
}
