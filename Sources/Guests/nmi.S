// nmi: NMIs from an inter-processor interrupt to itself, and from the PIT through an I/O APIC pin in NMI mode.
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
    movl A(wanted), %r13d
step:
    imulq %r10, %rbx
    addq %r11, %rbx
    incq %r12
    cmpl %r13d, A(count)
    jb step
    IO_APIC_WRITE 0x14, $0x00010400     // masked
    movl $1000, %ecx                    // one may be on its way
1:  decl %ecx
    jnz 1b
    cmpl $0, A(nested)
    FAIL_IF ne, "a timer NMI arrived within the handler"
    movl A(count), %eax
    movl %eax, A(ticks)
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
    SAY_DEC ticks
    SAY " by the PIT, "
    SAY_DEC steps
    SAY " steps, checksum "
    SAY_HEX checksum
    SAY "\n"
    EXIT 0

on_nmi:
    pushq %rax
    pushq %rcx
    incl A(count)
    incl A(depth)
    cmpl $1, A(depth)
    je 1f
    incl A(nested)
1:  cmpl $0, A(inner)
    je 3f
    movl $0, A(inner)
    SEND_NMI
    movl $2000, %ecx                    // it must not arrive in here
2:  decl %ecx
    jnz 2b
3:  decl A(depth)
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
    VAR ticks
    VAR steps
    VAR checksum
