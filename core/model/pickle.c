/* pickle.c - a machine for pickles of protocol 2 to 5 that makes data and nothing else (Python's Lib/pickletools.py lists the opcodes).
 *
 * It has no way to run what a file names: calls go through the table of pickle_globals.c. Opcodes are counted, and everything
 * they build comes out of one ceiling, so that a file of a few bytes cannot ask for more. */
#include <stdlib.h>
#include <string.h>

#include "model/pickle_int.h"

enum { PROTOCOL_MIN = 2, PROTOCOL_MAX = 5 };
#define MARKS_MAX 65536u
#define LINE_MAX_BYTES 255u

void qd_pickle_init(qd_pickle *p)
{
    memset(p, 0, sizeof(*p));
    qd_arena_init(&p->arena);
}

void qd_pickle_clear(qd_pickle *p)
{
    for (int k = 0; k < p->keys.count; k++)
        qd_tensor_clear(&p->storage[k]->bytes);
    qd_free(p->storage);
    qd_names_clear(&p->keys);
    qd_free(p->stack);
    qd_free(p->mark);
    qd_free(p->memo);
    qd_arena_clear(&p->arena);
    memset(p, 0, sizeof(*p));
}

/* --- words and memory --- */

qd_status qd_pickle_refuse(const qd_pickle *p, qd_status st, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    qd_failv(p->err, st, fmt, args);
    va_end(args);
    return qd_fail_in(p->err, st, "pickle, byte %zu", p->at);
}

static qd_status spend(qd_pickle *p, size_t n)
{
    if (n > QD_PICKLE_BYTES_MAX - p->spent_bytes)
        return qd_pickle_refuse(p, QD_E_LIMIT, "it builds more than %zu MiB, which no list of tensors needs",
                                QD_PICKLE_BYTES_MAX >> 20);
    p->spent_bytes += n;
    return QD_OK;
}

qd_status qd_pickle_alloc(qd_pickle *p, size_t n, void **out)
{
    const qd_status st = spend(p, n);
    if (st)
        return st;
    *out = qd_arena_alloc(&p->arena, n);
    return *out ? QD_OK : qd_fail(p->err, QD_E_NOMEM, "out of memory for a pickle");
}

/* An array of the machine's own, made to hold `want` elements. */
static qd_status grow(qd_pickle *p, void **array, uint32_t *capacity, uint32_t want, size_t element)
{
    uint32_t n = *capacity ? *capacity : 64;
    while (n < want)
        n *= 2; /* want is far below 2^31: each caller has a limit */
    if (n == *capacity)
        return QD_OK;
    const qd_status st = spend(p, (n - *capacity) * element);
    if (st)
        return st;
    void *grown = qd_realloc(*array, n * element);
    if (!grown)
        return qd_fail(p->err, QD_E_NOMEM, "out of memory for a pickle");
    memset((char *)grown + *capacity * element, 0, (n - *capacity) * element);
    *array = grown;
    *capacity = n;
    return QD_OK;
}

qd_status qd_pickle_new_items(qd_pickle *p, uint32_t capacity, qd_pickle_items **out)
{
    void *items = NULL, *room = NULL;
    qd_status st = qd_pickle_alloc(p, sizeof(**out), &items);
    if (!st && capacity)
        st = qd_pickle_alloc(p, capacity * sizeof(qd_pickle_value), &room);
    if (st)
        return st;
    *out = items;
    (*out)->at = room;
    (*out)->capacity = capacity;
    return QD_OK;
}

qd_status qd_pickle_add_items(qd_pickle *p, qd_pickle_items *to, const qd_pickle_value *v, uint32_t n)
{
    if (n > to->capacity - to->n) {
        void *room = NULL;
        uint32_t capacity = to->capacity ? to->capacity : 4;
        while (capacity < to->n + n) /* both are at most the opcodes of a file */
            capacity *= 2;
        const qd_status st = qd_pickle_alloc(p, capacity * sizeof(*v), &room);
        if (st)
            return st;
        if (to->n)
            memcpy(room, to->at, to->n * sizeof(*v));
        to->at = room;
        to->capacity = capacity;
    }
    if (n)
        memcpy(to->at + to->n, v, n * sizeof(*v));
    to->n += n;
    return QD_OK;
}

bool qd_pickle_is(const qd_pickle_value *v, const char *text)
{
    return v->kind == QD_PICKLE_TEXT && v->size == strlen(text) && memcmp(v->text, text, v->size) == 0;
}

/* --- the stack --- */

static qd_status push(qd_pickle *p, qd_pickle_value v)
{
    if (p->n_stack == p->stack_capacity) {
        const qd_status st = grow(p, (void **)&p->stack, &p->stack_capacity, p->n_stack + 1, sizeof(*p->stack));
        if (st)
            return st;
    }
    p->stack[p->n_stack++] = v;
    return QD_OK;
}

/* Are there n values above the last mark? Then `*v` is the lowest of them. */
static qd_status need(qd_pickle *p, uint32_t n, qd_pickle_value **v)
{
    const uint32_t floor = p->n_mark ? p->mark[p->n_mark - 1] : 0;
    if (p->n_stack - floor < n)
        return qd_pickle_refuse(p, QD_E_FORMAT, "an opcode wants %u values of a stack that has %u", n,
                                p->n_stack - floor);
    *v = p->stack + p->n_stack - n;
    return QD_OK;
}

static qd_status push_mark(qd_pickle *p)
{
    if (p->n_mark == MARKS_MAX)
        return qd_pickle_refuse(p, QD_E_LIMIT, "more than %u open marks", MARKS_MAX);
    if (p->n_mark == p->mark_capacity) {
        const qd_status st = grow(p, (void **)&p->mark, &p->mark_capacity, p->n_mark + 1, sizeof(*p->mark));
        if (st)
            return st;
    }
    p->mark[p->n_mark++] = p->n_stack;
    return QD_OK;
}

/* What lies above the last mark, which goes; the values stay on the stack for the caller to drop. */
static qd_status pop_mark(qd_pickle *p, qd_pickle_value **v, uint32_t *n)
{
    if (!p->n_mark)
        return qd_pickle_refuse(p, QD_E_FORMAT, "an opcode wants a mark and there is none");
    const uint32_t floor = p->mark[--p->n_mark];
    *v = p->stack + floor;
    *n = p->n_stack - floor;
    return QD_OK;
}

/* --- memo --- */

static qd_status put(qd_pickle *p, uint32_t index)
{
    qd_pickle_value *top = NULL;
    qd_status st = need(p, 1, &top);
    if (st)
        return st;
    if (index >= QD_PICKLE_MEMO_MAX)
        return qd_pickle_refuse(p, QD_E_LIMIT, "memo entry %u; there may be %u", index, QD_PICKLE_MEMO_MAX);
    if (index >= p->memo_capacity) {
        st = grow(p, (void **)&p->memo, &p->memo_capacity, index + 1, sizeof(*p->memo));
        if (st)
            return st;
    }
    while (p->n_memo <= index) /* in the order in which they are made; a gap holds what cannot be got */
        p->memo[p->n_memo++] = (qd_pickle_value){ .kind = UINT32_MAX };
    p->memo[index] = *top;
    return QD_OK;
}

static qd_status get(qd_pickle *p, uint32_t index)
{
    if (index >= p->n_memo || p->memo[index].kind == UINT32_MAX)
        return qd_pickle_refuse(p, QD_E_FORMAT, "memo entry %u is read before it is written", index);
    return push(p, p->memo[index]);
}

/* --- plain values --- */

static qd_status cut_short(const qd_pickle *p)
{
    return qd_pickle_refuse(p, QD_E_FORMAT, "the pickle ends inside an opcode");
}

static qd_status push_text(qd_pickle *p, qd_pickle_kind kind, uint64_t n)
{
    if (n > UINT32_MAX || n > qd_reader_left(&p->reader))
        return qd_pickle_refuse(p, QD_E_FORMAT, "text of %llu bytes, %zu are left", (unsigned long long)n,
                                qd_reader_left(&p->reader));
    const char *text = (const char *)qd_read_bytes(&p->reader, n);
    return push(p, (qd_pickle_value){ .kind = kind, .size = (uint32_t)n, .text = text });
}

static qd_status push_int(qd_pickle *p, int64_t v)
{
    return push(p, (qd_pickle_value){ .kind = QD_PICKLE_INT, .i = v });
}

/* Two's complement of n bytes, little-endian. */
static qd_status push_long(qd_pickle *p, uint64_t n)
{
    if (n > qd_reader_left(&p->reader))
        return qd_pickle_refuse(p, QD_E_FORMAT, "a number of %llu bytes, %zu are left", (unsigned long long)n,
                                qd_reader_left(&p->reader));
    const uint8_t *b = qd_read_bytes(&p->reader, n);
    if (n > 8)
        return push(p, (qd_pickle_value){ .kind = QD_PICKLE_BIG });
    uint64_t v = n && b[n - 1] & 0x80 ? UINT64_MAX : 0;
    for (uint64_t k = n; k-- > 0;)
        v = v << 8 | b[k];
    return push_int(p, (int64_t)v);
}

static qd_status push_double(qd_pickle *p)
{
    const uint64_t hi = qd_read_u32be(&p->reader), bits = hi << 32 | qd_read_u32be(&p->reader);
    qd_pickle_value v = { .kind = QD_PICKLE_FLOAT };
    memcpy(&v.f, &bits, sizeof(v.f));
    return push(p, v);
}

/* --- containers --- */

static qd_status push_items(qd_pickle *p, qd_pickle_kind kind, qd_pickle_value *from, uint32_t n)
{
    qd_pickle_items *items;
    qd_status st = qd_pickle_new_items(p, n, &items);
    if (!st)
        st = qd_pickle_add_items(p, items, from, n);
    if (st)
        return st;
    p->n_stack -= n;
    return push(p, (qd_pickle_value){ .kind = kind, .items = items });
}

static qd_status push_marked(qd_pickle *p, qd_pickle_kind kind)
{
    qd_pickle_value *v = NULL;
    uint32_t n = 0;
    qd_status st = pop_mark(p, &v, &n);
    if (st)
        return st;
    if (kind == QD_PICKLE_DICT && n % 2)
        return qd_pickle_refuse(p, QD_E_FORMAT, "a dict of %u values, which must be even", n);
    return push_items(p, kind, v, n);
}

static qd_status push_last(qd_pickle *p, uint32_t n)
{
    qd_pickle_value *v = NULL;
    const qd_status st = need(p, n, &v);
    return st ? st : push_items(p, QD_PICKLE_TUPLE, v, n);
}

/* The n values on top go into the container below them. Objects of no interest swallow them. */
static qd_status fill(qd_pickle *p, qd_pickle_kind kind, uint32_t n)
{
    qd_pickle_value *v = NULL;
    qd_status st = need(p, n + 1, &v);
    if (st)
        return st;
    if (v->kind != QD_PICKLE_OPAQUE) {
        if (v->kind != kind)
            return qd_pickle_refuse(p, QD_E_FORMAT, "values are put into something that is no %s",
                                    kind == QD_PICKLE_DICT ? "dict" : "list");
        if (kind == QD_PICKLE_DICT && n % 2)
            return qd_pickle_refuse(p, QD_E_FORMAT, "a dict is given %u values, which must be even", n);
        st = qd_pickle_add_items(p, v->items, v + 1, n);
        if (st)
            return st;
    }
    p->n_stack -= n;
    return QD_OK;
}

static qd_status fill_marked(qd_pickle *p, qd_pickle_kind kind)
{
    qd_pickle_value *v = NULL;
    uint32_t n = 0;
    const qd_status st = pop_mark(p, &v, &n);
    return st ? st : fill(p, kind, n);
}

/* --- names and calls --- */

static qd_status push_global(qd_pickle *p, const char *module, size_t n_module, const char *name, size_t n_name)
{
    const qd_pickle_global *g = NULL;
    const qd_status st = qd_pickle_find_global(p, module, n_module, name, n_name, &g);
    return st ? st : push(p, (qd_pickle_value){ .kind = QD_PICKLE_GLOBAL, .global = g });
}

/* A line of text, without its end. */
static qd_status read_line(qd_pickle *p, const char **line, size_t *n)
{
    const size_t left = qd_reader_left(&p->reader), look = left < LINE_MAX_BYTES + 1 ? left : LINE_MAX_BYTES + 1;
    const char *from = (const char *)p->reader.data + p->reader.pos, *end = memchr(from, '\n', look);
    if (!end)
        return left <= LINE_MAX_BYTES ? cut_short(p)
                                      : qd_pickle_refuse(p, QD_E_LIMIT, "a name of more than %u bytes", LINE_MAX_BYTES);
    *line = from;
    *n = (size_t)(end - from);
    qd_read_bytes(&p->reader, *n + 1);
    return QD_OK;
}

static qd_status op_global(qd_pickle *p)
{
    const char *module = NULL, *name = NULL;
    size_t n_module = 0, n_name = 0;
    qd_status st = read_line(p, &module, &n_module);
    if (!st)
        st = read_line(p, &name, &n_name);
    return st ? st : push_global(p, module, n_module, name, n_name);
}

static qd_status op_stack_global(qd_pickle *p)
{
    qd_pickle_value *v = NULL;
    const qd_status st = need(p, 2, &v);
    if (st)
        return st;
    if (v[0].kind != QD_PICKLE_TEXT || v[1].kind != QD_PICKLE_TEXT)
        return qd_pickle_refuse(p, QD_E_FORMAT, "a global whose name is no text");
    p->n_stack -= 2;
    return push_global(p, v[0].text, v[0].size, v[1].text, v[1].size);
}

/* function, arguments: replaced by what the table says that gives. */
static qd_status op_call(qd_pickle *p)
{
    qd_pickle_value *v = NULL, made = { .kind = QD_PICKLE_NONE };
    qd_status st = need(p, 2, &v);
    if (st)
        return st;
    if (v[0].kind != QD_PICKLE_GLOBAL)
        return qd_pickle_refuse(p, QD_E_UNSUPPORTED, "something is called that is no global");
    if (v[1].kind != QD_PICKLE_TUPLE)
        return qd_pickle_refuse(p, QD_E_FORMAT, "'%s.%s' is called with something that is no tuple",
                                v[0].global->module, v[0].global->name);
    const qd_pickle_global *g = v[0].global;
    if (g->opaque)
        made = (qd_pickle_value){ .kind = QD_PICKLE_OPAQUE, .global = g };
    else if (g->call)
        st = g->call(p, g, v[1].items, &made);
    else
        st = qd_pickle_refuse(p, QD_E_UNSUPPORTED, "'%s.%s' is called, which rebuilds no tensor", g->module, g->name);
    if (st)
        return st;
    p->n_stack -= 2;
    return push(p, made);
}

/* object, state. Attributes of dicts (a state_dict has `_metadata`) and of objects of no interest go unread. */
static qd_status op_build(qd_pickle *p)
{
    qd_pickle_value *v = NULL;
    qd_status st = need(p, 2, &v);
    if (st)
        return st;
    if (v[0].kind == QD_PICKLE_NUMPY_DTYPE || (v[0].kind == QD_PICKLE_TENSOR && !v[0].tensor->storage))
        st = qd_pickle_numpy_state(p, &v[0], &v[1]);
    else if (v[0].kind != QD_PICKLE_DICT && v[0].kind != QD_PICKLE_OPAQUE)
        st = qd_pickle_refuse(p, QD_E_UNSUPPORTED, "BUILD sets the state of something that takes none");
    if (!st)
        p->n_stack--;
    return st;
}

static qd_status op_storage(qd_pickle *p)
{
    qd_pickle_value *v = NULL;
    const qd_status st = need(p, 1, &v);
    return st ? st : qd_pickle_storage_of(p, v, v);
}

/* --- the opcodes --- */

static qd_status unknown_opcode(const qd_pickle *p, uint8_t op)
{
    static const struct {
        uint8_t op;
        const char *name;
    } refused[] = {
        { 'I', "INT" },     { 'L', "LONG" },       { 'F', "FLOAT" },        { 'S', "STRING" },
        { 'V', "UNICODE" }, { 'p', "PUT" },        { 'g', "GET" },          { 'i', "INST" },
        { 'o', "OBJ" },     { 'P', "PERSID" },     { 0x82, "EXT1" },        { 0x83, "EXT2" },
        { 0x84, "EXT4" },   { 0x92, "NEWOBJ_EX" }, { 0x97, "NEXT_BUFFER" }, { 0x98, "READONLY_BUFFER" },
    };
    for (size_t k = 0; k < sizeof(refused) / sizeof(refused[0]); k++)
        if (refused[k].op == op)
            return qd_pickle_refuse(p, QD_E_UNSUPPORTED, "opcode %s has no place in a checkpoint", refused[k].name);
    return qd_pickle_refuse(p, QD_E_FORMAT, "0x%02x is no opcode", op);
}

static qd_status step_value(qd_pickle *p, uint8_t op)
{
    qd_reader *r = &p->reader;
    switch (op) {
    case 'N':
        return push(p, (qd_pickle_value){ .kind = QD_PICKLE_NONE });
    case 0x88: /* NEWTRUE */
    case 0x89: /* NEWFALSE */
        return push(p, (qd_pickle_value){ .kind = QD_PICKLE_BOOL, .i = op == 0x88 });
    case 'J': /* BININT */
        return push_int(p, (int32_t)qd_read_u32le(r));
    case 'K': /* BININT1 */
        return push_int(p, qd_read_u8(r));
    case 'M': /* BININT2 */
        return push_int(p, qd_read_u16le(r));
    case 0x8a: /* LONG1 */
        return push_long(p, qd_read_u8(r));
    case 0x8b: /* LONG4, whose length has a sign */
        return push_long(p, qd_read_u32le(r));
    case 'G': /* BINFLOAT */
        return push_double(p);
    case 'X': /* BINUNICODE */
        return push_text(p, QD_PICKLE_TEXT, qd_read_u32le(r));
    case 0x8c: /* SHORT_BINUNICODE */
        return push_text(p, QD_PICKLE_TEXT, qd_read_u8(r));
    case 0x8d: /* BINUNICODE8 */
        return push_text(p, QD_PICKLE_TEXT, qd_read_u64le(r));
    case 'B': /* BINBYTES */
        return push_text(p, QD_PICKLE_BYTES, qd_read_u32le(r));
    case 'C': /* SHORT_BINBYTES */
        return push_text(p, QD_PICKLE_BYTES, qd_read_u8(r));
    case 0x8e: /* BINBYTES8 */
    case 0x96: /* BYTEARRAY8 */
        return push_text(p, QD_PICKLE_BYTES, qd_read_u64le(r));
    case 'U': /* SHORT_BINSTRING, of Python 2 */
        return push_text(p, QD_PICKLE_TEXT, qd_read_u8(r));
    case 'T': /* BINSTRING */
        return push_text(p, QD_PICKLE_TEXT, qd_read_u32le(r));
    default:
        return unknown_opcode(p, op);
    }
}

static qd_status step_container(qd_pickle *p, uint8_t op)
{
    switch (op) {
    case ')': /* EMPTY_TUPLE */
        return push_items(p, QD_PICKLE_TUPLE, NULL, 0);
    case 0x85: /* TUPLE1 */
    case 0x86:
    case 0x87:
        return push_last(p, op - 0x84u);
    case 't':
        return push_marked(p, QD_PICKLE_TUPLE);
    case ']':  /* EMPTY_LIST */
    case 0x8f: /* EMPTY_SET */
        return push_items(p, QD_PICKLE_LIST, NULL, 0);
    case 'l':
    case 0x91: /* FROZENSET */
        return push_marked(p, QD_PICKLE_LIST);
    case 'a': /* APPEND */
        return fill(p, QD_PICKLE_LIST, 1);
    case 'e':  /* APPENDS */
    case 0x90: /* ADDITEMS */
        return fill_marked(p, QD_PICKLE_LIST);
    case '}': /* EMPTY_DICT */
        return push_items(p, QD_PICKLE_DICT, NULL, 0);
    case 'd':
        return push_marked(p, QD_PICKLE_DICT);
    case 's': /* SETITEM */
        return fill(p, QD_PICKLE_DICT, 2);
    case 'u': /* SETITEMS */
        return fill_marked(p, QD_PICKLE_DICT);
    default:
        return step_value(p, op);
    }
}

static qd_status step(qd_pickle *p, uint8_t op)
{
    qd_pickle_value *v = NULL;
    uint32_t n = 0;
    qd_status st;
    switch (op) {
    case 0x95: { /* FRAME: how much the writer put together; its opcodes follow as always */
        const uint64_t frame = qd_read_u64le(&p->reader);
        return frame <= qd_reader_left(&p->reader) ? QD_OK : cut_short(p);
    }
    case '(':
        return push_mark(p);
    case '0': /* POP */
        st = need(p, 1, &v);
        if (!st)
            p->n_stack--;
        return st;
    case '1': /* POP_MARK */
        st = pop_mark(p, &v, &n);
        if (!st)
            p->n_stack -= n;
        return st;
    case '2': /* DUP */
        st = need(p, 1, &v);
        return st ? st : push(p, *v);
    case 'q': /* BINPUT */
        return put(p, qd_read_u8(&p->reader));
    case 'r': /* LONG_BINPUT */
        return put(p, qd_read_u32le(&p->reader));
    case 0x94: /* MEMOIZE */
        return put(p, p->n_memo);
    case 'h': /* BINGET */
        return get(p, qd_read_u8(&p->reader));
    case 'j': /* LONG_BINGET */
        return get(p, qd_read_u32le(&p->reader));
    case 'c':
        return op_global(p);
    case 0x93:
        return op_stack_global(p);
    case 'R':  /* REDUCE */
    case 0x81: /* NEWOBJ: here a class is what calling it gives */
        return op_call(p);
    case 'b':
        return op_build(p);
    case 'Q': /* BINPERSID */
        return op_storage(p);
    default:
        return step_container(p, op);
    }
}

static qd_status begin(qd_pickle *p)
{
    const uint8_t op = qd_read_u8(&p->reader), version = qd_read_u8(&p->reader);
    if (p->reader.failed || op != 0x80)
        return qd_pickle_refuse(p, QD_E_FORMAT, "it does not begin with a protocol: this is no pickle of a checkpoint");
    if (version < PROTOCOL_MIN || version > PROTOCOL_MAX)
        return qd_pickle_refuse(p, QD_E_UNSUPPORTED, "protocol %u; 2 to 5 are read", version);
    return QD_OK;
}

qd_status qd_pickle_run(qd_pickle *p, const uint8_t *data, size_t size, size_t *used, qd_pickle_value *out, qd_err *err)
{
    qd_status st;
    qd_reader_init(&p->reader, data, size);
    p->n_stack = p->n_mark = p->n_memo = 0;
    p->at = 0;
    p->err = err;
    st = begin(p);
    while (!st) {
        p->at = p->reader.pos;
        const uint8_t op = qd_read_u8(&p->reader);
        if (p->reader.failed)
            return qd_pickle_refuse(p, QD_E_FORMAT, "it ends without STOP");
        if (op == '.')
            break;
        if (++p->steps > QD_PICKLE_STEPS_MAX)
            return qd_pickle_refuse(p, QD_E_LIMIT, "more than %u opcodes", QD_PICKLE_STEPS_MAX);
        st = step(p, op);
        if (p->reader.failed) /* what was pushed of the missing bytes is not looked at */
            st = cut_short(p);
    }
    if (st)
        return st;
    if (p->n_mark || p->n_stack != 1)
        return qd_pickle_refuse(p, QD_E_FORMAT,
                                "it ends with %u values on the stack and %u marks, must be one and none", p->n_stack,
                                p->n_mark);
    *out = p->stack[0];
    *used = p->reader.pos;
    return QD_OK;
}
