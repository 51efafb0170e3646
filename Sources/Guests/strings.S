// strings: REP INS, OUTS, MOVS, STOS, LODS, CMPS, SCAS of every size, across page boundaries, forwards and backwards,
// between RAM and ports, RAM and a hole in memory, RAM and the local APIC's registers.
//
// The checks: results are compared with plain loops; counts and pointers end where they must; the bytes around each
// destination stay as they were. Values of ports that are only read are folded into the checksum.

#include "guest.inc"

#define A_AREA      0x300000            /* two areas of 8 KiB; work happens around their page boundaries */
#define B_AREA      0x310000
#define HOLE        0xFEB00000
#define PM_TIMER    0x608
#define GUARD       0xC3

// Fails unless RDI, RSI and RCX are what they must be.
.macro EXPECT_POINTERS rsi, rdi
    cld
    testq %rcx, %rcx
    FAIL_IF nz, "a count did not reach zero"
    .ifnb \rsi
    movl $\rsi, %r8d
    cmpq %r8, %rsi
    FAIL_IF ne, "RSI ended in a wrong place"
    .endif
    .ifnb \rdi
    movl $\rdi, %r8d
    cmpq %r8, %rdi
    FAIL_IF ne, "RDI ended in a wrong place"
    .endif
.endm

// B from `at` on, `length` bytes, must equal A from `from` on, with guards around it.
.macro EXPECT_COPY from, at, length
    movl $\from, %esi
    movl $\at, %edi
    movl $\length, %ecx
    call expect_copy
.endm

// B from `at` on must be `length` bytes of the pattern of quadwords in RAX, with guards around them.
.macro EXPECT_FILL at, length
    movl $\at, %edi
    movl $\length, %ecx
    call expect_fill
.endm

.macro MOVE_TEST suffix, size, count, offset
    call prepare
    movl $A_AREA + 0xFE0 + \offset, %esi
    movl $B_AREA + 0xFC0 + \offset, %edi
    movl $\count, %ecx
    rep movs\suffix
    EXPECT_POINTERS A_AREA + 0xFE0 + \offset + \size * \count, B_AREA + 0xFC0 + \offset + \size * \count
    EXPECT_COPY A_AREA + 0xFE0 + \offset, B_AREA + 0xFC0 + \offset, \size * \count

    call prepare                        // backwards: from the last element down
    movl $A_AREA + 0xFE0 + \offset + \size * (\count - 1), %esi
    movl $B_AREA + 0xFC0 + \offset + \size * (\count - 1), %edi
    movl $\count, %ecx
    std
    rep movs\suffix
    EXPECT_POINTERS A_AREA + 0xFE0 + \offset - \size, B_AREA + 0xFC0 + \offset - \size
    EXPECT_COPY A_AREA + 0xFE0 + \offset, B_AREA + 0xFC0 + \offset, \size * \count
.endm

.macro STORE_TEST suffix, size, pattern, count, offset
    call prepare
    movabsq $\pattern, %rax
    movl $B_AREA + 0xFC0 + \offset, %edi
    movl $\count, %ecx
    rep stos\suffix
    EXPECT_POINTERS , B_AREA + 0xFC0 + \offset + \size * \count
    EXPECT_FILL B_AREA + 0xFC0 + \offset, \size * \count

    call prepare
    movabsq $\pattern, %rax
    movl $B_AREA + 0xFC0 + \offset + \size * (\count - 1), %edi
    movl $\count, %ecx
    std
    rep stos\suffix
    EXPECT_POINTERS , B_AREA + 0xFC0 + \offset - \size
    EXPECT_FILL B_AREA + 0xFC0 + \offset, \size * \count
.endm

// LODS must leave the last element in the accumulator, and the bits above it as they were.
.macro LOAD_TEST suffix, size, count, register
    call prepare
    movl $A_AREA + 0xFF1, %esi
    movl $\count, %ecx
    movq $-1, %rax
    rep lods\suffix
    EXPECT_POINTERS A_AREA + 0xFF1 + \size * \count
    cmp\suffix A_AREA + 0xFF1 + \size * (\count - 1), \register
    FAIL_IF ne, "LODS left a wrong value"
    .if \size < 4                       // the bits above must still be ones
    sarq $8 * \size, %rax
    cmpq $-1, %rax
    FAIL_IF ne, "LODS changed more than its register"
    .endif
.endm

// CMPS over equal areas but for one element, SCAS for that element: both must stop right behind it.
.macro COMPARE_TEST suffix, size, position, register
    call prepare
    movl $A_AREA + 0xF03, %esi
    movl $B_AREA + 0xFE9, %edi
    movl $64 * \size, %ecx
    rep movsb
    notb B_AREA + 0xFE9 + \size * \position
    movl $A_AREA + 0xF03, %esi
    movl $B_AREA + 0xFE9, %edi
    movl $64, %ecx
    repe cmps\suffix
    FAIL_IF e, "CMPS found no difference"
    cmpl $63 - \position, %ecx
    FAIL_IF ne, "CMPS stopped at a wrong count"
    cmpl $A_AREA + 0xF03 + \size * (\position + 1), %esi
    FAIL_IF ne, "CMPS left a wrong RSI"
    cmpl $B_AREA + 0xFE9 + \size * (\position + 1), %edi
    FAIL_IF ne, "CMPS left a wrong RDI"

    call prepare                        // B is guards but for one element
    movl $B_AREA + 0xFE9 + \size * \position, %edi
    movabsq $0x1122334455667788, %rax
    stos\suffix
    movl $B_AREA + 0xFE9, %edi
    movl $64, %ecx
    repne scas\suffix
    FAIL_IF ne, "SCAS did not find its value"
    cmpl $63 - \position, %ecx
    FAIL_IF ne, "SCAS stopped at a wrong count"
    movl $B_AREA + 0xFE9 + \size * 63, %edi
    movl $64, %ecx
    std
    repne scas\suffix
    cld
    cmpl $\position, %ecx
    FAIL_IF ne, "SCAS stopped at a wrong count, going down"
.endm

// INS of `count` elements from a port, forwards over a page boundary, then backwards: folded, guards checked.
.macro INPUT_TEST suffix, size, count, port
    call prepare
    movw $\port, %dx
    movl $B_AREA + 0x1000 - 5, %edi
    movl $\count, %ecx
    rep ins\suffix
    EXPECT_POINTERS , B_AREA + 0x1000 - 5 + \size * \count
    movl $B_AREA + 0x1000 - 5, %edi
    movl $\size * \count, %ecx
    call fold_and_check_guards

    call prepare
    movw $\port, %dx
    movl $B_AREA + 0x1000 - 5 + \size * (\count - 1), %edi
    movl $\count, %ecx
    std
    rep ins\suffix
    EXPECT_POINTERS , B_AREA + 0x1000 - 5 - \size
    movl $B_AREA + 0x1000 - 5, %edi
    movl $\size * \count, %ecx
    call fold_and_check_guards
.endm

// OUTS of `count` elements to a port, over a page boundary.
.macro OUTPUT_TEST suffix, size, count, port
    call prepare
    movw $\port, %dx
    movl $A_AREA + 0x1000 - 5, %esi
    movl $\count, %ecx
    rep outs\suffix
    EXPECT_POINTERS A_AREA + 0x1000 - 5 + \size * \count
    movl $A_AREA + 0x1000 - 5 + \size * (\count - 1), %esi
    movl $\count, %ecx
    std
    rep outs\suffix
    EXPECT_POINTERS A_AREA + 0x1000 - 5 - \size
.endm

GUEST strings, "strings"
    ENTER_LONG_MODE
    PARAM rounds, "rounds", 3
    movabsq $LCG_A, %r13
    xorl %ebx, %ebx                     // checksum
    xorl %r12d, %r12d                   // round

next_round:
    cmpl A(rounds), %r12d
    jae done
    call memory_tests
    call scan_tests
    call port_tests
    call hole_tests
    incl %r12d
    jmp next_round

done:
    movq %rbx, A(checksum)
    movl $A(text), %esi
    movl $text_end - text, %ecx
    movw $CONSOLE, %dx
    rep outsb
    SAY "strings: ok, "
    SAY_DEC rounds
    SAY " rounds, checksum "
    SAY_HEX checksum
    SAY "\n"
    EXIT 0

memory_tests:
    MOVE_TEST b, 1, 300, 3
    MOVE_TEST w, 2, 150, 5
    MOVE_TEST l, 4, 130, 7
    MOVE_TEST q, 8, 300, 1
    STORE_TEST b, 1, 0x5A5A5A5A5A5A5A5A, 200, 1
    STORE_TEST w, 2, 0x5A3C5A3C5A3C5A3C, 100, 3
    STORE_TEST l, 4, 0x0102030401020304, 90, 6
    STORE_TEST q, 8, 0x0102030405060708, 300, 7

    call prepare                        // nothing to do: nothing may happen
    movl $A_AREA, %esi
    movl $B_AREA + 0x100, %edi
    xorl %ecx, %ecx
    rep movsq
    EXPECT_POINTERS A_AREA, B_AREA + 0x100
    EXPECT_COPY A_AREA, B_AREA + 0x100, 0

    call prepare                        // overlapping by all but one byte: the first byte spreads
    movl $B_AREA + 0xFF0, %edi
    movb $0x77, (%rdi)
    leal 1(%rdi), %edi
    leal -1(%rdi), %esi
    movl $63, %ecx
    rep movsb
    movabsq $0x7777777777777777, %rax
    EXPECT_FILL B_AREA + 0xFF0, 64
    ret

scan_tests:
    LOAD_TEST b, 1, 60, %al
    LOAD_TEST w, 2, 60, %ax
    LOAD_TEST l, 4, 60, %eax
    LOAD_TEST q, 8, 60, %rax
    COMPARE_TEST b, 1, 40, %al
    COMPARE_TEST w, 2, 17, %ax
    COMPARE_TEST l, 4, 9, %eax
    COMPARE_TEST q, 8, 33, %rax
    ret

port_tests:
    INPUT_TEST b, 1, 16, 0x40
    INPUT_TEST b, 1, 16, 0x61
    INPUT_TEST b, 1, 16, 0x71
    INPUT_TEST w, 2, 16, PM_TIMER
    INPUT_TEST l, 4, 16, PM_TIMER
    OUTPUT_TEST b, 1, 16, POST
    OUTPUT_TEST w, 2, 16, POST
    OUTPUT_TEST l, 4, 16, POST

    // The UART's scratch register keeps the last byte out, and gives it as often as it is asked.
    call prepare
    movw $COM1_SCRATCH, %dx
    movl $A_AREA + 0x1000 - 5, %esi
    movl $11, %ecx
    rep outsb
    movb A_AREA + 0x1000 + 5, %al
    movb %al, %ah                       // the byte eight times over
    movl %eax, %ecx
    shll $16, %eax
    movw %cx, %ax
    movl %eax, %ecx
    shlq $32, %rax
    orq %rcx, %rax
    movl $B_AREA + 0x1000 - 9, %edi
    movl $24, %ecx
    rep insb
    EXPECT_POINTERS , B_AREA + 0x1000 - 9 + 24
    EXPECT_FILL B_AREA + 0x1000 - 9, 24
    ret

hole_tests:
    // A hole reads as all ones, before and after a write; as zeros under QEMU's TCG, which is let pass.
    call prepare
    movl $HOLE, %esi
    movl $B_AREA + 0x1000 - 16, %edi
    movl $8, %ecx
    rep movsl
    EXPECT_POINTERS HOLE + 32, B_AREA + 0x1000 + 16
    movl $HOLE, %edi
    movslq (%rdi), %rax
    leaq 1(%rax), %rcx
    cmpq $1, %rcx                       // -1 or 0
    FAIL_IF a, "the hole reads neither as ones nor as zeros"
    EXPECT_FILL B_AREA + 0x1000 - 16, 32
    movl $A_AREA + 0x1000 - 16, %esi
    movl $HOLE, %edi
    movl $8, %ecx
    rep movsl
    EXPECT_POINTERS A_AREA + 0x1000 + 16, HOLE + 32
    movl $0x12345678, %eax
    movl $HOLE, %edi
    movl $8, %ecx
    rep stosl
    EXPECT_POINTERS , HOLE + 32
    movl $B_AREA + 0x1000 - 16, %esi    // what it gave above
    movl $HOLE, %edi
    movl $8, %ecx
    repe cmpsl
    FAIL_IF ne, "a write to the hole changed it"
    EXPECT_POINTERS B_AREA + 0x1000 + 16, HOLE + 32

    call prepare                        // the task priority register, by string instructions alone
    movl $0x30, A_AREA
    movl $A_AREA, %esi
    movl $LOCAL_APIC + 0x80, %edi
    movl $1, %ecx
    rep movsl
    movl $LOCAL_APIC + 0x80, %esi
    movl $B_AREA + 0x100, %edi
    movsl
    movl $LOCAL_APIC + 0x80, %esi
    movl $1, %ecx
    rep movsl
    movl $0x30, %eax
    cmpl %eax, B_AREA + 0x100
    FAIL_IF ne, "the local APIC did not take a value from MOVS"
    cmpl %eax, B_AREA + 0x104
    FAIL_IF ne, "the local APIC did not give a value to REP MOVS"
    xorl %eax, %eax
    movl $LOCAL_APIC + 0x80, %edi
    stosl
    movl $LOCAL_APIC + 0x80, %esi
    lodsl
    testl %eax, %eax
    FAIL_IF nz, "the local APIC did not take a value from STOS"
    ret

// Plain loops from here on: they judge the string instructions, so they use none. All keep RAX and RDX.

// Fills A with a pattern and B with guard bytes.
prepare:
    pushq %rax
    xorl %ecx, %ecx
    movl %r12d, %eax
    imulq %r13, %rax
1:  imulq %r13, %rax
    incq %rax
    movq %rax, A_AREA(%rcx)
    movabsq $0x0101010101010101 * GUARD, %rdi
    movq %rdi, B_AREA(%rcx)
    addl $8, %ecx
    cmpl $0x2000, %ecx
    jb 1b
    popq %rax
    ret

expect_copy:
    pushq %rax
    pushq %rdi
    pushq %rcx
1:  testl %ecx, %ecx
    jz 2f
    movb (%rsi), %al
    cmpb (%rdi), %al
    jne bad_copy
    incl %esi
    incl %edi
    decl %ecx
    jmp 1b
2:  popq %rcx
    popq %rdi
    popq %rax
    jmp fold_and_check_guards
bad_copy:
    FAIL "MOVS left a wrong byte"

expect_fill:
    pushq %rax
    pushq %rdi
    pushq %rcx
1:  testl %ecx, %ecx
    jz 2b
    cmpb (%rdi), %al
    jne bad_fill
    rorq $8, %rax
    incl %edi
    decl %ecx
    jmp 1b
bad_fill:
    FAIL "STOS, INS or MOVS left a wrong byte"

// EDI, ECX: a destination. Folds it, byte by byte; the 64 bytes before and behind it in B must be guards.
fold_and_check_guards:
    pushq %rax
    leal -64(%rdi), %esi
1:  cmpb $GUARD, (%rsi)
    jne bad_guard
    incl %esi
    cmpl %edi, %esi
    jne 1b
2:  testl %ecx, %ecx
    jz 3f
    movzbl (%rsi), %eax
    FOLD %rax, %rbx, %r13
    incl %esi
    decl %ecx
    jmp 2b
3:  movl $64, %ecx
4:  cmpb $GUARD, (%rsi)
    jne bad_guard
    incl %esi
    decl %ecx
    jnz 4b
    popq %rax
    ret
bad_guard:
    FAIL "a byte outside of the destination was changed"

    LIBRARY64

    .subsection 1
text:
    .ascii "strings: this line came by REP OUTSB\n"
text_end:

    VAR rounds
    VAR checksum
