#include "scalar_xxh3.h"

#include <stdlib.h>
#include <string.h>

/* XXH_VECTOR chooses the library's scalar code; the attribute keeps the compiler from making vectors of it again. */
#define XXH_INLINE_ALL
#define XXH_VECTOR 0
#pragma clang attribute push(__attribute__((target("general-regs-only"))), apply_to = function)
#include <xxhash.h>

struct scalar_xxh128 scalar_xxh3_128bits(const void *bytes, size_t size, uint64_t seed)
{
    XXH128_hash_t hash = XXH3_128bits_withSeed(bytes, size, seed);
    return (struct scalar_xxh128){hash.low64, hash.high64};
}
#pragma clang attribute pop
