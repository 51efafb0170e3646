import CKVM

// CPUState in and out of a KVM vCPU.
//
// The order of the writes is the kernel's: CPUID before anything that depends on it (done when the vCPU is made), MP
// state, general and special registers, XCR0 before the XSAVE area it governs, MSRs, debug registers, and the events
// last, because writing registers drops pending exceptions.
// Source: Linux, Documentation/virt/kvm/api.rst; arch/x86/kvm/x86.c, __set_regs.

extension SegmentRegister {
    init(_ s: kvm_segment) {
        var attributes = UInt16(s.type & 15) | UInt16(s.s & 1) << 4
        attributes |= UInt16(s.dpl & 3) << 5 | UInt16(s.present & 1) << 7 | UInt16(s.avl & 1) << 8
        attributes |= UInt16(s.l & 1) << 9 | UInt16(s.db & 1) << 10 | UInt16(s.g & 1) << 11
        if s.unusable != 0 || s.present == 0 { attributes |= Self.unusable }
        self = Self(selector: s.selector, base: s.base, limit: s.limit, attributes: attributes).canonical
    }

    var kvm: kvm_segment {
        var s = kvm_segment()
        s.base = base
        s.limit = limit
        s.selector = selector
        s.type = UInt8(attributes & 15)
        s.s = UInt8(attributes >> 4 & 1)
        s.dpl = dpl
        s.present = UInt8(attributes >> 7 & 1)
        s.avl = UInt8(attributes >> 8 & 1)
        s.l = UInt8(attributes >> 9 & 1)
        s.db = UInt8(attributes >> 10 & 1)
        s.g = UInt8(attributes >> 11 & 1)
        s.unusable = attributes & Self.unusable == 0 ? 0 : 1
        return s
    }
}

extension GeneralRegisters {
    /// The resume flag is left out: it serves whoever sets breakpoints, and a monitor does.
    init(_ r: kvm_regs) {
        self.init()
        (rax, rbx, rcx, rdx) = (r.rax, r.rbx, r.rcx, r.rdx)
        (rsi, rdi, rsp, rbp) = (r.rsi, r.rdi, r.rsp, r.rbp)
        (r8, r9, r10, r11) = (r.r8, r.r9, r.r10, r.r11)
        (r12, r13, r14, r15) = (r.r12, r.r13, r.r14, r.r15)
        rip = r.rip
        rflags = r.rflags & ~RFlags.resume | RFlags.reservedOne
    }

    var kvm: kvm_regs {
        kvm_regs(rax: rax, rbx: rbx, rcx: rcx, rdx: rdx, rsi: rsi, rdi: rdi, rsp: rsp, rbp: rbp, r8: r8, r9: r9,
                 r10: r10, r11: r11, r12: r12, r13: r13, r14: r14, r15: r15, rip: rip, rflags: rflags)
    }
}

extension EventState {
    init(_ e: kvm_vcpu_events) {
        self.init()
        exceptionInjected = e.exception.injected != 0
        exceptionPending = e.exception.pending != 0
        if exceptionInjected || exceptionPending {
            exceptionVector = e.exception.nr
            exceptionHasErrorCode = e.exception.has_error_code != 0
            exceptionErrorCode = exceptionHasErrorCode ? e.exception.error_code : 0
            exceptionHasPayload = e.exception_has_payload != 0
            exceptionPayload = exceptionHasPayload ? e.exception_payload : 0
        }
        interruptInjected = e.interrupt.injected != 0
        if interruptInjected {
            interruptVector = e.interrupt.nr
            interruptSoft = e.interrupt.soft != 0
        }
        interruptShadow = e.interrupt.shadow & 3
        nmiInjected = e.nmi.injected != 0
        nmiPending = e.nmi.pending
        nmiMasked = e.nmi.masked != 0
    }

    var kvm: kvm_vcpu_events {
        var e = kvm_vcpu_events()
        e.flags = 1 | 4  // KVM_VCPUEVENT_VALID_NMI_PENDING | _VALID_SHADOW
        e.exception.injected = exceptionInjected || exceptionPending ? 1 : 0
        e.exception.nr = exceptionVector
        e.exception.has_error_code = exceptionHasErrorCode ? 1 : 0
        e.exception.error_code = exceptionErrorCode
        e.interrupt.injected = interruptInjected ? 1 : 0
        e.interrupt.nr = interruptVector
        e.interrupt.soft = interruptSoft ? 1 : 0
        e.interrupt.shadow = interruptShadow
        e.nmi.injected = nmiInjected ? 1 : 0
        e.nmi.pending = nmiPending
        e.nmi.masked = nmiMasked ? 1 : 0
        return e
    }
}

extension CoreRegisters {
    init(_ r: kvm_regs, _ s: kvm_sregs) {
        self.init()
        general = GeneralRegisters(r)
        es = SegmentRegister(s.es)
        cs = SegmentRegister(s.cs)
        ss = SegmentRegister(s.ss)
        ds = SegmentRegister(s.ds)
        fs = SegmentRegister(s.fs)
        gs = SegmentRegister(s.gs)
        ldtr = SegmentRegister(s.ldt)
        tr = SegmentRegister(s.tr)
        gdtr = DescriptorTable(base: s.gdt.base, limit: s.gdt.limit)
        idtr = DescriptorTable(base: s.idt.base, limit: s.idt.limit)
        control.cr0 = s.cr0
        control.cr2 = s.cr2
        control.cr3 = s.cr3
        control.cr4 = s.cr4
        control.cr8 = s.cr8
        control.efer = s.efer
        makeNullSegmentsCanonical()
    }

    func fill(_ s: inout kvm_sregs) {
        s.es = es.kvm
        s.cs = cs.kvm
        s.ss = ss.kvm
        s.ds = ds.kvm
        s.fs = fs.kvm
        s.gs = gs.kvm
        s.ldt = ldtr.kvm
        s.tr = tr.kvm
        s.gdt.base = gdtr.base
        s.gdt.limit = gdtr.limit
        s.idt.base = idtr.base
        s.idt.limit = idtr.limit
        s.cr0 = control.cr0
        s.cr2 = control.cr2
        s.cr3 = control.cr3
        s.cr4 = control.cr4
        s.cr8 = control.cr8
        s.efer = control.efer
        // APIC enabled, at its usual place, bootstrap processor: what CPUID reports of the APIC depends on it.
        s.apic_base = 0xFEE0_0900
    }
}

extension FloatingPointState {
    // Offsets in the XSAVE area. Source: Intel SDM Vol. 1, 13.4.
    private static let stOffset = 32
    private static let xmmOffset = 160
    private static let headerOffset = 512

    /// Reads a standard-format XSAVE area of 4096 bytes. Components in their initial configuration read as that.
    init(xsave area: UnsafeRawPointer, keepsLastInstruction: Bool) {
        self.init()
        let present = area.load(fromByteOffset: Self.headerOffset, as: UInt64.self)
        mxcsr = area.load(fromByteOffset: 24, as: UInt32.self)
        if present & 1 != 0 {
            controlWord = area.load(fromByteOffset: 0, as: UInt16.self)
            statusWord = area.load(fromByteOffset: 2, as: UInt16.self)
            tags = area.load(fromByteOffset: 4, as: UInt8.self)
            if keepsLastInstruction {
                last.opcode = area.load(fromByteOffset: 6, as: UInt16.self) & 0x7FF
                last.address = area.load(fromByteOffset: 8, as: UInt64.self)
                last.operand = area.load(fromByteOffset: 16, as: UInt64.self)
            }
            for i in 0..<8 {
                for j in 0..<10 { st[10 * i + j] = area.load(fromByteOffset: Self.stOffset + 16 * i + j, as: UInt8.self) }
            }
        }
        if present & 2 != 0 {
            xmm = Array(UnsafeRawBufferPointer(start: area + Self.xmmOffset, count: 256))
        }
        if present & 4 != 0 {
            ymmHigh = Array(UnsafeRawBufferPointer(start: area + StateArea.ymm, count: 256))
        }
    }

    /// Fills a zeroed area of 4096 bytes.
    func fill(xsave area: UnsafeMutableRawPointer, withAVX: Bool) {
        area.storeBytes(of: controlWord, toByteOffset: 0, as: UInt16.self)
        area.storeBytes(of: statusWord, toByteOffset: 2, as: UInt16.self)
        area.storeBytes(of: tags, toByteOffset: 4, as: UInt8.self)
        area.storeBytes(of: last.opcode, toByteOffset: 6, as: UInt16.self)
        area.storeBytes(of: last.address, toByteOffset: 8, as: UInt64.self)
        area.storeBytes(of: last.operand, toByteOffset: 16, as: UInt64.self)
        area.storeBytes(of: mxcsr, toByteOffset: 24, as: UInt32.self)
        for i in 0..<8 {
            for j in 0..<10 { area.storeBytes(of: st[10 * i + j], toByteOffset: Self.stOffset + 16 * i + j, as: UInt8.self) }
        }
        for (i, byte) in xmm.enumerated() { area.storeBytes(of: byte, toByteOffset: Self.xmmOffset + i, as: UInt8.self) }
        if withAVX {
            for (i, byte) in ymmHigh.enumerated() {
                area.storeBytes(of: byte, toByteOffset: StateArea.ymm + i, as: UInt8.self)
            }
        }
        area.storeBytes(of: withAVX ? 7 : 3, toByteOffset: Self.headerOffset, as: UInt64.self)
    }
}

extension KVMVirtualCPU {
    /// What `CoreRegisters` and `EventState` don't hold. The vCPU is between two instructions: no exit waits for its
    /// completion. Without the kernel's interrupt controller a vCPU that has executed HLT is runnable.
    func readRest(of state: inout CPUState, debug: kvm_debugregs, withAVX: Bool, keepsLastInstruction: Bool,
                  area: UnsafeMutableRawPointer) throws(SystemCallError) {
        state.debug.address = SIMD4(debug.db.0, debug.db.1, debug.db.2, debug.db.3)
        state.debug.dr6 = debug.dr6
        state.debug.dr7 = debug.dr7
        try getXSave(area)
        state.floatingPoint = FloatingPointState(xsave: area, keepsLastInstruction: keepsLastInstruction)
        if withAVX {
            state.control.xcr0 = try extendedControl().xcrs.0.value
        } else {
            state.floatingPoint.ymmHigh = [UInt8](repeating: 0, count: 256)
        }
        state.msrs = try msrs(CPUState.msrIndices)
    }

    func restore(_ state: CPUState, withAVX: Bool, area: UnsafeMutableRawPointer) throws(SystemCallError) {
        try setMPState(state.events.halted ? 3 : 0)
        try set(state.general.kvm)
        var special = kvm_sregs()
        state.core.fill(&special)
        if state.control.cr0 >> 31 & 1 == 1 {
            // Page tables change along with the state, and the kernel drops the guest's translations only where a
            // control register changes. Source: Linux, arch/x86/kvm/x86.c, __set_sregs.
            special.cr3 ^= UInt64(pageSize)
            try set(special)
            special.cr3 ^= UInt64(pageSize)
        }
        try set(special)
        if withAVX {
            var xcrs = kvm_xcrs()
            xcrs.nr_xcrs = 1
            xcrs.xcrs.0.value = state.control.xcr0
            try set(xcrs)
        }
        memset(area, 0, 4096)
        state.floatingPoint.fill(xsave: area, withAVX: withAVX)
        try setXSave(area)
        try set(msrs: Array(zip(CPUState.msrIndices, state.msrs)))
        var debug = kvm_debugregs()
        debug.db = (state.debug.address[0], state.debug.address[1], state.debug.address[2], state.debug.address[3])
        debug.dr6 = state.debug.dr6
        debug.dr7 = state.debug.dr7
        try set(debug)
        try set(state.events.kvm)
    }
}
