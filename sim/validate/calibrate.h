/* kvsim calibrate: from tables of measured times to a device file. */
#ifndef KV_SIM_VALIDATE_CALIBRATE_H
#define KV_SIM_VALIDATE_CALIBRATE_H

#include <glib.h>

/* Run `argv`, whose first element is the command itself ("calibrate"). Gives the exit status: 0, or
 * what kv_error_exit_status() says of *error, which is then set and for the caller to print. */
int kv_calibrate_command(int argc, char **argv, GError **error);

#endif
