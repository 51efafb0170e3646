/// What a processor leaves in flags that the manuals call undefined. They reach memory with every interrupt, so an engine
/// that takes over from another must leave the same.
///
/// As it is made: the ways of AMD processors of family 19h, measured. Intel's of family 6, model 207 (the same rule for each of
/// 200,000 operands, flags and counts an instruction and size) and QEMU's emulated ones have other ways. What is measured for a trace is in its CPU model. BT and its kin: `ProcessorProfile.bitTestsVary`. Not measured: RCL and RCR
/// by more than 1.
public struct UndefinedFlags: Codable, Equatable, Sendable {
    /// MUL and IMUL: SF, ZF and PF are of the lower half of the product, and AF is 0. Otherwise all four stay.
    public var multiplicationSetsResult = false
    /// Of these, ZF is 0 also where the lower half is 0, as Intel's have it.
    public var multiplicationClearsZero = false
    /// DIV and IDIV change no flag. Otherwise CF and OF stay, AF is 1, the others are 0.
    public var divisionKeepsAll = false
    /// AF after a shift by other than 0.
    public var shiftSetsAuxiliary = true
    /// OF after a shift or rotation by more than one bit is what the first bit's shift makes of it, as Intel's have it; CF and OF
    /// stay after RCL and RCR by as many bits as there are with CF. Otherwise OF is worked out from the result.
    public var shiftsOverflowAtOnce = false
    /// ROL and ROR of a register by an immediate other than 1 leave OF alone, as Intel's have it.
    public var rotationsKeepOverflow = false
    /// SHLD and SHRD of 16 bits by more than 16: the bits behind the second operand are the first one's again, as Intel's and
    /// QEMU's have it. Otherwise the second operand's, and CF is 0.
    public var doubleShiftsReturn = false
    /// ANDN, BEXTR, BLSI, BLSMSK, BLSR, BZHI, LZCNT and TZCNT: all flags that they leave undefined are 0, as Intel's have it.
    public var bitManipulationClears = false
    /// BSF and BSR: the flags are those of the AND of the source with itself. Otherwise all but ZF stay.
    public var scanTestsSource = false
    /// BSF and BSR: PF is of the destination afterwards, and all but PF and ZF are 0, as Intel's have it, and AMD's of family 19h
    /// when no KVM emulates them.
    public var scanSetsResult = false

    public init() {}

    /// A way that a trace doesn't mention is the one that vmrr had before it measured it.
    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        multiplicationSetsResult = try values.value(.multiplicationSetsResult, multiplicationSetsResult)
        divisionKeepsAll = try values.value(.divisionKeepsAll, divisionKeepsAll)
        multiplicationClearsZero = try values.value(.multiplicationClearsZero, multiplicationClearsZero)
        shiftsOverflowAtOnce = try values.value(.shiftsOverflowAtOnce, shiftsOverflowAtOnce)
        rotationsKeepOverflow = try values.value(.rotationsKeepOverflow, rotationsKeepOverflow)
        doubleShiftsReturn = try values.value(.doubleShiftsReturn, doubleShiftsReturn)
        bitManipulationClears = try values.value(.bitManipulationClears, bitManipulationClears)
        shiftSetsAuxiliary = try values.value(.shiftSetsAuxiliary, shiftSetsAuxiliary)
        scanTestsSource = try values.value(.scanTestsSource, scanTestsSource)
        scanSetsResult = try values.value(.scanSetsResult, scanSetsResult)
    }
}
