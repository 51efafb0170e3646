// nested-irq: four interrupt priorities, handlers that let higher ones in, EOIs by MMIO.
//
//   0x80  IPI to itself, sent by the PIT's handler: must arrive within it
//   0x60  local APIC timer, periodic
//   0x50  IPI to itself, sent by the 0x80 handler: must wait until that one has ended
//   0x40  PIT through I/O APIC pin 2
//
// The checks: no handler ever starts within one of its own or a higher priority class; each IPI arrives exactly once
// and where it must; at the end no interrupt is in service, and the main loop's computation agrees with its closed
// form.

#include "guest.inc"

#define PATIENCE    1000000             /* turns to wait for an IPI: far more than any delay seen */

// R15 is the local APIC and R14 the I/O APIC throughout.

// Opens a handler of a priority class: what it interrupted must be of a lower one. The old class goes on the stack.
.macro HANDLER class, counter
    pushq %rax
    pushq %rcx
    incl A(\counter)
    movl A(class), %eax
    pushq %rax
    cmpl $\class, %eax
    jb .Lfine\@
    movl %eax, A(violated)              // the last one is reported
    movl $\class, A(violator)
    incl A(violations)
.Lfine\@:
    testl %eax, %eax
    jz .Loutermost\@
    incl A(nested)
.Loutermost\@:
    movl $\class, A(class)
    sti
.endm

.macro HANDLER_END
    cli
    popq %rax
    movl %eax, A(class)
    movl $0, 0xB0(%r15)                 // EOI
    popq %rcx
    popq %rax
    iretq
.endm

.macro DELAY turns
    movl $\turns, %ecx
.Ldelay\@:
    decl %ecx
    jnz .Ldelay\@
.endm

.macro SELF_IPI vector
    movl $0x44000 + \vector, 0x300(%r15)
.endm

// Runs `stop` once enough interrupts came, so that a slow machine gets back to its main loop.
.macro STOP_WHEN_DONE stop:vararg
    movl A(timer_count), %eax
    addl A(pit_count), %eax
    cmpl A(wanted), %eax
    jb .Lgo_on\@
    \stop
.Lgo_on\@:
.endm

.macro IO_APIC_WRITE index, value
    movl $\index, (%r14)
    movl \value, 0x10(%r14)
.endm

GUEST nested_irq, "nested-irq"
    ENTER_LONG_MODE
    PARAM hz, "hz", 500
    PARAM timer_hz, "timer-hz", 700
    PARAM wanted, "ticks", 1500
    SET_GATE 0x40, on_pit
    SET_GATE 0x50, on_low_ipi
    SET_GATE 0x60, on_timer
    SET_GATE 0x80, on_high_ipi
    SET_GATE 0xFF, on_spurious
    movl $LOCAL_APIC, %r15d
    movl $IO_APIC, %r14d
    movl $0x1FF, 0xF0(%r15)             // enable, spurious vector 0xFF
    movl $0, 0x80(%r15)                 // TPR: accept all
    movl $0x10700, 0x350(%r15)          // LINT0, the PICs' way in, masked
    movl $0x10400, 0x360(%r15)          // LINT1 masked

    movl A(timer_hz), %ecx
    cmpl $1, %ecx
    adcl $0, %ecx
    movl $1000000000, %eax
    xorl %edx, %edx
    divl %ecx
    movl $0x0B, 0x3E0(%r15)             // divide by 1
    movl $0x20060, 0x320(%r15)          // periodic, vector 0x60
    movl %eax, 0x380(%r15)              // initial count: runs from here on

    PIT_START hz
    movl 0x20(%r15), %eax
    andl $0xFF000000, %eax
    IO_APIC_WRITE 0x15, %eax            // destination: this APIC
    IO_APIC_WRITE 0x14, $0x00000040     // pin 2: fixed, vector 0x40, edge

    movl $1, %ebx                       // x
    xorl %r12d, %r12d                   // steps
    movabsq $LCG_A, %r10
    movabsq $LCG_C, %r11
    movl A(wanted), %r13d
    sti
step:
    imulq %r10, %rbx
    addq %r11, %rbx
    incq %r12
    movl A(timer_count), %eax
    addl A(pit_count), %eax
    cmpl %r13d, %eax
    jb step

    // The last ones may be on their way, IPIs too.
    movl $0x30060, 0x320(%r15)          // timer masked
    cli
    IO_APIC_WRITE 0x14, $0x00010040
    sti
    DELAY 2000
    movl $PATIENCE, %ecx
1:  movl A(high_sent), %eax
    cmpl A(low_count), %eax
    je 2f
    decl %ecx
    jnz 1b
2:  cli
    movq %rbx, A(checksum)
    movq %r12, A(steps)

    cmpl $0, A(violations)
    je 1f
    SAY "nested-irq: "
    SAY_DEC violations
    SAY " times, the last by class "
    SAY_DEC violator
    SAY " over class "
    SAY_DEC violated
    SAY "\n"
    FAIL "an interrupt nested within one of its own or a higher priority"
1:
    cmpl $0, A(misplaced)
    FAIL_IF ne, "an IPI arrived too late or too early"
    movl A(high_sent), %eax
    cmpl A(high_count), %eax
    FAIL_IF ne, "an IPI of high priority arrived twice or never"
    cmpl A(low_count), %eax
    FAIL_IF ne, "an IPI of low priority arrived twice or never"
    cmpl $0, A(class)
    FAIL_IF ne, "a handler never ended"
    xorl %eax, %eax
    movl $0x100, %ecx                   // the eight in-service registers
1:  orl (%r15, %rcx), %eax
    addl $0x10, %ecx
    cmpl $0x180, %ecx
    jne 1b
    testl %eax, %eax
    FAIL_IF nz, "an interrupt is still in service"
    movq %r12, %rdi
    movl $1, %r8d
    xorl %r9d, %r9d
    call lcg_jump
    cmpq A(checksum), %r8
    FAIL_IF ne, "the computation differs from its closed form"

    movl A(timer_count), %eax
    addl A(pit_count), %eax
    addl A(high_count), %eax
    addl A(low_count), %eax
    movl %eax, A(total)
    SAY "nested-irq: ok, "
    SAY_DEC total
    SAY " interrupts ("
    SAY_DEC timer_count
    SAY " timer, "
    SAY_DEC pit_count
    SAY " PIT, "
    SAY_DEC high_sent
    SAY " IPI pairs), "
    SAY_DEC nested
    SAY " nested, checksum "
    SAY_HEX checksum
    SAY "\n"
    EXIT 0

on_pit:
    HANDLER 4, pit_count
    testl $3, A(pit_count)
    jnz 3f
    // The IPI is of higher priority: it must come in right here.
    incl A(high_sent)
    SELF_IPI 0x80
    movl $PATIENCE, %ecx
1:  movl A(high_count), %eax
    cmpl A(high_sent), %eax
    je 2f
    decl %ecx
    jnz 1b
    incl A(misplaced)
2:
3:  DELAY 100
    STOP_WHEN_DONE call mask_pit
    HANDLER_END

on_timer:
    HANDLER 6, timer_count
    DELAY 50
    STOP_WHEN_DONE movl $0x30060, 0x320(%r15)
    HANDLER_END

on_high_ipi:
    HANDLER 8, high_count
    // This IPI is of lower priority: it must not come in here.
    movl A(low_count), %eax
    SELF_IPI 0x50
    DELAY 200
    cmpl A(low_count), %eax
    je 1f
    incl A(misplaced)
1:  HANDLER_END

on_low_ipi:
    HANDLER 5, low_count
    HANDLER_END

on_spurious:
    iretq

// Index and data register are a pair: no interrupt between them. Called with interrupts on.
mask_pit:
    cli
    IO_APIC_WRITE 0x14, $0x00010040
    sti
    ret

    LIBRARY64
    LIBRARY_LCG

    VAR hz
    VAR timer_hz
    VAR wanted
    VAR timer_count
    VAR pit_count
    VAR high_sent
    VAR high_count
    VAR low_count
    VAR class
    VAR nested
    VAR violations
    VAR violator
    VAR violated
    VAR misplaced
    VAR total
    VAR steps
    VAR checksum
