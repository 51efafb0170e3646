// The guest of the differential tests. At CPL 3 it goes through a list of cases: loads a state, jumps to the case's
// code, which jumps back or faults, and stores the state that came of it. A kernel notes faults and goes on behind them.
//
// All of it runs at fixed addresses (DifferentialLayout.h), not where it was assembled: absolute addresses of variables
// and relative jumps only.

#include "DifferentialLayout.h"

#define V(name) (DIFF_VARIABLES + VAR_##name)
#define OUT(name) (CASE_OUT + CASE_##name)

    .section .rodata
    .globl differential_kernel_start, differential_kernel_end, differential_user_start, differential_user_end
    .globl differential_driver64, differential_after64, differential_driver32, differential_after32

// ---------------------------------------------------------------------------------------------------------------------
// The kernel

    .balign 16
differential_kernel_start:
    .set .Lvector, 0
    .rept 256
    .balign 16
    .if (.Lvector == 8) || (.Lvector >= 10 && .Lvector <= 14) || (.Lvector == 17) || (.Lvector == 21)
    .else
    pushq $-1
    .endif
    pushq $.Lvector
    jmp note_fault
    .set .Lvector, .Lvector + 1
    .endr
    .balign 16
note_fault:                             // vector, error code, RIP, CS, RFLAGS, RSP, SS
    pushq %rax
    movq 8(%rsp), %rax
    movq %rax, V(VECTOR)
    movq 16(%rsp), %rax
    movq %rax, V(ERROR)
    movq 24(%rsp), %rax
    movq %rax, V(RIP)
    movq 40(%rsp), %rax
    movq %rax, V(FLAGS)
    movq %cr2, %rax
    movq %rax, V(CR2)
    movq V(RESUME), %rax
    movq %rax, 24(%rsp)
    popq %rax
    addq $16, %rsp
    iretq
differential_kernel_end:

// ---------------------------------------------------------------------------------------------------------------------
// User mode, 64 bits

    .balign 16
differential_user_start:
    .code64
differential_driver64:
    movq V(CURRENT), %rbx
    cmpq V(END), %rbx
    jae finish64
    leaq CASE_DATA(%rbx), %rsi
    movl $DIFF_DATA + 0x1000 - CASE_DATA_BYTES, %edi
    movl $CASE_DATA_BYTES / 8, %ecx
    cld
    rep movsq
    movq $-1, V(VECTOR)
    movq $0, V(ERROR)
    movq $0, V(RIP)
    movq $0, V(FLAGS)
    movq $0, V(CR2)
    movq CASE_CODE(%rbx), %rax
    movq %rax, V(TARGET)
    fxrstor64 CASE_FX(%rbx)
    cmpl $0, V(FPU)
    je 1f
    .set .Lregister, 0
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vinsertf128 $1, CASE_YMM + 16 * .Lregister(%rbx), %ymm\n, %ymm\n
    .set .Lregister, .Lregister + 1
    .endr
1:  movl $DIFF_DRIVER_STACK, %esp
    movq CASE_REGISTERS + 8 * 0(%rbx), %rax
    movq CASE_REGISTERS + 8 * 1(%rbx), %rcx
    movq CASE_REGISTERS + 8 * 2(%rbx), %rdx
    movq CASE_REGISTERS + 8 * 5(%rbx), %rbp
    movq CASE_REGISTERS + 8 * 6(%rbx), %rsi
    movq CASE_REGISTERS + 8 * 7(%rbx), %rdi
    movq CASE_REGISTERS + 8 * 8(%rbx), %r8
    movq CASE_REGISTERS + 8 * 9(%rbx), %r9
    movq CASE_REGISTERS + 8 * 10(%rbx), %r10
    movq CASE_REGISTERS + 8 * 11(%rbx), %r11
    movq CASE_REGISTERS + 8 * 12(%rbx), %r12
    movq CASE_REGISTERS + 8 * 13(%rbx), %r13
    movq CASE_REGISTERS + 8 * 14(%rbx), %r14
    movq CASE_REGISTERS + 8 * 15(%rbx), %r15
    pushq CASE_FLAGS(%rbx)
    popfq
    movq CASE_REGISTERS + 8 * 4(%rbx), %rsp
    movq CASE_REGISTERS + 8 * 3(%rbx), %rbx
    jmp *V(TARGET)

differential_after64:
    movq %rax, V(AX)
    movq %rsp, V(SP)
    movl $DIFF_DRIVER_STACK, %esp
    pushfq
    cld
    movq V(CURRENT), %rax
    movq %rcx, OUT(REGISTERS) + 8 * 1(%rax)
    movq %rdx, OUT(REGISTERS) + 8 * 2(%rax)
    movq %rbx, OUT(REGISTERS) + 8 * 3(%rax)
    movq %rbp, OUT(REGISTERS) + 8 * 5(%rax)
    movq %rsi, OUT(REGISTERS) + 8 * 6(%rax)
    movq %rdi, OUT(REGISTERS) + 8 * 7(%rax)
    movq %r8, OUT(REGISTERS) + 8 * 8(%rax)
    movq %r9, OUT(REGISTERS) + 8 * 9(%rax)
    movq %r10, OUT(REGISTERS) + 8 * 10(%rax)
    movq %r11, OUT(REGISTERS) + 8 * 11(%rax)
    movq %r12, OUT(REGISTERS) + 8 * 12(%rax)
    movq %r13, OUT(REGISTERS) + 8 * 13(%rax)
    movq %r14, OUT(REGISTERS) + 8 * 14(%rax)
    movq %r15, OUT(REGISTERS) + 8 * 15(%rax)
    movq V(AX), %rcx
    movq %rcx, OUT(REGISTERS)(%rax)
    movq V(SP), %rcx
    movq %rcx, OUT(REGISTERS) + 8 * 4(%rax)
    popq OUT(FLAGS)(%rax)
    fxsave64 OUT(FX)(%rax)
    cmpl $0, V(FPU)
    je 1f
    .set .Lregister, 0
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vextractf128 $1, %ymm\n, OUT(YMM) + 16 * .Lregister(%rax)
    .set .Lregister, .Lregister + 1
    .endr
1:  movq %rax, %rbx
    movq V(VECTOR), %rax
    movq %rax, OUT(CODE)(%rbx)
    movq V(ERROR), %rax
    movq %rax, OUT(ERROR)(%rbx)
    movq V(RIP), %rax
    movq %rax, OUT(RIP)(%rbx)
    movq V(FLAGS), %rax
    movq %rax, OUT(FAULT_FLAGS)(%rbx)
    movq V(CR2), %rax
    movq %rax, OUT(CR2)(%rbx)
    movl $DIFF_DATA + 0x1000 - CASE_DATA_BYTES, %esi
    leaq OUT(DATA)(%rbx), %rdi
    movl $CASE_DATA_BYTES / 8, %ecx
    rep movsq
    addq $CASE_BYTES, V(CURRENT)
    jmp differential_driver64
finish64:
    outb %al, $0xF4
    jmp finish64

// ---------------------------------------------------------------------------------------------------------------------
// User mode, 32 bits. Registers take the same places, of which they use the lower halves.

    .balign 16
    .code32
differential_driver32:
    movl V(CURRENT), %ebx
    cmpl V(END), %ebx
    jae finish32
    leal CASE_DATA(%ebx), %esi
    movl $DIFF_DATA + 0x1000 - CASE_DATA_BYTES, %edi
    movl $CASE_DATA_BYTES / 4, %ecx
    cld
    rep movsl
    movl $-1, V(VECTOR)
    movl $-1, V(VECTOR) + 4
    movl $0, V(ERROR)
    movl $0, V(ERROR) + 4
    movl $0, V(RIP)
    movl $0, V(FLAGS)
    movl $0, V(CR2)
    movl CASE_CODE(%ebx), %eax
    movl %eax, V(TARGET)
    fxrstor CASE_FX(%ebx)
    cmpl $0, V(FPU)
    je 1f
    .set .Lregister, 0
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    vinsertf128 $1, CASE_YMM + 16 * .Lregister(%ebx), %ymm\n, %ymm\n
    .set .Lregister, .Lregister + 1
    .endr
1:  movl $DIFF_DRIVER_STACK, %esp
    movl CASE_REGISTERS + 8 * 0(%ebx), %eax
    movl CASE_REGISTERS + 8 * 1(%ebx), %ecx
    movl CASE_REGISTERS + 8 * 2(%ebx), %edx
    movl CASE_REGISTERS + 8 * 5(%ebx), %ebp
    movl CASE_REGISTERS + 8 * 6(%ebx), %esi
    movl CASE_REGISTERS + 8 * 7(%ebx), %edi
    pushl CASE_FLAGS(%ebx)
    popfl
    movl CASE_REGISTERS + 8 * 4(%ebx), %esp
    movl CASE_REGISTERS + 8 * 3(%ebx), %ebx
    jmp *V(TARGET)

differential_after32:
    movl %eax, V(AX)
    movl %esp, V(SP)
    movl $DIFF_DRIVER_STACK, %esp
    pushfl
    cld
    movl V(CURRENT), %eax
    movl %ecx, OUT(REGISTERS) + 8 * 1(%eax)
    movl %edx, OUT(REGISTERS) + 8 * 2(%eax)
    movl %ebx, OUT(REGISTERS) + 8 * 3(%eax)
    movl %ebp, OUT(REGISTERS) + 8 * 5(%eax)
    movl %esi, OUT(REGISTERS) + 8 * 6(%eax)
    movl %edi, OUT(REGISTERS) + 8 * 7(%eax)
    movl V(AX), %ecx
    movl %ecx, OUT(REGISTERS)(%eax)
    movl V(SP), %ecx
    movl %ecx, OUT(REGISTERS) + 8 * 4(%eax)
    popl OUT(FLAGS)(%eax)
    fxsave OUT(FX)(%eax)
    cmpl $0, V(FPU)
    je 1f
    .set .Lregister, 0
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7
    vextractf128 $1, %ymm\n, OUT(YMM) + 16 * .Lregister(%eax)
    .set .Lregister, .Lregister + 1
    .endr
1:  movl %eax, %ebx
    .irp offset, 0, 4
    movl V(VECTOR) + \offset, %eax
    movl %eax, OUT(CODE) + \offset(%ebx)
    movl V(ERROR) + \offset, %eax
    movl %eax, OUT(ERROR) + \offset(%ebx)
    .endr
    movl V(RIP), %eax
    movl %eax, OUT(RIP)(%ebx)
    movl V(FLAGS), %eax
    movl %eax, OUT(FAULT_FLAGS)(%ebx)
    movl V(CR2), %eax
    movl %eax, OUT(CR2)(%ebx)
    movl $DIFF_DATA + 0x1000 - CASE_DATA_BYTES, %esi
    leal OUT(DATA)(%ebx), %edi
    movl $CASE_DATA_BYTES / 4, %ecx
    rep movsl
    addl $CASE_BYTES, V(CURRENT)
    jmp differential_driver32
finish32:
    outb %al, $0xF4
    jmp finish32
    .code64
differential_user_end:

    .section .note.GNU-stack, "", @progbits
