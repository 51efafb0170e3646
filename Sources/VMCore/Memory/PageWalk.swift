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

    private static let addressMask: UInt64 = 0x000F_FFFF_FFFF_F000

    /// The physical address behind a linear address; nil where nothing is mapped or a table lies outside RAM.
    public func physical(_ linear: UInt64) -> GuestPhysicalAddress? {
        let control = state.control
        guard control.cr0 >> 31 & 1 == 1 else { return GuestPhysicalAddress(linear & 0xFFFF_FFFF) }
        if control.efer >> 10 & 1 == 1 {
            return walk64(linear, table: control.cr3 & Self.addressMask, shifts: [39, 30, 21, 12])
        }
        if control.cr4 >> 5 & 1 == 1 {
            let top = control.cr3 & 0xFFFF_FFE0
            guard let entry = memory.load(.init(top + (linear >> 30 & 3) * 8), as: UInt64.self), entry & 1 == 1 else {
                return nil
            }
            return walk64(linear & 0xFFFF_FFFF, table: entry & Self.addressMask, shifts: [21, 12])
        }
        return walk32(UInt32(truncatingIfNeeded: linear))
    }

    private func walk64(_ linear: UInt64, table: UInt64, shifts: [UInt64]) -> GuestPhysicalAddress? {
        var table = table
        for shift in shifts {
            guard let entry = memory.load(.init(table + (linear >> shift & 511) * 8), as: UInt64.self), entry & 1 == 1
            else { return nil }
            if shift == 12 || (shift <= 30 && entry >> 7 & 1 == 1) {
                let offsetMask = (UInt64(1) << shift) - 1
                return GuestPhysicalAddress(entry & Self.addressMask & ~offsetMask | linear & offsetMask)
            }
            table = entry & Self.addressMask
        }
        return nil
    }

    private func walk32(_ linear: UInt32) -> GuestPhysicalAddress? {
        let directory = UInt64(state.control.cr3 & 0xFFFF_F000)
        guard let entry = memory.load(.init(directory + UInt64(linear >> 22) * 4), as: UInt32.self), entry & 1 == 1
        else { return nil }
        if entry >> 7 & 1 == 1, state.control.cr4 >> 4 & 1 == 1 {
            let high = UInt64(entry >> 13 & 0xFF) << 32
            return GuestPhysicalAddress(high | UInt64(entry & 0xFFC0_0000) | UInt64(linear & 0x3F_FFFF))
        }
        let table = UInt64(entry & 0xFFFF_F000)
        guard let page = memory.load(.init(table + UInt64(linear >> 12 & 1023) * 4), as: UInt32.self), page & 1 == 1
        else { return nil }
        return GuestPhysicalAddress(UInt64(page & 0xFFFF_F000) | UInt64(linear & 0xFFF))
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
