import CZydis
import DifferentialGuest
import VMCore

/// One case: code, the state before it, and what of the state afterwards doesn't count.
struct DifferentialCase: CustomStringConvertible {
    var name: String
    var code: [UInt8]
    var input: DifferentialRecord
    /// Bytes of the record afterwards that differ by processor for good reason.
    var ignored: [Range<Int>] = []

    var description: String {
        "\(name): \(code.map { let h = String($0, radix: 16); return h.count < 2 ? "0" + h : h }.joined(separator: " "))"
    }
}

extension SeededGenerator {
    mutating func below(_ n: UInt64) -> UInt64 { next(below: n) }
}

/// Makes cases from a catalogue and a seed.
struct DifferentialGenerator {
    let catalogue: DifferentialCatalogue
    /// Cases run with alignment checks, most of them, and have operands of any alignment.
    let checksAlignment: Bool
    private var random: SeededGenerator
    private var record = DifferentialRecord()

    private var mode: DifferentialMachine.Mode { catalogue.mode }
    private var is64: Bool { mode == .long64 }
    private static let window = UInt64(DIFF_DATA + 0x1000 - CASE_DATA_BYTES)

    init(_ catalogue: DifferentialCatalogue, seed: UInt64, checksAlignment: Bool = false) {
        self.catalogue = catalogue
        self.checksAlignment = checksAlignment
        random = SeededGenerator(seed: seed)
    }

    /// A case for the encoding with a number; each number meets each encoding again, with other operands.
    mutating func make(_ number: Int) -> DifferentialCase? {
        let encoding = catalogue.encodings[number % catalogue.encodings.count]
        for _ in 0..<8 {
            if let made = attempt(encoding) { return made }
        }
        return nil
    }

    /// A case with given code and an operand, where it has one, at the address in a register.
    mutating func make(code: [UInt8], operandIn register: Int?) -> DifferentialCase? {
        fillRegisters()
        guard let decoded = DecodedBytes(code + [UInt8](repeating: 0x90, count: 8), mode) else { return nil }
        var address: UInt64?
        if let register {
            address = Self.window + 0x40 + 64 * random.below(4) + misalignment()
            record.setRegister(register, address ?? 0)
        }
        var code = code
        guard prepare(&code, decoded, &address) else { return nil }
        var made = DifferentialCase(name: decoded.name, code: code, input: record)
        ignore(&made, decoded, address)
        return made
    }

    /// What moves an operand where alignment is checked.
    private mutating func misalignment() -> UInt64 {
        checksAlignment && random.chance(2, in: 3) ? random.below(2) == 0 ? random.below(16) : 1 << random.below(4) : 0
    }

    // MARK: Values

    private mutating func integer() -> UInt64 {
        let edges: [UInt64] = [
            0, 1, 2, .max, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF,
            1 << 32, .max >> 1, 1 << 63, 0x5555_5555_5555_5555, 0xAAAA_AAAA_AAAA_AAAA, 31, 32, 33, 63, 64, 9, 10, 0x99, 0xF9,
        ]
        switch random.below(4) {
        case 0: return random.next()
        case 1: return random.next() >> random.below(64)
        default: return edges[Int(random.below(UInt64(edges.count)))]
        }
    }

    private mutating func single() -> UInt32 {
        let edges: [UInt32] = [
            0, 0x8000_0000, 0x3F80_0000, 0xBF80_0000, 0x3F00_0000, 0x3FC0_0000, 0x4020_0000, 1, 0x007F_FFFF, 0x0080_0000,
            0x7F7F_FFFF, 0xFF7F_FFFF, 0x7F80_0000, 0xFF80_0000, 0x7FC0_0000, 0xFFC0_1234, 0x7F80_0001, 0xFFA0_0000, 0x4F00_0000,
            0xCF00_0000, 0x4EFF_FFFF, 0x5F00_0000, 0x8000_0001, 0x3400_0000, 0x7F00_0000, 0x477F_E000, 0x3880_0000,
        ]
        if random.chance(1, in: 3) { return UInt32(truncatingIfNeeded: random.next()) }
        if random.chance(1, in: 3) { return Float(Int32(truncatingIfNeeded: random.next() >> 36)).bitPattern }
        return edges[Int(random.below(UInt64(edges.count)))]
    }

    private mutating func double() -> UInt64 {
        let edges: [UInt64] = [
            0, 1 << 63, 0x3FF0 << 48, 0xBFF0 << 48, 0x3FE0 << 48, 0x3FF8 << 48, 0x4004 << 48, 1, 0xF_FFFF_FFFF_FFFF, 0x0010 << 48,
            0x7FEF_FFFF_FFFF_FFFF, 0x7FF0 << 48, 0xFFF0 << 48, 0x7FF8 << 48, 0xFFF8_0000_0000_1234, 0x7FF0_0000_0000_0001,
            0x41E0 << 48, 0xC1E0 << 48, 0x41DF_FFFF_FFC0_0000, 0x43E0 << 48, 0xC3E0 << 48, 0x380F_FFFF_FFFF_FFFF, 0x36A0 << 48,
            0x47EF_FFFF_E000_0000, 0x47EF_FFFF_F000_0000, 0x3CA0 << 48,
        ]
        if random.chance(1, in: 3) { return random.next() }
        if random.chance(1, in: 3) { return Double(Int32(truncatingIfNeeded: random.next() >> 36)).bitPattern }
        return edges[Int(random.below(UInt64(edges.count)))]
    }

    /// 16 bytes of integers or of either kind of number.
    private mutating func vector() -> (UInt64, UInt64) {
        switch random.below(4) {
        case 0: (integer(), integer())
        case 1: (random.next(), random.next())
        case 2: (UInt64(single()) | UInt64(single()) << 32, UInt64(single()) | UInt64(single()) << 32)
        default: (double(), double())
        }
    }

    /// An extended number: its significand and what is above that.
    private mutating func extended() -> (UInt64, UInt16) {
        let exponents: [UInt16] = [0, 1, 0x3FFE, 0x3FFF, 0x4000, 0x401E, 0x403E, 0x7FFE, 0x7FFF, 0x3F80, 0x407F, 0x3C00, 0x43FF, 0x3FBF]
        let significands: [UInt64] = [
            0, 1, 1 << 63, .max, 0xC000 << 48, 0xA000 << 48, 1 << 62, 0x8000_0000_0000_0001, 0xC90F_DAA2_2168_C235, 0x8000_0080_0000_0000,
        ]
        if random.chance(1, in: 4) {
            let value = Float80(Int64(truncatingIfNeeded: random.next()) >> Int64(random.below(63)))
            return (value.significandBitPattern | (value == 0 ? 0 : 1 << 63), UInt16(value.exponentBitPattern) | (value < 0 ? 0x8000 : 0))
        }
        let sign: UInt16 = random.chance(1, in: 2) ? 0x8000 : 0
        let exponent = random.chance(1, in: 5) ? UInt16(random.below(0x8000)) : exponents[Int(random.below(UInt64(exponents.count)))]
        let significand = random.chance(1, in: 3) ? random.next() | (random.chance(7, in: 8) ? 1 << 63 : 0)
            : significands[Int(random.below(UInt64(significands.count)))]
        return (significand, sign | exponent)
    }

    private mutating func fillRegisters() {
        record = DifferentialRecord()
        for i in 0..<16 { record.setRegister(i, is64 ? integer() : integer() & 0xFFFF_FFFF) }
        // The stack lies in the data.
        record.setRegister(4, Self.window + 0x100 + 8 * random.below(16) + misalignment())
        let arithmetic = random.next() & 0x8D5
        record[Int(CASE_FLAGS), UInt64.self] = 2 | arithmetic | (random.chance(1, in: 8) ? 0x400 : 0)
        if checksAlignment, random.chance(7, in: 8) { record[Int(CASE_FLAGS), UInt64.self] |= 0x4_0000 }
        for i in 0..<16 {
            let (low, high) = vector()
            record[Int(CASE_FX) + 160 + 16 * i, UInt64.self] = low
            record[Int(CASE_FX) + 168 + 16 * i, UInt64.self] = high
            let (third, fourth) = vector()
            record[Int(CASE_YMM) + 16 * i, UInt64.self] = third
            record[Int(CASE_YMM) + 16 * i + 8, UInt64.self] = fourth
        }
        var mxcsr: UInt32 = 0x1F80
        if random.chance(1, in: 3) { mxcsr = UInt32(truncatingIfNeeded: random.next()) & 0xFFFF }
        if random.chance(1, in: 2) { mxcsr |= 0x1F80 }
        record[Int(CASE_FX) + 24, UInt32.self] = mxcsr
        record[Int(CASE_FX) + 28, UInt32.self] = 0xFFFF
        fillX87()
        for offset in stride(from: 0, to: Int(CASE_DATA_BYTES), by: 16) {
            let (low, high) = vector()
            record[Int(CASE_DATA) + offset, UInt64.self] = low
            record[Int(CASE_DATA) + offset + 8, UInt64.self] = high
        }
    }

    private mutating func fillX87() {
        var control: UInt16 = 0x37F
        if random.chance(1, in: 2) { control = UInt16(truncatingIfNeeded: random.next()) & 0x1F3F | 0x40 }
        if random.chance(1, in: 2) { control |= 0x3F }
        var status = UInt16(truncatingIfNeeded: random.next()) & 0x7F00
        // Flags of exceptions that are unmasked would be pending ones.
        if random.chance(1, in: 4) { status |= UInt16(truncatingIfNeeded: random.next()) & 0x3F & control }
        record[Int(CASE_FX), UInt16.self] = control
        record[Int(CASE_FX) + 2, UInt16.self] = status
        record[Int(CASE_FX) + 4, UInt8.self] = random.chance(2, in: 3) ? 0xFF : UInt8(truncatingIfNeeded: random.next())
        for i in 0..<8 {
            let (significand, above) = extended()
            record[Int(CASE_FX) + 32 + 16 * i, UInt64.self] = significand
            record[Int(CASE_FX) + 40 + 16 * i, UInt16.self] = above
        }
    }

    // MARK: Encodings

    private mutating func attempt(_ encoding: DifferentialEncoding) -> DifferentialCase? {
        fillRegisters()
        let rex = is64 ? UInt8(random.below(8)) : 0
        let vvvv = UInt8(random.below(is64 ? 16 : 8))
        let force = random.chance(1, in: 4)
        var code = encoding.head(rex: rex, vvvv: vvvv, forceREX: force, in: mode)
        var address: UInt64?
        if encoding.hasModRM {
            let reg = encoding.reg ?? UInt8(random.below(8))
            if encoding.registers {
                code.append(0xC0 | reg << 3 | (encoding.rm ?? UInt8(random.below(8))))
            } else {
                guard let (bytes, target) = memoryOperand(reg, rex, length: code.count, encoding) else { return nil }
                code += bytes
                address = target
            }
        }
        // Immediates: as many bytes as the instruction takes.
        let filler = (0..<8).map { _ in UInt8(truncatingIfNeeded: integer()) }
        guard let decoded = DecodedBytes(code + filler, mode), decoded.instruction.mnemonic == encoding.mnemonic else { return nil }
        code = Array((code + filler).prefix(Int(decoded.instruction.length)))
        guard prepare(&code, decoded, &address) else { return nil }
        var made = DifferentialCase(name: decoded.name, code: code, input: record)
        // An exception that waits shows at the next instruction of the x87.
        if decoded.instruction.meta.isa_ext == ZYDIS_ISA_EXT_X87 || decoded.instruction.meta.isa_ext == ZYDIS_ISA_EXT_MMX,
            random.chance(1, in: 4) {
            made.code.append(0x9B)
        }
        ignore(&made, decoded, address)
        return made
    }

    /// ModRM, SIB and displacement of an operand in the data, with registers set for it.
    private mutating func memoryOperand(_ reg: UInt8, _ rex: UInt8, length: Int, _ encoding: DifferentialEncoding)
        -> ([UInt8], UInt64)? {
        // Mostly inside, at times across the end into an unmapped page, or where nothing may be written.
        var target = Self.window + 16 * (4 + random.below(20))
        switch random.below(16) {
        case 0...3: target += random.below(16)
        case 4: target = UInt64(DIFF_DATA) + 0x1000 - random.below(33)
        case 5: target = UInt64(DIFF_READ_ONLY) + 64 * random.below(8)
        default: break
        }
        // What touches many bytes in several steps faults at some of them, in an order that is each processor's own.
        if Self.large.contains(encoding.mnemonic.rawValue) { target = Self.window + 16 * random.below(4) }
        target += misalignment()
        if isGather(encoding) { return gatherOperand(reg, rex, target) }
        func word(_ value: UInt64) -> [UInt8] { (0..<4).map { UInt8(truncatingIfNeeded: value >> (8 * $0)) } }
        let mod = UInt8(random.below(3))
        let base = UInt8(random.below(8))
        let number = Int(base | (rex & 1) << 3)
        let small = UInt64(bitPattern: Int64(Int8(truncatingIfNeeded: random.next())))
        let large = UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: random.next() >> 8) >> 4))
        func cut(_ value: UInt64) -> UInt64 { is64 ? value : value & 0xFFFF_FFFF }
        if random.chance(1, in: 8), rex & 2 == 0 {
            // An absolute address.
            return ((is64 ? [reg << 3 | 4, 0x25] : [reg << 3 | 5]) + word(target), target)
        }
        let displacement = mod == 0 ? 0 : mod == 1 ? small : large
        let tail: [UInt8] = mod == 0 ? [] : mod == 1 ? [UInt8(truncatingIfNeeded: small)] : word(large)
        if base == 4 || random.chance(1, in: 3) {
            // With an index, which RSP can't be.
            let index = UInt8(random.below(8)), scale = UInt8(random.below(4))
            let indexNumber = Int(index | (rex & 2) << 2)
            guard indexNumber != 4, indexNumber != number, !(base == 5 && mod == 0) else { return nil }
            let offset = record.register(indexNumber) << UInt64(scale)
            record.setRegister(number, cut(target &- displacement &- offset))
            return ([mod << 6 | reg << 3 | 4, scale << 6 | index << 3 | base] + tail, target)
        }
        guard !(base == 5 && mod == 0) else { return nil }
        record.setRegister(number, cut(target &- displacement))
        return ([mod << 6 | reg << 3 | base] + tail, target)
    }

    private static let large: Set<UInt32> = Set([
        ZYDIS_MNEMONIC_FNSAVE, ZYDIS_MNEMONIC_FRSTOR, ZYDIS_MNEMONIC_FNSTENV, ZYDIS_MNEMONIC_FLDENV, ZYDIS_MNEMONIC_FXSAVE,
        ZYDIS_MNEMONIC_FXSAVE64, ZYDIS_MNEMONIC_FXRSTOR, ZYDIS_MNEMONIC_FXRSTOR64,
    ].map(\.rawValue))

    private func isGather(_ encoding: DifferentialEncoding) -> Bool {
        encoding.kind == .vex && encoding.map == 2 && (0x90...0x93).contains(encoding.opcode)
    }

    /// Elements near the target: small indices, and masks of all kinds.
    private mutating func gatherOperand(_ reg: UInt8, _ rex: UInt8, _ target: UInt64) -> ([UInt8], UInt64)? {
        let index = UInt8(random.below(8)), base = UInt8(random.below(8)), scale = UInt8(random.below(3))
        guard base != 5, base | (rex & 1) << 3 != 4 else { return nil }
        let number = Int(index | (rex & 2) << 2)
        let quads = random.chance(1, in: 2)
        for area in [Int(CASE_FX) + 160, Int(CASE_YMM)] {
            for i in stride(from: 0, to: 16, by: quads ? 8 : 4) {
                let value = Int64(random.below(64)) - 32
                if quads {
                    record[area + 16 * number + i, UInt64.self] = UInt64(bitPattern: value)
                } else {
                    record[area + 16 * number + i, UInt32.self] = UInt32(truncatingIfNeeded: value)
                }
            }
        }
        record.setRegister(Int(base | (rex & 1) << 3), target)
        return ([reg << 3 | 4, scale << 6 | index << 3 | base], target)
    }

    /// Sets what instructions use without naming it.
    private mutating func prepare(_ code: inout [UInt8], _ decoded: DecodedBytes, _ address: inout UInt64?) -> Bool {
        let instruction = decoded.instruction
        let inside = Self.window + 0x80 + random.below(0x100)
        switch instruction.mnemonic {
        case ZYDIS_MNEMONIC_LEAVE, ZYDIS_MNEMONIC_ENTER:
            // Nested frames are read above where the stack is written.
            record.setRegister(5, Self.window + 0x1C0 + 8 * random.below(8) + misalignment())
            if instruction.mnemonic == ZYDIS_MNEMONIC_ENTER { code[code.count - 1] &= 3 }
        case ZYDIS_MNEMONIC_POPF, ZYDIS_MNEMONIC_POPFD, ZYDIS_MNEMONIC_POPFQ:
            // Not TF, nor AC of itself: the driver goes on with these.
            let offset = Int(record.register(4) - Self.window)
            record[Int(CASE_DATA) + offset, UInt64.self] &= checksAlignment ? ~0x100 : ~0x4_0100
        case ZYDIS_MNEMONIC_XLAT: record.setRegister(3, (inside &- (record.register(0) & 0xFF)) & (is64 ? .max : 0xFFFF_FFFF))
        case ZYDIS_MNEMONIC_BT, ZYDIS_MNEMONIC_BTS, ZYDIS_MNEMONIC_BTR, ZYDIS_MNEMONIC_BTC:
            // A bit near the operand.
            if decoded.operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY, decoded.operands[1].type == ZYDIS_OPERAND_TYPE_REGISTER {
                guard let number = number(of: decoded.operands[1].reg.value), number != 4,
                    !uses(number, decoded.operands[0].mem) else { return false }
                record.setRegister(number, (UInt64(bitPattern: Int64(random.below(512)) - 256)) & (is64 ? .max : 0xFFFF_FFFF))
            }
        case ZYDIS_MNEMONIC_MOV where instruction.raw.modrm.offset == 0:
            // MOV with an absolute address of its own.
            if decoded.operands[0].type == ZYDIS_OPERAND_TYPE_MEMORY || decoded.operands[1].type == ZYDIS_OPERAND_TYPE_MEMORY {
                let size = Int(instruction.raw.disp.size) / 8, offset = Int(instruction.raw.disp.offset)
                guard size >= 4 else { return false }
                for j in 0..<size { code[offset + j] = UInt8(truncatingIfNeeded: inside >> UInt64(8 * j)) }
                address = inside
            }
        default: break
        }
        if instruction.meta.category == ZYDIS_CATEGORY_STRINGOP {
            record.setRegister(6, inside)
            record.setRegister(7, Self.window + 0x80 + random.below(0x100))
            record.setRegister(1, random.below(9))
        }
        if instruction.mnemonic == ZYDIS_MNEMONIC_MASKMOVQ || instruction.mnemonic == ZYDIS_MNEMONIC_MASKMOVDQU
            || instruction.mnemonic == ZYDIS_MNEMONIC_VMASKMOVDQU {
            record.setRegister(7, random.chance(1, in: 8) ? UInt64(DIFF_DATA) + 0x1000 - random.below(17) : inside)
        }
        return true
    }

    private func number(of register: ZydisRegister) -> Int? {
        for first in [ZYDIS_REGISTER_AX, ZYDIS_REGISTER_EAX, ZYDIS_REGISTER_RAX]
        where (first.rawValue..<(first.rawValue + 16)).contains(register.rawValue) {
            return Int(register.rawValue - first.rawValue)
        }
        return nil
    }

    private func uses(_ number: Int, _ memory: ZydisDecodedOperandMem) -> Bool {
        self.number(of: memory.base) == number || self.number(of: memory.index) == number
    }

    /// What stands for the x87's last instruction is no part of a guest's state here.
    private func ignore(_ made: inout DifferentialCase, _ decoded: DecodedBytes, _ address: UInt64?) {
        if decoded.instruction.meta.category == ZYDIS_CATEGORY_PUSH, decoded.name.hasPrefix("PUSHF") {
            // IF and IOPL, which are the machine's.
            let offset = Int(CASE_DATA) + Int(made.input.register(4) - Self.window) - Int(decoded.instruction.operand_width) / 8
            made.ignored.append((offset + 1)..<(offset + 2))
        }
        guard let address else { return }
        let wide = decoded.instruction.operand_width != 16
        let pointers: Range<Int>
        switch decoded.instruction.mnemonic {
        case ZYDIS_MNEMONIC_FNSTENV, ZYDIS_MNEMONIC_FNSAVE: pointers = wide ? 12..<28 : 6..<14
        case ZYDIS_MNEMONIC_FXSAVE, ZYDIS_MNEMONIC_FXSAVE64: pointers = 6..<24
        default: return
        }
        let offset = Int(CASE_DATA) + Int(address) - Int(Self.window)
        guard offset >= 0 else { return }
        made.ignored.append((offset + pointers.lowerBound)..<(offset + pointers.upperBound))
    }
}
