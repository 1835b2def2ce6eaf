#include "reference/cuda/inputs.h"

#include <stdlib.h>
#include <string.h>

#include "reference/cuda/engine.h"

KvCudaInputs kv_cuda_inputs_at(guint32 *words, const KvCudaShape *s) {
  KvCudaInputs in = {0};
  in.tokens = words;
  in.positions = in.tokens + s->rows;
  in.row_sequences = in.positions + s->rows;
  in.slots = in.row_sequences + s->rows;
  in.table_starts = in.slots + s->rows;
  in.contexts = in.table_starts + s->prefill + s->decode;
  in.split_tokens = in.contexts + s->decode;
  in.sample_rows = in.split_tokens + 1;
  in.from = in.sample_rows + s->samples;
  in.to = in.from + s->states;
  in.tiles = (KvCudaTile *)(in.to + s->states);
  in.table = (guint32 *)(in.tiles + s->tiles);
  if (s->shared_tiles) {
    in.first_tokens = in.table;
    in.part_starts = in.first_tokens + s->decode;
    in.members = in.part_starts + s->decode + 1;
    in.n_shared = in.members + s->decode;
    in.shared = (KvCudaSharedTile *)(in.n_shared + 1);
    in.table = (guint32 *)(in.shared + s->shared_tiles);
  }
  return in;
}

/* Entries of its table that kernels read. */
static guint blocks_of(const KvCudaEngine *e, const KvHostSpan *span) {
  if (e->recurrent)
    return 0;
  return (
      guint)(((guint64)span->past + span->n_tokens - span->dropped + e->cache->block_tokens - 1) /
             e->cache->block_tokens);
}

static guint tile_tokens(const KvCudaEngine *e) {
  guint tokens = G_MAXINT;
  if (e->recurrent) /* a span is not cut */
    return tokens;
  for (guint l = 0; l < e->weights->n_layers; l++) {
    const KvAttention *a = &e->weights->layers[l].attention;
    tokens = MIN(tokens, a->kind == KV_ATTENTION_LATENT
                             ? kv_cuda_latent_tile_tokens(a->n_heads)
                             : kv_cuda_prefill_tile_tokens(a->n_heads, a->n_kv_heads));
  }
  return tokens;
}

static guint64 round_up(guint64 n, guint64 unit) {
  return (n + unit - 1) / unit * unit;
}

/* Tokens of a context that its decode attention walks over: those that tiles cover are left out. */
static guint32 own_tokens(const KvCudaEngine *e, const KvCudaShape *shape, const KvHostSpan *span,
                          guint decoding) {
  guint32 context = span->past + 1 - span->dropped;
  return shape->shared_tiles
             ? context - g_array_index(e->sharing->found.shared, guint32, decoding) / 16 * 16
             : context;
}

guint32 kv_cuda_shape_split(const KvCudaEngine *e, const KvHostSpan *spans, guint n,
                            KvCudaShape *shape) {
  guint64 sum = 0, longest = 1;
  for (guint s = 0, decoding = 0; s < n; s++)
    if (spans[s].decoding) {
      guint32 context = own_tokens(e, shape, &spans[s], decoding++);
      sum += context;
      longest = MAX(longest, context);
    }
  const KvAttention *a = &e->weights->layers[0].attention;
  guint parts = e->compressed ? kv_cuda_compressed_parts(e->compressed) : a->n_kv_heads;
  guint even =
      a->kind == KV_ATTENTION_LATENT
          ? kv_cuda_latent_max_splits(shape->decode, a->n_heads, e->device->multiprocessors)
          : kv_cuda_decode_max_splits(shape->decode, parts, e->device->multiprocessors);
  guint64 tokens = round_up(MAX(1, sum / ((guint64)even * shape->decode)), KV_CUDA_SPLIT_UNIT);
  shape->max_splits = even;
  while (shape->max_splits * tokens < longest && shape->max_splits < 16 * even)
    shape->max_splits *= 2;
  return (guint32)MAX(
      tokens, round_up((longest + shape->max_splits - 1) / shape->max_splits, KV_CUDA_SPLIT_UNIT));
}

guint kv_cuda_graph_rows(guint n) {
  return n <= 2 ? n : n <= 4 ? 4 : (n + 7) / 8 * 8;
}

KvCudaShape kv_cuda_shape_of(const KvCudaEngine *e, const KvHostSpan *spans, guint n,
                             gsize *words) {
  KvCudaShape s = {0};
  guint most = tile_tokens(e);
  gsize table = 0;
  for (guint i = 0; i < n; i++) {
    s.rows += spans[i].n_tokens;
    s.samples += spans[i].sample;
    table += blocks_of(e, &spans[i]);
    if (spans[i].decoding) {
      s.decode++;
    } else {
      s.prefill++;
      s.prefill_rows += spans[i].n_tokens;
      s.tiles += (spans[i].n_tokens + most - 1) / most;
    }
  }
  if (e->all_logits)
    s.samples = s.rows;
  if (!s.prefill && s.samples == s.rows && kv_cuda_graph_rows(s.rows) <= e->graph_rows)
    s.rows = s.decode = s.samples = kv_cuda_graph_rows(s.rows);
  s.states = e->recurrent ? s.prefill + s.decode : 0;
  if (e->sharing && e->sharing->tiles->len) {
    s.shared_tiles = MAX(16, 1u << g_bit_storage(e->sharing->tiles->len - 1)); /* few graphs */
    s.shared_parts = kv_cuda_sharing_parts(e->sharing);
  }
  gsize shared = s.shared_tiles ? 3 * (gsize)s.decode + 2 +
                                      s.shared_tiles * sizeof(KvCudaSharedTile) / sizeof(guint32)
                                : 0;
  *words = shared + 4 * (gsize)s.rows + s.prefill + 2 * (gsize)s.decode + 1 + s.samples +
           2 * (gsize)s.states + 4 * (gsize)s.tiles + table;
  return s;
}

static int by_weight(const void *a, const void *b) {
  const KvCudaTile *x = a, *y = b;
  return x->position != y->position ? (x->position < y->position ? 1 : -1)
         : x->row != y->row         ? (x->row < y->row ? -1 : 1)
                                    : 0;
}

/* What the decoding sequences share; tables have been placed. */
static void fill_shared(const KvCudaEngine *e, const KvCudaShape *shape, const KvCudaInputs *in) {
  const KvCudaSharing *sharing = e->sharing;
  guint n = sharing->found.members->len, tiles = sharing->tiles->len;
  guint parts = kv_cuda_sharing_parts(sharing);
  memcpy(in->first_tokens, sharing->found.shared->data, n * sizeof(guint32));
  memcpy(in->part_starts, sharing->part_starts->data, n * sizeof(guint32));
  memcpy(in->members, sharing->found.members->data, n * sizeof(guint32));
  for (guint s = n; s < shape->decode; s++) /* the graph's spare rows */
    in->first_tokens[s] = 0;
  for (guint s = n; s <= shape->decode; s++)
    in->part_starts[s] = parts;
  *in->n_shared = tiles;
  for (guint i = 0; i < tiles; i++) {
    in->shared[i] = g_array_index(sharing->tiles, KvCudaSharedTile, i);
    in->shared[i].table = in->table_starts[shape->prefill + in->shared[i].table];
  }
}

void kv_cuda_inputs_fill(const KvCudaEngine *e, const KvCudaShape *shape, const KvHostSpan *spans,
                         guint n, const KvCudaInputs *in) {
  guint row = 0, table = 0, tiles = 0, samples = 0, decoding = 0, most = tile_tokens(e);
  for (guint s = 0; s < n; s++) {
    const KvHostSpan *span = &spans[s];
    in->table_starts[s] = table;
    memcpy(in->table + table, span->block_table, blocks_of(e, span) * sizeof(guint32));
    table += blocks_of(e, span);
    if (e->recurrent) {
      in->from[s] = span->past ? 2 * span->block_table[0] + span->state : G_MAXUINT32;
      in->to[s] = 2 * span->block_table[0] + 1 - span->state;
    }
    if (span->decoding)
      in->contexts[decoding++] = span->past + 1 - span->dropped;
    for (guint32 t = 0; !span->decoding && t < span->n_tokens; t += most)
      in->tiles[tiles++] = (KvCudaTile){s, row + t, span->past + t, MIN(most, span->n_tokens - t)};
    for (guint32 t = 0; t < span->n_tokens; t++, row++) {
      in->tokens[row] = span->tokens[t];
      in->positions[row] = span->past + t;
      in->slots[row] = e->recurrent ? t : span->past + t - span->dropped;
      in->row_sequences[row] = s;
      if (e->all_logits || (span->sample && t + 1 == span->n_tokens))
        in->sample_rows[samples++] = row;
    }
  }
  for (; row < shape->rows; row++, decoding++) { /* the graph's spare rows */
    in->tokens[row] = in->positions[row] = in->slots[row] = 0;
    in->row_sequences[row] = G_MAXUINT32;
    in->table_starts[row] = in->contexts[decoding] = 0;
    in->sample_rows[row] = row;
    if (e->recurrent)
      in->from[row] = in->to[row] = G_MAXUINT32;
  }
  if (shape->shared_tiles)
    fill_shared(e, shape, in);
  qsort(in->tiles, tiles, sizeof *in->tiles, by_weight);
}
