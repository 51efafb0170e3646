/// A line of the memory map that a PC's firmware reports.
///
/// ACPI specification 6.5, section 15, "System Address Map Interfaces", table 15.5 for the types.
public struct MemoryMapEntry: Equatable, Sendable {
    public enum Kind: UInt32, Sendable {
        case ram = 1
        case reserved = 2
    }

    public var base: UInt64
    /// In bytes.
    public var length: UInt64
    public var kind: Kind

    /// Where base memory ends and the BIOS's own data would begin.
    static let baseMemoryEnd: UInt64 = 0x9_FC00
    /// Where firmware lies, and with it the ACPI tables.
    static let firmware: Range<UInt64> = 0xF_0000..<0x10_0000

    /// The map as a PC BIOS reports it: 639 KiB of base memory, RAM from 1 MiB up.
    public static func all(of map: MemoryLayoutMap) -> [Self] {
        let fixed = [
            Self(base: 0, length: baseMemoryEnd, kind: .ram), Self(base: baseMemoryEnd, length: 0x400, kind: .reserved),
            Self(base: firmware.lowerBound, length: 0x1_0000, kind: .reserved),
        ]
        return fixed + map.regions.filter { $0.end.rawValue > 1 << 20 }.map { region in
            let start = max(region.address.rawValue, 1 << 20)
            return Self(base: start, length: region.end.rawValue - start, kind: .ram)
        }
    }

    /// Base, length and type, as in the E820 map: 20 bytes.
    var bytes: [UInt8] { base.bytes + length.bytes + kind.rawValue.bytes }
}

extension MemoryLayoutMap {
    /// Where RAM below 4 GiB ends.
    var lowEnd: UInt64 { regions.filter { $0.address.rawValue < 4 << 30 }.map(\.end.rawValue).max() ?? 0 }
}
