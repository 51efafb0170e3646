import Glibc

/// String instructions, with and without a repeat prefix. Source: Intel SDM Vol. 2B, REP; vol. 1, 7.3.9.
///
/// A repeated one does all its iterations at once, up to `mostIterations`; then it stands at itself with RCX counted
/// down, as after an interrupt between two iterations.
extension Core {
    private static let mostIterations: UInt64 = 1 << 16

    func executeString(_ op: Op) throws(Trap) {
        switch op.pointee.form.size {
        case 0: try string(op, UInt8.self)
        case 1: try string(op, UInt16.self)
        case 2: try string(op, UInt32.self)
        default: try string(op, UInt64.self)
        }
    }

    private func sourceAddress(_ op: Op, _ bytes: UInt64) throws(Trap) -> UInt64 {
        let offset = gpr(GPR.rsi) & op.pointee.mask
        guard op.pointee.form.has(MicroOp.Form.checked) else { return offset &+ segmentBase(op.pointee.segment) }
        return try linear(op.pointee.segment, offset, size: bytes, writes: false)
    }

    private func destinationAddress(_ op: Op, _ bytes: UInt64, writes: Bool) throws(Trap) -> UInt64 {
        let offset = gpr(GPR.rdi) & op.pointee.mask
        guard s.mode & (ModeKey.long64 | ModeKey.flat) == 0 else { return offset }
        return try linear(SegmentIndex.es, offset, size: bytes, writes: writes)
    }

    private func advance(_ number: Int, _ op: Op, _ step: UInt64) {
        setGPR(number, gpr(number) &+ step, mask: op.pointee.mask)
    }

    private func string<T: Word>(_ op: Op, _ type: T.Type) throws(Trap) {
        let form = op.pointee.form
        guard form.has(MicroOp.Form.rep | MicroOp.Form.repne) else { return try iterate(op, T.self) }
        let mask = op.pointee.mask
        let compares = op.pointee.cold == .cmps || op.pointee.cold == .scas
        var done: UInt64 = 0
        while true {
            let left = gpr(GPR.rcx) & mask
            if left == 0 {
                // A count of 0 with 32-bit addresses still clears the upper half. Source: AMD APM Vol. 3, 1.2.6.
                return
            }
            if done >= Self.mostIterations { break }
            if let bulk = try bulk(op, T.self, left) {
                setGPR(GPR.rcx, left &- bulk, mask: mask)
                done += bulk
                continue
            }
            try iterate(op, T.self)
            setGPR(GPR.rcx, left &- 1, mask: mask)
            // What devices answered was for this iteration.
            let asked = s.answersTaken != 0
            s.answerCount = 0
            s.answersTaken = 0
            done += 1
            if compares, zf != form.has(MicroOp.Form.rep) { return }
            if s.pendingBreakpoints != 0 { break }
            // Where KVM's emulator stops for devices: after each write, and where RCX is a multiple of 1024, 0 included.
            // Source: Linux, arch/x86/kvm/emulate.c, x86_emulate_insn.
            if s.outgoingCount != 0 || asked && (left &- 1) & 0x3FF == 0 { break }
        }
        stay(op)
    }

    /// The instruction goes on from itself: it doesn't count as retired yet.
    func stay(_ op: Op) {
        s.next = (s.rip &+ UInt64(op.pointee.offset)) & s.ripMask
        s.retired &-= 1
        s.sliceEnd = 0
    }

    private func iterate<T: Word>(_ op: Op, _ type: T.Type) throws(Trap) {
        let step = s.flags & Flag.df != 0 ? 0 &- T.bytes : T.bytes
        switch op.pointee.cold {
        case .movs:
            let value = try load(sourceAddress(op, T.bytes), T.self)
            try store(destinationAddress(op, T.bytes, writes: true), value, op)
            advance(GPR.rsi, op, step)
            advance(GPR.rdi, op, step)
        case .cmps:
            let a = try load(sourceAddress(op, T.bytes), T.self)
            let b = try load(destinationAddress(op, T.bytes, writes: false), T.self)
            _ = sub(a, b)
            advance(GPR.rsi, op, step)
            advance(GPR.rdi, op, step)
        case .scas:
            let b = try load(destinationAddress(op, T.bytes, writes: false), T.self)
            _ = sub(reg(Slot.gpr(GPR.rax), T.self), b)
            advance(GPR.rdi, op, step)
        case .lods:
            setReg(Slot.gpr(GPR.rax), try load(sourceAddress(op, T.bytes), T.self))
            advance(GPR.rsi, op, step)
        default:
            try store(destinationAddress(op, T.bytes, writes: true), reg(Slot.gpr(GPR.rax), T.self), op)
            advance(GPR.rdi, op, step)
        }
    }

    /// As many iterations of MOVS or STOS at once as stay in one page of RAM; nil where they go one by one.
    private func bulk<T: Word>(_ op: Op, _ type: T.Type, _ left: UInt64) throws(Trap) -> UInt64? {
        guard left > 1, s.flags & Flag.df == 0, op.pointee.cold == .movs || op.pointee.cold == .stos,
            s.dr7 & 0xFF == 0, !s.checksAlignment else { return nil }
        let to = try destinationAddress(op, T.bytes, writes: true)
        var count = min(left, (0x1000 - (to & 0xFFF)) / T.bytes)
        let from = op.pointee.cold == .movs ? try sourceAddress(op, T.bytes) : 0
        if op.pointee.cold == .movs { count = min(count, (0x1000 - (from & 0xFFF)) / T.bytes) }
        // Offsets must not wrap, nor limits be passed, on the way.
        guard count > 1, s.mode & (ModeKey.long64 | ModeKey.flat) != 0, !op.pointee.form.has(MicroOp.Form.checked),
            (gpr(GPR.rdi) & op.pointee.mask) <= op.pointee.mask &- count * T.bytes,
            (gpr(GPR.rsi) & op.pointee.mask) <= op.pointee.mask &- count * T.bytes else { return nil }
        let bytes = count * T.bytes
        if op.pointee.cold == .movs {
            guard let source = hostAddress(try translate(from, .read)) else { return nil }
            guard let target = try writable(to, bytes) else { return nil }
            // Overlapping forwards, bytes are read after they were written.
            if target > source && target < source + Int(bytes) { return nil }
            memmove(target, source, Int(bytes))
            advance(GPR.rsi, op, bytes)
        } else {
            guard let target = try writable(to, bytes) else { return nil }
            let value = reg(Slot.gpr(GPR.rax), T.self)
            if T.bytes == 1 {
                memset(target, Int32(truncatingIfNeeded: value), Int(bytes))
            } else {
                for i in 0..<Int(count) { (target + i * Int(T.bytes)).storeBytes(of: value, as: T.self) }
            }
        }
        advance(GPR.rdi, op, bytes)
        return count
    }

    // MARK: Ports

    /// Whether the TSS lets code without I/O privilege use a port. Source: Intel SDM Vol. 1, 19.5.2.
    func checkPort(_ port: UInt16, size: UInt64) throws(Trap) {
        if hasBreakpoints { notePort(port, size) }
        guard isProtected, isVirtual8086 || s.cpl > UInt8((s.flags & Flag.iopl) >> 12) else { return }
        guard s.tr.isUsable, s.tr.type & 8 != 0, s.tr.limit >= 103 else { throw .protection }
        let map = UInt64(try systemLoad(s.tr.base &+ 102, UInt16.self))
        let offset = map + UInt64(port) / 8
        guard offset + 1 <= UInt64(s.tr.limit) else { throw .protection }
        let bits = try systemLoad(s.tr.base &+ offset, UInt16.self)
        if UInt64(bits) >> UInt64(port & 7) & ((1 << size) - 1) != 0 { throw .protection }
    }

    func portIn(_ op: Op) throws(Trap) {
        let size = UInt8(1) << op.pointee.form.size
        let port = op.pointee.form.has(MicroOp.Form.immediate)
            ? UInt16(truncatingIfNeeded: op.pointee.imm) : reg(Slot.gpr(GPR.rdx), UInt16.self)
        try checkPort(port, size: UInt64(size))
        if size == 4, let instruction = InstructionSites.Instruction(port: port, in: s.trapped) {
            switch instruction {
            case .cpuid: return identify(asModel: true)
            case .rdtsc: return try readTimestamp(0)
            case .rdtscp: return try readTimestamp(1)
            }
        }
        let value = try answer(PendingExit(kind: .portRead, size: size, address: UInt64(port), wantsAnswer: true), endsBlock: true)
        switch size {
        case 1: setReg(0, UInt8(truncatingIfNeeded: value))
        case 2: setReg(0, UInt16(truncatingIfNeeded: value))
        default: setReg(0, UInt32(truncatingIfNeeded: value))
        }
    }

    func portOut(_ op: Op) throws(Trap) {
        let size = UInt8(1) << op.pointee.form.size
        let port = op.pointee.form.has(MicroOp.Form.immediate)
            ? UInt16(truncatingIfNeeded: op.pointee.imm) : reg(Slot.gpr(GPR.rdx), UInt16.self)
        try checkPort(port, size: UInt64(size))
        let value = gpr(GPR.rax) & ((1 << (8 * UInt64(size))) - 1)
        try send(PendingExit(kind: .portWrite, size: size, address: UInt64(port), value: value), endsBlock: true)
    }

    /// Bytes of a batch of INS.
    static let portBatch: UInt64 = 1024

    /// INS. A repeated one reads ahead as KVM's emulator does, so that either engine makes the other's exits: as many
    /// elements as RCX, its buffer of 1 KiB, and the bytes left in RDI's page allow, and one at least.
    /// Source: Linux, arch/x86/kvm/emulate.c, pio_in_emulated.
    func portInString(_ op: Op) throws(Trap) {
        let bytes = UInt64(1) << UInt64(op.pointee.form.size)
        let repeats = op.pointee.form.has(MicroOp.Form.rep | MicroOp.Form.repne)
        let mask = op.pointee.mask
        let left = repeats ? gpr(GPR.rcx) & mask : 1
        guard left != 0 else { return }
        let port = reg(Slot.gpr(GPR.rdx), UInt16.self)
        try checkPort(port, size: bytes)
        let inPage = gpr(GPR.rdi) & 0xFFF
        let backwards = s.flags & Flag.df != 0
        let room = backwards ? inPage : 0x1000 - inPage
        let count = max(1, min(room, Self.portBatch / bytes, left & 0xFFFF_FFFF))
        let first = try answer(PendingExit(kind: .portRead, size: UInt8(bytes), count: UInt32(count), address: UInt64(port),
                                           wantsAnswer: true), endsBlock: true)
        if count == 1 { s.portData.storeBytes(of: first, as: UInt64.self) }
        for i in 0..<count {
            var value: UInt64 = 0
            memcpy(&value, s.portData + Int(i * bytes), Int(bytes))
            let address = try destinationAddress(op, bytes, writes: true)
            switch bytes {
            case 1: try store(address, UInt8(truncatingIfNeeded: value), op)
            case 2: try store(address, UInt16(truncatingIfNeeded: value), op)
            default: try store(address, UInt32(truncatingIfNeeded: value), op)
            }
            advance(GPR.rdi, op, backwards ? 0 &- bytes : bytes)
        }
        if repeats {
            setGPR(GPR.rcx, left &- count, mask: mask)
            stay(op)  // also when that was the last: KVM's emulator finds out when it comes by again
        }
    }

    /// OUTS: one element an exit, repeated or not, as KVM has it.
    func portOutString(_ op: Op) throws(Trap) {
        let bytes = UInt64(1) << UInt64(op.pointee.form.size)
        let repeats = op.pointee.form.has(MicroOp.Form.rep | MicroOp.Form.repne)
        let mask = op.pointee.mask
        let left = repeats ? gpr(GPR.rcx) & mask : 1
        guard left != 0 else { return }
        let port = reg(Slot.gpr(GPR.rdx), UInt16.self)
        try checkPort(port, size: bytes)
        let address = try sourceAddress(op, bytes)
        let value: UInt64
        switch bytes {
        case 1: value = UInt64(try load(address, UInt8.self))
        case 2: value = UInt64(try load(address, UInt16.self))
        default: value = UInt64(try load(address, UInt32.self))
        }
        try send(PendingExit(kind: .portWrite, size: UInt8(bytes), address: UInt64(port), value: value), endsBlock: true)
        advance(GPR.rsi, op, s.flags & Flag.df != 0 ? 0 &- bytes : bytes)
        if repeats {
            setGPR(GPR.rcx, left &- 1, mask: mask)
            stay(op)
        }
    }
}
