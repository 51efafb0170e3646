// fpu: x87 and SSE arithmetic while an interrupt handler saves, spoils and restores the whole FXSAVE state.
//
// The check: all values are small integers, so both units must have them exactly, whatever the handler did.

#include "guest.inc"

GUEST fpu, "fpu"
    ENTER_LONG_MODE
    PARAM hz, "hz", 1000
    PARAM wanted, "ticks", 1000
    SET_GATE IRQ_BASE, on_tick
    movq %cr0, %rax
    andl $~0x0C, %eax                   // no emulation, no lazy switching
    orl $0x22, %eax                     // MP, NE
    movq %rax, %cr0
    movq %cr4, %rax
    orl $0x600, %eax                    // OSFXSR, OSXMMEXCPT
    movq %rax, %cr4
    fninit
    movl $0x1F80, A(mxcsr)              // all masked, round to nearest
    ldmxcsr A(mxcsr)

    xorl %ebx, %ebx                     // n
    movl A(wanted), %ebp
    movl $1, %eax
    cvtsi2sdq %rax, %xmm1               // 1.0
    xorps %xmm0, %xmm0                  // counts by 1.0
    pxor %xmm2, %xmm2                   // counts by 1, twice
    pcmpeqd %xmm3, %xmm3                // -1, four times
    movabsq $0x0123456789ABCDEF, %rax
    movq %rax, %xmm15                   // stays
    fldpi                               // stays
    fldz                                // counts by 1.0
    PIT_START hz
    UNMASK_IRQ 0
    sti
step:
    addsd %xmm1, %xmm0
    psubd %xmm3, %xmm2
    fld1
    faddp
    incl %ebx
    cmpl %ebp, A(ticks)
    jb step
    cli

    movl %ebx, A(steps)
    cvttsd2siq %xmm0, %rax
    cmpq A(steps), %rax
    FAIL_IF ne, "the SSE double is wrong"
    movd %xmm2, %eax
    cmpl %ebx, %eax
    FAIL_IF ne, "the SSE integer is wrong"
    fistpll A(number)
    movq A(number), %rax
    cmpq A(steps), %rax
    FAIL_IF ne, "the x87 number is wrong"
    fldpi
    fucomip %st(1), %st
    FAIL_IF p, "the x87 stack lost its second value"
    FAIL_IF ne, "the x87 stack has a wrong second value"
    movq %xmm15, %rax
    movabsq $0x0123456789ABCDEF, %rcx
    cmpq %rcx, %rax
    FAIL_IF ne, "XMM15 is wrong"
    stmxcsr A(mxcsr)
    movl A(mxcsr), %eax
    andl $0xFFC0, %eax                  // without the exception flags
    cmpl $0x1F80, %eax
    FAIL_IF ne, "MXCSR is wrong"

    SAY "fpu: ok, "
    SAY_DEC ticks
    SAY " ticks, "
    SAY_DEC steps
    SAY " steps\n"
    EXIT 0

on_tick:
    pushq %rax
    fxsave64 A(fx_area)
    incl A(ticks)
    fninit                              // spoil it all
    fldl2e
    pcmpeqd %xmm0, %xmm0
    movaps %xmm0, %xmm1
    movaps %xmm0, %xmm2
    pxor %xmm3, %xmm3
    movaps %xmm3, %xmm15
    movl $0x7F80, A(mxcsr)              // round to zero
    ldmxcsr A(mxcsr)
    PIC_EOI
    fxrstor64 A(fx_area)
    popq %rax
    iretq

    LIBRARY64

    .subsection 2
    .balign 16
fx_area: .skip 512
    .subsection 0
    VAR hz
    VAR wanted
    VAR ticks
    VAR mxcsr
    VAR steps
    VAR number
