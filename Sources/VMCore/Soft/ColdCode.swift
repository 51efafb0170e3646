/// Instructions that one generic handler each executes: everything that isn't worth a micro-op of its own.
///
/// Up to 256 of them, so that the code is a byte. Vector instructions, which are more, share a few.
enum ColdCode: UInt8 {
    case none, undefined, overlong
    // Data movement. `move16`: MOVZX, MOVSX with 16-bit results; `far`: LDS and its kind.
    case xchg, xadd, cmpxchg, cmpxchg8b, cmpxchg16b, bswap, movbe, zeroExtendTo16, signExtendTo16, lea16, cmov16
    case push, pop, pushSegment, popSegment, pusha, popa, pushf, popf, enter, leave, loadFar, xlat, movFromSegment
    case movToSegment
    // Arithmetic and bits.
    case mul, imul1, imul16, imulImm16, div, idiv, shift, shld, shrd, cbw, cwd, lahf, sahf, clc, stc, cmc, cld, std, salc
    case bt, bts, btr, btc, bsf, bsr, tzcnt, lzcnt, popcnt, crc32, adcx, adox
    case andn, bextr, blsi, blsmsk, blsr, bzhi, pdep, pext, mulx, rorx, sarx, shlx, shrx
    case daa, das, aaa, aas, aam, aad, bound, arpl
    case aluModify
    // Strings and ports.
    case movs, cmps, scas, lods, stos, ins, outs, `in`, out
    // Control transfer.
    case jmpNear, callNear, callRelative, retNear, jmpFar, callFar, retFar, iret, int, int3, into, int1
    case loop, loope, loopne, jcxz
    case syscall, sysret, sysenter, sysexit
    // The system.
    case cli, sti, hlt, cpuid, rdtsc, rdtscp, rdmsr, wrmsr, rdpmc, rdrand, rdseed
    case movFromControl, movToControl, movFromDebug, movToDebug, clts, lmsw, smsw
    case lgdt, lidt, sgdt, sidt, lldt, sldt, ltr, str, lar, lsl, verr, verw
    case invlpg, invd, swapgs, rdfsbase, rdgsbase, wrfsbase, wrgsbase, clac, stac, xgetbv, xsetbv, vmcall
    // The x87 and vectors: groups and what doesn't fit one. Which instruction it is stands in the immediate field.
    case x87, ldmxcsr, stmxcsr, emms, fxsave, fxrstor, xsave, xrstor, vectorMaskMove, vectorMasked, vectorGather
    case vectorMove, vectorLanes, vectorShuffle, vectorFloat, vectorFloatSpecial, vectorFused, vectorText, vectorCipher
}
