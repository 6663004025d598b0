/* fuzz_torch.c - any bytes as a checkpoint of PyTorch: refused in words, or every tensor can be read and the budget comes back. */
#include "fuzz.h"

#include "base/mem.h"
#include "model/model.h"

static volatile uint8_t touched; /* so that every byte is really read */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qd_weights *w = NULL;
    qd_meta *meta = NULL;
    qd_err err = { 0 };
    qd_budget budget;

    qd_budget_init(&budget, 64u << 20);
    if (qd_meta_new(&meta, &err))
        return 0;
    if (qd_torch_parse(data, size, &budget, &w, meta, &err) == QD_OK) {
        must(qd_meta_find(meta, QD_TORCH_LAYOUT) && qd_meta_find(meta, QD_TORCH_CHOSEN));
        must(budget.used_bytes <= size + (32u << 20)); /* what is in it, and the slack for repeated rows */
        for (int k = 0; k < qd_weights_count(w); k++) {
            const qd_tensor *t = qd_weights_at(w, k);
            const uint8_t *p = t->data;

            must(qd_weights_find(w, qd_weights_name(w, k)) == t);
            must((uintptr_t)p % (qd_dtype_bits(t->dtype) / 8) == 0);
            for (size_t j = 0; j < qd_tensor_bytes(t); j++) {
                touched += p[j];
                must(t->dtype != QD_BOOL || p[j] <= 1);
            }
        }
    } else {
        must(w == NULL && err.text[0]);
    }
    qd_weights_free(w);
    qd_meta_free(meta);
    must(budget.used_bytes == 0);
    return 0;
}
