/* Pictures of structure, as Graphviz graphs: a platform, a technique's plan, the prefix tree of a
 * trace. Drawn with cgraph; laid out by Graphviz' own program `dot`.
 */
#ifndef KV_VIZ_GRAPH_H
#define KV_VIZ_GRAPH_H

#include <jansson.h>

#include "models/hardware/hardware.h"
#include "models/llm/llm.h"
#include "models/techniques/plan.h"
#include "traces/trace.h"

/* Each returns the graph in the DOT language, newly allocated. */

/* Devices, host, storage and network of one platform, links with their rates. `summary` (may be
 * NULL) is the summary.json of a run on it: what flowed over each link is written beside it. */
char *kv_graph_platform(const KvPlatform *platform, const json_t *summary);

/* Caches by layers and segments on the tiers they live on, and who reads what of them in a decode
 * step of one sequence of `context` tokens after a prompt of `prompt`. NULL with *error if the plan
 * cannot be compiled. */
char *kv_graph_plan(const KvModel *model, const KvPlan *plan, const char *stack, guint context,
                    guint prompt, GError **error);

/* The tree of the trace's prefixes: nodes are runs of blocks that the same requests share, the
 * `most` with the most requests. NULL with *error if the trace is bad or has no prefix blocks. */
char *kv_graph_prefixes(KvTraceReader *reader, guint most, GError **error);

/* Lay `dot` out into `format` ("svg", "png", "pdf" ...): the file's bytes, or NULL with *error if
 * Graphviz is missing or fails. */
GBytes *kv_graph_render(const char *dot, const char *format, GError **error);

#endif
