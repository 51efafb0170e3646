/// The generic handlers' dispatch, and the short ones.
extension Core {
    /// Executes an instruction that has no micro-op of its own. Nothing of it is done when it throws, but for what it
    /// has told devices.
    @inline(never)
    func executeCold(_ op: Op) throws(Trap) {
        switch op.pointee.cold {
        case .x87: return try executeX87(op)
        case .ldmxcsr, .stmxcsr, .emms, .fxsave, .fxrstor, .xsave, .xrstor, .xsetbv: return try executeVectorState(op)
        case .vectorMaskMove: return try maskMove(op)
        case .vectorMasked: return try moveMasked(op)
        case .vectorGather: return try gather(op)
        default: break
        }
        if try executeInteger(op) { return }
        if try executeBits(op) { return }
        if try executeStack(op) { return }
        if try executeTransfer(op) { return }
        try executeSystem(op)
    }

    private func executeStack(_ op: Op) throws(Trap) -> Bool {
        let size = op.pointee.form.size
        switch op.pointee.cold {
        case .push:
            let value = op.pointee.form.has(MicroOp.Form.immediate) ? op.pointee.imm : try firstWide(op)
            var stack = stack
            try push(value, size: size, on: &stack)
            commit(stack)
        case .pushSegment:
            var stack = stack
            let selector = UInt64(segment(op.pointee.extra).pointee.selector)
            // A 32-bit push writes the lower half alone. Source: Intel SDM Vol. 2B, PUSH.
            if size == 2 {
                let offset = (stack.pointer &- 4) & stack.mask
                let top = stack.pointer & ~stack.mask | offset
                stack.pointer = stack.pointer & ~stack.mask | (offset &+ 2) & stack.mask
                try push(selector, size: 1, on: &stack)
                stack.pointer = top
            } else {
                try push(selector, size: size, on: &stack)
            }
            commit(stack)
        case .pop:
            var stack = stack
            let value = try pop(size: size, from: &stack)
            if op.pointee.form.has(MicroOp.Form.memoryA) {
                // An address that builds on RSP takes its new value.
                let old = gpr(GPR.rsp)
                commit(stack)
                do throws(Trap) {
                    try replaceWide(op, value)
                } catch {
                    setGPR(GPR.rsp, old)
                    throw error
                }
            } else {
                commit(stack)
                try replaceWide(op, value)
            }
        case .popSegment:
            var stack = stack
            // Whatever it takes off the stack, it reads a selector. Source: Linux, arch/x86/kvm/emulate.c, em_pop_sreg.
            let selector = UInt16(truncatingIfNeeded: try pop(size: size, from: &stack, reading: 1))
            try loadSegment(op.pointee.extra, selector)
            commit(stack)
            if op.pointee.extra == SegmentIndex.ss { blockInterrupts(1) }
        case .pusha:
            var stack = stack
            for number in 0..<8 { try push(gpr(number), size: size, on: &stack) }
            commit(stack)
        case .popa:
            var stack = stack
            var values: [UInt64] = []
            for _ in 0..<8 { values.append(try pop(size: size, from: &stack)) }
            for (i, value) in values.enumerated() where i != 3 {
                setGPR(7 - i, value, mask: size == 1 ? 0xFFFF : 0xFFFF_FFFF)
            }
            commit(stack)
        case .pushf:
            if isVirtual8086, s.flags & Flag.iopl != Flag.iopl { throw .protection }
            var stack = stack
            try push(rflags & ~(Flag.rf | Flag.vm), size: size, on: &stack)
            commit(stack)
        case .popf:
            if isVirtual8086, s.flags & Flag.iopl != Flag.iopl { throw .protection }
            var stack = stack
            let flags = try pop(size: size, from: &stack)
            var mask = loadableFlags(size: size)
            if !isProtected { mask |= Flag.iopl | Flag.if }
            commit(stack)
            rflags = (flags & mask | rflags & ~mask) & ~Flag.rf
            selectTLB()
            s.sliceEnd = 0
        case .enter: try enter(op)
        case .leave:
            var stack = stack
            stack.pointer = stack.pointer & ~stack.mask | gpr(GPR.rbp) & stack.mask
            let value = try pop(size: size, from: &stack)
            commit(stack)
            replaceRegister(GPR.rbp, value, size: size)
        default: return false
        }
        return true
    }

    private func firstWide(_ op: Op) throws(Trap) -> UInt64 {
        switch op.pointee.form.size {
        case 1: UInt64(try first(op, UInt16.self))
        case 2: UInt64(try first(op, UInt32.self))
        default: try first(op, UInt64.self)
        }
    }

    private func replaceWide(_ op: Op, _ value: UInt64) throws(Trap) {
        switch op.pointee.form.size {
        case 1: try replaceFirst(op, UInt16(truncatingIfNeeded: value))
        case 2: try replaceFirst(op, UInt32(truncatingIfNeeded: value))
        default: try replaceFirst(op, value)
        }
    }

    private func replaceRegister(_ number: Int, _ value: UInt64, size: UInt8) {
        setGPR(number, value, mask: size == 1 ? 0xFFFF : size == 2 ? 0xFFFF_FFFF : .max)
    }

    private func enter(_ op: Op) throws(Trap) {
        // Zydis gives the frame's size as the first operand, the nesting as the second; the decoder keeps the last.
        let size = op.pointee.form.size
        let bytes = op.pointee.imm >> 32 & 0xFFFF
        let level = op.pointee.imm & 31
        var stack = stack
        try push(gpr(GPR.rbp), size: size, on: &stack)
        let frame = stack.pointer
        if level > 0 {
            var frames = Stack(pointer: gpr(GPR.rbp), mask: stack.mask, segment: stack.segment)
            for _ in 1..<level where level > 1 {
                frames.pointer = frames.pointer & ~frames.mask | (frames.pointer &- (1 << UInt64(size))) & frames.mask
                var reader = frames
                try push(pop(size: size, from: &reader), size: size, on: &stack)
            }
            try push(frame, size: size, on: &stack)
        }
        stack.pointer = stack.pointer & ~stack.mask | (stack.pointer &- bytes) & stack.mask
        // The new top has to be writable, and is an operand that has to be aligned. Source: Intel SDM Vol. 2A, ENTER.
        let top = try address(stack, stack.pointer & stack.mask, 1)
        try checkAlignment(top, 1 << UInt64(size))
        try checkWritable(top, 1)
        commit(stack)
        replaceRegister(GPR.rbp, frame, size: size)
    }

    private func executeTransfer(_ op: Op) throws(Trap) -> Bool {
        let size = op.pointee.form.size
        let mask: UInt64 = size == 1 ? 0xFFFF : size == 2 ? 0xFFFF_FFFF : .max
        switch op.pointee.cold {
        case .jmpNear:
            s.next = op.pointee.form.has(MicroOp.Form.immediate)
                ? (s.next &+ op.pointee.imm) & mask : try firstWide(op)
        case .callNear, .callRelative:
            let target = op.pointee.form.has(MicroOp.Form.immediate) ? (s.next &+ op.pointee.imm) & mask : try firstWide(op)
            var stack = stack
            try push(s.next, size: size, on: &stack)
            commit(stack)
            s.next = target
        case .retNear:
            var stack = stack
            let target = try pop(size: size, from: &stack)
            let skip = op.pointee.form.has(MicroOp.Form.immediate) ? op.pointee.imm & 0xFFFF : 0
            stack.pointer = stack.pointer & ~stack.mask | (stack.pointer &+ skip) & stack.mask
            commit(stack)
            s.next = target
        case .jmpFar: try farJump(op)
        case .callFar: try farCall(op)
        case .retFar: try farReturn(op)
        case .iret: try interruptReturn(op)
        case .int: try softwareInterrupt(UInt8(truncatingIfNeeded: op.pointee.imm), isINT: true)
        case .int3: try softwareInterrupt(Vector.bp, isINT: false)
        case .into:
            if of { try softwareInterrupt(Vector.of, isINT: false) }
        case .int1: try deliver(Vector.db, code: nil, source: .exception, returnTo: s.next)
        case .loop, .loope, .loopne:
            let count = (gpr(GPR.rcx) &- 1) & op.pointee.mask
            setGPR(GPR.rcx, count, mask: op.pointee.mask)
            let holds = op.pointee.cold == .loop || zf == (op.pointee.cold == .loope)
            if count != 0, holds { s.next = (s.rip &+ op.pointee.imm) & (is64 ? .max : mask) }
        case .jcxz:
            if gpr(GPR.rcx) & op.pointee.mask == 0 { s.next = (s.rip &+ op.pointee.imm) & (is64 ? .max : mask) }
        case .syscall: try systemCall()
        case .sysret: try systemReturn(op)
        case .sysenter: try systemEnter()
        case .sysexit: try systemExit(op)
        case .loadFar:
            let (selector, offset) = try farPointer(op)
            try loadSegment(op.pointee.extra, selector)
            replaceRegister(Int(op.pointee.a) / 8, offset, size: size)
            if op.pointee.extra == SegmentIndex.ss { blockInterrupts(1) }
        case .bound:
            let (low, high): (Int64, Int64)
            let address = try operandAddress(op, size: 2 << UInt64(size), writes: false)
            let index: Int64
            if size == 1 {
                low = Int64(Int16(bitPattern: try load(address, UInt16.self)))
                high = Int64(Int16(bitPattern: try load((address &+ 2) & s.linearMask, UInt16.self)))
                index = Int64(Int16(bitPattern: reg(op.pointee.a, UInt16.self)))
            } else {
                low = Int64(Int32(bitPattern: try load(address, UInt32.self)))
                high = Int64(Int32(bitPattern: try load((address &+ 4) & s.linearMask, UInt32.self)))
                index = Int64(Int32(bitPattern: reg(op.pointee.a, UInt32.self)))
            }
            if index < low || index > high { throw .exception(Vector.br) }
        case .xlat:
            let offset = (gpr(GPR.rbx) &+ (gpr(GPR.rax) & 0xFF)) & op.pointee.mask
            let address = op.pointee.form.has(MicroOp.Form.checked)
                ? try linear(op.pointee.segment, offset, size: 1, writes: false) : offset &+ segmentBase(op.pointee.segment)
            setReg(Slot.gpr(GPR.rax), try load(address, UInt8.self))
        default: return try executeFlags(op)
        }
        return true
    }

    private func executeFlags(_ op: Op) throws(Trap) -> Bool {
        switch op.pointee.cold {
        case .lahf: setReg(1, UInt8(truncatingIfNeeded: rflags & 0xD5 | 2))
        case .sahf:
            let loaded = Flag.sf | Flag.zf | Flag.af | Flag.pf | Flag.cf
            setArithmetic(UInt64(reg(1, UInt8.self)) & loaded | rflags & Flag.of)
        case .clc: setCF(false)
        case .stc: setCF(true)
        case .cmc: setCF(!cf)
        case .cld: s.flags &= ~Flag.df
        case .std: s.flags |= Flag.df
        case .salc: setReg(0, cf ? 0xFF : 0 as UInt8)
        case .daa, .das, .aaa, .aas, .aam, .aad: try decimal(op)
        case .cmpxchg8b: try exchange8(op)
        case .cmpxchg16b: try exchange16(op)
        case .crc32:
            // The operand's size is the second's; the first has 32 bits.
            var crc = reg(op.pointee.a, UInt32.self)
            let value: UInt64
            let bytes: Int
            switch op.pointee.extra {
            case 0: (value, bytes) = (UInt64(try second(op, UInt8.self)), 1)
            case 1: (value, bytes) = (UInt64(try second(op, UInt16.self)), 2)
            case 2: (value, bytes) = (UInt64(try second(op, UInt32.self)), 4)
            default: (value, bytes) = (try second(op, UInt64.self), 8)
            }
            for i in 0..<bytes {
                crc ^= UInt32(value >> UInt64(8 * i) & 0xFF)
                for _ in 0..<8 { crc = crc >> 1 ^ (crc & 1 != 0 ? 0x82F6_3B78 : 0) }
            }
            setReg(op.pointee.a, crc)
        default: return false
        }
        return true
    }

    private func exchange8(_ op: Op) throws(Trap) {
        let old = try loadToModify(operandAddress(op, size: 8, writes: true), UInt64.self)
        let expected = gpr(GPR.rdx) << 32 | gpr(GPR.rax) & 0xFFFF_FFFF
        let equal = old == expected
        try storeModified(equal ? gpr(GPR.rcx) << 32 | gpr(GPR.rbx) & 0xFFFF_FFFF : old, op)
        if !equal {
            setGPR(GPR.rax, old & 0xFFFF_FFFF)
            setGPR(GPR.rdx, old >> 32)
        }
        setArithmetic(rflags & Flag.arithmetic & ~Flag.zf | (equal ? Flag.zf : 0))
    }

    private func exchange16(_ op: Op) throws(Trap) {
        let address = try operandAddress(op, size: 16, writes: true)
        guard address & 15 == 0 else { throw .protection }
        try checkModifiable(address, 16)
        let low = try load(address, UInt64.self)
        let high = try load(address &+ 8, UInt64.self)
        let equal = low == gpr(GPR.rax) && high == gpr(GPR.rdx)
        try store(address, equal ? gpr(GPR.rbx) : low, op)
        try store(address &+ 8, equal ? gpr(GPR.rcx) : high, op)
        if !equal {
            setGPR(GPR.rax, low)
            setGPR(GPR.rdx, high)
        }
        setArithmetic(rflags & Flag.arithmetic & ~Flag.zf | (equal ? Flag.zf : 0))
    }

    /// The decimal adjustments. Source: Intel SDM Vol. 2A, DAA, DAS, AAA, AAS, AAM, AAD.
    private func decimal(_ op: Op) throws(Trap) {
        var al = reg(0, UInt8.self)
        let oldAL = al
        let ah = reg(1, UInt8.self)
        switch op.pointee.cold {
        case .daa, .das:
            let adds = op.pointee.cold == .daa
            let (oldCF, oldAF) = (cf, af)
            var carry = false
            let low = al & 15 > 9 || oldAF
            if low {
                carry = oldCF || (adds ? al > 0xF9 : al < 6)
                al = adds ? al &+ 6 : al &- 6
            }
            if oldAL > 0x99 || oldCF {
                al = adds ? al &+ 0x60 : al &- 0x60
                carry = true
            }
            setReg(0, al)
            setResult(al, cf: carry, of: false, af: low)
        case .aaa, .aas:
            let adjust = al & 15 > 9 || af
            if adjust {
                let ax = reg(0, UInt16.self)
                setReg(0, op.pointee.cold == .aaa ? ax &+ 0x106 : ax &- 0x106)
            }
            setReg(0, reg(0, UInt8.self) & 15)
            setResult(reg(0, UInt8.self), cf: adjust, of: false, af: adjust)
        case .aam:
            let base = UInt8(truncatingIfNeeded: op.pointee.imm)
            guard base != 0 else { throw .exception(Vector.de) }
            setReg(1, al / base)
            setReg(0, al % base)
            setLogic(al % base)
        default:
            let r = al &+ ah &* UInt8(truncatingIfNeeded: op.pointee.imm)
            setReg(0, UInt16(r))
            setLogic(r)
        }
    }

    /// Holds interrupts off until after the next instruction.
    func blockInterrupts(_ bit: UInt8) {
        s.shadow = bit
        s.sliceEnd = 0
    }
}
