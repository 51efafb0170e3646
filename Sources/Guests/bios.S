// bios: the BIOS services that a kernel's real-mode part calls, no more. Copied to F800:0000; no guest of its own.
//
// The boot loader fills in the memory sizes and the memory map below, and points the interrupt vectors to the handlers by
// the table of their offsets.

#define R(symbol) (symbol - image)
#define SMAP        0x534D4150
#define MAP_BYTES   20
#define MAP_ENTRIES 32
#define CARRY       0x0001
#define ZERO        0x0040

    .section .rodata.guest_bios, "a", @progbits
    .balign 16
    .globl guest_bios_start
    .globl guest_bios_end
    .globl guest_bios_symbols_start             // none
    .globl guest_bios_symbols_end
    .code16
guest_bios_symbols_start:
guest_bios_symbols_end:
guest_bios_start:
image:
    // What the loader fills in.
map_count:      .word 0
below_16m:      .word 0                         // KiB from 1 MiB on, to 16 MiB at most
above_16m:      .word 0                         // 64 KiB blocks from 16 MiB on
extended:       .word 0                         // KiB from 1 MiB on, 65535 at most
map:            .skip MAP_ENTRIES * MAP_BYTES
    // Vectors and offsets of their handlers; the last one serves all the others.
vectors:
    .word 0x10, R(video)
    .word 0x11, R(equipment)
    .word 0x12, R(base_memory)
    .word 0x13, R(disk)
    .word 0x15, R(system)
    .word 0x16, R(keyboard)
    .word 0x1A, R(time)
    .word 0xFFFF, R(nothing)

nothing:
    iretw

// The flags as the caller gets them back: on the stack, above IP and CS.
.macro RETURN set, clear
    pushw %bp
    movw %sp, %bp
    .if \clear
    andw $~\clear, 6(%bp)
    .endif
    .if \set
    orw $\set, 6(%bp)
    .endif
    popw %bp
    iretw
.endm

// INT 10h: text goes to COM1. AH = 03h and 0Fh tell of an 80-column text mode, which nobody sees.
video:
    cmpb $0x0E, %ah
    je 1f
    cmpb $0x03, %ah
    je 2f
    cmpb $0x0F, %ah
    jne nothing
    movw $0x5003, %ax
    movb $0, %bh
    iretw
1:  pushw %dx
    movw $0x3F8, %dx
    outb %al, %dx
    popw %dx
    iretw
2:  movw $0x0607, %cx
    xorw %dx, %dx
    iretw

equipment:
    movw $0x0002, %ax                           // a coprocessor
    iretw

base_memory:
    movw $639, %ax
    iretw

// INT 13h: there is no disk.
disk:
    movb $0x01, %ah
    RETURN CARRY, 0

// INT 15h: memory sizes, and A20, which is always on.
system:
    cmpw $0xE820, %ax
    je memory_map
    cmpw $0xE801, %ax
    je memory_sizes
    cmpb $0x88, %ah
    je extended_memory
    cmpb $0x24, %ah
    je a20
unsupported:
    movb $0x86, %ah
    RETURN CARRY, 0

a20:
    movb $0, %ah
    RETURN 0, CARRY

extended_memory:
    movw %cs:R(extended), %ax
    RETURN 0, CARRY

memory_sizes:
    movw %cs:R(below_16m), %ax
    movw %cs:R(above_16m), %bx
    movw %ax, %cx
    movw %bx, %dx
    RETURN 0, CARRY

// EBX is the number of the entry to give; 0 comes back with the last one.
memory_map:
    cmpl $SMAP, %edx
    jne unsupported
    cmpl $MAP_BYTES, %ecx
    jb unsupported
    movzwl %cs:R(map_count), %eax
    cmpl %eax, %ebx
    jae unsupported
    pushw %ds
    pushw %si
    pushw %di
    pushw %cs
    popw %ds
    imulw $MAP_BYTES, %bx, %si
    addw $R(map), %si
    movw $MAP_BYTES, %cx
    cld
    rep movsb
    popw %di
    popw %si
    popw %ds
    incl %ebx
    cmpl %eax, %ebx
    jb 1f
    xorl %ebx, %ebx
1:  movl $SMAP, %eax
    movl $MAP_BYTES, %ecx
    RETURN 0, CARRY

// INT 16h: nobody types.
keyboard:
    movb $0, %al
    RETURN ZERO, 0

// INT 1Ah: no ticks are counted, and there is no PCI BIOS.
time:
    testb %ah, %ah
    jnz unsupported
    xorw %cx, %cx
    xorw %dx, %dx
    movb $0, %al
    RETURN 0, CARRY
guest_bios_end:
