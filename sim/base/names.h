/* Names that a user types: finding the nearest one to suggest.
 *
 * Every list of the program (models, devices, techniques, parameters, formats, sub-commands)
 * answers an unknown name in the same words: unknown KIND 'NAME', did you mean 'NEAREST'? (see
 * `kvsim list KIND`).
 */
#ifndef KV_SIM_BASE_NAMES_H
#define KV_SIM_BASE_NAMES_H

#include <glib.h>

/* The member of `known` (NULL-terminated) nearest to `name` by edit distance (at most 2, or a third
 * of its length); else the first that begins with `name`; else NULL. */
const char *kv_names_nearest(const char *name, const char *const *known);

/* A newly allocated "unknown KIND 'NAME'" with the nearest member of `known` suggested, if one is
 * near. */
char *kv_names_unknown(const char *kind, const char *name, const char *const *known);

#endif
