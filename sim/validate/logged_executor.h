/* A real executor that is listened to: it forwards everything, and every step and copy goes into a
 * log with its shape and with the time that the real executor gave.
 *
 * The engine decides as it would without it: it is an executor of the real one's class in every
 * respect but its log.
 */
#ifndef KV_SIM_VALIDATE_LOGGED_EXECUTOR_H
#define KV_SIM_VALIDATE_LOGGED_EXECUTOR_H

#include "sim/validate/step_log.h"

/* Takes `real` over, an executor that carries its steps out (not closed form); borrows `log`. */
KvExecutor *kv_logged_executor_new(KvExecutor *real, KvStepLog *log);

#endif
