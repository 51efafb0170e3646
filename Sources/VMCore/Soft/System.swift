/// The CPU model's answers and what it allows, in a form for the run loop's neighbours.
struct CPUIDTable {
    /// What the model has.
    let entries: [CPUIDEntry]
    /// What the processor answers.
    let answers: [CPUIDEntry]
    let isAMD: Bool
    /// Bits that page-table entries may not have: addresses beyond MAXPHYADDR.
    let reservedAddressBits: UInt64
    let reservedCR4: UInt64
    let allowedEFER: UInt64
    let hasTSCAux: Bool
    let allowedXCR0: UInt64

    init(_ model: CPUModel) {
        entries = model.entries
        answers = model.answers
        isAMD = model.vendor == "AuthenticAMD" || model.vendor == "HygonGenuine"
        func has(_ leaf: UInt32, _ register: KeyPath<CPUIDEntry, UInt32>, _ bit: UInt32) -> Bool {
            model.entries.contains { $0.leaf == leaf && ($0.subleaf ?? 0) == 0 && $0[keyPath: register] >> bit & 1 == 1 }
        }
        let width = model.entries.first { $0.leaf == 0x8000_0008 }.map { UInt64($0.eax & 0xFF) } ?? 36
        reservedAddressBits = 0x000F_FFFF_FFFF_FFFF & ~((1 << min(max(width, 32), 52)) - 1)
        var cr4: UInt64 = 0x7FF  // VME to OSXMMEXCPT
        if has(7, \.ebx, 0) { cr4 |= 1 << 16 }  // FSGSBASE
        if has(1, \.ecx, 17) { cr4 |= 1 << 17 }  // PCID
        if has(1, \.ecx, 26) { cr4 |= 1 << 18 }  // OSXSAVE
        if has(7, \.ebx, 7) { cr4 |= 1 << 20 }  // SMEP
        if has(7, \.ebx, 20) { cr4 |= 1 << 21 }  // SMAP
        if has(7, \.ecx, 2) { cr4 |= 1 << 11 }  // UMIP
        reservedCR4 = ~cr4
        var efer: UInt64 = 1
        if has(0x8000_0001, \.edx, 29) { efer |= 0x500 }
        if has(0x8000_0001, \.edx, 20) { efer |= 0x800 }
        if has(0x8000_0001, \.edx, 25) { efer |= 0x4000 }
        allowedEFER = efer
        let components = model.entries.first { $0.leaf == 0xD && ($0.subleaf ?? 0) == 0 }
        allowedXCR0 = components.map { UInt64($0.eax) & 7 } ?? 1
        hasTSCAux = has(0x8000_0001, \.edx, 27) || has(7, \.ecx, 22)
    }

    /// What CPUID returns for a leaf: `asModel` says as the model has it, whatever the processor shows.
    func answer(_ leaf: UInt32, _ subleaf: UInt32, cr4: UInt64, xcr0: UInt64, asModel: Bool) -> CPUIDEntry {
        var entry = lookUp(leaf, subleaf, in: asModel ? entries : answers)
        if leaf == 1 { entry.ecx = entry.ecx & ~(1 << 27) | (cr4 & 1 << 18 != 0 ? 1 << 27 : 0) }  // OSXSAVE
        // How much XSAVE writes of what XCR0 enables.
        if entry.leaf == 0xD, (entry.subleaf ?? 0) == 0, entry.eax != 0 { entry.ebx = UInt32(StateArea.bytes(for: xcr0)) }
        return entry
    }

    /// Source: Linux, arch/x86/kvm/cpuid.c, kvm_cpuid.
    private func lookUp(_ leaf: UInt32, _ subleaf: UInt32, in entries: [CPUIDEntry]) -> CPUIDEntry {
        func find(_ leaf: UInt32) -> CPUIDEntry? {
            entries.first { $0.leaf == leaf && ($0.subleaf ?? subleaf) == subleaf }
        }
        if let entry = find(leaf) { return entry }
        // Intel processors answer for leaves out of range with the highest basic one.
        let highest = entries.first { $0.leaf == leaf & 0xFFFF_0000 }?.eax ?? 0
        if !isAMD, leaf > highest || highest == 0, let basic = entries.first(where: { $0.leaf == 0 }) {
            return find(basic.eax) ?? CPUIDEntry(leaf)
        }
        return CPUIDEntry(leaf)
    }
}

/// System instructions. Source: Intel SDM Vol. 2 and Vol. 3A, 2.8; AMD APM Vol. 3, chapter 4.
extension Core {
    private func requirePrivilege() throws(Trap) {
        if s.cpl != 0 { throw .protection }
    }

    private func requireProtected() throws(Trap) {
        if isRealOrV86 { throw .undefined }
    }

    func executeSystem(_ op: Op) throws(Trap) {
        switch op.pointee.cold {
        case .undefined: throw .undefined
        case .overlong: throw .protection
        case .movs, .cmps, .scas, .lods, .stos: try executeString(op)
        case .in: try portIn(op)
        case .out: try portOut(op)
        case .ins: try portInString(op)
        case .outs: try portOutString(op)
        case .movToSegment:
            if op.pointee.extra == SegmentIndex.cs || op.pointee.extra > 5 { throw .undefined }
            let selector = op.pointee.form.has(MicroOp.Form.memoryB)
                ? try load(operandAddress(op, size: 2, writes: false), UInt16.self) : reg(op.pointee.b, UInt16.self)
            try loadSegment(op.pointee.extra, selector)
            if op.pointee.extra == SegmentIndex.ss { blockInterrupts(1) }
        case .movFromSegment:
            let selector = segment(op.pointee.extra).pointee.selector
            if op.pointee.form.has(MicroOp.Form.memoryA) {
                try store(operandAddress(op, size: 2, writes: true), selector, op)
            } else {
                setGPR(Int(op.pointee.a) / 8, UInt64(selector), mask: op.pointee.form.size == 1 ? 0xFFFF : .max)
            }
        case .cli:
            try checkInterruptFlag()
            s.flags &= ~Flag.if
        case .sti:
            try checkInterruptFlag()
            if s.flags & Flag.if == 0 {
                s.flags |= Flag.if
                blockInterrupts(2)
            }
        case .hlt:
            try requirePrivilege()
            try send(PendingExit(kind: .halt), endsBlock: true)
        case .vmcall: try send(PendingExit(kind: .hypercall), endsBlock: true)
        case .cpuid: identify()
        case .rdtsc, .rdtscp:
            if s.cr4 & 4 != 0, s.cpl != 0 { throw .protection }
            try readTimestamp(op.pointee.cold == .rdtsc ? 0 : 1)
        case .rdmsr: try readMSR()
        case .wrmsr: try writeMSR()
        case .rdrand, .rdseed:
            let value = try answer(PendingExit(kind: .random, size: 8, wantsAnswer: true), endsBlock: true)
            switch op.pointee.form.size {
            case 1: setReg(op.pointee.a, UInt16(truncatingIfNeeded: value))
            case 2: setReg(op.pointee.a, UInt32(truncatingIfNeeded: value))
            default: setReg(op.pointee.a, value)
            }
            setArithmetic(Flag.cf)
        case .movToControl: try writeControl(op)
        case .movFromControl: try readControl(op)
        case .movToDebug: try writeDebug(op)
        case .movFromDebug: try readDebug(op)
        case .clts:
            try requirePrivilege()
            s.cr0 &= ~8
        case .smsw:
            if op.pointee.form.has(MicroOp.Form.memoryA) {
                try store(operandAddress(op, size: 2, writes: true), UInt16(truncatingIfNeeded: s.cr0), op)
            } else {
                setGPR(Int(op.pointee.a) / 8, s.cr0, mask: op.pointee.form.size == 1 ? 0xFFFF : .max)
            }
        case .lmsw:
            try requirePrivilege()
            let value = UInt64(try first(op, UInt16.self))
            // PE can be set this way and not cleared.
            try setCR0(s.cr0 & ~0xE | value & 0xF)
        case .lgdt, .lidt:
            try requirePrivilege()
            let address = try operandAddress(op, size: is64 ? 10 : 6, writes: false)
            let limit = try load(address, UInt16.self)
            var base = is64 ? try load(address &+ 2, UInt64.self)
                : UInt64(try load((address &+ 2) & s.linearMask, UInt32.self))
            if !is64, op.pointee.form.size == 1 { base &= 0xFF_FFFF }
            if is64 { try checkCanonical(base) }
            if op.pointee.cold == .lgdt { s.gdtr = DescriptorTable(base: base, limit: limit) }
            else { s.idtr = DescriptorTable(base: base, limit: limit) }
        case .sgdt, .sidt:
            let table = op.pointee.cold == .sgdt ? s.gdtr : s.idtr
            let size: UInt64 = is64 ? 10 : 6
            let address = try operandAddress(op, size: size, writes: true)
            try checkWritable(address, size)
            try store(address, table.limit, op)
            if is64 { try store(address &+ 2, table.base, op) }
            else { try store((address &+ 2) & s.linearMask, UInt32(truncatingIfNeeded: table.base), op) }
        case .lldt:
            try requireProtected()
            try requirePrivilege()
            try loadLDTR(first(op, UInt16.self))
        case .ltr:
            try requireProtected()
            try requirePrivilege()
            try loadTR(first(op, UInt16.self))
        case .sldt, .str:
            try requireProtected()
            let selector = op.pointee.cold == .sldt ? s.ldtr.selector : s.tr.selector
            if op.pointee.form.has(MicroOp.Form.memoryA) {
                try store(operandAddress(op, size: 2, writes: true), selector, op)
            } else {
                setGPR(Int(op.pointee.a) / 8, UInt64(selector), mask: op.pointee.form.size == 1 ? 0xFFFF : .max)
            }
        case .lar, .lsl, .verr, .verw: try inspect(op)
        case .arpl:
            try requireProtected()
            let target = try first(op, UInt16.self, modify: true)
            let source = reg(op.pointee.b, UInt16.self)
            let lower = target & 3 < source & 3
            try setFirst(op, lower ? target & ~3 | source & 3 : target)
            setZF(lower)
        case .invlpg:
            try requirePrivilege()
            flushPage(address(op))
        case .invd: try requirePrivilege()
        case .swapgs:
            try requirePrivilege()
            let base = segmentBase(SegmentIndex.gs)
            segment(SegmentIndex.gs).pointee.base = s.msrs.8
            s.msrs.8 = base
        case .clac, .stac:
            if s.cpl != 0 { throw .undefined }
            s.flags = op.pointee.cold == .stac ? s.flags | Flag.ac : s.flags & ~Flag.ac
            selectTLB()
        case .rdfsbase, .rdgsbase, .wrfsbase, .wrgsbase: try baseRegister(op)
        case .rdpmc: throw .protection
        case .xgetbv:
            guard s.cr4 & 1 << 18 != 0 else { throw .undefined }
            guard gpr(GPR.rcx) & 0xFFFF_FFFF == 0 else { throw .protection }
            setGPR(GPR.rax, s.xcr0 & 0xFFFF_FFFF)
            setGPR(GPR.rdx, s.xcr0 >> 32)
        default: throw .undefined
        }
    }

    private func setZF(_ value: Bool) {
        setArithmetic(rflags & Flag.arithmetic & ~Flag.zf | (value ? Flag.zf : 0))
    }

    private func checkInterruptFlag() throws(Trap) {
        if isProtected, s.cpl > UInt8((s.flags & Flag.iopl) >> 12) { throw .protection }
    }

    func identify(asModel: Bool = false) {
        let entry = s.cpuid.pointee.answer(UInt32(truncatingIfNeeded: gpr(GPR.rax)), UInt32(truncatingIfNeeded: gpr(GPR.rcx)),
                                           cr4: s.cr4, xcr0: s.xcr0, asModel: asModel)
        setGPR(GPR.rax, UInt64(entry.eax))
        setGPR(GPR.rbx, UInt64(entry.ebx))
        setGPR(GPR.rcx, UInt64(entry.ecx))
        setGPR(GPR.rdx, UInt64(entry.edx))
    }

    /// RDTSC (0) or RDTSCP (1): the instructions before this one, which ends its block; or an exit, its answer the counter.
    func readTimestamp(_ kind: UInt64) throws(Trap) {
        let value = s.countsTimestamps
            ? s.retired &- 1 &+ s.counterOffset
            : try answer(PendingExit(kind: .timestamp, size: 8, address: kind, wantsAnswer: true), endsBlock: true)
        setGPR(GPR.rax, value & 0xFFFF_FFFF)
        setGPR(GPR.rdx, value >> 32)
        if kind == 1 { setGPR(GPR.rcx, s.msrs.9 & 0xFFFF_FFFF) }
    }

    // MARK: MSRs

    /// Reads an MSR that belongs to the processor; nil for those that are the monitor's, as `KVMEngine`'s filter has it.
    private func msr(_ index: UInt32) -> UInt64? {
        switch index {
        case 0x174: s.msrs.0
        case 0x175: s.msrs.1
        case 0x176: s.msrs.2
        case 0x277: s.msrs.3
        case 0xC000_0080: s.efer
        case 0xC000_0081: s.msrs.4
        case 0xC000_0082: s.msrs.5
        case 0xC000_0083: s.msrs.6
        case 0xC000_0084: s.msrs.7
        case 0xC000_0100: segmentBase(SegmentIndex.fs)
        case 0xC000_0101: segmentBase(SegmentIndex.gs)
        case 0xC000_0102: s.msrs.8
        case 0xC000_0103 where s.cpuid.pointee.hasTSCAux: s.msrs.9
        default: nil
        }
    }

    private func readMSR() throws(Trap) {
        try requirePrivilege()
        let index = UInt32(truncatingIfNeeded: gpr(GPR.rcx))
        var value = msr(index)
        if value == nil {
            let isCounter = index == 0x10
            value = try answer(PendingExit(kind: isCounter ? .timestamp : .msrRead, size: 8,
                                           address: isCounter ? 2 : UInt64(index), wantsAnswer: true), endsBlock: true)
            if s.answerFaulted { throw refused() }
        }
        let result = value ?? 0
        setGPR(GPR.rax, result & 0xFFFF_FFFF)
        setGPR(GPR.rdx, result >> 32)
    }

    private func writeMSR() throws(Trap) {
        try requirePrivilege()
        let index = UInt32(truncatingIfNeeded: gpr(GPR.rcx))
        let value = gpr(GPR.rdx) << 32 | gpr(GPR.rax) & 0xFFFF_FFFF
        if setMSR(index, value) { return }
        _ = try answer(PendingExit(kind: .msrWrite, size: 8, address: UInt64(index), value: value, wantsAnswer: true),
                       endsBlock: true)
        if s.answerFaulted { throw refused() }
    }

    /// The fault of an access that the monitor refuses.
    private func refused() -> Trap {
        s.isMonitorsFault = true
        return .protection
    }

    /// False where the write is the monitor's to answer: an MSR of its own, or a value that the processor refuses.
    private func setMSR(_ index: UInt32, _ value: UInt64) -> Bool {
        let canonical = UInt64(bitPattern: Int64(bitPattern: value << 16) >> 16)
        let isCanonical = canonical == value
        switch index {
        case 0x174: s.msrs.0 = value
        // Made canonical, not refused, as KVM has it for either vendor. Source: Linux, arch/x86/kvm/x86.c, __kvm_set_msr.
        case 0x175: s.msrs.1 = s.profile.halvesSysenter ? value & 0xFFFF_FFFF : canonical
        case 0x176: s.msrs.2 = s.profile.halvesSysenter ? value & 0xFFFF_FFFF : canonical
        case 0x277:
            for i in 0..<8 as Range<UInt64> where ![0, 1, 4, 5, 6, 7].contains(value >> (8 * i) & 0xFF) { return false }
            s.msrs.3 = value
        case 0xC000_0080:
            guard value & ~s.cpuid.pointee.allowedEFER == 0 else { return false }
            if (value ^ s.efer) & 0x100 != 0, s.cr0 >> 31 != 0 { return false }
            s.efer = value & ~0x400 | s.efer & 0x400
            flushTLB()
            updateMode()
        case 0xC000_0081: s.msrs.4 = value
        case 0xC000_0082 where isCanonical: s.msrs.5 = value
        case 0xC000_0083 where isCanonical: s.msrs.6 = value
        case 0xC000_0084: s.msrs.7 = value
        case 0xC000_0100 where isCanonical: segment(SegmentIndex.fs).pointee.base = value
        case 0xC000_0101 where isCanonical: segment(SegmentIndex.gs).pointee.base = value
        case 0xC000_0102 where isCanonical: s.msrs.8 = value
        case 0xC000_0103 where s.cpuid.pointee.hasTSCAux && value >> 32 == 0: s.msrs.9 = value
        default: return false
        }
        return true
    }

    // MARK: Control and debug registers

    private func readControl(_ op: Op) throws(Trap) {
        try requirePrivilege()
        let value: UInt64
        switch op.pointee.extra {
        case 0: value = s.cr0
        case 2: value = s.cr2
        case 3: value = s.cr3
        case 4: value = s.cr4
        case 8: value = s.cr8
        default: throw .undefined
        }
        setGPR(Int(op.pointee.a) / 8, is64 ? value : value & 0xFFFF_FFFF)
    }

    private func writeControl(_ op: Op) throws(Trap) {
        try requirePrivilege()
        let value = is64 ? reg(op.pointee.b, UInt64.self) : UInt64(reg(op.pointee.b, UInt32.self))
        switch op.pointee.extra {
        case 0: try setCR0(value)
        case 2: s.cr2 = value
        case 3:
            if isLong {
                guard value & s.cpuid.pointee.reservedAddressBits == 0, value >> 52 == 0 else { throw .protection }
            } else if s.cr4 & 0x20 != 0, s.cr0 >> 31 != 0 {
                try loadPDPTEs(value)
            }
            s.cr3 = value
            flushTLB()
        case 4:
            guard value & s.cpuid.pointee.reservedCR4 == 0 else { throw .protection }
            if isLong, value & 0x20 == 0 { throw .protection }
            if value & 1 << 17 != 0, !isLong { throw .protection }
            if !isLong, value & 0x20 != 0, s.cr0 >> 31 != 0, (value ^ s.cr4) & 0xB0 != 0 { try loadPDPTEs(s.cr3) }
            s.cr4 = value
            flushTLB()
            updateMode()
        case 8:
            guard value < 16 else { throw .protection }
            if value < s.cr8 { s.loweredPriority = true }
            s.cr8 = value
            s.sliceEnd = 0
        default: throw .undefined
        }
    }

    private func setCR0(_ wanted: UInt64) throws(Trap) {
        guard wanted >> 32 == 0 else { throw .protection }
        let value = wanted & 0xE005_003F | 0x10
        let paging: UInt64 = 1 << 31
        if value & paging != 0, value & 1 == 0 { throw .protection }
        if value & 1 << 29 != 0, value & 1 << 30 == 0 { throw .protection }
        if value & paging != 0, s.cr0 & paging == 0 {
            if s.efer & 0x100 != 0 {
                guard s.cr4 & 0x20 != 0, segment(SegmentIndex.cs).pointee.attributes & 1 << 9 == 0 else { throw .protection }
                s.efer |= 0x400
            } else if s.cr4 & 0x20 != 0 {
                try loadPDPTEs(s.cr3)
            }
        } else if value & paging == 0, s.cr0 & paging != 0 {
            if is64 { throw .protection }
            s.efer &= ~0x400
        }
        s.cr0 = value
        flushTLB()
        updateMode()
    }

    private func debugNumber(_ op: Op) throws(Trap) -> UInt8 {
        try requirePrivilege()
        var number = op.pointee.extra
        if number == 4 || number == 5 {
            if s.cr4 & 8 != 0 { throw .undefined }
            number += 2
        }
        guard number < 8 else { throw .undefined }
        if s.dr7 & 1 << 13 != 0 {
            s.dr7 &= ~(1 << 13)
            s.dr6 |= 1 << 13
            throw .exception(Vector.db)
        }
        return number
    }

    private func readDebug(_ op: Op) throws(Trap) {
        let value: UInt64
        switch try debugNumber(op) {
        case 0: value = s.dr.0
        case 1: value = s.dr.1
        case 2: value = s.dr.2
        case 3: value = s.dr.3
        case 6: value = s.dr6
        default: value = s.dr7
        }
        setGPR(Int(op.pointee.a) / 8, is64 ? value : value & 0xFFFF_FFFF)
    }

    private func writeDebug(_ op: Op) throws(Trap) {
        let value = is64 ? reg(op.pointee.b, UInt64.self) : UInt64(reg(op.pointee.b, UInt32.self))
        switch try debugNumber(op) {
        case 0: s.dr.0 = value
        case 1: s.dr.1 = value
        case 2: s.dr.2 = value
        case 3: s.dr.3 = value
        case 6:
            guard value >> 32 == 0 else { throw .protection }
            s.dr6 = value & 0xE00F | 0xFFFF_0FF0
        default:
            guard value >> 32 == 0 else { throw .protection }
            s.dr7 = value & 0xFFFF_2BFF | 0x400
            // Accesses that may meet a breakpoint must not go the fast way.
            if hasBreakpoints { flushTLB() }
        }
        s.sliceEnd = 0
    }

    private func baseRegister(_ op: Op) throws(Trap) {
        guard is64, s.cr4 & 1 << 16 != 0 else { throw .undefined }
        let index = op.pointee.cold == .rdfsbase || op.pointee.cold == .wrfsbase ? SegmentIndex.fs : SegmentIndex.gs
        let wide = op.pointee.form.size == 3
        if op.pointee.cold == .rdfsbase || op.pointee.cold == .rdgsbase {
            setGPR(Int(op.pointee.a) / 8, segmentBase(index), mask: wide ? .max : 0xFFFF_FFFF)
        } else {
            let value = wide ? reg(op.pointee.a, UInt64.self) : UInt64(reg(op.pointee.a, UInt32.self))
            try checkCanonical(value)
            segment(index).pointee.base = value
        }
    }

    // MARK: LAR, LSL, VERR, VERW

    private func inspect(_ op: Op) throws(Trap) {
        try requireProtected()
        let isVerify = op.pointee.cold == .verr || op.pointee.cold == .verw
        let selector: UInt16
        if isVerify {
            selector = try first(op, UInt16.self)
        } else {
            selector = op.pointee.form.has(MicroOp.Form.memoryB)
                ? try load(operandAddress(op, size: 2, writes: false), UInt16.self) : reg(op.pointee.b, UInt16.self)
        }
        guard selector & 0xFFFC != 0 else { return setZF(false) }
        let found: Descriptor
        do throws(Trap) {
            found = try descriptor(selector)
        } catch {
            guard error.kind == .exception, error.vector == Vector.gp else { throw error }
            return setZF(false)
        }
        let visible = found.isConforming || max(s.cpl, UInt8(selector & 3)) <= found.dpl
        var valid = visible
        switch op.pointee.cold {
        case .verr: valid = visible && found.isReadable
        case .verw: valid = visible && found.isWritable
        default:
            if !found.isSegment {
                let types: [UInt8] = isLong ? [2, 9, 11] : [1, 2, 3, 9, 11]
                let gates: [UInt8] = isLong ? [12] : [4, 5, 12]
                valid = visible && (types.contains(found.type) || op.pointee.cold == .lar && gates.contains(found.type))
            }
        }
        if valid, !isVerify {
            let value = op.pointee.cold == .lar
                ? found.raw >> 32 & 0xFF_FF00 & (op.pointee.form.size == 1 ? 0xFF00 : .max)
                : UInt64(found.segment(selector).limit)
            setGPR(Int(op.pointee.a) / 8, value, mask: op.pointee.form.size == 1 ? 0xFFFF : .max)
        }
        setZF(valid)
    }

    // MARK: Fast system calls

    private func flatCode(_ selector: UInt16, dpl: UInt16, long: Bool) -> Segment {
        Segment(base: 0, limit: .max, selector: selector, attributes: (long ? 0xA9B : 0xC9B) | dpl << 5)
    }

    private func flatData(_ selector: UInt16, dpl: UInt16) -> Segment {
        Segment(base: 0, limit: .max, selector: selector, attributes: 0xC93 | dpl << 5)
    }

    /// SYSCALL and SYSRET: outside 64-bit mode AMD's processors alone have them. Source: Intel SDM Vol. 2B, SYSCALL.
    func systemCall() throws(Trap) {
        guard s.efer & 1 != 0, isProtected, is64 || s.cpuid.pointee.isAMD else { throw .undefined }
        let star = s.msrs.4
        let selector = UInt16(truncatingIfNeeded: star >> 32) & 0xFFFC
        if isLong {
            let target = is64 ? s.msrs.5 : s.msrs.6
            setGPR(GPR.rcx, s.next)
            setGPR(GPR.r11, rflags & ~Flag.rf)
            segment(SegmentIndex.cs).pointee = flatCode(selector, dpl: 0, long: true)
            segment(SegmentIndex.ss).pointee = flatData(selector &+ 8, dpl: 0)
            rflags = rflags & ~Flag.rf & ~s.msrs.7
            updateMode()
            s.next = target
        } else {
            setGPR(GPR.rcx, s.next & 0xFFFF_FFFF)
            segment(SegmentIndex.cs).pointee = flatCode(selector, dpl: 0, long: false)
            segment(SegmentIndex.ss).pointee = flatData(selector &+ 8, dpl: 0)
            s.flags &= ~(Flag.vm | Flag.if | Flag.rf)
            updateMode()
            s.next = star & 0xFFFF_FFFF
        }
        s.sliceEnd = 0
    }

    func systemReturn(_ op: Op) throws(Trap) {
        guard s.efer & 1 != 0, isProtected, is64 || s.cpuid.pointee.isAMD else { throw .undefined }
        try requirePrivilege()
        let wide = op.pointee.form.size == 3
        let base = UInt16(truncatingIfNeeded: s.msrs.4 >> 48)
        let target = gpr(GPR.rcx)
        if isLong {
            if wide { try checkCanonical(target) }
            segment(SegmentIndex.cs).pointee = flatCode((wide ? base &+ 16 : base) | 3, dpl: 3, long: wide)
            segment(SegmentIndex.ss).pointee = flatData(base &+ 8 | 3, dpl: 3)
            rflags = gpr(GPR.r11) & 0x3C_7FD7
        } else {
            segment(SegmentIndex.cs).pointee = flatCode(base | 3, dpl: 3, long: false)
            segment(SegmentIndex.ss).pointee = flatData(base &+ 8 | 3, dpl: 3)
            s.flags |= Flag.if
        }
        updateMode()
        s.next = wide ? target : target & 0xFFFF_FFFF
        s.sliceEnd = 0
    }

    func systemEnter() throws(Trap) {
        // AMD processors have it in legacy mode only.
        if isLong, s.cpuid.pointee.isAMD { throw .undefined }
        guard isProtected, s.msrs.0 & 0xFFFC != 0 else { throw .protection }
        let selector = UInt16(truncatingIfNeeded: s.msrs.0) & 0xFFFC
        s.flags &= ~(Flag.vm | Flag.if | Flag.rf)
        segment(SegmentIndex.cs).pointee = flatCode(selector, dpl: 0, long: isLong)
        segment(SegmentIndex.ss).pointee = flatData(selector &+ 8, dpl: 0)
        setGPR(GPR.rsp, isLong ? s.msrs.1 : s.msrs.1 & 0xFFFF_FFFF)
        updateMode()
        s.next = isLong ? s.msrs.2 : s.msrs.2 & 0xFFFF_FFFF
        s.sliceEnd = 0
    }

    func systemExit(_ op: Op) throws(Trap) {
        if isLong, s.cpuid.pointee.isAMD { throw .undefined }
        guard isProtected, s.cpl == 0, s.msrs.0 & 0xFFFC != 0 else { throw .protection }
        let wide = op.pointee.form.size == 3
        let selector = UInt16(truncatingIfNeeded: s.msrs.0) & 0xFFFC
        let (target, pointer) = (gpr(GPR.rdx), gpr(GPR.rcx))
        if wide {
            try checkCanonical(target)
            try checkCanonical(pointer)
        }
        segment(SegmentIndex.cs).pointee = flatCode(selector &+ (wide ? 32 : 16) | 3, dpl: 3, long: wide)
        segment(SegmentIndex.ss).pointee = flatData(selector &+ (wide ? 40 : 24) | 3, dpl: 3)
        setGPR(GPR.rsp, wide ? pointer : pointer & 0xFFFF_FFFF)
        updateMode()
        s.next = wide ? target : target & 0xFFFF_FFFF
        s.sliceEnd = 0
    }
}
