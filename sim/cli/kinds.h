/* What can be listed and shown: one table, from the tables that everything else reads. */
#ifndef KV_SIM_CLI_KINDS_H
#define KV_SIM_CLI_KINDS_H

#include <glib.h>

typedef struct {
  const char *name, *summary;
  /* One line each: the names alone, or with what they are. */
  void (*list)(gboolean names);
  /* Print the one called `name`; FALSE if there is none, or (with *error) if it cannot be read. */
  gboolean (*show)(const char *name, GError **error);
} KvKind;

extern const KvKind kv_kinds[]; /* ends with name NULL */

#endif
