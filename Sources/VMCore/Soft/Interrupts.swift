/// Delivery of exceptions and interrupts, and IRET. Source: Intel SDM Vol. 3A, chapter 6; AMD APM Vol. 2, chapter 8.
extension Core {
    enum EventSource {
        /// From outside, or an NMI.
        case external
        case exception
        /// INT n, INT3, INTO: gates' DPL counts.
        case software
    }

    /// Exceptions that one after the other take another's place before the engine looks at what else is asked of it.
    private static let mostReplacements = 8

    /// Delivers an exception, and what comes of it when its delivery fails. `first` is the exception whose delivery has raised it.
    ///
    /// Some never end: a page fault whose delivery raises an alignment check, and the delivery of that the page fault again, by
    /// which guests stopped their hosts (CVE-2015-5307). After so many the next one is left in the queue: the guest stays where
    /// it is, but whoever runs it is heard.
    ///
    /// - Returns: the vector that was entered; nil where one waits in the queue.
    /// - Throws: a trap of another kind than exceptions: shutdown after a triple fault, or what the engine lacks.
    func raise(_ trap: Trap, after first: UInt8? = nil) throws(Trap) -> UInt8? {
        var current = trap.kind == .nonCanonical ? .protection : trap
        if let first { current = try Self.following(first, trap) }
        for _ in 0..<Self.mostReplacements {
            guard current.kind == .exception else { throw current }
            do throws(Trap) {
                if current.vector == Vector.db { s.dr7 &= ~(1 << 13) }
                try deliver(current.vector, code: current.hasErrorCode && isProtected ? current.errorCode : nil,
                            source: .exception, returnTo: s.rip)
                return current.vector
            } catch {
                current = try Self.following(current.vector, error)
            }
        }
        s.queued = QueuedEvent(kind: .exception, vector: current.vector, hasErrorCode: current.hasErrorCode && isProtected,
                               errorCode: current.errorCode)
        return nil
    }

    /// What is raised in the end when the delivery of exception `first` raises `second`.
    private static func following(_ first: UInt8, _ second: Trap) throws(Trap) -> Trap {
        var next = second
        if next.kind == .nonCanonical { next = .exception(Vector.ss, code: 0) }
        guard next.kind == .exception else { throw next }
        if first == Vector.df { throw Trap(kind: .shutdown) }
        next.errorCode |= next.hasErrorCode && next.vector != Vector.pf ? 1 : 0
        return combine(first, next)
    }

    /// Table 6-5: which pairs make a double fault.
    private static func combine(_ first: UInt8, _ second: Trap) -> Trap {
        func isContributory(_ v: UInt8) -> Bool { v == Vector.de || (Vector.ts...Vector.gp).contains(v) }
        let double = isContributory(first) && isContributory(second.vector)
            || first == Vector.pf && (isContributory(second.vector) || second.vector == Vector.pf)
        return double ? .exception(Vector.df, code: 0) : second
    }

    /// Enters the handler of a vector. Nothing has changed but memory below the stack when it throws.
    func deliver(_ vector: UInt8, code: UInt32?, source: EventSource, returnTo: UInt64) throws(Trap) {
        if !isProtected {
            try deliverReal(vector, returnTo)
        } else if isLong {
            try deliverLong(vector, code, source, returnTo)
        } else {
            try deliverProtected(vector, code, source, returnTo)
        }
        s.next = s.rip
        s.shadow = 0
        s.halted = false
    }

    private func deliverReal(_ vector: UInt8, _ returnTo: UInt64) throws(Trap) {
        let entry = UInt64(vector) * 4
        guard entry + 3 <= UInt64(s.idtr.limit) else { throw .protection }
        var stack = stack
        try push(rflags & 0xFFFF, size: 1, on: &stack)
        try push(UInt64(segment(SegmentIndex.cs).pointee.selector), size: 1, on: &stack)
        try push(returnTo, size: 1, on: &stack)
        let target = try systemLoad(s.idtr.base &+ entry, UInt32.self)
        commit(stack)
        s.flags &= ~(Flag.if | Flag.tf | Flag.ac | Flag.rf)
        var cs = segment(SegmentIndex.cs).pointee
        cs.selector = UInt16(target >> 16)
        cs.base = UInt64(cs.selector) << 4
        setSegment(SegmentIndex.cs, cs)
        s.rip = UInt64(target & 0xFFFF)
    }

    private func gateFault(_ vector: UInt8, _ kind: UInt8, _ source: EventSource) -> Trap {
        .exception(kind, code: UInt32(vector) << 3 | 2 | (source == .software ? 0 : 1))
    }

    /// A fault pushes the resume flag set, so that a breakpoint on its instruction isn't met again when that is restarted.
    /// Source: Intel SDM Vol. 3B, 18.3.1.1.
    private func pushedFlags(_ vector: UInt8, _ source: EventSource) -> UInt64 {
        let isFault = source == .exception && ![Vector.db, Vector.bp, Vector.of, Vector.df].contains(vector)
        let isMonitors = s.isMonitorsFault
        s.isMonitorsFault = false
        return isFault && (isMonitors || s.profile.faultsWithoutResume >> UInt32(vector & 31) & 1 == 0) ? rflags | Flag.rf : rflags
    }

    private func deliverLong(_ vector: UInt8, _ code: UInt32?, _ source: EventSource, _ returnTo: UInt64)
        throws(Trap) {
        guard UInt64(vector) * 16 + 15 <= UInt64(s.idtr.limit) else { throw gateFault(vector, Vector.gp, source) }
        let address = s.idtr.base &+ UInt64(vector) * 16
        let low = try systemLoad(address, UInt64.self)
        let high = try systemLoad(address &+ 8, UInt64.self)
        let type = low >> 40 & 0x1F
        guard type == 0xE || type == 0xF else { throw gateFault(vector, Vector.gp, source) }
        if source == .software, UInt8(low >> 45 & 3) < s.cpl { throw gateFault(vector, Vector.gp, source) }
        guard low >> 47 & 1 != 0 else { throw gateFault(vector, Vector.np, source) }
        let external = source != .software
        let target = low & 0xFFFF | low >> 32 & 0xFFFF_0000 | (high & 0xFFFF_FFFF) << 32
        let selector = UInt16(truncatingIfNeeded: low >> 16)
        guard selector & 0xFFFC != 0 else { throw .exception(Vector.gp, code: external ? 1 : 0) }
        var descriptor = try descriptor(selector)
        guard descriptor.isCode, descriptor.dpl <= s.cpl, descriptor.isLong, !descriptor.isBig else {
            throw selectorFault(Vector.gp, selector, external: external)
        }
        guard descriptor.isPresent else { throw selectorFault(Vector.np, selector, external: external) }
        try checkCanonical(target)
        let level = descriptor.isConforming ? s.cpl : descriptor.dpl
        let ist = low >> 32 & 7
        let changes = level != s.cpl
        var stack = Stack(pointer: gpr(GPR.rsp), mask: .max, segment: nil)
        if ist != 0 {
            stack.pointer = try innerStack64(ist + 3)
        } else if changes {
            stack.pointer = try innerStack64(UInt64(level))
        }
        stack.pointer &= ~15
        let saved = pushedFlags(vector, source)
        let oldSS = segment(SegmentIndex.ss).pointee
        let system = changes
        try push(UInt64(oldSS.selector), size: 3, on: &stack, system: system)
        try push(gpr(GPR.rsp), size: 3, on: &stack, system: system)
        try push(saved, size: 3, on: &stack, system: system)
        try push(UInt64(segment(SegmentIndex.cs).pointee.selector), size: 3, on: &stack, system: system)
        try push(returnTo, size: 3, on: &stack, system: system)
        if let code { try push(UInt64(code), size: 3, on: &stack, system: system) }
        try markTransferAccessed(&descriptor)
        setGPR(GPR.rsp, stack.pointer)
        if changes {
            segment(SegmentIndex.ss).pointee = Segment(selector: UInt16(level), attributes: SegmentRegister.unusable | UInt16(level) << 5)
        }
        var cs = descriptor.segment(selector)
        cs.selector = selector & 0xFFFC | UInt16(level)
        segment(SegmentIndex.cs).pointee = cs
        s.flags &= ~(Flag.tf | Flag.nt | Flag.rf | Flag.vm)
        if type == 0xE { s.flags &= ~Flag.if }
        updateMode()
        s.rip = target
    }

    private func deliverProtected(_ vector: UInt8, _ code: UInt32?, _ source: EventSource, _ returnTo: UInt64)
        throws(Trap) {
        guard UInt64(vector) * 8 + 7 <= UInt64(s.idtr.limit) else { throw gateFault(vector, Vector.gp, source) }
        let gate = try systemLoad(s.idtr.base &+ UInt64(vector) * 8, UInt64.self)
        let type = gate >> 40 & 0x1F
        if type == 5 { throw .unsupported }  // a task gate
        guard [6, 7, 0xE, 0xF].contains(type) else { throw gateFault(vector, Vector.gp, source) }
        if source == .software, UInt8(gate >> 45 & 3) < s.cpl { throw gateFault(vector, Vector.gp, source) }
        guard gate >> 47 & 1 != 0 else { throw gateFault(vector, Vector.np, source) }
        let external = source != .software
        let is32 = type & 8 != 0
        let size: UInt8 = is32 ? 2 : 1
        let target = is32 ? gate & 0xFFFF | gate >> 32 & 0xFFFF_0000 : gate & 0xFFFF
        let selector = UInt16(truncatingIfNeeded: gate >> 16)
        guard selector & 0xFFFC != 0 else { throw .exception(Vector.gp, code: external ? 1 : 0) }
        var descriptor = try descriptor(selector)
        guard descriptor.isCode, descriptor.dpl <= s.cpl else { throw selectorFault(Vector.gp, selector, external: external) }
        guard descriptor.isPresent else { throw selectorFault(Vector.np, selector, external: external) }
        let fromV86 = isVirtual8086
        let level = descriptor.isConforming ? s.cpl : descriptor.dpl
        if fromV86, level != 0 { throw selectorFault(Vector.gp, selector, external: external) }
        guard target <= UInt64(descriptor.segment(selector).limit) else { throw .exception(Vector.gp, code: external ? 1 : 0) }
        var stack = stack
        var newSS: Segment?
        let oldFlags = pushedFlags(vector, source)
        if level != s.cpl {
            let inner = try innerStack(level)
            var ss = try stackSegment(inner.selector, level: level, fault: Vector.ts)
            try markTransferAccessed(&ss)
            let made = ss.segment(inner.selector)
            newSS = made
            let mask: UInt64 = made.attributes & 1 << 10 != 0 ? 0xFFFF_FFFF : 0xFFFF
            stack = Stack(pointer: inner.pointer, mask: mask, segment: made)
            if fromV86 {
                for index in [SegmentIndex.gs, SegmentIndex.fs, SegmentIndex.ds, SegmentIndex.es] {
                    try push(UInt64(segment(index).pointee.selector), size: size, on: &stack, system: true)
                }
            }
            try push(UInt64(segment(SegmentIndex.ss).pointee.selector), size: size, on: &stack, system: true)
            try push(gpr(GPR.rsp), size: size, on: &stack, system: true)
        }
        let system = newSS != nil
        try push(oldFlags, size: size, on: &stack, system: system)
        try push(UInt64(segment(SegmentIndex.cs).pointee.selector), size: size, on: &stack, system: system)
        try push(returnTo, size: size, on: &stack, system: system)
        if let code { try push(UInt64(code), size: size, on: &stack, system: system) }
        try markTransferAccessed(&descriptor)
        if let newSS {
            segment(SegmentIndex.ss).pointee = newSS
            if fromV86 {
                for index in [SegmentIndex.gs, SegmentIndex.fs, SegmentIndex.ds, SegmentIndex.es] {
                    segment(index).pointee = Segment(attributes: SegmentRegister.unusable)
                }
            }
        }
        setGPR(GPR.rsp, stack.pointer, mask: stack.mask)
        var cs = descriptor.segment(selector)
        cs.selector = selector & 0xFFFC | UInt16(level)
        segment(SegmentIndex.cs).pointee = cs
        s.flags &= ~(Flag.tf | Flag.nt | Flag.rf | Flag.vm)
        if type & 1 == 0 { s.flags &= ~Flag.if }
        updateMode()
        s.rip = target
    }

    // MARK: INT

    /// INT n, INT3 and INTO.
    func softwareInterrupt(_ vector: UInt8, isINT: Bool) throws(Trap) {
        if isINT, isVirtual8086, s.flags & Flag.iopl != Flag.iopl { throw .protection }
        try deliver(vector, code: nil, source: .software, returnTo: s.next)
    }

    // MARK: IRET

    /// The flags that IRET and POPF may change at this privilege level.
    func loadableFlags(size: UInt8) -> UInt64 {
        var mask = Flag.arithmetic | Flag.tf | Flag.df | Flag.nt
        if size > 1 { mask |= Flag.ac | Flag.id }
        if s.cpl == 0 { mask |= Flag.iopl }
        if s.cpl <= UInt8((s.flags & Flag.iopl) >> 12) { mask |= Flag.if }
        return mask
    }

    func interruptReturn(_ op: Op) throws(Trap) {
        let size = op.pointee.form.size
        if isRealOrV86 { return try interruptReturnReal(size) }
        if s.flags & Flag.nt != 0 {
            if isLong { throw .protection }
            throw .unsupported  // a task return
        }
        var stack = stack
        let rip = try pop(size: size, from: &stack)
        let selector = UInt16(truncatingIfNeeded: try pop(size: size, from: &stack))
        let flags = try pop(size: size, from: &stack)
        var mask = loadableFlags(size: size)
        if size > 1 { mask |= Flag.rf }
        if size > 1, s.cpl == 0, !isLong, flags & Flag.vm != 0 { return try returnToV86(rip, selector, flags, stack) }
        if s.cpl == 0, size > 1 { mask |= Flag.vif | Flag.vip }
        try farReturn(rip, selector, size: size, stack: &stack, skip: 0, interrupt: true)
        rflags = flags & mask | rflags & ~mask
        selectTLB()
        s.nmiMasked = false
        s.sliceEnd = 0
    }

    private func interruptReturnReal(_ size: UInt8) throws(Trap) {
        if isVirtual8086, s.flags & Flag.iopl != Flag.iopl { throw .protection }
        var stack = stack
        let rip = try pop(size: size, from: &stack)
        let selector = UInt16(truncatingIfNeeded: try pop(size: size, from: &stack))
        let flags = try pop(size: size, from: &stack)
        if rip > UInt64(segment(SegmentIndex.cs).pointee.limit) { throw .protection }
        var mask = loadableFlags(size: size)
        if isVirtual8086 { mask |= Flag.if } else { mask |= Flag.iopl | Flag.if }
        if size > 1 { mask |= Flag.rf }
        commit(stack)
        var cs = segment(SegmentIndex.cs).pointee
        cs.selector = selector
        cs.base = UInt64(selector) << 4
        segment(SegmentIndex.cs).pointee = cs
        rflags = flags & mask | rflags & ~mask
        updateMode()
        s.next = rip
        s.nmiMasked = false
        s.sliceEnd = 0
    }

    private func returnToV86(_ rip: UInt64, _ selector: UInt16, _ flags: UInt64, _ from: Stack) throws(Trap) {
        guard rip <= 0xFFFF else { throw .protection }
        var stack = from
        let pointer = try pop(size: 2, from: &stack)
        var selectors: [UInt16] = []
        for _ in 0..<5 { selectors.append(UInt16(truncatingIfNeeded: try pop(size: 2, from: &stack))) }
        rflags = flags | Flag.vm
        let order = [SegmentIndex.ss, SegmentIndex.es, SegmentIndex.ds, SegmentIndex.fs, SegmentIndex.gs]
        for (index, selector) in zip(order + [SegmentIndex.cs], selectors + [selector]) {
            segment(index).pointee = Segment(base: UInt64(selector) << 4, limit: 0xFFFF, selector: selector, attributes: 0xF3)
        }
        setGPR(GPR.rsp, pointer & 0xFFFF_FFFF)
        updateMode()
        s.next = rip
        s.nmiMasked = false
        s.sliceEnd = 0
    }
}
