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
extern const KvTechnique kv_technique_radixattention, kv_technique_chunkattention;
extern const KvTechnique kv_technique_vtensor;
extern const KvTechnique kv_technique_fastserve, kv_technique_lamps, kv_technique_cachedattention;

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

/* Split `layers` layers off cache `index` into a new cache with readers of its own, alike in all
 * else; returns its index. Pointers into the plan's arrays become invalid. */
guint kv_plan_split_layers(KvPlan *plan, guint index, guint layers);

#endif
