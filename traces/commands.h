/* kvsim trace stat|convert|slice|scale|smear|repeat|generate: the traces folder on the command
 * line. */
#ifndef KV_TRACES_COMMANDS_H
#define KV_TRACES_COMMANDS_H

#include <glib.h>

/* Run `argv`, whose first element is the command itself ("trace") and whose second names what to
 * do. Gives the exit status: 0, or what kv_error_exit_status() says of *error, which is then set
 * and for the caller to print. */
int kv_trace_command(int argc, char **argv, GError **error);

#endif
