/* What prefix structures add to the pool: ages refreshed by matching, duplicates merged, prefixes
 * that end with their last user, and who reads what is shared. Blocks of 16 tokens, as the hashes.
 */
#include "sim/engine/pool.h"

#include "replay.h"
#include "shapes.h"

enum { BLOCK = 16 };

/* A sequence of `blocks` whole blocks and one token, of which the first `shared` are named as
 * everybody's and the others after `own`. */
static void name(KvSequence *s, guint64 *hashes, guint blocks, guint shared, guint64 own) {
  *s = (KvSequence){.input_tokens = blocks * BLOCK + 1, .output_tokens = 10, .hashes = hashes};
  s->n_hashes = blocks + 1;
  for (guint i = 0; i <= blocks; i++)
    hashes[i] = i < shared ? 1000 + i : own * 100 + i;
}

static void compute(KvPool *pool, KvSequence *s, guint blocks) {
  KvPrefixHit hit = kv_pool_lookup(pool, s, s->input_tokens - 1);
  kv_pool_take_hit(pool, s, &hit);
  kv_pool_grow(pool, s, blocks + 1, s->input_tokens);
}

static guint64 found(KvPool *pool, const KvSequence *s) {
  return kv_pool_lookup(pool, s, s->input_tokens - 1).tokens / BLOCK;
}

/* Of two prefixes the one released first goes first, unless it was matched since. */
static void test_touch(void) {
  for (guint touched = 0; touched < 2; touched++) {
    KvPool *pool = kv_pool_new(6, BLOCK, BLOCK, TRUE, FALSE);
    KvSequence a, b, c;
    guint64 of_a[3], of_b[3], of_c[3];
    name(&a, of_a, 2, 0, 1);
    name(&b, of_b, 2, 0, 2);
    name(&c, of_c, 2, 0, 3);
    compute(pool, &a, 2);
    compute(pool, &b, 2);
    kv_pool_release(pool, &a, FALSE);
    kv_pool_release(pool, &b, FALSE);
    KvPrefixHit hit = kv_pool_lookup(pool, &a, 2 * BLOCK);
    if (touched)
      kv_pool_touch(pool, &a, &hit);
    g_assert_null(kv_pool_check(pool, NULL, 0, 0));
    compute(pool, &c, 2); /* three blocks, of which one or two are empty */
    g_assert_cmpuint(found(pool, &a), <=, touched ? 2 : 1);
    g_assert_cmpuint(touched ? found(pool, &a) : found(pool, &b), ==, 2);
    g_assert_cmpuint(touched ? found(pool, &b) : found(pool, &a), <, 2);
    kv_pool_release(pool, &c, FALSE);
    kv_pool_free(pool);
    g_free(a.nodes);
    g_free(b.nodes);
    g_free(c.nodes);
  }
}

/* Two compute the same two blocks at once: kept apart they take six blocks, merged four. */
static void test_merge(void) {
  for (guint merges = 0; merges < 2; merges++) {
    KvPool *pool = kv_pool_new(10, BLOCK, BLOCK, TRUE, FALSE);
    kv_pool_set_merging(pool, merges != 0);
    KvSequence a, b, *both[] = {&a, &b};
    guint64 of_a[3], of_b[3];
    name(&a, of_a, 2, 2, 1);
    name(&b, of_b, 2, 2, 2);
    kv_pool_grow(pool, &a, 3, 0);
    kv_pool_grow(pool, &b, 3, 0);
    kv_pool_grow(pool, &a, 3, a.input_tokens);
    kv_pool_grow(pool, &b, 3, b.input_tokens);
    g_assert_cmpuint(kv_pool_held(pool, &a), ==, 3);
    g_assert_cmpuint(kv_pool_held(pool, &b), ==, 3);
    g_assert_cmpuint(kv_pool_free_blocks(pool), ==, merges ? 6 : 4);
    g_assert_null(kv_pool_check(pool, both, 2, 0));
    kv_pool_release(pool, &a, FALSE);
    kv_pool_release(pool, &b, FALSE);
    g_assert_cmpuint(kv_pool_free_blocks(pool), ==, 10);
    kv_pool_free(pool);
    g_free(a.nodes);
    g_free(b.nodes);
  }
}

/* A prefix lives as long as one of its users; or as many blocks as may be kept. */
static void test_last_user(void) {
  static const guint64 kept[] = {0, 1, 2, G_MAXUINT64};
  static const guint left[] = {0, 0, 2,
                               2}; /* the second node's end first, and whole or not at all */
  for (guint k = 0; k < G_N_ELEMENTS(kept); k++) {
    KvPool *pool = kv_pool_new(10, BLOCK, BLOCK, TRUE, FALSE);
    kv_pool_set_retained(pool, kept[k]);
    KvSequence a, b, c;
    guint64 of_a[3], of_b[3], of_c[3];
    name(&a, of_a, 2, 2, 1);
    name(&b, of_b, 2, 2, 2);
    name(&c, of_c, 2, 2, 3);
    compute(pool, &a, 2);
    g_assert_cmpuint(found(pool, &b), ==, 2);
    compute(pool, &b, 2);
    kv_pool_release(pool, &a, FALSE);
    g_assert_cmpuint(found(pool, &c), ==, 2);
    kv_pool_release(pool, &b, FALSE);
    g_assert_cmpuint(found(pool, &c), ==, left[k]);
    g_assert_cmpuint(kv_pool_free_blocks(pool), ==, 10);
    g_assert_null(kv_pool_check(pool, NULL, 0, 0));
    kv_pool_free(pool);
    g_free(a.nodes);
    g_free(b.nodes);
  }
}

static void assert_reads(const KvPool *pool, guint once_blocks, guint repeated_blocks) {
  const KvSharedReads *reads = kv_pool_shared_reads(pool);
  g_assert_cmpuint(reads->once_tokens, ==, (guint64)once_blocks * BLOCK);
  g_assert_cmpuint(reads->repeated_tokens, ==, (guint64)repeated_blocks * BLOCK);
}

/* Three sequences of four blocks: two blocks are everybody's, a third is a's and b's. Counted where
 * more than one reads, and where more than two do. */
static void test_shared_reads(void) {
  for (guint over = 1; over <= 2; over++) {
    KvPool *pool = kv_pool_new(40, BLOCK, BLOCK, TRUE, FALSE);
    kv_pool_count_shared(pool, over);
    KvSequence a, b, c;
    guint64 of_a[5], of_b[5], of_c[5];
    name(&a, of_a, 4, 3, 1);
    name(&b, of_b, 4, 3, 2);
    name(&c, of_c, 4, 2, 3);
    compute(pool, &a, 4);
    compute(pool, &b, 4);
    compute(pool, &c, 4);
    assert_reads(pool, 0, 0); /* nobody decodes yet */
    kv_pool_read(pool, &a, TRUE);
    assert_reads(pool, 0, 0);
    kv_pool_read(pool, &b, TRUE);
    assert_reads(pool, over == 1 ? 3 : 0, over == 1 ? 3 : 0);
    kv_pool_read(pool, &c, TRUE); /* 2 blocks x 3 readers, and one x 2 */
    assert_reads(pool, over == 1 ? 3 : 2, over == 1 ? 2 * 2 + 1 : 2 * 2);
    kv_pool_read(pool, &a, FALSE);
    assert_reads(pool, over == 1 ? 2 : 0, over == 1 ? 2 : 0);
    kv_pool_read(pool, &b, FALSE);
    kv_pool_read(pool, &c, FALSE);
    assert_reads(pool, 0, 0);
    kv_pool_release(pool, &a, FALSE);
    kv_pool_release(pool, &b, FALSE);
    kv_pool_release(pool, &c, FALSE);
    kv_pool_free(pool);
    g_free(a.nodes);
    g_free(b.nodes);
    g_free(c.nodes);
  }
}

/* ChunkAttention as a whole: while request 0 decodes, request 1 shares its two whole chunks of 64;
 * request 2, which comes when both are gone, computes everything again. A decode step of the two
 * reads 128 tokens less; vLLM's reads them twice. */
static void test_chunkattention(void) {
  g_autoptr(Workload) workload = workload_new(16);
  workload_add(workload, 0.0, 150, 200, -1, 0);
  workload_add(workload, 0.2, 150, 100, 0, 144);
  workload_add(workload, 60.0, 150, 2, 0, 144);
  const char *on = "model=llama-2-7b platform=a100-80gb engine.step_by_step=true ";
  g_autoptr(Replay) chunk = replay(workload, "%s use=chunkattention", on);
  g_assert_cmpuint(chunk->outcomes[1].hit_tokens, ==, 128);
  g_assert_cmpuint(chunk->outcomes[2].hit_tokens, ==, 0);
  g_autoptr(Replay) kept = replay(workload, "%s engine.block_tokens=64", on);
  g_assert_cmpuint(kept->outcomes[2].hit_tokens, ==, 128);
  /* At 128 shared tokens of 4096 bytes a layer and K or V, for each step of both: */
  g_autoptr(Replay) apart = replay(
      workload, "%s engine.block_tokens=64 engine.async_scheduling=false engine.max_seqs=32", on);
  double saved = apart->summary->component_bytes[KV_COMPONENT_DECODE_ATTENTION] -
                 chunk->summary->component_bytes[KV_COMPONENT_DECODE_ATTENTION];
  guint together = 0;
  for (guint i = 0; i < chunk->n_operations; i++)
    together += chunk->operations[i].decodes == 2;
  /* Partial results: 2 chunks and 2 sequences of 32 heads with 128 * 2 + 8 bytes, written and read.
   */
  double partial = 32.0 * 2 * 2 * 2 * 32 * (128 * 2 + 8);
  g_assert_cmpuint(together, ==, 99);
  g_assert_cmpfloat_with_epsilon(saved, together * (128 * 2 * 32 * 4096.0 * 2 - partial),
                                 1e-9 * saved);
}

/* Many sequences with a long prefix in common are done earlier, by most of what reading it costs.
 */
static void test_shared_reads_are_faster(void) {
  g_autoptr(Workload) workload = workload_new(16);
  for (guint i = 0; i < 16; i++)
    workload_add(workload, 0.0, 2100, 100, i ? 0 : -1, 2048);
  const char *on = "model=llama-2-7b platform=a100-80gb";
  g_autoptr(Replay) chunk = replay(workload, "%s use=chunkattention", on);
  g_autoptr(Replay) apart = replay(
      workload, "%s engine.block_tokens=64 engine.async_scheduling=false engine.max_seqs=32", on);
  double faster = apart->summary->component_seconds[KV_COMPONENT_DECODE_ATTENTION] /
                  chunk->summary->component_seconds[KV_COMPONENT_DECODE_ATTENTION];
  g_assert_cmpfloat(faster, >, 2.0);
  g_assert_cmpfloat(faster, <, 16.0);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/prefix-sharing/touch", test_touch);
  g_test_add_func("/prefix-sharing/merge", test_merge);
  g_test_add_func("/prefix-sharing/last-user", test_last_user);
  g_test_add_func("/prefix-sharing/shared-reads", test_shared_reads);
  g_test_add_func("/prefix-sharing/chunkattention", test_chunkattention);
  g_test_add_func("/prefix-sharing/shared-reads-are-faster", test_shared_reads_are_faster);
  return g_test_run();
}
