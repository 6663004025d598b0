/* auth.c - who may speak to us: the Host a request names (DNS rebinding) and the Origin a browser says (other sites' pages). */
#include "http/http_int.h"

#include <arpa/inet.h>
#include <string.h>
#include <strings.h>

/* Split "name", "name:port", "[v6]:port"; name without brackets. False when it is none of these. */
static bool split_host(const char *text, char name[256], int *port)
{
    size_t n;
    const char *rest;
    *port = 0;
    if (*text == '[') {
        const char *end = strchr(text, ']');
        if (!end)
            return false;
        n = (size_t)(end - text) - 1;
        text++;
        rest = end + 1;
    } else {
        n = strcspn(text, ":");
        rest = text + n;
    }
    if (n == 0 || n > 255)
        return false;
    memcpy(name, text, n);
    name[n] = '\0';
    if (!*rest)
        return true;
    int64_t value;
    if (*rest != ':' || !sv_parse_int64(rest + 1, 1, 65535, &value))
        return false;
    *port = (int)value;
    return true;
}

static bool is_literal(const char *name)
{
    uint8_t bytes[16];
    return inet_pton(AF_INET, name, bytes) == 1 || inet_pton(AF_INET6, name, bytes) == 1;
}

bool sv_is_loopback(const char *name)
{
    uint8_t v4[4], v6[16];
    static const uint8_t one[16] = { [15] = 1 };
    if (!strcasecmp(name, "localhost") || !strcasecmp(name, "localhost."))
        return true;
    if (inet_pton(AF_INET, name, v4) == 1)
        return v4[0] == 127;
    return inet_pton(AF_INET6, name, v6) == 1 && !memcmp(v6, one, 16);
}

bool sv_host_allowed(const char *host, const char *listen_host)
{
    char name[256];
    int port;
    if (!host || !split_host(host, name, &port))
        return false;
    if (sv_is_loopback(name) || !strcasecmp(name, listen_host))
        return true;
    /* Rebinding needs a name that its owner can point elsewhere; an address cannot be pointed. */
    const bool everywhere = !strcmp(listen_host, "0.0.0.0") || !strcmp(listen_host, "::");
    return everywhere && is_literal(name);
}

bool sv_origin_matches(const char *origin, const char *host)
{
    char a[256], b[256];
    int port_a, port_b, usual;
    if (!strncasecmp(origin, "http://", 7)) {
        origin += 7;
        usual = 80;
    } else if (!strncasecmp(origin, "https://", 8)) {
        origin += 8;
        usual = 443;
    } else {
        return false;
    }
    if (!host || !split_host(origin, a, &port_a) || !split_host(host, b, &port_b))
        return false;
    return !strcasecmp(a, b) && (port_a ? port_a : usual) == (port_b ? port_b : usual);
}
