import CZydis

/// A way to encode an instruction, without its operands.
struct DifferentialEncoding: Hashable {
    enum Kind: Hashable {
        case legacy
        case vex
    }

    var kind = Kind.legacy
    /// The mandatory prefix: 0, 0x66, 0xF3 or 0xF2.
    var prefix: UInt8 = 0
    /// 0: one byte; 1: 0F; 2: 0F 38; 3: 0F 3A.
    var map: UInt8 = 0
    var opcode: UInt8
    var wide = false
    var long = false
    /// The mod field is 3: no operand in memory.
    var registers = false
    /// The reg field, where it belongs to the opcode.
    var reg: UInt8?
    /// The rm field, where it belongs to the opcode.
    var rm: UInt8?
    var hasModRM = true
    var mnemonic: ZydisMnemonic = ZYDIS_MNEMONIC_INVALID

    static func == (a: Self, b: Self) -> Bool { a.text == b.text }
    func hash(into hasher: inout Hasher) { hasher.combine(text) }
    private var text: String {
        "\(kind) \(prefix) \(map) \(opcode) \(wide) \(long) \(registers) \(reg ?? 8) \(rm ?? 8) \(hasModRM)"
    }

    /// The opcode with everything before it. `rex` has the bits R, X and B (4, 2, 1); `vvvv` is a register's number.
    func head(rex: UInt8, vvvv: UInt8, forceREX: Bool, in mode: DifferentialMachine.Mode) -> [UInt8] {
        if kind == .vex {
            let pp: UInt8 = prefix == 0x66 ? 1 : prefix == 0xF3 ? 2 : prefix == 0xF2 ? 3 : 0
            let r = mode == .long64 ? ~rex & 7 : 7
            return [0xC4, r << 5 | map, (wide ? 0x80 : 0) | (~vvvv & 15) << 3 | (long ? 4 : 0) | pp, opcode]
        }
        var bytes: [UInt8] = prefix == 0 ? [] : [prefix]
        if mode == .long64, rex != 0 || wide || forceREX { bytes.append(0x40 | (wide ? 8 : 0) | rex) }
        switch map {
        case 0: break
        case 1: bytes.append(0x0F)
        case 2: bytes += [0x0F, 0x38]
        default: bytes += [0x0F, 0x3A]
        }
        return bytes + [opcode]
    }
}

/// What Zydis makes of some bytes.
struct DecodedBytes {
    var instruction = ZydisDecodedInstruction()
    var operands = [ZydisDecodedOperand](repeating: ZydisDecodedOperand(), count: Int(ZYDIS_MAX_OPERAND_COUNT))

    init?(_ bytes: [UInt8], _ mode: DifferentialMachine.Mode) {
        var decoder = ZydisDecoder()
        if mode == .long64 {
            ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64)
        } else {
            ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_COMPAT_32, ZYDIS_STACK_WIDTH_32)
        }
        guard ZydisDecoderDecodeFull(&decoder, bytes, ZyanUSize(bytes.count), &instruction, &operands) & 0x8000_0000 == 0
        else { return nil }
    }

    var name: String { String(cString: ZydisMnemonicGetString(instruction.mnemonic)).uppercased() }

    /// The visible operands' kinds and sizes.
    var form: String {
        (0..<Int(instruction.operand_count_visible)).map { "\(operands[$0].type.rawValue):\(operands[$0].size)" }.joined(separator: ",")
    }
}

/// Every instruction that the tests execute, in each of its forms.
struct DifferentialCatalogue {
    let mode: DifferentialMachine.Mode
    private(set) var encodings: [DifferentialEncoding] = []
    /// What is left out, by reason.
    private(set) var skipped: [String: Int] = [:]

    private static let extensions: Set<UInt32> = Set([
        ZYDIS_ISA_EXT_BASE, ZYDIS_ISA_EXT_LONGMODE, ZYDIS_ISA_EXT_X87, ZYDIS_ISA_EXT_MMX, ZYDIS_ISA_EXT_SSE,
        ZYDIS_ISA_EXT_SSE2, ZYDIS_ISA_EXT_SSE3, ZYDIS_ISA_EXT_SSSE3, ZYDIS_ISA_EXT_SSE4, ZYDIS_ISA_EXT_AES,
        ZYDIS_ISA_EXT_PCLMULQDQ, ZYDIS_ISA_EXT_SHA, ZYDIS_ISA_EXT_BMI1, ZYDIS_ISA_EXT_BMI2, ZYDIS_ISA_EXT_LZCNT,
        ZYDIS_ISA_EXT_MOVBE, ZYDIS_ISA_EXT_ADOX_ADCX, ZYDIS_ISA_EXT_PAUSE, ZYDIS_ISA_EXT_CLFSH,
    ].map(\.rawValue))
    private static let wide: Set<UInt32> = Set([
        ZYDIS_ISA_EXT_AVX, ZYDIS_ISA_EXT_AVX2, ZYDIS_ISA_EXT_AVX2GATHER, ZYDIS_ISA_EXT_AVXAES, ZYDIS_ISA_EXT_F16C,
        ZYDIS_ISA_EXT_FMA,
    ].map(\.rawValue))
    /// Instructions that leave user mode, go elsewhere, or change what the driver stands on.
    private static let leaving: Set<UInt32> = Set([
        ZYDIS_CATEGORY_CALL, ZYDIS_CATEGORY_COND_BR, ZYDIS_CATEGORY_UNCOND_BR, ZYDIS_CATEGORY_RET, ZYDIS_CATEGORY_INTERRUPT,
        ZYDIS_CATEGORY_IO, ZYDIS_CATEGORY_IOSTRINGOP, ZYDIS_CATEGORY_SEGOP, ZYDIS_CATEGORY_SYSCALL, ZYDIS_CATEGORY_SYSRET,
        ZYDIS_CATEGORY_SYSTEM,
    ].map(\.rawValue))
    private static let others: Set<UInt32> = Set([ZYDIS_MNEMONIC_CPUID].map(\.rawValue))

    /// Without encodings: for cases whose code is given.
    init(empty mode: DifferentialMachine.Mode) { self.mode = mode }

    init(_ mode: DifferentialMachine.Mode, hasAVX: Bool) {
        self.mode = mode
        var seen: Set<String> = []
        for kind in [DifferentialEncoding.Kind.legacy, .vex] {
            for map in (kind == .vex ? 1 : 0)...3 as ClosedRange<UInt8> {
                for opcode in 0...255 as ClosedRange<UInt8> {
                    for prefix in [0, 0x66, 0xF3, 0xF2] as [UInt8] {
                        for wide in mode == .long64 || kind == .vex ? [false, true] : [false] {
                            for long in kind == .vex ? [false, true] : [false] {
                                for registers in [true, false] {
                                    let base = DifferentialEncoding(kind: kind, prefix: prefix, map: map, opcode: opcode, wide: wide,
                                                                    long: long, registers: registers)
                                    add(base, &seen, hasAVX)
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// A step that leads through all encodings, from all parts of the catalogue early.
    var strideThroughAll: Int {
        func common(_ a: Int, _ b: Int) -> Int { b == 0 ? a : common(b, a % b) }
        var step = max(1, encodings.count * 5 / 8)
        while common(step, encodings.count) != 1 { step += 1 }
        return step
    }

    private mutating func add(_ base: DifferentialEncoding, _ seen: inout Set<String>, _ hasAVX: Bool) {
        let isX87 = base.kind == .legacy && base.map == 0 && (0xD8...0xDF).contains(base.opcode)
        var mnemonics: Set<UInt32> = []
        var found: [(UInt8, UInt8?, DecodedBytes)] = []
        for reg in 0..<8 as Range<UInt8> {
            for rm in (isX87 && base.registers ? [0, 1, 2, 3, 4, 5, 6, 7] : [1]) as [UInt8] {
                // Without registers in common, so that gathers are valid.
                let bytes = base.head(rex: 0, vvvv: 0, forceREX: false, in: mode)
                    + [(base.registers ? 0xC0 : base.kind == .vex ? 0x04 : 0) | reg << 3 | (base.registers || base.kind == .legacy ? rm : 0),
                       base.registers || base.kind == .legacy ? 0 : 0x29] + [UInt8](repeating: 0, count: 8)
                guard let decoded = DecodedBytes(bytes, mode), decoded.instruction.opcode == base.opcode,
                    (decoded.instruction.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) == (base.kind == .vex) else {
                    mnemonics.insert(0)
                    continue
                }
                mnemonics.insert(decoded.instruction.mnemonic.rawValue)
                found.append((reg, isX87 && base.registers ? rm : nil, decoded))
            }
        }
        for (reg, rm, decoded) in found {
            let instruction = decoded.instruction
            let hasModRM = instruction.attributes & 1 != 0  // ZYDIS_ATTRIB_HAS_MODRM
            guard hasModRM || !base.registers else { continue }
            let key = "\(decoded.name) \(decoded.form) \(hasModRM ? base.registers : true) \(instruction.encoding.rawValue) "
                + "\(instruction.operand_width) \(base.prefix) \(base.wide) \(isX87 && base.registers ? "\(base.opcode) \(reg) \(rm ?? 0)" : "")"
            guard seen.insert(key).inserted else { continue }
            let isa = instruction.meta.isa_ext.rawValue
            if !Self.extensions.contains(isa), !Self.wide.contains(isa) {
                skipped["the engine doesn't offer it", default: 0] += 1
                continue
            }
            if Self.wide.contains(isa), !hasAVX {
                skipped["the host has no AVX2 for guests", default: 0] += 1
                continue
            }
            if Self.leaving.contains(instruction.meta.category.rawValue) || Self.others.contains(instruction.mnemonic.rawValue)
                || decoded.namesSegment {
                skipped["it leaves the case's code", default: 0] += 1
                continue
            }
            var encoding = base
            encoding.hasModRM = hasModRM
            if mnemonics.count > 1 { encoding.reg = reg }
            encoding.rm = rm
            encoding.mnemonic = instruction.mnemonic
            encodings.append(encoding)
        }
    }
}

extension DecodedBytes {
    /// Segment registers: user mode has others than the kernel where the processor isn't a virtual one.
    fileprivate var namesSegment: Bool {
        (0..<Int(instruction.operand_count_visible)).contains {
            operands[$0].type == ZYDIS_OPERAND_TYPE_REGISTER
                && (ZYDIS_REGISTER_ES.rawValue...ZYDIS_REGISTER_GS.rawValue).contains(operands[$0].reg.value.rawValue)
        }
    }
}
