/* Statistics worked out by hand on traces small enough for it. */
#include <math.h>
#include <string.h>

#include "sim/base/error.h"
#include "traces/statistics.h"

static KvTraceStatistics statistics_of(const char *text) {
  g_autoptr(GError) error = NULL;
  KvTraceStatistics s;
  g_autoptr(KvTraceReader) reader =
      kv_trace_reader_open_memory("trace", text, strlen(text), NULL, &error);
  g_assert_no_error(error);
  g_assert_true(kv_trace_statistics(reader, &s, &error));
  g_assert_no_error(error);
  return s;
}

static void test_lengths_and_arrivals(void) {
  /* gaps 1, 3: mean 2, population deviation 1, so CV 1/2; rate 2 gaps in 4 s */
  KvTraceStatistics s =
      statistics_of("{\"timestamp\": 1000, \"input_length\": 1, \"output_length\": 10}\n"
                    "{\"timestamp\": 2000, \"input_length\": 2, \"output_length\": 20}\n"
                    "{\"timestamp\": 5000, \"input_length\": 6, \"output_length\": 60}\n");
  g_assert_cmpuint(s.n_requests, ==, 3);
  g_assert_cmpfloat(s.first_seconds, ==, 1);
  g_assert_cmpfloat(s.last_seconds, ==, 5);
  g_assert_cmpfloat_with_epsilon(s.rate_rps, 0.5, 1e-12);
  g_assert_cmpfloat_with_epsilon(s.inter_arrival_cv, 0.5, 1e-12);
  g_assert_cmpfloat(s.tick_seconds, ==, 0);
  g_assert_cmpfloat_with_epsilon(s.input_tokens.mean, 3, 1e-12);
  g_assert_cmpfloat(s.input_tokens.p50, ==, 2);
  /* rank 1.9 of 0..2: 2 + 0.9 * (6 - 2) */
  g_assert_cmpfloat_with_epsilon(s.input_tokens.p95, 5.6, 1e-12);
  g_assert_cmpfloat_with_epsilon(s.output_tokens.p99, 20 + 0.98 * 40, 1e-12);
  g_assert_cmpfloat(s.total_tokens.max, ==, 66);
  g_assert_cmpuint(s.sum_output_tokens, ==, 90);
}

static void test_ideal_hit(void) {
  /* Blocks of 4. The second prompt finds 1 block (4 tokens), the third its 2 whole ones and a
   * partial (9 tokens, all of it); in the fourth the known blocks stand behind an unknown one. */
  KvTraceStatistics s = statistics_of(
      "{\"kvsim_trace\": 1, \"block_tokens\": 4}\n"
      "{\"timestamp\": 0, \"input_length\": 9, \"output_length\": 1, \"hash_ids\": [1, 2, 3]}\n"
      "{\"timestamp\": 0, \"input_length\": 8, \"output_length\": 1, \"hash_ids\": [1, 4]}\n"
      "{\"timestamp\": 0, \"input_length\": 9, \"output_length\": 1, \"hash_ids\": [1, 2, 3]}\n"
      "{\"timestamp\": 0, \"input_length\": 8, \"output_length\": 1, \"hash_ids\": [5, 2]}\n");
  g_assert_cmpuint(s.block_tokens, ==, 4);
  g_assert_cmpuint(s.n_blocks, ==, 10);
  g_assert_cmpuint(s.n_distinct_blocks, ==, 5);
  g_assert_cmpuint(s.most_reused, ==, 3);
  g_assert_cmpuint(s.hit_blocks, ==, 4);
  g_assert_cmpuint(s.hit_tokens, ==, 13);
}

static void test_ticks(void) {
  /* Groups at 0, 3, 5.999, 9, 15 s, as Mooncake's traces have them */
  static const int times_ms[] = {0, 3000, 5999, 9000, 15000};
  g_autoptr(GString) text = g_string_new(NULL);
  for (guint i = 0; i < G_N_ELEMENTS(times_ms); i++)
    for (guint k = 0; k < 3; k++)
      g_string_append_printf(
          text, "{\"timestamp\": %d, \"input_length\": 1, \"output_length\": 1}\n", times_ms[i]);
  KvTraceStatistics s = statistics_of(text->str);
  g_assert_cmpfloat_with_epsilon(s.tick_seconds, 3, 0.0011);
  g_assert_cmpfloat_with_epsilon(s.same_time_share, 10.0 / 14, 1e-12);
}

static void test_sessions(void) {
  KvTraceStatistics s =
      statistics_of("session_id,round_idx,prefix_len,input_len,output_len,tool_wait_after_ms\n"
                    "3,0,0,20,4,1000\n3,1,24,8,4,2000\n3,2,36,8,4,0\n5,0,0,16,4,0\n");
  g_assert_cmpint(s.timing, ==, KV_TRACE_SESSIONS);
  g_assert_cmpuint(s.n_sessions, ==, 2);
  g_assert_cmpfloat(s.turns_mean, ==, 2);
  g_assert_cmpfloat(s.turns_max, ==, 3);
  g_assert_cmpfloat_with_epsilon(s.think_seconds_mean, 1.5, 1e-12);
  g_assert_cmpfloat_with_epsilon(s.think_seconds_p50, 1.5, 1e-12);
  /* Prompts of 20, 32, 44, 16: the second keeps the one whole block of the first, the third the two
   * of the second */
  g_assert_cmpuint(s.hit_blocks, ==, 3);
  g_assert_cmpuint(s.hit_tokens, ==, 48);
}

static void test_wrong_and_empty(void) {
  static const char *const texts[] = {"input_length,output_length\n",
                                      "input_length,output_length\nx,1\n"};
  static const char *const messages[] = {"trace: has no request, expected some",
                                         "trace:2: input_length: 'x' found, expected a number"};
  for (guint i = 0; i < G_N_ELEMENTS(texts); i++) {
    g_autoptr(GError) error = NULL;
    KvTraceStatistics s;
    g_autoptr(KvTraceReader) reader =
        kv_trace_reader_open_memory("trace", texts[i], strlen(texts[i]), NULL, &error);
    g_assert_no_error(error);
    g_assert_false(kv_trace_statistics(reader, &s, &error));
    g_assert_cmpstr(error->message, ==, messages[i]);
  }
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/traces/statistics/lengths-and-arrivals", test_lengths_and_arrivals);
  g_test_add_func("/traces/statistics/ideal-hit", test_ideal_hit);
  g_test_add_func("/traces/statistics/ticks", test_ticks);
  g_test_add_func("/traces/statistics/sessions", test_sessions);
  g_test_add_func("/traces/statistics/wrong-and-empty", test_wrong_and_empty);
  return g_test_run();
}
