/* Commands that live with what they work on: traces/ and sim/validate/. */
#include "sim/cli/cli.h"
#include "sim/validate/calibrate.h"
#include "traces/commands.h"

gboolean kv_command_trace(int argc, char **argv, GError **error) {
  return kv_trace_command(argc, argv, error) == 0;
}

gboolean kv_command_calibrate(int argc, char **argv, GError **error) {
  return kv_calibrate_command(argc, argv, error) == 0;
}
