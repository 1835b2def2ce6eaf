/* This GPU, measured: the table that `kvsim calibrate --measure` fits a device file to.
 *
 * The kernels of the reference engine are timed over grids of shapes that no model of the catalogue
 * has as a whole, so that models stay unseen: products, prompt and decode attention, element-wise
 * kernels, copies inside the memory and over the host link, launches. The table is a CSV file that
 * models/kernels/read_kvsim.c describes and reads.
 */
#ifndef KV_REFERENCE_CUDA_MEASURE_H
#define KV_REFERENCE_CUDA_MEASURE_H

#include <glib.h>

#include "sim/base/output.h"

/* Append the table, header first, to `table` (borrowed); *name becomes the GPU's, newly allocated.
 * FALSE with *error set: no GPU, or it failed, or the program was built without CUDA. */
gboolean kv_cuda_measure(KvOutput *table, char **name, GError **error);

#endif
