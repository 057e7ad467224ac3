/* take FD SIZE: takes elements of SIZE bytes out of a BPF queue every 20 ms, until stdin ends. */
#define _GNU_SOURCE
#include <linux/bpf.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { TURN_MS = 20, MOST = 4096 };

int main(int argc, char **argv) {
    static char element[MOST];
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    union bpf_attr attr;
    if (argc != 3 || atoi(argv[2]) > MOST)
        return 1;
    memset(&attr, 0, sizeof attr);
    attr.map_fd = (uint32_t)atoi(argv[1]);
    attr.value = (uint64_t)(uintptr_t)element;
    while (poll(&input, 1, TURN_MS) == 0)
        while (syscall(SYS_bpf, BPF_MAP_LOOKUP_AND_DELETE_ELEM, &attr, sizeof attr) == 0)
            continue;
    return 0;
}
