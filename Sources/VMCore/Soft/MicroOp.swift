/// One step of an instruction: what the decoder makes and the run loop executes. 32 bytes, so that two fit a cache line.
///
/// Most instructions are one micro-op. Arithmetic on memory is a load into T0, the operation on T0, and a store: the
/// load checks that the store will succeed, so that a fault leaves nothing half-done.
struct MicroOp {
    var code: OpCode
    /// For `cold` and `coldEnd`: the instruction.
    var cold: ColdCode
    /// Slots of the destination and the source.
    var a: UInt8
    var b: UInt8
    // The address: base + index << scale + displacement, cut to `mask`, plus the base of a segment.
    var base: UInt8
    var index: UInt8
    var scale: UInt8
    var segment: UInt8
    var displacement: Int32
    /// Where the instruction lies, in bytes from the start of its block.
    var offset: UInt16
    var length: UInt8
    var form: Form
    /// The immediate operand, sign-extended; for branches, the distance of the target from the start of the block.
    var imm: UInt64
    /// The address mask; for direct branches, what the target is cut to; for instructions that are cold, `mask` and other
    /// things by instruction.
    var mask: UInt64

    /// What the generic handlers want to know of the operands.
    struct Form {
        var bits: UInt8

        /// Logarithm of the operand size in bytes.
        var size: UInt8 { bits & 3 }
        /// The first operand is in memory.
        static let memoryA: UInt8 = 4
        /// The second operand is in memory.
        static let memoryB: UInt8 = 8
        /// The last operand is the immediate.
        static let immediate: UInt8 = 16
        /// Segment limits and rights apply.
        static let checked: UInt8 = 32
        static let rep: UInt8 = 64
        static let repne: UInt8 = 128

        @inline(__always) func has(_ bit: UInt8) -> Bool { bits & bit != 0 }
    }
}

/// Micro-ops. Families that differ in operand size stand in the order 8, 16, 32, 64 bits, with the immediate forms
/// after them.
enum OpCode: UInt8 {
    case mov8, mov16, mov32, mov64
    case movImm8, movImm16, movImm32, movImm64
    case load8, load16, load32, load64
    case store8, store16, store32, store64
    case storeImm8, storeImm16, storeImm32, storeImm64
    /// Loads into T0 what a store of the same instruction will replace.
    case loadToModify8, loadToModify16, loadToModify32, loadToModify64
    case storeModified8, storeModified16, storeModified32, storeModified64
    // The same with segment limits and rights checked; sizes in `form`.
    case loadChecked, storeChecked, storeImmChecked, loadToModifyChecked
    case add8, add16, add32, add64
    case addImm8, addImm16, addImm32, addImm64
    case or8, or16, or32, or64
    case orImm8, orImm16, orImm32, orImm64
    case adc8, adc16, adc32, adc64
    case adcImm8, adcImm16, adcImm32, adcImm64
    case sbb8, sbb16, sbb32, sbb64
    case sbbImm8, sbbImm16, sbbImm32, sbbImm64
    case and8, and16, and32, and64
    case andImm8, andImm16, andImm32, andImm64
    case sub8, sub16, sub32, sub64
    case subImm8, subImm16, subImm32, subImm64
    case xor8, xor16, xor32, xor64
    case xorImm8, xorImm16, xorImm32, xorImm64
    case cmp8, cmp16, cmp32, cmp64
    case cmpImm8, cmpImm16, cmpImm32, cmpImm64
    case test8, test16, test32, test64
    case testImm8, testImm16, testImm32, testImm64
    case inc8, inc16, inc32, inc64
    case dec8, dec16, dec32, dec64
    case neg8, neg16, neg32, neg64
    case not8, not16, not32, not64
    // To 32 (and so to 64) bits, from a register or from memory.
    case zeroExtend8, zeroExtend16, signExtend8to32, signExtend8to64, signExtend16to32, signExtend16to64, signExtend32
    case loadSigned8to32, loadSigned8to64, loadSigned16to32, loadSigned16to64, loadSigned32
    case lea32, lea64
    case cmov32, cmov64
    case set
    case shlImm32, shlImm64, shrImm32, shrImm64, sarImm32, sarImm64, rolImm32, rolImm64, rorImm32, rorImm64
    case imul32, imul64, imulImm32, imulImm64
    case push64, pushImm64, pop64
    case nop
    case vector
    case cold
    // What ends a block.
    case coldEnd
    case leave
    case jmp, call64, jmpRegister64, callRegister64, ret64
    case jo, jno, jb, jae, je, jne, jbe, ja, js, jns, jp, jnp, jl, jge, jle, jg
}
