import CHostFloat
import CZydis

/// The decoding of x87, MMX, SSE and AVX.
extension InstructionDecoder {
    private var isVEX: Bool { instruction.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX }

    /// Whatever is no integer or system instruction. What is no instruction of this engine is undefined: no CPU model
    /// of it offers that.
    mutating func vector() {
        if x87() || vectorState() { return }
        // AVX-512 and what else needs state that XCR0 can't enable here.
        guard instruction.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY || isVEX else { return cold(.undefined, ends: true) }
        if vectorMove() || vectorFloat() || fused() || masked() { return }
        switch instruction.mnemonic {
        case ZYDIS_MNEMONIC_VPERMILPS: vector(.vectorShuffle, (isImmediate(2) ? VectorShuffle.permute32 : .permuteEach32).rawValue)
        case ZYDIS_MNEMONIC_VPERMILPD: vector(.vectorShuffle, (isImmediate(2) ? VectorShuffle.permute64 : .permuteEach64).rawValue)
        default:
            if let entry = VectorTable.entries[instruction.mnemonic.rawValue] {
                vector(entry.group, entry.code)
            } else {
                cold(.undefined, ends: true)
            }
        }
    }

    // MARK: Operands

    static func vectorRegister(_ register: ZydisRegister) -> (kind: VectorForm.Kind, number: UInt8, bytes: Int)? {
        func from(_ first: ZydisRegister, _ last: ZydisRegister) -> UInt8? {
            (first.rawValue...last.rawValue).contains(register.rawValue) ? UInt8(register.rawValue - first.rawValue) : nil
        }
        if let n = from(ZYDIS_REGISTER_MM0, ZYDIS_REGISTER_MM7) { return (.mmx, n, 8) }
        if let n = from(ZYDIS_REGISTER_XMM0, ZYDIS_REGISTER_XMM15) { return (.vector, n, 16) }
        if let n = from(ZYDIS_REGISTER_YMM0, ZYDIS_REGISTER_YMM15) { return (.vector, n, 32) }
        return nil
    }

    /// Instructions whose operand of 16 bytes in memory may be misaligned without VEX.
    private static let unaligned: Set<UInt32> = Set([
        ZYDIS_MNEMONIC_MOVUPS, ZYDIS_MNEMONIC_MOVUPD, ZYDIS_MNEMONIC_MOVDQU, ZYDIS_MNEMONIC_LDDQU,
        ZYDIS_MNEMONIC_PCMPESTRI, ZYDIS_MNEMONIC_PCMPESTRM, ZYDIS_MNEMONIC_PCMPISTRI, ZYDIS_MNEMONIC_PCMPISTRM,
    ].map(\.rawValue))

    /// Instructions whose operand in memory must be aligned also with VEX, and whatever MXCSR says.
    private static let aligned: Set<UInt32> = Set([
        ZYDIS_MNEMONIC_MOVAPS, ZYDIS_MNEMONIC_MOVAPD, ZYDIS_MNEMONIC_MOVDQA, ZYDIS_MNEMONIC_MOVNTPS,
        ZYDIS_MNEMONIC_MOVNTPD, ZYDIS_MNEMONIC_MOVNTDQ, ZYDIS_MNEMONIC_MOVNTDQA,
        ZYDIS_MNEMONIC_VMOVAPS, ZYDIS_MNEMONIC_VMOVAPD, ZYDIS_MNEMONIC_VMOVDQA, ZYDIS_MNEMONIC_VMOVNTPS,
        ZYDIS_MNEMONIC_VMOVNTPD, ZYDIS_MNEMONIC_VMOVNTDQ, ZYDIS_MNEMONIC_VMOVNTDQA,
    ].map(\.rawValue))

    /// Instructions whose operand of 8 bytes in memory isn't looked at by alignment checks (Intel processors, measured).
    private static let unchecked: Set<UInt32> = Set([ZYDIS_MNEMONIC_VCVTPH2PS, ZYDIS_MNEMONIC_VCVTPS2PH].map(\.rawValue))

    /// Emits a vector instruction with its operands: the first is the destination, and without VEX also the first
    /// source; the last is the second source.
    func vectorForm(_ code: UInt16, into op: inout MicroOp) -> (form: VectorForm, named: [Int]) {
        var form = VectorForm()
        form.code = code
        form.isVEX = isVEX
        var named: [Int] = []
        for i in 0..<visible where operands[i].visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT {
            if isImmediate(i) {
                form.immediate = UInt8(truncatingIfNeeded: imm(i))
                op.form.bits |= MicroOp.Form.immediate
            } else {
                named.append(i)
            }
        }
        if named.count == 4 {
            let register = Self.vectorRegister(operands[named.removeLast()].reg.value)
            form.immediate = (register?.number ?? 0) << 4
        }
        return (form, named)
    }

    mutating func vector(_ group: ColdCode, _ code: UInt16, immediate: UInt8? = nil) {
        var op = make(.vector)
        op.cold = group
        var (form, named) = vectorForm(code, into: &op)
        if let immediate { form.immediate = immediate }
        guard let target = named.first, let source = named.count > 1 ? named.last : target else {
            // VZEROUPPER and VZEROALL: no operands.
            form.bytes = 32
            form.target = .general
            op.a = Slot.zero
            op.imm = form.bits
            return emit(op)
        }
        form.bytes = 0
        if isMemory(target) {
            placeVector(target, in: &op, &form)
            op.form.bits |= MicroOp.Form.memoryA
            form.target = .general
        } else if let (kind, number, bytes) = Self.vectorRegister(operands[target].reg.value) {
            form.target = kind
            op.a = number
            form.first = number
            form.bytes = bytes
            form.usesMMX = kind == .mmx
        } else {
            form.target = .general
            op.a = slot(target)
            form.isWide = operands[target].size == 64
        }
        if isMemory(source) {
            placeVector(source, in: &op, &form)
            op.form.bits |= MicroOp.Form.memoryB
        } else if let (kind, number, bytes) = Self.vectorRegister(operands[source].reg.value) {
            form.source = kind
            op.b = number
            if form.bytes == 0 { form.bytes = bytes }
            form.usesMMX = form.usesMMX || kind == .mmx
        } else {
            form.source = .general
            op.b = slot(source)
        }
        if named.count > 2, let (_, number, _) = Self.vectorRegister(operands[named[1]].reg.value) { form.first = number }
        if form.bytes == 0 { form.bytes = 16 }
        finish(group, target: target, &op, &form)
        op.imm = form.bits
        emit(op)
    }

    /// What differs for some groups.
    private func finish(_ group: ColdCode, target: Int, _ op: inout MicroOp, _ form: inout VectorForm) {
        switch group {
        case .vectorText: form.isWide = (isVEX ? instruction.raw.vex.W : instruction.raw.rex.W) != 0
        case .vectorLanes:
            let code = VectorLanes(rawValue: form.code)
            // These write flags, not their first operand.
            if code == .test || code == .test32 || code == .test64 { keepTarget(&op, &form) }
        case .vectorFloatSpecial:
            if FloatSpecial(rawValue: form.code) == .compare { keepTarget(&op, &form) }
        default: break
        }
        if group == .vectorText { keepTarget(&op, &form) }
    }

    /// The first operand is a source alone.
    private func keepTarget(_ op: inout MicroOp, _ form: inout VectorForm) {
        form.first = op.a
        form.target = .general
        op.a = Slot.zero
    }

    private mutating func placeVector(_ i: Int, in op: inout MicroOp, _ form: inout VectorForm) {
        place(i, in: &op, writes: i == 0)
        let bytes = Int(operands[i].size) / 8
        form.memoryBytes = bytes
        form.isUnchecked = Self.unchecked.contains(instruction.mnemonic.rawValue)
        if Self.aligned.contains(instruction.mnemonic.rawValue) {
            form.alignment = UInt64(bytes - 1)
            form.isAlignedAlways = true
        } else if !isVEX, bytes == 16, !Self.unaligned.contains(instruction.mnemonic.rawValue) {
            form.alignment = 15
        }
    }

    // MARK: Moves

    private mutating func vectorMove() -> Bool {
        func go(_ code: VectorMove) -> Bool {
            vector(.vectorMove, code.rawValue)
            return true
        }
        let toMemory = isMemory(0)
        let fromMemory = visible > 1 && isMemory(visible - 1)
        switch instruction.mnemonic {
        case ZYDIS_MNEMONIC_MOVAPS, ZYDIS_MNEMONIC_MOVAPD, ZYDIS_MNEMONIC_MOVUPS, ZYDIS_MNEMONIC_MOVUPD,
            ZYDIS_MNEMONIC_MOVDQA, ZYDIS_MNEMONIC_MOVDQU, ZYDIS_MNEMONIC_MOVNTPS, ZYDIS_MNEMONIC_MOVNTPD,
            ZYDIS_MNEMONIC_MOVNTDQ, ZYDIS_MNEMONIC_MOVNTDQA, ZYDIS_MNEMONIC_MOVNTQ,
            ZYDIS_MNEMONIC_VMOVAPS, ZYDIS_MNEMONIC_VMOVAPD, ZYDIS_MNEMONIC_VMOVUPS, ZYDIS_MNEMONIC_VMOVUPD,
            ZYDIS_MNEMONIC_VMOVDQA, ZYDIS_MNEMONIC_VMOVDQU, ZYDIS_MNEMONIC_VMOVNTPS, ZYDIS_MNEMONIC_VMOVNTPD,
            ZYDIS_MNEMONIC_VMOVNTDQ, ZYDIS_MNEMONIC_VMOVNTDQA:
            return go(.copy)
        case ZYDIS_MNEMONIC_MOVSS, ZYDIS_MNEMONIC_VMOVSS: return go(toMemory || fromMemory ? .low4 : .mergeLow4)
        case ZYDIS_MNEMONIC_MOVSD, ZYDIS_MNEMONIC_VMOVSD: return go(toMemory || fromMemory ? .low8 : .mergeLow8)
        case ZYDIS_MNEMONIC_MOVLPS, ZYDIS_MNEMONIC_MOVLPD, ZYDIS_MNEMONIC_VMOVLPS, ZYDIS_MNEMONIC_VMOVLPD:
            return go(toMemory ? .low8 : .mergeLow8)
        case ZYDIS_MNEMONIC_MOVHPS, ZYDIS_MNEMONIC_MOVHPD, ZYDIS_MNEMONIC_VMOVHPS, ZYDIS_MNEMONIC_VMOVHPD:
            return go(toMemory ? .storeHigh8 : .mergeHigh8)
        case ZYDIS_MNEMONIC_MASKMOVQ, ZYDIS_MNEMONIC_MASKMOVDQU, ZYDIS_MNEMONIC_VMASKMOVDQU:
            maskMove()
            return true
        default: return false
        }
    }

    private mutating func maskMove() {
        var op = make(.cold)
        op.cold = .vectorMaskMove
        var form = VectorForm()
        form.isVEX = isVEX
        let first = Self.vectorRegister(operands[0].reg.value), second = Self.vectorRegister(operands[1].reg.value)
        form.first = first?.number ?? 0
        op.b = second?.number ?? 0
        form.usesMMX = first?.kind == .mmx
        if form.usesMMX {
            form.target = .mmx
            form.source = .mmx
        }
        var segment = SegmentIndex.ds
        for i in 0..<Int(instruction.operand_count) where isMemory(i) { segment = Self.segment(operands[i].mem.segment) }
        op.mask = addressMask
        place(segment: segment, in: &op, writes: true)
        op.imm = form.bits
        emit(op)
    }

    // MARK: Floating point

    private mutating func vectorFloat() -> Bool {
        func go(_ host: chostfloat_instruction, plus: UInt64 = 0) -> Bool {
            vector(.vectorFloat, UInt16(host.rawValue) + UInt16(plus))
            return true
        }
        /// The wide forms of conversions that change the size of elements.
        func resize(_ host: chostfloat_instruction, _ special: FloatSpecial, wide i: Int) -> Bool {
            guard isVEX, operands[i].size == 256 else { return false }
            vector(special: special, host)
            return true
        }
        let wide = visible > 1 && operands[visible - 1].size == 64
        let predicate = visible > 0 && isImmediate(visible - 1) ? imm(visible - 1) : 0
        switch instruction.mnemonic {
        case ZYDIS_MNEMONIC_CMPPS: return go(CHOSTFLOAT_cmpps, plus: predicate & 7)
        case ZYDIS_MNEMONIC_CMPPD: return go(CHOSTFLOAT_cmppd, plus: predicate & 7)
        case ZYDIS_MNEMONIC_CMPSS: return go(CHOSTFLOAT_cmpss, plus: predicate & 7)
        case ZYDIS_MNEMONIC_CMPSD: return go(CHOSTFLOAT_cmpsd, plus: predicate & 7)
        case ZYDIS_MNEMONIC_VCMPPS: return go(CHOSTFLOAT_vcmpps, plus: predicate & 31)
        case ZYDIS_MNEMONIC_VCMPPD: return go(CHOSTFLOAT_vcmppd, plus: predicate & 31)
        case ZYDIS_MNEMONIC_VCMPSS: return go(CHOSTFLOAT_vcmpss, plus: predicate & 31)
        case ZYDIS_MNEMONIC_VCMPSD: return go(CHOSTFLOAT_vcmpsd, plus: predicate & 31)
        case ZYDIS_MNEMONIC_ROUNDPS, ZYDIS_MNEMONIC_VROUNDPS: return go(CHOSTFLOAT_roundps, plus: predicate & 15)
        case ZYDIS_MNEMONIC_ROUNDPD, ZYDIS_MNEMONIC_VROUNDPD: return go(CHOSTFLOAT_roundpd, plus: predicate & 15)
        case ZYDIS_MNEMONIC_ROUNDSS, ZYDIS_MNEMONIC_VROUNDSS: return go(CHOSTFLOAT_roundss, plus: predicate & 15)
        case ZYDIS_MNEMONIC_ROUNDSD, ZYDIS_MNEMONIC_VROUNDSD: return go(CHOSTFLOAT_roundsd, plus: predicate & 15)
        case ZYDIS_MNEMONIC_CVTSI2SS, ZYDIS_MNEMONIC_VCVTSI2SS: return go(wide ? CHOSTFLOAT_cvtsi2ss64 : CHOSTFLOAT_cvtsi2ss32)
        case ZYDIS_MNEMONIC_CVTSI2SD, ZYDIS_MNEMONIC_VCVTSI2SD: return go(wide ? CHOSTFLOAT_cvtsi2sd64 : CHOSTFLOAT_cvtsi2sd32)
        case ZYDIS_MNEMONIC_CVTSS2SI, ZYDIS_MNEMONIC_VCVTSS2SI: return toInteger(CHOSTFLOAT_cvtss2si32, CHOSTFLOAT_cvtss2si64)
        case ZYDIS_MNEMONIC_CVTTSS2SI, ZYDIS_MNEMONIC_VCVTTSS2SI: return toInteger(CHOSTFLOAT_cvttss2si32, CHOSTFLOAT_cvttss2si64)
        case ZYDIS_MNEMONIC_CVTSD2SI, ZYDIS_MNEMONIC_VCVTSD2SI: return toInteger(CHOSTFLOAT_cvtsd2si32, CHOSTFLOAT_cvtsd2si64)
        case ZYDIS_MNEMONIC_CVTTSD2SI, ZYDIS_MNEMONIC_VCVTTSD2SI: return toInteger(CHOSTFLOAT_cvttsd2si32, CHOSTFLOAT_cvttsd2si64)
        case ZYDIS_MNEMONIC_COMISS, ZYDIS_MNEMONIC_VCOMISS: return compare(CHOSTFLOAT_comiss)
        case ZYDIS_MNEMONIC_COMISD, ZYDIS_MNEMONIC_VCOMISD: return compare(CHOSTFLOAT_comisd)
        case ZYDIS_MNEMONIC_UCOMISS, ZYDIS_MNEMONIC_VUCOMISS: return compare(CHOSTFLOAT_ucomiss)
        case ZYDIS_MNEMONIC_UCOMISD, ZYDIS_MNEMONIC_VUCOMISD: return compare(CHOSTFLOAT_ucomisd)
        case ZYDIS_MNEMONIC_VCVTPS2PD: return resize(CHOSTFLOAT_cvtps2pd, .widen, wide: 0)
        case ZYDIS_MNEMONIC_VCVTDQ2PD: return resize(CHOSTFLOAT_cvtdq2pd, .widen, wide: 0)
        case ZYDIS_MNEMONIC_VCVTPD2PS: return resize(CHOSTFLOAT_cvtpd2ps, .narrow, wide: 1)
        case ZYDIS_MNEMONIC_VCVTPD2DQ: return resize(CHOSTFLOAT_cvtpd2dq, .narrow, wide: 1)
        case ZYDIS_MNEMONIC_VCVTTPD2DQ: return resize(CHOSTFLOAT_cvttpd2dq, .narrow, wide: 1)
        case ZYDIS_MNEMONIC_VCVTPH2PS: return resize(CHOSTFLOAT_vcvtph2ps, .widen, wide: 0) || go(CHOSTFLOAT_vcvtph2ps)
        case ZYDIS_MNEMONIC_VCVTPS2PH:
            let host = chostfloat_instruction(rawValue: CHOSTFLOAT_vcvtps2ph.rawValue + UInt32(predicate & 7))
            return resize(host, .narrow, wide: 1) || go(host)
        default: return false
        }
    }

    private mutating func toInteger(_ narrow: chostfloat_instruction, _ wide: chostfloat_instruction) -> Bool {
        vector(.vectorFloat, UInt16((operands[0].size == 64 ? wide : narrow).rawValue))
        return true
    }

    private mutating func compare(_ host: chostfloat_instruction) -> Bool {
        vector(special: .compare, host)
        return true
    }

    /// A special instruction that needs to know one of the host's, of those whose numbers fit a byte.
    private mutating func vector(special: FloatSpecial, _ host: chostfloat_instruction) {
        vector(.vectorFloatSpecial, special.rawValue, immediate: UInt8(truncatingIfNeeded: host.rawValue))
    }

    // MARK: State, x87

    private mutating func vectorState() -> Bool {
        switch instruction.mnemonic {
        case ZYDIS_MNEMONIC_LDMXCSR, ZYDIS_MNEMONIC_VLDMXCSR: state(.ldmxcsr)
        case ZYDIS_MNEMONIC_STMXCSR, ZYDIS_MNEMONIC_VSTMXCSR: state(.stmxcsr)
        case ZYDIS_MNEMONIC_EMMS: emit(coldOp(.emms))
        case ZYDIS_MNEMONIC_FXSAVE, ZYDIS_MNEMONIC_FXSAVE64: state(.fxsave)
        case ZYDIS_MNEMONIC_FXRSTOR, ZYDIS_MNEMONIC_FXRSTOR64: state(.fxrstor)
        case ZYDIS_MNEMONIC_XSAVE, ZYDIS_MNEMONIC_XSAVE64: state(.xsave)
        case ZYDIS_MNEMONIC_XRSTOR, ZYDIS_MNEMONIC_XRSTOR64: state(.xrstor)
        default: return false
        }
        return true
    }

    private func coldOp(_ code: ColdCode) -> MicroOp {
        var op = make(.cold)
        op.cold = code
        return op
    }

    private mutating func state(_ code: ColdCode) {
        var op = coldOp(code)
        op.imm = isVEX ? 1 : 0
        place(0, in: &op, writes: code == .stmxcsr || code == .fxsave || code == .xsave)
        op.form.bits |= MicroOp.Form.memoryA
        emit(op)
    }

    private mutating func x87() -> Bool {
        if instruction.mnemonic == ZYDIS_MNEMONIC_FWAIT {
            var op = coldOp(.x87)
            op.imm = X87Form(.wait, index: 0).bits
            emit(op)
            return true
        }
        guard instruction.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT, instruction.encoding == ZYDIS_INSTRUCTION_ENCODING_LEGACY,
            (0xD8...0xDF).contains(instruction.opcode) else { return false }
        let raw = instruction.raw.modrm
        guard let form = X87Form(opcode: instruction.opcode, modRM: raw.mod << 6 | raw.reg << 3 | raw.rm) else { return false }
        var op = coldOp(.x87)
        op.imm = form.bits
        if raw.mod != 3 {
            for i in 0..<Int(instruction.operand_count) where isMemory(i) { place(i, in: &op, writes: form.writes) }
        }
        emit(op)
        return true
    }
}
