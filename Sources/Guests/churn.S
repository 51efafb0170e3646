// churn: dirties pages in a pattern that depends on a seed, with few exits.
//
// Each write adds a value of a generator to one of four quadwords of a page. The checks: the sum over all memory is the
// sum of the values in closed form; and a second run of the generator, subtracting, leaves every quadword zero, so no
// write was lost, doubled or put elsewhere.

#include "guest.inc"

#define BASE        0x400000
#define BASE_KIB    3072                /* BASE in KiB above 1 MiB */

// Takes the generator one step and gives the address of its next quadword in RDI, its value in RBX.
.macro NEXT_TARGET
    imulq %r13, %rbx
    addq %r14, %rbx
    movq %rbx, %rax
    shrq $32, %rax
    imulq %r15, %rax
    shrq $32, %rax                      // page = high half of x, scaled to span
    movq %rbx, %rdi
    shrq $20, %rdi
    andl $3, %edi
    shll $10, %edi                      // one quadword a kilobyte, ...
    movl %eax, %ecx
    andl $127, %ecx
    shll $3, %ecx                       // ... at a place that depends on the page
    addl %ecx, %edi
    shlq $12, %rax
    leaq BASE(%rdi, %rax), %rdi
.endm

// For each quadword that the generator can reach: its address in RDI, and `body`.
.macro FOR_EACH_TARGET body
    xorl %eax, %eax
.Lpage\@:
    movq %rax, %rdi
    shlq $12, %rdi
    movl %eax, %ecx
    andl $127, %ecx
    leaq BASE(%rdi, %rcx, 8), %rdi
    movl $4, %ecx
.Lslot\@:
    \body
    addq $1024, %rdi
    decl %ecx
    jnz .Lslot\@
    incq %rax
    cmpq %r15, %rax
    jb .Lpage\@
.endm

.macro CLEAR_TARGET
    cmpq $0, (%rdi)                     // do not dirty what is zero already
    je .Lclear\@
    movq $0, (%rdi)
.Lclear\@:
.endm

.macro SUM_TARGET
    movq (%rdi), %rdx
    addq %rdx, %rbp
    FOLD %rdx, %r12, %r13
.endm

.macro EXPECT_ZERO
    orq (%rdi), %rbp
.endm

GUEST churn, "churn"
    ENTER_LONG_MODE
    PARAM seed, "seed", 1
    PARAM pages, "pages", 256
    PARAM rounds, "rounds", 200
    PARAM span, "span", 4096

    // No more pages than there is memory.
    movl A(memory_upper), %eax
    cmpl $BASE_KIB + 4, %eax
    FAIL_IF b, "less than 4 MiB of memory"
    subl $BASE_KIB, %eax
    shrl $2, %eax
    movl A(span), %r15d
    cmpl %eax, %r15d
    cmoval %eax, %r15d
    cmpl $0xBF000, %r15d                // stay below the hole at 3 GiB
    jb 1f
    movl $0xBF000, %r15d
1:  testl %r15d, %r15d
    jnz 1f
    incl %r15d
1:  movl %r15d, A(span)

    movabsq $LCG_A, %r13
    movabsq $LCG_C, %r14
    FOR_EACH_TARGET CLEAR_TARGET

    movl A(seed), %ebx
    xorl %ebp, %ebp                     // round
1:  cmpl A(rounds), %ebp
    jae 4f
    xorl %r12d, %r12d                   // page within the round
2:  cmpl A(pages), %r12d
    jae 3f
    NEXT_TARGET
    addq %rbx, (%rdi)
    incl %r12d
    testl $63, %r12d
    jnz 2b
    movl %r12d, %eax
    outb %al, $POST
    jmp 2b
3:  movl %ebp, %eax
    outb %al, $POST
    incl %ebp
    jmp 1b
4:
    movl A(rounds), %edi
    movl A(pages), %eax
    imulq %rax, %rdi
    movq %rdi, A(writes)
    movl A(seed), %r8d
    xorl %r9d, %r9d
    call lcg_jump
    cmpq %rbx, %r8
    FAIL_IF ne, "the generator differs from its closed form"

    xorl %ebp, %ebp                     // sum
    xorl %r12d, %r12d                   // checksum
    FOR_EACH_TARGET SUM_TARGET
    cmpq %rbp, %r9
    FAIL_IF ne, "the sum over memory differs from the closed form"
    movq %r12, A(checksum)

    movl A(seed), %ebx
    movq A(writes), %r12
1:  testq %r12, %r12
    jz 2f
    NEXT_TARGET
    subq %rbx, (%rdi)
    decq %r12
    jmp 1b
2:  xorl %ebp, %ebp
    FOR_EACH_TARGET EXPECT_ZERO
    testq %rbp, %rbp
    FAIL_IF nz, "a write was lost, doubled or put elsewhere"

    SAY "churn: ok, "
    SAY_DEC writes
    SAY " writes, "
    SAY_DEC span
    SAY " pages, checksum "
    SAY_HEX checksum
    SAY "\n"
    EXIT 0

    LIBRARY64
    LIBRARY_LCG

    VAR seed
    VAR pages
    VAR rounds
    VAR span
    VAR writes
    VAR checksum
