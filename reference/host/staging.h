/* Where the blocks of a cache stand that lies partly on the GPU and partly in host memory, and what
 * a pass brings to the GPU for a layer and takes back after it (flexgen). Both executors carry out
 * this plan, the host with two arrays, the GPU with HBM and pinned memory.
 *
 * Blocks keep the engine's ids. Of ids 0 .. n - 1 the share's part is resident, spread evenly, so
 * that every sequence has about its share there. A pass gives each other block that it touches a
 * place in a staging area as large as one layer of them all: before a layer those with earlier
 * tokens are fetched, after it those with new tokens are stored, whole. Where decoding sequences
 * attend elsewhere, they have a place for what is written alone; where chosen tokens are brought to
 * them, a place for each of their blocks, which is neither fetched nor stored.
 */
#ifndef KV_REFERENCE_HOST_STAGING_H
#define KV_REFERENCE_HOST_STAGING_H

#include <glib.h>

#include "reference/host/forward.h"

/* What is done with the blocks of sequences that decode. */
typedef enum {
  KV_HOST_DECODING_STAGED,    /* as with those of prompts */
  KV_HOST_DECODING_ELSEWHERE, /* one place for all that is written */
  KV_HOST_DECODING_GATHERED   /* a place each */
} KvHostDecoding;

/* A block on its way: its index in host memory, and its place in the staging area. */
typedef struct {
  guint32 home, place;
} KvHostStaged;

typedef struct {
  double share;           /* resident */
  guint32 resident, away; /* blocks on the GPU, in host memory */
  KvHostDecoding decoding;
  /* Of the pass: every span's block table, one after another. A resident block is its index, any
   * other `resident` + its place. */
  GArray *table;            /* of guint32 */
  GArray *fetched, *stored; /* of KvHostStaged: before a layer, after it */
  GArray *homes;            /* of guint32, by place */
  GArray *uses;             /* of guint8, by place */
  guint32 *places;          /* [away]: 1 + place; 0: not in this pass */
} KvHostStaging;

void kv_host_staging_init(KvHostStaging *staging, double share, guint32 n_blocks);
void kv_host_staging_clear(KvHostStaging *staging);

/* Of n blocks, those that are resident. */
guint32 kv_host_staging_resident(double share, guint32 n_blocks);
/* Whether the block is resident; *index: among those that are, or among the others. */
gboolean kv_host_staging_home(const KvHostStaging *staging, guint32 block, guint32 *index);

/* Plan a pass over spans. */
void kv_host_staging_plan(KvHostStaging *staging, const KvHostSpan *spans, guint n,
                          guint block_tokens);

#endif
