// user: ring 3 code and a kernel below it that takes its system calls, faults and interrupts.
//
// Each round in user mode: a SYSCALL that hashes a number; a read of an unmapped page (mapped on demand, zeroed, read
// only); a write to it (made writable); UD2; a division by zero; HLT or a non-canonical address (#GP); some
// computing, in which the PIT may interrupt; a SYSCALL that unmaps the page again. The kernel returns by IRETQ. Where a
// SYSCALL tried at the start stays at CPL 3, system calls are made by UD1.
//
// The checks: user and kernel compute the same hash, pages come zeroed and keep what is written, error codes and
// faulting instructions are the expected ones, registers survive, and each kind of entry was taken exactly as often as
// the rounds say.

#include "guest.inc"

#define FRAMES      0x400000            /* page frames for the demand-zero pages */
#define FIRST_PAGE  16                  /* page table entries 16 to 79 are demand-zero */
#define PAGES       64

#define SYS_END     0
#define SYS_HASH    1
#define SYS_UNMAP   2

GUEST user, "user"
    ENTER_LONG_MODE
    PARAM hz, "hz", 1000
    PARAM rounds, "rounds", 2000
    SET_UP_USER_MODE
    SET_GATE 0, on_divide
    SET_GATE 13, on_protection
    SET_GATE 14, on_page_fault
    SET_GATE IRQ_BASE, on_tick

    PIT_START hz
    UNMASK_IRQ 0
    movl A(rounds), %eax
    orq %rax, %r12
    GO_TO_USER USER_START, USER_FLAGS

system_call:
    incl A(system_calls)
    cmpl $SYS_HASH, %eax
    je sys_hash
    cmpl $SYS_UNMAP, %eax
    je sys_unmap
    cmpl $SYS_END, %eax
    je sys_end
    FAIL "an unknown system call"

sys_hash:
    movabsq $LCG_A, %rcx
    movq A(hash), %rax
    FOLD %rdi, %rax, %rcx
    movq %rax, A(hash)
    iretq

// EDI: page, RSI: what its first quadword must hold, seen from the frame.
sys_unmap:
    cmpl $PAGES, %edi
    FAIL_IF ae, "a page number out of range"
    movl %edi, %eax
    shll $12, %eax
    cmpq %rsi, FRAMES(%rax)
    FAIL_IF ne, "a user page's frame does not hold what was written"
    movq $0, USER_PT + 8 * FIRST_PAGE(, %rdi, 8)
    movabsq $USER + FIRST_PAGE * 4096, %rcx
    addq %rcx, %rax
    invlpg (%rax)
    iretq

on_page_fault:
    FROM_USER 16
    pushq %rax
    pushq %rcx
    pushq %rdi
    movq %cr2, %rcx
    movabsq $USER + FIRST_PAGE * 4096, %rax
    subq %rax, %rcx
    shrq $12, %rcx
    cmpq $PAGES, %rcx
    jae bad_page_fault
    movl %ecx, %edi
    shll $12, %edi
    leal FRAMES(%rdi), %edi             // the page's frame
    movl 24(%rsp), %eax
    cmpl $4, %eax                       // user, read, not present
    je 1f
    cmpl $7, %eax                       // user, write, present
    jne bad_page_fault
    incl A(write_faults)
    leal 7(%rdi), %eax
    jmp 2f
1:  incl A(missing_faults)
    pushq %rcx
    pushq %rdi
    xorl %eax, %eax
    movl $512, %ecx
    rep stosq
    popq %rdi
    popq %rcx
    leal 5(%rdi), %eax
2:  movq %rax, USER_PT + 8 * FIRST_PAGE(, %rcx, 8)
    movq %cr2, %rax
    invlpg (%rax)
    popq %rdi
    popq %rcx
    popq %rax
    addq $8, %rsp
    iretq
bad_page_fault:                         // at a wrong address or with a wrong error code
    addq $24, %rsp
    pushq $14
    jmp unexpected

other_undefined:
    pushq %rax
    movq 8(%rsp), %rax
    cmpw $UD2, (%rax)
    FAIL_IF ne, "#UD at a wrong instruction"
    incl A(undefineds)
    addq $2, 8(%rsp)
    popq %rax
    iretq

on_divide:
    FROM_USER 8
    pushq %rax
    movq 8(%rsp), %rax
    cmpw $0xF1F7, (%rax)                // divl %ecx
    FAIL_IF ne, "#DE at a wrong instruction"
    incl A(divides)
    addq $2, 8(%rsp)
    popq %rax
    iretq

on_protection:
    FROM_USER 16
    pushq %rax
    cmpq $0, 8(%rsp)
    FAIL_IF ne, "#GP with a wrong error code"
    incl A(protections)
    movq 16(%rsp), %rax
    cmpb $0xF4, (%rax)                  // HLT
    je 1f
    cmpw $0x8B48, (%rax)                // movq (%rax), %rax
    FAIL_IF ne, "#GP at a wrong instruction"
    addq $2, 16(%rsp)
1:  incq 16(%rsp)
    popq %rax
    addq $8, %rsp
    iretq

on_tick:
    FROM_USER 8
    pushq %rax
    incl A(ticks)
    PIC_EOI
    popq %rax
    iretq

// EDI: 0, or the number of the user's check that failed. RSI: the user's hash.
sys_end:
    movl %edi, A(user_check)
    movq %rsi, A(user_hash)
    cmpl $0, A(user_check)
    je 1f
    SAY "user: FAIL: check "
    SAY_DEC user_check
    SAY " in user mode\n"
    EXIT 1
1:  movq A(user_hash), %rax
    cmpq A(hash), %rax
    FAIL_IF ne, "user and kernel have different hashes"
    movl A(rounds), %eax
    cmpl A(missing_faults), %eax
    FAIL_IF ne, "wrong number of faults on missing pages"
    cmpl A(write_faults), %eax
    FAIL_IF ne, "wrong number of faults on read-only pages"
    cmpl A(undefineds), %eax
    FAIL_IF ne, "wrong number of #UD"
    cmpl A(divides), %eax
    FAIL_IF ne, "wrong number of #DE"
    cmpl A(protections), %eax
    FAIL_IF ne, "wrong number of #GP"
    leal 1(%rax, %rax), %eax
    cmpl A(system_calls), %eax
    FAIL_IF ne, "wrong number of system calls"
    SAY "user: "
    SAY_DEC ticks
    SAY " timer interrupts in user mode\n"
    SAY "user: ok, "
    SAY_DEC rounds
    SAY " rounds, "
    SAY_DEC system_calls
    SAY " system calls, checksum "
    SAY_HEX hash
    SAY "\n"
    EXIT 0

    LIBRARY64
    LIBRARY_USER

// ---------------------------------------------------------------------------------------------------------------------
// User mode. R12D: rounds.

    BEGIN_USER
    movabsq $LCG_A, %r13
    movabsq $0x0123456789ABCDEF, %r14
    movabsq $0xFEDCBA9876543210, %r15
    movabsq $0xAAAA5555AAAA5555, %r8
    movabsq $0x5A5A5A5AA5A5A5A5, %r9
    xorl %ebx, %ebx                     // round
    xorl %ebp, %ebp                     // hash
    jmp user_next
user_round:
    movl %ebx, %edi                     // 1: the kernel hashes the same
    imulq %r13, %rdi
    FOLD %rdi, %rbp, %r13
    KERNEL SYS_HASH
    cmpq %rbp, %rax
    movl $1, %edi
    jne user_failed
    USER_EXIT

    movl %ebx, %r10d                    // 2: a fresh page reads as zero at both ends
    andl $PAGES - 1, %r10d
    shlq $12, %r10
    movabsq $USER + FIRST_PAGE * 4096, %rax
    addq %rax, %r10
    movq (%r10), %rax
    orq 4088(%r10), %rax
    movl $2, %edi
    jnz user_failed
    movq %rbp, (%r10)                   // 3: and keeps what is written
    movq %rbx, 4088(%r10)
    cmpq %rbp, (%r10)
    movl $3, %edi
    jne user_failed

    movl $0x600D, %eax                  // 4: registers survive #UD, #DE, #GP
    ud2
    cmpl $0x600D, %eax
    movl $4, %edi
    jne user_failed
    xorl %ecx, %ecx
    xorl %edx, %edx
    divl %ecx
    cmpl $0x600D, %eax
    movl $5, %edi
    jne user_failed
    testl $1, %ebx
    jz 1f
    movabsq $0x8000000000000000, %rax   // not canonical
    movq (%rax), %rax
    btrq $63, %rax
    movl $6, %edi
    jnc user_failed
    testq %rax, %rax
    jnz user_failed
    jmp 2f
1:  hlt
2:
    movl $200, %ecx                     // 5: time for a timer interrupt
    movq %rbp, %rax
1:  imulq %r13, %rax
    incq %rax
    decl %ecx
    jnz 1b
    pushq %rax
    popq %rcx
    cmpq %rax, %rcx
    movl $7, %edi
    jne user_failed

    movl %ebx, %edi
    andl $PAGES - 1, %edi
    movq %rbp, %rsi
    KERNEL SYS_UNMAP

    movabsq $0x0123456789ABCDEF, %rax
    cmpq %rax, %r14
    movl $8, %edi
    jne user_failed
    movabsq $0xFEDCBA9876543210, %rax
    cmpq %rax, %r15
    jne user_failed
    movabsq $0xAAAA5555AAAA5555, %rax
    cmpq %rax, %r8
    jne user_failed
    movabsq $0x5A5A5A5AA5A5A5A5, %rax
    cmpq %rax, %r9
    jne user_failed
    incl %ebx
user_next:
    cmpl %r12d, %ebx
    jb user_round
    xorl %edi, %edi
user_failed:
    movq %rbp, %rsi
    KERNEL SYS_END

    VAR hz
    VAR rounds
    VAR user_check
    VAR user_hash
    VAR hash
    VAR system_calls
    VAR missing_faults
    VAR write_faults
    VAR undefineds
    VAR divides
    VAR protections
    VAR ticks
