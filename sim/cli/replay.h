/* Replaying a trace under one scenario, as `run` and `compare` do it. */
#ifndef KV_SIM_CLI_REPLAY_H
#define KV_SIM_CLI_REPLAY_H

#include <glib.h>

#include "sim/base/output.h"
#include "sim/engine/simulation.h"

/* Replay the file `trace` through `setup`; per-request rows go to requests.csv (prefixed by
 * `prefix`) of `directory`, if that is not NULL, operations to operations.csv if `operations`, and
 * the tokens of a real executor to outputs.jsonl. `pace_wall`: in real time (real executors).
 * Progress on standard error if it is a terminal. */
KvSummary *kv_replay(const KvSetup *setup, const char *trace, const char *format,
                     const KvRunDirectory *directory, const char *prefix, gboolean operations,
                     gboolean pace_wall, GError **error);

/* Write scenario.json, summary.json, timeline.csv, the plots (if `plots`) and report.html of one or
 * more runs and commit the directory. Prints on standard error which pictures are missing. */
gboolean kv_replay_write(KvRunDirectory *directory, const KvSetup *const *setups,
                         KvSummary *const *summaries, guint n, gboolean plots, GError **error);

/* "runs/NAME", made of the trace's name, the first that does not exist. */
char *kv_replay_directory_name(const char *trace, const char *kind);

#endif
