// fpu: x87 and SSE arithmetic in ring 3 while the kernel below saves, spoils and restores the whole FXSAVE state.
//
// The arithmetic is in ring 3 because KVMs that emulate kernel code lack most of it; FXSAVE and FXRSTOR they have. The
// kernel exchanges the state at each timer interrupt and at a system call every CALL_EVERY steps, next to an exit.
//
// The checks: all values are small integers, so both units must have them exactly, whatever the kernel did; roundings
// show that MXCSR and the control word came back; the kernel sees that its own image was loaded meanwhile.

#include "guest.inc"

#define CALL_EVERY  64                  /* steps; a power of two */

#define SYS_END     0
#define SYS_SWITCH  1

#define MARK        0x0123456789ABCDEF
#define ONE_AND_A_HALF 0x3FF8000000000000

GUEST fpu, "fpu"
    ENTER_LONG_MODE
    PARAM hz, "hz", 1000
    PARAM wanted, "ticks", 1000
    SET_UP_USER_MODE
    SET_GATE IRQ_BASE, on_tick
    movq %cr0, %rax
    andl $~0x0C, %eax                   // no emulation, no lazy switching
    orl $0x22, %eax                     // MP, NE
    movq %rax, %cr0
    movq %cr4, %rax
    orl $0x600, %eax                    // OSFXSR, OSXMMEXCPT
    movq %rax, %cr4
    PIT_START hz
    UNMASK_IRQ 0
    GO_TO_USER USER_START, USER_FLAGS

system_call:
    cmpl $SYS_SWITCH, %eax
    je sys_switch
    cmpl $SYS_END, %eax
    je sys_end
    FAIL "an unknown system call"

other_undefined:
    pushq $0
    pushq $6
    jmp unexpected

// EAX = 1 to go on, 0 to end.
sys_switch:
    call switch_state
    movl A(ticks), %ecx
    xorl %eax, %eax
    cmpl A(wanted), %ecx
    setb %al
    iretq

on_tick:
    FROM_USER 8
    pushq %rax
    pushq %rcx
    incl A(ticks)
    call switch_state
    PIC_EOI
    popq %rcx
    popq %rax
    iretq

// Saves the user's state, loads the kernel's image, looks that it is there, and loads the user's state again.
// Clobbers RCX and flags only.
switch_state:
    pushq %rsi
    pushq %rdi
    fxsave64 A(user_state)
    fxrstor64 A(spoiler)
    fxsave64 A(seen_state)
    movl A(spoiler) + 24, %ecx
    cmpl %ecx, A(seen_state) + 24
    FAIL_IF ne, "FXRSTOR in the kernel did not load MXCSR"
    movw A(spoiler), %cx
    cmpw %cx, A(seen_state)
    FAIL_IF ne, "FXRSTOR in the kernel did not load the control word"
    movl $A(spoiler) + 32, %esi
    movl $A(seen_state) + 32, %edi
    movl $(416 - 32) / 8, %ecx          // ST0 to ST7, XMM0 to XMM15
    repe cmpsq
    FAIL_IF ne, "FXRSTOR in the kernel did not load the registers"
    fxrstor64 A(user_state)
    popq %rdi
    popq %rsi
    ret

// EDI: 0, or the number of the user's check that failed. ESI: steps.
sys_end:
    movl %edi, A(user_check)
    movl %esi, A(steps)
    cmpl $0, A(user_check)
    je 1f
    SAY "fpu: FAIL: check "
    SAY_DEC user_check
    SAY " in user mode, after "
    SAY_DEC steps
    SAY " steps\n"
    EXIT 1
1:  SAY "fpu: ok, "
    SAY_DEC ticks
    SAY " ticks, "
    SAY_DEC steps
    SAY " steps\n"
    EXIT 0

    LIBRARY64
    LIBRARY_USER

// ---------------------------------------------------------------------------------------------------------------------
// User mode

    BEGIN_USER
    fninit
    pushq $0
    pushq $0x1F80                       // all masked, round to nearest
    ldmxcsr (%rsp)
    movabsq $ONE_AND_A_HALF, %rax
    movq %rax, (%rsp)
    movq %rax, %xmm4                    // stays
    xorl %ebx, %ebx                     // steps
    xorl %ebp, %ebp                     // 1.5 rounded by SSE, summed up
    xorl %r13d, %r13d                   // 1.5 rounded by the x87, summed up
    movl $1, %eax
    cvtsi2sdq %rax, %xmm1               // 1.0
    xorps %xmm0, %xmm0                  // counts by 1.0
    pxor %xmm2, %xmm2                   // counts by 1, four times
    pcmpeqd %xmm3, %xmm3                // -1, four times
    movabsq $MARK, %rax
    movq %rax, %xmm15                   // stays
    fldpi                               // stays
    fldz                                // counts by 1.0
user_step:
    addsd %xmm1, %xmm0
    psubd %xmm3, %xmm2
    cvtsd2siq %xmm4, %rax
    addq %rax, %rbp
    fldl (%rsp)
    fistpll 8(%rsp)
    addq 8(%rsp), %r13
    fld1
    incl %ebx
    testl $CALL_EVERY - 1, %ebx
    jnz 1f
    movl %ebx, %eax
    USER_EXIT                           // this and the call with 1.0 on top of the x87 stack
    KERNEL SYS_SWITCH
    testl %eax, %eax
    jz user_done
1:  faddp
    jmp user_step

user_done:
    faddp
    movl $1, %edi                       // 1: the SSE double
    cvttsd2siq %xmm0, %rax
    cmpq %rbx, %rax
    jne user_end
    movl $2, %edi                       // 2: the SSE integers
    movd %ebx, %xmm5
    pshufd $0, %xmm5, %xmm5
    pcmpeqd %xmm2, %xmm5
    pmovmskb %xmm5, %eax
    cmpl $0xFFFF, %eax
    jne user_end
    movl $3, %edi                       // 3: the x87 stack is as deep as it was
    fnstenv -64(%rsp)
    movq $0, -64 + 12(%rsp)             // what it stores of the last instruction's addresses is lost where the
    movq $0, -64 + 20(%rsp)             // monitor's kernel saves the registers without them (AMD)
    cmpw $0x0FFF, -64 + 8(%rsp)         // the tag word: registers 6 and 7 are valid
    jne user_end
    movl $4, %edi                       // 4: the x87 number
    fistpll 8(%rsp)
    cmpq %rbx, 8(%rsp)
    jne user_end
    movl $5, %edi                       // 5: what lay below it
    fldpi
    fucomip %st(1), %st
    jp user_end
    jne user_end
    movl $6, %edi                       // 6: XMM15
    movq %xmm15, %rax
    movabsq $MARK, %rcx
    cmpq %rcx, %rax
    jne user_end
    movl $7, %edi                       // 7: MXCSR without the exception flags
    stmxcsr 8(%rsp)
    movl 8(%rsp), %eax
    andl $0xFFC0, %eax
    cmpl $0x1F80, %eax
    jne user_end
    movl $8, %edi                       // 8: 1.5 was always rounded to 2, by SSE
    leaq (%rbx, %rbx), %rax
    cmpq %rax, %rbp
    jne user_end
    movl $9, %edi                       // 9: and by the x87
    cmpq %rax, %r13
    jne user_end
    xorl %edi, %edi
user_end:
    movl %ebx, %esi
    KERNEL SYS_END

    // The kernel's image: everything differs from the user's.
    .subsection 1
    .balign 16
spoiler:
    .short 0x0C7F                       // control word: round to zero, single precision, all masked
    .short 0                            // status word: top is 0
    .short 0x00FF                       // tags: none is empty
    .skip 18
    .long 0x7F80                        // MXCSR: round to zero, all masked
    .long 0
    .set .Lregister, 0
    .rept 8                             // ST0 to ST7: ever larger odd numbers
    .quad 0x8000000000000001 + .Lregister
    .short 0x3FFF + .Lregister
    .skip 6
    .set .Lregister, .Lregister + 2
    .endr
    .rept 16                            // XMM0 to XMM15
    .quad 0xA5A5A5A5A5A50000 + .Lregister, 0x5A5A5A5A5A5A0000 + .Lregister
    .set .Lregister, .Lregister + 1
    .endr
    .skip 96

    .subsection 2
    .balign 16
user_state: .skip 512
    .balign 16
seen_state: .skip 512
    .subsection 0
    VAR hz
    VAR wanted
    VAR ticks
    VAR steps
    VAR user_check
