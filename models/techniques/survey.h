/* The survey's list: every system that kvsim sets out to compare, whether it is in yet or not.
 *
 * 130 systems stand for the 138 rows of the list; a system listed under two sections is one entry.
 */
#ifndef KV_MODELS_TECHNIQUES_SURVEY_H
#define KV_MODELS_TECHNIQUES_SURVEY_H

#include <glib.h>

typedef struct {
  const char *id, *name, *paper;
  guint year;
  char **sections; /* NULL-terminated */
} KvSurveyEntry;

/* All of them by id, `*n` in number; made once, borrowed. */
const KvSurveyEntry *kv_survey(guint *n);

#endif
