import Testing

// Tests of the built binary: what a user sees. Each test has a folder of its own; a failing one keeps it and prints the
// commands that show the failure again.
//
//     VMRR_BINARY    the binary under test; .build/release/vmrr by default
//     VMRR_REPLAYS   replays of each guest, 3; from 25 on the guests run at their full length
//     VMRR_KILLS     recordings killed at a random moment, 8
//     VMRR_SOAK      seconds that the flight recorder runs, 60
//     VMRR_FUZZ      mutated traces, 60
//     VMRR_LINUX     the folder with the Linux guest that `scripts/lab guest` makes; none by default
//     VMRR_LINUX_SECONDS, VMRR_LINUX_REPLAYS    how long that works, and how often it is replayed, 1 and 1
//     VMRR_SEED      the seed of everything random

/// All of them: the one place that says what each test gets.
@Suite(.ownFolder, .keptOnFailure)
enum EndToEnd {}
