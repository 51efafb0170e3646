// nmi: NMIs from an inter-processor interrupt to itself, and from the PIT in two ways: through an I/O APIC pin in NMI
// mode, and through the PIC and the local APIC's LINT0 in NMI mode.
//
// In the second way nothing acknowledges the PIC but the handler, by the poll command; an NMI for which the poll finds
// no tick is not counted (QEMU raises one at each change of the PIC's state while its output is high).
//
// The checks: each self-NMI arrives exactly once; one raised within the handler waits for the IRET and then arrives
// exactly once; the main loop's computation, interrupted by the PIT's NMIs with no exit about, agrees with its closed
// form.

#include "guest.inc"

#define PATIENCE    1000000             /* turns to wait for an NMI: far more than any delay seen */

// R15 is the local APIC and R14 the I/O APIC throughout.

// Raises an NMI here, through the ICR: delivery mode NMI, physical destination. The "self" shorthand is for fixed
// interrupts only.
.macro SEND_NMI
    movl A(apic_id), %eax
    movl %eax, 0x310(%r15)
    movl $0x4400, 0x300(%r15)
.endm

.macro IO_APIC_WRITE index, value
    movl $\index, (%r14)
    movl \value, 0x10(%r14)
.endm

GUEST nmi, "nmi"
    ENTER_LONG_MODE
    PARAM ipis, "ipis", 200
    PARAM hz, "hz", 1000
    PARAM wanted, "ticks", 400
    SET_GATE 2, on_nmi
    movl $LOCAL_APIC, %r15d
    movl $IO_APIC, %r14d
    movl 0x20(%r15), %eax               // APIC ID, in the place where the ICR wants it
    andl $0xFF000000, %eax
    movl %eax, A(apic_id)
    movl $0x1FF, 0xF0(%r15)             // enable, spurious vector 0xFF
    movl $0x10700, 0x350(%r15)          // LINT0 masked
    movl $0x10400, 0x360(%r15)          // LINT1 masked
    xorl %eax, %eax
    outb %al, $0x70                     // NMIs on

    xorl %ebp, %ebp                     // expected
    xorl %ebx, %ebx                     // round
ipi:
    cmpl A(ipis), %ebx
    jae ipis_done
    movl %ebx, %eax
    andl $1, %eax                       // every other handler raises one more
    movl %eax, A(inner)
    leal 1(%rbp, %rax), %ebp
    SEND_NMI
    movl $PATIENCE, %ecx
1:  cmpl %ebp, A(count)
    jae 2f
    pause
    decl %ecx
    jnz 1b
    FAIL "an NMI did not arrive"
2:  movl $200, %ecx                     // time for one too many
1:  decl %ecx
    jnz 1b
    cmpl %ebp, A(count)
    FAIL_IF ne, "an NMI arrived twice"
    cmpl $0, A(nested)
    FAIL_IF ne, "an NMI arrived within the handler, before its IRET"
    incl %ebx
    jmp ipi

ipis_done:
    movl $0, A(inner)
    movl %ebp, A(ipi_count)
    SAY "nmi: IPIs done, now the PIT\n"
    movl $0, A(count)
    movl $1, %ebx                       // x
    xorl %r12d, %r12d                   // steps
    movabsq $LCG_A, %r10
    movabsq $LCG_C, %r11
    PIT_START hz
    movl A(apic_id), %eax
    IO_APIC_WRITE 0x15, %eax            // pin 2's destination
    IO_APIC_WRITE 0x14, $0x00000400     // pin 2: NMI, edge, unmasked
    call compute
    IO_APIC_WRITE 0x14, $0x00010400     // masked
    call settle
    movl A(count), %eax
    movl %eax, A(io_apic_ticks)

    movl $0, A(count)
    movl $1, A(polls)
    movl $0x400, 0x350(%r15)            // LINT0: NMI, unmasked, before the PIC's output can rise
    UNMASK_IRQ 0
    call compute
    OUTB 0x21, 0xFF
    call settle
    movl $0x10700, 0x350(%r15)          // LINT0 masked
    movl A(count), %eax
    movl %eax, A(lint0_ticks)

    cmpl $0, A(nested)
    FAIL_IF ne, "a timer NMI arrived within the handler"
    movq %r12, A(steps)
    movq %rbx, A(checksum)
    movq %r12, %rdi
    movl $1, %r8d
    xorl %r9d, %r9d
    call lcg_jump
    cmpq A(checksum), %r8
    FAIL_IF ne, "the computation differs from its closed form"

    SAY "nmi: ok, "
    SAY_DEC ipi_count
    SAY " by IPI, "
    SAY_DEC io_apic_ticks
    SAY " by the I/O APIC, "
    SAY_DEC lint0_ticks
    SAY " by LINT0, "
    SAY_DEC steps
    SAY " steps, checksum "
    SAY_HEX checksum
    SAY "\n"
    EXIT 0

// Computes until `wanted` NMIs are counted. RBX: x, R12: steps.
compute:
    movl A(wanted), %r13d
1:  imulq %r10, %rbx
    addq %r11, %rbx
    incq %r12
    cmpl %r13d, A(count)
    jb 1b
    ret

// Time for an NMI that is on its way.
settle:
    movl $1000, %ecx
1:  decl %ecx
    jnz 1b
    ret

on_nmi:
    pushq %rax
    pushq %rcx
    cmpl $0, A(polls)
    je 1f
    OUTB 0x20, 0x0C                     // OCW3: poll, which acknowledges
    inb $0x20, %al
    testb $0x80, %al
    jz 2f
    cmpb $0x80, %al
    FAIL_IF ne, "the PIC's poll names another input than IRQ0"
    PIC_EOI
1:  incl A(count)
2:  incl A(depth)
    cmpl $1, A(depth)
    je 3f
    incl A(nested)
3:  cmpl $0, A(inner)
    je 5f
    movl $0, A(inner)
    SEND_NMI
    movl $2000, %ecx                    // it must not arrive in here
4:  decl %ecx
    jnz 4b
5:  decl A(depth)
    popq %rcx
    popq %rax
    iretq

    LIBRARY64
    LIBRARY_LCG

    VAR apic_id
    VAR ipis
    VAR hz
    VAR wanted
    VAR inner
    VAR count
    VAR depth
    VAR nested
    VAR ipi_count
    VAR io_apic_ticks
    VAR lint0_ticks
    VAR polls
    VAR steps
    VAR checksum
