// The built-in guests: complete images, as read-only data. Nothing here is code of the host.
//
// Each is a multiboot 1 image (a.out kludge) loaded and entered at 1 MiB in 32-bit protected mode, except `realmode`.
// Each ends by itself with a value written to the debug exit port 0xF4: 0 when its own check passed, 1 after a line
// `NAME: FAIL: ...` (lost-update: `lost-update: LOST at ...`) on COM1. `triple` ends in a shutdown. Parameters are
// `key=value` words on the command line, decimal. All but `churn` need 8 to 18 MiB of memory.
#pragma once

/// A guest's image: the bytes from `start` up to, not including, `end`. Its symbols: for each an address and a size of
/// four bytes each, little-endian, and a name ended by 0.
struct guest_image {
    const unsigned char *_Nonnull start;
    const unsigned char *_Nonnull end;
    const unsigned char *_Nonnull symbols_start;
    const unsigned char *_Nonnull symbols_end;
};

// Swift does not import arrays of unknown length, so each image is reached through a function.
#define GUEST(name)                                                               \
    extern const unsigned char guest_##name##_start[], guest_##name##_end[],                      \
        guest_##name##_symbols_start[], guest_##name##_symbols_end[];                             \
    static inline struct guest_image guest_##name(void) {                                         \
        return (struct guest_image){guest_##name##_start, guest_##name##_end,                     \
                                    guest_##name##_symbols_start, guest_##name##_symbols_end};    \
    }

/// hello: prints "hello, world" on COM1 and the debug console, in 32-bit mode.
/// Parameters: none. Interrupts: none.
/// Check: COM1 has a UART. Last line: `hello: ok, 13 characters`.
GUEST(hello)

/// echo: echoes what is typed on COM1; each line comes back reversed, with a running checksum.
/// Parameters: none. Ends on the line `quit` or Ctrl-D. Interrupts: IRQ4 through the PIC; HLT when idle.
/// Check: bytes consumed = bytes received, by number and checksum. Last line: `echo: ok, L lines, B bytes, checksum X`.
GUEST(echo)

/// ticker: sleeps in HLT, woken by the PIT.
/// Parameters: hz=1000, ticks=1000. Interrupts: IRQ0 through the PIC.
/// Check: each HLT ended by one tick; ticks at HLT + ticks elsewhere = all ticks.
/// Last line: `ticker: ok, T ticks, W wake-ups, checksum X` (X depends on the PIT's counts).
GUEST(ticker)

/// spin: computes without a single exit while the PIT interrupts; only the EOIs exit.
/// Parameters: hz=250, ticks=1200. Interrupts: IRQ0 through the PIC.
/// Check: registers and memory after N steps equal a closed form. Last line: `spin: ok, T ticks, N steps, checksum X`.
GUEST(spin)

/// lost-update: a race between main loop and interrupt handler that fails about one run in seven.
/// Parameters: hz=1000, ticks=1200, work=15000 (instructions a turn), check=64 (turns between checks).
/// Interrupts: IRQ0 through the PIC.
/// Check: the shared counter equals the sum of the private ones. Fails with probability 1 - (1 - 2/work)^ticks when
/// ticks come at random instructions: `lost-update: LOST at iteration I, tick T, shared=S, expected=E`, value 1.
/// Last line otherwise: `lost-update: ok, T ticks, I iterations, checksum X`.
GUEST(lost_update)

/// clocks: reads TSC, PM timer, PIT, RTC and port 0x61 in turn, and folds all values into one checksum.
/// Parameters: rounds=20000; the word `tsc` allows RDTSC and RDTSCP where CPUID lacks them. Interrupts: none.
/// Check: TSC and PM timer never go back, PIT within its divisor, RTC a time of day, all move.
/// Last line: `clocks: ok, R rounds, T TSC reads, S RTC reads, checksum X`.
GUEST(clocks)

/// strings: REP INS, OUTS, MOVS, STOS, LODS, CMPS, SCAS over page boundaries, both directions, ports, hole and APIC.
/// Parameters: rounds=3. Interrupts: none.
/// Check: results against plain loops, end values of RSI, RDI, RCX, guard bytes. Last line:
/// `strings: ok, R rounds, checksum X` (X depends on port values); one line on the debug console by REP OUTSB.
GUEST(strings)

/// churn: dirties pages in a pattern that depends on a seed, with few exits.
/// Parameters: seed=1, pages=256 (a round), rounds=200, span=4096 (pages from 4 MiB on; cut to what memory there is).
/// Interrupts: none. Check: sum over memory in closed form; subtracting the same pattern leaves zeros.
/// Last line: `churn: ok, W writes, S pages, checksum X`, the same in every run with the same parameters.
GUEST(churn)

/// user: ring 3 with SYSCALL, demand-zero pages, write-protect faults, #UD, #DE, #GP; IRETQ back.
/// Parameters: hz=1000, rounds=2000, syscall=0|1 (system calls by UD1 or by SYSCALL; without it, one SYSCALL is tried,
/// and UD1 taken, with a line that says so, where it reaches LSTAR still at CPL 3).
/// Interrupts: IRQ0 through the PIC, in ring 3 only. Exits: port 0x80 in ring 3 each round.
/// Check: hashes on both sides agree, pages and registers survive, each kind of entry counted exactly.
/// Last line: `user: ok, R rounds, C system calls, checksum X`, the same in every run with the same parameters.
GUEST(user)

/// smc: patches its own immediates and instructions, in 32-bit and in 64-bit mode.
/// Parameters: rounds=5000. Interrupts: none. Check: a model without patches gives the same values.
/// Last line: `smc: ok, R rounds in each mode, checksum X`, the same in every run with the same parameters.
GUEST(smc)

/// nested-irq: four priorities that nest: local APIC timer, PIT through the I/O APIC, two IPIs to itself.
/// Parameters: hz=500, timer-hz=700, ticks=1500 (timer and PIT together). Interrupts: vectors 0x40, 0x50, 0x60, 0x80.
/// Check: none nests within its own or a higher priority; IPIs arrive once, where they must; nothing left in service;
/// the main loop's result in closed form. Last line:
/// `nested-irq: ok, I interrupts (T timer, P PIT, Q IPI pairs), N nested, checksum X`.
GUEST(nested_irq)

/// nmi: NMIs by an IPI to itself, by the PIT through I/O APIC pin 2 in NMI mode, and by the PIT through PIC and LINT0.
/// Parameters: ipis=200, hz=1000, ticks=400 (each way). Interrupts: NMI only; the PIC is acknowledged by polling.
/// Check: each arrives once; one raised in the handler waits for the IRET; the main loop's result in closed form.
/// Last line: `nmi: ok, I by IPI, T by the I/O APIC, L by LINT0, N steps, checksum X`.
GUEST(nmi)

/// fpu: x87 and SSE arithmetic in ring 3 under a kernel that saves, spoils and restores the FXSAVE state.
/// Parameters: hz=1000, ticks=1000, syscall=0|1 (as in `user`). Interrupts: IRQ0 through the PIC, in ring 3 only.
/// Exits: port 0x80 in ring 3 every 64 steps. At CPL 0 it needs FXSAVE and FXRSTOR, no arithmetic.
/// Check: exact integer results and roundings, x87 stack, XMM15, MXCSR; the kernel's own image was loaded in between.
/// Last line: `fpu: ok, T ticks, N steps`.
GUEST(fpu)

/// paging: pages remapped all the time, in long mode or in 32-bit, PAE and long-mode paging in turn.
/// Parameters: rounds=500, modes=4 (bit 0: two levels, bit 1: PAE, bit 2: long mode). Interrupts: none. The default
/// passes everywhere; `modes=7` is for hardware and full emulators, as a software KVM triple-faults at CR0.PG there.
/// Check: each frame holds what the mapping says, both ways.
/// Last line: `paging: ok, R rounds in each mode of M, checksum X`, the same in every run with the same parameters.
GUEST(paging)

/// triple: ends in a triple fault on purpose.
/// Parameters: none. Interrupts: none. Expected end: a shutdown, after the line `triple: faulting now`.
GUEST(triple)

/// realmode: 512 bytes of 16-bit code, to be loaded at 0x7C00 and entered at 0000:7C00 (not multiboot).
/// Parameters: none. Interrupts: IRQ0 through the PIC and the real-mode vector table; HLT.
/// Check: a block copied between segments, each HLT ended by a tick. Last line: `realmode: ok, 100 ticks`.
GUEST(realmode)

/// bios: no guest, but BIOS services for a kernel that is entered in real mode; see the file for what a loader fills in.
GUEST(bios)

#undef GUEST
