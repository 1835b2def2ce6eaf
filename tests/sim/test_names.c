/* sim/base/names.h: the nearest name to suggest. */
#include "sim/base/names.h"

#include <string.h>

static const char *const known[] = {
    "llama-3-8b",
    "llama-2-13b",
    "kivi",
    "h100-sxm",
    "h100-pcie",
    "h2o",
    "quest",
    "yi",
    "a-name-that-is-longer-than-any-other-name-in-the-catalogue-of-kvsim",
    NULL,
};

static void nearest_is_found(void) {
  const struct {
    const char *typed, *nearest;
  } cases[] = {
      {"kivi", "kivi"},  /* itself */
      {"KIVI", "kivi"},  /* case is folded */
      {"kvii", "kivi"},  /* a transposition is one */
      {"kiwi", "kivi"},  /* a substitution */
      {"kiv", "kivi"},   /* a letter left out */
      {"kivii", "kivi"}, /* a letter too many */
      {"qeust", "quest"},
      {"llama3-8b", "llama-3-8b"},
      {"lama-3-8", "llama-3-8b"},    /* two */
      {"llama-3-8b-", "llama-3-8b"}, /* not the other llama */
      {"h100", "h100-sxm"},          /* far, but the first that begins so */
      {"LLAMA-2", "llama-2-13b"},    /* a beginning, case folded, further than two */
      {"llama-4-90b", "llama-3-8b"}, /* three of eleven; the first of two as near */
  };
  for (guint i = 0; i < G_N_ELEMENTS(cases); i++)
    g_assert_cmpstr(kv_names_nearest(cases[i].typed, known), ==, cases[i].nearest);
}

static void far_names_suggest_nothing(void) {
  const char *const typed[] = {"", "x", "zz", "mamba", "completely-different", "k"};
  for (guint i = 0; i < G_N_ELEMENTS(typed); i++)
    g_assert_null(kv_names_nearest(typed[i], known));
}

static void longest_names_are_no_trouble(void) {
  g_autofree char *endless = g_strnfill(1 << 20, 'k');
  g_assert_null(kv_names_nearest(endless, known));
  g_autofree char *message = kv_names_unknown("model", endless, known);
  g_assert_cmpuint(strlen(message), <, 100);
}

static void empty_list_suggests_nothing(void) {
  const char *const none[] = {NULL};
  g_assert_null(kv_names_nearest("kivi", none));
}

static void message_suggests(void) {
  g_autofree char *near = kv_names_unknown("technique", "kvii", known);
  g_assert_cmpstr(near, ==, "unknown technique 'kvii', did you mean 'kivi'?");
  g_autofree char *far = kv_names_unknown("model", "mamba", known);
  g_assert_cmpstr(far, ==, "unknown model 'mamba'");
  g_autofree char *broken = kv_names_unknown("model", "a\nb\033[2J", known);
  g_assert_cmpstr(broken, ==, "unknown model 'a?b?[2J'");
}

int main(int argc, char **argv) {
  g_test_init(&argc, &argv, NULL);
  g_test_add_func("/names/nearest-is-found", nearest_is_found);
  g_test_add_func("/names/far-names-suggest-nothing", far_names_suggest_nothing);
  g_test_add_func("/names/longest-names-are-no-trouble", longest_names_are_no_trouble);
  g_test_add_func("/names/empty-list-suggests-nothing", empty_list_suggests_nothing);
  g_test_add_func("/names/message-suggests", message_suggests);
  return g_test_run();
}
