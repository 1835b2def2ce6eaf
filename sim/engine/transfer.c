#include "sim/engine/transfer.h"

typedef struct {
  KvCopy copy;
  double ready_seconds; /* its fixed part ends */
  double left_bytes;
} Transfer;

typedef struct {
  KvPath path;
  double now;
  GArray *down, *up; /* of Transfer */
} Lane;

struct KvTransfers {
  guint under_way;
  Lane lanes[KV_N_TIERS][KV_N_TIERS]; /* [upper][lower] */
};

KvTransfers *kv_transfers_new(void) {
  KvTransfers *transfers = g_new0(KvTransfers, 1);
  return transfers;
}

void kv_transfers_free(KvTransfers *transfers) {
  if (!transfers)
    return;
  for (guint u = 0; u < KV_N_TIERS; u++) {
    for (guint l = 0; l < KV_N_TIERS; l++) {
      g_clear_pointer(&transfers->lanes[u][l].down, g_array_unref);
      g_clear_pointer(&transfers->lanes[u][l].up, g_array_unref);
    }
  }
  g_free(transfers);
}

void kv_transfers_set_path(KvTransfers *transfers, KvTier upper, KvTier lower, const KvPath *path) {
  Lane *lane = &transfers->lanes[MIN(upper, lower)][MAX(upper, lower)];
  lane->path = *path;
  if (!lane->down) {
    lane->down = g_array_new(FALSE, FALSE, sizeof(Transfer));
    lane->up = g_array_new(FALSE, FALSE, sizeof(Transfer));
  }
}

static guint count_moving(const GArray *side, double now) {
  guint n = 0;
  for (guint i = 0; i < side->len; i++) {
    const Transfer *t = &g_array_index(side, Transfer, i);
    n += t->ready_seconds <= now && t->left_bytes > 0.0;
  }
  return n;
}

/* Bytes per second of one copy of `side` while `other` is the opposite direction. */
static double rate_of(const Lane *lane, const GArray *side, const GArray *other) {
  guint moving = count_moving(side, lane->now);
  double rate = side == lane->down ? lane->path.down_Bps : lane->path.up_Bps;
  if (count_moving(other, lane->now) > 0)
    rate *= lane->path.duplex_share;
  return moving ? rate / moving : 0.0;
}

/* The next moment at which anything changes on the lane, and who completes then (NULL: a fixed part
 * ends). */
static double next_change(const Lane *lane, GArray **side_out, guint *index_out) {
  double when = G_MAXDOUBLE;
  *side_out = NULL;
  for (guint s = 0; s < 2; s++) {
    GArray *side = s ? lane->up : lane->down, *other = s ? lane->down : lane->up;
    double rate = rate_of(lane, side, other);
    for (guint i = 0; i < side->len; i++) {
      const Transfer *t = &g_array_index(side, Transfer, i);
      gboolean waiting = t->ready_seconds > lane->now;
      double at = waiting ? t->ready_seconds
                          : lane->now + (t->left_bytes > 0.0 ? t->left_bytes / rate : 0.0);
      if (at < when) {
        when = at;
        *side_out = waiting && t->left_bytes > 0.0 ? NULL : side;
        *index_out = i;
      }
    }
  }
  return when;
}

/* Move the lane's clock to `to`, during which nothing changes. */
static void flow(Lane *lane, double to) {
  for (guint s = 0; s < 2; s++) {
    GArray *side = s ? lane->up : lane->down, *other = s ? lane->down : lane->up;
    double moved = rate_of(lane, side, other) * (to - lane->now);
    for (guint i = 0; i < side->len; i++) {
      Transfer *t = &g_array_index(side, Transfer, i);
      if (t->ready_seconds <= lane->now)
        t->left_bytes = MAX(0.0, t->left_bytes - moved);
    }
  }
  lane->now = MAX(lane->now, to);
}

double kv_transfers_alone(const KvTransfers *transfers, const KvCopy *copy, double pieces) {
  const Lane *lane = &transfers->lanes[MIN(copy->from, copy->to)][MAX(copy->from, copy->to)];
  double rate = copy->to > copy->from ? lane->path.down_Bps : lane->path.up_Bps;
  return lane->down ? lane->path.latency_seconds + pieces * lane->path.per_copy_seconds +
                          copy->bytes / rate
                    : G_MAXDOUBLE;
}

/* Move the lane's clock to `now`, past any number of changes. */
static void flow_until(Lane *lane, double now) {
  for (double when; lane->now < now; flow(lane, MIN(when, now))) {
    GArray *side;
    guint index;
    when =
        next_change(lane, &side, &index); /* a completed copy stays, empty, until it is taken off */
    if (when <= lane->now)
      when = now;
  }
}

void kv_transfers_cancel(KvTransfers *transfers, const KvSequence *sequence, double now) {
  for (guint u = 0; u < KV_N_TIERS; u++) {
    for (guint l = 0; l < KV_N_TIERS; l++) {
      Lane *lane = &transfers->lanes[u][l];
      GArray *sides[] = {lane->down, lane->up};
      if (!lane->down || lane->down->len + lane->up->len == 0)
        continue;
      flow_until(lane, now);
      for (guint s = 0; s < G_N_ELEMENTS(sides); s++)
        for (guint i = sides[s]->len; i-- > 0;)
          if (g_array_index(sides[s], Transfer, i).copy.sequence == sequence) {
            g_array_remove_index(sides[s], i);
            transfers->under_way--;
          }
    }
  }
}

void kv_transfers_begin(KvTransfers *transfers, const KvCopy *copy, double pieces, double now) {
  Lane *lane = &transfers->lanes[MIN(copy->from, copy->to)][MAX(copy->from, copy->to)];
  g_return_if_fail(lane->down != NULL);
  flow_until(lane, now);
  Transfer t = {*copy, now + lane->path.latency_seconds + pieces * lane->path.per_copy_seconds,
                copy->bytes};
  g_array_append_val(copy->to > copy->from ? lane->down : lane->up, t);
  transfers->under_way++;
}

/* The lane on which something changes next; *side is NULL if it is only a fixed part that ends. */
static Lane *next_lane(KvTransfers *transfers, double *when, GArray **side, guint *index) {
  Lane *best = NULL;
  *when = G_MAXDOUBLE;
  if (transfers->under_way == 0)
    return NULL;
  for (guint u = 0; u < KV_N_TIERS; u++) {
    for (guint l = 0; l < KV_N_TIERS; l++) {
      Lane *lane = &transfers->lanes[u][l];
      GArray *lane_side;
      guint lane_index;
      if (!lane->down || lane->down->len + lane->up->len == 0)
        continue;
      double at = next_change(lane, &lane_side, &lane_index);
      if (at < *when) {
        *when = at;
        *side = lane_side;
        *index = lane_index;
        best = lane;
      }
    }
  }
  return best;
}

double kv_transfers_next(KvTransfers *transfers) {
  double when;
  GArray *side;
  guint index;
  next_lane(transfers, &when, &side, &index);
  return when;
}

gboolean kv_transfers_pop(KvTransfers *transfers, double now, KvCopy *copy) {
  for (;;) {
    double when;
    GArray *side;
    guint index;
    Lane *lane = next_lane(transfers, &when, &side, &index);
    if (!lane || when > now)
      return FALSE;
    flow(lane, when);
    if (side) {
      *copy = g_array_index(side, Transfer, index).copy;
      g_array_remove_index(side, index);
      transfers->under_way--;
      return TRUE;
    }
  }
}
