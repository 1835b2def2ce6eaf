/* Commands that live with what they work on: traces/ and models/kernels/. */
#include "models/kernels/calibrate.h"
#include "sim/cli/cli.h"
#include "traces/commands.h"

gboolean kv_command_trace(int argc, char **argv, GError **error) {
  return kv_trace_command(argc, argv, error) == 0;
}

gboolean kv_command_calibrate(int argc, char **argv, GError **error) {
  return kv_calibrate_command(argc, argv, error) == 0;
}
