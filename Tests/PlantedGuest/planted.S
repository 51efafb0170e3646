// planted: a guest that does the same round again and again, and in one of them something wrong.
//
// Parameters: fault=N (which of the faults below), at=R (the round, from 1), rounds=R, hz=N (0: no timer), user=1 (faults 0
// to 10 are made at CPL 3; the first 2 MiB are user mode's then). A round computes, copies, reads and writes ports; all that
// it touches is the same after each round but `rounds_done` and the stack. The faults are ordinary instructions, so that
// whoever looks for one has to tell it from its neighbours.

#include "../../Sources/Guests/guest.inc"

#define PATTERN     0x600D600D
#define CONSTANT    0x5A5A5A5A
#define USER_MODE_STACK (STACK_TOP - 0x800)

GUEST planted, "planted"
    ENTER_LONG_MODE
    PARAM fault, "fault", 0
    PARAM at, "at", 50
    PARAM rounds, "rounds", 100
    PARAM hz, "hz", 0
    PARAM user, "user", 0
    cmpl $0, A(user)
    je 1f
    SET_UP_TSS
    SET_GATE 6, user_done
    orl $4, PML4                        // user mode's as well
    orl $4, PDPT
    orl $4, PD
    movq %cr3, %rax
    movq %rax, %cr3
    movl $USER_DATA, %eax               // the only data segments, as in GO_TO_USER
    movl %eax, %ds
    movl %eax, %es
1:  SET_GATE IRQ_BASE, on_tick
    movl $PATTERN, A(value)
    movl $PATTERN, A(neighbour)
    movl $CONSTANT, %r12d
    cmpl $0, A(hz)
    je next_round
    PIT_START hz
    UNMASK_IRQ 0
    sti

    LABEL next_round
    incl A(rounds_done)
    movl $200, %ecx                     // work
    movl $1, %eax
1:  imull $1664525, %eax, %eax
    addl $1013904223, %eax
    decl %ecx
    jnz 1b
    movl $A(source), %esi               // a copy that fits
    movl $A(buffer), %edi
    movl $16, %ecx
    rep movsb
    inb $0x61, %al
    outb %al, $POST

    movl A(rounds_done), %eax
    cmpl A(at), %eax
    jne healthy
    movl A(fault), %eax
    cmpl $FAULTS, %eax
    jae healthy
    movl A(faults)(, %rax, 4), %eax
    cmpl $0, A(user)
    jne as_user
    call *%rax
    jmp healthy
as_user:
    pushq $USER_DATA
    pushq $USER_MODE_STACK
    pushq $2
    pushq $USER_CODE
    pushq $A(in_user_mode)
    iretq
in_user_mode:
    call *%rax
    ud2                                 // back to the kernel, on any KVM
user_done:
    FROM_USER 8
    movl $STACK_TOP, %esp
healthy:
    movb A(rounds_done), %al
    outb %al, $POST
    movl A(rounds_done), %eax
    cmpl A(rounds), %eax
    jb next_round
    cli
    EXIT 0

    LABEL on_tick
    pushq %rax
    incl A(ticks)
    movl A(rounds_done), %eax
    cmpl $11, A(fault)
    jne 1f
    cmpl A(at), %eax
    jb 1f
    LABEL clobber
    movl $0, %r12d                      // fault 11: a register that the handler forgets to keep
1:  PIC_EOI
    popq %rax
    iretq

    .balign 4
faults:
    .long A(fault0), A(fault1), A(fault2), A(fault3), A(fault4), A(fault5), A(fault6), A(fault7), A(fault8), A(fault9)
    .long A(fault10), A(fault11), A(fault12), A(fault13), A(fault14), A(fault15), A(fault16), A(fault17)
faults_end:
    .set FAULTS, (faults_end - faults) / 4

fault0:                                 // a stray store
    LABEL wrong0
    movl $0xBAD, A(value)
    ret
fault1:                                 // one byte, through a pointer that is off by one
    movl $A(buffer), %ebx
    LABEL wrong1
    movb $0x77, 16(%rbx)
    ret
fault2:                                 // a copy that is a byte too long
    movl $A(source), %esi
    movl $A(buffer), %edi
    movl $17, %ecx
    LABEL wrong2
    rep movsb
    ret
fault3:                                 // an exchange
    movl $0xBAD, %ebx
    LABEL wrong3
    xchgl %ebx, A(value)
    ret
fault4:                                 // an addition
    movl $1, %ebx
    LABEL wrong4
    lock xaddl %ebx, A(value)
    ret
fault5:                                 // a push onto the wrong stack
    movq %rsp, %rbx
    movl $A(value) + 8, %esp
    LABEL wrong5
    pushq $0x55
    movq %rbx, %rsp
    ret
fault6:                                 // a page becomes read-only
    LABEL wrong6
    andl $~2, PD + 8 * 5
    ret
fault7:                                 // a page is mapped elsewhere
    LABEL wrong7
    movl $0x800083, PD + 8 * 6
    ret
fault8:                                 // an entry is cleared by a fill
    movl $PD + 8 * 7, %edi
    xorl %eax, %eax
    LABEL wrong8
    stosq
    ret
fault9:                                 // a gate leads elsewhere
    LABEL wrong9
    movw $0x1234, IDT_BASE + 0x80 * 16
    ret
fault10:                                // compare and exchange
    movl $PATTERN, %eax
    movl $0xBAD, %ebx
    LABEL wrong10
    lock cmpxchgl %ebx, A(value)
    ret
fault11:                                // in on_tick
    ret
fault12:                                // the interrupt controller's mask
    OUTB 0x21, 0xFB
    ret
fault13:                                // the local APIC's task priority
    movl $LOCAL_APIC + 0x80, %ebx       // too high for a displacement
    movl $0x50, (%rbx)
    ret
fault14:                                // the serial line's modem control
    movw $COM1 + 4, %dx
    movb $0x0B, %al
    outb %al, %dx
    ret
fault15:                                // a control bit
    movq %cr4, %rbx
    orl $4, %ebx                        // TSD
    movq %rbx, %cr4
    ret
fault16:                                // where SYSCALL leads
    movl $0xC0000082, %ecx
    movl $0x1234, %eax
    xorl %edx, %edx
    wrmsr
    ret
fault17:                                // the timer's mode
    OUTB 0x43, 0xB6
    ret

    LIBRARY64

    VAR tss, TSS_BYTES
    VAR fault
    VAR at
    VAR rounds
    VAR hz
    VAR user
    VAR ticks
    VAR rounds_done
    VAR source, 32
    VAR buffer, 16
    VAR value
    VAR neighbour
