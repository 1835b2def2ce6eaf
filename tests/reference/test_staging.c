/* Blocks that lie partly in host memory: where each stands, and what a pass brings and takes back.
 */
#include <glib.h>

#include "reference/host/staging.h"

enum { BLOCKS = 1000, BLOCK_TOKENS = 4 };

/* Every block has a home of its own, and every stretch of ids its share of each kind. */
static void test_homes(void) {
  static const double shares[] = {0.0, 0.001, 0.2, 1.0 / 3.0, 0.5, 0.65, 0.999, 1.0};
  for (guint i = 0; i < G_N_ELEMENTS(shares); i++) {
    KvHostStaging s;
    kv_host_staging_init(&s, shares[i], BLOCKS);
    g_assert_cmpuint(s.resident + s.away, ==, BLOCKS);
    g_assert_cmpfloat((double)s.resident, <=, shares[i] * BLOCKS);
    g_assert_cmpfloat((double)s.resident, >, shares[i] * BLOCKS - 1.0);
    guint32 expected[2] = {0, 0};
    for (guint32 b = 0; b < BLOCKS; b++) {
      guint32 index;
      gboolean resident = kv_host_staging_home(&s, b, &index);
      g_assert_cmpuint(index, ==, expected[resident]);
      expected[resident]++;
      g_assert_cmpfloat((double)expected[TRUE], <=, shares[i] * (b + 1));
      g_assert_cmpfloat((double)expected[TRUE], >, shares[i] * (b + 1) - 1.0);
    }
    g_assert_cmpuint(expected[TRUE], ==, s.resident);
    kv_host_staging_clear(&s);
  }
}

static guint32 word(const GArray *array, guint i) {
  return g_array_index(array, guint32, i);
}

static void assert_staged(const GArray *array, guint i, guint32 home, guint32 place) {
  const KvHostStaged *staged = &g_array_index(array, KvHostStaged, i);
  g_assert_cmpuint(staged->home, ==, home);
  g_assert_cmpuint(staged->place, ==, place);
}

/* Of ten blocks the odd ones are resident. A prompt's second chunk over blocks 4 (away), 3, 2
 * (away): tokens 5 .. 9, so 4 is read, 3 read and written, 2 written. Then a decoding token in
 * block 6 (away), its fourth. */
static void test_a_plan(void) {
  static const guint32 first[] = {4, 3, 2}, second[] = {6};
  const KvHostSpan spans[] = {{.block_table = first, .past = 5, .n_tokens = 5},
                              {.block_table = second, .past = 3, .n_tokens = 1}};
  KvHostStaging s;
  kv_host_staging_init(&s, 0.5, 10);
  for (guint again = 0; again < 2; again++) { /* no pass knows of the one before */
    kv_host_staging_plan(&s, spans, 2, BLOCK_TOKENS);
    g_assert_cmpuint(s.table->len, ==, 4);
    g_assert_cmpuint(word(s.table, 0), ==, 5); /* place 0 */
    g_assert_cmpuint(word(s.table, 1), ==, 1); /* the second that is resident */
    g_assert_cmpuint(word(s.table, 2), ==, 6);
    g_assert_cmpuint(word(s.table, 3), ==, 7);
    g_assert_cmpuint(s.homes->len, ==, 3);
    g_assert_cmpuint(s.fetched->len, ==, 2);
    assert_staged(s.fetched, 0, 2, 0);
    assert_staged(s.fetched, 1, 3, 2);
    g_assert_cmpuint(s.stored->len, ==, 2);
    assert_staged(s.stored, 0, 1, 1);
    assert_staged(s.stored, 1, 3, 2);
  }
  kv_host_staging_clear(&s);
}

/* A block that two sequences share has one place, and is fetched where one of them reads it. */
static void test_a_shared_block(void) {
  static const guint32 first[] = {8}, second[] = {8, 6};
  const KvHostSpan spans[] = {{.block_table = first, .past = 0, .n_tokens = 4},
                              {.block_table = second, .past = 4, .n_tokens = 1}};
  KvHostStaging s;
  kv_host_staging_init(&s, 0.0, 10);
  kv_host_staging_plan(&s, spans, 2, BLOCK_TOKENS);
  g_assert_cmpuint(s.table->len, ==, 3);
  g_assert_cmpuint(word(s.table, 0), ==, word(s.table, 1));
  g_assert_cmpuint(s.homes->len, ==, 2);
  g_assert_cmpuint(s.fetched->len, ==, 1);
  assert_staged(s.fetched, 0, 8, 0);
  g_assert_cmpuint(s.stored->len, ==, 2);
  kv_host_staging_clear(&s);
}

/* What decodes elsewhere writes to a place that is neither fetched nor stored. */
static void test_decoding_elsewhere(void) {
  static const guint32 first[] = {4, 3}, second[] = {6, 7, 8};
  const KvHostSpan spans[] = {{.block_table = first, .past = 4, .n_tokens = 2},
                              {.block_table = second, .past = 9, .n_tokens = 1, .decoding = TRUE}};
  KvHostStaging s;
  kv_host_staging_init(&s, 0.0, 10);
  s.decoding = KV_HOST_DECODING_ELSEWHERE;
  kv_host_staging_plan(&s, spans, 2, BLOCK_TOKENS);
  g_assert_cmpuint(s.table->len, ==, 5);
  for (guint i = 2; i < 5; i++)
    g_assert_cmpuint(word(s.table, i), ==, 2);
  g_assert_cmpuint(s.homes->len, ==, 3);
  g_assert_cmpuint(s.fetched->len, ==, 1);
  assert_staged(s.fetched, 0, 4, 0);
  g_assert_cmpuint(s.stored->len, ==, 1);
  assert_staged(s.stored, 0, 3, 1);
  kv_host_staging_clear(&s);
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/reference/staging/homes", test_homes);
  g_test_add_func("/reference/staging/plan", test_a_plan);
  g_test_add_func("/reference/staging/shared", test_a_shared_block);
  g_test_add_func("/reference/staging/elsewhere", test_decoding_elsewhere);
  return g_test_run();
}
