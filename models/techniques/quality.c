#include "models/techniques/quality.h"

#include <math.h>
#include <string.h>

static gboolean less_is_better(const char *task) {
  g_autofree char *lower = g_ascii_strdown(task, -1);
  return strstr(lower, "ppl") || strstr(lower, "perplexity") || strstr(lower, "lower is better");
}

static double relative_change(const char *task, double baseline, double value) {
  if (baseline == 0.0)
    return 0.0;
  double change = (value - baseline) / fabs(baseline);
  return less_is_better(task) ? -change : change;
}

/* The use's setting of the parameter `knob` as points give it: a choice by the number that its word
 * spells. */
static double setting_of(const KvTechniqueUse *use, const char *knob) {
  const KvParam *params = use->technique->params;
  for (guint i = 0; params && params[i].name; i++) {
    if (strcmp(params[i].name, knob) != 0)
      continue;
    if (params[i].kind != KV_PARAM_CHOICE)
      return use->values[i];
    const char *word = params[i].choices[(guint)use->values[i]];
    char *end;
    double number = g_ascii_strtod(word, &end);
    return end == word ? use->values[i] : number;
  }
  return NAN;
}

static gboolean same_curve(const KvQualityPoint *x, const KvQualityPoint *y) {
  return strcmp(x->model, y->model) == 0 && strcmp(x->task, y->task) == 0 &&
         g_strcmp0(x->part, y->part) == 0 && g_strcmp0(x->knob, y->knob) == 0;
}

static gboolean first_of_curve(const KvQualityPoint *points, guint i) {
  for (guint k = 0; k < i; k++)
    if (same_curve(&points[k], &points[i]))
      return FALSE;
  return TRUE;
}

/* The neighbours of `at` on the curve of points[first]; FALSE if it lies outside. */
static gboolean neighbours(const KvQualityPoint *points, guint first, double at,
                           const KvQualityPoint **below, const KvQualityPoint **above) {
  *below = *above = NULL;
  for (const KvQualityPoint *p = &points[first]; p->model; p++) {
    if (!same_curve(p, &points[first]))
      continue;
    if (p->at <= at && (!*below || p->at > (*below)->at))
      *below = p;
    if (p->at >= at && (!*above || p->at < (*above)->at))
      *above = p;
  }
  return *below && *above;
}

static void note(KvQuality *quality, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* Add a note, once. */
static void note(KvQuality *quality, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  char *text = g_strdup_vprintf(format, arguments);
  va_end(arguments);
  for (guint i = 0; i < quality->notes->len; i++)
    if (strcmp(g_ptr_array_index(quality->notes, i), text) == 0) {
      g_free(text);
      return;
    }
  g_ptr_array_add(quality->notes, text);
}

/* Whether some curve of the technique runs along the parameter. */
static gboolean is_knob(const KvTechnique *technique, const char *param) {
  for (const KvQualityPoint *p = technique->quality; p->model; p++)
    if (p->knob && strcmp(p->knob, param) == 0)
      return TRUE;
  return FALSE;
}

/* A curve along one parameter was measured with the others that matter as they usually are. */
static gboolean others_as_usual(const KvTechniqueUse *use, const char *knob) {
  const KvParam *params = use->technique->params;
  for (guint i = 0; params && params[i].name; i++)
    if (strcmp(params[i].name, knob) != 0 && use->values[i] != params[i].fallback &&
        is_knob(use->technique, params[i].name))
      return FALSE;
  return TRUE;
}

static void estimate(KvQuality *quality, const KvTechniqueUse *use, guint first) {
  const KvQualityPoint *points = use->technique->quality, *below, *above;
  if (!others_as_usual(use, points[first].knob))
    return;
  double at = setting_of(use, points[first].knob);
  if (!neighbours(points, first, at, &below, &above)) {
    note(quality, "%s: %s=%g lies outside the points of %s on %s", use->technique->id,
         points[first].knob, at, points[first].model, points[first].task);
    return;
  }
  double share = above->at > below->at ? (at - below->at) / (above->at - below->at) : 0.0;
  KvQualityEstimate x = {
      .technique = use->technique,
      .below = below,
      .above = above,
      .baseline = below->baseline + share * (above->baseline - below->baseline),
      .value = below->value + share * (above->value - below->value),
  };
  x.change = relative_change(below->task, x.baseline, x.value);
  g_array_append_val(quality->estimates, x);
}

/* Parameters that are not as usual, and along which the curve of `knob` says nothing. */
static void note_other_settings(KvQuality *quality, const KvTechniqueUse *use) {
  const KvParam *params = use->technique->params;
  for (guint i = 0; params && params[i].name; i++)
    if (!is_knob(use->technique, params[i].name) && strcmp(params[i].name, "impl") != 0 &&
        use->values[i] != params[i].fallback)
      note(quality, "%s: the points are not of this %s", use->technique->id, params[i].name);
}

/* A technique's range over its curves; FALSE if none covers its setting. */
static gboolean range_of(KvQuality *quality, const KvTechniqueUse *use, double *low, double *high) {
  const KvQualityPoint *points = use->technique->quality;
  guint before = quality->estimates->len;
  for (guint i = 0; points[i].model; i++)
    if (points[i].knob && first_of_curve(points, i))
      estimate(quality, use, i);
  *low = INFINITY;
  *high = -INFINITY;
  for (guint i = before; i < quality->estimates->len; i++) {
    double change = g_array_index(quality->estimates, KvQualityEstimate, i).change;
    *low = fmin(*low, change);
    *high = fmax(*high, change);
  }
  if (quality->estimates->len > before)
    note_other_settings(quality, use);
  return quality->estimates->len > before;
}

KvQuality *kv_stack_quality(const KvStack *stack) {
  KvQuality *quality = g_new0(KvQuality, 1);
  quality->estimates = g_array_new(FALSE, FALSE, sizeof(KvQualityEstimate));
  quality->notes = g_ptr_array_new_with_free_func(g_free);
  quality->known = TRUE;
  guint changing = 0;
  for (guint i = 0; i < stack->uses->len; i++) {
    const KvTechniqueUse *use = &g_array_index(stack->uses, KvTechniqueUse, i);
    const KvQualityPoint *points = use->technique->quality;
    gboolean none = !points || !points[0].model;
    if ((none && !use->technique->quality_note) ||
        (use->technique->exact && use->technique->exact(use)))
      continue;
    changing++;
    double low, high;
    if (range_of(quality, use, &low, &high)) {
      quality->low += low;
      quality->high += high;
    } else {
      quality->known = FALSE;
      note(quality, "%s: no published point at this setting", use->technique->id);
    }
  }
  quality->exact = changing == 0;
  quality->assumed = changing > 1;
  if (!quality->known)
    quality->low = quality->high = NAN;
  return quality;
}

void kv_quality_free(KvQuality *quality) {
  if (!quality)
    return;
  g_array_unref(quality->estimates);
  g_ptr_array_unref(quality->notes);
  g_free(quality);
}

/* The estimate with the least (or the greatest) change. */
static const KvQualityEstimate *extreme(const KvQuality *quality, gboolean least) {
  const KvQualityEstimate *found = NULL;
  for (guint i = 0; i < quality->estimates->len; i++) {
    const KvQualityEstimate *x = &g_array_index(quality->estimates, KvQualityEstimate, i);
    if (!found || (least ? x->change < found->change : x->change > found->change))
      found = x;
  }
  return found;
}

char *kv_quality_describe(const KvQuality *quality) {
  if (quality->exact)
    return g_strdup("as the unchanged model's");
  if (!quality->known)
    return g_strdup("no published point at this setting");
  return g_strdup_printf("%+.1f %% to %+.1f %% over %u published result%s%s", 100.0 * quality->low,
                         100.0 * quality->high, quality->estimates->len,
                         quality->estimates->len == 1 ? "" : "s",
                         quality->assumed ? ", if changes add up (an assumption)" : "");
}

char *kv_quality_explain(const KvQuality *quality) {
  GString *text = g_string_new(NULL);
  const KvQualityEstimate *ends[] = {extreme(quality, TRUE), extreme(quality, FALSE)};
  for (guint i = 0; i < 2 && ends[i] && (i == 0 || ends[1] != ends[0]); i++)
    g_string_append_printf(
        text, "%s%s %s: %.4g to %.4g on %s, %s (%s%s, %s).", i ? " " : "", i ? "Best," : "Worst,",
        ends[i]->technique->id, ends[i]->baseline, ends[i]->value, ends[i]->below->model,
        ends[i]->below->task, ends[i]->below->setting,
        ends[i]->below == ends[i]->above ? "" : ", interpolated", ends[i]->below->source);
  for (guint i = 0; i < quality->notes->len; i++)
    g_string_append_printf(text, "%s%s.", text->len ? " " : "",
                           (char *)g_ptr_array_index(quality->notes, i));
  return g_string_free(text, FALSE);
}

static json_t *estimate_to_json(const KvQualityEstimate *x) {
  json_t *object =
      json_pack("{s:s, s:s, s:s, s:f, s:f, s:f, s:b}", "technique", x->technique->id, "model",
                x->below->model, "task", x->below->task, "baseline", x->baseline, "value", x->value,
                "relative_change", x->change, "interpolated", x->below != x->above);
  json_object_set_new(object, "setting", json_string(x->below->setting));
  json_object_set_new(object, "source", json_string(x->below->source));
  if (x->below->part)
    json_object_set_new(object, "part", json_string(x->below->part));
  if (x->below != x->above)
    json_object_set_new(object, "upper_setting", json_string(x->above->setting));
  return object;
}

json_t *kv_quality_to_json(const KvQuality *quality) {
  json_t *estimates = json_array(), *notes = json_array();
  for (guint i = 0; i < quality->estimates->len; i++)
    json_array_append_new(
        estimates, estimate_to_json(&g_array_index(quality->estimates, KvQualityEstimate, i)));
  for (guint i = 0; i < quality->notes->len; i++)
    json_array_append_new(notes, json_string(g_ptr_array_index(quality->notes, i)));
  json_t *object =
      json_pack("{s:b, s:b, s:b, s:o, s:o}", "exact", quality->exact, "known", quality->known,
                "assumed", quality->assumed, "estimates", estimates, "notes", notes);
  if (quality->known) {
    json_object_set_new(object, "relative_change_low", json_real(quality->low));
    json_object_set_new(object, "relative_change_high", json_real(quality->high));
  }
  return object;
}
