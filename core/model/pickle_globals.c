/* pickle_globals.c - the names a checkpoint may call for, and what calling them gives: tensors, dicts, or objects nobody looks into.
 *
 * A name outside this table ends the reading. Names marked opaque carry settings of training programs (callbacks, parsed
 * arguments, paths): such an object is made of nothing, swallows what it is given, and no code of anyone runs for it. */
#include <string.h>

#include "model/pickle_int.h"

/* --- what the functions need --- */

static qd_status wrong_arguments(const qd_pickle *p, const qd_pickle_global *g)
{
    return qd_pickle_refuse(p, QD_E_FORMAT, "'%s.%s' is called with arguments it does not take", g->module, g->name);
}

static qd_status call_dict(qd_pickle *p, const qd_pickle_global *g, const qd_pickle_items *args, qd_pickle_value *out)
{
    qd_pickle_items *items;
    qd_status st = qd_pickle_new_items(p, 0, &items);
    /* OrderedDict([(key, value), ..]) of old writers; a defaultdict begins empty. */
    const bool pairs = args->n == 1 && args->at[0].kind == QD_PICKLE_LIST;
    for (uint32_t k = 0; pairs && !st && k < args->at[0].items->n; k++) {
        const qd_pickle_value *pair = &args->at[0].items->at[k];
        if ((pair->kind != QD_PICKLE_TUPLE && pair->kind != QD_PICKLE_LIST) || pair->items->n != 2)
            return wrong_arguments(p, g);
        st = qd_pickle_add_items(p, items, pair->items->at, 2);
    }
    if (!st)
        *out = (qd_pickle_value){ .kind = QD_PICKLE_DICT, .items = items };
    return st;
}

static qd_status call_size(qd_pickle *p, const qd_pickle_global *g, const qd_pickle_items *args, qd_pickle_value *out)
{
    if (args->n != 1 || (args->at[0].kind != QD_PICKLE_TUPLE && args->at[0].kind != QD_PICKLE_LIST))
        return wrong_arguments(p, g);
    *out = (qd_pickle_value){ .kind = QD_PICKLE_TUPLE, .items = args->at[0].items };
    return QD_OK;
}

/* _rebuild_tensor(storage, offset, size, stride), _v2(.., requires_grad, hooks, metadata?), _v3(.., dtype, metadata?) */
static qd_status call_tensor(qd_pickle *p, const qd_pickle_global *g, const qd_pickle_items *args, qd_pickle_value *out)
{
    const qd_pickle_value *a = args->at;
    const bool v3 = strcmp(g->name, "_rebuild_tensor_v3") == 0;
    if (args->n < (v3 ? 7u : 4u) || args->n > 8 || a[0].kind != QD_PICKLE_STORAGE || a[1].kind != QD_PICKLE_INT)
        return wrong_arguments(p, g);
    qd_dtype dtype = a[0].storage->dtype;
    if (v3) {
        if (a[6].kind != QD_PICKLE_GLOBAL || a[6].global->storage || a[6].global->dtype < 0)
            return wrong_arguments(p, g);
        dtype = (qd_dtype)a[6].global->dtype;
    }
    return qd_pickle_tensor_of(p, a[0].storage, dtype, a[1].i, &a[2], &a[3], out);
}

/* (tensor, ..): the tensor as it is. */
static qd_status call_first(qd_pickle *p, const qd_pickle_global *g, const qd_pickle_items *args, qd_pickle_value *out)
{
    if (args->n < 1 || args->at[0].kind != QD_PICKLE_TENSOR)
        return wrong_arguments(p, g);
    *out = args->at[0];
    return QD_OK;
}

/* _rebuild_from_type_v2(function, class, arguments, state): the function's tensor; class and attributes are let go. */
static qd_status call_from_type(qd_pickle *p, const qd_pickle_global *g, const qd_pickle_items *args,
                                qd_pickle_value *out)
{
    const qd_pickle_value *a = args->at;
    if (args->n != 4 || a[0].kind != QD_PICKLE_GLOBAL || a[2].kind != QD_PICKLE_TUPLE ||
        (a[0].global->call != call_tensor && a[0].global->call != call_first))
        return wrong_arguments(p, g);
    return a[0].global->call(p, a[0].global, a[2].items, out);
}

/* _reconstructor(class, base, state) of objects of no interest. */
static qd_status call_reconstructor(qd_pickle *p, const qd_pickle_global *g, const qd_pickle_items *args,
                                    qd_pickle_value *out)
{
    if (args->n != 3 || args->at[0].kind != QD_PICKLE_GLOBAL || !args->at[0].global->opaque)
        return wrong_arguments(p, g);
    *out = (qd_pickle_value){ .kind = QD_PICKLE_OPAQUE, .global = args->at[0].global };
    return QD_OK;
}

/* --- the table --- */

#define CALLED(module_, name_, call_)                                                                                  \
    {                                                                                                                  \
        .module = (module_), .name = (name_), .call = (call_), .dtype = -1                                             \
    }
#define STORAGE(module_, name_, dtype_)                                                                                \
    {                                                                                                                  \
        .module = (module_), .name = (name_), .dtype = (dtype_), .storage = true                                       \
    }
#define UNTYPED(module_)                                                                                               \
    {                                                                                                                  \
        .module = (module_), .name = "UntypedStorage", .dtype = QD_U8, .storage = true, .untyped = true                \
    }
#define DTYPE(name_, dtype_)                                                                                           \
    {                                                                                                                  \
        .module = "torch", .name = (name_), .dtype = (dtype_)                                                          \
    }
#define OPAQUE(module_, name_)                                                                                         \
    {                                                                                                                  \
        .module = (module_), .name = (name_), .dtype = -1, .opaque = true                                              \
    }
#define STORAGES(module_)                                                                                              \
    STORAGE(module_, "FloatStorage", QD_F32), STORAGE(module_, "DoubleStorage", QD_F64),                               \
        STORAGE(module_, "HalfStorage", QD_F16), STORAGE(module_, "BFloat16Storage", QD_BF16),                         \
        STORAGE(module_, "LongStorage", QD_I64), STORAGE(module_, "IntStorage", QD_I32),                               \
        STORAGE(module_, "ShortStorage", QD_I16), STORAGE(module_, "CharStorage", QD_I8),                              \
        STORAGE(module_, "ByteStorage", QD_U8), STORAGE(module_, "BoolStorage", QD_BOOL)
#define NUMPY(module_)                                                                                                 \
    CALLED(module_, "_reconstruct", qd_pickle_numpy_array), CALLED(module_, "scalar", qd_pickle_numpy_scalar)
#define BUILTINS(module_)                                                                                              \
    OPAQUE(module_, "int"), OPAQUE(module_, "float"), OPAQUE(module_, "str"), OPAQUE(module_, "bool"),                 \
        OPAQUE(module_, "complex"), OPAQUE(module_, "list"), OPAQUE(module_, "dict"), OPAQUE(module_, "tuple"),        \
        OPAQUE(module_, "set"), OPAQUE(module_, "frozenset"), OPAQUE(module_, "range"), OPAQUE(module_, "object")

static const qd_pickle_global table[] = {
    CALLED("collections", "OrderedDict", call_dict),
    CALLED("collections", "defaultdict", call_dict),
    CALLED("torch", "Size", call_size),
    CALLED("torch._utils", "_rebuild_tensor", call_tensor),
    CALLED("torch._utils", "_rebuild_tensor_v2", call_tensor),
    CALLED("torch._utils", "_rebuild_tensor_v3", call_tensor),
    CALLED("torch._utils", "_rebuild_parameter", call_first),
    CALLED("torch._utils", "_rebuild_parameter_with_state", call_first),
    CALLED("torch._tensor", "_rebuild_from_type", call_from_type),
    CALLED("torch._tensor", "_rebuild_from_type_v2", call_from_type),
    STORAGES("torch"),
    STORAGES("torch.cuda"),
    UNTYPED("torch"),
    UNTYPED("torch.storage"),
    DTYPE("float32", QD_F32),
    DTYPE("float64", QD_F64),
    DTYPE("float16", QD_F16),
    DTYPE("bfloat16", QD_BF16),
    DTYPE("int64", QD_I64),
    DTYPE("int32", QD_I32),
    DTYPE("int16", QD_I16),
    DTYPE("int8", QD_I8),
    DTYPE("uint8", QD_U8),
    DTYPE("bool", QD_BOOL),
    CALLED("numpy", "dtype", qd_pickle_numpy_dtype),
    CALLED("numpy", "ndarray", NULL),
    NUMPY("numpy.core.multiarray"),
    NUMPY("numpy._core.multiarray"),
    CALLED("numpy.core.numeric", "_frombuffer", qd_pickle_numpy_buffer),
    CALLED("numpy._core.numeric", "_frombuffer", qd_pickle_numpy_buffer),
    CALLED("_codecs", "encode", qd_pickle_latin1),
    CALLED("copy_reg", "_reconstructor", call_reconstructor),
    CALLED("copyreg", "_reconstructor", call_reconstructor),
    OPAQUE("torch", "device"),
    OPAQUE("torch", "Tensor"),
    OPAQUE("torch.nn.parameter", "Parameter"),
    OPAQUE("torch.serialization", "_get_layout"),
    OPAQUE("argparse", "Namespace"),
    OPAQUE("collections", "Counter"),
    OPAQUE("pathlib", "Path"),
    OPAQUE("pathlib", "PosixPath"),
    OPAQUE("pathlib", "PurePosixPath"),
    OPAQUE("pathlib", "WindowsPath"),
    OPAQUE("datetime", "datetime"),
    OPAQUE("datetime", "timedelta"),
    OPAQUE("typing", "Any"),
    BUILTINS("builtins"),
    BUILTINS("__builtin__"),
};

/* Packages whose every class is of no interest. */
static const struct {
    const char *package;
    qd_pickle_global row;
} packages[] = {
    { "pytorch_lightning.", OPAQUE("pytorch_lightning", "*") },
    { "lightning.", OPAQUE("lightning", "*") },
    { "lightning_fabric.", OPAQUE("lightning_fabric", "*") },
    { "omegaconf.", OPAQUE("omegaconf", "*") },
};

static bool same(const char *a, const char *b, size_t n)
{
    return strlen(a) == n && memcmp(a, b, n) == 0;
}

static bool printable(const char *s, size_t n)
{
    for (size_t k = 0; k < n; k++)
        if ((unsigned char)s[k] <= 0x20 || (unsigned char)s[k] >= 0x7f)
            return false;
    return n > 0;
}

qd_status qd_pickle_find_global(const qd_pickle *p, const char *module, size_t n_module, const char *name,
                                size_t n_name, const qd_pickle_global **out)
{
    for (size_t k = 0; k < sizeof(table) / sizeof(table[0]); k++)
        if (same(table[k].module, module, n_module) && same(table[k].name, name, n_name)) {
            *out = &table[k];
            return QD_OK;
        }
    for (size_t k = 0; k < sizeof(packages) / sizeof(packages[0]); k++)
        if (n_module > strlen(packages[k].package) &&
            memcmp(module, packages[k].package, strlen(packages[k].package)) == 0) {
            *out = &packages[k].row;
            return QD_OK;
        }
    if (!printable(module, n_module) || !printable(name, n_name))
        return qd_pickle_refuse(p, QD_E_FORMAT, "a global has a name that cannot be printed");
    if (n_module > 9 && memcmp(module, "torch.nn.", 9) == 0)
        return qd_pickle_refuse(
            p, QD_E_UNSUPPORTED,
            "global '%.*s.%.*s': the file holds a whole module, which only its own code can rebuild; "
            "save its state_dict()",
            (int)(n_module < 100 ? n_module : 100), module, (int)(n_name < 100 ? n_name : 100), name);
    return qd_pickle_refuse(p, QD_E_UNSUPPORTED, "global '%.*s.%.*s' is not something that rebuilds a tensor",
                            (int)(n_module < 100 ? n_module : 100), module, (int)(n_name < 100 ? n_name : 100), name);
}

/* --- storages --- */

qd_status qd_pickle_add_storage(qd_pickle *p, const char *key, const qd_pickle_storage *like, qd_pickle_storage **out)
{
    const uint32_t n = (uint32_t)p->keys.count;
    void *room = NULL;
    if (n == QD_PICKLE_STORAGES_MAX)
        return qd_pickle_refuse(p, QD_E_LIMIT, "more than %u storages", QD_PICKLE_STORAGES_MAX);
    if (n == p->storage_capacity) {
        const uint32_t capacity = n ? 2 * n : 64;
        qd_pickle_storage **grown = qd_realloc(p->storage, capacity * sizeof(*grown));
        if (!grown)
            return qd_fail(p->err, QD_E_NOMEM, "out of memory for %u storages", capacity);
        p->storage = grown;
        p->storage_capacity = capacity;
    }
    qd_status st = qd_pickle_alloc(p, sizeof(**p->storage), &room);
    if (!st)
        st = qd_names_add(&p->keys, key, p->err);
    if (st)
        return st;
    p->storage[n] = room;
    *p->storage[n] = *like;
    p->storage[n]->key = p->keys.name[n];
    *out = p->storage[n];
    return QD_OK;
}

/* The one of that key, which must agree with what was said of it before. */
static qd_status intern(qd_pickle *p, const char *key, const qd_pickle_global *g, int64_t count,
                        qd_pickle_storage **out)
{
    const qd_pickle_storage like = { .dtype = (qd_dtype)g->dtype, .untyped = g->untyped, .count = count };
    const int k = qd_names_find(&p->keys, key);
    if (k < 0)
        return qd_pickle_add_storage(p, key, &like, out);
    qd_pickle_storage *s = p->storage[k];
    if (s->dtype != like.dtype || s->untyped != like.untyped || s->count != count)
        return qd_pickle_refuse(p, QD_E_FORMAT, "storage '%.80s' comes as %s of %lld and as %s of %lld elements", key,
                                qd_dtype_name(s->dtype), (long long)s->count, qd_dtype_name(like.dtype),
                                (long long)count);
    *out = s;
    return QD_OK;
}

qd_status qd_pickle_storage_of(qd_pickle *p, const qd_pickle_value *id, qd_pickle_value *out)
{
    const qd_pickle_items *t = id->items;
    char key[64];
    size_t bytes;
    if (id->kind != QD_PICKLE_TUPLE || t->n < 1)
        return qd_pickle_refuse(p, QD_E_FORMAT, "a persistent id that is no tuple");
    if (qd_pickle_is(&t->at[0], "module"))
        return qd_pickle_refuse(p, QD_E_UNSUPPORTED,
                                "the file holds a whole module with its source; save its state_dict()");
    if (!qd_pickle_is(&t->at[0], "storage") || t->n < 5 || t->n > 6 || t->at[1].kind != QD_PICKLE_GLOBAL ||
        t->at[2].kind != QD_PICKLE_TEXT || t->at[4].kind != QD_PICKLE_INT)
        return qd_pickle_refuse(p, QD_E_FORMAT, "a persistent id that is no storage");
    const qd_pickle_global *g = t->at[1].global;
    const qd_pickle_value *name = &t->at[2];
    const int64_t count = t->at[4].i;
    if (!g->storage)
        return qd_pickle_refuse(p, QD_E_FORMAT, "'%s.%s' is no class of storages", g->module, g->name);
    if (!name->size || name->size >= sizeof(key) || !printable(name->text, name->size))
        return qd_pickle_refuse(p, QD_E_FORMAT, "a storage has a key of %u bytes that is no name", name->size);
    if (count < 0 || !qd_mul_size((size_t)count, qd_dtype_bits((qd_dtype)g->dtype) / 8, &bytes))
        return qd_pickle_refuse(p, QD_E_FORMAT, "storage '%.*s' of %lld elements", (int)name->size, name->text,
                                (long long)count);
    if (t->n == 6 && t->at[5].kind != QD_PICKLE_NONE)
        return qd_pickle_refuse(p, QD_E_UNSUPPORTED, "storage '%.*s' is a view of another, as PyTorch before 0.4 wrote",
                                (int)name->size, name->text);
    memcpy(key, name->text, name->size);
    key[name->size] = '\0';
    qd_pickle_storage *s;
    const qd_status st = intern(p, key, g, count, &s);
    if (!st)
        *out = (qd_pickle_value){ .kind = QD_PICKLE_STORAGE, .storage = s };
    return st;
}

/* --- tensors --- */

static qd_status check_range(const qd_pickle *p, const qd_pickle_tensor *t, int64_t room)
{
    int64_t last = t->offset, reach;
    if (t->offset < 0 || t->offset > room)
        return qd_pickle_refuse(p, QD_E_FORMAT, "a tensor begins at element %lld of storage '%.80s', which has %lld",
                                (long long)t->offset, t->storage->key, (long long)room);
    for (int k = 0; k < t->shape.rank; k++)
        if (t->shape.dim[k] == 0)
            return QD_OK; /* nothing is read */
    for (int k = 0; k < t->shape.rank; k++)
        if (t->stride[k] < 0 || __builtin_mul_overflow(t->shape.dim[k] - 1, t->stride[k], &reach) ||
            __builtin_add_overflow(last, reach, &last))
            return qd_pickle_refuse(p, QD_E_FORMAT, "a tensor has stride %lld along axis %d of %lld elements",
                                    (long long)t->stride[k], k, (long long)t->shape.dim[k]);
    if (last >= room)
        return qd_pickle_refuse(p, QD_E_FORMAT, "a tensor ends at element %lld of storage '%.80s', which has %lld",
                                (long long)last, t->storage->key, (long long)room);
    return QD_OK;
}

qd_status qd_pickle_tensor_of(qd_pickle *p, qd_pickle_storage *s, qd_dtype dtype, int64_t offset,
                              const qd_pickle_value *size, const qd_pickle_value *stride, qd_pickle_value *out)
{
    void *room = NULL;
    qd_pickle_tensor t = { .storage = s, .dtype = dtype, .offset = offset };
    int64_t count;
    if (size->kind != QD_PICKLE_TUPLE || stride->kind != QD_PICKLE_TUPLE || size->items->n != stride->items->n)
        return qd_pickle_refuse(p, QD_E_FORMAT, "a tensor whose size and stride are no tuples of one length");
    if (size->items->n > QD_MAX_RANK)
        return qd_pickle_refuse(p, QD_E_LIMIT, "a tensor of %u dimensions, the limit is %d", size->items->n,
                                QD_MAX_RANK);
    if (dtype != s->dtype && !s->untyped)
        return qd_pickle_refuse(p, QD_E_FORMAT, "a tensor of %s in storage '%.80s' of %s", qd_dtype_name(dtype), s->key,
                                qd_dtype_name(s->dtype));
    t.shape.rank = (int)size->items->n;
    for (int k = 0; k < t.shape.rank; k++) {
        const qd_pickle_value *d = &size->items->at[k], *step = &stride->items->at[k];
        if (d->kind != QD_PICKLE_INT || step->kind != QD_PICKLE_INT || d->i < 0)
            return qd_pickle_refuse(p, QD_E_FORMAT, "dimension %d of a tensor is no whole number >= 0", k);
        t.shape.dim[k] = d->i;
        t.stride[k] = step->i;
    }
    if (qd_shape_count(&t.shape, &count, NULL))
        return qd_pickle_refuse(p, QD_E_LIMIT, "the product of a tensor's shape does not fit in 63 bits");
    qd_status st = check_range(p, &t, s->untyped ? s->count / (int64_t)(qd_dtype_bits(dtype) / 8) : s->count);
    if (!st)
        st = qd_pickle_alloc(p, sizeof(t), &room);
    if (st)
        return st;
    memcpy(room, &t, sizeof(t));
    *out = (qd_pickle_value){ .kind = QD_PICKLE_TENSOR, .tensor = room };
    return QD_OK;
}
