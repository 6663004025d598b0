/* fuzz_safetensors.c - any bytes as a weight file: refused, or every tensor lies inside and every byte belongs to one. */
#include "fuzz.h"

#include <string.h>

#include "model/model.h"

static volatile uint8_t touched; /* so that every byte is really read */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    qd_weights *w = NULL;
    qd_meta *meta = NULL;
    qd_err err = { 0 };

    if (qd_meta_new(&meta, &err))
        return 0;
    if (qd_safetensors_parse(data, size, &w, meta, &err) == QD_OK) {
        size_t bytes = 0;
        uint64_t header;

        for (int k = 0; k < qd_weights_count(w); k++) {
            const qd_tensor *t = qd_weights_at(w, k);
            const uint8_t *p = t->data;

            must(qd_weights_find(w, qd_weights_name(w, k)) == t);
            must((uintptr_t)p % (qd_dtype_bits(t->dtype) / 8) == 0);
            for (size_t j = 0; j < qd_tensor_bytes(t); j++)
                touched += p[j];
            bytes += qd_tensor_bytes(t);
        }
        memcpy(&header, data, 8);
        must(8 + header + bytes == size);
    } else {
        must(w == NULL && err.text[0] && qd_meta_count(meta) == 0);
    }
    qd_weights_free(w);
    qd_meta_free(meta);
    return 0;
}
