// Arguments: edi = the instruction, rsi, rdx, rcx = operands, r8 = MXCSR; for the x87, rsi = state, rdx = memory, rcx = flags.

#define __ASSEMBLER__ 1
#include "CHostFloat.h"

    .text
    .globl chostfloat_sse
    .type chostfloat_sse, @function
    .balign 16
chostfloat_sse:
    movl %edi, %eax
    shlq $4, %rax
    leaq sse_stubs(%rip), %r9
    addq %r9, %rax
    movups (%rsi), %xmm0
    movups (%rdx), %xmm1
    movups (%rcx), %xmm2
    ldmxcsr (%r8)
    call *%rax
    stmxcsr (%r8)
    movups %xmm0, (%rsi)
    ldmxcsr default_mxcsr(%rip)
    ret
    .size chostfloat_sse, . - chostfloat_sse

    .globl chostfloat_x87
    .type chostfloat_x87, @function
    .balign 16
chostfloat_x87:
    movl %edi, %eax
    leaq x87_stubs(%rip), %r9
    leaq (%r9, %rax, 8), %r9
    pushq (%rcx)
    popfq
    call *%r9
    pushfq
    popq (%rcx)
    cld
    ret
    .size chostfloat_x87, . - chostfloat_x87

// Sixteen bytes each, in the order of the header's enumeration.
.macro STUB line:vararg
    .balign 16
    \line
    ret
.endm

.macro BY_IMMEDIATE count, name
    .set .Limmediate, 0
    .rept \count
    STUB \name $.Limmediate, %xmm1, %xmm0
    .set .Limmediate, .Limmediate + 1
    .endr
.endm

.macro BY_AVX_IMMEDIATE count, name
    .set .Limmediate, 0
    .rept \count
    STUB \name $.Limmediate, %xmm1, %xmm0, %xmm0
    .set .Limmediate, .Limmediate + 1
    .endr
.endm

.macro TO_INTEGER name, register
    .balign 16
    xorl %eax, %eax
    \name %xmm1, \register
    movq %rax, %xmm0
    ret
.endm

.macro FROM_INTEGER name, register
    .balign 16
    movq %xmm1, %rax
    \name \register, %xmm0
    ret
.endm

.macro COMPARE name
    .balign 16
    \name %xmm1, %xmm0
    lahf
    movd %eax, %xmm0
    ret
.endm

    .balign 16
sse_stubs:
#define X(name) STUB name %xmm1, %xmm0 ;
    CHOSTFLOAT_BINARY(X)
#undef X
#define X(name) BY_IMMEDIATE 8, name ;
    CHOSTFLOAT_TO_HALF(X)
#undef X
#define X(name) STUB name %xmm1, %xmm0 ;
    CHOSTFLOAT_FROM_HALF(X)
#undef X
#define X(name, instruction, register) TO_INTEGER instruction, register ;
    CHOSTFLOAT_TO_INTEGER(X)
#undef X
#define X(name, instruction, register) FROM_INTEGER instruction, register ;
    CHOSTFLOAT_FROM_INTEGER(X)
#undef X
#define X(name) COMPARE name ;
    CHOSTFLOAT_COMPARE(X)
#undef X
#define X(name) BY_IMMEDIATE 8, name ;
    CHOSTFLOAT_BY_PREDICATE(X)
#undef X
#define X(name) BY_IMMEDIATE 16, name ;
    CHOSTFLOAT_BY_ROUNDING(X)
#undef X
#define X(name) BY_AVX_IMMEDIATE 32, name ;
    CHOSTFLOAT_BY_AVX_PREDICATE(X)
#undef X
#define X(name) STUB name %xmm2, %xmm1, %xmm0 ;
    CHOSTFLOAT_FUSED(X)
#undef X

// Eight bytes each: FRSTOR (%rsi), the instruction, FNSAVE (%rsi), RET.
.macro X87 first, second
    .balign 8
    .byte 0xDD, 0x26, \first, \second, 0xDD, 0x36, 0xC3
.endm

    .balign 16
x87_stubs:
    .set .Lfirst, 0xD8
    .rept 8
    .set .Lsecond, 0xC0
    .rept 64
    X87 .Lfirst, .Lsecond
    .set .Lsecond, .Lsecond + 1
    .endr
    .set .Lfirst, .Lfirst + 1
    .endr
    .set .Lfirst, 0xD8
    .rept 8
    .set .Lsecond, 0x02                 // (%rdx)
    .rept 8
    X87 .Lfirst, .Lsecond
    .set .Lsecond, .Lsecond + 8
    .endr
    .set .Lfirst, .Lfirst + 1
    .endr

    .section .rodata
    .balign 4
default_mxcsr:
    .long 0x1F80

    .section .note.GNU-stack, "", @progbits
