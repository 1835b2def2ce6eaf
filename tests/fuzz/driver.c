/* Runs a fuzz target without a fuzzer: over every file of the folders and files named, and over
 * small changes of each, drawn from a fixed seed. So the targets are tests on any compiler. */
#include <glib.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "sim/base/random.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t length);

enum { CHANGES_PER_FILE = 60, LARGEST_BYTES = 1 << 20 };

/* A copy of exactly this length, so that a sanitizer sees a read past its end. */
static void run(const char *bytes, gsize length) {
  uint8_t *exact = g_memdup2(bytes, length);
  LLVMFuzzerTestOneInput(exact, length);
  g_free(exact);
}

/* Flip, cut, repeat or replace a part of `bytes` (of which there is room for twice as many). */
static gsize change(KvRandom *random, char *bytes, gsize length) {
  static const char *const words[] = {
      "-1", "1e999", "0",  "null", "[",   "]",          "{",  "}",  "\"",
      "\\", ",",     "\n", "\r",   "NaN", "2147483648", ".5", "\0", "18446744073709551616"};
  if (length == 0)
    return 0;
  gsize at = (gsize)kv_random_integer(random, 0, (gint64)length - 1);
  switch (kv_random_integer(random, 0, 3)) {
  case 0:
    bytes[at] = (char)kv_random_u64(random);
    return length;
  case 1:
    return at;
  case 2:
    memmove(bytes + length, bytes + at, length - at);
    return 2 * length - at;
  default: {
    const char *word = words[kv_random_integer(random, 0, G_N_ELEMENTS(words) - 1)];
    gsize n = MIN(MAX(strlen(word), 1), length - at);
    memcpy(bytes + at, word, n);
    return length;
  }
  }
}

static guint run_file(const char *path) {
  g_autofree char *bytes = NULL;
  gsize length;
  KvRandom random;
  if (!g_file_get_contents(path, &bytes, &length, NULL) || length > LARGEST_BYTES)
    return 0;
  run(bytes, length);
  kv_random_seed(&random, g_str_hash(bytes), length);
  for (guint i = 0; i < CHANGES_PER_FILE; i++) {
    g_autofree char *changed = g_malloc(4 * length + 1);
    memcpy(changed, bytes, length);
    gsize n = change(&random, changed, length);
    run(changed, change(&random, changed, n));
  }
  return 1;
}

static guint run_path(const char *path) {
  GDir *folder = g_dir_open(path, 0, NULL);
  if (!folder)
    return run_file(path);
  guint n = 0;
  for (const char *name; (name = g_dir_read_name(folder));) {
    g_autofree char *inside = g_build_filename(path, name, NULL);
    n += run_path(inside);
  }
  g_dir_close(folder);
  return n;
}

int main(int argc, char **argv) {
  guint n = 0;
  for (int i = 1; i < argc; i++)
    n += run_path(argv[i]);
  g_print("%u files, each with %d changes\n", n, CHANGES_PER_FILE);
  return n > 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
