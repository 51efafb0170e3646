/// Far jumps, calls and returns. Source: Intel SDM Vol. 2A, JMP, CALL, RET.
extension Core {
    /// The far pointer of JMP, CALL or a segment load.
    func farPointer(_ op: Op) throws(Trap) -> (selector: UInt16, offset: UInt64) {
        if op.pointee.form.has(MicroOp.Form.immediate) {
            return (UInt16(truncatingIfNeeded: op.pointee.imm >> 32), op.pointee.imm & 0xFFFF_FFFF)
        }
        let size = op.pointee.form.size
        let bytes = UInt64(1) << UInt64(size)
        let address = try operandAddress(op, size: bytes + 2, writes: false)
        let offset: UInt64
        switch size {
        case 1: offset = UInt64(try load(address, UInt16.self))
        case 2: offset = UInt64(try load(address, UInt32.self))
        default: offset = try load(address, UInt64.self)
        }
        return (try load((address &+ bytes) & s.linearMask, UInt16.self), offset)
    }

    private func setRealCode(_ selector: UInt16, _ offset: UInt64) throws(Trap) {
        if offset > UInt64(segment(SegmentIndex.cs).pointee.limit) { throw .protection }
        var cs = segment(SegmentIndex.cs).pointee
        cs.selector = selector
        cs.base = UInt64(selector) << 4
        setSegment(SegmentIndex.cs, cs)
        s.next = offset
    }

    /// Checks a code segment that a transfer without change of privilege leads to, and returns it loaded.
    private func codeSegment(_ selector: UInt16, _ descriptor: inout Descriptor, _ offset: UInt64) throws(Trap) -> Segment {
        let rpl = UInt8(selector & 3)
        guard descriptor.isConforming ? descriptor.dpl <= s.cpl : rpl <= s.cpl && descriptor.dpl == s.cpl else {
            throw selectorFault(Vector.gp, selector)
        }
        guard descriptor.isPresent else { throw selectorFault(Vector.np, selector) }
        return try checkedCode(selector, &descriptor, offset, level: s.cpl)
    }

    private func checkedCode(_ selector: UInt16, _ descriptor: inout Descriptor, _ offset: UInt64, level: UInt8)
        throws(Trap) -> Segment {
        if isLong && descriptor.isLong {
            guard !descriptor.isBig else { throw selectorFault(Vector.gp, selector) }
            try checkCanonical(offset)
        } else if offset > UInt64(descriptor.segment(selector).limit) {
            throw .protection
        }
        try markTransferAccessed(&descriptor)
        var segment = descriptor.segment(selector)
        segment.selector = selector & 0xFFFC | UInt16(level)
        return segment
    }

    func farJump(_ op: Op) throws(Trap) {
        let (selector, offset) = try farPointer(op)
        if isRealOrV86 { return try setRealCode(selector, op.pointee.form.size == 1 ? offset & 0xFFFF : offset) }
        guard selector & 0xFFFC != 0 else { throw .protection }
        var descriptor = try descriptor(selector)
        if descriptor.isCode {
            let cs = try codeSegment(selector, &descriptor, offset)
            setSegment(SegmentIndex.cs, cs)
            s.next = offset
            return
        }
        var (target, gate) = try callGate(selector, descriptor)
        let cs = try codeSegment(target.selector & 0xFFFC, &gate, target.offset)
        setSegment(SegmentIndex.cs, cs)
        s.next = target.offset
    }

    private struct GateTarget {
        var selector: UInt16
        var offset: UInt64
        var parameters: Int
        /// Logarithm of the bytes of what it pushes.
        var size: UInt8
    }

    private func callGate(_ selector: UInt16, _ descriptor: Descriptor) throws(Trap) -> (GateTarget, Descriptor) {
        guard !descriptor.isSegment else { throw selectorFault(Vector.gp, selector) }
        let type = descriptor.type
        if !isLong, [1, 5, 9].contains(type) { throw .unsupported }  // task switches
        guard type == 12 || type == 4 && !isLong else { throw selectorFault(Vector.gp, selector) }
        guard descriptor.dpl >= s.cpl, descriptor.dpl >= UInt8(selector & 3) else { throw selectorFault(Vector.gp, selector) }
        guard descriptor.isPresent else { throw selectorFault(Vector.np, selector) }
        var target = GateTarget(selector: UInt16(truncatingIfNeeded: descriptor.raw >> 16),
                                offset: descriptor.raw & 0xFFFF, parameters: Int(descriptor.raw >> 32 & 31), size: 1)
        if type == 12 {
            target.offset |= descriptor.raw >> 32 & 0xFFFF_0000
            target.size = 2
        }
        if isLong {
            target.offset |= try systemLoad(descriptor.address &+ 8, UInt64.self) << 32
            target.parameters = 0
            target.size = 3
        }
        guard target.selector & 0xFFFC != 0 else { throw .protection }
        let code = try self.descriptor(target.selector)
        guard code.isCode, code.dpl <= s.cpl, !isLong || code.isLong else { throw selectorFault(Vector.gp, target.selector) }
        return (target, code)
    }

    func farCall(_ op: Op) throws(Trap) {
        let (selector, offset) = try farPointer(op)
        let size = op.pointee.form.size
        var stack = stack
        let oldCS = UInt64(segment(SegmentIndex.cs).pointee.selector)
        if isRealOrV86 {
            try push(oldCS, size: size, on: &stack)
            try push(s.next, size: size, on: &stack)
            try setRealCode(selector, size == 1 ? offset & 0xFFFF : offset)
            return commit(stack)
        }
        guard selector & 0xFFFC != 0 else { throw .protection }
        var descriptor = try descriptor(selector)
        if descriptor.isCode {
            let cs = try codeSegment(selector, &descriptor, offset)
            try push(oldCS, size: size, on: &stack)
            try push(s.next, size: size, on: &stack)
            commit(stack)
            setSegment(SegmentIndex.cs, cs)
            s.next = offset
            return
        }
        var (target, code) = try callGate(selector, descriptor)
        guard !code.isConforming, code.dpl < s.cpl else {
            let cs = try codeSegment(target.selector & 0xFFFC | UInt16(s.cpl), &code, target.offset)
            try push(oldCS, size: target.size, on: &stack)
            try push(s.next, size: target.size, on: &stack)
            commit(stack)
            setSegment(SegmentIndex.cs, cs)
            s.next = target.offset
            return
        }
        try callInner(target, &code, oldCS)
    }

    /// A call through a gate to a more privileged level, which has a stack of its own.
    private func callInner(_ target: GateTarget, _ code: inout Descriptor, _ oldCS: UInt64) throws(Trap) {
        let level = code.dpl
        var old = stack
        var inner: Stack
        var ss: Segment
        if isLong {
            inner = Stack(pointer: try innerStack64(UInt64(level)), mask: .max, segment: nil)
            ss = Segment(limit: 0xFFF, selector: UInt16(level), attributes: 0xC93 | UInt16(level) << 5)
        } else {
            let found = try innerStack(level)
            var descriptor = try stackSegment(found.selector, level: level, fault: Vector.ts)
            try markTransferAccessed(&descriptor)
            ss = descriptor.segment(found.selector)
            inner = Stack(pointer: found.pointer, mask: ss.attributes & 1 << 10 != 0 ? 0xFFFF_FFFF : 0xFFFF, segment: ss)
        }
        guard code.isPresent else { throw selectorFault(Vector.np, target.selector) }
        var parameters: [UInt64] = []
        for _ in 0..<target.parameters { parameters.append(try pop(size: target.size, from: &old)) }
        try push(UInt64(segment(SegmentIndex.ss).pointee.selector), size: target.size, on: &inner, system: true)
        try push(gpr(GPR.rsp), size: target.size, on: &inner, system: true)
        for value in parameters.reversed() { try push(value, size: target.size, on: &inner, system: true) }
        try push(oldCS, size: target.size, on: &inner, system: true)
        try push(s.next, size: target.size, on: &inner, system: true)
        let cs = try checkedCode(target.selector, &code, target.offset, level: level)
        segment(SegmentIndex.ss).pointee = ss
        segment(SegmentIndex.cs).pointee = cs
        setGPR(GPR.rsp, inner.pointer, mask: inner.mask)
        updateMode()
        s.next = target.offset
    }

    func farReturn(_ op: Op) throws(Trap) {
        let size = op.pointee.form.size
        var stack = stack
        let rip = try pop(size: size, from: &stack)
        let selector = UInt16(truncatingIfNeeded: try pop(size: size, from: &stack))
        let skip = op.pointee.form.has(MicroOp.Form.immediate) ? op.pointee.imm & 0xFFFF : 0
        if isRealOrV86 {
            try setRealCode(selector, rip)
            stack.pointer = stack.pointer & ~stack.mask | (stack.pointer &+ skip) & stack.mask
            return commit(stack)
        }
        try farReturn(rip, selector, size: size, stack: &stack, skip: skip, interrupt: false)
    }

    /// RET far and IRET in protected and long mode, RIP and CS popped; IRET's flags as well.
    func farReturn(_ rip: UInt64, _ selector: UInt16, size: UInt8, stack: inout Stack, skip: UInt64, interrupt: Bool)
        throws(Trap) {
        guard selector & 0xFFFC != 0 else { throw .protection }
        var code = try descriptor(selector)
        let level = UInt8(selector & 3)
        guard code.isCode, level >= s.cpl, code.isConforming ? code.dpl <= level : code.dpl == level else {
            throw selectorFault(Vector.gp, selector)
        }
        guard code.isPresent else { throw selectorFault(Vector.np, selector) }
        stack.pointer = stack.pointer & ~stack.mask | (stack.pointer &+ skip) & stack.mask
        // In 64-bit mode IRET always pops SS:RSP.
        guard level != s.cpl || interrupt && is64 else {
            let cs = try checkedCode(selector, &code, rip, level: level)
            commit(stack)
            setSegment(SegmentIndex.cs, cs)
            s.next = rip
            return
        }
        let pointer = try pop(size: size, from: &stack)
        let stackSelector = UInt16(truncatingIfNeeded: try pop(size: size, from: &stack))
        var ss: Segment
        if stackSelector & 0xFFFC == 0 {
            guard isLong, code.isLong, level != 3, UInt8(stackSelector & 3) == level else { throw .protection }
            ss = Segment(limit: 0xFFF, selector: stackSelector, attributes: 0xC93 | UInt16(level) << 5)
        } else {
            var descriptor = try stackSegment(stackSelector, level: level, fault: Vector.gp)
            try markTransferAccessed(&descriptor)
            ss = descriptor.segment(stackSelector)
        }
        let cs = try checkedCode(selector, &code, rip, level: level)
        let outer = level != s.cpl
        segment(SegmentIndex.cs).pointee = cs
        segment(SegmentIndex.ss).pointee = ss
        updateMode()
        setGPR(GPR.rsp, pointer &+ skip, mask: is64 ? .max : s.stackMask)
        if outer { dropInnerSegments(level) }
        s.next = rip
    }

    /// Data segments that the outer level has no right to are made null.
    private func dropInnerSegments(_ level: UInt8) {
        for index in [SegmentIndex.es, SegmentIndex.ds, SegmentIndex.fs, SegmentIndex.gs] {
            let segment = segment(index).pointee
            let isConforming = segment.type & 0xC == 0xC
            if segment.isUsable, segment.attributes & 0x10 != 0, segment.dpl < level, !isConforming {
                self.segment(index).pointee = Segment(attributes: SegmentRegister.unusable)
            }
        }
        updateMode()
    }
}
