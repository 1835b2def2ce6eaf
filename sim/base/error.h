/* Errors that a user can cause.
 *
 * Everything that a file, a flag or the machine can get wrong travels as a GError of the domain
 * KV_ERROR. The message is the whole line that the user reads after "kvsim: ", in the form
 *
 *     FILE:LINE: what is wrong, what was expected
 *
 * (FILE:LINE is left out where there is none). The program turns the code into the exit status:
 * KV_ERROR_USAGE and KV_ERROR_INPUT give 2, KV_ERROR_FAILED gives 1, KV_ERROR_INTERRUPTED gives
 * 130.
 */
#ifndef KV_SIM_BASE_ERROR_H
#define KV_SIM_BASE_ERROR_H

#include <glib.h>

#define KV_ERROR (kv_error_quark())

typedef enum {
  KV_ERROR_USAGE,       /* a flag or an argument */
  KV_ERROR_INPUT,       /* the content of a file or a stream */
  KV_ERROR_FAILED,      /* the machine: disk, memory, a missing program */
  KV_ERROR_INTERRUPTED, /* the user stopped it */
} KvError;

GQuark kv_error_quark(void);

/* Set *error to "FILE:LINE: message"; with line 0, to "FILE: message". */
void kv_error_at(GError **error, const char *file, guint64 line, const char *format, ...)
    G_GNUC_PRINTF(4, 5);

/* Make `text` fit for an error, which is one line: a line break or another control character, from
 * a name that a file holds, say, becomes a question mark. Done in place; kv_error_at() does it
 * itself. */
char *kv_error_one_line(char *text);

/* Set to 1 by the program when the user stops it (Ctrl-C); whatever runs long looks at it. */
extern volatile gint kv_interrupted;

/* TRUE, with *error set to KV_ERROR_INTERRUPTED, if the user has stopped the program. */
gboolean kv_error_if_interrupted(GError **error);

/* The exit status that the program owes for `error`. */
int kv_error_exit_status(const GError *error);

#endif
