/// Where interrupts and returns lead, read from memory the way the processor does.
extension CoreRegisters {
    /// The linear address of the handler of `vector`; nil where there is no gate that leads to code.
    ///
    /// Source: Intel SDM Vol. 3A, 6.10 to 6.14; Vol. 3B, 20.1.4 for real mode.
    public func handler(of vector: UInt8, in memory: GuestMemory) -> UInt64? {
        let walk = PageWalk(memory: memory, state: self)
        func load(_ address: UInt64, _ count: Int) -> UInt64? {
            let bytes = walk.bytes(at: address, count: count)
            return bytes.count == count ? bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) } : nil
        }
        if control.cr0 & 1 == 0 {
            guard let entry = load(idtr.base + 4 * UInt64(vector), 4) else { return nil }
            return (entry >> 16) << 4 + entry & 0xFFFF
        }
        let isLong = control.efer >> 10 & 1 == 1
        let gate = idtr.base + (isLong ? 16 : 8) * UInt64(vector)
        guard let low = load(gate, 8), low >> 47 & 1 == 1 else { return nil }
        let type = low >> 40 & 0xF
        guard type == 0xE || type == 0xF || !isLong && (type == 6 || type == 7) else { return nil }
        var offset = low & 0xFFFF
        if type >= 0xE { offset |= low >> 32 & 0xFFFF_0000 }
        if isLong {
            guard let high = load(gate + 8, 4) else { return nil }
            return offset | high << 32
        }
        // The code segment's base is in its descriptor.
        let selector = low >> 16 & 0xFFFF
        let table = selector & 4 == 0 ? gdtr.base : ldtr.base
        guard let descriptor = load(table + selector & ~7, 8) else { return nil }
        let base = descriptor >> 16 & 0xFF_FFFF | (descriptor >> 56) << 24
        return (offset + base) & 0xFFFF_FFFF
    }

    /// Whether the instruction at RIP is a return that lowers the privilege from CPL 0 to 3.
    ///
    /// Source: Intel SDM Vol. 2, IRET, RET, SYSEXIT, SYSRET.
    public func returnsToUser(in memory: GuestMemory) -> Bool {
        guard cpl == 0, control.cr0 & 1 == 1 else { return false }
        let walk = PageWalk(memory: memory, state: self)
        let is64 = control.efer >> 10 & 1 == 1 && cs.attributes >> 9 & 1 == 1
        var size: UInt64 = is64 || cs.attributes >> 10 & 1 == 1 ? 4 : 2
        var code = walk.bytes(at: linearRIP, count: 15)[...]
        while let byte = code.first {
            switch byte {
            case 0x66: size = size == 4 ? 2 : 4
            case 0x48...0x4F where is64: size = 8
            case 0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x67, 0xF2, 0xF3: break
            case 0x40...0x47 where is64: break
            case 0x0F: return code.dropFirst().first == 0x07 || code.dropFirst().first == 0x35
            case 0xCF, 0xCB, 0xCA:
                // The selector of CS lies above the return address.
                let stack = is64 ? general.rsp : ss.base &+ general.rsp & (ss.attributes >> 10 & 1 == 1 ? .max : 0xFFFF)
                return walk.bytes(at: stack &+ size, count: 1).first.map { $0 & 3 == 3 } ?? false
            default: return false
            }
            code = code.dropFirst()
        }
        return false
    }

    /// Where the instruction at RIP leads when it is an IRET that stays in its code segment; nil for any other.
    ///
    /// Source: Intel SDM Vol. 2, IRET.
    public func interruptReturn(in memory: GuestMemory) -> UInt64? {
        let walk = PageWalk(memory: memory, state: self)
        let is64 = control.efer >> 10 & 1 == 1 && cs.attributes >> 9 & 1 == 1
        var size = is64 || cs.attributes >> 10 & 1 == 1 ? 4 : 2
        var code = walk.bytes(at: linearRIP, count: 3)[...]
        if code.first == 0x66 {
            size = size == 4 ? 2 : 4
            code = code.dropFirst()
        }
        if is64, let prefix = code.first, prefix >> 4 == 4 {
            if prefix & 8 != 0 { size = 8 }
            code = code.dropFirst()
        }
        guard code.first == 0xCF else { return nil }
        let stack = is64 ? general.rsp : ss.base &+ general.rsp & (ss.attributes >> 10 & 1 == 1 ? 0xFFFF_FFFF : 0xFFFF)
        let frame = walk.bytes(at: stack, count: size + 2)
        guard frame.count == size + 2, UInt16(frame[size + 1]) << 8 | UInt16(frame[size]) == cs.selector else { return nil }
        let offset = frame[..<size].reversed().reduce(0 as UInt64) { $0 << 8 | UInt64($1) }
        return is64 ? offset : (cs.base &+ offset) & 0xFFFF_FFFF
    }
}
