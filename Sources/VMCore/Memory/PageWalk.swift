/// Translates guest virtual addresses the way the processor does, without its side effects.
///
/// Source: Intel SDM Vol. 3A, chapter 4.
public struct PageWalk {
    let memory: GuestMemory
    let state: CoreRegisters

    public init(memory: GuestMemory, state: CoreRegisters) {
        self.memory = memory
        self.state = state
    }

    /// An entry of a paging structure that a translation goes through.
    public struct Entry: Equatable, Sendable {
        /// The manual's name of the structure's entries.
        public enum Level: String, Sendable {
            case pml4 = "PML4E"
            case directoryPointer = "PDPTE"
            case directory = "PDE"
            case table = "PTE"
        }

        public var level: Level
        /// Where the entry is.
        public var address: GuestPhysicalAddress
        public var value: UInt64
        /// 4 or 8.
        public var bytes: Int
        /// Whether it maps a page, and doesn't refer to another structure.
        public var isLeaf: Bool

        public var isPresent: Bool { value & 1 == 1 }
    }

    private static let addressMask: UInt64 = 0x000F_FFFF_FFFF_F000
    private static let pageSizeBit: UInt64 = 1 << 7

    /// The physical address behind a linear address; nil where nothing is mapped or a table lies outside RAM.
    public func physical(_ linear: UInt64) -> GuestPhysicalAddress? { walk(linear) { _ in } }

    /// The entries that the translation of a linear address goes through, down to the first that isn't present, and the
    /// physical address. There are none where paging is off.
    public func entries(_ linear: UInt64) -> (entries: [Entry], physical: GuestPhysicalAddress?) {
        var entries: [Entry] = []
        let physical = walk(linear) { entries.append($0) }
        return (entries, physical)
    }

    private func walk(_ linear: UInt64, _ visit: (Entry) -> Void) -> GuestPhysicalAddress? {
        let control = state.control
        guard control.cr0 >> 31 & 1 == 1 else { return GuestPhysicalAddress(linear & 0xFFFF_FFFF) }
        if control.efer >> 10 & 1 == 1 {
            // Bits 63 to 48 repeat bit 47.
            guard Int64(bitPattern: linear << 16) >> 16 == Int64(bitPattern: linear) else { return nil }
            return walk(linear, table: control.cr3 & Self.addressMask, visit, levels: [
                (.pml4, 39), (.directoryPointer, 30), (.directory, 21), (.table, 12),
            ])
        }
        if control.cr4 >> 5 & 1 == 1 {
            let address = GuestPhysicalAddress((control.cr3 & 0xFFFF_FFE0) + (linear >> 30 & 3) * 8)
            guard let value = memory.load(address, as: UInt64.self) else { return nil }
            visit(Entry(level: .directoryPointer, address: address, value: value, bytes: 8, isLeaf: false))
            guard value & 1 == 1 else { return nil }
            return walk(linear & 0xFFFF_FFFF, table: value & Self.addressMask, visit, levels: [(.directory, 21), (.table, 12)])
        }
        return walk32(linear & 0xFFFF_FFFF, visit)
    }

    private func walk(_ linear: UInt64, table: UInt64, _ visit: (Entry) -> Void, levels: [(Entry.Level, UInt64)])
        -> GuestPhysicalAddress? {
        var table = table
        for (level, shift) in levels {
            let address = GuestPhysicalAddress(table + (linear >> shift & 511) * 8)
            guard let value = memory.load(address, as: UInt64.self) else { return nil }
            let isLeaf = shift == 12 || (shift <= 30 && value & Self.pageSizeBit != 0)
            visit(Entry(level: level, address: address, value: value, bytes: 8, isLeaf: isLeaf))
            guard value & 1 == 1 else { return nil }
            if isLeaf {
                let offset = (UInt64(1) << shift) - 1
                return GuestPhysicalAddress(value & Self.addressMask & ~offset | linear & offset)
            }
            table = value & Self.addressMask
        }
        return nil
    }

    private func walk32(_ linear: UInt64, _ visit: (Entry) -> Void) -> GuestPhysicalAddress? {
        func entry(_ level: Entry.Level, _ address: UInt64, isLeaf: (UInt64) -> Bool) -> Entry? {
            guard let value = memory.load(.init(address), as: UInt32.self).map(UInt64.init) else { return nil }
            let entry = Entry(level: level, address: .init(address), value: value, bytes: 4, isLeaf: isLeaf(value))
            visit(entry)
            return entry.isPresent ? entry : nil
        }
        let hasLargePages = state.control.cr4 >> 4 & 1 == 1
        guard let upper = entry(.directory, (state.control.cr3 & 0xFFFF_F000) + (linear >> 22) * 4, isLeaf: {
            hasLargePages && $0 & Self.pageSizeBit != 0
        }) else { return nil }
        if upper.isLeaf {
            let high = (upper.value >> 13 & 0xFF) << 32
            return GuestPhysicalAddress(high | upper.value & 0xFFC0_0000 | linear & 0x3F_FFFF)
        }
        guard let lower = entry(.table, (upper.value & 0xFFFF_F000) + (linear >> 12 & 1023) * 4, isLeaf: { _ in true })
        else { return nil }
        return GuestPhysicalAddress(lower.value & 0xFFFF_F000 | linear & 0xFFF)
    }

    /// Bytes at a linear address, as many of `count` as are mapped and RAM.
    public func bytes(at linear: UInt64, count: Int) -> [UInt8] {
        var result: [UInt8] = []
        while result.count < count {
            let address = linear &+ UInt64(result.count)
            let run = min(count - result.count, pageSize - Int(address & 0xFFF))
            guard let physical = physical(address), let part = memory.read(physical, count: run) else { break }
            result += part
        }
        return result
    }

    /// The length of the instruction at RIP when it is a repeated string instruction; nil otherwise.
    public func repeatedStringLength() -> Int? {
        let code = bytes(at: state.linearRIP, count: 15)
        let is64 = state.control.efer >> 10 & 1 == 1 && state.cs.attributes >> 9 & 1 == 1
        var repeats = false
        for (i, byte) in code.enumerated() {
            switch byte {
            case 0xF2, 0xF3: repeats = true
            case 0x26, 0x2E, 0x36, 0x3E, 0x64...0x67: continue
            case 0x40...0x4F where is64: continue
            case 0x6C...0x6F, 0xA4...0xA7, 0xAA...0xAF: return repeats ? i + 1 : nil
            default: return nil
            }
        }
        return nil
    }
}
