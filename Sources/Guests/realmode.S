// realmode: 16-bit code in the shape of a boot sector, loaded at 0x7C00 and entered at 0000:7C00 with no BIOS.
//
// It takes 100 ticks of the PIT through the real-mode vector table, sleeping in HLT, and copies a block between
// segments. The check: the copy's sum, reached through other segment:offset pairs, and the tick count kept by the
// handler against the wake-ups.

// No multiboot here, so not guest.inc: absolute addresses are relative to 0x7C00.
#define R(symbol) (symbol - image + 0x7C00)
#define TICKS       100
#define ticks       0x6000              /* variables lie below the code */
#define armed       0x6002
#define SOURCE      0x2000              /* segments */
#define TARGET      0x3000

.macro OUTB port, value
    movb $\value, %al
    outb %al, $\port
.endm

    .section .rodata.guest_realmode, "a", @progbits
    .balign 4096
    .globl guest_realmode_start
    .globl guest_realmode_end
    .globl guest_realmode_symbols_start         // none
    .globl guest_realmode_symbols_end
    .code16
guest_realmode_symbols_start:
guest_realmode_symbols_end:
guest_realmode_start:
image:
    cli
    cld
    ljmp $0, $R(start)
start:
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %ss
    movw $0x7C00, %sp
    movw $0, ticks
    movw $R(hello), %si
    call print

    // 4 KiB of a pattern into SOURCE, then from there to TARGET, backwards.
    movw $SOURCE, %ax
    movw %ax, %es
    movw %ax, %ds
    xorw %di, %di
    movw $2048, %cx
    movw $1, %ax
1:  stosw
    imulw $25173, %ax, %ax
    addw $13849, %ax
    loop 1b
    movw $TARGET, %ax
    movw %ax, %es
    movw $4094, %si
    movw %si, %di
    movw $2048, %cx
    std
    rep movsw
    cld
    // Compare through segments one paragraph higher and offsets 16 lower.
    movw $SOURCE - 1, %ax
    movw %ax, %ds
    movw $TARGET - 1, %ax
    movw %ax, %es
    movw $16, %si
    movw %si, %di
    movw $2048, %cx
    repe cmpsw
    jne failed

    // IRQ0 at vector 0x20, through the table at 0.
    xorw %ax, %ax
    movw %ax, %ds
    movw $R(on_tick), 0x20 * 4
    movw %ax, 0x20 * 4 + 2
    OUTB 0x20, 0x11
    OUTB 0xA0, 0x11
    OUTB 0x21, 0x20
    OUTB 0xA1, 0x28
    OUTB 0x21, 0x04
    OUTB 0xA1, 0x02
    OUTB 0x21, 0x01
    OUTB 0xA1, 0x01
    OUTB 0xA1, 0xFF
    OUTB 0x21, 0xFE                     // IRQ0 only
    OUTB 0x43, 0x34                     // mode 2, 1000 Hz
    OUTB 0x40, 1193 & 0xFF
    OUTB 0x40, 1193 >> 8
1:  movb $1, armed
    sti
    hlt
    cli
    cmpb $0, armed                      // HLT must have ended by a tick
    jne failed
    cmpw $TICKS, ticks
    jb 1b
    movw $R(ok), %si
    call print
    xorb %al, %al
    jmp end
failed:
    xorw %ax, %ax
    movw %ax, %ds
    movw $R(fail), %si
    call print
    movb $1, %al
end:
    outb %al, $0xF4
1:  cli
    hlt
    jmp 1b

on_tick:
    pushw %ax
    incw %cs:ticks
    movb $0, %cs:armed
    OUTB 0x20, 0x20
    popw %ax
    iretw

// SI: a string ended by 0.
print:
    lodsb
    testb %al, %al
    jz 2f
    movb %al, %ah
    movw $0x3FD, %dx
    xorw %cx, %cx                       // 65536 looks at the line status, then on
1:  inb %dx, %al
    testb $0x20, %al
    loopz 1b
    movb %ah, %al
    movw $0x3F8, %dx
    outb %al, %dx
    jmp print
2:  ret

hello:  .asciz "realmode: 16 bits\n"
ok:     .asciz "realmode: ok, 100 ticks\n"
fail:   .asciz "realmode: FAIL\n"
    .skip 510 - (. - image)
    .byte 0x55, 0xAA                    // so that a BIOS boots it too
guest_realmode_end:
