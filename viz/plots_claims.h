/* What papers claim beside what the simulator finds, as one scatter, and a page with the table. */
#ifndef KV_VIZ_PLOTS_CLAIMS_H
#define KV_VIZ_PLOTS_CLAIMS_H

#include "sim/base/output.h"
#include "sim/validate/claims.h"

/* Append a script that draws every replayed ratio, one colour for each part of the survey; FALSE if
 * there is none. `results` are of KvClaimResult. */
gboolean kv_claims_scatter_script(GString *script, const GArray *results);

/* Write report.html, claims.svg (without gnuplot the page says that it is missing) and claims.json
 * into the folder. */
gboolean kv_claims_report_write(const KvRunDirectory *directory, const GArray *results,
                                GError **error);

#endif
