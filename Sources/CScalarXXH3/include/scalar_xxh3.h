#ifndef SCALAR_XXH3_H
#define SCALAR_XXH3_H

#include <stddef.h>
#include <stdint.h>

struct scalar_xxh128 {
    uint64_t low64, high64;
};

/* The library's XXH3_128bits_withSeed, compiled for the general registers alone: the same values. */
struct scalar_xxh128 scalar_xxh3_128bits(const void *bytes, size_t size, uint64_t seed);

#endif
