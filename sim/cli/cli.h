/* The program's sub-commands: one table, one file each.
 *
 * A command parses its own arguments with GOption (kv_cli_parse gives each --help the same shape)
 * and returns FALSE with *error set; main prints "kvsim: MESSAGE" and turns the error into the exit
 * status.
 */
#ifndef KV_SIM_CLI_CLI_H
#define KV_SIM_CLI_CLI_H

#include <glib.h>

typedef struct {
  const char *name, *arguments, *summary;
  const char *example;                                    /* printed under --help */
  gboolean (*run)(int argc, char **argv, GError **error); /* argv[0] is the command's name */
  gboolean hidden; /* for those who work on kvsim; in no list */
} KvCommand;

extern const KvCommand kv_commands[]; /* ends with name NULL */
const KvCommand *kv_command_find(const char *name);

/* Parse argv by `entries`; on success argc and argv hold the arguments that are left (argv[0]
 * stays). `--help` prints and exits. */
gboolean kv_cli_parse(const KvCommand *command, const GOptionEntry *entries, int *argc,
                      char ***argv, GError **error);

/* Whether --pace `name` (NULL: not given) means the wall's clock. FALSE with *error set if it is no
 * pace. */
gboolean kv_cli_pace(const char *name, gboolean *wall, GError **error);

/* Width of the terminal, and whether standard output is one that takes colour. */
guint kv_cli_columns(void);
gboolean kv_cli_colour(void);

gboolean kv_command_run(int argc, char **argv, GError **error);
gboolean kv_command_compare(int argc, char **argv, GError **error);
gboolean kv_command_predict(int argc, char **argv, GError **error);
gboolean kv_command_explain(int argc, char **argv, GError **error);
gboolean kv_command_trace(int argc, char **argv, GError **error);
gboolean kv_command_list(int argc, char **argv, GError **error);
gboolean kv_command_show(int argc, char **argv, GError **error);
gboolean kv_command_validate(int argc, char **argv, GError **error);
gboolean kv_command_calibrate(int argc, char **argv, GError **error);
gboolean kv_command_claims(int argc, char **argv, GError **error);
gboolean kv_command_graph(int argc, char **argv, GError **error);
gboolean kv_command_docs(int argc, char **argv, GError **error);

#endif
