/// What generic handlers know of their operands.
extension Core {
    typealias Op = UnsafeMutablePointer<MicroOp>

    /// The linear address of a memory operand whose segment may have limits and rights.
    func operandAddress(_ op: Op, size: UInt64, writes: Bool, plus: UInt64 = 0) throws(Trap) -> UInt64 {
        let o = op.pointee
        let offset = (reg(o.base, UInt64.self) &+ reg(o.index, UInt64.self) << UInt64(o.scale & 3)
            &+ UInt64(bitPattern: Int64(o.displacement)) &+ plus) & o.mask
        if o.form.has(MicroOp.Form.checked) {
            return try linear(o.segment, offset, size: size, writes: writes)
        }
        return (offset &+ segmentBase(o.segment)) & s.linearMask
    }

    /// The linear address behind an offset in a segment, outside 64-bit code. Source: Intel SDM Vol. 3A, 5.3.
    func linear(_ index: UInt8, _ offset: UInt64, size: UInt64, writes: Bool) throws(Trap) -> UInt64 {
        let segment = segment(index).pointee
        let fault = Trap.exception(index == SegmentIndex.ss ? Vector.ss : Vector.gp, code: 0)
        if isProtected && !isVirtual8086 {
            guard segment.isUsable else { throw fault }
            let isCode = segment.type & 8 != 0
            if writes ? isCode || segment.type & 2 == 0 : isCode && segment.type & 2 == 0 { throw fault }
        }
        let last = offset &+ (size - 1)
        if segment.type & 0xC == 4 {
            // Expand-down: the limit is the last offset that is not valid.
            let top: UInt64 = segment.attributes & 1 << 10 != 0 ? 0xFFFF_FFFF : 0xFFFF
            guard offset > UInt64(segment.limit), last <= top else { throw fault }
        } else if last > UInt64(segment.limit) {
            throw fault
        }
        return (segment.base &+ offset) & 0xFFFF_FFFF
    }

    func loadChecked(_ op: Op) throws(Trap) {
        let size = op.pointee.form.size
        let address = try operandAddress(op, size: 1 << UInt64(size), writes: false)
        switch size {
        case 0: setReg(op.pointee.a, try load(address, UInt8.self))
        case 1: setReg(op.pointee.a, try load(address, UInt16.self))
        case 2: setReg(op.pointee.a, try load(address, UInt32.self))
        default: setReg(op.pointee.a, try load(address, UInt64.self))
        }
    }

    func storeChecked(_ op: Op) throws(Trap) { try storeChecked(op, reg(op.pointee.b, UInt64.self)) }
    func storeImmChecked(_ op: Op) throws(Trap) { try storeChecked(op, op.pointee.imm) }

    private func storeChecked(_ op: Op, _ value: UInt64) throws(Trap) {
        let size = op.pointee.form.size
        let address = try operandAddress(op, size: 1 << UInt64(size), writes: true)
        switch size {
        case 0: try store(address, UInt8(truncatingIfNeeded: value), op)
        case 1: try store(address, UInt16(truncatingIfNeeded: value), op)
        case 2: try store(address, UInt32(truncatingIfNeeded: value), op)
        default: try store(address, value, op)
        }
    }

    func loadToModifyChecked(_ op: Op) throws(Trap) {
        let size = op.pointee.form.size
        let address = try operandAddress(op, size: 1 << UInt64(size), writes: true)
        switch size {
        case 0: s.t0 = UInt64(try loadToModify(address, UInt8.self))
        case 1: s.t0 = UInt64(try loadToModify(address, UInt16.self))
        case 2: s.t0 = UInt64(try loadToModify(address, UInt32.self))
        default: s.t0 = try loadToModify(address, UInt64.self)
        }
    }

    /// The first operand's value; `modify` where it is replaced afterwards with `setFirst`.
    @inline(__always)
    func first<T: Word>(_ op: Op, _ type: T.Type, modify: Bool = false) throws(Trap) -> T {
        guard op.pointee.form.has(MicroOp.Form.memoryA) else { return reg(op.pointee.a, T.self) }
        let address = try operandAddress(op, size: T.bytes, writes: modify)
        return modify ? try loadToModify(address, T.self) : try load(address, T.self)
    }

    @inline(__always)
    func setFirst<T: Word>(_ op: Op, _ value: T) throws(Trap) {
        if op.pointee.form.has(MicroOp.Form.memoryA) { try storeModified(value, op) } else { setReg(op.pointee.a, value) }
    }

    /// The first operand of an instruction that only writes it.
    @inline(__always)
    func replaceFirst<T: Word>(_ op: Op, _ value: T) throws(Trap) {
        guard op.pointee.form.has(MicroOp.Form.memoryA) else { return setReg(op.pointee.a, value) }
        try store(operandAddress(op, size: T.bytes, writes: true), value, op)
    }

    @inline(__always)
    func second<T: Word>(_ op: Op, _ type: T.Type) throws(Trap) -> T {
        if op.pointee.form.has(MicroOp.Form.memoryB) {
            return try load(operandAddress(op, size: T.bytes, writes: false), T.self)
        }
        return op.pointee.form.has(MicroOp.Form.immediate)
            ? T(truncatingIfNeeded: op.pointee.imm) : reg(op.pointee.b, T.self)
    }
}

extension MicroOp {
    /// What a generic handler was told besides the operands: a condition, a segment, a kind of shift.
    var extra: UInt8 { scale >> 2 }
}

/// Integer instructions with generic handlers.
extension Core {
    /// False where the instruction is none of these.
    func executeInteger(_ op: Op) throws(Trap) -> Bool {
        switch op.pointee.form.size {
        case 0: try integer(op, UInt8.self)
        case 1: try integer(op, UInt16.self)
        case 2: try integer(op, UInt32.self)
        default: try integer(op, UInt64.self)
        }
    }

    @inline(__always)
    private func integer<T: Word>(_ op: Op, _ type: T.Type) throws(Trap) -> Bool {
        switch op.pointee.cold {
        case .xchg:
            let a = try first(op, T.self, modify: true)
            // The memory operand may stand second.
            if op.pointee.form.has(MicroOp.Form.memoryB) {
                let b = try loadToModify(operandAddress(op, size: T.bytes, writes: true), T.self)
                try storeModified(a, op)
                setReg(op.pointee.a, b)
            } else {
                let b = reg(op.pointee.b, T.self)
                try setFirst(op, b)
                setReg(op.pointee.b, a)
            }
        case .xadd:
            let a = try first(op, T.self, modify: true)
            let b = reg(op.pointee.b, T.self)
            let sum = a &+ b
            if op.pointee.form.has(MicroOp.Form.memoryA) {
                try storeModified(sum, op)
                setReg(op.pointee.b, a)
            } else {
                setReg(op.pointee.b, a)
                setReg(op.pointee.a, sum)
            }
            _ = add(a, b)
        case .cmpxchg:
            let old = try first(op, T.self, modify: true)
            let accumulator = reg(Slot.gpr(GPR.rax), T.self)
            if old == accumulator {
                try setFirst(op, reg(op.pointee.b, T.self))
            } else {
                // The destination is written either way. Source: AMD APM Vol. 3, CMPXCHG.
                if op.pointee.form.has(MicroOp.Form.memoryA) { try storeModified(old, op) }
                setReg(Slot.gpr(GPR.rax), old)
            }
            _ = sub(accumulator, old)
        case .bswap:
            let value = reg(op.pointee.a, T.self)
            // With 16 bits the result is undefined; AMD and Intel clear it.
            setReg(op.pointee.a, T.bits == 16 ? 0 : value.byteSwapped)
        case .movbe: try replaceFirst(op, second(op, T.self).byteSwapped)
        case .zeroExtendTo16:
            setReg(op.pointee.a, op.pointee.extra == 0 ? UInt16(try second(op, UInt8.self)) : try second(op, UInt16.self))
        case .signExtendTo16:
            setReg(op.pointee.a, op.pointee.extra == 0
                ? UInt16(truncatingIfNeeded: try second(op, UInt8.self).extended) : try second(op, UInt16.self))
        case .lea16: setReg(op.pointee.a, UInt16(truncatingIfNeeded: address(op) &- segmentBase(op.pointee.segment)))
        case .cmov16:
            let value = try second(op, UInt16.self)
            if condition(op.pointee.extra) { setReg(op.pointee.a, value) }
        case .mul: try multiply(op, T.self)
        case .imul1: try multiplySigned(op, T.self)
        case .imul16: signedProduct(op, reg(op.pointee.a, T.self), try second(op, T.self))
        case .imulImm16:
            let b = op.pointee.form.has(MicroOp.Form.memoryB)
                ? try load(operandAddress(op, size: T.bytes, writes: false), T.self) : reg(op.pointee.b, T.self)
            signedProduct(op, b, T(truncatingIfNeeded: op.pointee.imm))
        case .div: try divide(op, T.self)
        case .idiv: try divideSigned(op, T.self)
        case .shift: try shift(op, T.self)
        case .shld, .shrd: try shiftDouble(op, T.self)
        case .cbw:
            // AL to AX, AX to EAX, EAX to RAX.
            let a = gpr(GPR.rax)
            let half = a << (64 - T.bits / 2)
            setReg(Slot.gpr(GPR.rax), T(truncatingIfNeeded: Int64(bitPattern: half) >> Int64(64 - T.bits / 2)))
        case .cwd: setReg(Slot.gpr(GPR.rdx), reg(Slot.gpr(GPR.rax), T.self).isNegative ? T.max : 0)
        case .bt, .bts, .btr, .btc: try testBit(op, T.self)
        case .bsf, .bsr: try scan(op, T.self)
        case .tzcnt:
            let a = try second(op, T.self)
            let r = T(truncatingIfNeeded: a.trailingZeroBitCount)
            setReg(op.pointee.a, r)
            setResultCarry(r, a == 0)
        case .lzcnt:
            let a = try second(op, T.self)
            let r = T(truncatingIfNeeded: a.leadingZeroBitCount)
            setReg(op.pointee.a, r)
            setResultCarry(r, a == 0)
        case .popcnt:
            let a = try second(op, T.self)
            setReg(op.pointee.a, T(truncatingIfNeeded: a.nonzeroBitCount))
            setArithmetic(a == 0 ? Flag.zf : 0)
        case .adcx:
            let (a, b) = (reg(op.pointee.a, T.self), try second(op, T.self))
            let flags = rflags
            let sum = a &+ b &+ T(truncatingIfNeeded: flags & 1)
            setReg(op.pointee.a, sum)
            setCF(((a & b) | ((a | b) & ~sum)).isNegative)
        case .adox:
            let (a, b) = (reg(op.pointee.a, T.self), try second(op, T.self))
            let sum = a &+ b &+ (of ? 1 : 0)
            setReg(op.pointee.a, sum)
            setCarryOverflow(cf, ((a & b) | ((a | b) & ~sum)).isNegative)
        default: return false
        }
        return true
    }

    /// TZCNT and LZCNT change CF and ZF; what they leave in the others is undefined.
    private func setResultCarry<T: Word>(_ result: T, _ carry: Bool) {
        // OF stays as it was.
        let kept = s.undefinedFlags.bitManipulationClears ? 0 : Flag.of
        setArithmetic(rflags & kept | (carry ? Flag.cf : 0) | (result == 0 ? Flag.zf : 0))
    }

    // MARK: Multiplication and division

    /// The flags that a multiplication leaves: CF and OF say whether the upper half matters, the others are undefined.
    func setMultiplied<T: Word>(_ low: T, overflow: Bool) {
        if s.undefinedFlags.multiplicationSetsResult {
            setResult(low, cf: overflow, of: overflow, af: false)
            // Anything but 0 of which SF and PF are the same.
            if low == 0, s.undefinedFlags.multiplicationClearsZero { s.result = 0x100 }
        } else {
            setCarryOverflow(overflow, overflow)
        }
    }

    /// The flags that a division leaves: all are undefined.
    private func setDivided() {
        guard !s.undefinedFlags.divisionKeepsAll else { return }
        setArithmetic(rflags & (Flag.cf | Flag.of) | Flag.af)
    }

    private func multiply<T: Word>(_ op: Op, _ type: T.Type) throws(Trap) {
        let product = reg(Slot.gpr(GPR.rax), T.self).multipliedFullWidth(by: try first(op, T.self))
        let low = T(truncatingIfNeeded: product.low)
        setHalves(low, product.high)
        setMultiplied(low, overflow: product.high != 0)
    }

    private func multiplySigned<T: Word>(_ op: Op, _ type: T.Type) throws(Trap) {
        let a = Int64(bitPattern: reg(Slot.gpr(GPR.rax), T.self).extended)
        let b = Int64(bitPattern: try first(op, T.self).extended)
        let product = a.multipliedFullWidth(by: b)
        let low = T(truncatingIfNeeded: product.low)
        let high = T.bits == 64 ? T(truncatingIfNeeded: product.high) : T(truncatingIfNeeded: product.low >> T.bits)
        setHalves(low, high)
        setMultiplied(low, overflow: high != (low.isNegative ? T.max : 0))
    }

    private func signedProduct<T: Word>(_ op: Op, _ a: T, _ b: T) {
        let product = Int64(bitPattern: a.extended) &* Int64(bitPattern: b.extended)
        let low = T(truncatingIfNeeded: product)
        setReg(op.pointee.a, low)
        setMultiplied(low, overflow: low.extended != UInt64(bitPattern: product))
    }

    /// AX for bytes, else DX:AX, EDX:EAX, RDX:RAX.
    private func setHalves<T: Word>(_ low: T, _ high: T) {
        if T.bits == 8 {
            setReg(0, UInt16(truncatingIfNeeded: low) | UInt16(truncatingIfNeeded: high) << 8)
        } else {
            setReg(Slot.gpr(GPR.rax), low)
            setReg(Slot.gpr(GPR.rdx), high)
        }
    }

    private func halves<T: Word>(_ type: T.Type) -> (low: T, high: T) {
        T.bits == 8
            ? (reg(0, T.self), reg(1, T.self)) : (reg(Slot.gpr(GPR.rax), T.self), reg(Slot.gpr(GPR.rdx), T.self))
    }

    private func divide<T: Word>(_ op: Op, _ type: T.Type) throws(Trap) {
        let divisor = try first(op, T.self)
        let (low, high) = halves(T.self)
        guard high < divisor else { throw .exception(Vector.de) }
        let result = divisor.dividingFullWidth((high, T.Magnitude(truncatingIfNeeded: low)))
        setHalves(result.quotient, result.remainder)
        setDivided()
    }

    private func divideSigned<T: Word>(_ op: Op, _ type: T.Type) throws(Trap) {
        let divisor = try first(op, T.self)
        let (low, high) = halves(T.self)
        guard divisor != 0 else { throw .exception(Vector.de) }
        let negative = high.isNegative
        // The magnitudes are divided: the quotient is negative where the signs differ, the remainder as the dividend.
        let lowMagnitude = negative ? 0 &- low : low
        let highMagnitude = negative ? ~high &+ (low == 0 ? 1 : 0) : high
        let divisorMagnitude = divisor.isNegative ? 0 &- divisor : divisor
        guard highMagnitude < divisorMagnitude else { throw .exception(Vector.de) }
        let result = divisorMagnitude.dividingFullWidth((highMagnitude, T.Magnitude(truncatingIfNeeded: lowMagnitude)))
        let flips = negative != divisor.isNegative
        let most = (1 as T) << T(T.bits - 1)
        guard result.quotient < most || flips && result.quotient == most else { throw .exception(Vector.de) }
        setHalves(flips ? 0 &- result.quotient : result.quotient, negative ? 0 &- result.remainder : result.remainder)
        setDivided()
    }

    // MARK: Shifts

    /// The count of a shift: an immediate, 1, or CL.
    private func shiftCount(_ op: Op) -> UInt64 {
        op.pointee.form.has(MicroOp.Form.immediate) ? op.pointee.imm & 0xFF : gpr(GPR.rcx) & 0xFF
    }

    private func shift<T: Word>(_ op: Op, _ type: T.Type) throws(Trap) {
        let a = try first(op, T.self, modify: true)
        let count = shiftCount(op) & (T.bits == 64 ? 63 : 31)
        guard count != 0 else {
            // Written even so: a 32-bit register's upper half is cleared, a page becomes dirty.
            return try setFirst(op, a)
        }
        let bits = T.bits
        var r: T
        switch op.pointee.extra {
        case 0:  // ROL
            let n = T(count % bits)
            r = n == 0 ? a : a << n | a >> (T(bits) - n)
            try setFirst(op, r)
            setCarryOverflow(r & 1 != 0, keepsOverflow(op, count) ? of : overflow(a, left: r, r & 1 != 0))
        case 1:  // ROR
            let n = T(count % bits)
            r = n == 0 ? a : a >> n | a << (T(bits) - n)
            try setFirst(op, r)
            setCarryOverflow(r.isNegative, keepsOverflow(op, count) ? of : overflow(a, right: r, incoming: a & 1 != 0))
        case 2:  // RCL
            let n = count % (bits + 1)
            var carry = cf
            r = a
            if n == 0, s.undefinedFlags.shiftsOverflowAtOnce { return try setFirst(op, a) }
            for _ in 0..<n {
                let out = r.isNegative
                r = r << 1 | (carry ? 1 : 0)
                carry = out
            }
            try setFirst(op, r)
            setCarryOverflow(carry, overflow(a, left: r, carry))
        case 3:  // RCR
            let n = count % (bits + 1)
            let incoming = cf
            var carry = incoming
            r = a
            if n == 0, s.undefinedFlags.shiftsOverflowAtOnce { return try setFirst(op, a) }
            for _ in 0..<n {
                let out = r & 1 != 0
                r = r >> 1 | (carry ? 1 << T(bits - 1) : 0)
                carry = out
            }
            try setFirst(op, r)
            setCarryOverflow(carry, overflow(a, right: r, incoming: incoming))
        case 5:  // SHR
            r = count >= bits ? 0 : a >> T(count)
            let carry = count > bits ? false : a >> T(count - 1) & 1 != 0
            try setFirst(op, r)
            setResult(r, cf: carry, of: overflow(a, right: r, incoming: false), af: s.undefinedFlags.shiftSetsAuxiliary)
        case 7:  // SAR
            let wide = Int64(bitPattern: a.extended)
            r = T(truncatingIfNeeded: wide >> Int64(min(count, 63)))
            let carry = wide >> Int64(min(count - 1, 63)) & 1 != 0
            try setFirst(op, r)
            setResult(r, cf: carry, of: false, af: s.undefinedFlags.shiftSetsAuxiliary)
        default:  // SHL
            r = count >= bits ? 0 : a << T(count)
            let carry = count > bits ? false : a >> T(bits - count) & 1 != 0
            try setFirst(op, r)
            setResult(r, cf: carry, of: overflow(a, left: r, carry), af: s.undefinedFlags.shiftSetsAuxiliary)
        }
    }

    private func keepsOverflow(_ op: Op, _ count: UInt64) -> Bool {
        s.undefinedFlags.rotationsKeepOverflow && count != 1 && op.pointee.form.has(MicroOp.Form.immediate)
            && !op.pointee.form.has(MicroOp.Form.memoryA)
    }

    /// OF after `a` was shifted or rotated to the left, with `r` and `carry` as the result: defined for one bit alone.
    @inline(__always)
    func overflow<T: Word>(_ a: T, left r: T, _ carry: Bool) -> Bool {
        s.undefinedFlags.shiftsOverflowAtOnce ? (a ^ a << 1).isNegative : r.isNegative != carry
    }

    /// The same to the right: `incoming` is the first bit that took the place of the uppermost one.
    @inline(__always)
    func overflow<T: Word>(_ a: T, right r: T, incoming: Bool) -> Bool {
        s.undefinedFlags.shiftsOverflowAtOnce ? a.isNegative != incoming : (r ^ r << 1).isNegative
    }

    private func shiftDouble<T: Word>(_ op: Op, _ type: T.Type) throws(Trap) {
        let a = try first(op, T.self, modify: true)
        let b = reg(op.pointee.b, T.self)
        let count = shiftCount(op) & (T.bits == 64 ? 63 : 31)
        guard count != 0 else { return try setFirst(op, a) }
        let bits = T.bits
        let isLeft = op.pointee.cold == .shld
        // With 16 bits a count above 16 goes on into the second operand again.
        let r: T
        let carry: Bool
        if count <= bits {
            let n = T(truncatingIfNeeded: count)
            if isLeft {
                r = count == bits ? b : a << n | b >> (T(bits) - n)
                carry = a >> (T(bits) - n) & 1 != 0
            } else {
                r = count == bits ? b : a >> n | b << (T(bits) - n)
                carry = a >> (n - 1) & 1 != 0
            }
        } else {
            // Undefined.
            let n = T(count - bits)
            let returns = s.undefinedFlags.doubleShiftsReturn
            let behind = returns ? a : b
            if isLeft {
                r = b << n | behind >> (T(bits) - n)
                carry = returns && b >> (T(bits) - n) & 1 != 0
            } else {
                r = b >> n | behind << (T(bits) - n)
                carry = returns && b >> (n - 1) & 1 != 0
            }
        }
        try setFirst(op, r)
        let isOverflow: Bool
        if !isLeft {
            isOverflow = overflow(a, right: r, incoming: b & 1 != 0)
        } else if count < bits || s.undefinedFlags.shiftsOverflowAtOnce {
            isOverflow = overflow(a, left: r, carry)
        } else {
            isOverflow = carry
        }
        setResult(r, cf: carry, of: isOverflow, af: s.undefinedFlags.shiftSetsAuxiliary)
    }

    // MARK: Bits

    private func testBit<T: Word>(_ op: Op, _ type: T.Type) throws(Trap) {
        let number = op.pointee.form.has(MicroOp.Form.immediate)
            ? T(truncatingIfNeeded: op.pointee.imm) : reg(op.pointee.b, T.self)
        let bit = (1 as T) << (number & T(T.bits - 1))
        let changes = op.pointee.cold != .bt
        var a: T
        if op.pointee.form.has(MicroOp.Form.memoryA) {
            // A register's number may lead away from the operand, by whole words, either way.
            var away: UInt64 = 0
            if !op.pointee.form.has(MicroOp.Form.immediate) {
                away = UInt64(bitPattern: Int64(bitPattern: number.extended) >> Int64(T.bits.trailingZeroBitCount)) &* T.bytes
            }
            let address = try operandAddress(op, size: T.bytes, writes: changes, plus: away)
            a = changes ? try loadToModify(address, T.self) : try load(address, T.self)
        } else {
            a = reg(op.pointee.a, T.self)
        }
        let carry = a & bit != 0
        switch op.pointee.cold {
        case .bts: a |= bit
        case .btr: a &= ~bit
        case .btc: a ^= bit
        default: break
        }
        if changes { try setFirst(op, a) }
        setCF(carry)
    }

    private func scan<T: Word>(_ op: Op, _ type: T.Type) throws(Trap) {
        let a = try second(op, T.self)
        if a != 0 {
            let r = op.pointee.cold == .bsf ? a.trailingZeroBitCount : Int(T.bits) - 1 - a.leadingZeroBitCount
            setReg(op.pointee.a, T(truncatingIfNeeded: r))
        }
        // ZF alone is defined.
        if s.undefinedFlags.scanTestsSource {
            setLogic(a)
        } else if s.undefinedFlags.scanSetsResult {
            setLogic(a == 0 ? 0 : reg(op.pointee.a, T.self))
            setArithmetic((pf ? Flag.pf : 0) | (a == 0 ? Flag.zf : 0))
        } else {
            setArithmetic(rflags & Flag.arithmetic & ~Flag.zf | (a == 0 ? Flag.zf : 0))
        }
    }
}
