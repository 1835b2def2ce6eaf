#include "sim/engine/metrics.h"

#include <math.h>
#include <string.h>

#include "sim/base/format.h"
#include "sim/engine/session_store.h"

enum { MAX_INTERVALS = 2048, SKETCH_BUCKETS = 4700 };

static const double SKETCH_FLOOR_SECONDS = 1e-6, SKETCH_RATIO = 1.005;

typedef struct {
  float *values;
  guint64 n, size;
  double sum;
} Samples;

/* A histogram with buckets of a constant ratio. */
typedef struct {
  double weights[SKETCH_BUCKETS];
  double n, sum, min, max;
} Sketch;

/* How many sequences an instance has. */
typedef struct {
  double running, waiting;
} Level;

/* What instances of one role did. */
typedef struct {
  double busy_seconds, prefill_seconds, held_integral, peak_held;
  guint64 steps;
} Role;

struct KvMetrics {
  KvObserver observer;
  Role roles[KV_INSTANCE_DECODE + 1];
  guint64 pulled;
  double pulled_bytes, pull_wait_seconds, pull_seconds, longest_pull_seconds;
  double slo_ttft, slo_tpot;
  KvOutput *requests, *operations;
  Samples samples[KV_N_LATENCIES];
  Sketch itl;
  guint64 arrived, finished, rejected, good;
  double first_arrival, last_end;
  guint64 prompt_tokens, output_tokens, hit_tokens, lower_tier_tokens, looked_up_tokens;
  guint64 preemptions, recomputed_tokens, swapped_out, swapped_in, steps;
  double busy_seconds,
      prefill_seconds; /* over instances; prefill: steps with more prompt than decode tokens */
  double component_seconds[KV_N_COMPONENTS], component_flops[KV_N_COMPONENTS],
      component_bytes[KV_N_COMPONENTS];
  double flops, hbm_bytes, link_bytes, fetched[KV_N_TIERS], stored[KV_N_TIERS];
  double held_integral, tokens_integral; /* over busy time */
  double peak_held, peak_running, peak_waiting;
  GArray *levels;                  /* of Level, by instance: as of its last batch */
  double running_now, waiting_now; /* over instances */
  double interval_seconds;
  GArray *timeline; /* of KvInterval */
};

KvMetrics *kv_metrics_new(double slo_ttft_seconds, double slo_tpot_seconds, KvOutput *requests,
                          KvOutput *operations) {
  static const char header[] =
      "index,id,session,turn,instance,status,arrival_seconds,input_tokens,output_tokens,hit_tokens,"
      "queue_seconds,ttft_seconds,tpot_seconds,e2e_seconds,preemptions\n";
  KvMetrics *metrics = g_new0(KvMetrics, 1);
  metrics->slo_ttft = slo_ttft_seconds;
  metrics->slo_tpot = slo_tpot_seconds;
  metrics->requests = requests;
  metrics->operations = operations;
  metrics->first_arrival = G_MAXDOUBLE;
  metrics->interval_seconds = 0.001;
  metrics->timeline = g_array_new(FALSE, TRUE, sizeof(KvInterval));
  metrics->levels = g_array_new(FALSE, TRUE, sizeof(Level));
  metrics->itl.min = G_MAXDOUBLE;
  if (requests)
    kv_output_write(requests, header, sizeof header - 1);
  if (operations)
    kv_output_print(operations, "instance,start_seconds,seconds,repeat,chunks,chunk_tokens,"
                                "decode_sequences,context_tokens,flops,hbm_bytes\n");
  return metrics;
}

void kv_metrics_free(KvMetrics *metrics) {
  if (!metrics)
    return;
  for (guint l = 0; l < KV_N_LATENCIES; l++)
    g_free(metrics->samples[l].values);
  g_array_unref(metrics->timeline);
  g_array_unref(metrics->levels);
  g_free(metrics);
}

guint64 kv_metrics_done(const KvMetrics *metrics) {
  return metrics->finished + metrics->rejected;
}

double kv_metrics_now(const KvMetrics *metrics) {
  return metrics->last_end;
}

static void add_sample(Samples *samples, double value) {
  if (samples->n == samples->size) {
    samples->size = MAX(1024, 2 * samples->size);
    samples->values = g_renew(float, samples->values, samples->size);
  }
  samples->values[samples->n++] = (float)value;
  samples->sum += value;
}

/* The inter-token sketch. */

static guint bucket_of(double seconds) {
  double index = log(MAX(seconds, SKETCH_FLOOR_SECONDS) / SKETCH_FLOOR_SECONDS) / log(SKETCH_RATIO);
  return (guint)MIN(index, SKETCH_BUCKETS - 1.0);
}

static double bucket_seconds(double bucket) {
  return SKETCH_FLOOR_SECONDS * pow(SKETCH_RATIO, bucket);
}

/* `n` samples spread evenly from `low` to `high`. */
static void sketch_add(Sketch *sketch, double low, double high, double n, double sum) {
  if (n <= 0.0)
    return;
  sketch->n += n;
  sketch->sum += sum;
  sketch->min = MIN(sketch->min, low);
  sketch->max = MAX(sketch->max, high);
  guint first = bucket_of(low), last = high > low ? bucket_of(high) : first;
  if (first == last) {
    sketch->weights[first] += n;
    return;
  }
  for (guint b = first; b <= last; b++) {
    /* The outermost buckets take what lies beyond the sketch's range. */
    double from = b == first ? low : bucket_seconds(b),
           to = b == last ? high : bucket_seconds(b + 1.0);
    sketch->weights[b] += n * MAX(0.0, to - from) / (high - low);
  }
}

static double sketch_quantile(const Sketch *sketch, double p) {
  double target = p * sketch->n, seen = 0.0;
  if (sketch->n <= 0.0)
    return 0.0;
  for (guint b = 0; b < SKETCH_BUCKETS; b++) {
    double weight = sketch->weights[b];
    if (weight > 0.0 && seen + weight >= target)
      return CLAMP(bucket_seconds(b + (target - seen) / weight), sketch->min, sketch->max);
    seen += weight;
  }
  return sketch->max;
}

/* The timeline. */

static void merge_interval(KvInterval *to, const KvInterval *from) {
  to->running += from->running;
  to->waiting += from->waiting;
  to->blocks_held += from->blocks_held;
  to->blocks_cached += from->blocks_cached;
  to->blocks_free += from->blocks_free;
  for (guint t = 0; t < KV_N_TIERS; t++)
    to->tier_bytes[t] += from->tier_bytes[t];
  to->link_bytes += from->link_bytes;
  to->host_bytes += from->host_bytes;
  to->prompt_tokens += from->prompt_tokens;
  to->output_tokens += from->output_tokens;
  to->busy_seconds += from->busy_seconds;
  to->ttft_sum += from->ttft_sum;
  to->tpot_sum += from->tpot_sum;
  to->ttft_count += from->ttft_count;
  to->tpot_count += from->tpot_count;
  to->finished += from->finished;
  to->preemptions += from->preemptions;
}

/* The interval that contains `when`; intervals double until it has a place. State fields hold
 * integrals over time. */
static KvInterval *interval_at(KvMetrics *metrics, double when) {
  double since =
      MAX(0.0, when - (metrics->first_arrival < G_MAXDOUBLE ? metrics->first_arrival : 0.0));
  while (since >= metrics->interval_seconds * MAX_INTERVALS) {
    guint n = metrics->timeline->len, half = (n + 1) / 2;
    for (guint i = 0; i < half; i++) {
      KvInterval pair = g_array_index(metrics->timeline, KvInterval, (gsize)2 * i);
      if (2 * i + 1 < n)
        merge_interval(&pair, &g_array_index(metrics->timeline, KvInterval, (gsize)2 * i + 1));
      g_array_index(metrics->timeline, KvInterval, i) = pair;
    }
    g_array_set_size(metrics->timeline, half);
    metrics->interval_seconds *= 2.0;
  }
  guint index = (guint)(since / metrics->interval_seconds);
  if (index >= metrics->timeline->len)
    g_array_set_size(metrics->timeline, index + 1);
  return &g_array_index(metrics->timeline, KvInterval, index);
}

/* Spread `state` (rates and levels per second of time) over [start, end). */
static void spread(KvMetrics *metrics, double start, double end, const KvInterval *state) {
  interval_at(metrics, end);
  double origin = metrics->first_arrival < G_MAXDOUBLE ? metrics->first_arrival : 0.0;
  double width = metrics->interval_seconds;
  guint last = metrics->timeline->len - 1, index = (guint)(MAX(0.0, start - origin) / width);
  /* By the interval's number, never by dividing again: at an edge, rounding would find the interval
   * before it. */
  for (double at = start; at < end; index++) {
    double to = index < last ? CLAMP(origin + (index + 1.0) * width, at, end) : end;
    double share = to - at;
    KvInterval part = *state;
    double *levels[] = {&part.running,       &part.waiting,       &part.blocks_held,
                        &part.blocks_cached, &part.blocks_free,   &part.link_bytes,
                        &part.prompt_tokens, &part.output_tokens, &part.busy_seconds};
    for (guint i = 0; i < G_N_ELEMENTS(levels); i++)
      *levels[i] *= share;
    for (guint t = 0; t < KV_N_TIERS; t++)
      part.tier_bytes[t] *= share;
    merge_interval(&g_array_index(metrics->timeline, KvInterval, MIN(index, last)), &part);
    at = to;
  }
}

void kv_metrics_arrived(KvMetrics *metrics, const KvSequence *sequence) {
  metrics->arrived++;
  metrics->first_arrival = MIN(metrics->first_arrival, sequence->arrival_seconds);
}

static double blocks_held(const KvInstance *instance) {
  if (instance->buddy)
    return (double)(instance->buddy_blocks - kv_buddy_free_units(instance->buddy));
  return (double)(kv_pool_total(instance->pool) - kv_pool_free_blocks(instance->pool));
}

static void note_level(KvMetrics *metrics, guint instance, double running, double waiting) {
  if (instance >= metrics->levels->len)
    g_array_set_size(metrics->levels, instance + 1);
  Level *level = &g_array_index(metrics->levels, Level, instance);
  metrics->running_now += running - level->running;
  metrics->waiting_now += waiting - level->waiting;
  *level = (Level){running, waiting};
  metrics->peak_running = MAX(metrics->peak_running, metrics->running_now);
  metrics->peak_waiting = MAX(metrics->peak_waiting, metrics->waiting_now);
}

static void observe_batch(KvObserver *observer, const KvInstance *instance, const KvBatch *batch) {
  KvMetrics *metrics = (KvMetrics *)observer;
  const KvStepCost *cost = &batch->cost;
  double repeat = (double)batch->repeat, chunk_tokens = 0.0;
  guint64 emitted = 0;
  for (guint i = 0; i < batch->chunks->len; i++) {
    const KvChunk *chunk = &g_array_index(batch->chunks, KvChunk, i);
    chunk_tokens += chunk->tokens;
    emitted += chunk->last;
  }
  double decoded = repeat * (double)batch->decode_n + (double)batch->n_host;
  metrics->steps += batch->repeat;
  metrics->last_end = MAX(metrics->last_end, batch->end);
  metrics->busy_seconds += cost->seconds;
  if (chunk_tokens > decoded)
    metrics->prefill_seconds += cost->seconds;
  for (guint c = 0; c < KV_N_COMPONENTS; c++) {
    metrics->component_seconds[c] += cost->component_seconds[c];
    metrics->component_flops[c] += cost->component_flops[c];
    metrics->component_bytes[c] += cost->component_bytes[c];
  }
  metrics->flops += cost->flops;
  metrics->hbm_bytes += cost->hbm_bytes;
  metrics->link_bytes += cost->link_bytes;
  for (guint t = 0; t < KV_N_TIERS; t++)
    metrics->fetched[t] += cost->fetched_bytes[t];
  metrics->output_tokens += (guint64)decoded + emitted;
  metrics->prompt_tokens += (guint64)chunk_tokens;
  if (batch->decode_n > 0) {
    /* Members that joined since the last decode step had their previous token at the last prompt's
     * end. */
    double n = (double)batch->decode_n;
    guint n_stalled = batch->stalled ? batch->stalled->len : 0;
    double stalled = n_stalled;
    double fresh = MIN(n - stalled, (double)instance->joined_since_decode);
    double old = n - fresh - stalled;
    double first_end = batch->start + cost->first_seconds;
    double old_gap = first_end - instance->last_decode_end;
    double fresh_gap = first_end - instance->last_prefill_end;
    for (guint i = 0; i < n_stalled; i++) {
      double gap = first_end - g_array_index(batch->stalled, double, i);
      sketch_add(&metrics->itl, gap, gap, 1.0, gap);
    }
    if (instance->role == KV_INSTANCE_DECODE && fresh > 0.0)
      fresh_gap =
          first_end - instance->joined_token_seconds / (double)instance->joined_since_decode;
    sketch_add(&metrics->itl, old_gap, old_gap, old, old * old_gap);
    sketch_add(&metrics->itl, fresh_gap, fresh_gap, fresh, fresh * fresh_gap);
    if (batch->repeat > 1)
      sketch_add(&metrics->itl, MIN(cost->first_seconds, cost->last_seconds) + batch->gap_seconds,
                 MAX(cost->first_seconds, cost->last_seconds) + batch->gap_seconds,
                 n * (repeat - 1.0),
                 n * (cost->seconds - cost->first_seconds + (repeat - 1.0) * batch->gap_seconds));
  }
  double held = blocks_held(instance), seconds = MAX(batch->end - batch->start, 1e-12);
  double running = kv_instance_running(instance), waiting = kv_instance_waiting(instance);
  double tokens = kv_decode_set_context_tokens(instance->decode);
  for (guint i = 0; i < instance->prefilling->len; i++)
    tokens += ((const KvSequence *)g_ptr_array_index(instance->prefilling, i))->computed_tokens;
  metrics->held_integral += held * cost->seconds;
  metrics->tokens_integral += tokens / instance->config->block_tokens * cost->seconds;
  metrics->peak_held = MAX(metrics->peak_held, held);
  Role *role = &metrics->roles[instance->role];
  role->busy_seconds += cost->seconds;
  role->prefill_seconds += chunk_tokens > decoded ? cost->seconds : 0.0;
  role->held_integral += held * cost->seconds;
  role->peak_held = MAX(role->peak_held, held);
  role->steps += batch->repeat;
  note_level(metrics, instance->index, running, waiting);
  KvInterval state = {
      .running = running,
      .waiting = waiting,
      .blocks_held = held,
      .blocks_cached = (double)kv_pool_cached_blocks(instance->pool),
      .link_bytes = cost->link_bytes / seconds,
      .prompt_tokens = chunk_tokens / seconds,
      .output_tokens = (decoded + (double)emitted) / seconds,
      .busy_seconds = cost->seconds / seconds,
  };
  state.blocks_free = (instance->buddy ? (double)kv_buddy_free_units(instance->buddy)
                                       : (double)kv_pool_free_blocks(instance->pool)) -
                      state.blocks_cached;
  if (instance->tier != KV_TIER_HBM)
    state.tier_bytes[instance->tier] =
        (double)kv_pool_tier_blocks(instance->pool) * instance->demand.block_bytes;
  if (instance->store)
    for (KvTier t = KV_TIER_DRAM; t < KV_N_TIERS; t++)
      state.tier_bytes[t] = kv_session_store_bytes(instance->store, t);
  spread(metrics, batch->start, batch->end, &state);
  if (metrics->operations)
    kv_output_print(metrics->operations,
                    "%u,%.9f,%.9f,%" G_GUINT64_FORMAT ",%u,%.0f,%" G_GUINT64_FORMAT
                    ",%.0f,%.6g,%.6g\n",
                    instance->index, batch->start, cost->seconds, batch->repeat, batch->chunks->len,
                    chunk_tokens, batch->decode_n, batch->decode_n ? batch->context_tokens : 0.0,
                    cost->flops, cost->hbm_bytes);
}

static void observe_first_token(KvObserver *observer, const KvSequence *sequence) {
  KvMetrics *metrics = (KvMetrics *)observer;
  double ttft = sequence->first_token_seconds - sequence->arrival_seconds;
  add_sample(&metrics->samples[KV_LATENCY_TTFT], ttft);
  KvInterval *interval = interval_at(metrics, sequence->first_token_seconds);
  interval->ttft_sum += ttft;
  interval->ttft_count++;
  metrics->hit_tokens += sequence->prompt_hit_tokens;
  metrics->lower_tier_tokens += sequence->lower_tier_tokens;
  metrics->looked_up_tokens += sequence->input_tokens;
}

static void observe_stalled_token(KvObserver *observer, double seconds) {
  KvMetrics *metrics = (KvMetrics *)observer;
  sketch_add(&metrics->itl, seconds, seconds, 1.0, seconds);
}

static void observe_preempted(KvObserver *observer, guint64 recomputed_tokens, double now) {
  KvMetrics *metrics = (KvMetrics *)observer;
  metrics->preemptions++;
  metrics->recomputed_tokens += recomputed_tokens;
  interval_at(metrics, now)->preemptions++;
}

static void observe_moved(KvObserver *observer, const KvCopy *copy, double now) {
  KvMetrics *metrics = (KvMetrics *)observer;
  gboolean up = copy->to < copy->from;
  if (up)
    metrics->fetched[copy->from] += copy->bytes;
  else
    metrics->stored[copy->to] += copy->bytes;
  if (!copy->pinned)
    *(up ? &metrics->swapped_in : &metrics->swapped_out) += copy->blocks;
  interval_at(metrics, now)->host_bytes += copy->bytes;
}

static void observe_pulled(KvObserver *observer, const KvSequence *sequence, double bytes,
                           double now) {
  KvMetrics *metrics = (KvMetrics *)observer;
  double seconds = now - sequence->pulled_seconds;
  metrics->pulled++;
  metrics->pulled_bytes += bytes;
  metrics->pull_wait_seconds += sequence->pulled_seconds - sequence->first_token_seconds;
  metrics->pull_seconds += seconds;
  metrics->longest_pull_seconds = MAX(metrics->longest_pull_seconds, seconds);
  interval_at(metrics, now)->link_bytes += bytes;
}

static void write_request(KvMetrics *metrics, const KvSequence *s, const char *status, double queue,
                          double ttft, double tpot, double e2e) {
  char *start = kv_output_reserve(metrics->requests, 400), *at = start;
  at = kv_format_u64(at, s->index);
  *at++ = ',';
  if (s->id < 0)
    *at++ = '-';
  at = kv_format_u64(at, (guint64)ABS(s->id));
  *at++ = ',';
  if (s->session >= 0)
    at = kv_format_u64(at, (guint64)s->session);
  *at++ = ',';
  at = kv_format_u64(at, s->turn);
  *at++ = ',';
  at = kv_format_u64(at, s->instance);
  *at++ = ',';
  at = g_stpcpy(at, status);
  const double numbers[] = {s->arrival_seconds};
  *at++ = ',';
  at = kv_format_fixed6(at, numbers[0]);
  const guint64 counts[] = {s->input_tokens, s->output_tokens, s->prompt_hit_tokens};
  for (guint i = 0; i < G_N_ELEMENTS(counts); i++) {
    *at++ = ',';
    at = kv_format_u64(at, counts[i]);
  }
  const double seconds[] = {queue, ttft, tpot, e2e};
  for (guint i = 0; i < G_N_ELEMENTS(seconds); i++) {
    *at++ = ',';
    if (seconds[i] >= 0.0)
      at = kv_format_fixed6(at, seconds[i]);
  }
  *at++ = ',';
  at = kv_format_u64(at, s->preemptions);
  *at++ = '\n';
  kv_output_advance(metrics->requests, (gsize)(at - start));
}

void kv_metrics_rejected(KvMetrics *metrics, const KvSequence *sequence) {
  metrics->rejected++;
  if (metrics->requests)
    write_request(metrics, sequence, "rejected", -1.0, -1.0, -1.0, -1.0);
}

static void observe_finished(KvObserver *observer, const KvSequence *s) {
  KvMetrics *metrics = (KvMetrics *)observer;
  double queue = s->scheduled_seconds - s->arrival_seconds;
  double ttft = s->first_token_seconds - s->arrival_seconds;
  double e2e = s->last_token_seconds - s->arrival_seconds;
  double tpot = s->output_tokens > 1 ? (e2e - ttft) / (s->output_tokens - 1.0) : -1.0;
  metrics->finished++;
  add_sample(&metrics->samples[KV_LATENCY_QUEUE], MAX(0.0, queue));
  add_sample(&metrics->samples[KV_LATENCY_E2E], e2e);
  KvInterval *interval = interval_at(metrics, s->last_token_seconds);
  interval->finished++;
  if (tpot >= 0.0) {
    add_sample(&metrics->samples[KV_LATENCY_TPOT], tpot);
    interval->tpot_sum += tpot;
    interval->tpot_count++;
  }
  gboolean good = (metrics->slo_ttft <= 0.0 || ttft <= metrics->slo_ttft) &&
                  (metrics->slo_tpot <= 0.0 || tpot <= metrics->slo_tpot);
  metrics->good += good;
  if (metrics->requests)
    write_request(metrics, s, "finished", MAX(0.0, queue), ttft, tpot, e2e);
}

static const KvObserverClass metrics_class = {
    .batch = observe_batch,
    .first_token = observe_first_token,
    .stalled_token = observe_stalled_token,
    .finished = observe_finished,
    .preempted = observe_preempted,
    .moved = observe_moved,
    .pulled = observe_pulled,
};

KvObserver *kv_metrics_observer(KvMetrics *metrics) {
  metrics->observer.class = &metrics_class;
  return &metrics->observer;
}

/* Sort non-negative floats: their bits order as integers. */
static void radix_sort(float *values, guint64 n) {
  if (n < 2)
    return;
  guint32 *from = (guint32 *)(void *)values, *to = g_new(guint32, n);
  for (guint shift = 0; shift < 33; shift += 11) {
    guint64 starts[2049] = {0};
    for (guint64 i = 0; i < n; i++)
      starts[((from[i] >> shift) & 2047) + 1]++;
    for (guint d = 1; d < 2048; d++)
      starts[d] += starts[d - 1];
    for (guint64 i = 0; i < n; i++)
      to[starts[(from[i] >> shift) & 2047]++] = from[i];
    guint32 *swap = from;
    from = to;
    to = swap;
  }
  /* Three passes: the result stands in the other buffer. */
  memcpy(to, from, n * sizeof(guint32));
  g_free(from);
}

/* Linear interpolation between order statistics, as numpy does. */
static double quantile(const Samples *samples, double p) {
  if (samples->n == 0)
    return 0.0;
  double position = p * (double)(samples->n - 1);
  guint64 below = (guint64)position;
  double low = samples->values[below], high = samples->values[MIN(below + 1, samples->n - 1)];
  return low + (position - (double)below) * (high - low);
}

static void summarize_samples(Samples *samples, KvDistribution *d, KvCdf *cdf) {
  radix_sort(samples->values, samples->n);
  *d = (KvDistribution){.n = samples->n};
  if (samples->n == 0)
    return;
  d->mean = samples->sum / (double)samples->n;
  d->p50 = quantile(samples, 0.5);
  d->p90 = quantile(samples, 0.9);
  d->p95 = quantile(samples, 0.95);
  d->p99 = quantile(samples, 0.99);
  d->min = samples->values[0];
  d->max = samples->values[samples->n - 1];
  for (guint i = 0; i < KV_CDF_POINTS; i++)
    cdf->value[i] = quantile(samples, i / (KV_CDF_POINTS - 1.0));
}

static void summarize_sketch(const Sketch *sketch, KvDistribution *d, KvCdf *cdf) {
  *d = (KvDistribution){.n = (guint64)llround(sketch->n)};
  if (sketch->n <= 0.0)
    return;
  d->mean = sketch->sum / sketch->n;
  d->p50 = sketch_quantile(sketch, 0.5);
  d->p90 = sketch_quantile(sketch, 0.9);
  d->p95 = sketch_quantile(sketch, 0.95);
  d->p99 = sketch_quantile(sketch, 0.99);
  d->min = sketch->min;
  d->max = sketch->max;
  for (guint i = 0; i < KV_CDF_POINTS; i++)
    cdf->value[i] = sketch_quantile(sketch, i / (KV_CDF_POINTS - 1.0));
}

/* Turn integrals over intervals into time averages over all instances. */
static GArray *finish_timeline(const KvMetrics *metrics, const KvSummary *summary) {
  GArray *timeline = g_array_copy(metrics->timeline);
  double origin = metrics->first_arrival < G_MAXDOUBLE ? metrics->first_arrival : 0.0;
  double total = (double)summary->total_blocks * summary->n_instances;
  for (guint i = 0; i < timeline->len; i++) {
    KvInterval *interval = &g_array_index(timeline, KvInterval, i);
    double width = metrics->interval_seconds;
    interval->start_seconds = origin + i * width;
    interval->seconds = width = MIN(width, MAX(1e-9, metrics->last_end - interval->start_seconds));
    interval->running /= width;
    interval->waiting /= width;
    interval->blocks_held /= width;
    interval->blocks_cached /= width;
    interval->blocks_free = MAX(0.0, total - interval->blocks_held - interval->blocks_cached);
    for (guint t = 0; t < KV_N_TIERS; t++)
      interval->tier_bytes[t] /= width;
  }
  return timeline;
}

/* Each role's part; its instances, tensor parallelism and blocks are already in the summary. */
static void summarize_roles(const KvMetrics *metrics, KvSummary *s) {
  double span = MAX(s->makespan_seconds, 1e-12), all = 0.0, prefill = 0.0;
  for (guint r = 0; r < s->n_roles; r++) {
    KvRoleSummary *role = &s->roles[r];
    const Role *did = &metrics->roles[role->role];
    role->busy_share = did->busy_seconds / span / role->instances;
    role->mean_blocks_held_share =
        did->held_integral / MAX(did->busy_seconds, 1e-12) / (double)role->total_blocks;
    role->peak_blocks_held_share = did->peak_held / (double)role->total_blocks;
    role->steps = did->steps;
    all += did->busy_seconds * role->tensor_parallel;
    prefill += did->prefill_seconds * role->tensor_parallel;
  }
  s->busy_share = all / span / s->n_gpus; /* of GPUs, which differ by role */
  s->prefill_busy_share = prefill / MAX(all, 1e-12);
  double n = MAX(1.0, (double)metrics->pulled);
  s->pulled_requests = metrics->pulled;
  s->pulled_bytes = metrics->pulled_bytes;
  s->mean_pull_wait_seconds = metrics->pull_wait_seconds / n;
  s->mean_pull_seconds = metrics->pull_seconds / n;
  s->longest_pull_seconds = metrics->longest_pull_seconds;
}

void kv_metrics_summarize(KvMetrics *metrics, KvSummary *summary) {
  KvSummary *s = summary;
  s->requests_arrived = metrics->arrived;
  s->requests_finished = metrics->finished;
  s->requests_rejected = metrics->rejected;
  s->makespan_seconds = metrics->first_arrival < G_MAXDOUBLE
                            ? MAX(0.0, metrics->last_end - metrics->first_arrival)
                            : 0.0;
  double span = MAX(s->makespan_seconds, 1e-12);
  s->prompt_tokens = metrics->prompt_tokens;
  s->output_tokens = metrics->output_tokens;
  s->requests_per_second = (double)metrics->finished / span;
  s->prompt_tokens_per_second = (double)metrics->prompt_tokens / span;
  s->output_tokens_per_second = (double)metrics->output_tokens / span;
  s->total_tokens_per_second = (double)(metrics->looked_up_tokens + metrics->output_tokens) / span;
  for (guint l = 0; l < KV_N_LATENCIES; l++)
    if (l != KV_LATENCY_ITL)
      summarize_samples(&metrics->samples[l], &s->latency[l], &s->cdf[l]);
  summarize_sketch(&metrics->itl, &s->latency[KV_LATENCY_ITL], &s->cdf[KV_LATENCY_ITL]);
  s->slo_ttft_seconds = metrics->slo_ttft;
  s->slo_tpot_seconds = metrics->slo_tpot;
  s->goodput_requests_per_second = (double)metrics->good / span;
  s->slo_attainment = metrics->arrived ? (double)metrics->good / (double)metrics->arrived : 0.0;
  s->hit_tokens = metrics->hit_tokens;
  s->looked_up_tokens = metrics->looked_up_tokens;
  double looked_up = MAX(1.0, (double)metrics->looked_up_tokens);
  s->prefix_hit_ratio = (double)metrics->hit_tokens / looked_up;
  s->lower_tier_hit_ratio = (double)metrics->lower_tier_tokens / looked_up;
  double busy = MAX(metrics->busy_seconds, 1e-12), instances = MAX(1u, s->n_instances);
  double blocks = MAX(1.0, (double)s->total_blocks);
  s->mean_blocks_held_share = metrics->held_integral / busy / blocks;
  s->peak_blocks_held_share = metrics->peak_held / blocks;
  s->fragmentation = metrics->held_integral > 0.0 && !s->compressed
                         ? MAX(0.0, 1.0 - metrics->tokens_integral / metrics->held_integral)
                         : 0.0;
  /* Little's law over what has finished: exact, where the levels seen as batches close are samples.
   */
  double waited = metrics->samples[KV_LATENCY_QUEUE].sum,
         stayed = metrics->samples[KV_LATENCY_E2E].sum;
  s->mean_waiting = waited / span;
  s->mean_running = MAX(0.0, stayed - waited) / span;
  s->peak_running = metrics->peak_running;
  s->peak_waiting = metrics->peak_waiting;
  s->preemptions = metrics->preemptions;
  s->recomputed_tokens = metrics->recomputed_tokens;
  s->swapped_out_blocks = metrics->swapped_out;
  s->swapped_in_blocks = metrics->swapped_in;
  s->steps = metrics->steps;
  s->busy_share = metrics->busy_seconds / span / instances;
  s->prefill_busy_share = metrics->prefill_seconds / busy;
  s->mfu = s->peak_flops_rate > 0.0 ? metrics->flops / busy / s->peak_flops_rate : 0.0;
  s->mbu = s->peak_hbm_Bps > 0.0 ? metrics->hbm_bytes / busy / s->peak_hbm_Bps : 0.0;
  memcpy(s->component_seconds, metrics->component_seconds, sizeof s->component_seconds);
  memcpy(s->component_flops, metrics->component_flops, sizeof s->component_flops);
  memcpy(s->component_bytes, metrics->component_bytes, sizeof s->component_bytes);
  s->flops = metrics->flops;
  s->hbm_bytes = metrics->hbm_bytes;
  s->link_bytes = metrics->link_bytes;
  memcpy(s->fetched_bytes, metrics->fetched, sizeof s->fetched_bytes);
  memcpy(s->stored_bytes, metrics->stored, sizeof s->stored_bytes);
  if (s->n_roles > 0)
    summarize_roles(metrics, s);
  s->timeline = finish_timeline(metrics, s);
}
