import VMCore

/// A point of a trace: so many instructions after an exit.
///
/// Written `N` right after exit N, settled, before anything else enters the guest, and `N+K` when K instructions have
/// been executed since. The entry of an interrupt is no instruction: it comes at its place on the way. A repeated
/// string instruction may count more than once, as the processor may stop within it.
public struct Position: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var exit: ExitNumber
    /// Instructions executed since the exit.
    public var instructions: UInt64

    public init(exit: ExitNumber, instructions: UInt64 = 0) {
        self.exit = exit
        self.instructions = instructions
    }

    /// Parses `N` or `N+K`, both decimal; nil for anything else.
    public init?(_ text: String) {
        let parts = text.split(separator: "+", maxSplits: 1, omittingEmptySubsequences: false).map { decimal(String($0)) }
        guard let exit = parts[0] else { return nil }
        self.init(exit: ExitNumber(exit))
        if parts.count == 2 {
            guard let count = parts[1] else { return nil }
            instructions = count
        }
    }

    public static func < (a: Self, b: Self) -> Bool { (a.exit, a.instructions) < (b.exit, b.instructions) }

    public var description: String { instructions == 0 ? "\(exit.rawValue)" : "\(exit.rawValue)+\(instructions)" }
}

/// A number of decimal digits alone; nil for anything else.
func decimal(_ text: String) -> UInt64? {
    text.utf8.allSatisfy { (0x30...0x39).contains($0) } ? UInt64(text) : nil
}
