/// BMI1 and BMI2. Source: Intel SDM Vol. 2.
extension Core {
    func executeBits(_ op: Op) throws(Trap) -> Bool {
        switch op.pointee.cold {
        case .andn, .bextr, .blsi, .blsmsk, .blsr, .bzhi, .pdep, .pext, .mulx, .rorx, .sarx, .shlx, .shrx: break
        default: return false
        }
        if isRealOrV86 { throw .undefined }
        if op.pointee.form.size == 3 { try bits(op, UInt64.self) } else { try bits(op, UInt32.self) }
        return true
    }

    private func bits<T: Word>(_ op: Op, _ type: T.Type) throws(Trap) {
        switch op.pointee.cold {
        case .andn:
            let r = try ~reg(op.pointee.b, T.self) & third(op, T.self)
            setReg(op.pointee.a, r)
            setResult(r, carry: false)
        case .pdep: setReg(op.pointee.a, deposited(reg(op.pointee.b, T.self), try third(op, T.self)))
        case .pext: setReg(op.pointee.a, extracted(reg(op.pointee.b, T.self), try third(op, T.self)))
        case .mulx:
            let product = reg(Slot.gpr(GPR.rdx), T.self).multipliedFullWidth(by: try third(op, T.self))
            // The upper half, in the first operand, comes last where both are one register.
            setReg(op.pointee.b, T(truncatingIfNeeded: product.low))
            setReg(op.pointee.a, T(truncatingIfNeeded: product.high))
        case .blsi:
            let x = try second(op, T.self)
            let r = x & (0 &- x)
            setReg(op.pointee.a, r)
            setResult(r, carry: x != 0)
        case .blsmsk:
            let x = try second(op, T.self)
            let r = x ^ (x &- 1)
            setReg(op.pointee.a, r)
            setResult(r, carry: x == 0)
        case .blsr:
            let x = try second(op, T.self)
            let r = x & (x &- 1)
            setReg(op.pointee.a, r)
            setResult(r, carry: x == 0)
        case .rorx:
            let x = op.pointee.form.has(MicroOp.Form.memoryB)
                ? try load(operandAddress(op, size: T.bytes, writes: false), T.self) : reg(op.pointee.b, T.self)
            let n = T(truncatingIfNeeded: op.pointee.imm) & T(T.bits - 1)
            setReg(op.pointee.a, n == 0 ? x : x >> n | x << (T(T.bits) - n))
        default: try bitsByRegister(op, T.self)
        }
    }

    /// The third operand is a register.
    private func bitsByRegister<T: Word>(_ op: Op, _ type: T.Type) throws(Trap) {
        let x = try second(op, T.self)
        let control = reg(UInt8(truncatingIfNeeded: op.pointee.imm), T.self)
        let count = control & T(T.bits - 1)
        switch op.pointee.cold {
        case .sarx: setReg(op.pointee.a, T(truncatingIfNeeded: Int64(bitPattern: x.extended) >> Int64(count)))
        case .shlx: setReg(op.pointee.a, x << count)
        case .shrx: setReg(op.pointee.a, x >> count)
        case .bzhi:
            let n = UInt64(control & 0xFF)
            let r = n >= T.bits ? x : x & ((1 << T(n)) &- 1)
            setReg(op.pointee.a, r)
            setResult(r, carry: n >= T.bits)
        default:
            let start = UInt64(control & 0xFF), length = UInt64(control >> 8 & 0xFF)
            let shifted = start >= T.bits ? 0 : x >> T(start)
            let r = length >= T.bits ? shifted : shifted & ((1 << T(length)) &- 1)
            setReg(op.pointee.a, r)
            guard !s.undefinedFlags.bitManipulationClears else { return setArithmetic(r == 0 ? Flag.zf : 0) }
            // AMD processors of family 19h set AF, clear SF, and set PF by the result: all three are undefined.
            setResult(r, cf: false, of: false, af: true)
            if sf { setArithmetic(rflags & Flag.arithmetic & ~Flag.sf) }
        }
    }

    /// The third operand, a register or in memory.
    private func third<T: Word>(_ op: Op, _ type: T.Type) throws(Trap) -> T {
        op.pointee.form.has(MicroOp.Form.memoryB)
            ? try load(operandAddress(op, size: T.bytes, writes: false), T.self)
            : reg(UInt8(truncatingIfNeeded: op.pointee.imm), T.self)
    }

    private func setResult<T: Word>(_ result: T, carry: Bool) {
        // AF and PF are undefined: on AMD processors of family 19h AF is 0 and PF the result's.
        setResult(result, cf: carry, of: false, af: false)
        if pf, s.undefinedFlags.bitManipulationClears { setArithmetic(rflags & Flag.arithmetic & ~Flag.pf) }
    }

    private func deposited<T: Word>(_ source: T, _ mask: T) -> T {
        var (source, mask, r) = (source, mask, 0 as T)
        while mask != 0 {
            if source & 1 != 0 { r |= mask & (0 &- mask) }
            source >>= 1
            mask &= mask &- 1
        }
        return r
    }

    private func extracted<T: Word>(_ source: T, _ mask: T) -> T {
        var (mask, r, bit) = (mask, 0 as T, 1 as T)
        while mask != 0 {
            if source & mask & (0 &- mask) != 0 { r |= bit }
            bit <<= 1
            mask &= mask &- 1
        }
        return r
    }
}
