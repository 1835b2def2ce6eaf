/* Leading blocks that several decoding sequences of a step have in common, as a prefix tree: what
 * can be read once for all of them (Ye et al., "ChunkAttention", 2024, section 3.2).
 *
 * Equal block ids are equal tokens, because prefix caching gives a block to whoever continues the
 * same prefix. A node of the tree is the longest run of blocks that the same sequences share; its
 * sequences stand side by side in `members`, and all of them share the nodes above it too. Only
 * blocks that end before a sequence's newest token take part, so each keeps one token of its own
 * at least.
 */
#ifndef KV_REFERENCE_HOST_SHARING_H
#define KV_REFERENCE_HOST_SHARING_H

#include <glib.h>

#include "reference/host/forward.h"

typedef struct {
  guint32 begin, end;   /* tokens of the context, whole blocks */
  guint first, members; /* KvHostSharing.members[first] and on */
} KvHostSharedRun;

/* The decoding spans of a step are counted from 0, chunks left out. */
typedef struct {
  GArray *runs;            /* of KvHostSharedRun, those above before those below */
  GArray *members;         /* of guint: every decoding sequence, so that runs are neighbours */
  GArray *shared;          /* of guint32: leading tokens of each that runs cover */
  guint64 repeated_tokens; /* that need not be read again */
  GArray *prefixes;        /* scratch */
} KvHostSharing;

void kv_host_sharing_init(KvHostSharing *sharing);
void kv_host_sharing_clear(KvHostSharing *sharing);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(KvHostSharing, kv_host_sharing_clear)

/* The runs of blocks that more than `over` (at least 1) of the spans that decode share. */
void kv_host_sharing_find(KvHostSharing *sharing, const KvHostSpan *spans, guint n_spans,
                          guint block_tokens, guint over);

#endif
