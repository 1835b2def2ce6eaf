/* Running gnuplot, and what every script of ours begins with.
 *
 * gnuplot is an external program: a script goes to its standard input, an SVG comes from its
 * standard output, and what it says on its standard error becomes the reason of a failure. Several
 * scripts run at the same time. The SVG is made deterministic and free of names that clash when
 * several stand in one page.
 */
#ifndef KV_VIZ_GNUPLOT_H
#define KV_VIZ_GNUPLOT_H

#include <glib.h>

typedef struct {
  char *svg;    /* NULL if it could not be drawn */
  char *reason; /* why not, one line; NULL if it was drawn */
} KvDrawing;

/* Draw `n` scripts to the terminal that kv_gnuplot_begin() set. Fills `drawings`; each member is
 * the caller's to free. */
void kv_gnuplot_draw(const char *const *scripts, guint n, KvDrawing *drawings);

/* The opening of a script: an SVG of `width` by `height`, fonts, colours, grid. `id` prefixes the
 * names inside. */
void kv_gnuplot_begin(GString *script, guint width, guint height);

/* The axes, grid and key alone: puts back what a panel has changed. */
void kv_gnuplot_style(GString *script);

/* Make the SVG's names begin with `id`, give it `title`, and take out what is gnuplot's version or
 * a document's head, so that it can stand in a page. Newly allocated. */
char *kv_gnuplot_tidy(const char *svg, const char *id, const char *title);

/* A text as a gnuplot string, in quotes, with nothing in it that gnuplot would interpret. Newly
 * allocated. */
char *kv_gnuplot_quote(const char *text);

/* Colours that people with any colour vision tell apart (Okabe and Ito 2008, darkened where white
 * paper needs it), and the shades of axes and grid. */
enum { KV_N_COLOURS = 8 };
extern const char *const kv_colours[KV_N_COLOURS];
#define KV_INK "#3c4650"
#define KV_GRID "#d9dee3"

#endif
