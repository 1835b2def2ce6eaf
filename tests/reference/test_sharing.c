/* What decoding sequences have in common: by hand, against a search of everything, and carried out.
 */
#include <glib.h>
#include <string.h>

#include "reference/host/executor.h"
#include "reference/host/sharing.h"
#include "sim/base/random.h"
#include "tests/reference/tiny_models.h"

enum { BLOCK = 4, MOST = 24, BLOCKS = 12 };

static KvHostSpan decoding(const guint32 *table, guint32 context) {
  return (KvHostSpan){
      .block_table = table, .past = context - 1, .n_tokens = 1, .decoding = TRUE, .sample = TRUE};
}

static void assert_run(const KvHostSharing *s, guint i, guint32 begin, guint32 end, guint members) {
  const KvHostSharedRun *run = &g_array_index(s->runs, KvHostSharedRun, i);
  g_assert_cmpuint(run->begin, ==, begin);
  g_assert_cmpuint(run->end, ==, end);
  g_assert_cmpuint(run->members, ==, members);
}

static guint32 shared_of(const KvHostSharing *s, guint sequence) {
  return g_array_index(s->shared, guint32, sequence);
}

static void test_a_tree(void) {
  static const guint32 a[] = {7, 3, 9, 1}, b[] = {7, 3, 9, 2}, c[] = {7, 3, 5, 6}, d[] = {8, 3, 9};
  /* The chunk of a prompt in between is not counted. */
  KvHostSpan chunk = {.block_table = a, .past = 8, .n_tokens = 4};
  const KvHostSpan spans[] = {chunk, decoding(c, 14), decoding(a, 13), decoding(d, 10),
                              decoding(b, 16)};
  g_auto(KvHostSharing) s = {0};
  kv_host_sharing_init(&s);
  kv_host_sharing_find(&s, spans, 5, BLOCK, 1);
  g_assert_cmpuint(s.runs->len, ==, 2);
  assert_run(&s, 0, 0, 8, 3);  /* a, b and c */
  assert_run(&s, 1, 8, 12, 2); /* a and b */
  g_assert_cmpuint(shared_of(&s, 0), ==, 8);
  g_assert_cmpuint(shared_of(&s, 1), ==, 12);
  g_assert_cmpuint(shared_of(&s, 2), ==, 0);
  g_assert_cmpuint(shared_of(&s, 3), ==, 12);
  g_assert_cmpuint(s.repeated_tokens, ==, 2 * 8 + 4);
  kv_host_sharing_find(&s, spans, 5, BLOCK, 2);
  g_assert_cmpuint(s.runs->len, ==, 1);
  kv_host_sharing_find(&s, spans, 5, BLOCK, 3);
  g_assert_cmpuint(s.runs->len, ==, 0);
  kv_host_sharing_find(&s, spans, 0, BLOCK, 1);
  g_assert_cmpuint(s.members->len, ==, 0);
}

/* A sequence's newest token is its own, whoever has the block in which it stands. */
static void test_the_newest_token_is_not_shared(void) {
  static const guint32 table[] = {0, 1};
  const KvHostSpan spans[] = {decoding(table, 8), decoding(table, 5), decoding(table, 4)};
  g_auto(KvHostSharing) s = {0};
  kv_host_sharing_init(&s);
  kv_host_sharing_find(&s, spans, 3, BLOCK, 1);
  g_assert_cmpuint(s.runs->len, ==, 1);
  assert_run(&s, 0, 0, 4, 2);
  g_assert_cmpuint(shared_of(&s, 2), ==, 0);
}

/* Whether both begin with the same blocks up to block i. */
static gboolean alike(const KvHostSpan *a, const KvHostSpan *b, guint32 i) {
  return i < a->past / BLOCK && i < b->past / BLOCK &&
         memcmp(a->block_table, b->block_table, (i + 1) * sizeof(guint32)) == 0;
}

static void check_run(const KvHostSharing *s, const KvHostSpan *spans, guint n,
                      const KvHostSharedRun *run, guint8 (*covered)[BLOCKS]) {
  const guint *members = &g_array_index(s->members, guint, run->first);
  g_assert_cmpuint(run->begin, <, run->end);
  for (guint32 i = run->begin / BLOCK; i < run->end / BLOCK; i++) {
    guint have = 0;
    for (guint m = 0; m < run->members; m++) {
      g_assert_true(alike(&spans[members[0]], &spans[members[m]], i));
      covered[members[m]][i]++;
    }
    for (guint t = 0; t < n; t++)
      have += alike(&spans[members[0]], &spans[t], i);
    g_assert_cmpuint(have, ==, run->members);
  }
}

static void check_random(KvRandom *random, guint n, guint over) {
  guint32 tables[MOST][BLOCKS];
  KvHostSpan spans[MOST];
  guint8 covered[MOST][BLOCKS] = {{0}};
  guint64 repeated = 0;
  for (guint s = 0; s < n; s++) { /* another's beginning, then blocks of its own */
    guint like = (guint)kv_random_integer(random, 0, s);
    guint same = (guint)kv_random_integer(random, 0, BLOCKS);
    for (guint i = 0; i < BLOCKS; i++)
      tables[s][i] = like < s && i < same ? tables[like][i] : s * BLOCKS + i;
    spans[s] = decoding(tables[s], (guint32)kv_random_integer(random, 1, (gsize)BLOCKS * BLOCK));
  }
  g_auto(KvHostSharing) sharing = {0};
  kv_host_sharing_init(&sharing);
  kv_host_sharing_find(&sharing, spans, n, BLOCK, over);
  for (guint i = 0; i < sharing.runs->len; i++) {
    const KvHostSharedRun *run = &g_array_index(sharing.runs, KvHostSharedRun, i);
    check_run(&sharing, spans, n, run, covered);
    repeated += (guint64)(run->members - 1) * (run->end - run->begin);
  }
  g_assert_cmpuint(sharing.repeated_tokens, ==, repeated);
  for (guint s = 0; s < n; s++)
    for (guint32 i = 0; i < BLOCKS; i++) {
      guint have = 0;
      for (guint t = 0; t < n; t++)
        have += alike(&spans[s], &spans[t], i);
      g_assert_cmpuint(covered[s][i], ==, have > over);
      g_assert_cmpint(i * BLOCK<shared_of(&sharing, s), ==, have> over);
    }
}

static void test_random_trees(void) {
  KvRandom random;
  kv_random_seed(&random, 3, 1);
  for (guint i = 0; i < 400; i++)
    check_random(&random, (guint)kv_random_integer(&random, 1, MOST),
                 (guint)kv_random_integer(&random, 1, 3));
}

/* --- carried out ------------------------------------------------------------------------------ */

enum { PROMPT = 21, SHARED = 16, HASH = 8, STEPS = 5, SEQUENCES = 3 };

typedef struct {
  guint32 tokens[SEQUENCES][STEPS + 1];
  double bytes[STEPS];
} Decoded;

/* Sequences with the first SHARED tokens in the same blocks decode together. */
static void decode_together(guint over, Decoded *decoded) {
  g_autoptr(GError) error = NULL;
  KvExecutor *executor = kv_host_executor_new(&llama, BLOCK, 64, 0, HASH, 7, &error);
  g_assert_no_error(error);
  const KvHostCompression c = {.shared_over = over};
  kv_host_executor_set_compression(executor, &c);
  KvSequence sequences[SEQUENCES] = {{0}}, *members[SEQUENCES];
  guint32 blocks[SEQUENCES][8];
  guint64 hashes[SEQUENCES][3];
  KvStepCost cost;
  for (guint s = 0; s < SEQUENCES; s++) {
    for (guint i = 0; i < 8; i++)
      blocks[s][i] = i < SHARED / BLOCK ? i : 8 * (s + 1) + i;
    for (guint i = 0; i < 3; i++)
      hashes[s][i] = i < SHARED / HASH ? 100 + i : 200 + 10 * s + i;
    sequences[s] = (KvSequence){.index = s,
                                .input_tokens = PROMPT,
                                .block_ids = blocks[s],
                                .n_block_ids = 8,
                                .hashes = hashes[s],
                                .n_hashes = 3};
    members[s] = &sequences[s];
    KvChunk chunk = {members[s], s ? SHARED : 0, s ? PROMPT - SHARED : PROMPT, TRUE};
    KvStep step = {.chunks = &chunk, .n_chunks = 1, .repeat = 1};
    g_assert_true(executor->class->step(executor, &step, &cost, &error));
    sequences[s].computed_tokens = PROMPT;
  }
  for (guint i = 0; i < STEPS; i++) {
    KvStep step = {.decode = {.n = SEQUENCES, .members = members}, .repeat = 1};
    g_assert_true(executor->class->step(executor, &step, &cost, &error));
    decoded->bytes[i] = cost.hbm_bytes;
    for (guint s = 0; s < SEQUENCES; s++)
      sequences[s].computed_tokens++;
  }
  for (guint s = 0; s < SEQUENCES; s++) {
    guint n;
    const guint32 *output = kv_host_executor_output(executor, members[s], &n);
    g_assert_cmpuint(n, ==, STEPS + 1);
    memcpy(decoded->tokens[s], output, sizeof decoded->tokens[s]);
    executor->class->forget(executor, members[s]);
  }
  executor->class->destroy(executor);
}

static void test_tokens_stay_and_reads_fall(void) {
  Decoded apart, together;
  decode_together(0, &apart);
  decode_together(1, &together);
  g_assert_cmpmem(together.tokens, sizeof together.tokens, apart.tokens, sizeof apart.tokens);
  /* llama: two layers of two KV heads of 16, keys and values in fp32. */
  double token_bytes = 2.0 * 2.0 * 2.0 * 16.0 * sizeof(float);
  for (guint i = 0; i < STEPS; i++)
    g_assert_cmpfloat(apart.bytes[i] - together.bytes[i], ==,
                      (SEQUENCES - 1) * SHARED * token_bytes);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/reference/sharing/tree", test_a_tree);
  g_test_add_func("/reference/sharing/newest-token", test_the_newest_token_is_not_shared);
  g_test_add_func("/reference/sharing/random", test_random_trees);
  g_test_add_func("/reference/sharing/executor", test_tokens_stay_and_reads_fall);
  return g_test_run();
}
