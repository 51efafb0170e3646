// paging: remaps pages all the time, in long mode and, with `modes=7`, before that in 32-bit two-level paging and PAE.
//
// The default is long mode alone, so that the guest passes everywhere: there is a software KVM on which setting CR0.PG
// outside long mode ends in a triple fault.
//
// In each round, 16 pages of a window are mapped to 16 frames in a new order, written through the window and read
// through the identity map (and the other way round). The check: each frame holds exactly what the order says. The
// accessed and dirty bits are looked at, and no branch or output depends on them.

#include "guest.inc"

#define WINDOW      0x1000000           /* 16 MiB: 16 pages mapped by TABLE */
#define FRAMES      0x800000
#define TABLE       SCRATCH             /* page table of the window */
#define DIRECTORY   SCRATCH + 0x1000    /* 32-bit and PAE page directory */
#define POINTERS    SCRATCH + 0x2000    /* PAE page directory pointers */

// Rounds in the current mode; `entry` is the size of a page table entry. EBX: x. EBP: checksum.
.macro PHASE name, entry, mode
    movl A(rounds), %eax
    movl %eax, A(left)
.Lround_\name:
    cmpl $0, A(left)
    je .Ldone_\name
    decl A(left)
    imull $1664525, %ebx, %ebx
    addl $1013904223, %ebx
    movl %ebx, %edi
    shrl $27, %edi
    orl $1, %edi                        // odd: n -> (n * odd + offset) mod 16 is an order of the 16 frames
    movl %ebx, %esi
    shrl $20, %esi

    // Map, and write x + n to page n.
    xorl %ecx, %ecx
.Lmap_\name:
    movl %ecx, %eax
    imull %edi, %eax
    addl %esi, %eax
    andl $15, %eax
    shll $12, %eax
    addl $FRAMES + 3, %eax
    movl TABLE(, %ecx, \entry), %edx
    andl $0x60, %edx
    orl %edx, A(seen)                   // accessed and dirty
    movl %eax, TABLE(, %ecx, \entry)
    movl %ecx, %edx
    shll $12, %edx
    addl $WINDOW, %edx
    invlpg (%edx)
    leal (%ebx, %ecx), %eax
    movl %eax, 8(%edx)
    incl %ecx
    cmpl $16, %ecx
    jne .Lmap_\name

    // Read through the identity map, change, and read through the window.
    xorl %ecx, %ecx
.Lread_\name:
    movl %ecx, %edx
    imull %edi, %edx
    addl %esi, %edx
    andl $15, %edx
    shll $12, %edx
    addl $FRAMES, %edx
    leal (%ebx, %ecx), %eax
    cmpl %eax, 8(%edx)
    FAIL_IF ne, "\name: a write through the window went elsewhere", \mode
    roll $5, %ebp
    xorl %edx, %ebp
    notl 8(%edx)
    movl %ecx, %edx
    shll $12, %edx
    notl %eax
    cmpl %eax, WINDOW + 8(%edx)
    FAIL_IF ne, "\name: a read through the window came from elsewhere", \mode
    roll $5, %ebp
    addl %eax, %ebp
    incl %ecx
    cmpl $16, %ecx
    jne .Lread_\name
    jmp .Lround_\name
.Ldone_\name:
.endm

.macro CLEAR_TABLES
    movl $TABLE, %edi
    xorl %eax, %eax
    movl $3 * 1024, %ecx
    rep stosl
.endm

.macro PAGING_OFF
    movl %cr0, %eax
    andl $0x7FFFFFFF, %eax
    movl %eax, %cr0
.endm

.macro PAGING_ON
    movl %eax, %cr3
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    jmp .Lon\@
.Lon\@:
.endm

GUEST paging, "paging"
    PARAM rounds, "rounds", 500, 32
    PARAM modes, "modes", 4, 32         // bit 0: two levels, bit 1: PAE, bit 2: long mode
    movl $1, %ebx
    xorl %ebp, %ebp

    testb $1, A(modes)
    jz no_two_level
    // 32-bit: identity map of 4 GiB in pages of 4 MiB, but for the window.
    CLEAR_TABLES
    movl $0x83, %eax
    movl $DIRECTORY, %edi
    movl $1024, %ecx
1:  stosl
    addl $0x400000, %eax
    loop 1b
    movl $TABLE + 3, DIRECTORY + 4 * (WINDOW >> 22)
    movl $0x10, %eax                    // CR4.PSE
    movl %eax, %cr4
    movl $DIRECTORY, %eax
    PAGING_ON
    PHASE two_level, 4, 32
    PAGING_OFF
no_two_level:

    testb $2, A(modes)
    jz no_pae
    // PAE: the first GiB in pages of 2 MiB, but for the window.
    CLEAR_TABLES
    movl $0x83, %eax
    movl $DIRECTORY, %edi
    movl $512, %ecx
1:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 1b
    movl $TABLE + 3, DIRECTORY + 8 * (WINDOW >> 21)
    movl $DIRECTORY + 1, POINTERS
    movl $0x20, %eax                    // CR4.PAE
    movl %eax, %cr4
    movl $POINTERS, %eax
    PAGING_ON
    PHASE PAE, 8, 32
    PAGING_OFF
no_pae:

    ENTER_LONG_MODE
    testb $4, A(modes)
    jz no_long_mode
    movl $TABLE, %edi
    xorl %eax, %eax
    movl $512, %ecx
    rep stosq
    movq $TABLE + 3, PD + 8 * (WINDOW >> 21)
    movq %cr3, %rax
    movq %rax, %cr3                     // forget the 2 MiB page
    PHASE long_mode, 8

no_long_mode:
    movl %ebp, A(checksum)
    SAY "paging: ok, "
    SAY_DEC rounds
    SAY " rounds in each mode of "
    SAY_DEC modes
    SAY ", checksum "
    SAY_HEX checksum
    SAY "\n"
    EXIT 0

    LIBRARY64
    .code32
    LIBRARY 32

    VAR rounds
    VAR modes
    VAR left
    VAR seen
    VAR checksum
