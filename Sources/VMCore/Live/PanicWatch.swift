/// Finds out from a console that a Linux kernel has panicked.
///
/// The kernel's message stands at the start of a line, after a time stamp and a caller's number if it prints them: what
/// a program prints is mistaken for it only where it prints just that.
///
/// Source: Linux, kernel/panic.c for the messages, kernel/printk/printk.c, `info_print_prefix`, for what stands before.
public struct PanicWatch: Sendable {
    private static let begin = Array("Kernel panic - not syncing".utf8)
    private static let end = Array("---[ end Kernel panic - not syncing".utf8)
    /// Longer than the prefixes and either message.
    private static let lineLimit = 128

    /// The present line up to the end of what matters.
    private var line: [UInt8] = []
    public private(set) var hasPanicked = false
    /// Whether the kernel has printed its last line. One that is to reset the machine never does.
    public private(set) var isOver = false

    public init() {}

    /// Takes what the guest has written to the console.
    public mutating func see(_ bytes: [UInt8]) {
        for byte in bytes {
            switch byte {
            case UInt8(ascii: "\n"):
                check()
                line.removeAll(keepingCapacity: true)
            case UInt8(ascii: "\r"): continue
            default: if line.count < Self.lineLimit { line.append(byte) }
            }
        }
    }

    private mutating func check() {
        let text = Self.withoutPrefixes(line[...])
        if text.starts(with: Self.begin) { hasPanicked = true }
        if hasPanicked, text.starts(with: Self.end) { isOver = true }
    }

    /// Takes `[    1.234567]` and `[    T1]` off.
    private static func withoutPrefixes(_ line: ArraySlice<UInt8>) -> ArraySlice<UInt8> {
        var rest = line
        while rest.first == UInt8(ascii: "["), let close = rest.firstIndex(of: UInt8(ascii: "]")) {
            rest = rest[(close + 1)...].drop { $0 == UInt8(ascii: " ") }
        }
        return rest
    }
}
