/* A pass as numbers: its shape, which decides on what is launched, and the inputs that go to the
 * GPU as one piece. */
#ifndef KV_REFERENCE_CUDA_INPUTS_H
#define KV_REFERENCE_CUDA_INPUTS_H

#include "reference/cuda/forward.h"

/* What a captured launch depends on, and every offset into its inputs. Prefilling sequences come
 * before decoding ones, in rows as in tables. */
typedef struct {
  guint rows, prefill_rows; /* R; of them, of prompts */
  guint prefill, decode;    /* sequences */
  guint tiles;              /* of prefill attention */
  guint samples;            /* rows whose logits are wanted */
  guint max_splits;         /* of decode attention */
  guint shared_tiles;       /* room for tiles of tokens that sequences share; 0: they share none */
  guint shared_parts;       /* not of the launch: what there must be room for */
  guint states;             /* of recurrent layers: sequences, or 0 */
} KvCudaShape;

/* The step's numbers, uploaded as one piece: on the host where they are written, on the GPU where
 * they are read. */
typedef struct {
  guint32 *tokens, *positions, *row_sequences; /* [R] */
  guint32
      *slots; /* [R]: where keys and values go; of recurrent layers: the row's place in its span */
  guint32 *table_starts; /* [prefill + decode] */
  guint32 *contexts;     /* [decode] */
  guint32 *split_tokens; /* [1] */
  guint32 *sample_rows;  /* [samples] */
  guint32 *from, *to;    /* [states]: continued, and left (KvCudaStates) */
  KvCudaTile *tiles;     /* [tiles]; of recurrent layers a span each */
  /* Where sequences share tokens: [decode], [decode + 1], [decode], [1], [shared_tiles]. */
  guint32 *first_tokens, *part_starts, *members, *n_shared;
  KvCudaSharedTile *shared;
  guint32 *table; /* every sequence's block ids */
} KvCudaInputs;

/* Where they stand in `words` of host or of device memory. */
KvCudaInputs kv_cuda_inputs_at(guint32 *words, const KvCudaShape *shape);

/* The shape of the step, unpadded; *words of inputs. */
KvCudaShape kv_cuda_shape_of(const KvCudaEngine *engine, const KvHostSpan *spans, guint n,
                             gsize *words);

/* Pieces for the decoding contexts, and the tokens of one: equal contexts fill the GPU; a context
 * far above the mean is cut finer, in one of a few grids so that graphs stay few. */
guint32 kv_cuda_shape_split(const KvCudaEngine *engine, const KvHostSpan *spans, guint n,
                            KvCudaShape *shape);

/* Rows of the graph that serves a batch of n. */
guint kv_cuda_graph_rows(guint n);

/* Write the step into `in` (host memory), except split_tokens. */
void kv_cuda_inputs_fill(const KvCudaEngine *engine, const KvCudaShape *shape,
                         const KvHostSpan *spans, guint n, const KvCudaInputs *in);

#endif
