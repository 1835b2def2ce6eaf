#include "models/techniques/plan.h"

#include <math.h>
#include <string.h>

#include "sim/base/error.h"

const char *const kv_tier_names[] = {"hbm", "dram", "cxl", "ssd", "csd", "remote", NULL};
const char *const kv_moment_names[] = {"prefill token", "prefill chunk", "prefill end",
                                       "decode step", NULL};

/* --- laws --- */

KvLaw kv_law(KvLawKind kind, double a) {
  return (KvLaw){.kind = kind, .a = a, .scale = 1.0, .cap = G_MAXDOUBLE};
}

gboolean kv_law_equal(const KvLaw *x, const KvLaw *y) {
  return x->kind == y->kind && x->a == y->a && x->scale == y->scale && x->cap == y->cap &&
         x->kept_prompt == y->kept_prompt && x->prompt_share == y->prompt_share &&
         x->short_prompt == y->short_prompt && x->short_kept == y->short_kept;
}

typedef struct {
  double value, slope, valid_tokens;
} Affine;

/* The law before scale and cap, at the n that an eviction left. */
static Affine law_base(KvLawKind kind, double a, double n) {
  switch (kind) {
  case KV_LAW_ALL:
  case KV_LAW_PROMPT_CAPPED:
    break;
  case KV_LAW_FIXED:
    return (Affine){a, 0.0, G_MAXDOUBLE};
  case KV_LAW_FIRST:
  case KV_LAW_LAST:
  case KV_LAW_EVICTED:
    return n < a ? (Affine){n, 1.0, a - n} : (Affine){a, 0.0, G_MAXDOUBLE};
  case KV_LAW_OVER:
    return n <= a ? (Affine){0.0, 0.0, a - n} : (Affine){n, 1.0, G_MAXDOUBLE};
  case KV_LAW_BEYOND:
    return n < a ? (Affine){0.0, 0.0, a - n} : (Affine){n - a, 1.0, G_MAXDOUBLE};
  case KV_LAW_FLUSHED:
  case KV_LAW_PENDING: {
    /* Blocks of one token never wait: no sawtooth, so no boundary at every step. */
    if (a <= 1.0)
      return kind == KV_LAW_FLUSHED ? (Affine){n, 1.0, G_MAXDOUBLE}
                                    : (Affine){0.0, 0.0, G_MAXDOUBLE};
    double flushed = a * floor(n / a);
    double valid = ceil(flushed + a - n) - 1.0; /* the flush at the next multiple breaks it */
    return kind == KV_LAW_FLUSHED ? (Affine){flushed, 0.0, valid}
                                  : (Affine){n - flushed, 1.0, valid};
  }
  }
  return (Affine){n, 1.0, G_MAXDOUBLE};
}

/* Tokens of the context that an eviction at the end of the prompt left; `a` the parameter. */
static double law_context(const KvLaw *law, double a, double n, double prompt, gboolean decoding) {
  double kept = law->kind == KV_LAW_PROMPT_CAPPED ? a : law->kept_prompt;
  gboolean evicts = law->kind == KV_LAW_PROMPT_CAPPED || law->kept_prompt > 0.0;
  if (prompt < law->short_prompt)
    kept = law->short_kept;
  return evicts && decoding ? MIN(prompt, kept) + n - prompt : n;
}

double kv_law_value(const KvLaw *law, double n, double prompt, gboolean decoding, double *slope,
                    double *valid_tokens) {
  double a = law->a + law->prompt_share * prompt;
  KvLawKind kind = law->kind == KV_LAW_EVICTED && !decoding ? KV_LAW_ALL : law->kind;
  Affine x = law_base(kind, a, law_context(law, a, n, prompt, decoding));
  x.value *= law->scale;
  x.slope *= law->scale;
  if (law->scale == 0.0)
    x.valid_tokens = G_MAXDOUBLE;
  if (x.value >= law->cap) {
    /* Only a sawtooth comes down again; every other law stays at its cap. */
    if (law->kind != KV_LAW_PENDING)
      x.valid_tokens = G_MAXDOUBLE;
    x.value = law->cap;
    x.slope = 0.0;
  } else if (x.slope > 0.0 && law->cap < G_MAXDOUBLE) {
    x.valid_tokens = MIN(x.valid_tokens, floor((law->cap - x.value) / x.slope));
  }
  if (slope)
    *slope = x.slope;
  if (valid_tokens)
    *valid_tokens = x.valid_tokens;
  return x.value;
}

char *kv_law_describe(const KvLaw *law) {
  static const struct {
    const char *format;
  } words[] = {
      [KV_LAW_ALL] = {"all"},
      [KV_LAW_FIXED] = {"%g always"},
      [KV_LAW_FIRST] = {"first %g"},
      [KV_LAW_LAST] = {"last %g"},
      [KV_LAW_BEYOND] = {"all but %g"},
      [KV_LAW_FLUSHED] = {"whole blocks of %g"},
      [KV_LAW_PENDING] = {"beyond whole blocks of %g"},
      [KV_LAW_PROMPT_CAPPED] = {"at most %g of the prompt, and what follows it"},
      [KV_LAW_EVICTED] = {"at most %g once the prompt is done"},
      [KV_LAW_OVER] = {"all where there are more than %g"},
  };
  GString *text = g_string_new(NULL);
  if (law->scale != 1.0)
    g_string_append_printf(text, "%g %% of ", law->scale * 100.0);
  if (law->kind == KV_LAW_ALL)
    g_string_append(text, words[law->kind].format);
  else {
    char number[64];
    if (law->prompt_share > 0.0 && law->a == 0.0)
      g_snprintf(number, sizeof number, "(%g %% of the prompt)", law->prompt_share * 100.0);
    else if (law->prompt_share > 0.0)
      g_snprintf(number, sizeof number, "(%g and %g %% of the prompt)", law->a,
                 law->prompt_share * 100.0);
    else
      g_snprintf(number, sizeof number, "%g", law->a);
    char **parts = g_strsplit(words[law->kind].format, "%g", 2);
    g_string_append_printf(text, "%s%s%s", parts[0], number, parts[1]);
    g_strfreev(parts);
  }
  if (law->kept_prompt > 0.0)
    g_string_append_printf(text, ", of %g prompt tokens and what follows them", law->kept_prompt);
  if (law->short_prompt > 0.0)
    g_string_append_printf(text, " (%g of prompts below %g)", law->short_kept, law->short_prompt);
  if (law->cap < G_MAXDOUBLE)
    g_string_append_printf(text, ", at most %g", law->cap);
  return g_string_free(text, FALSE);
}

/* --- the plan of an unchanged model --- */

static KvCache cache_new(guint group, const KvLayerGroup *layers, double e, KvDtype dtype) {
  const KvAttention *x = &layers->attention;
  KvCache cache = {.name = "cache", .group = group, .layers = layers->count};
  if (x->kind == KV_ATTENTION_NONE) {
    cache.name = "state";
    cache.state_bytes = (double)x->state_elements * e;
    return cache;
  }
  cache.n_segments = 1;
  KvSegment *segment = &cache.segments[0];
  *segment = (KvSegment){
      .name = "tokens",
      .role = KV_ROLE_MIDDLE,
      .tokens = kv_law(KV_LAW_ALL, 0),
      .key_bytes = (double)x->n_kv_heads * x->head_dim * e,
      .value_bytes = (double)x->n_kv_heads * x->value_head_dim * e,
      .tier = KV_TIER_HBM,
      .format = dtype,
  };
  if (x->kind == KV_ATTENTION_SLIDING) {
    cache.name = "window";
    segment->role = KV_ROLE_RECENT;
    segment->tokens = kv_law(KV_LAW_LAST, x->window_tokens);
  } else if (x->kind == KV_ATTENTION_LATENT) {
    cache.name = "latent";
    segment->key_bytes = ((double)x->kv_lora_rank + x->rope_head_dim) * e;
    segment->value_bytes = 0.0;
  }
  if (layers->stride_tokens > 1)
    segment->tokens.scale = 1.0 / layers->stride_tokens;
  return cache;
}

static KvReader reader_new(guint index, const KvCache *cache, const KvAttention *x, KvDtype dtype) {
  KvReader reader = {
      .cache = index,
      .layers = cache->layers,
      .read_bytes_scale = 1.0,
      /* q.k and p.v, a multiplication and an addition each. */
      .flops_per_token = 2.0 * x->n_heads * ((double)x->head_dim + x->value_head_dim),
      .efficiency = 1.0,
      .processor = KV_PROCESSOR_GPU,
      .overlap = KV_OVERLAP_STEP,
      .format = dtype,
      .n_kv_heads = x->n_kv_heads,
  };
  for (guint i = 0; i < cache->n_segments; i++)
    reader.read[i] = cache->segments[i].tokens;
  if (x->kind == KV_ATTENTION_LATENT) {
    /* Absorbed: q.(latent, rope) and p.latent in the latent space, one latent for all heads. */
    reader.flops_per_token = 2.0 * x->n_heads * (2.0 * x->kv_lora_rank + x->rope_head_dim);
    reader.n_kv_heads = 1;
  }
  return reader;
}

/* Groups without a cache of their own read that of the nearest group before them that has one, or
 * of the first after them. */
static void add_borrowers(KvPlan *plan, const KvModel *model, KvDtype dtype) {
  for (guint g = 0; g < model->n_groups; g++) {
    if (!model->groups[g].attention.borrows_cache)
      continue;
    int lender = -1;
    for (guint i = 0; i < plan->caches->len; i++) {
      const KvCache *cache = &g_array_index(plan->caches, KvCache, i);
      if (cache->n_segments > 0 && (lender < 0 || cache->group < g))
        lender = (int)i;
    }
    if (lender < 0)
      continue;
    const KvCache *cache = &g_array_index(plan->caches, KvCache, lender);
    KvReader reader = reader_new((guint)lender, cache, &model->groups[g].attention, dtype);
    reader.layers = model->groups[g].count;
    g_array_append_val(plan->readers, reader);
  }
}

/* What Mamba blocks do beside their products. */
static void add_scan(KvPlan *plan, const KvLayerGroup *group) {
  const KvAttention *a = &group->attention;
  double layers = group->count, I = a->inner, e = 2.0; /* activations */
  const KvWork scan = {.name = "selective scan of the prompt",
                       .technique = "recurrent",
                       .moment = KV_MOMENT_PREFILL_TOKEN,
                       .flops = layers * (9.0 * a->state_dim + 2.0 * a->conv_width) * I,
                       .bytes = layers * 5.0 * I * e,
                       .launches = layers * 3.0,
                       .critical = TRUE};
  /* Reading and writing the state is the cache's own. */
  const KvWork update = {.name = "update the state",
                         .technique = "recurrent",
                         .moment = KV_MOMENT_DECODE_STEP,
                         .flops = layers * (6.0 * a->state_dim + 2.0 * a->conv_width) * I,
                         .bytes = layers * 5.0 * I * e,
                         .launches = layers * 5.0,
                         .critical = TRUE};
  g_array_append_val(plan->work, scan);
  g_array_append_val(plan->work, update);
}

KvPlan *kv_plan_new(const KvModel *model, KvDtype dtype) {
  KvPlan *plan = g_new0(KvPlan, 1);
  double e = kv_dtype_bytes(dtype);
  plan->caches = g_array_new(FALSE, TRUE, sizeof(KvCache));
  plan->readers = g_array_new(FALSE, TRUE, sizeof(KvReader));
  plan->work = g_array_new(FALSE, TRUE, sizeof(KvWork));
  plan->techniques = g_ptr_array_new();
  plan->element_bytes = e;
  plan->shareable = TRUE;
  plan->share_multiple = 1;
  plan->fused_attention = TRUE;
  plan->paged = TRUE;
  plan->prefill_flops_scale = 1.0;
  plan->weights.dtype = model->weight_dtype;
  plan->weights.bytes_per_parameter = kv_dtype_weight_bytes(model->weight_dtype);
  plan->weights.share[KV_TIER_HBM] = 1.0;
  plan->weights.stream_overlaps = TRUE;
  for (guint g = 0; g < model->n_groups; g++) {
    const KvLayerGroup *layers = &model->groups[g];
    if (layers->attention.borrows_cache)
      continue;
    KvCache cache = cache_new(g, layers, e, dtype);
    g_array_append_val(plan->caches, cache);
    if (layers->attention.inner)
      add_scan(plan, layers);
    if (cache.state_bytes > 0.0) {
      plan->shareable = FALSE; /* a state holds its whole past: a prefix of it cannot be taken */
    } else if (cache.n_segments > 0) {
      KvReader reader = reader_new(plan->caches->len - 1, &cache, &layers->attention, dtype);
      g_array_append_val(plan->readers, reader);
      plan->prefill_peak_layers += layers->count;
    }
  }
  add_borrowers(plan, model, dtype);
  return plan;
}

void kv_plan_free(KvPlan *plan) {
  if (!plan)
    return;
  g_array_unref(plan->caches);
  g_array_unref(plan->readers);
  g_array_unref(plan->work);
  g_ptr_array_unref(plan->techniques);
  g_free(plan);
}

/* --- compiling --- */

/* The channel of `law`, added if it is new; -1 if there is no room. */
static int channel_of(KvPlanCurves *curves, const KvLaw *law) {
  for (guint c = 0; c < curves->n_channels; c++)
    if (kv_law_equal(&curves->laws[c], law))
      return (int)c;
  if (curves->n_channels == KV_MAX_CHANNELS)
    return -1;
  curves->laws[curves->n_channels] = *law;
  return (int)curves->n_channels++;
}

static double segment_bytes(const KvSegment *segment) {
  return segment->key_bytes + segment->value_bytes + segment->metadata_bytes;
}

/* How much of a token's attention this segment is: 1/2 where keys and values are stored apart. */
static double segment_share(const KvCache *cache, guint s) {
  const KvSegment *segment = &cache->segments[s];
  gboolean keys = FALSE, values = FALSE;
  for (guint i = 0; i < cache->n_segments; i++) {
    keys |= cache->segments[i].key_bytes > 0.0;
    values |= cache->segments[i].value_bytes > 0.0;
  }
  if (segment->key_bytes == 0.0 && segment->value_bytes == 0.0)
    return 0.0; /* metadata only */
  gboolean only_keys = segment->value_bytes == 0.0, only_values = segment->key_bytes == 0.0;
  return (only_keys && values) || (only_values && keys) ? 0.5 : 1.0;
}

/* The term of `channel` in reader `r`, added if it is new. */
static KvReadTerm *term_of(KvPlanCurves *curves, guint r, guint channel) {
  for (guint i = 0; i < curves->readers[r].n_terms; i++)
    if (curves->readers[r].terms[i].channel == channel)
      return &curves->readers[r].terms[i];
  g_assert(curves->readers[r].n_terms < KV_MAX_TERMS);
  KvReadTerm *term = &curves->readers[r].terms[curves->readers[r].n_terms++];
  *term = (KvReadTerm){.channel = channel};
  return term;
}

/* Whether the processor's own memory is the tier's: anything else has to be moved first. */
static gboolean at_home(KvProcessor processor, KvTier tier) {
  switch (processor) {
  case KV_PROCESSOR_GPU:
    return tier == KV_TIER_HBM;
  case KV_PROCESSOR_CPU:
    return tier == KV_TIER_DRAM || tier == KV_TIER_CXL;
  case KV_PROCESSOR_STORAGE:
    break;
  }
  return tier == KV_TIER_CSD;
}

/* Add what `reader` does with segment `s` of its cache, whose read law is channel `c`. */
static void compile_read(KvPlanCurves *curves, guint r, const KvReader *reader,
                         const KvCache *cache, guint s, int c) {
  const KvSegment *segment = &cache->segments[s];
  KvReadTerm *term = term_of(curves, r, (guint)c);
  double share = segment_share(cache, s), layers = reader->layers;
  double stored = layers * segment_bytes(segment);
  double read = stored * reader->read_bytes_scale + layers * reader->extra_bytes_per_token * share;
  term->flops += layers * reader->flops_per_token * share;
  term->tokens += share;
  *(reader->processor == KV_PROCESSOR_GPU ? &term->hbm_bytes : &term->host_bytes) += read;
  if (at_home(reader->processor, segment->tier) || stored == 0.0)
    return;
  term->fetched_bytes[segment->tier] += stored;
  curves->readers[r].fetches = TRUE;
}

static gboolean law_bends(const KvLaw *law) {
  switch (law->kind) {
  case KV_LAW_FIXED:
    return FALSE;
  case KV_LAW_ALL:
  case KV_LAW_PROMPT_CAPPED:
    return law->cap < G_MAXDOUBLE && law->scale > 0.0;
  default:
    return law->scale > 0.0;
  }
}

static gboolean compile_reader(const KvPlan *plan, KvPlanCurves *curves, const KvReader *reader) {
  const KvCache *cache = &g_array_index(plan->caches, KvCache, reader->cache);
  guint r = curves->n_readers++;
  curves->readers[r].reader = *reader;
  for (guint s = 0; s < cache->n_segments; s++) {
    /* A segment that this reader leaves to another one needs no channel. */
    const KvLaw *law = &reader->read[s];
    if (law->scale == 0.0 || (law->kind == KV_LAW_FIXED && law->a == 0.0))
      continue;
    int c = channel_of(curves, law);
    if (c < 0)
      return FALSE;
    compile_read(curves, r, reader, cache, s, c);
  }
  if (reader->index_bytes_per_token > 0.0 || reader->index_flops_per_token > 0.0) {
    gboolean always = reader->index_over_tokens <= 0.0;
    KvLaw indexed = kv_law(always ? KV_LAW_ALL : KV_LAW_OVER, reader->index_over_tokens);
    int c = channel_of(curves, &indexed);
    if (c < 0)
      return FALSE;
    KvReadTerm *term = term_of(curves, r, (guint)c);
    *(reader->processor == KV_PROCESSOR_GPU ? &term->hbm_bytes : &term->host_bytes) +=
        reader->layers * reader->index_bytes_per_token;
    term->flops += reader->layers * reader->index_flops_per_token;
  }
  return TRUE;
}

gboolean kv_plan_compile(const KvPlan *plan, KvPlanCurves *curves, GError **error) {
  memset(curves, 0, sizeof *curves);
  if (plan->readers->len > KV_MAX_READERS) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "the plan has %u readers, expected at most %d",
                plan->readers->len, KV_MAX_READERS);
    return FALSE;
  }
  gboolean fits = TRUE;
  for (guint i = 0; i < plan->caches->len && fits; i++) {
    const KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    curves->state_bytes += cache->layers * cache->state_bytes;
    for (guint s = 0; s < cache->n_segments && fits; s++) {
      const KvSegment *segment = &cache->segments[s];
      int c = channel_of(curves, &segment->tokens);
      fits = c >= 0;
      if (fits)
        curves->stored_bytes[segment->tier][c] += cache->layers * segment_bytes(segment);
    }
  }
  for (guint i = 0; i < plan->readers->len && fits; i++)
    fits = compile_reader(plan, curves, &g_array_index(plan->readers, KvReader, i));
  if (!fits) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "the plan has more than %d different token laws, expected a simpler stack",
                KV_MAX_CHANNELS);
    return FALSE;
  }
  curves->is_affine_forever = TRUE;
  for (guint c = 0; c < curves->n_channels; c++)
    curves->is_affine_forever &= !law_bends(&curves->laws[c]);
  return TRUE;
}

/* --- one sequence --- */

/* Bytes that one new token's keys (or values) take where new tokens go: the most recent role that
 * stores them. Segments that split that role, as shares of tiers, count by their scale. */
static double new_token_bytes(const KvCache *cache, gboolean keys) {
  double bytes = 0.0, scales = 0.0;
  int newest = -1;
  for (guint s = 0; s < cache->n_segments; s++) {
    const KvSegment *x = &cache->segments[s];
    double own = keys ? x->key_bytes : x->value_bytes;
    if (own <= 0.0 || (int)x->role < newest)
      continue;
    if ((int)x->role > newest)
      bytes = scales = 0.0;
    newest = (int)x->role;
    double with_metadata = own + x->metadata_bytes * own / (x->key_bytes + x->value_bytes);
    bytes += with_metadata * x->tokens.scale;
    scales += x->tokens.scale;
  }
  return scales > 0.0 ? bytes / scales : 0.0;
}

KvPlanCost kv_plan_cost(const KvPlan *plan, const KvPlanCurves *curves, double n, double prompt,
                        gboolean decoding) {
  KvPlanCost cost = {.read_bytes = curves->state_bytes, .written_bytes = curves->state_bytes};
  cost.resident_bytes[KV_TIER_HBM] = curves->state_bytes;
  for (guint c = 0; c < curves->n_channels; c++) {
    double tokens = kv_law_value(&curves->laws[c], n, prompt, decoding, NULL, NULL);
    for (guint t = 0; t < KV_N_TIERS; t++)
      cost.resident_bytes[t] += tokens * curves->stored_bytes[t][c];
  }
  for (guint r = 0; r < curves->n_readers; r++) {
    for (guint i = 0; i < curves->readers[r].n_terms; i++) {
      const KvReadTerm *term = &curves->readers[r].terms[i];
      double tokens = kv_law_value(&curves->laws[term->channel], n, prompt, decoding, NULL, NULL);
      cost.read_bytes += tokens * term->hbm_bytes;
      cost.attention_flops += tokens * term->flops;
      for (guint t = 0; t < KV_N_TIERS; t++)
        cost.fetched_bytes += tokens * term->fetched_bytes[t];
    }
  }
  for (guint i = 0; i < plan->caches->len; i++) {
    const KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    cost.written_bytes +=
        cache->layers * (new_token_bytes(cache, TRUE) + new_token_bytes(cache, FALSE));
  }
  return cost;
}
