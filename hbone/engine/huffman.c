/* Huffman decoding (RFC 7541 appendix B). The code is canonical: within one length, codes count upwards, so
 * a symbol is found from the first code of its length, and the table is just the symbols in code order. */
#include "hpack.h"

enum { SYMBOL_EOS = 256 };

struct code_length {
    uint8_t bits;
    uint16_t first_symbol; /* place in `symbols` of this length's first code */
    uint32_t first;        /* that code, left-justified in 32 bits */
    uint64_t end;          /* one past this length's last code, left-justified */
};

static const struct code_length lengths[] = {
    {5, 0, 0x00000000, 0x050000000},
    {6, 10, 0x50000000, 0x0b8000000},
    {7, 36, 0xb8000000, 0x0f8000000},
    {8, 68, 0xf8000000, 0x0fe000000},
    {10, 74, 0xfe000000, 0x0ff400000},
    {11, 79, 0xff400000, 0x0ffa00000},
    {12, 82, 0xffa00000, 0x0ffc00000},
    {13, 84, 0xffc00000, 0x0fff00000},
    {14, 90, 0xfff00000, 0x0fff80000},
    {15, 92, 0xfff80000, 0x0fffe0000},
    {19, 95, 0xfffe0000, 0x0fffe6000},
    {20, 98, 0xfffe6000, 0x0fffee000},
    {21, 106, 0xfffee000, 0x0ffff4800},
    {22, 119, 0xffff4800, 0x0ffffb000},
    {23, 145, 0xffffb000, 0x0ffffea00},
    {24, 174, 0xffffea00, 0x0fffff600},
    {25, 186, 0xfffff600, 0x0fffff800},
    {26, 190, 0xfffff800, 0x0fffffbc0},
    {27, 205, 0xfffffbc0, 0x0fffffe20},
    {28, 224, 0xfffffe20, 0x0fffffff0},
    {30, 253, 0xfffffff0, 0x100000000},
};

static const uint16_t symbols[257] = {
    48, 49, 50, 97, 99, 101, 105, 111, 115, 116, 32, 37, 45, 46, 47, 51, 52, 53, 54, 55, 56, 57, 61,
    65, 95, 98, 100, 102, 103, 104, 108, 109, 110, 112, 114, 117, 58, 66, 67, 68, 69, 70, 71, 72,
    73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 83, 84, 85, 86, 87, 89, 106, 107, 113, 118, 119, 120,
    121, 122, 38, 42, 44, 59, 88, 90, 33, 34, 40, 41, 63, 39, 43, 124, 35, 62, 0, 36, 64, 91, 93,
    126, 94, 125, 60, 96, 123, 92, 195, 208, 128, 130, 131, 162, 184, 194, 224, 226, 153, 161, 167,
    172, 176, 177, 179, 209, 216, 217, 227, 229, 230, 129, 132, 133, 134, 136, 146, 154, 156, 160,
    163, 164, 169, 170, 173, 178, 181, 185, 186, 187, 189, 190, 196, 198, 228, 232, 233, 1, 135,
    137, 138, 139, 140, 141, 143, 147, 149, 150, 151, 152, 155, 157, 158, 165, 166, 168, 174, 175,
    180, 182, 183, 188, 191, 197, 231, 239, 9, 142, 144, 145, 148, 159, 171, 206, 215, 225, 236,
    237, 199, 207, 234, 235, 192, 193, 200, 201, 202, 205, 210, 213, 218, 219, 238, 240, 242, 243,
    255, 203, 204, 211, 212, 214, 221, 222, 223, 241, 244, 245, 246, 247, 248, 250, 251, 252, 253,
    254, 2, 3, 4, 5, 6, 7, 8, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 23, 24, 25, 26, 27, 28, 29,
    30, 31, 127, 220, 249, 10, 13, 22, 256,
};

/* The length whose codes `window` (32 bits, left-justified) starts with. */
static const struct code_length *length_of(uint32_t window)
{
    const struct code_length *l = lengths;
    while (window >= l->end)
        l++;
    return l;
}

/* What is left over must be the start of EOS, all ones, and shorter than a byte. */
static bool padding_valid(uint64_t bits, unsigned count)
{
    return count < 8 && (bits & ((1u << count) - 1)) == (1u << count) - 1;
}

ssize_t huffman_decode(const uint8_t *in, size_t size, char *out, size_t room)
{
    uint64_t bits = 0;
    unsigned count = 0;
    size_t made = 0;
    for (;;) {
        while (count <= 56 && size) {
            bits = bits << 8 | *in++;
            count += 8;
            size--;
        }
        /* ones behind the end cannot complete a symbol: no code is a prefix of EOS */
        uint32_t window = count >= 32 ? (uint32_t)(bits >> (count - 32))
                                      : (uint32_t)(bits << (32 - count)) | (uint32_t)(UINT64_C(0xffffffff) >> count);
        const struct code_length *l = length_of(window);
        if (l->bits > count)
            return padding_valid(bits, count) ? (ssize_t)made : -1;
        unsigned symbol = symbols[l->first_symbol + ((window - l->first) >> (32 - l->bits))];
        if (symbol == SYMBOL_EOS || made == room)
            return -1;
        out[made++] = (char)symbol;
        count -= l->bits;
    }
}
