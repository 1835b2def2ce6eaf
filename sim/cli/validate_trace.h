/* kvsim validate TRACE --executor cuda|host: the trace through a real executor and through the
 * model, predicted beside measured. */
#ifndef KV_SIM_CLI_VALIDATE_TRACE_H
#define KV_SIM_CLI_VALIDATE_TRACE_H

#include <glib.h>

#include "sim/scenario.h"

typedef struct {
  const KvScenario *scenario;             /* its executor is a real one */
  const char *trace, *format, *directory; /* format, directory: or NULL */
  gboolean pace_wall, each, as_json;
  gboolean quality; /* also how far answers are from those of the whole cache */
} KvValidateTrace;

gboolean kv_validate_trace(const KvValidateTrace *asked, GError **error);

#endif
