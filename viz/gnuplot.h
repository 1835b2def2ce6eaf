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

/* Room around and between panels, in pixels. */
typedef struct {
  double left, right, top, bottom, across, down; /* across, down: between neighbours */
} KvMargins;

/* Begin `rows` by `columns` panels in a picture of `width` by `height` pixels. */
void kv_gnuplot_panels(GString *script, guint rows, guint columns, double width, double height,
                       const KvMargins *margins);

/* A key of `n` coloured names in rows from the top left corner of the panels, beginning at `left`
 * pixels; or only the height that it takes, in pixels, where `script` is NULL. It is drawn with the
 * next plot; kv_gnuplot_end_key() keeps it from being drawn again with the one after. */
double kv_gnuplot_key(GString *script, double left, double width, double height,
                      const char *const *names, const char *const *colours, guint n);
void kv_gnuplot_end_key(GString *script, guint n);

/* Make the SVG's names begin with `id`, give it `title`, and take out what is gnuplot's version or
 * a document's head, so that it can stand in a page. Newly allocated. */
char *kv_gnuplot_tidy(const char *svg, const char *id, const char *title);

/* A text as a gnuplot string, in quotes, with nothing in it that gnuplot would interpret: quotes
 * become typographic ones. Newly allocated. */
char *kv_gnuplot_quote(const char *text);

/* Colours that people with any colour vision tell apart (Okabe and Ito 2008, darkened where white
 * paper needs it), and the shades of axes and grid. */
enum { KV_N_COLOURS = 8 };
extern const char *const kv_colours[KV_N_COLOURS];
#define KV_INK "#3c4650"
#define KV_GRID "#d9dee3"

#endif
