// echo: COM1 by interrupt, HLT when idle; a very small line discipline.
//
// The check: bytes received by the handler = bytes consumed and echoed by the main loop, in number and in a checksum
// that each side keeps for itself.

#include "guest.inc"

#define RING        SCRATCH             /* 4096 bytes between handler and main loop */
#define RING_MASK   0xFFF
#define LINE        SCRATCH + 0x1000
#define LINE_MAX    128

.macro PUTC_IMMEDIATE character
    movb $\character, %al
    call putc
.endm

GUEST echo, "echo"
    ENTER_LONG_MODE
    SET_GATE IRQ_BASE + 4, on_receive
    movabsq $LCG_A, %r13
    xorl %ebp, %ebp                     // characters in the line
    xorl %r12d, %r12d                   // checksum over the lines

    // 8 bits, no parity; FIFOs on, trigger at one byte; OUT2 lets the interrupt through.
    movw $COM1 + 3, %dx
    movb $0x03, %al
    outb %al, %dx
    movw $COM1 + 2, %dx
    movb $0x07, %al
    outb %al, %dx
    movw $COM1 + 4, %dx
    movb $0x0B, %al
    outb %al, %dx
    movw $COM1 + 1, %dx
    movb $0x01, %al                     // receive interrupts only
    outb %al, %dx
    UNMASK_IRQ 4
    SAY "echo: type lines; quit or Ctrl-D ends\r\n"

idle:
    cli
    movl A(echoed), %ecx
    cmpl A(received), %ecx
    jne take
    sti
    hlt
    jmp idle
take:
    sti
    andl $RING_MASK, %ecx
    movzbl RING(%rcx), %ebx
    rolq $7, A(echoed_sum)
    xorq %rbx, A(echoed_sum)
    incl A(echoed)

    cmpb $0x04, %bl                     // Ctrl-D
    je end
    cmpb $'\r', %bl
    je end_of_line
    cmpb $'\n', %bl
    je end_of_line
    cmpb $0x08, %bl
    je erase
    cmpb $0x7F, %bl
    je erase
    cmpb $' ', %bl
    jb ring_bell
    cmpl $LINE_MAX, %ebp
    jae ring_bell
    movb %bl, LINE(%rbp)
    incl %ebp
    movb %bl, %al
    call putc
    jmp idle

ring_bell:
    PUTC_IMMEDIATE 7
    jmp idle

erase:
    testl %ebp, %ebp
    jz ring_bell
    decl %ebp
    SAY "\b \b"
    jmp idle

end_of_line:
    SAY "\r\n"
    testl %ebp, %ebp
    jz idle
    cmpl $4, %ebp
    jne report
    cmpl $0x74697571, LINE              // "quit"
    je end
report:
    SAY "echo: "
1:  decl %ebp
    movzbl LINE(%rbp), %eax
    movl %eax, %ebx
    FOLD %rbx, %r12, %r13
    call putc
    testl %ebp, %ebp
    jnz 1b
    movq %r12, A(checksum)
    incl A(lines)
    SAY " ("
    SAY_HEX checksum
    SAY ")\r\n"
    jmp idle

end:
    movw $COM1 + 1, %dx                 // no more interrupts
    xorl %eax, %eax
    outb %al, %dx
    cli
    // What came behind the end is read but not echoed; the ring tells how much.
    movl A(echoed), %ecx
1:  cmpl A(received), %ecx
    je 2f
    movl %ecx, %edx
    andl $RING_MASK, %edx
    movzbl RING(%rdx), %ebx
    rolq $7, A(echoed_sum)
    xorq %rbx, A(echoed_sum)
    incl %ecx
    jmp 1b
2:  cmpl $0, A(overrun)
    FAIL_IF ne, "input came faster than it was echoed"
    movq A(echoed_sum), %rax
    cmpq A(received_sum), %rax
    FAIL_IF ne, "the bytes echoed are not the bytes received"
    SAY "\r\necho: ok, "
    SAY_DEC lines
    SAY " lines, "
    SAY_DEC echoed
    SAY " bytes, checksum "
    SAY_HEX checksum
    SAY "\r\n"
    EXIT 0

on_receive:
    pushq %rax
    pushq %rcx
    pushq %rdx
1:  movw $COM1_LSR, %dx                 // drain it all: the PIC sees edges only
    inb %dx, %al
    testb $1, %al
    jz 3f
    movw $COM1, %dx
    inb %dx, %al
    movzbl %al, %eax
    rolq $7, A(received_sum)
    xorq %rax, A(received_sum)
    movl A(received), %ecx
    movl %ecx, %edx
    subl A(echoed), %edx
    cmpl $RING_MASK, %edx
    jbe 2f
    incl A(overrun)
2:  andl $RING_MASK, %ecx
    movb %al, RING(%rcx)
    incl A(received)
    jmp 1b
3:  PIC_EOI
    popq %rdx
    popq %rcx
    popq %rax
    iretq

    LIBRARY64

    VAR received
    VAR received_sum
    VAR echoed
    VAR echoed_sum
    VAR overrun
    VAR lines
    VAR checksum
