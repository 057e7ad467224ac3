/* Intrusive doubly linked lists. A node that is in no list points at itself. */
#ifndef HBONE_LIST_H
#define HBONE_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct link {
    struct link *prev, *next;
};

#define container_of(pointer, type, member) ((type *)((char *)(pointer) - offsetof(type, member)))

static inline void list_init(struct link *node)
{
    node->prev = node->next = node;
}

static inline bool list_linked(const struct link *node)
{
    return node->next != node;
}

static inline bool list_empty(const struct link *list)
{
    return list->next == list;
}

static inline void list_append(struct link *list, struct link *node)
{
    node->prev = list->prev;
    node->next = list;
    list->prev->next = node;
    list->prev = node;
}

static inline void list_prepend(struct link *list, struct link *node)
{
    list_append(list->next, node);
}

static inline void list_remove(struct link *node)
{
    node->prev->next = node->next;
    node->next->prev = node->prev;
    list_init(node);
}

/* Takes the first node out; NULL when the list is empty. */
static inline struct link *list_pop(struct link *list)
{
    struct link *node = list->next;
    if (node == list)
        return NULL;
    list_remove(node);
    return node;
}

/* Moves every node of `from` to the end of `to`. */
static inline void list_splice(struct link *to, struct link *from)
{
    struct link *node;
    while ((node = list_pop(from)))
        list_append(to, node);
}

#endif
