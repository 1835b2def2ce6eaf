/* Eigenvectors of symmetric matrices. */
#ifndef KV_REFERENCE_HOST_SYMMETRIC_H
#define KV_REFERENCE_HOST_SYMMETRIC_H

#include <glib.h>

/* vectors[count][n], orthonormal: those of the symmetric a[n][n] with the largest eigenvalues, the
 * largest first. Only a's diagonal and what is right of it are read; a is overwritten. */
void kv_host_symmetric_eigenvectors(double *vectors, guint count, double *a, guint n);

#endif
