/* Attention through a block table, as in Kwon et al., "Efficient Memory Management for Large
 * Language Model Serving with PagedAttention" (2023), section 4.1: the cache is read where it
 * stands, never gathered. */
#include "reference/host/kernels.h"

#include <math.h>
#include <string.h>

#include "reference/host/dot.h"

/* Floats from a block's keys (or values) to those of `head` at the block's token `slot`. */
static gsize slot_offset(const KvHostPages *pages, guint head, guint slot) {
  return ((gsize)head * pages->block_tokens + slot) * pages->head_dim;
}

static float *block_of(const KvHostPages *pages, const guint32 *block_table, guint32 position) {
  return pages->pool + block_table[position / pages->block_tokens] * pages->block_floats;
}

void kv_host_pages_write(const KvHostPages *pages, const guint32 *block_table, guint32 position,
                         const float *keys, const float *values) {
  float *block = block_of(pages, block_table, position);
  gsize d = pages->head_dim;
  for (guint h = 0; h < pages->n_kv_heads; h++) {
    gsize offset = slot_offset(pages, h, position % pages->block_tokens);
    memcpy(block + pages->key_offset + offset, keys + h * d, d * sizeof *keys);
    if (values)
      memcpy(block + pages->value_offset + offset, values + h * d, d * sizeof *values);
  }
}

/* scores[j] = q[d] . key at first + j, scaled; returns the largest. */
static float score(float *restrict scores, const float *restrict q, const KvHostPages *pages,
                   const guint32 *block_table, guint head, guint32 first, guint32 count) {
  float scale = 1.0f / sqrtf((float)pages->head_dim), largest = -INFINITY;
  for (guint32 j = 0; j < count; j++) {
    const float *key = block_of(pages, block_table, first + j) + pages->key_offset +
                       slot_offset(pages, head, (first + j) % pages->block_tokens);
    scores[j] = kv_host_dot(q, key, pages->head_dim) * scale;
    largest = MAX(largest, scores[j]);
  }
  return largest;
}

/* out[d] = softmax(scores) . values. */
static void mix_values(float *restrict out, const float *restrict scores, float largest,
                       const KvHostPages *pages, const guint32 *block_table, guint head,
                       guint32 first, guint32 count) {
  float total = 0.0f;
  memset(out, 0, pages->head_dim * sizeof *out);
  for (guint32 j = 0; j < count; j++) {
    const float *value = block_of(pages, block_table, first + j) + pages->value_offset +
                         slot_offset(pages, head, (first + j) % pages->block_tokens);
    float p = expf(scores[j] - largest);
    total += p;
    for (guint i = 0; i < pages->head_dim; i++)
      out[i] += p * value[i];
  }
  for (guint i = 0; i < pages->head_dim; i++)
    out[i] /= total;
}

void kv_host_attention(float *restrict out, const float *restrict q, const KvHostPages *pages,
                       const guint32 *block_table, guint32 past, guint32 tokens, guint n_heads,
                       guint window, float *restrict scores) {
  guint group = n_heads / pages->n_kv_heads; /* query heads that share a KV head */
  for (guint32 t = 0; t < tokens; t++) {
    guint32 visible = past + t + 1;
    guint32 count = window ? MIN(window, visible) : visible, first = visible - count;
    for (guint h = 0; h < n_heads; h++, q += pages->head_dim, out += pages->head_dim) {
      float largest = score(scores, q, pages, block_table, h / group, first, count);
      mix_values(out, scores, largest, pages, block_table, h / group, first, count);
    }
  }
}
