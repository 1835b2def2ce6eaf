/* What the definitions of techniques share: walking a plan and refusing what makes no sense.
 *
 * Private to models/techniques/. Messages start with the technique's id and end with what was
 * expected.
 */
#ifndef KV_MODELS_TECHNIQUES_BUILD_H
#define KV_MODELS_TECHNIQUES_BUILD_H

#include "models/techniques/technique.h"

/* The entries of kv_techniques, each defined in its survey family's file. */
extern const KvTechnique kv_technique_accelerate_offload, kv_technique_deepspeed_offload,
    kv_technique_fastertransformer, kv_technique_hf_eager;
extern const KvTechnique kv_technique_flexgen, kv_technique_gqa, kv_technique_kivi,
    kv_technique_orca, kv_technique_snapkv, kv_technique_vllm;

extern const KvTechnique kv_technique_block_transformer, kv_technique_dmc, kv_technique_goldfinch,
    kv_technique_kvquant, kv_technique_lckv, kv_technique_less, kv_technique_mamba,
    kv_technique_minicache, kv_technique_mla, kv_technique_palu, kv_technique_qcqa,
    kv_technique_quarot;

/* Set *error to "ID: message" and return FALSE. */
gboolean kv_technique_refuse(const KvTechniqueUse *use, GError **error, const char *format, ...)
    G_GNUC_PRINTF(3, 4);

/* Set a parameter that `tune` settles. */
void kv_technique_set(KvTechniqueUse *use, const char *name, double value);

/* The number that the chosen word of a choice spells, e.g. 2 of "2". */
double kv_technique_choice_number(const KvTechniqueUse *use, const char *name);

/* Attention of the layers that `cache` stores. */
const KvAttention *kv_plan_attention(const KvModel *model, const KvCache *cache);

/* The reader of cache `index`, the first if there are several; NULL if nothing reads it. */
KvReader *kv_plan_reader_of(const KvPlan *plan, guint index);

/* Mark `segment` as quantized by the technique; refused if another one did already. */
gboolean kv_segment_quantize(const KvTechniqueUse *use, KvSegment *segment, KvDtype format,
                             GError **error);

void kv_plan_add_work(KvPlan *plan, KvWork work);

/* The technique needs each prompt token's attention probabilities, summed over queries, which a
 * fused kernel never forms. Ideal: a second product of queries and keys beside the fused kernel.
 * Released: the whole matrix of probabilities is written and read `passes` times (softmax, sums) at
 * `score_bytes` an element. Marks the plan's attention as not fused. */
void kv_plan_need_scores(KvPlan *plan, const KvCache *cache, const KvAttention *x,
                         gboolean released, double score_bytes, double passes);

/* Whether some earlier technique evicted tokens, so that what is left differs by layer or head. */
gboolean kv_cache_is_cut(const KvCache *cache);

/* Whether every reader of cache `index` reads all that each segment holds. */
gboolean kv_plan_reads_all(const KvPlan *plan, guint index);

/* Let every reader of cache `index` read all of each segment, after the segments changed. */
void kv_plan_read_all(KvPlan *plan, guint index);

/* Split `layers` layers off cache `index` into a new cache with readers of its own, alike in all
 * else; returns its index. Pointers into the plan's arrays become invalid. */
guint kv_plan_split_layers(KvPlan *plan, guint index, guint layers);

#endif
