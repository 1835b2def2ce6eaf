/* Copies between tiers under way at the same time: each path (a pair of tiers) is shared fairly.
 *
 * Every copy of a path and direction gets an equal part of its rate; a path whose two directions
 * are busy at once gets `duplex_share` of the sum of both. A copy first waits out its fixed time
 * (latency and the issue of its pieces), which it shares with nobody. Times are absolute seconds;
 * they never run backwards.
 */
#ifndef KV_SIM_ENGINE_TRANSFER_H
#define KV_SIM_ENGINE_TRANSFER_H

#include <glib.h>

#include "sim/engine/executor.h"

typedef struct {
  double down_Bps, up_Bps; /* away from the GPU, and towards it; 0: there is no such path */
  double duplex_share;     /* see KvLink */
  double latency_seconds, per_copy_seconds;
} KvPath;

typedef struct KvTransfers KvTransfers;

KvTransfers *kv_transfers_new(void);
void kv_transfers_free(KvTransfers *transfers);

/* Describe the path between two tiers (order does not matter). */
void kv_transfers_set_path(KvTransfers *transfers, KvTier upper, KvTier lower, const KvPath *path);

/* Seconds that the copy takes with the path to itself; G_MAXDOUBLE where there is no path. */
double kv_transfers_alone(const KvTransfers *transfers, const KvCopy *copy, double pieces);

/* Begin `copy` (of `pieces` separate pieces) at `now`. */
void kv_transfers_begin(KvTransfers *transfers, const KvCopy *copy, double pieces, double now);

/* The next moment at which kv_transfers_pop() is worth calling; G_MAXDOUBLE if no copy is under
 * way. */
double kv_transfers_next(KvTransfers *transfers);

/* Take off a copy that has completed by `now`. */
gboolean kv_transfers_pop(KvTransfers *transfers, double now, KvCopy *copy);

/* Give up every copy for `sequence` at `now`: what is left shares its path anew. */
void kv_transfers_cancel(KvTransfers *transfers, const KvSequence *sequence, double now);

#endif
