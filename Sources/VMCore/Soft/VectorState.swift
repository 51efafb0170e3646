/// What XSAVE writes, in bytes from the area's start. FXSAVE writes the first 512.
///
/// Source: Intel SDM Vol. 1, 13.4.
enum StateArea {
    static let legacy = 512
    static let header = 512
    static let ymm = 576
    static let bytes = 832
    // Bits of XCR0 and XSTATE_BV.
    static let x87: UInt64 = 1
    static let sse: UInt64 = 2
    static let avx: UInt64 = 4

    /// The size with the components of XCR0, or fewer of them.
    static func bytes(for components: UInt64) -> Int { components & avx != 0 ? bytes : ymm }
}

/// Instructions that save and restore the x87, SSE and AVX registers, and MXCSR.
///
/// Source: Intel SDM Vol. 1, 10.5 and chapter 13; AMD APM Vol. 2, 11.4 and 11.5.
extension Core {
    /// Bits that MXCSR may have: on AMD processors misaligned operands can be allowed. Source: AMD APM Vol. 2, 11.5.10.
    var mxcsrMask: UInt32 { s.mxcsrMask }

    func executeVectorState(_ op: Op) throws(Trap) {
        switch op.pointee.cold {
        case .ldmxcsr, .stmxcsr:
            var form = VectorForm()
            form.isVEX = op.pointee.imm != 0
            try checkVector(form)
            if op.pointee.cold == .stmxcsr {
                try store(operandAddress(op, size: 4, writes: true), s.floatingPoint.mxcsr, op)
            } else {
                let value = try load(operandAddress(op, size: 4, writes: false), UInt32.self)
                guard value & ~mxcsrMask == 0 else { throw .protection }
                s.floatingPoint.mxcsr = value
            }
        case .emms:
            var form = VectorForm()
            form.usesMMX = true
            form.target = .mmx
            form.source = .mmx
            try checkVector(form)
            s.floatingPoint.enterMMX()
            s.floatingPoint.tagWord = 0xFFFF
        case .fxsave, .fxrstor:
            if s.cr0 & 0xC != 0 { throw .exception(Vector.nm) }
            let saves = op.pointee.cold == .fxsave
            let address = try operandAddress(op, size: UInt64(StateArea.legacy), writes: saves)
            try checkAlignment(address, 4)
            guard address & 15 == 0 else { throw .protection }
            try withArea { (area) throws(Trap) in
                if saves {
                    try prepareStore(address, StateArea.legacy)
                    // What the processor doesn't write stays as it was.
                    try loadBytes(address, StateArea.legacy, to: area)
                    saveX87(to: area, mask: pointerMask(op))
                    saveSSE(to: area)
                    try storeBytes(address, 416, from: area)
                } else {
                    try loadBytes(address, StateArea.legacy, to: area)
                    let mxcsr = area.load(fromByteOffset: 24, as: UInt32.self)
                    guard mxcsr & ~mxcsrMask == 0 else { throw .protection }
                    restoreX87(from: area, mask: pointerMask(op))
                    s.floatingPoint.mxcsr = mxcsr
                    restoreSSE(from: area)
                }
            }
        case .xsave, .xrstor: try exchangeExtended(op)
        case .xsetbv:
            guard s.cr4 & 1 << 18 != 0 else { throw .undefined }
            guard s.cpl == 0 else { throw .protection }
            let value = gpr(GPR.rdx) << 32 | gpr(GPR.rax) & 0xFFFF_FFFF
            // x87 always, AVX only with SSE.
            guard gpr(GPR.rcx) & 0xFFFF_FFFF == 0, value & ~s.cpuid.pointee.allowedXCR0 == 0, value & StateArea.x87 != 0,
                value & 6 != StateArea.avx else { throw .protection }
            s.xcr0 = value
        default: throw .undefined
        }
    }

    private func withArea(_ body: (UnsafeMutableRawPointer) throws(Trap) -> Void) throws(Trap) {
        let area = UnsafeMutableRawPointer.allocate(byteCount: StateArea.bytes, alignment: 64)
        defer { area.deallocate() }
        area.initializeMemory(as: UInt8.self, repeating: 0, count: StateArea.bytes)
        try body(area)
    }

    /// XMM8 and on belong to 64-bit code.
    private var registers: Range<UInt8> { 0..<(is64 ? 16 : 8) }

    /// What FXSAVE and its kind hold of the addresses of the last x87 instruction and its operand: 32 bits have segments beside
    /// them, which processors that keep these addresses store as 0.
    private func pointerMask(_ op: Op) -> UInt64 {
        let isHalf = op.pointee.form.size != 3 || s.profile.halvesLastInstruction && !(is64 && s.cpl == 3)
        return isHalf ? 0xFFFF_FFFF : .max
    }

    private func saveX87(to area: UnsafeMutableRawPointer, mask: UInt64) {
        let file = s.floatingPoint
        area.storeBytes(of: file.control, toByteOffset: 0, as: UInt16.self)
        area.storeBytes(of: file.status, toByteOffset: 2, as: UInt16.self)
        area.storeBytes(of: file.tags, toByteOffset: 4, as: UInt8.self)
        clear(UnwrittenBySave.tagPadding, area + 5, 1)
        clear(UnwrittenBySave.opcode, area + 6, 2)
        clear(UnwrittenBySave.pointers, area + 8, 16)
        if s.profile.keepsLastInstruction {
            area.storeBytes(of: file.last.opcode, toByteOffset: 6, as: UInt16.self)
            area.storeBytes(of: file.last.address & mask, toByteOffset: 8, as: UInt64.self)
            area.storeBytes(of: file.last.operand & mask, toByteOffset: 16, as: UInt64.self)
        }
        for i in 0..<8 {
            let place = area + 32 + 16 * i
            place.copyMemory(from: file.st(i), byteCount: 10)
            clear(UnwrittenBySave.registerPadding, place + 10, 6)
        }
    }

    private func clear(_ part: UInt8, _ place: UnsafeMutableRawPointer, _ bytes: Int) {
        if s.profile.unwrittenBySave & part == 0 { place.initializeMemory(as: UInt8.self, repeating: 0, count: bytes) }
    }

    private func saveSSE(to area: UnsafeMutableRawPointer) {
        saveMXCSR(to: area)
        for i in registers { (area + 160 + 16 * Int(i)).copyMemory(from: s.floatingPoint.vector(i), byteCount: 16) }
    }

    private func saveMXCSR(to area: UnsafeMutableRawPointer) {
        area.storeBytes(of: s.floatingPoint.mxcsr, toByteOffset: 24, as: UInt32.self)
        area.storeBytes(of: mxcsrMask, toByteOffset: 28, as: UInt32.self)
    }

    private func restoreX87(from area: UnsafeMutableRawPointer, mask: UInt64) {
        let file = s.floatingPoint
        if s.profile.keepsLastInstruction {
            file.last = LastInstruction(address: area.load(fromByteOffset: 8, as: UInt64.self) & mask,
                                        operand: area.load(fromByteOffset: 16, as: UInt64.self) & mask,
                                        opcode: area.load(fromByteOffset: 6, as: UInt16.self) & 0x7FF)
        }
        file.control = area.load(fromByteOffset: 0, as: UInt16.self)
        file.status = area.load(fromByteOffset: 2, as: UInt16.self)
        file.tags = area.load(fromByteOffset: 4, as: UInt8.self)
        for i in 0..<8 { file.st(i).copyMemory(from: area + 32 + 16 * i, byteCount: 10) }
        file.settle()
    }

    private func restoreSSE(from area: UnsafeMutableRawPointer) {
        for i in registers { s.floatingPoint.vector(i).copyMemory(from: area + 160 + 16 * Int(i), byteCount: 16) }
    }

    /// XSAVE and XRSTOR in the standard format. Source: Intel SDM Vol. 1, 13.7 and 13.8.
    private func exchangeExtended(_ op: Op) throws(Trap) {
        guard s.cr4 & 1 << 18 != 0 else { throw .undefined }
        if s.cr0 & 8 != 0 { throw .exception(Vector.nm) }
        let saves = op.pointee.cold == .xsave
        let wanted = (gpr(GPR.rdx) << 32 | gpr(GPR.rax) & 0xFFFF_FFFF) & s.xcr0
        let bytes = StateArea.bytes(for: wanted)
        let address = try operandAddress(op, size: UInt64(bytes), writes: saves)
        try checkAlignment(address, 4)
        guard address & 63 == 0 else { throw .protection }
        try withArea { (area) throws(Trap) in
            if saves { try prepareStore(address, bytes) }
            try loadBytes(address, bytes, to: area)
            if saves {
                saveExtended(wanted, area, mask: pointerMask(op))
                try storeBytes(address, bytes, from: area)
            } else {
                try restoreExtended(wanted, area, mask: pointerMask(op))
            }
        }
    }

    private func saveExtended(_ wanted: UInt64, _ area: UnsafeMutableRawPointer, mask: UInt64) {
        if wanted & StateArea.x87 != 0 { saveX87(to: area, mask: mask) }
        if wanted & StateArea.sse != 0 { saveSSE(to: area) } else if wanted & StateArea.avx != 0 { saveMXCSR(to: area) }
        if wanted & StateArea.avx != 0 {
            for i in registers { (area + StateArea.ymm + 16 * Int(i)).copyMemory(from: s.floatingPoint.vector(i) + 16, byteCount: 16) }
        }
        let present = area.load(fromByteOffset: StateArea.header, as: UInt64.self)
        area.storeBytes(of: present & ~wanted | inUse & wanted, toByteOffset: StateArea.header, as: UInt64.self)
    }

    /// The components that are not in their initial configuration.
    private var inUse: UInt64 {
        let file = s.floatingPoint
        func isZero(_ place: UnsafeMutableRawPointer, _ count: Int) -> Bool {
            UnsafeRawBufferPointer(start: place, count: count).allSatisfy { $0 == 0 }
        }
        var bits: UInt64 = 0
        if file.control != 0x37F || file.status != 0 || file.tags != 0 || !isZero(file.st(0), 80)
            || file.last.address | file.last.operand != 0 { bits |= StateArea.x87 }
        for i in 0..<16 as Range<UInt8> {
            if !isZero(file.vector(i), 16) { bits |= StateArea.sse }
            if !isZero(file.vector(i) + 16, 16) { bits |= StateArea.avx }
        }
        return bits
    }

    private func restoreExtended(_ wanted: UInt64, _ area: UnsafeMutableRawPointer, mask: UInt64) throws(Trap) {
        let present = area.load(fromByteOffset: StateArea.header, as: UInt64.self)
        // The compacted format isn't offered; the header's reserved bytes are 0.
        guard present & ~s.xcr0 == 0, area.load(fromByteOffset: StateArea.header + 8, as: UInt64.self) == 0,
            area.load(fromByteOffset: StateArea.header + 16, as: UInt64.self) == 0 else { throw .protection }
        let file = s.floatingPoint
        if wanted & (StateArea.sse | StateArea.avx) != 0 {
            let mxcsr = area.load(fromByteOffset: 24, as: UInt32.self)
            guard mxcsr & ~mxcsrMask == 0 else { throw .protection }
            file.mxcsr = mxcsr
        }
        if wanted & StateArea.x87 != 0 {
            if present & StateArea.x87 == 0 {
                area.initializeMemory(as: UInt8.self, repeating: 0, count: 24)
                (area + 32).initializeMemory(as: UInt8.self, repeating: 0, count: 128)
                area.storeBytes(of: 0x37F, toByteOffset: 0, as: UInt16.self)
            }
            restoreX87(from: area, mask: mask)
        }
        if wanted & StateArea.sse != 0 {
            if present & StateArea.sse == 0 { (area + 160).initializeMemory(as: UInt8.self, repeating: 0, count: 256) }
            restoreSSE(from: area)
        }
        if wanted & StateArea.avx != 0 {
            if present & StateArea.avx == 0 { (area + StateArea.ymm).initializeMemory(as: UInt8.self, repeating: 0, count: 256) }
            for i in registers { (file.vector(i) + 16).copyMemory(from: area + StateArea.ymm + 16 * Int(i), byteCount: 16) }
        }
    }
}
