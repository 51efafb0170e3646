// A guest of the tests with a fault that its command line chooses: see planted.S. In the shape of Guests.h.
#pragma once

extern const unsigned char guest_planted_start[], guest_planted_end[], guest_planted_symbols_start[],
    guest_planted_symbols_end[];

struct planted_image {
    const unsigned char *_Nonnull start;
    const unsigned char *_Nonnull end;
    const unsigned char *_Nonnull symbols_start;
    const unsigned char *_Nonnull symbols_end;
};

static inline struct planted_image guest_planted(void) {
    return (struct planted_image){guest_planted_start, guest_planted_end, guest_planted_symbols_start,
                                  guest_planted_symbols_end};
}
