// Where things lie in the guest of the differential tests, physical and linear alike: shared by its code and its test.
#pragma once

#define DIFF_PML4           0x1000      /* and after it the tables of the first 16 MiB */
#define DIFF_IDT            0x10000
#define DIFF_GDT            0x11000
#define DIFF_TSS            0x12000     /* with a bitmap that allows all ports */
#define DIFF_KERNEL_STACK   0x18000     /* grows down */
#define DIFF_KERNEL         0x18000     /* a stub of 16 bytes a vector, then what they share */
#define DIFF_USER           0x20000     /* from here on pages are user mode's */
#define DIFF_VARIABLES      0x30000
#define DIFF_DRIVER_STACK   0x32000     /* grows down */
#define DIFF_DATA           0x40000     /* a page; before and after it nothing is mapped */
#define DIFF_READ_ONLY      0x42000
#define DIFF_CASES          0x100000
#define DIFF_CODE           0xE00000

/* Variables: offsets from DIFF_VARIABLES. */
#define VAR_CURRENT         0x00        /* the case under way */
#define VAR_END             0x08        /* behind the last case */
#define VAR_TARGET          0x10
#define VAR_RESUME          0x18        /* where a fault goes on */
#define VAR_VECTOR          0x20        /* of the last fault; all ones: none */
#define VAR_ERROR           0x28
#define VAR_RIP             0x30
#define VAR_FLAGS           0x38
#define VAR_CR2             0x40
#define VAR_AX              0x48
#define VAR_SP              0x50
#define VAR_FPU             0x58        /* a nonzero word: YMM registers as well */

/* A case: what goes in, and at the same offsets from CASE_OUT what came out. */
#define CASE_FX             0x000       /* as FXSAVE has it */
#define CASE_YMM            0x200       /* the upper halves */
#define CASE_REGISTERS      0x300       /* in the order of their encoding */
#define CASE_FLAGS          0x380
#define CASE_CODE           0x388       /* where its code begins; out: the vector */
#define CASE_ERROR          0x390       /* out alone, as are the next */
#define CASE_RIP            0x398
#define CASE_FAULT_FLAGS    0x3A0
#define CASE_CR2            0x3A8
#define CASE_DATA           0x3C0       /* the last bytes of the data page */
#define CASE_DATA_BYTES     0x240
#define CASE_OUT            0x600
#define CASE_BYTES          0xC00
