/// What instructions leave in flags that the manuals call undefined: as AMD processors of family 19h do, measured by the
/// differential tests, whose user mode is the processor's own. In one place, so that another processor's ways can be
/// chosen.
enum UndefinedFlags {
    static func afterMultiplication(_ core: Core, low: UInt64, overflow: Bool) {
        // SF, ZF, AF and PF stay as they were.
        core.setCarryOverflow(overflow, overflow)
    }

    static func afterDivision(_ core: Core) {
        // CF and OF stay as they were.
        core.setArithmetic(core.rflags & (Flag.cf | Flag.of) | Flag.af)
    }

    static func afterCount(_ core: Core, isZero: Bool, carry: Bool) {
        // OF stays as it was.
        core.setArithmetic(core.rflags & Flag.of | (carry ? Flag.cf : 0) | (isZero ? Flag.zf : 0))
    }

    /// AF after a shift by other than 0.
    static let shiftedAF = true

    static func afterBitManipulation<T: Word>(_ core: Core, result: T, carry: Bool) {
        // AF is cleared, PF is the result's.
        core.setResult(result, cf: carry, of: false, af: false)
    }

    /// BEXTR.
    static func afterBitField<T: Word>(_ core: Core, result: T) {
        // AF is set, SF cleared, PF the result's.
        core.setResult(result, cf: false, of: false, af: true)
        if core.sf { core.setArithmetic(core.rflags & Flag.arithmetic & ~Flag.sf) }
    }

    /// BSF and BSR.
    static func afterScan<T: Word>(_ core: Core, _ result: T, isZero: Bool) {
        // CF, AF, SF and OF are cleared, PF is the result's.
        core.setResult(result, cf: false, of: false, af: false)
        let parity = core.pf ? Flag.pf : 0
        core.setArithmetic(parity | (isZero ? Flag.zf : 0))
    }
}
