import CZydis

/// Turns instructions into micro-ops. Zydis decodes; this chooses how each is executed.
///
/// Invariant: `ops` has room for five micro-ops an instruction and one more, and the mode doesn't change.
struct InstructionDecoder {
    enum Result {
        case continues
        /// Nothing after it belongs to the block.
        case ends
        /// The instruction goes on beyond the bytes that are there.
        case truncated
    }

    let mode: UInt32
    private let ops: UnsafeMutablePointer<MicroOp>
    private(set) var count = 0
    /// Bytes of the last instruction.
    private(set) var length = 0
    private var before = 0
    private var left = false
    private var offset: UInt16 = 0
    private var decoder = ZydisDecoder()
    private var instruction = ZydisDecodedInstruction()
    private var operands: [ZydisDecodedOperand]

    private var is64: Bool { mode & ModeKey.long64 != 0 }
    private var isFlat: Bool { mode & (ModeKey.long64 | ModeKey.flat) != 0 }

    init(mode: UInt32, ops: UnsafeMutablePointer<MicroOp>) {
        self.mode = mode
        self.ops = ops
        operands = Array(repeating: ZydisDecodedOperand(), count: Int(ZYDIS_MAX_OPERAND_COUNT))
        if mode & ModeKey.long64 != 0 {
            ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64)
        } else if mode & ModeKey.code32 != 0 {
            ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32)
        } else if mode & ModeKey.real != 0 {
            ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_REAL_16, ZYDIS_STACK_WIDTH_16)
        } else {
            ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16)
        }
    }

    /// Decodes the instruction at `code`, of which `room` bytes are there.
    mutating func decode(_ code: UnsafeRawPointer, _ room: Int, offset: Int) -> Result {
        before = count
        left = false
        self.offset = UInt16(offset)
        let status = ZydisDecoderDecodeFull(&decoder, code, ZyanUSize(min(room, 15)), &instruction, &operands)
        guard status & 0x8000_0000 == 0 else {
            // ZYDIS_STATUS_NO_MORE_DATA, ZYDIS_STATUS_INSTRUCTION_TOO_LONG
            if status == 0x8020_0000, room < 15 { return .truncated }
            emitUndefined(offset: offset, length: 1, protection: status == 0x8020_0000 || status == 0x8020_0002)
            return .ends
        }
        length = Int(instruction.length)
        translate()
        return left ? .ends : .continues
    }

    /// Takes the last instruction back.
    mutating func undo() { count = before }

    mutating func emitUndefined(offset: Int, length: Int, protection: Bool) {
        self.length = length
        self.offset = UInt16(offset)
        cold(protection ? .overlong : .undefined, ends: true)
    }

    /// Ends the block behind its last instruction.
    mutating func finish(offset: Int) {
        if left { return }
        emit(MicroOp.leave(offset: UInt16(offset)))
    }

    // MARK: Emitting

    private mutating func emit(_ op: MicroOp) {
        ops[count] = op
        count += 1
        if op.leaves { left = true }
    }

    private func make(_ code: OpCode, a: UInt8 = 0, b: UInt8 = 0, imm: UInt64 = 0) -> MicroOp {
        MicroOp(code: code, cold: .none, a: a, b: b, base: Slot.zero, index: Slot.zero, scale: 0,
                segment: SegmentIndex.none, displacement: 0, offset: offset, length: UInt8(length),
                form: .init(bits: UInt8(instruction.operand_width.trailingZeroBitCount - 3) & 3), imm: imm, mask: .max)
    }

    private mutating func emit(_ code: OpCode, a: UInt8 = 0, b: UInt8 = 0, imm: UInt64 = 0) {
        emit(make(code, a: a, b: b, imm: imm))
    }

    private func sized(_ family: OpCode, _ size: UInt8) -> OpCode {
        // Families are consecutive, so the sum is a case.
        OpCode(rawValue: family.rawValue + size).unsafelyUnwrapped
    }

    /// Logarithm of the operand size in bytes.
    private var size: UInt8 { UInt8(instruction.operand_width.trailingZeroBitCount - 3) & 3 }

    private func sizeLog(_ operand: ZydisDecodedOperand) -> UInt8 { UInt8(operand.size.trailingZeroBitCount - 3) & 3 }

    // MARK: Operands

    private func isRegister(_ i: Int) -> Bool { operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER }
    private func isMemory(_ i: Int) -> Bool { operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY }
    private func isImmediate(_ i: Int) -> Bool { operands[i].type == ZYDIS_OPERAND_TYPE_IMMEDIATE }
    private func imm(_ i: Int) -> UInt64 { operands[i].imm.value.u }
    private var visible: Int { Int(instruction.operand_count_visible) }

    private func slot(_ i: Int) -> UInt8 { Self.slot(operands[i].reg.value) }

    private static func slot(_ register: ZydisRegister) -> UInt8 {
        let r = Int(register.rawValue)
        func from(_ first: ZydisRegister, _ last: ZydisRegister) -> Int? {
            let (a, b) = (Int(first.rawValue), Int(last.rawValue))
            return (a...b).contains(r) ? r - a : nil
        }
        if let n = from(ZYDIS_REGISTER_AL, ZYDIS_REGISTER_R15B) {
            // AL, CL, DL, BL, AH, CH, DH, BH, SPL, BPL, SIL, DIL, R8B and on
            return n < 4 ? UInt8(8 * n) : n < 8 ? UInt8(8 * (n - 4) + 1) : UInt8(8 * (n - 4))
        }
        if let n = from(ZYDIS_REGISTER_AX, ZYDIS_REGISTER_R15W) { return UInt8(8 * n) }
        if let n = from(ZYDIS_REGISTER_EAX, ZYDIS_REGISTER_R15D) { return UInt8(8 * n) }
        if let n = from(ZYDIS_REGISTER_RAX, ZYDIS_REGISTER_R15) { return UInt8(8 * n) }
        return Slot.zero
    }

    private static func segment(_ register: ZydisRegister) -> UInt8 {
        UInt8(truncatingIfNeeded: register.rawValue &- ZYDIS_REGISTER_ES.rawValue)
    }

    private var addressMask: UInt64 {
        switch instruction.address_width {
        case 16: 0xFFFF
        case 32: 0xFFFF_FFFF
        default: .max
        }
    }

    /// Fills in a memory operand.
    private mutating func place(_ i: Int, in op: inout MicroOp, writes: Bool = false) {
        let memory = operands[i].mem
        op.mask = addressMask
        op.base = Slot.zero
        var displacement = memory.disp.value
        if memory.base == ZYDIS_REGISTER_RIP || memory.base == ZYDIS_REGISTER_EIP {
            op.base = Slot.rip
            displacement += Int64(offset) + Int64(length)
        } else if memory.base != ZYDIS_REGISTER_NONE {
            op.base = Self.slot(memory.base)
        }
        op.index = memory.index == ZYDIS_REGISTER_NONE ? Slot.zero : Self.slot(memory.index)
        op.scale = memory.scale == 0 ? 0 : UInt8(memory.scale.trailingZeroBitCount)
        if let small = Int32(exactly: displacement) {
            op.displacement = small
        } else if let wrapped = Int32(exactly: Int64(Int32(truncatingIfNeeded: displacement))), op.mask != .max {
            op.displacement = wrapped
        } else if op.base == Slot.zero {
            emit(.movImm64, a: Slot.t1, imm: UInt64(bitPattern: displacement))
            op.base = Slot.t1
            op.displacement = 0
        } else {
            emit(.movImm64, a: Slot.t1, imm: UInt64(bitPattern: displacement))
            var sum = make(.lea64, a: Slot.t1)
            sum.base = op.base
            sum.index = Slot.t1
            emit(sum)
            op.base = Slot.t1
            op.displacement = 0
        }
        place(segment: Self.segment(memory.segment), in: &op, writes: writes)
    }

    private func place(segment: UInt8, in op: inout MicroOp, writes: Bool) {
        switch segment {
        case SegmentIndex.fs, SegmentIndex.gs:
            op.segment = segment
            if !is64 { op.form.bits |= MicroOp.Form.checked }
        case SegmentIndex.cs where writes && !is64, _ where !isFlat:
            op.segment = segment
            op.form.bits |= MicroOp.Form.checked
        case SegmentIndex.ss: op.segment = SegmentIndex.noneStack
        default: op.segment = SegmentIndex.none
        }
    }

    /// Loads a memory operand into a register's slot, zero-extended where it is a temporary.
    private mutating func load(_ i: Int, to slot: UInt8, size: UInt8, modify: Bool = false) {
        var op = make(sized(modify ? .loadToModify8 : .load8, size), a: slot)
        place(i, in: &op, writes: modify)
        if op.form.has(MicroOp.Form.checked) { op.code = modify ? .loadToModifyChecked : .loadChecked }
        op.form.bits = op.form.bits & ~3 | size
        emit(op)
    }

    private mutating func store(_ i: Int, from slot: UInt8, size: UInt8) {
        var op = make(sized(.store8, size), b: slot)
        place(i, in: &op, writes: true)
        if op.form.has(MicroOp.Form.checked) { op.code = .storeChecked }
        op.form.bits = op.form.bits & ~3 | size
        emit(op)
    }

    // MARK: Generic handlers

    /// An instruction with a handler of its own, its operands laid out the same way for all.
    private mutating func cold(_ code: ColdCode, ends: Bool = false, extra: UInt8 = 0) {
        var op = make(ends ? .coldEnd : .cold)
        op.cold = code
        for i in 0..<min(visible, 3) {
            if isMemory(i) {
                place(i, in: &op, writes: i == 0)
                op.form.bits |= i == 0 ? MicroOp.Form.memoryA : MicroOp.Form.memoryB
            } else if isImmediate(i) {
                op.imm = imm(i)
                op.form.bits |= MicroOp.Form.immediate
            } else if isRegister(i) {
                switch i {
                case 0: op.a = slot(0)
                case 1: op.b = slot(1)
                default: op.imm = UInt64(slot(2))
                }
            }
        }
        op.scale |= extra << 2
        emit(op)
    }

    /// Arithmetic with two operands: the first is the destination, unless `readsOnly`.
    private mutating func alu(_ family: OpCode, readsOnly: Bool = false) {
        let size = self.size
        let target: UInt8
        if isRegister(0) {
            target = slot(0)
        } else {
            load(0, to: Slot.t0, size: size, modify: !readsOnly)
            target = Slot.t0
        }
        if isImmediate(1) {
            emit(sized(family, size + 4), a: target, imm: imm(1))
        } else if isRegister(1) {
            emit(sized(family, size), a: target, b: slot(1))
        } else {
            load(1, to: Slot.t0, size: size)
            emit(sized(family, size), a: target, b: Slot.t0)
        }
        if isMemory(0), !readsOnly { emit(sized(.storeModified8, size), b: Slot.t0) }
    }

    private mutating func unary(_ family: OpCode) {
        if isRegister(0) { return emit(sized(family, size), a: slot(0)) }
        load(0, to: Slot.t0, size: size, modify: true)
        emit(sized(family, size), a: Slot.t0)
        emit(sized(.storeModified8, size), b: Slot.t0)
    }

    private mutating func move() {
        let size = sizeLog(operands[0])
        if isRegister(0), operands[0].reg.value.rawValue >= ZYDIS_REGISTER_ES.rawValue { return moveSpecial() }
        if isRegister(1), operands[1].reg.value.rawValue >= ZYDIS_REGISTER_ES.rawValue { return moveSpecial() }
        switch (isRegister(0), isRegister(1), isImmediate(1)) {
        case (true, true, _): emit(sized(.mov8, size), a: slot(0), b: slot(1))
        case (true, _, true): emit(sized(.movImm8, size), a: slot(0), imm: imm(1))
        case (true, _, _): load(1, to: slot(0), size: size)
        case (false, true, _): store(0, from: slot(1), size: size)
        default:
            var op = make(sized(.storeImm8, size), imm: imm(1))
            place(0, in: &op, writes: true)
            if op.form.has(MicroOp.Form.checked) { op.code = .storeImmChecked }
            op.form.bits = op.form.bits & ~3 | size
            emit(op)
        }
    }

    /// MOV from or to a segment, control or debug register.
    private mutating func moveSpecial() {
        func number(_ i: Int, _ first: ZydisRegister, _ last: ZydisRegister) -> UInt8? {
            let r = operands[i].reg.value.rawValue
            return isRegister(i) && (first.rawValue...last.rawValue).contains(r) ? UInt8(r - first.rawValue) : nil
        }
        if let n = number(0, ZYDIS_REGISTER_ES, ZYDIS_REGISTER_GS) {
            cold(.movToSegment, ends: true, extra: n)
        } else if let n = number(1, ZYDIS_REGISTER_ES, ZYDIS_REGISTER_GS) {
            cold(.movFromSegment, extra: n)
        } else if let n = number(0, ZYDIS_REGISTER_CR0, ZYDIS_REGISTER_CR15) {
            cold(.movToControl, ends: true, extra: n)
        } else if let n = number(1, ZYDIS_REGISTER_CR0, ZYDIS_REGISTER_CR15) {
            cold(.movFromControl, ends: true, extra: n)
        } else if let n = number(0, ZYDIS_REGISTER_DR0, ZYDIS_REGISTER_DR15) {
            cold(.movToDebug, ends: true, extra: n)
        } else if let n = number(1, ZYDIS_REGISTER_DR0, ZYDIS_REGISTER_DR15) {
            cold(.movFromDebug, ends: true, extra: n)
        } else {
            cold(.unsupported, ends: true)
        }
    }

    private mutating func extend(signed: Bool) {
        let to = size
        let from = sizeLog(operands[1])
        if to == 1 { return cold(signed ? .signExtendTo16 : .zeroExtendTo16, extra: from) }
        if isMemory(1) {
            var op = make(.load8, a: slot(0))
            switch (signed, from, to) {
            case (true, 0, 2): op.code = .loadSigned8to32
            case (true, 0, _): op.code = .loadSigned8to64
            case (true, 1, 2): op.code = .loadSigned16to32
            case (true, 1, _): op.code = .loadSigned16to64
            case (true, _, 3): op.code = .loadSigned32
            default:
                load(1, to: Slot.t0, size: from)
                // The load leaves what lies above the operand in T0: the move takes the operand alone.
                switch from {
                case 0: emit(.zeroExtend8, a: slot(0), b: Slot.t0)
                case 1: emit(.zeroExtend16, a: slot(0), b: Slot.t0)
                default: emit(.mov32, a: slot(0), b: Slot.t0)
                }
                return
            }
            place(1, in: &op)
            guard op.form.has(MicroOp.Form.checked) else { return emit(op) }
            load(1, to: Slot.t0, size: from)
            emit(extension_(signed, from, to), a: slot(0), b: Slot.t0)
        } else {
            emit(extension_(signed, from, to), a: slot(0), b: slot(1))
        }
    }

    private func extension_(_ signed: Bool, _ from: UInt8, _ to: UInt8) -> OpCode {
        switch (signed, from, to) {
        case (false, 0, _): .zeroExtend8
        case (false, 1, _): .zeroExtend16
        case (true, 0, 2): .signExtend8to32
        case (true, 0, _): .signExtend8to64
        case (true, 1, 2): .signExtend16to32
        case (true, 1, _): .signExtend16to64
        case (true, _, 3): .signExtend32
        default: .mov32
        }
    }

    private mutating func leaAddress() {
        guard size >= 2 else { return cold(.lea16) }
        var op = make(size == 2 ? .lea32 : .lea64, a: slot(0))
        place(1, in: &op)
        op.segment = SegmentIndex.none
        emit(op)
    }

    private mutating func conditional(move code: UInt8) {
        guard size >= 2 else { return cold(.cmov16, extra: code) }
        let from: UInt8
        if isMemory(1) {
            load(1, to: Slot.t0, size: size)
            from = Slot.t0
        } else {
            from = slot(1)
        }
        emit(size == 2 ? .cmov32 : .cmov64, a: slot(0), b: from, imm: UInt64(code))
    }

    private mutating func set(_ code: UInt8) {
        if isRegister(0) { return emit(.set, a: slot(0), imm: UInt64(code)) }
        emit(.set, a: Slot.t0, imm: UInt64(code))
        store(0, from: Slot.t0, size: 0)
    }

    private mutating func shift(_ kind: UInt8) {
        let size = self.size
        if isRegister(0), size >= 2, isImmediate(1), kind >= 4 {
            let count = imm(1) & (size == 3 ? 63 : 31)
            if count == 0 {
                // A 32-bit shift by 0 still clears the upper half.
                return size == 2 ? emit(.mov32, a: slot(0), b: slot(0)) : emit(.nop)
            }
            let code: OpCode = kind == 5 ? .shrImm32 : kind == 7 ? .sarImm32 : .shlImm32
            return emit(OpCode(rawValue: code.rawValue + size - 2).unsafelyUnwrapped, a: slot(0), imm: count)
        }
        cold(.shift, extra: kind)
    }

    private mutating func multiply() {
        let size = self.size
        guard visible > 1 else { return cold(.imul1) }
        guard size >= 2 else { return cold(visible == 3 ? .imulImm16 : .imul16) }
        let from: UInt8
        if isMemory(1) {
            load(1, to: Slot.t0, size: size)
            from = Slot.t0
        } else {
            from = slot(1)
        }
        if visible == 3 {
            emit(size == 2 ? .imulImm32 : .imulImm64, a: slot(0), b: from, imm: imm(2))
        } else {
            emit(size == 2 ? .imul32 : .imul64, a: slot(0), b: from)
        }
    }

    private mutating func push() {
        if isRegister(0), operands[0].reg.value.rawValue >= ZYDIS_REGISTER_ES.rawValue {
            return cold(.pushSegment, extra: Self.segment(operands[0].reg.value))
        }
        guard is64, size == 3 else { return cold(.push) }
        if isImmediate(0) { return emit(.pushImm64, imm: imm(0)) }
        if isRegister(0) { return emit(.push64, b: slot(0)) }
        load(0, to: Slot.t0, size: 3)
        emit(.push64, b: Slot.t0)
    }

    private mutating func pop() {
        if isRegister(0), operands[0].reg.value.rawValue >= ZYDIS_REGISTER_ES.rawValue {
            return cold(.popSegment, ends: true, extra: Self.segment(operands[0].reg.value))
        }
        guard is64, size == 3, isRegister(0) else { return cold(.pop) }
        emit(.pop64, a: slot(0))
    }

    /// The distance of a branch's target from the start of the block.
    private var target: UInt64 { UInt64(offset) &+ UInt64(length) &+ imm(0) }

    private mutating func jump() {
        switch true {
        case operands[0].type == ZYDIS_OPERAND_TYPE_POINTER: far(.jmpFar)
        case isImmediate(0) where instruction.operand_width == 16 && mode & ModeKey.code32 != 0:
            cold(.jmpNear, ends: true)
        case isImmediate(0): emit(.jmp, imm: target)
        case instruction.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR: cold(.jmpFar, ends: true)
        case is64 && isRegister(0): emit(.jmpRegister64, b: slot(0))
        case is64:
            load(0, to: Slot.t0, size: 3)
            emit(.jmpRegister64, b: Slot.t0)
        default: cold(.jmpNear, ends: true)
        }
    }

    private mutating func call() {
        switch true {
        case operands[0].type == ZYDIS_OPERAND_TYPE_POINTER: far(.callFar)
        case is64 && isImmediate(0): emit(.call64, imm: target)
        case isImmediate(0): cold(.callRelative, ends: true)
        case instruction.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR: cold(.callFar, ends: true)
        case is64 && isRegister(0): emit(.callRegister64, b: slot(0))
        case is64:
            load(0, to: Slot.t0, size: 3)
            emit(.callRegister64, b: Slot.t0)
        default: cold(.callNear, ends: true)
        }
    }

    private mutating func far(_ code: ColdCode) {
        var op = make(.coldEnd)
        op.cold = code
        op.form.bits |= MicroOp.Form.immediate
        op.imm = UInt64(operands[0].ptr.segment) << 32 | UInt64(operands[0].ptr.offset)
        emit(op)
    }

    private mutating func jump(if code: UInt8) {
        let family = OpCode(rawValue: OpCode.jo.rawValue + code).unsafelyUnwrapped
        // A 16-bit operand size cuts IP, whatever the code segment is.
        if instruction.operand_width == 16, mode & ModeKey.code32 != 0 { return cold(.unsupported, ends: true) }
        emit(family, imm: target)
    }

    private mutating func string(_ code: ColdCode) {
        var op = make(.cold)
        op.cold = code
        op.mask = addressMask
        op.form.bits = op.form.bits & ~3 | stringSize
        // The source's segment; the destination's is always ES.
        var segment = SegmentIndex.ds
        for i in 0..<Int(instruction.operand_count) where operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY {
            if Self.slot(operands[i].mem.base) == Slot.gpr(GPR.rsi) { segment = Self.segment(operands[i].mem.segment) }
        }
        place(segment: segment, in: &op, writes: false)
        let attributes = instruction.attributes
        if attributes & Attribute.repne != 0 {
            op.form.bits |= MicroOp.Form.repne
        } else if attributes & (Attribute.rep | Attribute.repe) != 0 {
            op.form.bits |= MicroOp.Form.rep
        }
        // A repeated instruction may have to stop in its middle; it goes on from RIP.
        if op.form.has(MicroOp.Form.rep | MicroOp.Form.repne) || code == .ins || code == .outs { op.code = .coldEnd }
        emit(op)
    }

    private enum Attribute {
        static let rep = UInt64(1) << 28
        static let repe = UInt64(1) << 29
        static let repne = UInt64(1) << 30
    }

    private var stringSize: UInt8 {
        // The last bits of the opcode: even for bytes.
        instruction.opcode & 1 == 0 ? 0 : size == 3 && (instruction.opcode & 0xFC == 0x6C) ? 2 : size
    }

    private mutating func branch(loop code: ColdCode) {
        var op = make(.coldEnd)
        op.cold = code
        op.imm = target
        op.mask = addressMask
        emit(op)
    }

    // MARK: The table

    private mutating func translate() {
        switch instruction.mnemonic {
        case ZYDIS_MNEMONIC_MOV: move()
        case ZYDIS_MNEMONIC_ADD: alu(.add8)
        case ZYDIS_MNEMONIC_OR: alu(.or8)
        case ZYDIS_MNEMONIC_ADC: alu(.adc8)
        case ZYDIS_MNEMONIC_SBB: alu(.sbb8)
        case ZYDIS_MNEMONIC_AND: alu(.and8)
        case ZYDIS_MNEMONIC_SUB: alu(.sub8)
        case ZYDIS_MNEMONIC_XOR: alu(.xor8)
        case ZYDIS_MNEMONIC_CMP: alu(.cmp8, readsOnly: true)
        case ZYDIS_MNEMONIC_TEST: alu(.test8, readsOnly: true)
        case ZYDIS_MNEMONIC_INC: unary(.inc8)
        case ZYDIS_MNEMONIC_DEC: unary(.dec8)
        case ZYDIS_MNEMONIC_NEG: unary(.neg8)
        case ZYDIS_MNEMONIC_NOT: unary(.not8)
        case ZYDIS_MNEMONIC_MOVZX: extend(signed: false)
        case ZYDIS_MNEMONIC_MOVSX, ZYDIS_MNEMONIC_MOVSXD: extend(signed: true)
        case ZYDIS_MNEMONIC_LEA: leaAddress()
        case ZYDIS_MNEMONIC_PUSH: push()
        case ZYDIS_MNEMONIC_POP: pop()
        case ZYDIS_MNEMONIC_JMP: jump()
        case ZYDIS_MNEMONIC_CALL: call()
        case ZYDIS_MNEMONIC_RET: ret()
        case ZYDIS_MNEMONIC_JO: jump(if: 0)
        case ZYDIS_MNEMONIC_JNO: jump(if: 1)
        case ZYDIS_MNEMONIC_JB: jump(if: 2)
        case ZYDIS_MNEMONIC_JNB: jump(if: 3)
        case ZYDIS_MNEMONIC_JZ: jump(if: 4)
        case ZYDIS_MNEMONIC_JNZ: jump(if: 5)
        case ZYDIS_MNEMONIC_JBE: jump(if: 6)
        case ZYDIS_MNEMONIC_JNBE: jump(if: 7)
        case ZYDIS_MNEMONIC_JS: jump(if: 8)
        case ZYDIS_MNEMONIC_JNS: jump(if: 9)
        case ZYDIS_MNEMONIC_JP: jump(if: 10)
        case ZYDIS_MNEMONIC_JNP: jump(if: 11)
        case ZYDIS_MNEMONIC_JL: jump(if: 12)
        case ZYDIS_MNEMONIC_JNL: jump(if: 13)
        case ZYDIS_MNEMONIC_JLE: jump(if: 14)
        case ZYDIS_MNEMONIC_JNLE: jump(if: 15)
        case ZYDIS_MNEMONIC_CMOVO: conditional(move: 0)
        case ZYDIS_MNEMONIC_CMOVNO: conditional(move: 1)
        case ZYDIS_MNEMONIC_CMOVB: conditional(move: 2)
        case ZYDIS_MNEMONIC_CMOVNB: conditional(move: 3)
        case ZYDIS_MNEMONIC_CMOVZ: conditional(move: 4)
        case ZYDIS_MNEMONIC_CMOVNZ: conditional(move: 5)
        case ZYDIS_MNEMONIC_CMOVBE: conditional(move: 6)
        case ZYDIS_MNEMONIC_CMOVNBE: conditional(move: 7)
        case ZYDIS_MNEMONIC_CMOVS: conditional(move: 8)
        case ZYDIS_MNEMONIC_CMOVNS: conditional(move: 9)
        case ZYDIS_MNEMONIC_CMOVP: conditional(move: 10)
        case ZYDIS_MNEMONIC_CMOVNP: conditional(move: 11)
        case ZYDIS_MNEMONIC_CMOVL: conditional(move: 12)
        case ZYDIS_MNEMONIC_CMOVNL: conditional(move: 13)
        case ZYDIS_MNEMONIC_CMOVLE: conditional(move: 14)
        case ZYDIS_MNEMONIC_CMOVNLE: conditional(move: 15)
        case ZYDIS_MNEMONIC_SETO: set(0)
        case ZYDIS_MNEMONIC_SETNO: set(1)
        case ZYDIS_MNEMONIC_SETB: set(2)
        case ZYDIS_MNEMONIC_SETNB: set(3)
        case ZYDIS_MNEMONIC_SETZ: set(4)
        case ZYDIS_MNEMONIC_SETNZ: set(5)
        case ZYDIS_MNEMONIC_SETBE: set(6)
        case ZYDIS_MNEMONIC_SETNBE: set(7)
        case ZYDIS_MNEMONIC_SETS: set(8)
        case ZYDIS_MNEMONIC_SETNS: set(9)
        case ZYDIS_MNEMONIC_SETP: set(10)
        case ZYDIS_MNEMONIC_SETNP: set(11)
        case ZYDIS_MNEMONIC_SETL: set(12)
        case ZYDIS_MNEMONIC_SETNL: set(13)
        case ZYDIS_MNEMONIC_SETLE: set(14)
        case ZYDIS_MNEMONIC_SETNLE: set(15)
        case ZYDIS_MNEMONIC_ROL: shift(0)
        case ZYDIS_MNEMONIC_ROR: shift(1)
        case ZYDIS_MNEMONIC_RCL: shift(2)
        case ZYDIS_MNEMONIC_RCR: shift(3)
        case ZYDIS_MNEMONIC_SHL: shift(4)
        case ZYDIS_MNEMONIC_SHR: shift(5)
        case ZYDIS_MNEMONIC_SAR: shift(7)
        case ZYDIS_MNEMONIC_IMUL: multiply()
        default: translateRest()
        }
    }

    private mutating func ret() {
        if instruction.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR { return cold(.retFar, ends: true) }
        guard is64, size == 3 else { return cold(.retNear, ends: true) }
        emit(.ret64, imm: visible > 0 && isImmediate(0) ? imm(0) & 0xFFFF : 0)
    }

    private mutating func translateRest() {
        switch instruction.mnemonic {
        case ZYDIS_MNEMONIC_NOP, ZYDIS_MNEMONIC_PAUSE, ZYDIS_MNEMONIC_ENDBR64, ZYDIS_MNEMONIC_ENDBR32,
            ZYDIS_MNEMONIC_PREFETCH, ZYDIS_MNEMONIC_PREFETCHNTA, ZYDIS_MNEMONIC_PREFETCHT0, ZYDIS_MNEMONIC_PREFETCHT1,
            ZYDIS_MNEMONIC_PREFETCHT2, ZYDIS_MNEMONIC_PREFETCHW, ZYDIS_MNEMONIC_LFENCE, ZYDIS_MNEMONIC_MFENCE,
            ZYDIS_MNEMONIC_SFENCE, ZYDIS_MNEMONIC_CLFLUSH, ZYDIS_MNEMONIC_CLFLUSHOPT:
            emit(.nop)
        case ZYDIS_MNEMONIC_MOVSB, ZYDIS_MNEMONIC_MOVSW, ZYDIS_MNEMONIC_MOVSD,
            ZYDIS_MNEMONIC_MOVSQ:
            if instruction.opcode & 0xFE == 0xA4, instruction.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT { string(.movs) } else { cold(.unsupported, ends: true) }
        case ZYDIS_MNEMONIC_CMPSB, ZYDIS_MNEMONIC_CMPSW, ZYDIS_MNEMONIC_CMPSD, ZYDIS_MNEMONIC_CMPSQ:
            if instruction.opcode & 0xFE == 0xA6, instruction.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT { string(.cmps) } else { cold(.unsupported, ends: true) }
        case ZYDIS_MNEMONIC_SCASB, ZYDIS_MNEMONIC_SCASW, ZYDIS_MNEMONIC_SCASD, ZYDIS_MNEMONIC_SCASQ: string(.scas)
        case ZYDIS_MNEMONIC_LODSB, ZYDIS_MNEMONIC_LODSW, ZYDIS_MNEMONIC_LODSD, ZYDIS_MNEMONIC_LODSQ: string(.lods)
        case ZYDIS_MNEMONIC_STOSB, ZYDIS_MNEMONIC_STOSW, ZYDIS_MNEMONIC_STOSD, ZYDIS_MNEMONIC_STOSQ: string(.stos)
        case ZYDIS_MNEMONIC_INSB, ZYDIS_MNEMONIC_INSW, ZYDIS_MNEMONIC_INSD: string(.ins)
        case ZYDIS_MNEMONIC_OUTSB, ZYDIS_MNEMONIC_OUTSW, ZYDIS_MNEMONIC_OUTSD: string(.outs)
        case ZYDIS_MNEMONIC_IN: port(.in)
        case ZYDIS_MNEMONIC_OUT: port(.out)
        case ZYDIS_MNEMONIC_LOOP: branch(loop: .loop)
        case ZYDIS_MNEMONIC_LOOPE: branch(loop: .loope)
        case ZYDIS_MNEMONIC_LOOPNE: branch(loop: .loopne)
        case ZYDIS_MNEMONIC_JCXZ, ZYDIS_MNEMONIC_JECXZ, ZYDIS_MNEMONIC_JRCXZ: branch(loop: .jcxz)
        case ZYDIS_MNEMONIC_LES: cold(.loadFar, ends: true, extra: SegmentIndex.es)
        case ZYDIS_MNEMONIC_LDS: cold(.loadFar, ends: true, extra: SegmentIndex.ds)
        case ZYDIS_MNEMONIC_LSS: cold(.loadFar, ends: true, extra: SegmentIndex.ss)
        case ZYDIS_MNEMONIC_LFS: cold(.loadFar, ends: true, extra: SegmentIndex.fs)
        case ZYDIS_MNEMONIC_LGS: cold(.loadFar, ends: true, extra: SegmentIndex.gs)
        case ZYDIS_MNEMONIC_SMSW: cold(.smsw)
        case ZYDIS_MNEMONIC_CRC32: cold(.crc32, extra: sizeLog(operands[1]))
        case ZYDIS_MNEMONIC_ENTER:
            var op = make(.cold, imm: (imm(0) & 0xFFFF) << 32 | imm(1) & 31)
            op.cold = .enter
            emit(op)
        case ZYDIS_MNEMONIC_INT: cold(.int, ends: true)
        default:
            if let (code, ends) = Self.generic[instruction.mnemonic.rawValue] {
                cold(code, ends: ends)
            } else {
                cold(.unsupported, ends: true)
            }
        }
    }

    private mutating func port(_ code: ColdCode) {
        var op = make(.coldEnd)
        op.cold = code
        // The size is that of AL, AX or EAX.
        let accumulator = code == .in ? 0 : 1
        op.form.bits = op.form.bits & ~3 | sizeLog(operands[accumulator])
        if isImmediate(1 - accumulator) {
            op.imm = imm(1 - accumulator) & 0xFF
            op.form.bits |= MicroOp.Form.immediate
        }
        emit(op)
    }

    /// The instructions whose handlers need nothing but the usual operands, and whether they end a block.
    private static let generic: [UInt32: (ColdCode, Bool)] = {
        let rows: [(ZydisMnemonic, ColdCode, Bool)] = [
            (ZYDIS_MNEMONIC_XCHG, .xchg, false), (ZYDIS_MNEMONIC_XADD, .xadd, false),
            (ZYDIS_MNEMONIC_CMPXCHG, .cmpxchg, false), (ZYDIS_MNEMONIC_CMPXCHG8B, .cmpxchg8b, false),
            (ZYDIS_MNEMONIC_CMPXCHG16B, .cmpxchg16b, false), (ZYDIS_MNEMONIC_BSWAP, .bswap, false),
            (ZYDIS_MNEMONIC_MOVBE, .movbe, false),
            (ZYDIS_MNEMONIC_PUSHA, .pusha, false), (ZYDIS_MNEMONIC_PUSHAD, .pusha, false),
            (ZYDIS_MNEMONIC_POPA, .popa, false), (ZYDIS_MNEMONIC_POPAD, .popa, false),
            (ZYDIS_MNEMONIC_PUSHF, .pushf, false), (ZYDIS_MNEMONIC_PUSHFD, .pushf, false),
            (ZYDIS_MNEMONIC_PUSHFQ, .pushf, false), (ZYDIS_MNEMONIC_POPF, .popf, true),
            (ZYDIS_MNEMONIC_POPFD, .popf, true), (ZYDIS_MNEMONIC_POPFQ, .popf, true),
            (ZYDIS_MNEMONIC_LEAVE, .leave, false),
            (ZYDIS_MNEMONIC_XLAT, .xlat, false),
            (ZYDIS_MNEMONIC_MUL, .mul, false), (ZYDIS_MNEMONIC_DIV, .div, false), (ZYDIS_MNEMONIC_IDIV, .idiv, false),
            (ZYDIS_MNEMONIC_SHLD, .shld, false), (ZYDIS_MNEMONIC_SHRD, .shrd, false),
            (ZYDIS_MNEMONIC_CBW, .cbw, false), (ZYDIS_MNEMONIC_CWDE, .cbw, false), (ZYDIS_MNEMONIC_CDQE, .cbw, false),
            (ZYDIS_MNEMONIC_CWD, .cwd, false), (ZYDIS_MNEMONIC_CDQ, .cwd, false), (ZYDIS_MNEMONIC_CQO, .cwd, false),
            (ZYDIS_MNEMONIC_LAHF, .lahf, false), (ZYDIS_MNEMONIC_SAHF, .sahf, false), (ZYDIS_MNEMONIC_CLC, .clc, false),
            (ZYDIS_MNEMONIC_STC, .stc, false), (ZYDIS_MNEMONIC_CMC, .cmc, false), (ZYDIS_MNEMONIC_CLD, .cld, false),
            (ZYDIS_MNEMONIC_STD, .std, false), (ZYDIS_MNEMONIC_SALC, .salc, false),
            (ZYDIS_MNEMONIC_BT, .bt, false), (ZYDIS_MNEMONIC_BTS, .bts, false), (ZYDIS_MNEMONIC_BTR, .btr, false),
            (ZYDIS_MNEMONIC_BTC, .btc, false), (ZYDIS_MNEMONIC_BSF, .bsf, false), (ZYDIS_MNEMONIC_BSR, .bsr, false),
            (ZYDIS_MNEMONIC_TZCNT, .tzcnt, false), (ZYDIS_MNEMONIC_LZCNT, .lzcnt, false),
            (ZYDIS_MNEMONIC_POPCNT, .popcnt, false),
            (ZYDIS_MNEMONIC_ADCX, .adcx, false), (ZYDIS_MNEMONIC_ADOX, .adox, false),
            (ZYDIS_MNEMONIC_DAA, .daa, false), (ZYDIS_MNEMONIC_DAS, .das, false), (ZYDIS_MNEMONIC_AAA, .aaa, false),
            (ZYDIS_MNEMONIC_AAS, .aas, false), (ZYDIS_MNEMONIC_AAM, .aam, false), (ZYDIS_MNEMONIC_AAD, .aad, false),
            (ZYDIS_MNEMONIC_BOUND, .bound, false), (ZYDIS_MNEMONIC_ARPL, .arpl, false),
            (ZYDIS_MNEMONIC_IRET, .iret, true), (ZYDIS_MNEMONIC_IRETD, .iret, true), (ZYDIS_MNEMONIC_IRETQ, .iret, true),
            (ZYDIS_MNEMONIC_INT3, .int3, true), (ZYDIS_MNEMONIC_INTO, .into, true), (ZYDIS_MNEMONIC_INT1, .int1, true),
            (ZYDIS_MNEMONIC_SYSCALL, .syscall, true), (ZYDIS_MNEMONIC_SYSRET, .sysret, true),
            (ZYDIS_MNEMONIC_SYSENTER, .sysenter, true), (ZYDIS_MNEMONIC_SYSEXIT, .sysexit, true),
            (ZYDIS_MNEMONIC_CLI, .cli, true), (ZYDIS_MNEMONIC_STI, .sti, true), (ZYDIS_MNEMONIC_HLT, .hlt, true),
            (ZYDIS_MNEMONIC_CPUID, .cpuid, false), (ZYDIS_MNEMONIC_RDTSC, .rdtsc, true),
            (ZYDIS_MNEMONIC_RDTSCP, .rdtscp, true), (ZYDIS_MNEMONIC_RDMSR, .rdmsr, true),
            (ZYDIS_MNEMONIC_WRMSR, .wrmsr, true), (ZYDIS_MNEMONIC_RDPMC, .rdpmc, true),
            (ZYDIS_MNEMONIC_RDRAND, .rdrand, true), (ZYDIS_MNEMONIC_RDSEED, .rdseed, true),
            (ZYDIS_MNEMONIC_CLTS, .clts, true), (ZYDIS_MNEMONIC_LMSW, .lmsw, true),
            (ZYDIS_MNEMONIC_LGDT, .lgdt, false), (ZYDIS_MNEMONIC_LIDT, .lidt, false),
            (ZYDIS_MNEMONIC_SGDT, .sgdt, false), (ZYDIS_MNEMONIC_SIDT, .sidt, false),
            (ZYDIS_MNEMONIC_LLDT, .lldt, true), (ZYDIS_MNEMONIC_SLDT, .sldt, false), (ZYDIS_MNEMONIC_LTR, .ltr, true),
            (ZYDIS_MNEMONIC_STR, .str, false), (ZYDIS_MNEMONIC_LAR, .lar, false), (ZYDIS_MNEMONIC_LSL, .lsl, false),
            (ZYDIS_MNEMONIC_VERR, .verr, false), (ZYDIS_MNEMONIC_VERW, .verw, false),
            (ZYDIS_MNEMONIC_INVLPG, .invlpg, true), (ZYDIS_MNEMONIC_INVD, .invd, true),
            (ZYDIS_MNEMONIC_WBINVD, .invd, true), (ZYDIS_MNEMONIC_SWAPGS, .swapgs, true),
            (ZYDIS_MNEMONIC_RDFSBASE, .rdfsbase, false), (ZYDIS_MNEMONIC_RDGSBASE, .rdgsbase, false),
            (ZYDIS_MNEMONIC_WRFSBASE, .wrfsbase, false), (ZYDIS_MNEMONIC_WRGSBASE, .wrgsbase, false),
            (ZYDIS_MNEMONIC_CLAC, .clac, true), (ZYDIS_MNEMONIC_STAC, .stac, true),
            (ZYDIS_MNEMONIC_XGETBV, .xgetbv, true), (ZYDIS_MNEMONIC_XSETBV, .xsetbv, true),
            (ZYDIS_MNEMONIC_VMCALL, .vmcall, true), (ZYDIS_MNEMONIC_VMMCALL, .vmcall, true),
            (ZYDIS_MNEMONIC_UD0, .undefined, true), (ZYDIS_MNEMONIC_UD1, .undefined, true),
            (ZYDIS_MNEMONIC_UD2, .undefined, true),
            (ZYDIS_MNEMONIC_ANDN, .andn, false), (ZYDIS_MNEMONIC_BEXTR, .bextr, false),
            (ZYDIS_MNEMONIC_BLSI, .blsi, false), (ZYDIS_MNEMONIC_BLSMSK, .blsmsk, false),
            (ZYDIS_MNEMONIC_BLSR, .blsr, false), (ZYDIS_MNEMONIC_BZHI, .bzhi, false), (ZYDIS_MNEMONIC_PDEP, .pdep, false),
            (ZYDIS_MNEMONIC_PEXT, .pext, false), (ZYDIS_MNEMONIC_MULX, .mulx, false), (ZYDIS_MNEMONIC_RORX, .rorx, false),
            (ZYDIS_MNEMONIC_SARX, .sarx, false), (ZYDIS_MNEMONIC_SHLX, .shlx, false), (ZYDIS_MNEMONIC_SHRX, .shrx, false),
        ]
        return Dictionary(rows.map { ($0.0.rawValue, ($0.1, $0.2)) }, uniquingKeysWith: { first, _ in first })
    }()
}
