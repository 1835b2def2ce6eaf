/* Multi-head latent attention with the weights absorbed: DeepSeek-V2 (2024), section 2.1 and
 * appendix C. A score is the query times (key matrix times latent), which is (query times key
 * matrix) times latent; so heads attend to the latents as they stand in the cache, and the value
 * matrix is applied to what they mix. */
#include <math.h>
#include <string.h>

#include "reference/host/dot.h"
#include "reference/host/kernels.h"

void kv_host_rotary_pairs(float *x, const float *cosine, const float *sine, guint head_dim) {
  for (gsize i = 0; i < head_dim / 2; i++) {
    float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = a * cosine[i] - b * sine[i];
    x[2 * i + 1] = b * cosine[i] + a * sine[i];
  }
}

void kv_host_absorb_query(float *restrict out, const float *restrict q, const float *restrict up,
                          const KvHostLatent *l) {
  gsize width = l->nope + l->value, row = l->n_heads * width;
  for (guint h = 0; h < l->n_heads; h++, q += l->nope + l->rope, out += l->rank + l->rope) {
    for (guint r = 0; r < l->rank; r++)
      out[r] = kv_host_dot(q, up + r * row + h * width, l->nope);
    memcpy(out + l->rank, q + l->nope, l->rope * sizeof *q);
  }
}

void kv_host_expand_latents(float *restrict out, const float *restrict mixed,
                            const float *restrict up, const KvHostLatent *l) {
  gsize width = l->nope + l->value, row = l->n_heads * width;
  memset(out, 0, (gsize)l->n_heads * l->value * sizeof *out);
  for (guint h = 0; h < l->n_heads; h++, mixed += l->rank, out += l->value)
    for (guint r = 0; r < l->rank; r++) {
      const float *restrict values = up + r * row + h * width + l->nope;
      for (guint i = 0; i < l->value; i++)
        out[i] += mixed[r] * values[i];
    }
}

static const float *latent_at(const KvHostPages *pages, const guint32 *block_table,
                              guint32 position) {
  return pages->pool + block_table[position / pages->block_tokens] * pages->block_floats +
         pages->key_offset + (gsize)(position % pages->block_tokens) * pages->head_dim;
}

/* One head of one query over the first `count` tokens. */
static void attend(float *restrict out, const float *restrict q, const KvHostPages *pages,
                   const guint32 *block_table, guint32 count, const KvHostLatent *l,
                   float *restrict scores) {
  float largest = -INFINITY, total = 0.0f;
  for (guint32 j = 0; j < count; j++) {
    const float *key = latent_at(pages, block_table, j);
    scores[j] = kv_host_dot(q, key, l->rank + l->rope) * l->scale;
    largest = MAX(largest, scores[j]);
  }
  memset(out, 0, l->rank * sizeof *out);
  for (guint32 j = 0; j < count; j++) {
    const float *restrict latent = latent_at(pages, block_table, j);
    float p = expf(scores[j] - largest);
    total += p;
    for (guint i = 0; i < l->rank; i++)
      out[i] += p * latent[i];
  }
  for (guint i = 0; i < l->rank; i++)
    out[i] /= total;
}

void kv_host_latent_attention(float *restrict out, const float *restrict q,
                              const KvHostPages *pages, const guint32 *block_table, guint32 past,
                              guint32 tokens, const KvHostLatent *l, float *restrict scores) {
  for (guint32 t = 0; t < tokens; t++)
    for (guint h = 0; h < l->n_heads; h++, q += l->rank + l->rope, out += l->rank)
      attend(out, q, pages, block_table, past + t + 1, l, scores);
}
