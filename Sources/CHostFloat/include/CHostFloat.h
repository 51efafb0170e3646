// Single floating-point instructions of the host, for the soft engine: each on operands and a control register that the
// caller gives, so that rounding, exception flags and results are a processor's own. No logic: one instruction a call.

#ifndef CHOSTFLOAT_H
#define CHOSTFLOAT_H

// X(instruction): the first operand is the destination and a source as well.
#define CHOSTFLOAT_BINARY(X) \
    X(addps) X(addpd) X(addss) X(addsd) X(subps) X(subpd) X(subss) X(subsd) X(mulps) X(mulpd) X(mulss) X(mulsd) \
    X(divps) X(divpd) X(divss) X(divsd) X(minps) X(minpd) X(minss) X(minsd) X(maxps) X(maxpd) X(maxss) X(maxsd) \
    X(sqrtps) X(sqrtpd) X(sqrtss) X(sqrtsd) X(rcpps) X(rcpss) X(rsqrtps) X(rsqrtss) \
    X(haddps) X(haddpd) X(hsubps) X(hsubpd) X(addsubps) X(addsubpd) \
    X(cvtps2pd) X(cvtpd2ps) X(cvtss2sd) X(cvtsd2ss) X(cvtdq2ps) X(cvtdq2pd) X(cvtps2dq) X(cvttps2dq) X(cvtpd2dq) X(cvttpd2dq)
// Eight in a row, by the immediate operand. Only for hosts with F16C.
#define CHOSTFLOAT_TO_HALF(X) X(vcvtps2ph)
#define CHOSTFLOAT_FROM_HALF(X) X(vcvtph2ps)
// X(name, instruction, register): from the second operand to a general register, and from there to the first operand.
#define CHOSTFLOAT_TO_INTEGER(X) \
    X(cvtss2si32, cvtss2si, %eax) X(cvttss2si32, cvttss2si, %eax) X(cvtsd2si32, cvtsd2si, %eax) \
    X(cvttsd2si32, cvttsd2si, %eax) X(cvtss2si64, cvtss2si, %rax) X(cvttss2si64, cvttss2si, %rax) \
    X(cvtsd2si64, cvtsd2si, %rax) X(cvttsd2si64, cvttsd2si, %rax)
#define CHOSTFLOAT_FROM_INTEGER(X) \
    X(cvtsi2ss32, cvtsi2ssl, %eax) X(cvtsi2sd32, cvtsi2sdl, %eax) X(cvtsi2ss64, cvtsi2ssq, %rax) \
    X(cvtsi2sd64, cvtsi2sdq, %rax)
// The first operand becomes what LAHF has afterwards, in bits 8–15.
#define CHOSTFLOAT_COMPARE(X) X(comiss) X(comisd) X(ucomiss) X(ucomisd)
// Eight and sixteen in a row, by the immediate operand.
#define CHOSTFLOAT_BY_PREDICATE(X) X(cmpps) X(cmppd) X(cmpss) X(cmpsd)
#define CHOSTFLOAT_BY_ROUNDING(X) X(roundps) X(roundpd) X(roundss) X(roundsd)
// AVX's thirty-two predicates. Only for hosts with AVX.
#define CHOSTFLOAT_BY_AVX_PREDICATE(X) X(vcmpps) X(vcmppd) X(vcmpss) X(vcmpsd)
// The first operand becomes the second times the third, plus (or what the instruction does) the first.
// Only for hosts with FMA.
#define CHOSTFLOAT_FUSED(X) \
    X(vfmadd231ps) X(vfmadd231pd) X(vfmadd231ss) X(vfmadd231sd) X(vfmsub231ps) X(vfmsub231pd) X(vfmsub231ss) X(vfmsub231sd) \
    X(vfnmadd231ps) X(vfnmadd231pd) X(vfnmadd231ss) X(vfnmadd231sd) \
    X(vfnmsub231ps) X(vfnmsub231pd) X(vfnmsub231ss) X(vfnmsub231sd) \
    X(vfmaddsub231ps) X(vfmaddsub231pd) X(vfmsubadd231ps) X(vfmsubadd231pd)

#ifndef __ASSEMBLER__

// Whether the host has what is marked above as only for some.
static inline int host_float_has_avx(void)
{
    return __builtin_cpu_supports("avx") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

#include <stdint.h>

enum chostfloat_instruction {
#define ONE(name, ...) CHOSTFLOAT_##name,
#define EIGHT(name) CHOSTFLOAT_##name, CHOSTFLOAT_##name##_last = CHOSTFLOAT_##name + 7,
#define SIXTEEN(name) CHOSTFLOAT_##name, CHOSTFLOAT_##name##_last = CHOSTFLOAT_##name + 15,
#define THIRTY_TWO(name) CHOSTFLOAT_##name, CHOSTFLOAT_##name##_last = CHOSTFLOAT_##name + 31,
    CHOSTFLOAT_BINARY(ONE)
    CHOSTFLOAT_TO_HALF(EIGHT)
    CHOSTFLOAT_FROM_HALF(ONE)
    CHOSTFLOAT_TO_INTEGER(ONE)
    CHOSTFLOAT_FROM_INTEGER(ONE)
    CHOSTFLOAT_COMPARE(ONE)
    CHOSTFLOAT_BY_PREDICATE(EIGHT)
    CHOSTFLOAT_BY_ROUNDING(SIXTEEN)
    CHOSTFLOAT_BY_AVX_PREDICATE(THIRTY_TWO)
    CHOSTFLOAT_FUSED(ONE)
    CHOSTFLOAT_count
#undef ONE
#undef EIGHT
#undef SIXTEEN
#undef THIRTY_TWO
};

/// Executes an SSE instruction: `first` and `second` (and `third`) are 16 bytes each, the result goes to `first`.
/// `mxcsr` is MXCSR before and after; it must mask all exceptions.
void chostfloat_sse(enum chostfloat_instruction instruction, void *first, const void *second, const void *third,
                    uint32_t *mxcsr);

/// Executes an x87 instruction on a state of 108 bytes as FNSAVE has it with 32-bit operands in protected mode.
/// Exceptions of it, masked or not, are in the state afterwards; none may be pending before.
///
/// `index`: with a register operand, the low three bits of the first byte times 64 plus the low six of the second; with
/// a memory operand, which `memory` points to, 512 plus those three bits times 8 plus the reg field.
/// `flags`: CF, PF, AF, ZF, SF and OF before and, with others, after.
void chostfloat_x87(uint32_t index, void *state, void *memory, uint64_t *flags);

#endif
#endif
