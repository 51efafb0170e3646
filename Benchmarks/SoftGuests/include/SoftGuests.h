// Programs that measure the soft engine: 64-bit code that needs nothing, computes for a while and halts. RDI holds the
// number of rounds, RSP a stack; memory from 2 MiB to 4 MiB is theirs.
#pragma once

struct soft_program {
    const char *_Nullable name;
    const unsigned char *_Nullable start;
    const unsigned char *_Nullable end;
    // Rounds that take some hundred million instructions.
    unsigned long long rounds;
};

// Ends with an entry without a name.
extern const struct soft_program soft_programs[];

static inline const struct soft_program *_Nonnull soft_first_program(void) { return soft_programs; }
