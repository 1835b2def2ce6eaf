/* Output files that are whole or absent.
 *
 * A KvOutput writes to a temporary name beside its target; kv_output_commit() renames it into
 * place. Freed without a commit, it removes what it wrote. Writing remembers the first failure (a
 * full disk, say) and the commit reports it, so callers need not check every line.
 *
 * A KvRunDirectory does the same for a folder of outputs: files are made in a temporary sibling,
 * and the commit renames the whole folder. kv_output_discard_all() removes whatever is uncommitted:
 * the program calls it when a signal or an error ends it.
 */
#ifndef KV_SIM_BASE_OUTPUT_H
#define KV_SIM_BASE_OUTPUT_H

#include <glib.h>

typedef struct KvOutput KvOutput;
typedef struct KvRunDirectory KvRunDirectory;

/* Open `path` for writing under a temporary name. "-" is standard output; that, a device and a pipe
 * are written as it comes. */
KvOutput *kv_output_open(const char *path, GError **error);
void kv_output_write(KvOutput *output, const char *bytes, gsize length);
void kv_output_print(KvOutput *output, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* Room for `length` bytes to be formatted in place; follow with kv_output_advance(the bytes used).
 */
char *kv_output_reserve(KvOutput *output, gsize length);
void kv_output_advance(KvOutput *output, gsize used);

/* Flush, close and rename into place. The output is freed either way. */
gboolean kv_output_commit(KvOutput *output, GError **error);
/* Remove what was written. The output is freed. */
void kv_output_discard(KvOutput *output);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvOutput, kv_output_discard)

/* Write a whole file at once. */
gboolean kv_output_write_file(const char *path, const char *text, gssize length, GError **error);

/* Begin a folder that will be `path`; an existing folder is replaced at the commit, and only if it
 * is empty or an earlier run: it holds a scenario.json beside a summary.json or a report.html. */
KvRunDirectory *kv_run_directory_begin(const char *path, GError **error);
/* The full path of the file `name` inside the uncommitted folder, newly allocated. */
char *kv_run_directory_file(const KvRunDirectory *directory, const char *name);
/* Where the folder will be once committed, borrowed. */
const char *kv_run_directory_path(const KvRunDirectory *directory);
gboolean kv_run_directory_commit(KvRunDirectory *directory, GError **error);
void kv_run_directory_discard(KvRunDirectory *directory);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(KvRunDirectory, kv_run_directory_discard)

/* Remove every uncommitted file and folder of this process. Not for use inside a signal handler. */
void kv_output_discard_all(void);

#endif
