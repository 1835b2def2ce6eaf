/* Models small enough to compute by hand, one of each kind that the host executor takes. */
#ifndef KV_TESTS_REFERENCE_TINY_MODELS_H
#define KV_TESTS_REFERENCE_TINY_MODELS_H

#include "models/llm/llm.h"

static KvLayerGroup llama_groups[] = {{.count = 2,
                                       .attention = {.kind = KV_ATTENTION_FULL,
                                                     .n_heads = 4,
                                                     .n_kv_heads = 2,
                                                     .head_dim = 16,
                                                     .value_head_dim = 16},
                                       .mlp = {.intermediate = 96, .gated = TRUE}}};
static const KvModel llama = {.id = (char *)"tiny-llama",
                              .hidden = 64,
                              .vocab = 199,
                              .max_context_tokens = 4096,
                              .norm = KV_NORM_RMS,
                              .n_groups = 1,
                              .groups = llama_groups};

static KvLayerGroup opt_groups[] = {{.count = 2,
                                     .attention = {.kind = KV_ATTENTION_FULL,
                                                   .n_heads = 4,
                                                   .n_kv_heads = 4,
                                                   .head_dim = 15,
                                                   .value_head_dim = 15,
                                                   .bias = TRUE},
                                     .mlp = {.intermediate = 120}}};
static const KvModel opt = {.id = (char *)"tiny-opt",
                            .hidden = 60,
                            .vocab = 199,
                            .max_context_tokens = 128,
                            .tied_embeddings = TRUE,
                            .learned_positions = TRUE,
                            .norm = KV_NORM_LAYER,
                            .n_groups = 1,
                            .groups = opt_groups};

/* Sliding and full layers of different head counts, normalized queries. */
static KvLayerGroup mixed_groups[] = {{.count = 2,
                                       .attention = {.kind = KV_ATTENTION_SLIDING,
                                                     .n_heads = 4,
                                                     .n_kv_heads = 1,
                                                     .head_dim = 16,
                                                     .value_head_dim = 16,
                                                     .window_tokens = 6,
                                                     .qk_norm = TRUE},
                                       .mlp = {.intermediate = 80, .gated = TRUE}},
                                      {.count = 1,
                                       .attention = {.kind = KV_ATTENTION_FULL,
                                                     .n_heads = 6,
                                                     .n_kv_heads = 3,
                                                     .head_dim = 8,
                                                     .value_head_dim = 8,
                                                     .qk_norm = TRUE},
                                       .mlp = {.intermediate = 96, .gated = TRUE}}};
static const KvModel mixed = {.id = (char *)"tiny-mixed",
                              .hidden = 64,
                              .vocab = 199,
                              .max_context_tokens = 4096,
                              .norm = KV_NORM_RMS,
                              .n_groups = 2,
                              .groups = mixed_groups};

/* Mamba blocks; widths that no vector divides. */
static KvLayerGroup mamba_groups[] = {
    {.count = 3,
     .attention = {
         .kind = KV_ATTENTION_NONE, .inner = 94, .state_dim = 6, .conv_width = 4, .dt_rank = 3}}};
static const KvModel mamba G_GNUC_UNUSED = {.id = (char *)"tiny-mamba",
                                            .hidden = 47,
                                            .vocab = 199,
                                            .max_context_tokens = 4096,
                                            .tied_embeddings = TRUE,
                                            .norm = KV_NORM_RMS,
                                            .n_groups = 1,
                                            .groups = mamba_groups};

/* A dense layer, then experts beside a shared one: the shape of DeepSeek-V2-Lite. The last layer's
 * queries come from a latent of their own, as DeepSeek-V2's. */
#define TINY_LATENT                                                                                \
  .kind = KV_ATTENTION_LATENT, .n_heads = 4, .n_kv_heads = 4, .head_dim = 24,                      \
  .value_head_dim = 12, .kv_lora_rank = 32, .rope_head_dim = 8
#define TINY_EXPERTS                                                                               \
  .gated = TRUE, .n_experts = 8, .n_experts_per_token = 3, .expert_intermediate = 40
static KvLayerGroup latent_groups[] = {
    {.count = 1, .attention = {TINY_LATENT}, .mlp = {.intermediate = 96, .gated = TRUE}},
    {.count = 1, .attention = {TINY_LATENT}, .mlp = {TINY_EXPERTS, .shared_intermediate = 48}},
    {.count = 1,
     .attention = {TINY_LATENT, .q_lora_rank = 20},
     .mlp = {TINY_EXPERTS, .shared_intermediate = 48}}};
static const KvModel deepseek = {.id = (char *)"tiny-latent",
                                 .hidden = 64,
                                 .vocab = 199,
                                 .max_context_tokens = 4096,
                                 .norm = KV_NORM_RMS,
                                 .n_groups = 3,
                                 .groups = latent_groups};

/* Grouped heads and experts alone: the shape of Mixtral and Qwen3-MoE. */
static KvLayerGroup expert_groups[] = {{.count = 2,
                                        .attention = {.kind = KV_ATTENTION_FULL,
                                                      .n_heads = 4,
                                                      .n_kv_heads = 2,
                                                      .head_dim = 16,
                                                      .value_head_dim = 16,
                                                      .qk_norm = TRUE},
                                        .mlp = {TINY_EXPERTS}}};
static const KvModel mixtral = {.id = (char *)"tiny-experts",
                                .hidden = 64,
                                .vocab = 199,
                                .max_context_tokens = 4096,
                                .norm = KV_NORM_RMS,
                                .n_groups = 1,
                                .groups = expert_groups};

/* Those that keep keys and values. */
static const KvModel *const models[] = {&llama, &opt, &mixed, &deepseek, &mixtral};

#endif
