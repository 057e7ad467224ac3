#include "budget.h"

#define X(name, burst, per_second, what) const struct limit LIMIT_##name = {burst, per_second};
BUDGET_RATES(X)
#undef X

bool bucket_pour(struct bucket *b, struct limit limit, uint32_t amount, uint64_t now)
{
    uint64_t leaked = (now - b->at) * limit.per_second;
    b->level = b->level > leaked ? b->level - leaked : 0;
    b->at = now;
    b->level += (uint64_t)amount * 1000;
    return b->level <= (uint64_t)limit.burst * 1000;
}
