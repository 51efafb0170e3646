// lost-update: a race between main loop and interrupt handler, to be found, replayed and bisected.
//
// Both increment `shared` without care. The main loop's load, increment and store are three instructions: a tick
// between them is lost. Each side also counts what it did in a counter of its own, and every `check` iterations main
// compares. Two of about `work` instruction boundaries lose a tick, so a run fails with 1 - (1 - 2 / work)^ticks:
// 15 % for the defaults, if ticks come at random instructions.

#include "guest.inc"

GUEST lost_update, "lost-update"
    ENTER_LONG_MODE
    PARAM hz, "hz", 1000
    PARAM wanted, "ticks", 1200
    PARAM work, "work", 15000
    PARAM check, "check", 64
    SET_GATE IRQ_BASE, on_tick

    movl A(work), %eax
    shrl $2, %eax                       // the loop below has four instructions a turn
    cmpl $1, %eax
    adcl $0, %eax
    movl %eax, %ebp
    movl A(check), %r15d
    cmpl $1, %r15d
    adcl $0, %r15d
    movl $1, %ebx                       // x
    movabsq $LCG_A, %r13
    movabsq $LCG_C, %r14
    PIT_START hz
    UNMASK_IRQ 0
    sti

    LABEL next_check
    movl %r15d, %r12d
    LABEL iterate
    movl %ebp, %ecx
1:  imulq %r13, %rbx
    addq %r14, %rbx
    decl %ecx
    jnz 1b

    movl A(shared), %eax                // the bug: a tick here ...
    incl %eax                           // ... or here is overwritten
    movl %eax, A(shared)

    incl A(main_count)
    movl A(ticks), %eax
    cmpl A(wanted), %eax
    jae compare
    decl %r12d
    jnz iterate

    LABEL compare
    cli
    movl A(main_count), %eax
    outb %al, $POST
    addl A(ticks), %eax
    movl %eax, A(expected)
    cmpl A(shared), %eax
    jne lost
    movl A(ticks), %eax
    cmpl A(wanted), %eax
    jae done
    sti
    jmp next_check

    LABEL lost
    SAY "lost-update: LOST at iteration "
    SAY_DEC main_count
    SAY ", tick "
    SAY_DEC ticks
    SAY ", shared="
    SAY_DEC shared
    SAY ", expected="
    SAY_DEC expected
    SAY "\n"
    EXIT 1

    LABEL done
    movl A(main_count), %edi
    imulq %rbp, %rdi
    movl $1, %r8d
    xorl %r9d, %r9d
    call lcg_jump
    cmpq %rbx, %r8
    FAIL_IF ne, "the work differs from the closed form"
    movq %rbx, A(checksum)
    SAY "lost-update: ok, "
    SAY_DEC ticks
    SAY " ticks, "
    SAY_DEC main_count
    SAY " iterations, checksum "
    SAY_HEX checksum
    SAY "\n"
    EXIT 0

    LABEL on_tick
    pushq %rax
    movl A(shared), %eax
    incl %eax
    movl %eax, A(shared)
    incl A(ticks)
    PIC_EOI
    popq %rax
    iretq

    LIBRARY64
    LIBRARY_LCG

    VAR hz
    VAR wanted
    VAR work
    VAR check
    VAR shared
    VAR ticks
    VAR main_count
    VAR expected
    VAR checksum
