/* Survey: Model-level Optimization > Cross-layer > Cache Sharing. */
#include "models/techniques/build.h"

/* --- LCKV --- */

static gboolean lckv_arch(const KvTechniqueUse *use, KvModel *model, GError **error) {
  const KvAttention *x = &model->groups[0].attention;
  guint layers = kv_model_layers(model), warm_up = (guint)kv_technique_value(use, "w");
  if (model->n_groups != 1 || x->kind != KV_ATTENTION_FULL)
    return kv_technique_refuse(use, error,
                               "one layer's keys and values serve all others, but the layers of %s "
                               "are not all alike with full attention, expected such a model",
                               model->id);
  if (warm_up + 2 > layers)
    return kv_technique_refuse(
        use, error,
        "w is %u, but %s has %u layers, expected at least 2 layers beside the "
        "warm-up layers",
        warm_up, model->id, layers);
  /* The layer whose cache all condensed layers read, and those that only read it. */
  double passes = kv_technique_value(use, "m") + kv_technique_value(use, "b") - 1.0;
  guint lender = 0;
  if (warm_up > 0) {
    kv_model_split_group(model, 0, layers - warm_up);
    lender = 1;
  }
  model->groups[lender].extra_prefill_passes = passes;
  kv_model_split_group(model, lender, layers - warm_up - 1)->attention.borrows_cache = TRUE;
  return TRUE;
}

static const char *const lckv_targets[] = {"top", "middle", "bottom", NULL};

static const KvParam lckv_params[] = {
    {"w", KV_PARAM_INTEGER, 10, 0, 1000, NULL, "layers",
     "warm-up layers with keys and values of their own; 2 is fastest, 10 loses no quality"},
    {"m", KV_PARAM_INTEGER, 7, 1, 1000, NULL, "passes",
     "over a prompt, beside the next b, until the shared keys and values have settled"},
    {"b", KV_PARAM_INTEGER, 2, 0, 1000, NULL, "passes", "of training that carry gradients"},
    {"target", KV_PARAM_CHOICE, 0, 0, 2, lckv_targets, "",
     "which of the condensed layers makes the keys and values; quality only"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula lckv_formulas[] = {
    {"2*n*(w+1)*Hkv*d*e", "bytes of the cache"},
    {"2*n*L*Hkv*d*e", "HBM bytes that a decode step reads: every layer still reads a cache"},
    {"4*n*H*d", "FLOPs of the attention core per layer and decode step, unchanged"},
    {"(w + (m+b)*(L-w))/L", "prompt work over that of the unchanged model"},
    {"2*D*Hkv*d*(L-w-1)", "parameters saved"},
    {NULL, NULL},
};

static const KvQualityPoint lckv_quality[] = {
    {"TinyLlama 1.1B, 100B tokens", "SlimPajama dev perplexity", "w=2", 9.219, 9.746,
     "Table 3, seen", "w", 2, NULL},
    {"TinyLlama 1.1B, 100B tokens", "SlimPajama dev perplexity", "w=10", 9.219, 9.265,
     "Table 3, seen", "w", 10, NULL},
    {"TinyLlama 1.1B", "7-task commonsense average", "w=2", 46.65, 45.45, "Table 2, seen", "w", 2,
     NULL},
    {"TinyLlama 1.1B", "7-task commonsense average", "w=10", 46.65, 46.84, "Table 2, seen", "w", 10,
     NULL},
    {"TinyLlama 1.1B (short training)", "dev perplexity, placement of 2 warm-up layers",
     "all at the bottom instead of half at each end", 7.381, 7.668, "Table 4, seen", NULL, 0, NULL},
    {0},
};

static const char *const lckv_sections[] = {
    "Model-level Optimization > Cross-layer > Cache Sharing", NULL};

const KvTechnique kv_technique_lckv = {
    .id = "lckv",
    .name = "LCKV",
    .title = "Layer-Condensed KV Cache for Efficient Inference of Large Language Models",
    .paper = "arXiv:2405.10637",
    .code = "github.com/whyNLP/LCKV",
    .year = 2024,
    .sections = lckv_sections,
    .mechanism =
        "The queries of almost all layers attend to the keys and values of one upper layer; only it "
        "and w warm-up layers, half at each end of the stack, have projections and a cache of their "
        "own. A token cannot see itself in the condensed layers, because its upper layer has not "
        "run yet. Decoding stays one pass per token. In a prompt every token needs the upper "
        "layer's result of the tokens before it, so the condensed layers are run over it m+b times, "
        "each time with the keys and values of the pass before.",
    .params = lckv_params,
    .formulas = lckv_formulas,
    .quality = lckv_quality,
    .composes = "Goes with grouped heads (before or after it), quantization, eviction and paging. "
                "Refuses models whose layers differ, such as qcqa makes, and latent, sliding or "
                "recurrent ones. A cached prefix is valid only for the same number of passes.",
    .pitfalls =
        "A prompt takes up to m+b times as long, so long prompts with short answers lose. Reads "
        "are not reduced at equal batch; the gain is a larger batch. Each chunk of a prompt is "
        "passed over m+b times here, which a system that chunks would have to arrange. The 26x that "
        "is quoted is against offloading to the CPU; the published shapes of 7B and 30B are untrained.",
    .confidence = "high: the paper's text with its tables, and the code, were read",
    .arch = lckv_arch,
};
