/// The x87's instructions. Those that calculate are executed by the host's own x87 on the guest's state, so that
/// results, roundings and exceptions are a processor's; those that move state are here.
///
/// Source: Intel SDM Vol. 1, chapter 8, and Vol. 2; AMD APM Vol. 5.
struct X87Form {
    /// What the run loop's neighbours do with an instruction.
    enum Kind: UInt8 {
        /// The host's, on registers alone.
        case registers
        /// The host's, with an operand that is read from memory, or written to it.
        case load, store
        case storeControl, storeStatus, statusToAX, clearExceptions, initialize, wait
        case loadEnvironment, storeEnvironment, loadState, storeState
        case nop
    }

    var bits: UInt64

    init(bits: UInt64) { self.bits = bits }

    init(_ kind: Kind, index: UInt16, bytes: Int = 0) {
        bits = UInt64(index) | UInt64(kind.rawValue) << 16 | UInt64(bytes) << 32
    }

    /// See `chostfloat_x87`.
    var index: UInt16 { UInt16(truncatingIfNeeded: bits) }
    var kind: Kind { Kind(rawValue: UInt8(truncatingIfNeeded: bits >> 16)) ?? .nop }
    /// Bytes of the memory operand.
    var bytes: Int { Int(bits >> 32 & 0xFF) }
    var writes: Bool {
        switch kind {
        case .store, .storeControl, .storeStatus, .storeEnvironment, .storeState: true
        default: false
        }
    }

    /// What an instruction is, from its first two bytes without prefixes; nil where there is none.
    init?(opcode: UInt8, modRM: UInt8) {
        let low = UInt16(opcode & 7)
        let reg = modRM >> 3 & 7
        if modRM >> 6 == 3 {
            let index = low << 6 | UInt16(modRM & 63)
            switch (opcode, modRM) {
            case (0xDF, 0xE0): self.init(.statusToAX, index: index)
            case (0xDB, 0xE2): self.init(.clearExceptions, index: index)
            case (0xDB, 0xE3): self.init(.initialize, index: index)
            // FENI, FDISI and FSETPM of older coprocessors.
            case (0xDB, 0xE0), (0xDB, 0xE1), (0xDB, 0xE4): self.init(.nop, index: index)
            default: self.init(.registers, index: index)
            }
            return
        }
        let index = 512 + low << 3 | UInt16(reg)
        /// Bytes of the operands of D8 to DF by their reg field; 0 where the instruction isn't one of the host's.
        let sizes: [[Int]] = [
            [4, 4, 4, 4, 4, 4, 4, 4], [4, 0, 4, 4, 0, 2, 0, 0], [4, 4, 4, 4, 4, 4, 4, 4], [4, 4, 4, 4, 0, 10, 0, 10],
            [8, 8, 8, 8, 8, 8, 8, 8], [8, 8, 8, 8, 0, 0, 0, 0], [2, 2, 2, 2, 2, 2, 2, 2], [2, 2, 2, 2, 10, 8, 10, 8],
        ]
        switch (opcode, reg) {
        case (0xD9, 4): self.init(.loadEnvironment, index: index)
        case (0xD9, 6): self.init(.storeEnvironment, index: index)
        case (0xD9, 7): self.init(.storeControl, index: index, bytes: 2)
        case (0xDD, 4): self.init(.loadState, index: index)
        case (0xDD, 6): self.init(.storeState, index: index)
        case (0xDD, 7): self.init(.storeStatus, index: index, bytes: 2)
        default:
            let bytes = sizes[Int(low)][Int(reg)]
            if bytes == 0 { return nil }
            let stores = switch opcode {
            case 0xD9, 0xDD: (1...3).contains(reg)
            case 0xDB: (1...3).contains(reg) || reg == 7
            case 0xDF: (1...3).contains(reg) || reg == 6 || reg == 7
            default: false
            }
            self.init(stores ? .store : .load, index: index, bytes: bytes)
        }
    }
}

extension Core {
    private enum Status {
        static let exceptions: UInt16 = 0x3F
        /// Invalid, overflow and underflow leave memory alone when they are unmasked; so do denormals in conversions.
        static let beforeStore: UInt16 = 0x1B
    }

    /// Throws what keeps the x87 from being used.
    func checkX87(waits: Bool) throws(Trap) {
        if s.cr0 & 0xC != 0 { throw .exception(Vector.nm) }
        if waits, s.floatingPoint.hasPendingException { throw .exception(Vector.mf) }
    }

    func executeX87(_ op: Op) throws(Trap) {
        let form = X87Form(bits: op.pointee.imm)
        let file = s.floatingPoint
        switch form.kind {
        case .registers:
            try checkX87(waits: true)
            noteInstruction(op)
            // FCMOVcc reads flags, FCOMI and its kind write them.
            var flags = rflags & Flag.arithmetic
            file.execute(x87: form.index, memory: file.operand, flags: &flags)
            setArithmetic(flags)
        case .nop: try checkX87(waits: false)
        case .load:
            try checkX87(waits: true)
            try loadBytes(operandAddress(op, size: UInt64(form.bytes), writes: false), form.bytes, alignment: alignment(form),
                          to: file.operand)
            noteInstruction(op)
            var flags: UInt64 = 0
            file.execute(x87: form.index, memory: file.operand, flags: &flags)
        case .store:
            try checkX87(waits: true)
            let address = try operandAddress(op, size: UInt64(form.bytes), writes: true)
            if s.checksAlignment, address & (alignment(form) &- 1) != 0 { return try storeMisaligned(form, address) }
            try prepareStore(address, form.bytes)
            noteInstruction(op)
            var flags: UInt64 = 0
            file.execute(x87: form.index, memory: file.operand, flags: &flags)
            let unmasked = file.status & ~file.control & Status.exceptions
            if unmasked & Status.beforeStore == 0 { try storeBytes(address, form.bytes, from: file.operand) }
        case .storeControl:
            try checkX87(waits: false)
            try store(operandAddress(op, size: 2, writes: true), file.control, op)
        case .storeStatus:
            try checkX87(waits: false)
            try store(operandAddress(op, size: 2, writes: true), file.status, op)
        case .statusToAX:
            try checkX87(waits: false)
            setReg(0, file.status)
        case .clearExceptions:
            try checkX87(waits: false)
            file.status &= 0x7F00
        case .initialize:
            try checkX87(waits: false)
            initializeX87()
        case .wait:
            if s.cr0 & 0xA == 0xA { throw .exception(Vector.nm) }
            if file.hasPendingException { throw .exception(Vector.mf) }
        case .loadEnvironment, .storeEnvironment, .loadState, .storeState: try moveEnvironment(op, form.kind)
        }
    }

    /// Where this instruction is. Its operand and opcode are kept only with an unmasked exception, and not here.
    private func noteInstruction(_ op: Op) {
        guard s.profile.keepsLastInstruction else { return }
        s.floatingPoint.last.address = (s.rip &+ UInt64(op.pointee.offset)) & s.ripMask
    }

    /// A store that alignment checks don't let happen, unless an unmasked exception comes first (Intel processors, measured).
    private func storeMisaligned(_ form: X87Form, _ address: UInt64) throws(Trap) {
        let file = s.floatingPoint
        let before = file.state
        var flags: UInt64 = 0
        file.execute(x87: form.index, memory: file.operand, flags: &flags)
        if file.status & ~file.control & Status.beforeStore != 0 { return }
        file.load(before)
        try checkAlignment(address, alignment(form))
    }

    /// What alignment checks want: those of 10 bytes are checked as 8.
    private func alignment(_ form: X87Form) -> UInt64 { UInt64(min(form.bytes, 8)) }

    private func initializeX87() {
        s.floatingPoint.last = LastInstruction()
        s.floatingPoint.setTop(0)
        s.floatingPoint.control = 0x37F
        s.floatingPoint.status = 0
        s.floatingPoint.tagWord = 0xFFFF
    }

    /// FLDENV, FNSTENV, FRSTOR and FNSAVE. Segments of the last instruction are stored as 0 and not loaded, and all of it where
    /// the processor doesn't keep it, or the format is that of real mode.
    private func moveEnvironment(_ op: Op, _ kind: X87Form.Kind) throws(Trap) {
        let file = s.floatingPoint
        let wide = op.pointee.form.size != 1
        let stride = wide ? 4 : 2
        let environment = wide ? 28 : 14
        let loads = kind == .loadEnvironment || kind == .loadState
        let whole = kind == .loadState || kind == .storeState
        let bytes = environment + (whole ? 80 : 0)
        try checkX87(waits: loads)
        let address = try operandAddress(op, size: UInt64(bytes), writes: !loads)
        let area = UnsafeMutableRawPointer.allocate(byteCount: 112, alignment: 16)
        defer { area.deallocate() }
        if loads {
            try loadBytes(address, bytes, alignment: UInt64(stride), to: area)
            file.control = area.loadUnaligned(fromByteOffset: 0, as: UInt16.self)
            let status = area.loadUnaligned(fromByteOffset: stride, as: UInt16.self)
            // The registers come along with the new top, or stay where they are.
            if !whole { file.setTop(Int(status >> 11 & 7)) }
            file.status = status
            file.tagWord = area.loadUnaligned(fromByteOffset: 2 * stride, as: UInt16.self)
            if whole { file.st(0).copyMemory(from: area + environment, byteCount: 80) }
            if s.profile.keepsLastInstruction, !isRealOrV86 {
                file.last.address = wide ? UInt64(area.loadUnaligned(fromByteOffset: 12, as: UInt32.self))
                    : UInt64(area.loadUnaligned(fromByteOffset: 6, as: UInt16.self))
                file.last.opcode = wide ? area.loadUnaligned(fromByteOffset: 18, as: UInt16.self) & 0x7FF : 0
                file.last.operand = wide ? UInt64(area.loadUnaligned(fromByteOffset: 20, as: UInt32.self))
                    : UInt64(area.loadUnaligned(fromByteOffset: 10, as: UInt16.self))
            }
            file.settle()
            return
        }
        try prepareStore(address, bytes, alignment: UInt64(stride))
        file.settle()
        area.initializeMemory(as: UInt8.self, repeating: 0, count: 112)
        for (i, value) in [file.control, file.status, file.tagWord].enumerated() {
            if wide {
                // The upper halves are reserved and stored as ones.
                area.storeBytes(of: 0xFFFF_0000 | UInt32(value), toByteOffset: 4 * i, as: UInt32.self)
            } else {
                area.storeBytes(of: value, toByteOffset: 2 * i, as: UInt16.self)
            }
        }
        if wide { area.storeBytes(of: 0xFFFF_0000, toByteOffset: 24, as: UInt32.self) }
        if s.profile.keepsLastInstruction, !isRealOrV86 {
            if wide {
                area.storeBytes(of: UInt32(truncatingIfNeeded: file.last.address), toByteOffset: 12, as: UInt32.self)
                area.storeBytes(of: file.last.opcode, toByteOffset: 18, as: UInt16.self)
                area.storeBytes(of: UInt32(truncatingIfNeeded: file.last.operand), toByteOffset: 20, as: UInt32.self)
            } else {
                area.storeBytes(of: UInt16(truncatingIfNeeded: file.last.address), toByteOffset: 6, as: UInt16.self)
                area.storeBytes(of: UInt16(truncatingIfNeeded: file.last.operand), toByteOffset: 10, as: UInt16.self)
            }
        }
        if whole { (area + environment).copyMemory(from: file.st(0), byteCount: 80) }
        try storeBytes(address, bytes, from: area)
        if whole {
            initializeX87()
        } else {
            file.control |= 0x3F
            file.status &= 0x7F7F
        }
    }
}
