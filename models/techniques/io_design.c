/* Survey: System-level Optimization > Hardware-aware Design > I/O-based Design. */
#include <string.h>

#include "models/techniques/build.h"

/* --- Cake --- */

static gboolean cake_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                          GError **error) {
  if (!plan->shareable)
    return kv_technique_refuse(use, error,
                               "prefixes cannot be shared under %s, expected a cache that is the "
                               "same for equal prefixes",
                               plan->unshareable_by ? plan->unshareable_by : "a recurrent state");
  for (guint i = 0; i < plan->caches->len; i++) {
    const KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    for (guint s = 0; s < cache->n_segments; s++)
      if (cache->segments[s].tier != KV_TIER_HBM)
        return kv_technique_refuse(
            use, error,
            "'%s' of the cache lives in %s, expected a cache that is used in "
            "HBM and only kept below",
            cache->segments[s].name, kv_tier_names[cache->segments[s].tier]);
  }
  return TRUE;
}

static gboolean cake_engine(const KvTechniqueUse *use, const KvModel *model, KvEngineConfig *config,
                            GError **error) {
  if (config->scheduled_by && strcmp(config->scheduler, "vllm-v1") != 0)
    return kv_technique_refuse(use, error,
                               "prompts are in the hands of %s, expected the default engine, which "
                               "computes them in chunks",
                               config->scheduled_by);
  config->load_race = TRUE;
  config->load_chunk_tokens = (guint)kv_technique_value(use, "chunk");
  config->load_Bps = kv_technique_value(use, "bandwidth") * 1e9 / 8.0;
  config->load_share = kv_technique_choice_number(use, "kv_bits") / 16.0;
  return TRUE;
}

static const char *const cake_bits[] = {"16", "8", "3", NULL};

static const KvParam cake_params[] = {
    {"chunk", KV_PARAM_INTEGER, 512, 16, 8192, NULL, "tokens",
     "unit of computing and of loading; 256 to 1024 in the paper"},
    {"bandwidth", KV_PARAM_REAL, 0, 0, 10000, NULL, "Gbit/s",
     "at which the prefix is read, from a disk or over a network; 0: the tier's own"},
    {"gpu_share", KV_PARAM_REAL, 1, 1, 1, NULL, "fraction",
     "of the compute for this request; only 1: other requests of the run take theirs"},
    {"kv_bits", KV_PARAM_CHOICE, 0, 0, 2, cake_bits, "bit",
     "of the stored form; unpacking is not priced"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula cake_formulas[] = {
    {"2*L*Hkv*d*e*n*kv_bits/16", "bytes stored below HBM; on the GPU as ever"},
    {"(N-m)*c*2*L*Hkv*d*e*kv_bits/16", "bytes loaded, of N chunks of c tokens, m computed"},
    {"2*P*m*c + 2*L*H*d*(m*c)^2", "FLOPs of the chunks that are computed"},
    {"min over m of max(T_compute(m), T_load(N-m)) + T_suffix", "seconds to the first token"},
    {"1/(1/T_c + 1/T_io)", "... if both were linear: T/T_c + T/T_io = 1"},
    {NULL, NULL},
};

static const KvQualityPoint cake_quality[] = {
    {0},
};

static const char *const cake_sections[] = {
    "System-level Optimization > Hardware-aware Design > I/O-based Design", NULL};

const KvTechnique kv_technique_cake = {
    .id = "cake",
    .name = "Cake",
    .title = "Compute Or Load KV Cache? Why Not Both?",
    .paper = "arXiv:2410.03065",
    .year = 2024,
    .sections = cake_sections,
    .mechanism =
        "A prefix whose cache is on a slow tier is restored from both ends at once: the GPU computes "
        "its first chunk, then the next, as any chunked prompt, while the loader fetches the last "
        "chunk, then the one before. Where they meet the prefix is complete. Computing gets dearer from "
        "chunk to chunk and loading does not, which is why each works on its end.\n\n"
        "Nothing is tuned: before each step the engine looks whether the next chunk has arrived. Pages "
        "of the whole prefix are taken at admission. When the GPU is busy with others the prompt's "
        "share of a step is smaller, and more is loaded.",
    .params = cake_params,
    .formulas = cake_formulas,
    .quality = cake_quality, /* lossless; the paper reports none for stored codecs */
    .composes =
        "Needs a lower tier of the prefix cache (prefix_cache.tier) and the default engine. "
        "Goes with techniques that keep equal prefixes equal; a smaller cache loads faster. "
        "Excludes caches that live below HBM and techniques that end sharing.",
    .pitfalls =
        "Only the prefix is eligible: what follows is an ordinary prompt. Loads share the tier's "
        "path, so many at once load each more slowly and leave more to be computed. A chunk that "
        "is computed before it arrives is loaded in vain, as far as its load got. A shared prefix "
        "counts as found from its admission on.",
    .confidence =
        "medium-high: abstracts and reading notes with values of tables were seen; the list "
        "of models is recalled",
    .plan = cake_plan,
    .engine = cake_engine,
};
