/// What a processor leaves in flags that the manuals call undefined. They reach memory with every interrupt, so an engine
/// that takes over from another must leave the same.
///
/// As it is made: the ways of AMD processors of family 19h, measured. QEMU's emulated processors have the other ways.
/// What is measured for a trace is in its CPU model. BT and its kin: `ProcessorProfile.bitTestsVary`. Not measured: RCL and RCR
/// by more than 1.
public struct UndefinedFlags: Codable, Equatable, Sendable {
    /// MUL and IMUL: SF, ZF and PF are of the lower half of the product, and AF is 0. Otherwise all four stay.
    public var multiplicationSetsResult = false
    /// DIV and IDIV change no flag. Otherwise CF and OF stay, AF is 1, the others are 0.
    public var divisionKeepsAll = false
    /// AF after a shift by other than 0.
    public var shiftSetsAuxiliary = true
    /// BSF and BSR: the flags are those of the AND of the source with itself. Otherwise all but ZF stay.
    public var scanTestsSource = false
    /// BSF and BSR: PF is of the destination afterwards, and all but PF and ZF are 0, as AMD processors of family 19h
    /// have it when no KVM emulates them.
    public var scanSetsResult = false

    public init() {}

    /// A way that a trace doesn't mention is the one that vmrr had before it measured it.
    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        func flag(_ key: CodingKeys, _ fallback: Bool) throws -> Bool {
            try values.decodeIfPresent(Bool.self, forKey: key) ?? fallback
        }
        multiplicationSetsResult = try flag(.multiplicationSetsResult, multiplicationSetsResult)
        divisionKeepsAll = try flag(.divisionKeepsAll, divisionKeepsAll)
        shiftSetsAuxiliary = try flag(.shiftSetsAuxiliary, shiftSetsAuxiliary)
        scanTestsSource = try flag(.scanTestsSource, scanTestsSource)
        scanSetsResult = try flag(.scanSetsResult, scanSetsResult)
    }
}
