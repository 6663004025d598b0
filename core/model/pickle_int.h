/* pickle_int.h - checkpoints of PyTorch: what their pickles may build, where their bytes lie, which of their dicts is the network.
 *
 * A pickle is a program for a stack machine. Ours knows the opcodes that make numbers, text, containers and memos, and a table of the
 * few functions that rebuild tensors; every other name a pickle calls for is refused. Nothing a file names is ever run. */
#ifndef QD_MODEL_PICKLE_INT_H
#define QD_MODEL_PICKLE_INT_H

#include "base/bytes.h"
#include "base/fs.h"
#include "model/model_int.h"

/* --- pickle.c: the machine --- */

#define QD_PICKLE_STEPS_MAX 4000000u           // opcodes of one file
#define QD_PICKLE_BYTES_MAX ((size_t)40 << 20) // of everything its pickles build: stack, memo, containers
#define QD_PICKLE_MEMO_MAX ((uint32_t)1 << 20) // entries
#define QD_PICKLE_STORAGES_MAX ((uint32_t)1 << 17)

typedef enum qd_pickle_kind {
    QD_PICKLE_NONE,
    QD_PICKLE_BOOL,
    QD_PICKLE_INT,
    QD_PICKLE_BIG, /* a whole number of more than 64 bits: known to be there, no value */
    QD_PICKLE_FLOAT,
    QD_PICKLE_TEXT, /* UTF-8, not terminated */
    QD_PICKLE_BYTES,
    QD_PICKLE_LIST,
    QD_PICKLE_TUPLE,
    QD_PICKLE_DICT,   /* items are key, value, key, value, .. */
    QD_PICKLE_GLOBAL, /* a row of the table of names */
    QD_PICKLE_OPAQUE, /* an object of no interest: whatever it is given is dropped */
    QD_PICKLE_STORAGE,
    QD_PICKLE_TENSOR,
    QD_PICKLE_NUMPY_DTYPE, /* its text: "f4" */
} qd_pickle_kind;

typedef struct qd_pickle_value {
    uint32_t kind; /* qd_pickle_kind */
    uint32_t size; // TEXT, BYTES, NUMPY_DTYPE: bytes
    union {
        int64_t i; /* BOOL, INT */
        double f;
        const char *text; /* TEXT, BYTES, NUMPY_DTYPE: lent by the stream or the arena */
        struct qd_pickle_items *items;
        const struct qd_pickle_global *global; /* GLOBAL, OPAQUE (its class) */
        struct qd_pickle_storage *storage;
        struct qd_pickle_tensor *tensor;
    };
} qd_pickle_value;

typedef struct qd_pickle_items {
    qd_pickle_value *at; // [n]
    uint32_t n, capacity;
    bool seen; /* by whoever walks what may lead back to itself */
} qd_pickle_items;

typedef struct qd_pickle_storage {
    qd_dtype dtype;
    bool untyped;  /* dtype U8, and tensors say what they read in it */
    int64_t count; // elements
    const char *key;
    const uint8_t *memory; /* numpy: the bytes themselves; NULL = to be found by key */
    qd_tensor bytes;       // U8 [count * element size] once opened
} qd_pickle_storage;

typedef struct qd_pickle_tensor {
    qd_pickle_storage *storage; /* NULL: a numpy array without its state so far */
    qd_dtype dtype;
    qd_shape shape;
    int64_t stride[QD_MAX_RANK]; // elements
    int64_t offset;              // elements; every element was checked to lie in the storage
} qd_pickle_tensor;

typedef struct qd_pickle {
    qd_arena arena;
    size_t spent_bytes;
    uint32_t steps;
    qd_names keys;               /* of storages, in the order of `storage` */
    qd_pickle_storage **storage; // [keys.count]
    uint32_t storage_capacity;
    qd_pickle_value *stack; // [n_stack]
    uint32_t n_stack, stack_capacity;
    uint32_t *mark; // [n_mark], heights of the stack
    uint32_t n_mark, mark_capacity;
    qd_pickle_value *memo; // [n_memo]
    uint32_t n_memo, memo_capacity;
    qd_reader reader;
    size_t at; // byte of the opcode in work
    qd_err *err;
} qd_pickle;

void qd_pickle_init(qd_pickle *p);
void qd_pickle_clear(qd_pickle *p);
/* One pickle from its PROTO to its STOP. *used: bytes of it. The value lives in p, text in it lies in `data`. Storages of several
 * pickles of one file are kept together. */
qd_status qd_pickle_run(qd_pickle *p, const uint8_t *data, size_t size, size_t *used, qd_pickle_value *out,
                        qd_err *err);

/* For the functions below: a refusal that says at which byte; memory of the arena, zeroed, counted against the ceiling. */
qd_status qd_pickle_refuse(const qd_pickle *p, qd_status st, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
qd_status qd_pickle_alloc(qd_pickle *p, size_t n, void **out);
qd_status qd_pickle_new_items(qd_pickle *p, uint32_t capacity, qd_pickle_items **out);
qd_status qd_pickle_add_items(qd_pickle *p, qd_pickle_items *to, const qd_pickle_value *v, uint32_t n);
bool qd_pickle_is(const qd_pickle_value *v, const char *text); /* TEXT of just that */

/* --- pickle_globals.c: the table of names and what calling them gives --- */

typedef struct qd_pickle_global {
    const char *module, *name;
    /* NULL: can be passed along, not called. */
    qd_status (*call)(qd_pickle *p, const struct qd_pickle_global *g, const qd_pickle_items *args,
                      qd_pickle_value *out);
    bool opaque;  /* calling, building, filling it gives an object that nobody looks into */
    int dtype;    /* of storages and dtypes, else -1 */
    bool storage; /* a class of storages */
    bool untyped;
} qd_pickle_global;

/* The row of that name. Refuses by name what is not in the table; text need not be terminated. */
qd_status qd_pickle_find_global(const qd_pickle *p, const char *module, size_t n_module, const char *name,
                                size_t n_name, const qd_pickle_global **out);
/* A persistent id, ("storage", class, key, device, count, view?), to a storage: the same key, the same storage. */
qd_status qd_pickle_storage_of(qd_pickle *p, const qd_pickle_value *id, qd_pickle_value *out);
/* A new one, as `like` under that key. */
qd_status qd_pickle_add_storage(qd_pickle *p, const char *key, const qd_pickle_storage *like, qd_pickle_storage **out);
/* A tensor of that storage, its range checked. */
qd_status qd_pickle_tensor_of(qd_pickle *p, qd_pickle_storage *s, qd_dtype dtype, int64_t offset,
                              const qd_pickle_value *size, const qd_pickle_value *stride, qd_pickle_value *out);

/* --- pickle_numpy.c --- */
qd_status qd_pickle_numpy_dtype(qd_pickle *p, const qd_pickle_global *g, const qd_pickle_items *args,
                                qd_pickle_value *out);
qd_status qd_pickle_numpy_array(qd_pickle *p, const qd_pickle_global *g, const qd_pickle_items *args,
                                qd_pickle_value *out);
qd_status qd_pickle_numpy_scalar(qd_pickle *p, const qd_pickle_global *g, const qd_pickle_items *args,
                                 qd_pickle_value *out);
qd_status qd_pickle_latin1(qd_pickle *p, const qd_pickle_global *g, const qd_pickle_items *args, qd_pickle_value *out);
qd_status qd_pickle_numpy_buffer(qd_pickle *p, const qd_pickle_global *g, const qd_pickle_items *args,
                                 qd_pickle_value *out);
/* BUILD of a dtype or an array. */
qd_status qd_pickle_numpy_state(qd_pickle *p, qd_pickle_value *object, const qd_pickle_value *state);

/* --- pickle_pick.c: which dict is the network --- */
typedef struct qd_pickle_pick {
    const qd_pickle_items *dict;
    char path[160];   /* "state_dict", "[0]", "" for the file itself */
    char prefix[64];  /* what all names begin with and lose: "module." */
    char beside[256]; /* other dicts with tensors, as far as they fit */
} qd_pickle_pick;
/* QD_E_NOT_FOUND when no dict maps names to tensors. */
qd_status qd_pickle_choose(const qd_pickle_value *root, qd_pickle_pick *out, qd_err *err);

/* --- torch_zip.c: the archive around a checkpoint since PyTorch 1.6, entries stored as they are --- */
typedef struct qd_torch_entry {
    const char *name;    /* beneath the archive's one folder: "data/0" */
    const uint8_t *data; /* lent */
    uint64_t size;
    uint32_t crc;
    uint16_t method; /* 0 = as they are; PyTorch compresses the code of TorchScript, which is not read */
} qd_torch_entry;
typedef struct qd_torch_zip {
    qd_names names;
    qd_torch_entry *entry; // [names.count]
} qd_torch_zip;
qd_status qd_torch_zip_open(const void *data, size_t size, qd_torch_zip *out, qd_err *err);
void qd_torch_zip_clear(qd_torch_zip *z);
/* Its bytes, their checksum compared; QD_E_NOT_FOUND when it is not there. */
qd_status qd_torch_zip_get(const qd_torch_zip *z, const char *name, const qd_torch_entry **out, qd_err *err);
/* Does the archive begin as PyTorch's do? */
bool qd_torch_zip_sniff(const void *data, size_t size);

#endif
