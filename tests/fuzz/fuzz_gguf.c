/* fuzz_gguf.c - any bytes as a GGUF file: refused in words, or every tensor is there as floats and the budget comes back. */
#include "fuzz.h"

#include "base/mem.h"
#include "model/model.h"

static volatile float touched; /* so that every value is really read */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qd_weights *w = NULL;
    qd_meta *meta = NULL;
    qd_err err = { 0 };
    qd_budget budget;

    qd_budget_init(&budget, 64u << 20);
    if (qd_meta_new(&meta, &err))
        return 0;
    if (qd_gguf_parse(data, size, &budget, &w, meta, &err) == QD_OK) {
        for (int k = 0; k < qd_weights_count(w); k++) {
            const qd_tensor *t = qd_weights_at(w, k);

            must(qd_weights_find(w, qd_weights_name(w, k)) == t);
            must(t->dtype == QD_F32);
            for (int64_t j = 0; j < qd_tensor_count(t); j++)
                touched = qd_f32(t)[j];
        }
    } else {
        must(w == NULL && err.text[0]);
    }
    qd_weights_free(w);
    qd_meta_free(meta);
    must(budget.used_bytes == 0);
    return 0;
}
