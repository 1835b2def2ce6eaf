/* Survey: Model-level Optimization > Non-transformer Architecture > New Architecture. */
#include <math.h>

#include "models/techniques/build.h"

/* --- Mamba --- */

/* The shape of one block. */
typedef struct {
  double hidden, inner, state, conv, rank; /* D, expand D, N, width of the convolution, of dt */
} Mamba;

static Mamba mamba_of(const KvTechniqueUse *use, const KvModel *model) {
  Mamba m = {.hidden = model->hidden,
             .state = kv_technique_value(use, "N"),
             .conv = kv_technique_value(use, "d_conv")};
  double rank = kv_technique_value(use, "dt_rank");
  m.inner = kv_technique_value(use, "expand") * m.hidden;
  m.rank = rank > 0.0 ? rank : ceil(m.hidden / 16.0);
  return m;
}

static gboolean mamba_arch(const KvTechniqueUse *use, KvModel *model, GError **error) {
  guint layers = (guint)kv_technique_value(use, "layers");
  for (guint g = 0; g < model->n_groups; g++) {
    if (model->groups[g].attention.kind == KV_ATTENTION_NONE)
      return kv_technique_refuse(use, error, "%s is recurrent already, expected a transformer",
                                 model->id);
    if (model->groups[g].mlp.n_experts > 0)
      return kv_technique_refuse(use, error,
                                 "%s has experts, which a block has no place for, expected a dense "
                                 "model",
                                 model->id);
  }
  if (model->hidden == 0)
    return kv_technique_refuse(use, error, "%s has no hidden size, expected one", model->id);
  Mamba m = mamba_of(use, model);
  KvLayerGroup blocks = {.count = layers ? layers : 2 * kv_model_layers(model)};
  kv_attention_set_mamba(&blocks.attention, model->hidden, (guint)m.inner, (guint)m.state,
                         (guint)m.conv, (guint)m.rank);
  model->n_groups = 1;
  model->groups[0] = blocks;
  model->learned_positions = FALSE;
  return TRUE;
}

static gboolean mamba_plan(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                           GError **error) {
  (void)error;
  Mamba m = mamba_of(use, model);
  for (guint i = 0; i < plan->caches->len; i++) {
    KvCache *cache = &g_array_index(plan->caches, KvCache, i);
    if (kv_technique_value(use, "state_dtype") == 1.0)
      cache->state_bytes = m.inner * (2.0 * m.conv + 4.0 * m.state);
  }
  return TRUE;
}

static const char *const mamba_dtypes[] = {"fp16", "fp32", NULL};

static const KvParam mamba_params[] = {
    {"N", KV_PARAM_INTEGER, 16, 1, 1024, NULL, "elements", "state of each channel"},
    {"expand", KV_PARAM_REAL, 2, 0.5, 16, NULL, "x", "inner width over the hidden size"},
    {"d_conv", KV_PARAM_INTEGER, 4, 1, 64, NULL, "tokens", "width of the convolution"},
    {"dt_rank", KV_PARAM_INTEGER, 0, 0, 65536, NULL, "elements",
     "rank of the step size's projection; 0: a sixteenth of the hidden size"},
    {"layers", KV_PARAM_INTEGER, 0, 0, 4096, NULL, "blocks",
     "blocks in place of the layers; 0: two for each. The published shapes are 24x768 (130M), "
     "48x1024 (370M), 48x1536 (790M), 48x2048 (1.4B) and 64x2560 (2.8B)"},
    {"state_dtype", KV_PARAM_CHOICE, 0, 0, 1, mamba_dtypes, "",
     "of the state: fp16 stands for the cache's type, as the authors allocate it; fp32 is safer"},
    {NULL, 0, 0, 0, 0, NULL, NULL, NULL},
};

static const KvFormula mamba_formulas[] = {
    {"L*expand*D*(d_conv+N)*e", "bytes of a sequence's state, whatever its length: 40*L*D*e"},
    {"2*L*expand*D*(d_conv+N)*e", "HBM bytes that a decode step reads and writes of it"},
    {"L*(6*D^2 + 2*D*(D/16+2*N) + 2*D*D/16 + 2*D*(d_conv+N+3))",
     "parameters of the blocks, each beside a norm"},
    {"L*(6*N+2*d_conv)*2*D", "FLOPs of a decode step beside the products"},
    {"L*(9*N+2*d_conv)*2*D per token", "FLOPs of the scan of a prompt, beside the products"},
    {NULL, NULL},
};

static const KvQualityPoint mamba_quality[] = {
    {"Mamba-2.8B vs Pythia-2.8B", "zero-shot average (7 tasks)", "Pile, 300B tokens", 59.1, 63.3,
     "Table 3, seen (section notes)", "N", 16, NULL},
    {"Mamba-1.4B vs Pythia-1.4B", "zero-shot average", "Pile, 300B tokens", 55.2, 59.7,
     "Table 3, seen", "N", 16, NULL},
    {"Mamba-790M vs Pythia-1B", "zero-shot average", "Pile, 300B tokens", 51.9, 57.1,
     "Table 3, seen", "N", 16, NULL},
    {"Mamba-2.8B vs Pythia-2.8B", "Pile perplexity", "Pile, 300B tokens", 6.73, 6.22,
     "Table 3, seen", "N", 16, NULL},
    {"Mamba-2.8B vs Pythia-6.9B", "zero-shot average", "Pile, 300B tokens", 61.7, 63.3,
     "Table 3, seen", NULL, 0, NULL},
    {0},
};

static const char *const mamba_sections[] = {
    "Model-level Optimization > Non-transformer Architecture > New Architecture", NULL};

const KvTechnique kv_technique_mamba = {
    .id = "mamba",
    .name = "Mamba",
    .title = "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
    .paper = "arXiv:2312.00752",
    .code = "github.com/state-spaces/mamba",
    .year = 2024,
    .sections = mamba_sections,
    .mechanism =
        "Two blocks stand in place of a layer's attention and MLP. A block widens its input to two "
        "branches; one goes through a short convolution and a recurrence whose step size, input "
        "and output matrices depend on the token, the other gates the result. All that a sequence "
        "keeps is, per block, the convolution's last inputs and N numbers per channel, read and "
        "written at each step. A prompt is scanned by one kernel that keeps the state on the chip.",
    .params = mamba_params,
    .formulas = mamba_formulas,
    .quality = mamba_quality,
    .composes =
        "There is no KV cache, so techniques that change one refuse the model, and prefixes "
        "are not shared, because a state cannot be cut. What earlier techniques of "
        "the stack made of the attention is replaced. Goes with serving systems and "
        "weight quantization.",
    .pitfalls =
        "The published 5x is against eager attention and contains a far larger batch; at equal small "
        "batch both are bound by the weights. The state moves twice a step. States in fp32 take 3.6 "
        "times the bytes. Twice as many blocks as layers launch many small kernels. The products of "
        "a block are priced as one.",
    .confidence = "high: the code and section notes of the paper were read; the parameter count of "
                  "the published 2.8B is met exactly",
    .executed = TRUE, /* states in fp32 */
    .arch = mamba_arch,
    .plan = mamba_plan,
};
