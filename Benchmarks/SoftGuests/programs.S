# See include/SoftGuests.h.

        .section .rodata
        .balign 16

# Sieve of Eratosthenes over the odd numbers below 2 MiB: stores in strides, loads in order.
sieve_start:
1:      mov     $0x200000, %r8d
        mov     $0x100000, %ecx
        mov     %r8, %rbx
        mov     $0x0101010101010101, %rax
2:      mov     %rax, (%rbx)
        add     $8, %rbx
        sub     $8, %ecx
        jnz     2b
        mov     $3, %esi
3:      mov     %esi, %eax
        shr     $1, %eax
        cmpb    $0, (%r8,%rax)
        je      5f
        mov     %esi, %edx
        imul    %edx, %edx
        shr     $1, %edx
4:      cmp     $0x100000, %edx
        jae     5f
        movb    $0, (%r8,%rdx)
        add     %esi, %edx
        jmp     4b
5:      add     $2, %esi
        cmp     $1448, %esi
        jb      3b
        dec     %rdi
        jnz     1b
        hlt
sieve_end:

# The rounds of a digest like SHA-256: rotations, logic and additions in registers, a schedule in memory.
digest_start:
        mov     $0x200000, %r8d
        mov     $0x6a09e667, %eax
        mov     $0xbb67ae85, %ebx
        mov     $0x3c6ef372, %ecx
        mov     $0xa54ff53a, %edx
1:      xor     %r9d, %r9d
2:      mov     %eax, %esi
        ror     $6, %esi
        mov     %eax, %r10d
        ror     $11, %r10d
        xor     %r10d, %esi
        mov     %ebx, %r11d
        xor     %ecx, %r11d
        and     %eax, %r11d
        xor     %ecx, %r11d
        add     %r11d, %esi
        add     (%r8,%r9,4), %esi
        add     %edx, %esi
        mov     %esi, (%r8,%r9,4)
        mov     %ecx, %edx
        mov     %ebx, %ecx
        mov     %eax, %ebx
        lea     0x428a2f98(%rsi,%rbx), %eax
        inc     %r9d
        cmp     $64, %r9d
        jne     2b
        dec     %rdi
        jnz     1b
        hlt
digest_end:

# Insertion sorts of 256 pseudo-random words: branches that nothing predicts.
sort_start:
        mov     $0x200000, %r8d
        mov     $12345, %eax
1:      xor     %ecx, %ecx
2:      imul    $1103515245, %eax, %eax
        add     $12345, %eax
        mov     %eax, (%r8,%rcx,4)
        inc     %ecx
        cmp     $256, %ecx
        jne     2b
        mov     $1, %ecx
3:      mov     (%r8,%rcx,4), %edx
        mov     %rcx, %rsi
4:      mov     -4(%r8,%rsi,4), %ebx
        cmp     %edx, %ebx
        jle     5f
        mov     %ebx, (%r8,%rsi,4)
        dec     %rsi
        jnz     4b
5:      mov     %edx, (%r8,%rsi,4)
        inc     %rcx
        cmp     $256, %rcx
        jne     3b
        dec     %rdi
        jnz     1b
        hlt
sort_end:

# Copies 512 KiB, eight bytes at a time.
copy_start:
1:      mov     $0x200000, %esi
        mov     $0x300000, %ebx
        mov     $0x2000, %ecx
2:      mov     (%rsi), %rax
        mov     8(%rsi), %rdx
        mov     %rax, (%rbx)
        mov     %rdx, 8(%rbx)
        mov     16(%rsi), %rax
        mov     24(%rsi), %rdx
        mov     %rax, 16(%rbx)
        mov     %rdx, 24(%rbx)
        add     $32, %rsi
        add     $32, %rbx
        dec     %ecx
        jnz     2b
        dec     %rdi
        jnz     1b
        hlt
copy_end:

# Fibonacci numbers by recursion: calls, returns and the stack.
calls_start:
        mov     %rdi, %r12
1:      mov     $20, %edi
        call    2f
        dec     %r12
        jnz     1b
        hlt
2:      cmp     $2, %edi
        jb      3f
        push    %rbx
        push    %rdi
        dec     %edi
        call    2b
        mov     %eax, %ebx
        pop     %rdi
        sub     $2, %edi
        call    2b
        add     %ebx, %eax
        pop     %rbx
        ret
3:      mov     %edi, %eax
        ret
calls_end:

        .macro program name, rounds
        .quad   \name\()_text, \name\()_start, \name\()_end, \rounds
        .endm

sieve_text:     .asciz  "sieve"
digest_text:    .asciz  "digest"
sort_text:      .asciz  "sort"
copy_text:      .asciz  "copy"
calls_text:     .asciz  "calls"

        .section .data.rel.ro, "aw"
        .balign 8
        .globl  soft_programs
soft_programs:
        program sieve, 40
        program digest, 150000
        program sort, 1500
        program copy, 2000
        program calls, 800
        .quad   0, 0, 0, 0
        .section .note.GNU-stack, "", @progbits
