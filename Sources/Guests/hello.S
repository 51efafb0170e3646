// hello: the smallest whole guest. 32-bit, no interrupts.

#include "guest.inc"

GUEST hello, "hello"
    // The UART must be there: its scratch register keeps what is written.
    movw $COM1_SCRATCH, %dx
    movb $0x5A, %al
    outb %al, %dx
    inb %dx, %al
    cmpb $0x5A, %al
    FAIL_IF ne, "no UART at COM1", 32

    SAY "hello, world\n", 32

    movl $A(greeting), %esi
    movl $greeting_end - greeting, %ecx
1:  lodsb
    outb %al, $CONSOLE
    loop 1b

    SAY "hello: ok, 13 characters\n", 32
    EXIT 0

    LIBRARY 32

    .subsection 1
greeting:
    .ascii "hello, world\n"
greeting_end:
