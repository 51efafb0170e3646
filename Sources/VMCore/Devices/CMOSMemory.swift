/// The 128 bytes behind ports 0x70 and 0x71: clock registers first, then battery-backed memory.
///
/// The addresses that PC firmware and boot code use are those of the IBM PC/AT Technical Reference, "Real-Time
/// Clock/CMOS RAM Information", and, above 0x34, those that SeaBIOS and OVMF read.
struct CMOSMemory: Codable, Equatable, Sendable {
    static let size = 128

    private enum Address {
        static let equipment: UInt8 = 0x14
        static let baseMemory: UInt8 = 0x15
        static let extendedMemory: UInt8 = 0x17
        static let checksummed: ClosedRange<UInt8> = 0x10...0x2d
        static let checksum: UInt8 = 0x2e
        static let extendedMemoryFound: UInt8 = 0x30
        static let memoryAbove16MiB: UInt8 = 0x34
        static let memoryAbove4GiB: UInt8 = 0x5b
        static let extraCPUs: UInt8 = 0x5f
    }

    private var bytes: [UInt8]

    /// Memory as a set-up program would leave it: no floppy or fixed disk, a coprocessor, memory sizes, a checksum.
    ///
    /// - Parameters:
    ///   - memoryBytes: the size of RAM.
    ///   - lowMemoryLimit: where RAM below 4 GiB ends at the latest; what goes beyond continues at 4 GiB.
    init(memoryBytes: UInt64, lowMemoryLimit: UInt64, cpuCount: Int) {
        bytes = [UInt8](repeating: 0, count: Self.size)
        let low = min(memoryBytes, lowMemoryLimit)
        let high = memoryBytes &- low
        let kibibyte: UInt64 = 1 << 10
        let extended = low / kibibyte > 1_024 ? low / kibibyte &- 1_024 : 0
        let above16MiB = low > 16 << 20 ? (low &- 16 << 20) / (64 * kibibyte) : 0

        self[Address.equipment] = 0b0000_0010
        store(min(low / kibibyte, 640), at: Address.baseMemory, count: 2)
        store(min(extended, 0xffff), at: Address.extendedMemory, count: 2)
        store(min(extended, 0xffff), at: Address.extendedMemoryFound, count: 2)
        store(min(above16MiB, 0xffff), at: Address.memoryAbove16MiB, count: 2)
        store(min(high / (64 * kibibyte), 0xff_ffff), at: Address.memoryAbove4GiB, count: 3)
        self[Address.extraCPUs] = UInt8(clamping: max(cpuCount, 1) - 1)

        let sum = Address.checksummed.reduce(UInt16(0)) { $0 &+ UInt16(self[$1]) }
        self[Address.checksum] = UInt8(truncatingIfNeeded: sum >> 8)
        self[Address.checksum + 1] = UInt8(truncatingIfNeeded: sum)
    }

    subscript(address: UInt8) -> UInt8 {
        get { bytes[Int(address & 0x7f)] }
        set { bytes[Int(address & 0x7f)] = newValue }
    }

    private mutating func store(_ value: UInt64, at address: UInt8, count: UInt8) {
        for i in 0..<count {
            self[address &+ i] = UInt8(truncatingIfNeeded: value >> UInt64(8 * i))
        }
    }

    init(from decoder: any Decoder) throws {
        let container = try decoder.singleValueContainer()
        bytes = try container.decode([UInt8].self)
        guard bytes.count == Self.size else {
            throw DecodingError.dataCorruptedError(
                in: container, debugDescription: "CMOS memory of \(bytes.count) bytes; it has \(Self.size)")
        }
    }

    func encode(to encoder: any Encoder) throws {
        var container = encoder.singleValueContainer()
        try container.encode(bytes)
    }
}
