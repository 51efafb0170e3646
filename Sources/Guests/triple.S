// triple: shuts the machine down by a triple fault. It never reaches port 0xF4 when all is well: the end is a shutdown.

#include "guest.inc"

GUEST triple, "triple"
    ENTER_LONG_MODE
    SAY "triple: faulting now\n"
    lidt A(no_idt)
    ud2                                 // #UD, #GP for want of a gate, #DF likewise, shutdown
    EXIT 1

    LIBRARY64

    .subsection 1
    .balign 8
no_idt:
    .short 0
    .quad 0
