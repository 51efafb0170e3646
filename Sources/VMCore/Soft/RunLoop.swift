/// The run loop: executes blocks of micro-ops until something wants attention.
extension Core {
    /// The linear address of a micro-op's memory operand.
    @inline(__always)
    func address(_ op: UnsafeMutablePointer<MicroOp>) -> UInt64 {
        let o = op.pointee
        let offset = (reg(o.base, UInt64.self) &+ reg(o.index, UInt64.self) << UInt64(o.scale & 3)
            &+ UInt64(bitPattern: Int64(o.displacement))) & o.mask
        return offset &+ segmentBase(o.segment)
    }

    @inline(__always)
    private func bitwise<T: Word>(_ slot: UInt8, _ value: T) {
        setReg(slot, value)
        setLogic(value)
    }

    @inline(__always)
    private func shift<T: Word>(_ slot: UInt8, left count: UInt64, _ type: T.Type) {
        let a = reg(slot, T.self)
        let r = a &<< T(truncatingIfNeeded: count)
        let carry = a &>> T(truncatingIfNeeded: T.bits &- count) & 1 != 0
        setReg(slot, r)
        setResult(r, cf: carry, of: overflow(a, left: r, carry), af: s.undefinedFlags.shiftSetsAuxiliary)
    }

    @inline(__always)
    private func shift<T: Word>(_ slot: UInt8, right count: UInt64, _ type: T.Type) {
        let a = reg(slot, T.self)
        let r = a &>> T(truncatingIfNeeded: count)
        setReg(slot, r)
        setResult(r, cf: a &>> T(truncatingIfNeeded: count &- 1) & 1 != 0, of: overflow(a, right: r, incoming: false),
                  af: s.undefinedFlags.shiftSetsAuxiliary)
    }

    @inline(__always)
    private func shift<T: Word>(_ slot: UInt8, arithmetic count: UInt64, _ type: T.Type) {
        let a = reg(slot, T.self)
        let r = T(truncatingIfNeeded: Int64(bitPattern: a.extended) &>> Int64(truncatingIfNeeded: count))
        setReg(slot, r)
        setResult(r, cf: a &>> T(truncatingIfNeeded: count &- 1) & 1 != 0, of: false, af: s.undefinedFlags.shiftSetsAuxiliary)
    }

    @inline(__always)
    private func rotate<T: Word>(_ slot: UInt8, left count: UInt64, _ type: T.Type) {
        let a = reg(slot, T.self)
        let r = a &<< T(truncatingIfNeeded: count) | a &>> T(truncatingIfNeeded: T.bits &- count)
        setReg(slot, r)
        let keeps = s.undefinedFlags.rotationsKeepOverflow && count != 1
        setCarryOverflow(r & 1 != 0, keeps ? of : overflow(a, left: r, r & 1 != 0))
    }

    @inline(__always)
    private func rotate<T: Word>(_ slot: UInt8, right count: UInt64, _ type: T.Type) {
        let a = reg(slot, T.self)
        let r = a &>> T(truncatingIfNeeded: count) | a &<< T(truncatingIfNeeded: T.bits &- count)
        setReg(slot, r)
        let keeps = s.undefinedFlags.rotationsKeepOverflow && count != 1
        setCarryOverflow(r.isNegative, keeps ? of : overflow(a, right: r, incoming: a & 1 != 0))
    }

    /// A signed product that keeps the lower half.
    @inline(__always)
    private func multiply<T: Word>(_ slot: UInt8, _ a: T, _ b: T) {
        let product = Int64(bitPattern: a.extended).multipliedFullWidth(by: Int64(bitPattern: b.extended))
        let r = T(truncatingIfNeeded: product.low)
        let fits = T.bits == 64
            ? product.high == Int64(bitPattern: product.low) >> 63 : r.extended == product.low
        setReg(slot, r)
        setMultiplied(r, overflow: !fits)
    }

    /// Goes to the block that a direct branch leads to, where that is known. False: it has to be looked up, and `link`
    /// says where to remember it.
    @inline(__always)
    private func follow(_ slot: UnsafeMutablePointer<Link>, _ block: inout UnsafeMutablePointer<Block>,
                        _ link: inout UnsafeMutablePointer<Link>?) -> Bool {
        if slot.pointee.generation == s.generation {
            block = slot.pointee.block.unsafelyUnwrapped
            return true
        }
        link = slot
        return false
    }

    @inline(__always)
    private func branch(_ taken: Bool, _ op: UnsafeMutablePointer<MicroOp>, _ block: inout UnsafeMutablePointer<Block>,
                        _ link: inout UnsafeMutablePointer<Link>?) -> Bool {
        if taken {
            s.rip = (s.rip &+ op.pointee.imm) & op.pointee.mask
            return follow(block.pointer(to: \.taken).unsafelyUnwrapped, &block, &link)
        }
        s.rip = end(of: op)
        return follow(block.pointer(to: \.notTaken).unsafelyUnwrapped, &block, &link)
    }

    /// Executes blocks from RIP on until the slice ends or a trap comes.
    ///
    /// - Returns: nil between two instructions, with RIP at the next; else the trap, with RIP at the instruction that
    ///   made it and nothing of it done.
    @inline(never)
    func run(_ first: UnsafeMutablePointer<Block>) -> Trap? {
        var block = first
        var op = first.pointee.ops
        var link: UnsafeMutablePointer<Link>?
        do throws(Trap) {
            next: while true {
                chained: while true {
                let retired = s.retired &+ UInt64(block.pointee.instructions)
                guard retired <= s.sliceEnd else { return nil }
                s.retired = retired
                s.block = block
                op = block.pointee.ops
                link = nil
                while true {
                switch op.pointee.code {
                case .inc8: setReg(op.pointee.a, inc(reg(op.pointee.a, UInt8.self)))
                case .dec8: setReg(op.pointee.a, dec(reg(op.pointee.a, UInt8.self)))
                case .neg8: setReg(op.pointee.a, sub(0, reg(op.pointee.a, UInt8.self)))
                case .not8: setReg(op.pointee.a, ~reg(op.pointee.a, UInt8.self))
                case .mov8: setReg(op.pointee.a, reg(op.pointee.b, UInt8.self))
                case .movImm8: setReg(op.pointee.a, UInt8(truncatingIfNeeded: op.pointee.imm))
                case .load8: setReg(op.pointee.a, try load(address(op), UInt8.self))
                case .store8: try store(address(op), reg(op.pointee.b, UInt8.self), op)
                case .storeImm8: try store(address(op), UInt8(truncatingIfNeeded: op.pointee.imm), op)
                case .loadToModify8: s.t0 = UInt64(try loadToModify(address(op), UInt8.self))
                case .storeModified8: try storeModified(reg(Slot.t0, UInt8.self), op)
                case .inc16: setReg(op.pointee.a, inc(reg(op.pointee.a, UInt16.self)))
                case .dec16: setReg(op.pointee.a, dec(reg(op.pointee.a, UInt16.self)))
                case .neg16: setReg(op.pointee.a, sub(0, reg(op.pointee.a, UInt16.self)))
                case .not16: setReg(op.pointee.a, ~reg(op.pointee.a, UInt16.self))
                case .mov16: setReg(op.pointee.a, reg(op.pointee.b, UInt16.self))
                case .movImm16: setReg(op.pointee.a, UInt16(truncatingIfNeeded: op.pointee.imm))
                case .load16: setReg(op.pointee.a, try load(address(op), UInt16.self))
                case .store16: try store(address(op), reg(op.pointee.b, UInt16.self), op)
                case .storeImm16: try store(address(op), UInt16(truncatingIfNeeded: op.pointee.imm), op)
                case .loadToModify16: s.t0 = UInt64(try loadToModify(address(op), UInt16.self))
                case .storeModified16: try storeModified(reg(Slot.t0, UInt16.self), op)
                case .inc32: setReg(op.pointee.a, inc(reg(op.pointee.a, UInt32.self)))
                case .dec32: setReg(op.pointee.a, dec(reg(op.pointee.a, UInt32.self)))
                case .neg32: setReg(op.pointee.a, sub(0, reg(op.pointee.a, UInt32.self)))
                case .not32: setReg(op.pointee.a, ~reg(op.pointee.a, UInt32.self))
                case .mov32: setReg(op.pointee.a, reg(op.pointee.b, UInt32.self))
                case .movImm32: setReg(op.pointee.a, UInt32(truncatingIfNeeded: op.pointee.imm))
                case .load32: setReg(op.pointee.a, try load(address(op), UInt32.self))
                case .store32: try store(address(op), reg(op.pointee.b, UInt32.self), op)
                case .storeImm32: try store(address(op), UInt32(truncatingIfNeeded: op.pointee.imm), op)
                case .loadToModify32: s.t0 = UInt64(try loadToModify(address(op), UInt32.self))
                case .storeModified32: try storeModified(reg(Slot.t0, UInt32.self), op)
                case .inc64: setReg(op.pointee.a, inc(reg(op.pointee.a, UInt64.self)))
                case .dec64: setReg(op.pointee.a, dec(reg(op.pointee.a, UInt64.self)))
                case .neg64: setReg(op.pointee.a, sub(0, reg(op.pointee.a, UInt64.self)))
                case .not64: setReg(op.pointee.a, ~reg(op.pointee.a, UInt64.self))
                case .mov64: setReg(op.pointee.a, reg(op.pointee.b, UInt64.self))
                case .movImm64: setReg(op.pointee.a, UInt64(truncatingIfNeeded: op.pointee.imm))
                case .load64: setReg(op.pointee.a, try load(address(op), UInt64.self))
                case .store64: try store(address(op), reg(op.pointee.b, UInt64.self), op)
                case .storeImm64: try store(address(op), UInt64(truncatingIfNeeded: op.pointee.imm), op)
                case .loadToModify64: s.t0 = UInt64(try loadToModify(address(op), UInt64.self))
                case .storeModified64: try storeModified(reg(Slot.t0, UInt64.self), op)
                case .add8: setReg(op.pointee.a, add(reg(op.pointee.a, UInt8.self), reg(op.pointee.b, UInt8.self)))
                case .addImm8: setReg(op.pointee.a, add(reg(op.pointee.a, UInt8.self), UInt8(truncatingIfNeeded: op.pointee.imm)))
                case .add16: setReg(op.pointee.a, add(reg(op.pointee.a, UInt16.self), reg(op.pointee.b, UInt16.self)))
                case .addImm16: setReg(op.pointee.a, add(reg(op.pointee.a, UInt16.self), UInt16(truncatingIfNeeded: op.pointee.imm)))
                case .add32: setReg(op.pointee.a, add(reg(op.pointee.a, UInt32.self), reg(op.pointee.b, UInt32.self)))
                case .addImm32: setReg(op.pointee.a, add(reg(op.pointee.a, UInt32.self), UInt32(truncatingIfNeeded: op.pointee.imm)))
                case .add64: setReg(op.pointee.a, add(reg(op.pointee.a, UInt64.self), reg(op.pointee.b, UInt64.self)))
                case .addImm64: setReg(op.pointee.a, add(reg(op.pointee.a, UInt64.self), UInt64(truncatingIfNeeded: op.pointee.imm)))
                case .or8: bitwise(op.pointee.a, reg(op.pointee.a, UInt8.self) | reg(op.pointee.b, UInt8.self))
                case .orImm8: bitwise(op.pointee.a, reg(op.pointee.a, UInt8.self) | UInt8(truncatingIfNeeded: op.pointee.imm))
                case .or16: bitwise(op.pointee.a, reg(op.pointee.a, UInt16.self) | reg(op.pointee.b, UInt16.self))
                case .orImm16: bitwise(op.pointee.a, reg(op.pointee.a, UInt16.self) | UInt16(truncatingIfNeeded: op.pointee.imm))
                case .or32: bitwise(op.pointee.a, reg(op.pointee.a, UInt32.self) | reg(op.pointee.b, UInt32.self))
                case .orImm32: bitwise(op.pointee.a, reg(op.pointee.a, UInt32.self) | UInt32(truncatingIfNeeded: op.pointee.imm))
                case .or64: bitwise(op.pointee.a, reg(op.pointee.a, UInt64.self) | reg(op.pointee.b, UInt64.self))
                case .orImm64: bitwise(op.pointee.a, reg(op.pointee.a, UInt64.self) | UInt64(truncatingIfNeeded: op.pointee.imm))
                case .adc8: setReg(op.pointee.a, adc(reg(op.pointee.a, UInt8.self), reg(op.pointee.b, UInt8.self)))
                case .adcImm8: setReg(op.pointee.a, adc(reg(op.pointee.a, UInt8.self), UInt8(truncatingIfNeeded: op.pointee.imm)))
                case .adc16: setReg(op.pointee.a, adc(reg(op.pointee.a, UInt16.self), reg(op.pointee.b, UInt16.self)))
                case .adcImm16: setReg(op.pointee.a, adc(reg(op.pointee.a, UInt16.self), UInt16(truncatingIfNeeded: op.pointee.imm)))
                case .adc32: setReg(op.pointee.a, adc(reg(op.pointee.a, UInt32.self), reg(op.pointee.b, UInt32.self)))
                case .adcImm32: setReg(op.pointee.a, adc(reg(op.pointee.a, UInt32.self), UInt32(truncatingIfNeeded: op.pointee.imm)))
                case .adc64: setReg(op.pointee.a, adc(reg(op.pointee.a, UInt64.self), reg(op.pointee.b, UInt64.self)))
                case .adcImm64: setReg(op.pointee.a, adc(reg(op.pointee.a, UInt64.self), UInt64(truncatingIfNeeded: op.pointee.imm)))
                case .sbb8: setReg(op.pointee.a, sbb(reg(op.pointee.a, UInt8.self), reg(op.pointee.b, UInt8.self)))
                case .sbbImm8: setReg(op.pointee.a, sbb(reg(op.pointee.a, UInt8.self), UInt8(truncatingIfNeeded: op.pointee.imm)))
                case .sbb16: setReg(op.pointee.a, sbb(reg(op.pointee.a, UInt16.self), reg(op.pointee.b, UInt16.self)))
                case .sbbImm16: setReg(op.pointee.a, sbb(reg(op.pointee.a, UInt16.self), UInt16(truncatingIfNeeded: op.pointee.imm)))
                case .sbb32: setReg(op.pointee.a, sbb(reg(op.pointee.a, UInt32.self), reg(op.pointee.b, UInt32.self)))
                case .sbbImm32: setReg(op.pointee.a, sbb(reg(op.pointee.a, UInt32.self), UInt32(truncatingIfNeeded: op.pointee.imm)))
                case .sbb64: setReg(op.pointee.a, sbb(reg(op.pointee.a, UInt64.self), reg(op.pointee.b, UInt64.self)))
                case .sbbImm64: setReg(op.pointee.a, sbb(reg(op.pointee.a, UInt64.self), UInt64(truncatingIfNeeded: op.pointee.imm)))
                case .and8: bitwise(op.pointee.a, reg(op.pointee.a, UInt8.self) & reg(op.pointee.b, UInt8.self))
                case .andImm8: bitwise(op.pointee.a, reg(op.pointee.a, UInt8.self) & UInt8(truncatingIfNeeded: op.pointee.imm))
                case .and16: bitwise(op.pointee.a, reg(op.pointee.a, UInt16.self) & reg(op.pointee.b, UInt16.self))
                case .andImm16: bitwise(op.pointee.a, reg(op.pointee.a, UInt16.self) & UInt16(truncatingIfNeeded: op.pointee.imm))
                case .and32: bitwise(op.pointee.a, reg(op.pointee.a, UInt32.self) & reg(op.pointee.b, UInt32.self))
                case .andImm32: bitwise(op.pointee.a, reg(op.pointee.a, UInt32.self) & UInt32(truncatingIfNeeded: op.pointee.imm))
                case .and64: bitwise(op.pointee.a, reg(op.pointee.a, UInt64.self) & reg(op.pointee.b, UInt64.self))
                case .andImm64: bitwise(op.pointee.a, reg(op.pointee.a, UInt64.self) & UInt64(truncatingIfNeeded: op.pointee.imm))
                case .sub8: setReg(op.pointee.a, sub(reg(op.pointee.a, UInt8.self), reg(op.pointee.b, UInt8.self)))
                case .subImm8: setReg(op.pointee.a, sub(reg(op.pointee.a, UInt8.self), UInt8(truncatingIfNeeded: op.pointee.imm)))
                case .sub16: setReg(op.pointee.a, sub(reg(op.pointee.a, UInt16.self), reg(op.pointee.b, UInt16.self)))
                case .subImm16: setReg(op.pointee.a, sub(reg(op.pointee.a, UInt16.self), UInt16(truncatingIfNeeded: op.pointee.imm)))
                case .sub32: setReg(op.pointee.a, sub(reg(op.pointee.a, UInt32.self), reg(op.pointee.b, UInt32.self)))
                case .subImm32: setReg(op.pointee.a, sub(reg(op.pointee.a, UInt32.self), UInt32(truncatingIfNeeded: op.pointee.imm)))
                case .sub64: setReg(op.pointee.a, sub(reg(op.pointee.a, UInt64.self), reg(op.pointee.b, UInt64.self)))
                case .subImm64: setReg(op.pointee.a, sub(reg(op.pointee.a, UInt64.self), UInt64(truncatingIfNeeded: op.pointee.imm)))
                case .xor8: bitwise(op.pointee.a, reg(op.pointee.a, UInt8.self) ^ reg(op.pointee.b, UInt8.self))
                case .xorImm8: bitwise(op.pointee.a, reg(op.pointee.a, UInt8.self) ^ UInt8(truncatingIfNeeded: op.pointee.imm))
                case .xor16: bitwise(op.pointee.a, reg(op.pointee.a, UInt16.self) ^ reg(op.pointee.b, UInt16.self))
                case .xorImm16: bitwise(op.pointee.a, reg(op.pointee.a, UInt16.self) ^ UInt16(truncatingIfNeeded: op.pointee.imm))
                case .xor32: bitwise(op.pointee.a, reg(op.pointee.a, UInt32.self) ^ reg(op.pointee.b, UInt32.self))
                case .xorImm32: bitwise(op.pointee.a, reg(op.pointee.a, UInt32.self) ^ UInt32(truncatingIfNeeded: op.pointee.imm))
                case .xor64: bitwise(op.pointee.a, reg(op.pointee.a, UInt64.self) ^ reg(op.pointee.b, UInt64.self))
                case .xorImm64: bitwise(op.pointee.a, reg(op.pointee.a, UInt64.self) ^ UInt64(truncatingIfNeeded: op.pointee.imm))
                case .cmp8: _ = sub(reg(op.pointee.a, UInt8.self), reg(op.pointee.b, UInt8.self))
                case .cmpImm8: _ = sub(reg(op.pointee.a, UInt8.self), UInt8(truncatingIfNeeded: op.pointee.imm))
                case .cmp16: _ = sub(reg(op.pointee.a, UInt16.self), reg(op.pointee.b, UInt16.self))
                case .cmpImm16: _ = sub(reg(op.pointee.a, UInt16.self), UInt16(truncatingIfNeeded: op.pointee.imm))
                case .cmp32: _ = sub(reg(op.pointee.a, UInt32.self), reg(op.pointee.b, UInt32.self))
                case .cmpImm32: _ = sub(reg(op.pointee.a, UInt32.self), UInt32(truncatingIfNeeded: op.pointee.imm))
                case .cmp64: _ = sub(reg(op.pointee.a, UInt64.self), reg(op.pointee.b, UInt64.self))
                case .cmpImm64: _ = sub(reg(op.pointee.a, UInt64.self), UInt64(truncatingIfNeeded: op.pointee.imm))
                case .test8: setLogic(reg(op.pointee.a, UInt8.self) & reg(op.pointee.b, UInt8.self))
                case .testImm8: setLogic(reg(op.pointee.a, UInt8.self) & UInt8(truncatingIfNeeded: op.pointee.imm))
                case .test16: setLogic(reg(op.pointee.a, UInt16.self) & reg(op.pointee.b, UInt16.self))
                case .testImm16: setLogic(reg(op.pointee.a, UInt16.self) & UInt16(truncatingIfNeeded: op.pointee.imm))
                case .test32: setLogic(reg(op.pointee.a, UInt32.self) & reg(op.pointee.b, UInt32.self))
                case .testImm32: setLogic(reg(op.pointee.a, UInt32.self) & UInt32(truncatingIfNeeded: op.pointee.imm))
                case .test64: setLogic(reg(op.pointee.a, UInt64.self) & reg(op.pointee.b, UInt64.self))
                case .testImm64: setLogic(reg(op.pointee.a, UInt64.self) & UInt64(truncatingIfNeeded: op.pointee.imm))
                case .loadChecked: try loadChecked(op)
                case .storeChecked: try storeChecked(op)
                case .storeImmChecked: try storeImmChecked(op)
                case .loadToModifyChecked: try loadToModifyChecked(op)
                case .zeroExtend8: setReg(op.pointee.a, UInt64(reg(op.pointee.b, UInt8.self)))
                case .zeroExtend16: setReg(op.pointee.a, UInt64(reg(op.pointee.b, UInt16.self)))
                case .signExtend8to32:
                    setReg(op.pointee.a, UInt32(truncatingIfNeeded: reg(op.pointee.b, UInt8.self).extended))
                case .signExtend8to64: setReg(op.pointee.a, reg(op.pointee.b, UInt8.self).extended)
                case .signExtend16to32:
                    setReg(op.pointee.a, UInt32(truncatingIfNeeded: reg(op.pointee.b, UInt16.self).extended))
                case .signExtend16to64: setReg(op.pointee.a, reg(op.pointee.b, UInt16.self).extended)
                case .signExtend32: setReg(op.pointee.a, reg(op.pointee.b, UInt32.self).extended)
                case .loadSigned8to32:
                    setReg(op.pointee.a, UInt32(truncatingIfNeeded: try load(address(op), UInt8.self).extended))
                case .loadSigned8to64: setReg(op.pointee.a, try load(address(op), UInt8.self).extended)
                case .loadSigned16to32:
                    setReg(op.pointee.a, UInt32(truncatingIfNeeded: try load(address(op), UInt16.self).extended))
                case .loadSigned16to64: setReg(op.pointee.a, try load(address(op), UInt16.self).extended)
                case .loadSigned32: setReg(op.pointee.a, try load(address(op), UInt32.self).extended)
                case .lea32: setReg(op.pointee.a, UInt32(truncatingIfNeeded: address(op)))
                case .lea64: setReg(op.pointee.a, address(op))
                case .cmov32:
                    let holds = condition(UInt8(truncatingIfNeeded: op.pointee.imm))
                    setReg(op.pointee.a, reg(holds ? op.pointee.b : op.pointee.a, UInt32.self))
                case .cmov64:
                    if condition(UInt8(truncatingIfNeeded: op.pointee.imm)) { setReg(op.pointee.a, reg(op.pointee.b, UInt64.self)) }
                case .set:
                    setReg(op.pointee.a, condition(UInt8(truncatingIfNeeded: op.pointee.imm)) ? 1 : 0 as UInt8)
                case .shlImm32: shift(op.pointee.a, left: op.pointee.imm, UInt32.self)
                case .shlImm64: shift(op.pointee.a, left: op.pointee.imm, UInt64.self)
                case .shrImm32: shift(op.pointee.a, right: op.pointee.imm, UInt32.self)
                case .shrImm64: shift(op.pointee.a, right: op.pointee.imm, UInt64.self)
                case .sarImm32: shift(op.pointee.a, arithmetic: op.pointee.imm, UInt32.self)
                case .sarImm64: shift(op.pointee.a, arithmetic: op.pointee.imm, UInt64.self)
                case .rolImm32: rotate(op.pointee.a, left: op.pointee.imm, UInt32.self)
                case .rolImm64: rotate(op.pointee.a, left: op.pointee.imm, UInt64.self)
                case .rorImm32: rotate(op.pointee.a, right: op.pointee.imm, UInt32.self)
                case .rorImm64: rotate(op.pointee.a, right: op.pointee.imm, UInt64.self)
                case .imul32: multiply(op.pointee.a, reg(op.pointee.a, UInt32.self), reg(op.pointee.b, UInt32.self))
                case .imul64: multiply(op.pointee.a, reg(op.pointee.a, UInt64.self), reg(op.pointee.b, UInt64.self))
                case .imulImm32:
                    multiply(op.pointee.a, reg(op.pointee.b, UInt32.self), UInt32(truncatingIfNeeded: op.pointee.imm))
                case .imulImm64: multiply(op.pointee.a, reg(op.pointee.b, UInt64.self), op.pointee.imm)
                case .push64:
                    let value = reg(op.pointee.b, UInt64.self)
                    let top = gpr(GPR.rsp) &- 8
                    try store(top, value, op)
                    setGPR(GPR.rsp, top)
                case .pushImm64:
                    let top = gpr(GPR.rsp) &- 8
                    try store(top, op.pointee.imm, op)
                    setGPR(GPR.rsp, top)
                case .pop64:
                    let value = try load(gpr(GPR.rsp), UInt64.self)
                    setGPR(GPR.rsp, gpr(GPR.rsp) &+ 8)
                    setReg(op.pointee.a, value)
                case .nop: break
                case .vector:
                    s.op = op
                    try executeVector(op)
                case .cold:
                    s.op = op
                    try executeCold(op)
                case .coldEnd:
                    s.op = op
                    s.next = end(of: op)
                    try executeCold(op)
                    s.rip = s.next
                    break chained
                case .leave:
                    s.rip = (s.rip &+ UInt64(op.pointee.offset)) & s.ripMask
                    if follow(block.pointer(to: \.notTaken).unsafelyUnwrapped, &block, &link) { continue chained }
                    break chained
                case .jmp:
                    if branch(true, op, &block, &link) { continue chained }
                    break chained
                case .call64:
                    let top = gpr(GPR.rsp) &- 8
                    try store(top, end(of: op), op)
                    setGPR(GPR.rsp, top)
                    if branch(true, op, &block, &link) { continue chained }
                    break chained
                case .jmpRegister64:
                    let target = reg(op.pointee.b, UInt64.self)
                    try checkCanonical(target)
                    s.rip = target
                    break chained
                case .callRegister64:
                    let target = reg(op.pointee.b, UInt64.self)
                    try checkCanonical(target)
                    let top = gpr(GPR.rsp) &- 8
                    try store(top, end(of: op), op)
                    setGPR(GPR.rsp, top)
                    s.rip = target
                    break chained
                case .ret64:
                    let target = try load(gpr(GPR.rsp), UInt64.self)
                    try checkCanonical(target)
                    setGPR(GPR.rsp, gpr(GPR.rsp) &+ 8 &+ op.pointee.imm)
                    s.rip = target
                    break chained
                case .jo:
                    if branch(of, op, &block, &link) { continue chained }
                    break chained
                case .jno:
                    if branch(!of, op, &block, &link) { continue chained }
                    break chained
                case .jb:
                    if branch(cf, op, &block, &link) { continue chained }
                    break chained
                case .jae:
                    if branch(!cf, op, &block, &link) { continue chained }
                    break chained
                case .je:
                    if branch(zf, op, &block, &link) { continue chained }
                    break chained
                case .jne:
                    if branch(!zf, op, &block, &link) { continue chained }
                    break chained
                case .jbe:
                    if branch(cf || zf, op, &block, &link) { continue chained }
                    break chained
                case .ja:
                    if branch(!(cf || zf), op, &block, &link) { continue chained }
                    break chained
                case .js:
                    if branch(sf, op, &block, &link) { continue chained }
                    break chained
                case .jns:
                    if branch(!sf, op, &block, &link) { continue chained }
                    break chained
                case .jp:
                    if branch(pf, op, &block, &link) { continue chained }
                    break chained
                case .jnp:
                    if branch(!pf, op, &block, &link) { continue chained }
                    break chained
                case .jl:
                    if branch(sf != of, op, &block, &link) { continue chained }
                    break chained
                case .jge:
                    if branch(sf == of, op, &block, &link) { continue chained }
                    break chained
                case .jle:
                    if branch(zf || sf != of, op, &block, &link) { continue chained }
                    break chained
                case .jg:
                    if branch(!zf && sf == of, op, &block, &link) { continue chained }
                    break chained
                }
                op += 1
                }
                }
                // To a block that isn't known yet.
                guard s.retired < s.sliceEnd else { return nil }
                let linear = (s.codeBase &+ s.rip) & s.linearMask
                let jump = s.jumps + JumpEntry.index(linear)
                if jump.pointee.linear == linear, jump.pointee.generation == s.generation, jump.pointee.mode == s.mode {
                    block = jump.pointee.block.unsafelyUnwrapped
                } else {
                    s.block = nil
                    let generation = s.generation
                    guard let found = try findBlock(linear) else { return nil }
                    block = found
                    // Not to be remembered, or the cache was emptied and the link with it.
                    guard generation == s.generation, jump.pointee.block == block else { continue next }
                }
                if let link { link.pointee = Link(block: block, generation: s.generation) }
            }
        } catch {
            s.op = op
            return trapped(error)
        }
    }
}
