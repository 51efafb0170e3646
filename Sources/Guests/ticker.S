// ticker: sleeps in HLT and is woken by the PIT.
//
// The check: each HLT returned because of exactly one interrupt taken at it, and the interrupts taken there plus those
// that came at other places (two in a row, after a late wake-up) are all the ticks that the handler counted.

#include "guest.inc"

GUEST ticker, "ticker"
    ENTER_LONG_MODE
    PARAM hz, "hz", 1000
    PARAM wanted, "ticks", 1000
    SET_GATE IRQ_BASE, on_tick
    PIT_START hz
    UNMASK_IRQ 0

    movabsq $LCG_A, %r13
    xorl %ebx, %ebx                     // checksum over the tick numbers and the PIT's count at each wake-up
sleep:
    movl A(ticks), %eax
    cmpl A(wanted), %eax
    jae done
    movl $1, A(armed)
    sti                                 // takes effect after HLT has begun: no wake-up is lost
    hlt
after_hlt:
    cli
    cmpl $0, A(armed)
    FAIL_IF ne, "HLT returned without an interrupt"
    incl A(wakeups)

    OUTB 0x43, 0x00                     // latch channel 0
    inb $0x40, %al
    movzbl %al, %ecx
    inb $0x40, %al
    movzbl %al, %eax
    shll $8, %eax
    orl %ecx, %eax
    FOLD %rax, %rbx, %r13
    movl A(ticks), %eax
    FOLD %rax, %rbx, %r13
    jmp sleep

done:
    movq %rbx, A(checksum)
    movl A(woken), %eax
    cmpl A(wakeups), %eax
    FAIL_IF ne, "wake-ups do not agree with the ticks taken at HLT"
    addl A(elsewhere), %eax
    cmpl A(ticks), %eax
    FAIL_IF ne, "a tick was counted twice or not at all"
    SAY "ticker: ok, "
    SAY_DEC ticks
    SAY " ticks, "
    SAY_DEC wakeups
    SAY " wake-ups, checksum "
    SAY_HEX checksum
    SAY "\n"
    EXIT 0

on_tick:
    pushq %rax
    incl A(ticks)
    cmpl $0, A(armed)
    je 1f
    cmpl $A(after_hlt), 8(%rsp)
    jne 1f
    movl $0, A(armed)
    incl A(woken)
    jmp 2f
1:  incl A(elsewhere)
2:  PIC_EOI
    popq %rax
    iretq

    LIBRARY64

    VAR hz
    VAR wanted
    VAR ticks
    VAR armed
    VAR wakeups
    VAR woken
    VAR elsewhere
    VAR checksum
