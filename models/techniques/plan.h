/* The KV plan: what the cache of one sequence looks like, what a step reads of it, and what else is
 * done.
 *
 *     plan    = caches, readers, work, weights
 *     cache   = one stored tensor family of a number of layers that are treated alike, as segments
 * along the tokens segment = how many tokens it holds (a law), bytes per token of keys, values and
 * metadata, page, tier reader  = which layers read which cache per step, how many of its tokens, at
 * what cost work    = everything else, as events at a moment
 *
 * Stored bytes, read bytes and FLOPs are separate on purpose. All bytes and FLOPs are of the whole
 * model (every head), before tensor parallelism divides them; "per token" means of context unless
 * said otherwise.
 *
 * Laws are piecewise affine in the context length n, so the sums over a batch are carried forward k
 * steps without touching its sequences: kv_plan_compile() collects the distinct laws of a plan as
 * channels, and gives every cost as a linear form of the channels' values.
 */
#ifndef KV_MODELS_TECHNIQUES_PLAN_H
#define KV_MODELS_TECHNIQUES_PLAN_H

#include <glib.h>

#include "models/llm/llm.h"
#include "sim/base/dtype.h"

typedef enum {
  KV_TIER_HBM,
  KV_TIER_DRAM,
  KV_TIER_CXL,
  KV_TIER_SSD,
  KV_TIER_CSD, /* a storage device that computes */
  KV_TIER_REMOTE,
  KV_N_TIERS,
} KvTier;

extern const char *const kv_tier_names[];

/* Number of tokens as a function of the context length n and the prompt length p: min(cap, scale *
 * base(n')) with the parameter a' = a + prompt_share * p >= 0. "Decoding" begins when the whole
 * prompt has been processed. n' is n, unless an eviction left only `kept_prompt` tokens of the
 * prompt: then n' = min(p, kept_prompt) + n - p while decoding. */
typedef enum {
  KV_LAW_ALL,           /* n */
  KV_LAW_FIXED,         /* a */
  KV_LAW_FIRST,         /* min(n, a): sinks */
  KV_LAW_LAST,          /* min(n, a): a window */
  KV_LAW_BEYOND,        /* max(0, n - a) */
  KV_LAW_FLUSHED,       /* a * floor(n / a) */
  KV_LAW_PENDING,       /* n - a * floor(n / a): a sawtooth */
  KV_LAW_PROMPT_CAPPED, /* n before decoding; min(p, a) + n - p while decoding: cut once */
  KV_LAW_EVICTED, /* n before decoding; min(n, a) while decoding: a token out for each one in */
  KV_LAW_OVER,    /* n where n > a, else 0 */
} KvLawKind;

typedef struct {
  KvLawKind kind;
  double a, scale, cap; /* cap G_MAXDOUBLE where there is none */
  double kept_prompt;   /* 0 where the whole prompt is kept */
  double prompt_share;  /* what the parameter grows by per prompt token: 0 where it is fixed */
  double short_prompt, short_kept; /* an eviction leaves `short_kept` of prompts shorter than that;
                                      0: one rule for all */
} KvLaw;

/* The law `kind` with parameter `a`, scale 1, no cap. */
KvLaw kv_law(KvLawKind kind, double a);
gboolean kv_law_equal(const KvLaw *x, const KvLaw *y);
/* The value at n, a whole number; with `slope` not NULL also the slope per further token and, in
 * *valid_tokens, the number of further tokens for which value + i * slope stays exact (i <=
 * *valid_tokens; G_MAXDOUBLE if forever). */
double kv_law_value(const KvLaw *law, double n, double prompt, gboolean decoding, double *slope,
                    double *valid_tokens);
/* "all", "first 4", "last 128" ... newly allocated. */
char *kv_law_describe(const KvLaw *law);

typedef enum { KV_ROLE_SINK, KV_ROLE_MIDDLE, KV_ROLE_RECENT } KvRole;

enum { KV_MAX_SEGMENTS = 6 };

typedef struct {
  const char *name; /* static */
  KvRole role;
  KvLaw tokens;
  double key_bytes, value_bytes; /* per token and layer, all heads, without metadata */
  double metadata_bytes; /* per token and layer: scales, zeros, norms, outliers, summaries */
  guint page_tokens;     /* 0: the engine's block size */
  KvTier tier;
  KvDtype format;        /* nominal: picks the kernel's efficiency and colours the picture */
  const char *quantizer; /* id of the technique that quantized it, or NULL */
} KvSegment;

/* Keys and values that follow different laws are separate segments, with the other's bytes 0. A
 * token is then read twice, so kv_plan_compile() counts each such segment with half of the reader's
 * tokens, FLOPs and extra bytes. A latent cache has no value bytes anywhere and counts fully. */

typedef struct {
  const char *name; /* static */
  guint group;      /* of the model: which layers */
  guint layers;     /* layers that store it */
  guint n_segments;
  KvSegment segments[KV_MAX_SEGMENTS];
  double state_bytes;  /* of a recurrent state per layer: read and written each step; 0 if none */
  const char *kept_by; /* id of the technique that chooses which of its tokens stay, or NULL */
  const char *read_by; /* ... that chooses which of them a step reads, or NULL */
} KvCache;

typedef enum { KV_PROCESSOR_GPU, KV_PROCESSOR_CPU, KV_PROCESSOR_STORAGE } KvProcessor;

/* What a reader's slower part (bytes fetched from a lower tier, attention on another processor)
 * runs beside, and so hides behind as far as that lasts. */
typedef enum {
  KV_OVERLAP_NONE,      /* nothing: it adds up */
  KV_OVERLAP_REBUILD,   /* the rebuilding of this reader's keys and values */
  KV_OVERLAP_ATTENTION, /* all decode attention on the GPU */
  KV_OVERLAP_STEP,      /* everything that the GPU does in the step */
} KvOverlap;

typedef struct {
  guint cache;  /* index into the plan's caches */
  guint layers; /* layers that read it each step (more than store it where layers share) */
  KvLaw read[KV_MAX_SEGMENTS];  /* tokens read of each segment; its own law to read all of it */
  double read_bytes_scale;      /* bytes read over bytes stored of a token: 1, or H/Hkv where heads
                                   re-read */
  double extra_bytes_per_token; /* HBM traffic beside it, per token read and layer (copies,
                                   materialized scores) */
  double flops_per_token;       /* per token read and layer: 4 H d for dense attention */
  double index_bytes_per_token; /* read per token of context and layer to choose what to read */
  double index_flops_per_token;
  double index_over_tokens; /* no index is read up to so many tokens of context; 0: always */
  double extra_launches;    /* kernels a layer and step beyond the one fused attention kernel */
  double efficiency; /* of the kernel against the dense one of the same format: 1 unless known */
  KvProcessor processor; /* where the attention runs; on CPU only q and the output cross the link */
  double fixed_seconds;  /* per layer and step on that processor, however few tokens: dispatch, a
                            search's start */
  double fetch_efficiency; /* of fetching against one large copy: small rows; 0: as one */
  KvOverlap overlap;
  /* Keys or values that are rebuilt before attention: a product [tokens, rank] x [rank, width] per
   * layer, of this share of the tokens read; rank 0: none. Fused, it is part of the attention
   * kernel and only its FLOPs count; otherwise the product is also written and read once. */
  double rebuild_rank, rebuild_width, rebuild_share;
  gboolean rebuild_fused;
  KvDtype format;
  guint n_kv_heads;
} KvReader;

typedef enum {
  KV_MOMENT_PREFILL_TOKEN, /* amounts per prompt token */
  KV_MOMENT_PREFILL_CHUNK, /* per chunk */
  KV_MOMENT_PREFILL_END,   /* once, when the prompt is done */
  KV_MOMENT_DECODE_STEP,   /* per sequence and step */
} KvMoment;

extern const char *const kv_moment_names[];

/* flops = flops + flops_per_token * n with n the sequence's context (the prompt for prefill
 * moments); likewise bytes. At KV_MOMENT_PREFILL_TOKEN the sum over a prompt of p tokens is
 * flops * p + flops_per_token * p^2 / 2: work that grows with the square of the prompt. Work that
 * is not critical runs beside the step: it costs only what it lasts longer than the step's own part
 * of that processor. */
typedef struct {
  const char *name;      /* static, e.g. "quantize keys" */
  const char *technique; /* id of whose it is, set by kv_stack_apply(); "recurrent": of the model's
                            own layers that keep a state */
  KvMoment moment;
  double flops, flops_per_token;
  double bytes, bytes_per_token;
  double launches;      /* kernels over all layers concerned; per batch rather than per sequence */
  double efficiency;    /* share of the processor's achievable bandwidth and rate; 0: all of it */
  double fixed_seconds; /* per batch in which it happens */
  gboolean matrix;      /* the FLOPs are products, at the GPU's matrix rate, not its vector rate */
  KvProcessor processor;
  gboolean critical;  /* on the critical path, or beside it */
  guint every_steps;  /* decode: once every so many steps; 0 or 1 each step */
  double over_tokens; /* only where n is more than this; 0: always */
} KvWork;

/* Where the weights are and how they stream. */
typedef struct {
  KvDtype dtype;              /* as multiplied from */
  double bytes_per_parameter; /* stored, metadata counted */
  guint expert_dtype; /* 1 + the type of routed experts; 0: `dtype`, or as published with it */
  double share[KV_N_TIERS];     /* sums to 1; what is not in HBM is streamed every step */
  gboolean pageable;            /* what is in host memory is not pinned */
  gboolean loads_apart;         /* what is loaded adds to the longest of everything else */
  gboolean stream_overlaps;     /* the next layer's weights load beside this layer's compute */
  double activation_share_host; /* share of activations that live on the host between layers
                                   (FlexGen's hc) */
} KvWeights;

typedef struct {
  GArray *caches;        /* of KvCache */
  GArray *readers;       /* of KvReader */
  GArray *work;          /* of KvWork */
  GPtrArray *techniques; /* ids of those that made it, in order; not owned */
  KvWeights weights;
  double element_bytes;       /* e: of the uncompressed cache */
  gboolean shareable;         /* equal prefixes have equal caches, so blocks can be shared */
  guint share_multiple;       /* ... at multiples of so many tokens only; 1 if anywhere */
  const char *unshareable_by; /* id of the technique that ended sharing; NULL: the model's own
                                 recurrent state */
  gboolean fused_attention;   /* no attention probabilities are formed */
  gboolean paged;             /* FALSE if the layout needs contiguous memory */
  gboolean
      reads_shared_once; /* a prefix that several running sequences share is read once for all */
  guint shared_readers_over;   /* ... where more than so many share it; 0 as 1 */
  double shared_partial_bytes; /* ... and what each of them moves instead, per token and layer */
  double
      prefill_peak_layers; /* layers whose uncompressed prompt cache is held at once: all, or 1 */
  double prefill_flops_scale; /* of the attention core in prefill */
} KvPlan;

/* The plan of the unchanged model with cache elements of type `dtype`. */
KvPlan *kv_plan_new(const KvModel *model, KvDtype dtype);
void kv_plan_free(KvPlan *plan);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvPlan, kv_plan_free)

enum { KV_MAX_CHANNELS = 160, KV_MAX_READERS = 128, KV_MAX_TERMS = KV_MAX_SEGMENTS + 1 };

/* What a reader does per token of one channel, all its layers together. */
typedef struct {
  guint channel;
  double hbm_bytes;                 /* read from HBM by the GPU's kernel */
  double flops;                     /* on the reader's processor */
  double tokens;                    /* read, mean over its layers: for the fill of the kernel */
  double fetched_bytes[KV_N_TIERS]; /* moved up from each lower tier */
  double host_bytes;                /* read by a CPU (or a storage device) from its own memory */
} KvReadTerm;

/* A plan made ready for pricing. A channel is one law; coefficients multiply the channel's value.
 */
typedef struct {
  guint n_channels;
  KvLaw laws[KV_MAX_CHANNELS];
  double stored_bytes[KV_N_TIERS][KV_MAX_CHANNELS];
  guint n_readers;
  struct {
    guint n_terms;
    KvReadTerm terms[KV_MAX_TERMS];
    gboolean fetches; /* anything from a lower tier */
    KvReader reader;
  } readers[KV_MAX_READERS];
  double state_bytes;         /* per sequence: all recurrent layers */
  gboolean is_affine_forever; /* no law ever changes its slope while decoding */
} KvPlanCurves;

/* Fill `curves`; FALSE if the plan has more laws or readers than there is room for. */
gboolean kv_plan_compile(const KvPlan *plan, KvPlanCurves *curves, GError **error);

/* What one sequence costs at context n (prompt length `prompt`). */
typedef struct {
  double resident_bytes[KV_N_TIERS]; /* pages not rounded */
  double
      read_bytes; /* HBM bytes that one decode step's attention reads, state and index included */
  double fetched_bytes;   /* moved from lower tiers by one decode step */
  double written_bytes;   /* cache bytes one decode step appends */
  double attention_flops; /* of one decode step */
} KvPlanCost;

KvPlanCost kv_plan_cost(const KvPlan *plan, const KvPlanCurves *curves, double n, double prompt,
                        gboolean decoding);

#endif
