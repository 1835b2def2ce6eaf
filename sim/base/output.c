#include "sim/base/output.h"

#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "sim/base/error.h"

enum { BUFFER_BYTES = 1 << 16 };

struct KvOutput {
  char *path;      /* as the user gave it, for errors */
  char *target;    /* what the commit renames onto */
  char *temporary; /* NULL for standard output, a device or a pipe, which are written as they are */
  int fd;
  int problem; /* errno of the first failed write, or 0 */
  gsize used, size;
  char *buffer;
};

struct KvRunDirectory {
  char *path; /* as the user gave it */
  char *target, *temporary;
};

/* What kv_output_discard_all() must remove. Each output belongs to one thread; the lists are
 * everyone's. */
static GMutex lists_lock;
static GPtrArray *open_outputs, *open_directories;

static void remember(GPtrArray **list, gpointer item) {
  g_mutex_lock(&lists_lock);
  if (!*list)
    *list = g_ptr_array_new();
  g_ptr_array_add(*list, item);
  g_mutex_unlock(&lists_lock);
}

static void forget(GPtrArray *list, gpointer item) {
  g_mutex_lock(&lists_lock);
  if (list)
    g_ptr_array_remove_fast(list, item);
  g_mutex_unlock(&lists_lock);
}

/* The last one remembered, or NULL. */
static gpointer any(GPtrArray *list) {
  g_mutex_lock(&lists_lock);
  gpointer item = list && list->len ? g_ptr_array_index(list, list->len - 1) : NULL;
  g_mutex_unlock(&lists_lock);
  return item;
}

/* A sibling of `path` that did not exist, made by `make` (which returns < 0, with errno, if it
 * cannot). The number steps over what a killed process of the same id has left. */
static char *make_sibling(const char *path, int (*make)(const char *name), int *result) {
  for (int i = 0;; i++) {
    g_autofree char *name = g_strdup_printf("%s.tmp-%d-%d", path, (int)getpid(), i);
    *result = make(name);
    if (*result >= 0)
      return g_steal_pointer(&name);
    if (errno != EEXIST)
      return NULL;
  }
}

static int make_file(const char *name) {
  return g_open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
}

static int make_folder(const char *name) {
  return g_mkdir(name, 0777);
}

/* Open what `output` writes to; FALSE with errno set if that cannot be. */
static gboolean output_connect(KvOutput *output, const char *path) {
  struct stat status;
  if (strcmp(path, "-") == 0) {
    output->fd = STDOUT_FILENO;
    return TRUE;
  }
  gboolean exists = stat(path, &status) == 0;
  if (exists && S_ISDIR(status.st_mode)) {
    errno = EISDIR;
    return FALSE;
  }
  /* A rename would replace /dev/null itself. */
  if (exists && !S_ISREG(status.st_mode)) {
    output->fd = g_open(path, O_WRONLY | O_CLOEXEC, 0);
    return output->fd >= 0;
  }
  if (exists && access(path, W_OK) != 0)
    return FALSE;
  if (!*path) {
    errno = ENOENT;
    return FALSE;
  }
  char *resolved = exists ? realpath(path, NULL) : NULL; /* a link stays, its file is replaced */
  output->target = g_strdup(resolved ? resolved : path);
  free(resolved);
  output->temporary = make_sibling(output->target, make_file, &output->fd);
  return output->temporary != NULL;
}

static void output_free(KvOutput *output) {
  g_free(output->path);
  g_free(output->target);
  g_free(output->temporary);
  g_free(output->buffer);
  g_free(output);
}

KvOutput *kv_output_open(const char *path, GError **error) {
  KvOutput *output = g_new0(KvOutput, 1);
  output->path = g_strdup(strcmp(path, "-") == 0 ? "standard output" : path);
  if (!output_connect(output, path)) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "%s: cannot be written (%s)", path,
                g_strerror(errno));
    output_free(output);
    return NULL;
  }
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

/* Close what was opened; its errno, or 0. */
static int output_disconnect(KvOutput *output) {
  forget(open_outputs, output);
  return output->fd != STDOUT_FILENO && close(output->fd) != 0 ? errno : 0;
}

gboolean kv_output_commit(KvOutput *output, GError **error) {
  flush(output);
  int closing = output_disconnect(output);
  int problem = output->problem ? output->problem : closing;
  if (!problem && output->temporary && g_rename(output->temporary, output->target) != 0)
    problem = errno;
  if (problem && output->temporary)
    g_unlink(output->temporary);
  if (problem)
    g_set_error(error, KV_ERROR, KV_ERROR_FAILED, "%s: cannot be written (%s)", output->path,
                g_strerror(problem));
  output_free(output);
  return !problem;
}

void kv_output_discard(KvOutput *output) {
  if (!output)
    return;
  output_disconnect(output);
  if (output->temporary)
    g_unlink(output->temporary);
  output_free(output);
}

gboolean kv_output_write_file(const char *path, const char *text, gssize length, GError **error) {
  KvOutput *output = kv_output_open(path, error);
  if (!output)
    return FALSE;
  kv_output_write(output, text, length < 0 ? strlen(text) : (gsize)length);
  return kv_output_commit(output, error);
}

/* Remove a file, or a folder and all that is in it; links are removed, never followed. */
static void remove_tree(const char *path) {
  struct stat status;
  if (lstat(path, &status) != 0)
    return;
  if (!S_ISDIR(status.st_mode)) {
    g_unlink(path);
    return;
  }
  GDir *dir = g_dir_open(path, 0, NULL);
  for (const char *name; dir && (name = g_dir_read_name(dir));) {
    g_autofree char *file = g_build_filename(path, name, NULL);
    remove_tree(file);
  }
  if (dir)
    g_dir_close(dir);
  g_rmdir(path);
}

static gboolean holds(const char *folder, const char *name) {
  g_autofree char *file = g_build_filename(folder, name, NULL);
  return g_file_test(file, G_FILE_TEST_IS_REGULAR);
}

/* A scenario.json alone may be a user's own, with a trace beside it. */
static gboolean may_be_replaced(const char *path) {
  if (holds(path, "scenario.json"))
    return holds(path, "summary.json") || holds(path, "report.html");
  GDir *dir = g_dir_open(path, 0, NULL);
  gboolean empty = dir && !g_dir_read_name(dir);
  if (dir)
    g_dir_close(dir);
  return empty;
}

static char *begin_folder(const char *target) {
  g_autofree char *parent = g_path_get_dirname(target);
  int result;
  if (g_mkdir_with_parents(parent, 0777) != 0)
    return NULL;
  return make_sibling(target, make_folder, &result);
}

KvRunDirectory *kv_run_directory_begin(const char *path, GError **error) {
  if (!*path) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                "the run directory has no name, expected a folder to make");
    return NULL;
  }
  g_autofree char *target = g_canonicalize_filename(path, NULL);
  g_autofree char *here = g_get_current_dir();
  if (strcmp(target, here) == 0 || g_file_test(target, G_FILE_TEST_EXISTS)) {
    if (strcmp(target, here) == 0 || !may_be_replaced(target)) {
      g_set_error(error, KV_ERROR, KV_ERROR_USAGE,
                  "%s: exists and is not an earlier run, expected a new name or a run's folder",
                  path);
      return NULL;
    }
  }
  char *temporary = begin_folder(target);
  if (!temporary) {
    g_set_error(error, KV_ERROR, KV_ERROR_USAGE, "%s: cannot be written (%s)", path,
                g_strerror(errno));
    return NULL;
  }
  KvRunDirectory *directory = g_new0(KvRunDirectory, 1);
  directory->path = g_strdup(path);
  directory->target = g_steal_pointer(&target);
  directory->temporary = temporary;
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
  g_free(directory->target);
  g_free(directory->temporary);
  g_free(directory);
}

/* Put the new folder in the place of the old one, which is gone only once the new one stands. */
static gboolean replace_folder(const char *temporary, const char *target) {
  g_autofree char *old = g_strconcat(temporary, "-old", NULL);
  gboolean moved = g_rename(target, old) == 0;
  if (!moved && errno != ENOENT)
    return FALSE;
  if (g_rename(temporary, target) != 0) {
    int problem = errno;
    if (moved && g_rename(old, target) != 0)
      g_warning("the earlier run is now %s", old);
    errno = problem;
    return FALSE;
  }
  if (moved)
    remove_tree(old);
  return TRUE;
}

gboolean kv_run_directory_commit(KvRunDirectory *directory, GError **error) {
  if (!replace_folder(directory->temporary, directory->target)) {
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
  remove_tree(directory->temporary);
  run_directory_free(directory);
}

void kv_output_discard_all(void) {
  for (gpointer output; (output = any(open_outputs));)
    kv_output_discard(output);
  for (gpointer directory; (directory = any(open_directories));)
    kv_run_directory_discard(directory);
}
