/* Writing requests in the native format (traces/native.c), plain or gzip by the file's name, whole
 * or absent.
 *
 * The header line is written only where the file would be misread without it, so that what other
 * tools read stays readable to them. Prefix blocks are numbered from 0 as they first appear (16
 * bytes of memory for each). */
#ifndef KV_TRACES_WRITER_H
#define KV_TRACES_WRITER_H

#include "traces/trace.h"

typedef struct KvTraceWriter KvTraceWriter;

/* "-" is standard output. `block_tokens` is 0 for requests without prefix blocks. */
KvTraceWriter *kv_trace_writer_open(const char *path, KvTraceTiming timing, guint32 block_tokens,
                                    GError **error);
void kv_trace_writer_write(KvTraceWriter *writer, const KvTraceRequest *request);
guint64 kv_trace_writer_count(const KvTraceWriter *writer);

/* Finish the file. The writer is freed either way. */
gboolean kv_trace_writer_commit(KvTraceWriter *writer, GError **error);
/* Leave no file. The writer is freed. */
void kv_trace_writer_discard(KvTraceWriter *writer);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvTraceWriter, kv_trace_writer_discard)

#endif
