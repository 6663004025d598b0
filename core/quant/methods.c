/* methods.c - the table of quantization methods. */
#include <string.h>

#include "quant/qncd_int.h"

const qd_method *const qd_methods[] = {
    &qd_method_minmax, &qd_method_mse,         &qd_method_qdiff,     &qd_method_qncd_intra, &qd_method_qncd_inter,
    &qd_method_qncd,   &qd_method_qncd_compat, &qd_method_qncd_plus, &qd_method_ptq,        NULL,
};

const qd_method *qd_method_find(const char *name)
{
    for (const qd_method *const *m = qd_methods; *m; m++)
        if (strcmp((*m)->name, name) == 0)
            return *m;
    return NULL;
}
