#include "sim/base/output.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <string.h>
#include <unistd.h>

#include "sim/base/error.h"

enum { BUFFER_BYTES = 1 << 16 };

struct KvOutput {
  char *path, *temporary; /* temporary is NULL for standard output */
  int fd;
  int problem; /* errno of the first failed write, or 0 */
  gsize used, size;
  char *buffer;
};

struct KvRunDirectory {
  char *path, *temporary;
};

/* What kv_output_discard_all() must remove; the program's main thread owns outputs. */
static GPtrArray *open_outputs, *open_directories;

static void remember(GPtrArray **list, gpointer item) {
  if (!*list)
    *list = g_ptr_array_new();
  g_ptr_array_add(*list, item);
}

static void forget(GPtrArray *list, gpointer item) {
  if (list)
    g_ptr_array_remove_fast(list, item);
}

static char *temporary_name(const char *path) {
  return g_strdup_printf("%s.tmp-%d", path, (int)getpid());
}

KvOutput *kv_output_open(const char *path, GError **error) {
  gboolean standard = strcmp(path, "-") == 0;
  g_autofree char *temporary = standard ? NULL : temporary_name(path);
  int fd = standard ? STDOUT_FILENO : g_open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "%s: cannot be written (%s)", path,
                g_strerror(errno));
    return NULL;
  }
  KvOutput *output = g_new0(KvOutput, 1);
  output->path = g_strdup(path);
  output->temporary = g_steal_pointer(&temporary);
  output->fd = fd;
  output->size = BUFFER_BYTES;
  output->buffer = g_malloc(output->size);
  remember(&open_outputs, output);
  return output;
}

static void flush(KvOutput *output) {
  gsize done = 0;
  while (done < output->used && !output->problem) {
    gssize n = write(output->fd, output->buffer + done, output->used - done);
    if (n < 0 && errno != EINTR)
      output->problem = errno;
    else if (n > 0)
      done += (gsize)n;
  }
  output->used = 0;
}

char *kv_output_reserve(KvOutput *output, gsize length) {
  if (output->used + length > output->size)
    flush(output);
  if (length > output->size) {
    output->size = length;
    output->buffer = g_realloc(output->buffer, length);
  }
  return output->buffer + output->used;
}

void kv_output_advance(KvOutput *output, gsize used) {
  output->used += used;
}

void kv_output_write(KvOutput *output, const char *bytes, gsize length) {
  memcpy(kv_output_reserve(output, length), bytes, length);
  kv_output_advance(output, length);
}

void kv_output_print(KvOutput *output, const char *format, ...) {
  va_list args;
  va_start(args, format);
  g_autofree char *text = g_strdup_vprintf(format, args);
  va_end(args);
  kv_output_write(output, text, strlen(text));
}

static void output_free(KvOutput *output) {
  forget(open_outputs, output);
  g_free(output->path);
  g_free(output->temporary);
  g_free(output->buffer);
  g_free(output);
}

gboolean kv_output_commit(KvOutput *output, GError **error) {
  flush(output);
  if (output->temporary) {
    if (close(output->fd) != 0 && !output->problem)
      output->problem = errno;
    if (!output->problem && g_rename(output->temporary, output->path) != 0)
      output->problem = errno;
    if (output->problem)
      g_unlink(output->temporary);
  }
  gboolean done = !output->problem;
  if (!done)
    g_set_error(error, KV_ERROR, KV_ERROR_FAILED, "%s: cannot be written (%s)", output->path,
                g_strerror(output->problem));
  output_free(output);
  return done;
}

void kv_output_discard(KvOutput *output) {
  if (!output)
    return;
  if (output->temporary) {
    close(output->fd);
    g_unlink(output->temporary);
  }
  output_free(output);
}

gboolean kv_output_write_file(const char *path, const char *text, gssize length, GError **error) {
  KvOutput *output = kv_output_open(path, error);
  if (!output)
    return FALSE;
  kv_output_write(output, text, length < 0 ? strlen(text) : (gsize)length);
  return kv_output_commit(output, error);
}

/* Remove a folder of plain files and what is in it. */
static void remove_folder(const char *path) {
  GDir *dir = g_dir_open(path, 0, NULL);
  if (!dir)
    return;
  for (const char *name; (name = g_dir_read_name(dir));) {
    g_autofree char *file = g_build_filename(path, name, NULL);
    g_unlink(file);
  }
  g_dir_close(dir);
  g_rmdir(path);
}

static gboolean is_earlier_run(const char *path) {
  g_autofree char *scenario = g_build_filename(path, "scenario.json", NULL);
  if (g_file_test(scenario, G_FILE_TEST_EXISTS))
    return TRUE;
  GDir *dir = g_dir_open(path, 0, NULL);
  gboolean empty = dir && !g_dir_read_name(dir);
  if (dir)
    g_dir_close(dir);
  return empty;
}

KvRunDirectory *kv_run_directory_begin(const char *path, GError **error) {
  g_autofree char *clean = g_canonicalize_filename(path, NULL);
  if (g_file_test(clean, G_FILE_TEST_EXISTS) && !is_earlier_run(clean)) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "%s: exists and is not an earlier run, expected a new name or a run's folder", path);
    return NULL;
  }
  g_autofree char *parent = g_path_get_dirname(clean);
  g_autofree char *temporary = temporary_name(clean);
  if (g_mkdir_with_parents(parent, 0777) != 0 || g_mkdir(temporary, 0777) != 0) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "%s: cannot be written (%s)", path,
                g_strerror(errno));
    return NULL;
  }
  KvRunDirectory *directory = g_new0(KvRunDirectory, 1);
  directory->path = g_strdup(path);
  directory->temporary = g_steal_pointer(&temporary);
  remember(&open_directories, directory);
  return directory;
}

char *kv_run_directory_file(const KvRunDirectory *directory, const char *name) {
  return g_build_filename(directory->temporary, name, NULL);
}

const char *kv_run_directory_path(const KvRunDirectory *directory) {
  return directory->path;
}

static void run_directory_free(KvRunDirectory *directory) {
  forget(open_directories, directory);
  g_free(directory->path);
  g_free(directory->temporary);
  g_free(directory);
}

gboolean kv_run_directory_commit(KvRunDirectory *directory, GError **error) {
  if (g_file_test(directory->path, G_FILE_TEST_EXISTS))
    remove_folder(directory->path);
  if (g_rename(directory->temporary, directory->path) != 0) {
    g_set_error(error, KV_ERROR, KV_ERROR_FAILED, "%s: cannot be written (%s)", directory->path,
                g_strerror(errno));
    kv_run_directory_discard(directory);
    return FALSE;
  }
  run_directory_free(directory);
  return TRUE;
}

void kv_run_directory_discard(KvRunDirectory *directory) {
  if (!directory)
    return;
  remove_folder(directory->temporary);
  run_directory_free(directory);
}

void kv_output_discard_all(void) {
  while (open_outputs && open_outputs->len)
    kv_output_discard(g_ptr_array_index(open_outputs, open_outputs->len - 1));
  while (open_directories && open_directories->len)
    kv_run_directory_discard(g_ptr_array_index(open_directories, open_directories->len - 1));
}
