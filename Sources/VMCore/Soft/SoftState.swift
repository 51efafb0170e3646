/// The processor's state as the monitor and traces have it.
extension SoftEngine {
    public func registers() throws(HostError) -> CoreRegisters { coreRegisters() }

    public func state() throws(HostError) -> CPUState {
        var state = CPUState()
        state.core = coreRegisters()
        state.floatingPoint = core.s.floatingPoint.state
        state.control.xcr0 = core.s.xcr0
        let s = core.file.pointee
        state.debug.address = SIMD4(s.dr.0, s.dr.1, s.dr.2, s.dr.3)
        state.debug.dr6 = s.dr6
        state.debug.dr7 = s.dr7
        state.msrs = [s.msrs.0, s.msrs.1, s.msrs.2, s.msrs.3, s.msrs.4, s.msrs.5, s.msrs.6, s.msrs.7, s.msrs.8, s.msrs.9]
        state.timestampCounter = timestampCounter
        state.events.interruptShadow = s.shadow
        state.events.nmiPending = s.nmiPending
        state.events.nmiMasked = s.nmiMasked
        state.events.halted = s.halted
        switch s.queued.kind {
        case .none: break
        case .interrupt:
            state.events.interruptInjected = true
            state.events.interruptVector = s.queued.vector
            state.events.interruptSoft = s.queued.soft
        case .nmi: state.events.nmiInjected = true
        case .exception:
            state.events.exceptionPending = true
            state.events.exceptionVector = s.queued.vector
            state.events.exceptionHasErrorCode = s.queued.hasErrorCode
            state.events.exceptionErrorCode = s.queued.errorCode
        }
        return state
    }

    public func setState(_ state: CPUState) throws(HostError) {
        pending = .none
        core.s.floatingPoint.load(state.floatingPoint)
        setRegisters(state.core)
        core.s.xcr0 = state.control.xcr0
        core.s.dr = (state.debug.address[0], state.debug.address[1], state.debug.address[2], state.debug.address[3])
        core.s.dr6 = state.debug.dr6
        core.s.dr7 = state.debug.dr7
        let m = state.msrs
        core.s.msrs = (m[0], m[1], m[2], m[3], m[4], m[5], m[6], m[7], m[8], m[9])
        timestampCounter = state.timestampCounter
        let e = state.events
        core.s.shadow = e.interruptShadow
        core.s.nmiPending = e.nmiPending
        core.s.nmiMasked = e.nmiMasked
        core.s.halted = e.halted
        core.s.queued = QueuedEvent()
        if e.exceptionInjected || e.exceptionPending {
            core.s.queued = QueuedEvent(kind: .exception, vector: e.exceptionVector, hasErrorCode: e.exceptionHasErrorCode,
                                        errorCode: e.exceptionErrorCode)
        } else if e.nmiInjected {
            core.s.queued = QueuedEvent(kind: .nmi, vector: Vector.nmi)
        } else if e.interruptInjected {
            core.s.queued = QueuedEvent(kind: .interrupt, vector: e.interruptVector, soft: e.interruptSoft)
        }
        core.s.isMonitorsFault = false
        core.s.answerCount = 0
        core.s.answersTaken = 0
        core.s.outgoingCount = 0
        core.s.outgoingSent = 0
        countAtExit = core.s.retired
        core.s.watched?.pointee.isOpen = false
        core.flushTLB()
        if core.isProtected, !core.isLong, core.s.cr4 & 0x20 != 0, core.s.cr0 >> 31 != 0 {
            // What can't be loaded faults when it is used.
            do throws(Trap) { try core.loadPDPTEs(core.s.cr3) } catch { core.s.pdpte = (0, 0, 0, 0) }
        }
    }

    private func setRegisters(_ r: CoreRegisters) {
        let g = r.general
        core.s.gpr = (g.rax, g.rcx, g.rdx, g.rbx, g.rsp, g.rbp, g.rsi, g.rdi,
                      g.r8, g.r9, g.r10, g.r11, g.r12, g.r13, g.r14, g.r15)
        core.s.rip = g.rip
        core.rflags = g.rflags
        for (i, segment) in [r.es, r.cs, r.ss, r.ds, r.fs, r.gs].enumerated() {
            core.segment(UInt8(i)).pointee = Segment(segment)
        }
        core.s.ldtr = Segment(r.ldtr)
        core.s.tr = Segment(r.tr)
        core.s.gdtr = r.gdtr
        core.s.idtr = r.idtr
        core.s.cr0 = r.control.cr0
        core.s.cr2 = r.control.cr2
        core.s.cr3 = r.control.cr3
        core.s.cr4 = r.control.cr4
        core.s.cr8 = r.control.cr8
        core.s.efer = r.control.efer
        core.updateMode()
    }

    func coreRegisters() -> CoreRegisters {
        var r = CoreRegisters()
        let s = core.file.pointee
        let g = s.gpr
        (r.general.rax, r.general.rcx, r.general.rdx, r.general.rbx) = (g.0, g.1, g.2, g.3)
        (r.general.rsp, r.general.rbp, r.general.rsi, r.general.rdi) = (g.4, g.5, g.6, g.7)
        (r.general.r8, r.general.r9, r.general.r10, r.general.r11) = (g.8, g.9, g.10, g.11)
        (r.general.r12, r.general.r13, r.general.r14, r.general.r15) = (g.12, g.13, g.14, g.15)
        r.general.rip = s.rip
        r.general.rflags = core.rflags & ~RFlags.resume
        r.es = SegmentRegister(s.segments.0)
        r.cs = SegmentRegister(s.segments.1)
        r.ss = SegmentRegister(s.segments.2)
        r.ds = SegmentRegister(s.segments.3)
        r.fs = SegmentRegister(s.segments.4)
        r.gs = SegmentRegister(s.segments.5)
        r.ldtr = SegmentRegister(s.ldtr)
        r.tr = SegmentRegister(s.tr)
        r.gdtr = s.gdtr
        r.idtr = s.idtr
        r.control.cr0 = s.cr0
        r.control.cr2 = s.cr2
        r.control.cr3 = s.cr3
        r.control.cr4 = s.cr4
        r.control.cr8 = s.cr8
        r.control.efer = s.efer
        r.control.xcr0 = 1
        r.makeNullSegmentsCanonical()
        return r
    }
}

extension Segment {
    init(_ s: SegmentRegister) {
        self.init(base: s.base, limit: s.limit, selector: s.selector, attributes: s.attributes)
    }
}

extension SegmentRegister {
    init(_ s: Segment) {
        var attributes = s.attributes
        if attributes & 0x80 == 0 { attributes |= Self.unusable }
        self = Self(selector: s.selector, base: s.base, limit: s.limit, attributes: attributes).canonical
    }
}
