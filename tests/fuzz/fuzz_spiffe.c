/* SPIFFE ids: the trust domain found is a part of the input, and the whole has exactly the one shape. */
#include <stdlib.h>
#include <string.h>

#include "peer_certificate.h"

static void require(int holds)
{
    if (!holds)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char scheme[] = "spiffe://";
    char *uri = malloc(size ? size : 1);
    memcpy(uri, data, size);
    size_t domain = spiffe_trust_domain(uri, size);
    if (domain) {
        unsigned slashes = 0;
        require(domain + sizeof scheme - 1 < size && !memcmp(uri, scheme, sizeof scheme - 1));
        require(!memchr(uri, 0, size) && !memchr(uri + sizeof scheme - 1, '/', domain));
        for (size_t i = sizeof scheme - 1; i < size; i++)
            slashes += uri[i] == '/';
        require(slashes == 4 && uri[size - 1] != '/');
        for (size_t i = sizeof scheme + domain; i < size; i++) { /* no segment is "." or ".." */
            bool dot = uri[i] == '.' && uri[i - 1] == '/', two = dot && i + 1 < size && uri[i + 1] == '.';
            size_t after = i + (two ? 2 : 1);
            require(!dot || (after < size && uri[after] != '/'));
        }
        require(!memcmp(uri + sizeof scheme - 1 + domain, "/ns/", 4));
    }
    free(uri);
    return 0;
}
