/* cpu_steps.h - what cpu_conv.c shares with cpu_int8.c: a step of several convolutions whose results add up. */
#ifndef QD_PLAN_CPU_STEPS_H
#define QD_PLAN_CPU_STEPS_H

#include "plan/cpu_int.h"

typedef struct qd_conv_item {
    qd_conv *conv;
    int source; /* which input of the step it reads */
    /* Of a source of bytes, channels [begin, begin + count) alone; count 0 = all as they lie. */
    int64_t begin, count, channels, pixels;
} qd_conv_item;

typedef struct qd_conv_list {
    int n, room;
    qd_conv_item *item;
    uint8_t *slice; /* where channels of a source are copied to, in the step's scratch */
    size_t slice_bytes, slice_offset;
    int residual;          /* the input to start from; 0 = none (input 0 is always a source) */
    const void *copy_from; /* where it lies; when that is not copy_to it is copied there first */
    void *copy_to;
    size_t copy_bytes;
} qd_conv_list;

qd_status qd_conv_list_new(const char *name, qd_conv_list **out, qd_err *err);
void qd_conv_list_free(void *state);
qd_status qd_conv_list_add(qd_plan *p, qd_conv_list *list, const qd_conv_spec *spec, int source, qd_err *err);
/* The last added reads channels [begin, begin + its spec's c) of the `channels` of its source, which holds bytes. */
void qd_conv_list_slice(qd_conv_list *list, const qd_conv_spec *spec, int64_t begin, int64_t channels);
/* Takes the list, also when it fails. */
qd_status qd_add_conv_list_step(qd_plan *p, const qd_conv_step *c, qd_conv_list *list, qd_err *err);

#endif
