// spin: computes without a single exit while the PIT interrupts. The only exits are the handler's EOIs.
//
// The check: register and memory contents after n steps must be what the closed form gives for n steps.

#include "guest.inc"

#define TABLE SCRATCH                   /* 512 entries of 8 bytes */

GUEST spin, "spin"
    ENTER_LONG_MODE
    PARAM hz, "hz", 250
    PARAM wanted, "ticks", 1200
    SET_GATE IRQ_BASE, on_tick

    movl $TABLE, %edi
    xorl %eax, %eax
    movl $512, %ecx
    rep stosq

    movl $1, %ebx                       // x
    xorl %r12d, %r12d                   // steps
    movabsq $LCG_A, %r13
    movabsq $LCG_C, %r14
    movl A(wanted), %r15d
    PIT_START hz
    UNMASK_IRQ 0
    sti
step:
    imulq %r13, %rbx
    addq %r14, %rbx
    movl %r12d, %eax
    andl $511, %eax
    addq %rbx, TABLE(, %rax, 8)
    incq %r12
    cmpl %r15d, A(ticks)
    jb step
    cli
    movq %r12, A(steps)

    xorl %edx, %edx
    xorl %ecx, %ecx
1:  addq TABLE(, %rcx, 8), %rdx
    incl %ecx
    cmpl $512, %ecx
    jne 1b
    movq %rdx, %rbp

    movq %r12, %rdi
    movl $1, %r8d
    xorl %r9d, %r9d
    call lcg_jump
    cmpq %rbx, %r8
    FAIL_IF ne, "the register result differs from the closed form"
    cmpq %rbp, %r9
    FAIL_IF ne, "the table in memory differs from the closed form"

    rolq $7, %rbp
    xorq %rbx, %rbp
    movq %rbp, A(checksum)
    SAY "spin: ok, "
    SAY_DEC ticks
    SAY " ticks, "
    SAY_DEC steps
    SAY " steps, checksum "
    SAY_HEX checksum
    SAY "\n"
    EXIT 0

on_tick:
    pushq %rax
    incl A(ticks)
    PIC_EOI
    popq %rax
    iretq

    LIBRARY64
    LIBRARY_LCG

    VAR hz
    VAR wanted
    VAR ticks
    VAR steps
    VAR checksum
