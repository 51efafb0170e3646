/// The device that kvm-unit-tests expect: QEMU's pc-testdev.
///
/// | where | what |
/// |---|---|
/// | ports 0xe0 to 0xe3 | a 32-bit latch, read and written in any size |
/// | ports 0xe4 to 0xe7 | flush: makes a guest page come and go; here memory is always present, so nothing happens |
/// | ports 0xe8 to 0xeb | the same latch through a byte-wide window |
/// | ports 0x2000 to 0x2017 | a byte sets interrupt line 0 to 23: 0 low, else high; reads give the level |
/// | memory at 0xff000000 | 64 KiB that keep what is written, each access an exit |
///
/// Offsets are absolute port numbers.
public struct TestDevice: BytePortDevice {
    public static let latchPorts: ClosedRange<UInt16> = 0xe0...0xe3
    public static let flushPorts: ClosedRange<UInt16> = 0xe4...0xe7
    public static let bytePorts: ClosedRange<UInt16> = 0xe8...0xeb
    public static let linePorts: ClosedRange<UInt16> = 0x2000...0x2017
    public static let windowBase: UInt64 = 0xff00_0000
    public static let windowSize = 0x1_0000

    /// A change of an interrupt line, in the order in which the guest made them.
    struct LineChange: Codable, Equatable, Sendable {
        var line: UInt8
        var level: Bool
    }

    private var latch: UInt32 = 0
    /// Levels of the interrupt lines, a bit each.
    private var lines: UInt32 = 0
    private var lineChanges: [LineChange] = []
    /// Empty while it holds nothing but zeros.
    @DataCoded private var window: [UInt8] = []

    public init() {}

    private enum CodingKeys: String, CodingKey { case latch, lines, lineChanges, window }

    public init(from decoder: any Decoder) throws {
        let container = try decoder.container(keyedBy: CodingKeys.self)
        latch = try container.decode(UInt32.self, forKey: .latch)
        lines = try container.decode(UInt32.self, forKey: .lines)
        lineChanges = try container.decode([LineChange].self, forKey: .lineChanges)
        _window = try container.decode(DataCoded.self, forKey: .window)
        guard window.isEmpty || window.count == Self.windowSize else {
            throw DecodingError.dataCorruptedError(
                forKey: .window, in: container, debugDescription: "a test window of \(window.count) bytes")
        }
    }

    public var hasLineChanges: Bool { !lineChanges.isEmpty }

    /// Changes of interrupt lines since the last call, oldest first.
    public mutating func takeLineChanges() -> [(gsi: Int, level: Bool)] {
        guard !lineChanges.isEmpty else { return [] }
        defer { lineChanges = [] }
        return lineChanges.map { (gsi: Int($0.line), level: $0.level) }
    }

    public mutating func readByte(_ port: UInt16, at now: Nanoseconds) -> UInt8 {
        switch port {
        case Self.latchPorts, Self.bytePorts: UInt8(truncatingIfNeeded: latch >> Self.latchShift(port))
        case Self.linePorts: UInt8(truncatingIfNeeded: lines >> Self.line(port) & 1)
        default: 0xff
        }
    }

    public mutating func writeByte(_ port: UInt16, _ value: UInt8, at now: Nanoseconds) {
        switch port {
        case Self.latchPorts, Self.bytePorts:
            let shift = Self.latchShift(port)
            latch = latch & ~(0xff << shift) | UInt32(value) << shift
        case Self.linePorts:
            let line = Self.line(port)
            let level = value != 0
            guard level != (lines >> line & 1 != 0) else { return }
            lines ^= 1 << line
            lineChanges.append(LineChange(line: UInt8(truncatingIfNeeded: line), level: level))
        default: break
        }
    }

    /// Reads `size` bytes (1 to 8) of the window; an access past its end wraps around to its start.
    public mutating func readWindow(offset: UInt64, size: Int) -> UInt64 {
        guard !window.isEmpty else { return 0 }
        var value: UInt64 = 0
        for i in 0..<min(max(size, 0), 8) {
            value |= UInt64(window[Self.windowIndex(offset, i)]) << UInt64(8 &* i)
        }
        return value
    }

    /// Writes the low `size` bytes (1 to 8) of `value` into the window.
    public mutating func writeWindow(offset: UInt64, size: Int, value: UInt64) {
        if window.isEmpty { window = [UInt8](repeating: 0, count: Self.windowSize) }
        for i in 0..<min(max(size, 0), 8) {
            window[Self.windowIndex(offset, i)] = UInt8(truncatingIfNeeded: value >> UInt64(8 &* i))
        }
    }

    private static func latchShift(_ port: UInt16) -> UInt32 { UInt32(port & 3) &* 8 }

    private static func line(_ port: UInt16) -> UInt32 { UInt32(port &- linePorts.lowerBound) & 31 }

    private static func windowIndex(_ offset: UInt64, _ i: Int) -> Int {
        Int((offset &+ UInt64(i)) & UInt64(windowSize - 1))
    }
}
