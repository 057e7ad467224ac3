/* Huffman coding: any octets decode or are refused, within the room given, whatever the room is. */
#include <stdlib.h>
#include <string.h>

#include "hpack.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size)
        return 0;
    size_t whole = (size - 1) * 8 / 5 + 1, room = data[0] % (whole + 1);
    uint8_t *in = malloc(size);
    char *out = malloc(whole), *small = malloc(room ? room : 1);
    memcpy(in, data + 1, size - 1);
    ssize_t made = huffman_decode(in, size - 1, out, whole);
    ssize_t tight = huffman_decode(in, size - 1, small, room);
    if (made > (ssize_t)whole || tight > (ssize_t)room)
        abort();
    if (made >= 0 && made <= (ssize_t)room && (tight != made || memcmp(out, small, (size_t)made) != 0))
        abort();
    free(in);
    free(out);
    free(small);
    return 0;
}
