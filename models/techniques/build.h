/* What the definitions of techniques share: walking a plan and refusing what makes no sense.
 *
 * Private to models/techniques/. Messages start with the technique's id and end with what was
 * expected.
 */
#ifndef KV_MODELS_TECHNIQUES_BUILD_H
#define KV_MODELS_TECHNIQUES_BUILD_H

#include "models/techniques/technique.h"

/* The entries of kv_techniques, each defined in its survey family's file. */
extern const KvTechnique kv_technique_cake;
extern const KvTechnique kv_technique_distserve;
extern const KvTechnique kv_technique_instinfer;
extern const KvTechnique kv_technique_neo;
extern const KvTechnique kv_technique_tree_attention;
extern const KvTechnique kv_technique_accelerate_offload, kv_technique_deepspeed_offload,
    kv_technique_fastertransformer, kv_technique_hf_eager;
extern const KvTechnique kv_technique_flexgen, kv_technique_gqa, kv_technique_kivi,
    kv_technique_orca, kv_technique_snapkv, kv_technique_vllm;
extern const KvTechnique kv_technique_fastgen, kv_technique_h2o, kv_technique_infinigen,
    kv_technique_leankv, kv_technique_pyramidkv, kv_technique_quest,
    kv_technique_retrieval_attention, kv_technique_shadowkv;

extern const KvTechnique kv_technique_block_transformer, kv_technique_dmc, kv_technique_goldfinch,
    kv_technique_kvquant, kv_technique_lckv, kv_technique_less, kv_technique_mamba,
    kv_technique_minicache, kv_technique_mla, kv_technique_palu, kv_technique_qcqa,
    kv_technique_quarot;
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

/* Call `apply` with the index of each cache of full attention that the plan has now. Refused for a
 * latent cache, which is one for all heads, and where there is no such cache; caches of sliding
 * windows and recurrent states are left as they are. */
typedef gboolean (*KvCacheFunc)(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                                guint index, GError **error);
gboolean kv_plan_each_full_cache(const KvTechniqueUse *use, const KvModel *model, KvPlan *plan,
                                 KvCacheFunc apply, GError **error);

/* Note that the technique chooses which tokens of the cache stay, or which of them a step reads;
 * refused if another one does. */
gboolean kv_cache_claim_kept(const KvTechniqueUse *use, KvCache *cache, GError **error);
gboolean kv_cache_claim_read(const KvTechniqueUse *use, KvCache *cache, GError **error);

/* The one segment of a cache that nothing has divided, moved or, unless `quantized` may be,
 * quantized yet; else NULL and an error. */
KvSegment *kv_cache_undivided(const KvTechniqueUse *use, KvCache *cache, gboolean quantized,
                              GError **error);

/* Leave at most `budget` of the prompt's tokens once it is done, whatever the law does with the
 * tokens; prompts shorter than `short_prompt` (0: none) are left `short_kept`. */
gboolean kv_law_keep_prompt(const KvTechniqueUse *use, KvLaw *law, double budget,
                            double short_prompt, double short_kept, GError **error);

/* SnapKV's vote, which others take over: once the prompt is done, its last `window` queries score
 * all keys, pooled over `kernel` neighbours, and `budget` tokens (a layer's mean) are gathered.
 * Nothing is done for prompts of at most `budget` tokens. Released: keys and values repeated to the
 * query heads. */
void kv_plan_vote_on_prompt(KvPlan *plan, const KvCache *cache, const KvAttention *x, double budget,
                            double window, double kernel, gboolean released);

/* Every query head of the cache's layers stores keys and values of its own, as code does that
 * repeats them before it stores them. */
void kv_plan_repeat_heads(KvPlan *plan, guint index, const KvAttention *x);

/* Equal prefixes have equal caches at multiples of so many tokens only (and of those before). */
void kv_plan_share_at(KvPlan *plan, guint tokens);

/* Caches of equal prefixes differ from now on. */
void kv_plan_end_sharing(const KvTechniqueUse *use, KvPlan *plan);

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
