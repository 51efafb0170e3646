// clocks: reads every clock there is and folds all values, in order, into one checksum.
//
// The checks: the TSC never goes back, the PM timer neither (beyond a wrap), both move; the PIT's count stays within
// its divisor and moves; the RTC's fields are a time of day. RDTSC and RDTSCP are executed only where CPUID has them
// or the word `tsc` on the command line allows them. They stay plain instructions: a monitor may replace them.

#include "guest.inc"

#define PM_TIMER    0x608
#define PIT_DIVISOR 11932               /* 100 Hz */

// A register of the RTC, in EAX.
.macro RTC_READ index
    OUTB 0x70, \index
    inb $0x71, %al
    movzbl %al, %eax
.endm

// RDX:RAX's halves joined in RAX, compared with the last one, folded.
.macro TSC_CHECK
    shlq $32, %rdx
    movl %eax, %eax
    orq %rdx, %rax
    cmpq A(last_tsc), %rax
    FAIL_IF b, "the TSC went back"
    cmpq A(last_tsc), %rax
    setne %cl
    movzbl %cl, %ecx
    addl %ecx, A(tsc_moves)
    movq %rax, A(last_tsc)
    incl A(tsc_reads)
    FOLD %rax, %rbx, %r13
.endm

// Reads an RTC field, folds it, and fails unless its value is at most `limit`. In BCD mode both digits are checked.
.macro RTC_FIELD index, limit
    RTC_READ \index
    FOLD %rax, %rbx, %r13
    movl $\limit, %ecx
    call check_field
.endm

GUEST clocks, "clocks"
    ENTER_LONG_MODE
    PARAM rounds, "rounds", 20000

    // A plain word reads as 0 where it is present.
    .subsection 1
tsc_word: .asciz "tsc"
    .subsection 0
    movl $A(tsc_word), %esi
    movl $1, %eax
    call param
    xorl $1, %eax
    movl %eax, A(use_tsc)
    movl %eax, A(use_tscp)
    movl $1, %eax
    cpuid
    btl $4, %edx
    adcl $0, A(use_tsc)
    movl $0x80000000, %eax
    cpuid
    cmpl $0x80000001, %eax
    jb 1f
    movl $0x80000001, %eax
    cpuid
    btl $27, %edx
    adcl $0, A(use_tscp)
1:
    movabsq $LCG_A, %r13
    xorl %ebx, %ebx                     // checksum
    OUTB 0x43, 0x34                     // PIT channel 0, mode 2; its interrupt stays masked
    OUTB 0x40, PIT_DIVISOR & 0xFF
    OUTB 0x40, PIT_DIVISOR >> 8
    // A count is loaded with the timer's next pulse, up to 838 ns later, and can't be read before: three ticks of the PM
    // timer, and one that has begun. Source: Intel 8254 data sheet, mode definitions.
    movw $PM_TIMER, %dx
    inl %dx, %eax
    movl %eax, %ecx
1:  inl %dx, %eax
    subl %ecx, %eax
    andl $0xFFFFFF, %eax
    cmpl $4, %eax
    jb 1b
    inb $0x61, %al                      // gate of counter 2 and speaker off
    andb $0xFC, %al
    outb %al, $0x61
    RTC_READ 0x0B
    movl %eax, A(rtc_mode)
    testb $0x02, %al
    FAIL_IF z, "the RTC is not in 24-hour mode"
    movw $PM_TIMER, %dx
    inl %dx, %eax
    movl %eax, A(last_pm)
    movl $-1, A(last_pit)
    xorl %ebp, %ebp                     // round

next_round:
    cmpl A(rounds), %ebp
    jae done

    cmpl $0, A(use_tsc)
    je 1f
    rdtsc
    TSC_CHECK
1:  cmpl $0, A(use_tscp)
    je 1f
    rdtscp
    TSC_CHECK
1:
    // The timer may have 24 or 32 bits. A step back by up to a sixteenth of its range is a fault; more than that must
    // be a stall of the host.
    movw $PM_TIMER, %dx
    inl %dx, %eax
    FOLD %rax, %rbx, %r13
    movl %eax, %ecx
    subl A(last_pm), %ecx
    movl %eax, A(last_pm)
    andl $0xFFFFFF, %ecx
    cmpl $0xF00000, %ecx
    FAIL_IF ae, "the PM timer went back"
    addq %rcx, A(pm_total)

    OUTB 0x43, 0x00                     // latch channel 0
    inb $0x40, %al
    movzbl %al, %ecx
    inb $0x40, %al
    movzbl %al, %eax
    shll $8, %eax
    orl %ecx, %eax
    FOLD %rax, %rbx, %r13
    cmpl $PIT_DIVISOR, %eax
    FAIL_IF a, "the PIT's count is above its divisor"
    cmpl A(last_pit), %eax
    movl %eax, A(last_pit)
    setne %al
    movzbl %al, %eax
    addl %eax, A(pit_moves)

    inb $0x61, %al
    movzbl %al, %eax
    FOLD %rax, %rbx, %r13
    testb $0x03, %al
    FAIL_IF nz, "port 0x61 does not keep its two low bits"

    testl $3, %ebp                      // the RTC every fourth round
    jnz 3f
    movl $100000, %r12d                 // an update lasts 2 ms at most
1:  RTC_READ 0x0A
    FOLD %rax, %rbx, %r13
    testb $0x80, %al
    jz 2f
    decl %r12d
    jnz 1b
    FAIL "the RTC is always updating"
2:  RTC_FIELD 0, 59
    RTC_FIELD 2, 59
    RTC_FIELD 4, 23
    incl A(rtc_reads)
3:  incl %ebp
    jmp next_round

done:
    movq %rbx, A(checksum)
    cmpl $100, A(rounds)                // too few rounds prove no movement
    jb 1f
    cmpl $2, A(pit_moves)
    FAIL_IF b, "the PIT stands still"
    cmpq $0, A(pm_total)
    FAIL_IF e, "the PM timer stands still"
    cmpl $0, A(tsc_reads)
    je 1f
    cmpl $2, A(tsc_moves)
    FAIL_IF b, "the TSC stands still"
1:  SAY "clocks: ok, "
    SAY_DEC rounds
    SAY " rounds, "
    SAY_DEC tsc_reads
    SAY " TSC reads, "
    SAY_DEC rtc_reads
    SAY " RTC reads, checksum "
    SAY_HEX checksum
    SAY "\n"
    EXIT 0

// EAX: an RTC field as read, ECX: its limit.
check_field:
    testb $0x04, A(rtc_mode)            // binary
    jnz 2f
    movl %eax, %edx
    andl $15, %eax
    cmpl $9, %eax
    ja bad_field
    shrl $4, %edx
    imull $10, %edx, %edx
    addl %edx, %eax
2:  cmpl %ecx, %eax
    ja bad_field
    ret
bad_field:
    FAIL "the RTC's time is no time of day"

    LIBRARY64

    VAR rounds
    VAR use_tsc
    VAR use_tscp
    VAR last_tsc
    VAR tsc_reads
    VAR tsc_moves
    VAR last_pm
    VAR pm_total
    VAR last_pit
    VAR pit_moves
    VAR rtc_mode
    VAR rtc_reads
    VAR checksum
