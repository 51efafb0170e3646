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
    private(set) var offset: UInt16 = 0
    private var decoder = ZydisDecoder()
    private(set) var instruction = ZydisDecodedInstruction()
    private(set) var operands: [ZydisDecodedOperand]

    var is64: Bool { mode & ModeKey.long64 != 0 }
    var isFlat: Bool { mode & (ModeKey.long64 | ModeKey.flat) != 0 }

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
    mutating func undo() {
        count = before
        left = false
    }

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

    mutating func emit(_ op: MicroOp) {
        ops[count] = op
        count += 1
        if op.leaves { left = true }
    }

    func make(_ code: OpCode, a: UInt8 = 0, b: UInt8 = 0, imm: UInt64 = 0) -> MicroOp {
        MicroOp(code: code, cold: .none, a: a, b: b, base: Slot.zero, index: Slot.zero, scale: 0,
                segment: SegmentIndex.none, displacement: 0, offset: offset, length: UInt8(length),
                form: .init(bits: UInt8(instruction.operand_width.trailingZeroBitCount - 3) & 3), imm: imm, mask: .max)
    }

    mutating func emit(_ code: OpCode, a: UInt8 = 0, b: UInt8 = 0, imm: UInt64 = 0) {
        emit(make(code, a: a, b: b, imm: imm))
    }

    func sized(_ family: OpCode, _ size: UInt8) -> OpCode {
        // Families are consecutive, so the sum is a case.
        OpCode(rawValue: family.rawValue + size).unsafelyUnwrapped
    }

    /// Logarithm of the operand size in bytes.
    var size: UInt8 { UInt8(instruction.operand_width.trailingZeroBitCount - 3) & 3 }

    func sizeLog(_ operand: ZydisDecodedOperand) -> UInt8 { UInt8(operand.size.trailingZeroBitCount - 3) & 3 }

    // MARK: Operands

    func isRegister(_ i: Int) -> Bool { operands[i].type == ZYDIS_OPERAND_TYPE_REGISTER }
    func isMemory(_ i: Int) -> Bool { operands[i].type == ZYDIS_OPERAND_TYPE_MEMORY }
    func isImmediate(_ i: Int) -> Bool { operands[i].type == ZYDIS_OPERAND_TYPE_IMMEDIATE }
    func imm(_ i: Int) -> UInt64 { operands[i].imm.value.u }
    var visible: Int { Int(instruction.operand_count_visible) }

    func slot(_ i: Int) -> UInt8 { Self.slot(operands[i].reg.value) }

    static func slot(_ register: ZydisRegister) -> UInt8 {
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

    static func segment(_ register: ZydisRegister) -> UInt8 {
        UInt8(truncatingIfNeeded: register.rawValue &- ZYDIS_REGISTER_ES.rawValue)
    }

    var addressMask: UInt64 {
        switch instruction.address_width {
        case 16: 0xFFFF
        case 32: 0xFFFF_FFFF
        default: .max
        }
    }

    /// Fills in a memory operand.
    mutating func place(_ i: Int, in op: inout MicroOp, writes: Bool = false) {
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

    func place(segment: UInt8, in op: inout MicroOp, writes: Bool) {
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
    mutating func load(_ i: Int, to slot: UInt8, size: UInt8, modify: Bool = false) {
        var op = make(sized(modify ? .loadToModify8 : .load8, size), a: slot)
        place(i, in: &op, writes: modify)
        if op.form.has(MicroOp.Form.checked) { op.code = modify ? .loadToModifyChecked : .loadChecked }
        op.form.bits = op.form.bits & ~3 | size
        emit(op)
    }

    mutating func store(_ i: Int, from slot: UInt8, size: UInt8) {
        var op = make(sized(.store8, size), b: slot)
        place(i, in: &op, writes: true)
        if op.form.has(MicroOp.Form.checked) { op.code = .storeChecked }
        op.form.bits = op.form.bits & ~3 | size
        emit(op)
    }

    // MARK: Generic handlers

    /// An instruction with a handler of its own, its operands laid out the same way for all.
    mutating func cold(_ code: ColdCode, ends: Bool = false, extra: UInt8 = 0) {
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
    mutating func alu(_ family: OpCode, readsOnly: Bool = false) {
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

    mutating func unary(_ family: OpCode) {
        if isRegister(0) { return emit(sized(family, size), a: slot(0)) }
        load(0, to: Slot.t0, size: size, modify: true)
        emit(sized(family, size), a: Slot.t0)
        emit(sized(.storeModified8, size), b: Slot.t0)
    }

    mutating func move() {
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
    mutating func moveSpecial() {
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
            cold(.undefined, ends: true)
        }
    }

    mutating func extend(signed: Bool) {
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

    func extension_(_ signed: Bool, _ from: UInt8, _ to: UInt8) -> OpCode {
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

    mutating func leaAddress() {
        guard size >= 2 else { return cold(.lea16) }
        var op = make(size == 2 ? .lea32 : .lea64, a: slot(0))
        place(1, in: &op)
        op.segment = SegmentIndex.none
        emit(op)
    }

    mutating func conditional(move code: UInt8) {
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

    mutating func set(_ code: UInt8) {
        if isRegister(0) { return emit(.set, a: slot(0), imm: UInt64(code)) }
        emit(.set, a: Slot.t0, imm: UInt64(code))
        store(0, from: Slot.t0, size: 0)
    }

    mutating func shift(_ kind: UInt8) {
        let size = self.size
        if isRegister(0), size >= 2, isImmediate(1), kind != 2, kind != 3 {
            let count = imm(1) & (size == 3 ? 63 : 31)
            if count == 0 {
                // A 32-bit shift by 0 still clears the upper half.
                return size == 2 ? emit(.mov32, a: slot(0), b: slot(0)) : emit(.nop)
            }
            let code: OpCode
            switch kind {
            case 0: code = .rolImm32
            case 1: code = .rorImm32
            case 5: code = .shrImm32
            case 7: code = .sarImm32
            default: code = .shlImm32
            }
            return emit(OpCode(rawValue: code.rawValue + size - 2).unsafelyUnwrapped, a: slot(0), imm: count)
        }
        cold(.shift, extra: kind)
    }

    mutating func multiply() {
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

    mutating func push() {
        if isRegister(0), operands[0].reg.value.rawValue >= ZYDIS_REGISTER_ES.rawValue {
            return cold(.pushSegment, extra: Self.segment(operands[0].reg.value))
        }
        guard is64, size == 3 else { return cold(.push) }
        if isImmediate(0) { return emit(.pushImm64, imm: imm(0)) }
        if isRegister(0) { return emit(.push64, b: slot(0)) }
        load(0, to: Slot.t0, size: 3)
        emit(.push64, b: Slot.t0)
    }

    mutating func pop() {
        if isRegister(0), operands[0].reg.value.rawValue >= ZYDIS_REGISTER_ES.rawValue {
            return cold(.popSegment, ends: true, extra: Self.segment(operands[0].reg.value))
        }
        guard is64, size == 3, isRegister(0) else { return cold(.pop) }
        emit(.pop64, a: slot(0))
    }

    /// The distance of a branch's target from the start of the block.
    var target: UInt64 { UInt64(offset) &+ UInt64(length) &+ imm(0) }

    mutating func jump() {
        switch true {
        case operands[0].type == ZYDIS_OPERAND_TYPE_POINTER: far(.jmpFar)
        case isImmediate(0): emit(branch: .jmp)
        case instruction.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR: cold(.jmpFar, ends: true)
        case is64 && isRegister(0): emit(.jmpRegister64, b: slot(0))
        case is64:
            load(0, to: Slot.t0, size: 3)
            emit(.jmpRegister64, b: Slot.t0)
        default: cold(.jmpNear, ends: true)
        }
    }

    mutating func call() {
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

    mutating func far(_ code: ColdCode) {
        var op = make(.coldEnd)
        op.cold = code
        op.form.bits |= MicroOp.Form.immediate
        op.imm = UInt64(operands[0].ptr.segment) << 32 | UInt64(operands[0].ptr.offset)
        emit(op)
    }

    mutating func jump(if code: UInt8) {
        let family = OpCode(rawValue: OpCode.jo.rawValue + code).unsafelyUnwrapped
        emit(branch: family)
    }

    /// The operand size cuts the target, whatever the code segment is.
    private mutating func emit(branch code: OpCode) {
        var op = make(code, imm: target)
        if !is64 { op.mask = instruction.operand_width == 16 ? 0xFFFF : 0xFFFF_FFFF }
        emit(op)
    }

    mutating func string(_ code: ColdCode) {
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

    enum Attribute {
        static let rep = UInt64(1) << 28
        static let repe = UInt64(1) << 29
        static let repne = UInt64(1) << 30
    }

    var stringSize: UInt8 {
        // The last bits of the opcode: even for bytes.
        instruction.opcode & 1 == 0 ? 0 : size == 3 && (instruction.opcode & 0xFC == 0x6C) ? 2 : size
    }

    mutating func branch(loop code: ColdCode) {
        var op = make(.coldEnd)
        op.cold = code
        op.imm = target
        op.mask = addressMask
        emit(op)
    }
}
