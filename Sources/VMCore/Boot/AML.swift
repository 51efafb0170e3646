/// A term of the ACPI machine language, as much of it as this machine's tables need: names, devices, resources.
///
/// ACPI specification 6.5, section 20.2 "AML Grammar Definition".
public indirect enum AMLTerm: Equatable, Sendable {
    /// Name (PATH, value)
    case name(String, AMLValue)
    /// Scope (PATH) {terms}
    case scope(String, [AMLTerm])
    /// Device (NAME) {terms}
    case device(String, [AMLTerm])

    /// The term in AML. Names are at most four characters a segment; a leading backslash is the root.
    public var bytes: [UInt8] {
        switch self {
        case .name(let path, let value): [Opcode.name] + Self.nameString(path) + value.bytes
        case .scope(let path, let terms):
            [Opcode.scope] + Self.package(Self.nameString(path) + terms.flatMap(\.bytes))
        case .device(let path, let terms):
            [Opcode.extended, Opcode.device] + Self.package(Self.nameString(path) + terms.flatMap(\.bytes))
        }
    }

    enum Opcode {
        static let zero: UInt8 = 0x00
        static let one: UInt8 = 0x01
        static let name: UInt8 = 0x08
        static let byte: UInt8 = 0x0A
        static let word: UInt8 = 0x0B
        static let doubleWord: UInt8 = 0x0C
        static let string: UInt8 = 0x0D
        static let quadWord: UInt8 = 0x0E
        static let scope: UInt8 = 0x10
        static let buffer: UInt8 = 0x11
        static let package: UInt8 = 0x12
        static let dualName: UInt8 = 0x2E
        static let multiName: UInt8 = 0x2F
        static let extended: UInt8 = 0x5B
        static let root: UInt8 = 0x5C
        /// After `extended`.
        static let device: UInt8 = 0x82
    }

    /// 20.2.2: segments of four characters, filled up with underscores.
    static func nameString(_ path: String) -> [UInt8] {
        let isRooted = path.hasPrefix("\\")
        let segments = path.drop { $0 == "\\" }.split(separator: ".").map { segment in
            Array((segment + "____").utf8.prefix(4))
        }
        let prefix: [UInt8] = switch segments.count {
        case 0: [0]  // the null name: the root itself
        case 1: []
        case 2: [Opcode.dualName]
        default: [Opcode.multiName, UInt8(truncatingIfNeeded: segments.count)]
        }
        return (isRooted ? [Opcode.root] : []) + prefix + segments.joined()
    }

    /// 20.2.4: `content` after its length, which counts its own bytes too.
    static func package(_ content: [UInt8]) -> [UInt8] {
        if content.count + 1 < 1 << 6 { return [UInt8(content.count + 1)] + content }
        // The low four bits stand in the first byte, which also says how many bytes follow.
        let extra = content.count + 2 < 1 << 12 ? 1 : content.count + 3 < 1 << 20 ? 2 : 3
        let length = content.count + 1 + extra
        let rest = (0..<extra).map { UInt8(truncatingIfNeeded: length >> (4 + 8 * $0)) }
        return [UInt8(extra << 6 | length & 0xF)] + rest + content
    }
}

/// The value of a name.
public indirect enum AMLValue: Equatable, Sendable {
    case integer(UInt64)
    case string(String)
    /// A plug-and-play identifier such as PNP0501, as the EisaId macro packs it (19.6.37).
    case eisaID(String)
    case package([AMLValue])
    /// A buffer with resource descriptors and their end tag.
    case resources([ACPIResource])

    var bytes: [UInt8] {
        switch self {
        case .integer(0): [AMLTerm.Opcode.zero]
        case .integer(1): [AMLTerm.Opcode.one]
        case .integer(let value) where value <= 0xFF: [AMLTerm.Opcode.byte, UInt8(value)]
        case .integer(let value) where value <= 0xFFFF: [AMLTerm.Opcode.word] + UInt16(value).bytes
        case .integer(let value) where value <= 0xFFFF_FFFF: [AMLTerm.Opcode.doubleWord] + UInt32(value).bytes
        case .integer(let value): [AMLTerm.Opcode.quadWord] + value.bytes
        case .string(let text): [AMLTerm.Opcode.string] + text.utf8 + [0]
        case .eisaID(let text): [AMLTerm.Opcode.doubleWord] + Self.packed(text)
        case .package(let values):
            [AMLTerm.Opcode.package]
                + AMLTerm.package([UInt8(truncatingIfNeeded: values.count)] + values.flatMap(\.bytes))
        case .resources(let resources): Self.buffer(resources.flatMap(\.bytes) + ACPIResource.end)
        }
    }

    private static func buffer(_ content: [UInt8]) -> [UInt8] {
        [AMLTerm.Opcode.buffer] + AMLTerm.package(AMLValue.integer(UInt64(content.count)).bytes + content)
    }

    /// Three letters of five bits each, then four hexadecimal digits, high byte first.
    private static func packed(_ text: String) -> [UInt8] {
        let letters = text.utf8.prefix(3).reduce(UInt16(0)) { $0 << 5 | UInt16($1 &- 0x40) & 0x1F }
        let digits = UInt16(text.dropFirst(3), radix: 16) ?? 0
        return letters.bytes.reversed() + digits.bytes.reversed()
    }
}

/// What a device occupies. ACPI specification 6.5, section 6.4 "Resource Data Types".
public enum ACPIResource: Equatable, Sendable {
    /// Ports, decoded with 16 bits.
    case ports(UInt16, count: UInt8)
    /// An ISA interrupt, edge-triggered and active high.
    case interrupt(Int)
    /// A window in memory that can be written.
    case memory(UInt32, bytes: UInt32)

    var bytes: [UInt8] {
        switch self {
        case .ports(let first, let count): [0x47, 1] + first.bytes + first.bytes + [1, count]
        case .interrupt(let number): [0x22] + (UInt16(1) << UInt16(number)).bytes
        case .memory(let base, let count): [0x86, 9, 0, 1] + base.bytes + count.bytes
        }
    }

    /// The end tag; a checksum of 0 stands for a good one.
    static let end: [UInt8] = [0x79, 0]
}
