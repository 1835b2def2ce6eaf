/* A run directory in a temporary folder, for tests that draw. */
#ifndef KV_TESTS_VIZ_FOLDER_H
#define KV_TESTS_VIZ_FOLDER_H

#include <glib/gstdio.h>

#include "sim/base/output.h"

typedef struct {
  char *root;
  KvRunDirectory *directory;
} Folder;

static inline Folder folder_make(void) {
  g_autoptr(GError) error = NULL;
  Folder folder = {.root = g_dir_make_tmp("kvsim-viz-XXXXXX", &error)};
  g_assert_no_error(error);
  g_autofree char *path = g_build_filename(folder.root, "run", NULL);
  folder.directory = kv_run_directory_begin(path, &error);
  g_assert_no_error(error);
  return folder;
}

/* The text of a file in it, NULL if there is none. */
static inline char *folder_read(const Folder *folder, const char *name) {
  g_autofree char *path = kv_run_directory_file(folder->directory, name);
  char *text = NULL;
  g_file_get_contents(path, &text, NULL, NULL);
  return text;
}

static inline void folder_remove(Folder *folder) {
  kv_run_directory_discard(folder->directory);
  g_rmdir(folder->root);
  g_free(folder->root);
}

#endif
