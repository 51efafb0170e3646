// smc: self-modifying code, first in 32-bit mode without paging, then in 64-bit mode.
//
// Each round patches immediates and whole instructions ahead of and behind the instruction pointer, in the same page,
// across a page boundary, and replaces a routine in another page, then runs them. The check: a model computes each
// result from the same random numbers with branches instead of patches.

#include "guest.inc"

#define COPY        SCRATCH + 0x10      /* where routines are copied to run: a page of their own */

// A round's work in the current mode. EBX: x, a 32-bit generator. EBP: checksum. ECX: rounds left, kept in memory.
.macro PHASE mode
    movl A(rounds), %eax
    movl %eax, A(left)
.Lround\mode:
    cmpl $0, A(left)
    je .Lphase_done\mode
    decl A(left)
    imull $1664525, %ebx, %ebx
    addl $1013904223, %ebx

    // 1. An immediate just ahead, in the same page, with a jump between.
    movl %ebx, A(.Limmediate\mode) + 1
    jmp .Limmediate\mode
.Limmediate\mode:
    movl $0, %eax
    cmpl %ebx, %eax
    FAIL_IF ne, "an immediate ahead was not patched", \mode

    // 2. An immediate behind: run, patched, run again by a jump back.
    movl %ebx, %edi
    notl %edi
    xorl %edx, %edx
.Lagain\mode:
    movl $0x11111111, %eax
    incl %edx
    cmpl $2, %edx
    je .Lbehind_done\mode
    movl %edi, A(.Lagain\mode) + 1
    jmp .Lagain\mode
.Lbehind_done\mode:
    cmpl %edi, %eax
    FAIL_IF ne, "an immediate behind was not patched", \mode

    // 3. A whole instruction: one of ADD, SUB, XOR, AND, of EAX with ECX, picked by two bits of x.
    movl %ebx, %eax
    shrl $28, %eax
    andl $3, %eax
    movzwl A(operations)(, %eax, 2), %eax
    movw %ax, A(.Loperation\mode)
    movl %ebx, %eax
    movl %ebx, %ecx
    roll $13, %ecx
    jmp .Loperation\mode
.Loperation\mode:
    addl %ecx, %eax
    call model_operation\mode
    cmpl %esi, %eax
    FAIL_IF ne, "a patched instruction did something else", \mode
    roll $5, %ebp
    xorl %eax, %ebp

    // 4. The same instruction, and an immediate, across a page boundary and in another page than this code.
    movl %ebx, A(straddle\mode) + 1
    movl %ebx, %eax
    shrl $26, %eax
    andl $3, %eax
    movzwl A(operations)(, %eax, 2), %eax
    movw %ax, A(straddle_operation\mode)
    movl %ebx, %ecx
    roll $7, %ecx
    call straddle\mode
    movl %eax, %edi
    movl %ebx, %eax
    shll $2, %eax
    call model_operation_with_eax\mode
    cmpl %esi, %edi
    FAIL_IF ne, "an instruction across a page boundary was not patched", \mode
    roll $5, %ebp
    xorl %edi, %ebp

    // 5. One of two routines copied over the last one, and called.
    movl $A(routine_a\mode), %esi
    testl $0x1000, %ebx
    jz .Lcopy\mode
    movl $A(routine_b\mode), %esi
.Lcopy\mode:
    movl $COPY, %edi
    movl $routine_b\mode - routine_a\mode, %ecx
    rep movsb
    movl %ebx, %eax
    movl $COPY, %edx
    .ifb \mode
    call *%rdx
    .else
    call *%edx
    .endif
    movl %ebx, %ecx
    testl $0x1000, %ebx
    jz .Lmodel_a\mode
    roll $9, %ecx
    subl $0x1234567, %ecx
    jmp .Lmodel\mode
.Lmodel_a\mode:
    notl %ecx
    addl $0x7654321, %ecx
.Lmodel\mode:
    cmpl %ecx, %eax
    FAIL_IF ne, "a copied routine was not the one that ran", \mode
    roll $5, %ebp
    xorl %eax, %ebp

    // 6. One store that replaces four instructions of two bytes each, just ahead.
    movl %ebx, %eax
    andl $7, %eax
    movl A(quads)(, %eax, 8), %ecx
    movl A(quads) + 4(, %eax, 8), %edx
    movl %eax, %edi
    xorl %eax, %eax
    .ifb \mode
    shlq $32, %rdx
    orq %rdx, %rcx
    movq %rcx, A(.Lfour\mode)
    .else
    movl %ecx, A(.Lfour\mode)
    movl %edx, A(.Lfour\mode) + 4
    .endif
    jmp .Lfour\mode
.Lfour\mode:
    orb $0, %al
    orb $0, %al
    orb $0, %al
    orb $0, %al
    // The table holds, for each number below 8, four instructions that make it.
    cmpl %edi, %eax
    FAIL_IF ne, "four instructions replaced at once did something else", \mode
    jmp .Lround\mode

// ESI = the operation picked by bits 28-29 of x on x and x rotated by 13, by branches.
model_operation\mode:
    movl %ebx, %esi
    movl %ebx, %edi
    roll $13, %edi
    movl %ebx, %edx
    shrl $28, %edx
    jmp .Lmodel_pick\mode
// The same for bits 26-27 and a rotation by 7; EAX = x shifted left by 2.
model_operation_with_eax\mode:
    movl %eax, %edx
    shrl $28, %edx
    movl %ebx, %esi
    movl %edi, A(saved)
    movl %ebx, %edi
    roll $7, %edi
    call .Lmodel_pick\mode
    movl A(saved), %edi
    ret
.Lmodel_pick\mode:
    andl $3, %edx
    jz .Lmodel_add\mode
    cmpl $2, %edx
    jb .Lmodel_sub\mode
    je .Lmodel_xor\mode
    andl %edi, %esi
    ret
.Lmodel_add\mode:
    addl %edi, %esi
    ret
.Lmodel_sub\mode:
    subl %edi, %esi
    ret
.Lmodel_xor\mode:
    xorl %edi, %esi
    ret

// Two routines of equal length.
routine_a\mode:
    notl %eax
    .byte 0x81, 0xC0                    // addl $imm32, %eax in its long form
    .long 0x7654321
    nop
    ret
routine_b\mode:
    roll $9, %eax
    .byte 0x81, 0xE8                    // subl $imm32, %eax
    .long 0x1234567
    ret

    .balign 4096
    .skip 4096 - 3
straddle\mode:
    .byte 0xB8                          // movl $imm32, %eax: two of its bytes here, two on the next page
    .long 0
straddle_operation\mode:
    addl %ecx, %eax
    ret
.Lphase_done\mode:
.endm

GUEST smc, "smc"
    PARAM rounds, "rounds", 5000, 32
    movl $1, %ebx
    xorl %ebp, %ebp
    PHASE 32
    movl %ebp, A(checksum)
    ENTER_LONG_MODE
    PHASE
    movl %ebp, A(checksum) + 4
    SAY "smc: ok, "
    SAY_DEC rounds
    SAY " rounds in each mode, checksum "
    SAY_HEX checksum
    SAY "\n"
    EXIT 0

    LIBRARY64
    .code32
    LIBRARY 32

    .subsection 1
    .balign 8
operations:                             // with EAX and ECX
    .byte 0x01, 0xC8                    // ADD
    .byte 0x29, 0xC8                    // SUB
    .byte 0x31, 0xC8                    // XOR
    .byte 0x21, 0xC8                    // AND
    .balign 8
quads:                                  // for n = 0 to 7: OR AL, imm8 or NOPs that turn 0 into n
    .byte 0x0C, 0, 0x0C, 0, 0x0C, 0, 0x0C, 0
    .byte 0x0C, 1, 0x0C, 0, 0x0C, 0, 0x0C, 0
    .byte 0x0C, 0, 0x0C, 2, 0x0C, 0, 0x0C, 0
    .byte 0x0C, 1, 0x0C, 2, 0x0C, 0, 0x0C, 0
    .byte 0x0C, 0, 0x0C, 0, 0x0C, 4, 0x0C, 0
    .byte 0x0C, 1, 0x0C, 0, 0x0C, 4, 0x0C, 0
    .byte 0x90, 0x90, 0x0C, 2, 0x0C, 4, 0x0C, 0
    .byte 0x90, 0x90, 0x0C, 1, 0x0C, 6, 0x90, 0x90

    VAR rounds
    VAR left
    VAR saved
    VAR checksum
