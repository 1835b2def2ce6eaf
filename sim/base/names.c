#include "sim/base/names.h"

#include <string.h>

#include "sim/base/error.h"

enum { LONGEST_NAME = 63 };

/* Damerau-Levenshtein distance (adjacent transpositions count one), case folded. */
static guint edit_distance(const char *a, const char *b) {
  guint rows[3][LONGEST_NAME + 1];
  gsize la = strlen(a), lb = strlen(b);
  if (la > LONGEST_NAME || lb > LONGEST_NAME)
    return G_MAXUINT;
  for (gsize j = 0; j <= lb; j++)
    rows[0][j] = (guint)j;
  for (gsize i = 1; i <= la; i++) {
    guint *row = rows[i % 3], *above = rows[(i - 1) % 3], *above2 = rows[(i + 1) % 3];
    row[0] = (guint)i;
    for (gsize j = 1; j <= lb; j++) {
      char ca = g_ascii_tolower(a[i - 1]), cb = g_ascii_tolower(b[j - 1]);
      row[j] = MIN(MIN(above[j], row[j - 1]) + 1, above[j - 1] + (ca != cb));
      if (i > 1 && j > 1 && ca == g_ascii_tolower(b[j - 2]) && g_ascii_tolower(a[i - 2]) == cb)
        row[j] = MIN(row[j], above2[j - 2] + 1);
    }
  }
  return rows[la % 3][lb];
}

static const char *first_beginning_with(const char *name, const char *const *known) {
  gsize length = strlen(name);
  for (; length >= 2 && *known; known++)
    if (g_ascii_strncasecmp(name, *known, length) == 0)
      return *known;
  return NULL;
}

const char *kv_names_nearest(const char *name, const char *const *known) {
  const char *best = NULL;
  guint best_distance = MAX(2, (guint)strlen(name) / 3) + 1;
  for (const char *const *candidate = known; *candidate; candidate++) {
    guint distance = edit_distance(name, *candidate);
    /* Names that share no letter are not near, however short they are. */
    if (distance < best_distance && distance < MAX(strlen(name), strlen(*candidate))) {
      best = *candidate;
      best_distance = distance;
    }
  }
  return best ? best : first_beginning_with(name, known);
}

char *kv_names_unknown(const char *kind, const char *name, const char *const *known) {
  const char *nearest = kv_names_nearest(name, known);
  g_autofree char *quoted = kv_error_one_line(g_strndup(name, LONGEST_NAME));
  return nearest ? g_strdup_printf("unknown %s '%s', did you mean '%s'?", kind, quoted, nearest)
                 : g_strdup_printf("unknown %s '%s'", kind, quoted);
}
