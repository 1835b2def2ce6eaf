/* What a run says in sentences: derived from its numbers alone. Plain UTF-8 text, newly allocated.
 */
#ifndef KV_VIZ_WORDS_H
#define KV_VIZ_WORDS_H

#include <glib.h>

#include "sim/engine/summary.h"

/* "h200", "4xh100-sxm, 2 replicas of TP 2". */
char *kv_words_platform(const KvSummary *run);

/* What happened, in one or two sentences: how many requests, how fast, how busy. */
char *kv_words_headline(const KvSummary *run);

/* What limits the run, in a few words: a title. */
char *kv_words_limit(const KvSummary *run);

/* Why that is so, sentence by sentence; NULL-terminated, free with g_strfreev. */
char **kv_words_explain(const KvSummary *run);

/* What changed from `baseline` to `run`, in one sentence. */
char *kv_words_change(const KvSummary *baseline, const KvSummary *run);

#endif
