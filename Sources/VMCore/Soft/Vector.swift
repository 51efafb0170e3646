/// What a vector micro-op keeps in its immediate field.
struct VectorForm {
    enum Kind: UInt64 {
        /// XMM or YMM.
        case vector
        case mmx
        case general
    }

    var bits: UInt64 = 0

    private func field(_ shift: UInt64, _ mask: UInt64) -> UInt64 { bits >> shift & mask }
    private mutating func setField(_ shift: UInt64, _ mask: UInt64, _ value: UInt64) {
        bits = bits & ~(mask << shift) | (value & mask) << shift
    }

    var immediate: UInt8 {
        get { UInt8(truncatingIfNeeded: bits) }
        set { setField(0, 0xFF, UInt64(newValue)) }
    }
    /// The number of the first source, which without VEX is the destination.
    var first: UInt8 {
        get { UInt8(truncatingIfNeeded: bits >> 8) }
        set { setField(8, 0xFF, UInt64(newValue)) }
    }
    /// Which instruction of its group: a raw value of the group's enumeration, or one of `chostfloat_instruction`.
    var code: UInt16 {
        get { UInt16(truncatingIfNeeded: bits >> 16) }
        set { setField(16, 0xFFFF, UInt64(newValue)) }
    }
    /// Bytes that the operation covers: 8, 16 or 32.
    var bytes: Int {
        get { Int(field(32, 0x3F)) }
        set { setField(32, 0x3F, UInt64(newValue)) }
    }
    /// Bytes of the memory operand.
    var memoryBytes: Int {
        get { Int(field(38, 0x3F)) }
        set { setField(38, 0x3F, UInt64(newValue)) }
    }
    /// Address bits that must be 0.
    var alignment: UInt64 {
        get { field(44, 0x1F) }
        set { setField(44, 0x1F, newValue) }
    }
    var isVEX: Bool {
        get { field(49, 1) != 0 }
        set { setField(49, 1, newValue ? 1 : 0) }
    }
    /// Operands of 64 bits in general registers.
    var isWide: Bool {
        get { field(50, 1) != 0 }
        set { setField(50, 1, newValue ? 1 : 0) }
    }
    var target: Kind {
        get { Kind(rawValue: field(51, 3)) ?? .vector }
        set { setField(51, 3, newValue.rawValue) }
    }
    var source: Kind {
        get { Kind(rawValue: field(53, 3)) ?? .vector }
        set { setField(53, 3, newValue.rawValue) }
    }
    /// `alignment` holds also where MXCSR allows misaligned operands.
    var isAlignedAlways: Bool {
        get { field(56, 1) != 0 }
        set { setField(56, 1, newValue ? 1 : 0) }
    }
    /// Alignment checks leave the memory operand alone, though it has no more than 8 bytes.
    var isUnchecked: Bool {
        get { field(57, 1) != 0 }
        set { setField(57, 1, newValue ? 1 : 0) }
    }
    /// What alignment checks want of the memory operand's address. Operands of 16 and 32 bytes that needn't be aligned aren't
    /// checked either (Intel processors, measured).
    var checkedAlignment: UInt64 { isUnchecked || memoryBytes > 8 ? 1 : UInt64(memoryBytes) }
    /// Any operand is an MMX register.
    var usesMMX: Bool {
        get { field(55, 1) != 0 }
        set { setField(55, 1, newValue ? 1 : 0) }
    }
}

/// The operands of a vector instruction, wherever they come from.
///
/// Invariant: 16 bytes behind each pointer may be read whatever the operation covers, and 32 where it covers that.
struct VectorOperands {
    /// The destination.
    let d: UnsafeMutableRawPointer
    let a: UnsafeMutableRawPointer
    let b: UnsafeMutableRawPointer
    /// 8, 16 or 32.
    let bytes: Int
    let immediate: UInt8
    /// The last operand is the immediate.
    let isImmediate: Bool

    /// The destination's bytes in chunks of 16, each made from those of the sources.
    @inline(__always)
    func map<V: SIMD>(_ type: V.Type, _ body: (V, V) -> V) {
        let r = body(a.loadUnaligned(as: V.self), b.loadUnaligned(as: V.self))
        if bytes == 8 {
            d.storeBytes(of: unsafeBitCast(r, to: SIMD2<UInt64>.self)[0], as: UInt64.self)
            return
        }
        d.storeBytes(of: r, as: V.self)
        guard bytes == 32 else { return }
        let upper = body(a.loadUnaligned(fromByteOffset: 16, as: V.self), b.loadUnaligned(fromByteOffset: 16, as: V.self))
        d.storeBytes(of: upper, toByteOffset: 16, as: V.self)
    }

    /// The destination's elements, each made from those of the sources.
    @inline(__always)
    func each<T: FixedWidthInteger>(_ type: T.Type, _ body: (T, T) -> T) {
        var i = 0
        while i < bytes {
            let r = body(a.loadUnaligned(fromByteOffset: i, as: T.self), b.loadUnaligned(fromByteOffset: i, as: T.self))
            d.storeBytes(of: r, toByteOffset: i, as: T.self)
            i &+= MemoryLayout<T>.size
        }
    }

    @inline(__always)
    static func load<T: FixedWidthInteger>(_ place: UnsafeMutableRawPointer, _ i: Int, _ type: T.Type) -> T {
        place.loadUnaligned(fromByteOffset: i &* MemoryLayout<T>.size, as: T.self)
    }

    @inline(__always)
    func set<T: FixedWidthInteger>(_ i: Int, _ value: T) {
        d.storeBytes(of: value, toByteOffset: i &* MemoryLayout<T>.size, as: T.self)
    }
}

extension Core {
    /// Executes an instruction of MMX, SSE or AVX. Nothing of it is done when it throws, but for MXCSR's flags.
    ///
    /// Source: Intel SDM Vol. 2; exceptions: Vol. 2A, 2.4 and 2.5.
    func executeVector(_ op: Op) throws(Trap) {
        let form = VectorForm(bits: op.pointee.imm)
        try checkVector(form)
        let file = s.floatingPoint
        let storesMemory = op.pointee.form.has(MicroOp.Form.memoryA)
        var address: UInt64 = 0
        if storesMemory || op.pointee.form.has(MicroOp.Form.memoryB) {
            address = try operandAddress(op, size: UInt64(form.memoryBytes), writes: storesMemory)
            if address & form.alignment != 0, try !allowsMisaligned(op, form, address) { throw .protection }
            if storesMemory {
                if form.usesMMX, s.checksAlignment { try checkStore(address, form) }
                try prepareStore(address, form.memoryBytes, alignment: form.checkedAlignment)
            } else {
                file.operand.storeBytes(of: SIMD4<UInt64>(), as: SIMD4<UInt64>.self)
                try loadBytes(address, form.memoryBytes, alignment: form.checkedAlignment, to: file.operand)
            }
        }
        if form.usesMMX { file.enterMMX() }
        let b: UnsafeMutableRawPointer
        if op.pointee.form.has(MicroOp.Form.memoryB) {
            b = file.operand
        } else {
            switch form.source {
            case .vector: b = file.vector(op.pointee.b)
            case .mmx: b = file.st(Int(op.pointee.b))
            case .general: b = raw + Int(op.pointee.b)
            }
        }
        let target = storesMemory ? VectorForm.Kind.general : form.target
        let d: UnsafeMutableRawPointer
        switch target {
        case .vector: d = file.vector(op.pointee.a)
        case .mmx: d = file.st(Int(op.pointee.a))
        case .general:
            d = file.result
            d.storeBytes(of: 0, as: UInt64.self)
        }
        let a = form.target == .mmx ? file.st(Int(form.first)) : file.vector(form.first)
        let operands = VectorOperands(d: d, a: a, b: b, bytes: form.bytes, immediate: form.immediate,
                                      isImmediate: op.pointee.form.has(MicroOp.Form.immediate))
        try execute(op, form, operands)
        if storesMemory {
            try storeBytes(address, form.memoryBytes, from: d)
            return
        }
        switch target {
        case .vector:
            if form.isVEX, form.bytes <= 16 { (d + 16).storeBytes(of: SIMD2<UInt64>(), as: SIMD2<UInt64>.self) }
        case .mmx: (d + 8).storeBytes(of: 0xFFFF, as: UInt16.self)
        case .general:
            if op.pointee.a == Slot.zero { return }
            if form.isWide {
                setReg(op.pointee.a, d.load(as: UInt64.self))
            } else {
                setReg(op.pointee.a, d.load(as: UInt32.self))
            }
        }
    }

    /// A misaligned store sets MMX's top of the stack all the same, but not its tags (Intel processors, measured).
    @inline(never)
    private func checkStore(_ address: UInt64, _ form: VectorForm) throws(Trap) {
        do throws(Trap) {
            try checkAlignment(address, form.checkedAlignment)
        } catch {
            if error.vector == Vector.ac { s.floatingPoint.setTop(0) }
            throw error
        }
    }

    /// Misaligned operands: where MXCSR allows them, and those of SHA on AMD processors (family 19h, measured).
    /// What MXCSR allows is for alignment checks to find. Source: AMD APM Vol. 2, 11.5.10.
    @inline(never)
    private func allowsMisaligned(_ op: Op, _ form: VectorForm, _ address: UInt64) throws(Trap) -> Bool {
        if form.isAlignedAlways { return false }
        if s.floatingPoint.mxcsr & 1 << 17 != 0 {
            try checkAlignment(address, form.alignment &+ 1)
            return true
        }
        return op.pointee.cold == .vectorCipher && form.code >= VectorCipher.sha1Next.rawValue && s.cpuid.pointee.isAMD
    }

    @inline(__always)
    private func execute(_ op: Op, _ form: VectorForm, _ o: VectorOperands) throws(Trap) {
        switch op.pointee.cold {
        case .vectorMove: executeMove(VectorMove(rawValue: form.code) ?? .copy, form, o)
        case .vectorLanes: executeLanes(VectorLanes(rawValue: form.code) ?? .or, o)
        case .vectorShuffle:
            // These read anywhere while they write.
            let file = s.floatingPoint
            file.firstCopy.copyMemory(from: o.a, byteCount: 32)
            file.secondCopy.copyMemory(from: o.b, byteCount: 32)
            let copies = VectorOperands(d: o.d, a: file.firstCopy, b: file.secondCopy, bytes: o.bytes,
                                        immediate: o.immediate, isImmediate: o.isImmediate)
            executeShuffle(VectorShuffle(rawValue: form.code) ?? .unpackLow8, form, copies)
        case .vectorFloat: try executeFloat(form, o)
        case .vectorFloatSpecial: try executeFloatSpecial(FloatSpecial(rawValue: form.code) ?? .dot32, form, o)
        case .vectorFused: try executeFused(form, o)
        case .vectorText: executeText(VectorText(rawValue: form.code) ?? .implicitIndex, form, o)
        case .vectorCipher: executeCipher(VectorCipher(rawValue: form.code) ?? .invertMixColumns, form, o)
        default: throw .undefined
        }
    }

    /// Throws what keeps a vector instruction from being executed. Source: Intel SDM Vol. 3A, tables 2-2 and 13-1.
    @inline(__always)
    func checkVector(_ form: VectorForm) throws(Trap) {
        if s.cr0 & 0xC == 0, s.cr4 & 0x200 != 0, !form.isVEX, !form.usesMMX { return }
        try checkVectorSlowly(form)
    }

    @inline(never)
    private func checkVectorSlowly(_ form: VectorForm) throws(Trap) {
        if form.isVEX {
            guard s.cr4 & 1 << 18 != 0, s.xcr0 & 6 == 6, !isRealOrV86 else { throw .undefined }
        } else {
            let isOnlyMMX = form.usesMMX && form.source != .vector && form.target != .vector
            guard s.cr0 & 4 == 0, isOnlyMMX || s.cr4 & 0x200 != 0 else { throw .undefined }
        }
        if s.cr0 & 8 != 0 { throw .exception(Vector.nm) }
        if form.usesMMX, s.floatingPoint.hasPendingException { throw .exception(Vector.mf) }
    }
}
