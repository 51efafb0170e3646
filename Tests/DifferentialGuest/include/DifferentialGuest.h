// The guest of the differential tests: see differential.S.
#pragma once

#include "DifferentialLayout.h"

extern const unsigned char differential_kernel_start[], differential_kernel_end[], differential_user_start[],
    differential_user_end[];
extern const unsigned char differential_driver64[], differential_after64[], differential_driver32[], differential_after32[];

struct differential_image {
    const unsigned char *_Nonnull start;
    const unsigned char *_Nonnull end;
};

static inline struct differential_image differential_kernel(void) {
    return (struct differential_image){differential_kernel_start, differential_kernel_end};
}

static inline struct differential_image differential_user(void) {
    return (struct differential_image){differential_user_start, differential_user_end};
}

// Offsets from DIFF_USER.
static inline unsigned long differential_driver64_offset(void) { return differential_driver64 - differential_user_start; }
static inline unsigned long differential_after64_offset(void) { return differential_after64 - differential_user_start; }
static inline unsigned long differential_driver32_offset(void) { return differential_driver32 - differential_user_start; }
static inline unsigned long differential_after32_offset(void) { return differential_after32 - differential_user_start; }
