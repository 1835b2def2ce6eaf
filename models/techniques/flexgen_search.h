/* FlexGen's policy search: the placement and block shape of the least time a token, by the authors'
 * cost model (paper, sections 4.2 and 4.3, with the bounds of their experimental/cost_model.py).
 *
 * The authors solve a linear programme for every block shape; here shares go in tenths and every
 * combination is tried, which takes some tens of ms and finds the same corner or its neighbour.
 */
#ifndef KV_MODELS_TECHNIQUES_FLEXGEN_SEARCH_H
#define KV_MODELS_TECHNIQUES_FLEXGEN_SEARCH_H

#include "models/hardware/hardware.h"
#include "models/llm/llm.h"

typedef struct {
  guint prompt_tokens, output_tokens; /* of every sequence of a block */
  gboolean loads_apart; /* what is loaded adds to the longest of the rest (released) */
} KvFlexgenQuestion;

typedef struct {
  guint gpu_batch, n_gpu_batches;
  double weights_gpu, weights_host, cache_gpu, cache_host,
      hidden_gpu;           /* shares; the rest is below */
  double seconds_per_token; /* the model's own estimate: of a block, over its generated tokens */
} KvFlexgenPolicy;

/* FALSE if no policy fits into GPU, host and disk. */
gboolean kv_flexgen_search(const KvFlexgenQuestion *question, const KvModel *model,
                           const KvPlatform *platform, KvFlexgenPolicy *policy);

#endif
