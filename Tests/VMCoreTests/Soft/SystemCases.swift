import VMCore

/// Makes cases of system instructions at CPL 0, from a seed.
struct SystemCases {
    /// What is executed.
    enum Kind: String, CaseIterable {
        case movFromControl = "MOV from CRn", movToCR0 = "MOV to CR0", movToCR2 = "MOV to CR2", movToCR3 = "MOV to CR3"
        case movToCR4 = "MOV to CR4", movToCR8 = "MOV to CR8", movToOther = "MOV to another CRn"
        case movFromDebug = "MOV from DRn", movToDebug = "MOV to DRn"
        case lgdt = "LGDT", lidt = "LIDT", sgdt = "SGDT", sidt = "SIDT", lldt = "LLDT", ltr = "LTR", sldt = "SLDT", str = "STR"
        case lmsw = "LMSW", smsw = "SMSW", clts = "CLTS", lar = "LAR", lsl = "LSL", verr = "VERR", verw = "VERW"
        case invlpg = "INVLPG", wbinvd = "WBINVD", invd = "INVD", rdmsr = "RDMSR", wrmsr = "WRMSR", swapgs = "SWAPGS"
        case movToSegment = "MOV to Sreg", movFromSegment = "MOV from Sreg", popSegment = "POP Sreg", pushSegment = "PUSH Sreg"
        case loadPointer = "LSS, LFS, LGS", iret = "IRET", farReturn = "RET far", farJump = "JMP far", farCall = "CALL far"
        case pushf = "PUSHF", popf = "POPF", cli = "CLI", sti = "STI", software = "INT n", breakpoint = "INT3"
        case syscall = "SYSCALL", sysret = "SYSRET", sysenter = "SYSENTER", sysexit = "SYSEXIT"
        case undefined = "UD2", accessFlag = "CLAC, STAC", segmentBase = "RDFSBASE and kin", rdpmc = "RDPMC", xgetbv = "XGETBV"
    }

    let mode: SystemMachine.Mode
    private let seed: UInt64
    private var random = SeededGenerator(seed: 0)
    private var one: SystemCase
    private var is64: Bool { mode == .long64 }
    private typealias Layout = SystemLayout

    init(_ mode: SystemMachine.Mode, seed: UInt64) {
        self.mode = mode
        self.seed = seed
        one = SystemCase(name: "", mode: mode, state: SystemMachine.state(mode))
    }

    /// The case with a number; it depends on nothing but that, the mode and the seed.
    mutating func make(_ number: Int) -> SystemCase {
        let kind = Kind.allCases[number % Kind.allCases.count]
        random = SeededGenerator(seed: seed &* 0x1_0000_0001 &+ UInt64(number))
        one = SystemCase(name: kind.rawValue, mode: mode, state: SystemMachine.state(mode), number: number)
        for register in 0..<16 where register != 4 { setRegister(UInt8(register), integer()) }
        one.state.general.rflags = 2 | random.next() & 0x24_7CD5  // arithmetic, IF, DF, IOPL, NT, AC, ID
        one.state.msrs[4] = 0x0030_0008 << 32 | SystemLayout.target + 0x40
        one.state.msrs[5] = SystemLayout.target + 0x80
        one.state.msrs[6] = SystemLayout.target + 0xC0
        one.state.msrs[7] = random.next() & 0x4_7FD5
        one.state.msrs[0] = UInt64(chance(8) ? 0 : Layout.code64)
        one.state.msrs[1] = Layout.stack
        one.state.msrs[2] = Layout.target + 0x100
        one.state.msrs[8] = random.next() >> 20
        if chance(8) { one.state.ldtr = SegmentRegister(attributes: SegmentRegister.unusable) }
        if chance(16) { one.state.gdtr.limit = 0x9F }
        one.code = code(kind)
        return one
    }

    // MARK: Values

    private mutating func chance(_ n: UInt64) -> Bool { random.chance(1, in: n) }
    private mutating func pick<T>(_ values: [T]) -> T { values[Int(random.below(UInt64(values.count)))] }

    private mutating func integer() -> UInt64 {
        let value: UInt64 = switch random.below(4) {
        case 0: random.next()
        case 1: random.next() >> random.below(64)
        case 2: pick([0, 1, .max, 1 << 63, 0x7FFF_FFFF_FFFF, 0x8000_0000_0000, 0xFFFF_8000_0000_0000, 0xFFFF_FFFF, 0x8000_0000])
        default: SystemLayout.data + 8 * random.below(256)
        }
        return is64 ? value : value & 0xFFFF_FFFF
    }

    private mutating func canonical() -> UInt64 {
        let value = integer()
        return chance(4) ? value : UInt64(bitPattern: Int64(bitPattern: value << 17) >> 17)
    }

    private mutating func selector() -> UInt16 {
        if chance(12) { return UInt16(truncatingIfNeeded: random.next()) }
        if chance(12) { return UInt16(random.below(4)) }
        let rpl = chance(2) ? 0 : UInt16(random.below(4))
        if chance(8) { return UInt16(8 * random.below(5)) | 4 | rpl }
        return UInt16(8 * (1 + random.below(UInt64(Layout.descriptors.count)))) | rpl
    }

    /// A selector of those that are mostly right for what is asked.
    private mutating func selector(among good: [UInt16]) -> UInt16 { chance(2) ? pick(good) : selector() }

    /// A value that differs from `value` in some bits of `mask`.
    private mutating func flip(_ value: UInt64, in mask: UInt64) -> UInt64 {
        var changed = random.next() & random.next() & mask
        if chance(4) { changed = 1 << random.below(64) }
        if chance(8) { changed = 0 }
        return value ^ changed
    }

    private mutating func setRegister(_ number: UInt8, _ value: UInt64) {
        let paths: [WritableKeyPath<GeneralRegisters, UInt64>] = [
            \.rax, \.rcx, \.rdx, \.rbx, \.rsp, \.rbp, \.rsi, \.rdi, \.r8, \.r9, \.r10, \.r11, \.r12, \.r13, \.r14, \.r15,
        ]
        one.state.general[keyPath: paths[Int(number)]] = is64 ? value : value & 0xFFFF_FFFF
    }

    // MARK: Operands

    private func bytes(_ value: UInt64, _ count: Int) -> [UInt8] { Array(SystemLayout.bytes([value]).prefix(count)) }

    /// A general register that may be overwritten: not the stack's.
    private mutating func register() -> UInt8 { pick([0, 1, 2, 3, 5, 6, 7]) }

    /// Puts an operand into memory and its address into RBX: mostly a good one.
    private mutating func place(_ content: [UInt8]) {
        let address: UInt64
        switch random.below(16) {
        case 12: address = Layout.data + 0x1000 - random.below(UInt64(content.count))
        case 13: address = Layout.readOnly + 8 * random.below(16)
        case 14: address = Layout.data + 0x1000 + random.below(64)
        case 15 where is64: address = pick([0x8000_0000_0000, 0x7FFF_FFFF_FFFC, 0xFFFF_7FFF_FFFF_FFF8, 1 << 63])
        default: address = Layout.data + 4 * random.below(512) + (chance(4) ? random.below(4) : 0)
        }
        setRegister(3, address)
        let mapped = Layout.start..<(Layout.data + 0x1000), alsoMapped = Layout.readOnly..<Layout.end
        if mapped.contains(address) {
            one.memory.append((address, Array(content.prefix(Int(mapped.upperBound - address)))))
        } else if alsoMapped.contains(address) {
            one.memory.append((address, content))
        }
    }

    /// ModRM of an operand that is read: its value in a register, or in memory.
    private mutating func source(_ field: UInt8, _ value: UInt64, bytes count: Int, memory: Bool? = nil) -> [UInt8] {
        if memory ?? chance(2) {
            place(bytes(value, count))
            return [field << 3 | 3]
        }
        let number = register()
        setRegister(number, value)
        return [0xC0 | field << 3 | number]
    }

    /// ModRM of an operand that is written.
    private mutating func destination(_ field: UInt8, bytes count: Int) -> [UInt8] {
        if chance(2) {
            place(bytes(random.next(), count))
            return [field << 3 | 3]
        }
        return [0xC0 | field << 3 | register()]
    }

    /// A prefix for the operand's size, or none.
    private mutating func size() -> [UInt8] { pick(is64 ? [[], [0x66], [0x48]] : [[], [], [0x66]]) }

    private func bytes(ofSize prefix: [UInt8]) -> Int {
        prefix == [0x66] ? 2 : prefix == [0x48] ? 8 : 4
    }

    /// Puts words onto the stack, the first on its top.
    private mutating func stack(_ words: [UInt64], bytes count: Int) {
        one.memory.append((Layout.stack, words.flatMap { bytes($0, count) }))
    }

    private mutating func targetAddress(bytes count: Int = 8) -> UInt64 {
        if count == 2 { return Layout.lowTarget + 2 * random.below(64) }
        if chance(10) { return is64 ? pick([0x8000_0000_0000, 1 << 63, .max]) : 0xFFFF_FFF0 }
        return Layout.target + 2 * random.below(64)
    }

    private static let codes: [UInt16] = [0x08, 0x2B, 0x3B, 0x40, 0x68, 0x73, 0x78, 0x120]
    private static let stacks: [UInt16] = [0x10, 0x33, 0x80, 0x8B, 0, 3]

    // MARK: Instructions

    private mutating func code(_ kind: Kind) -> [UInt8] {
        switch kind {
        case .movFromControl, .movToCR0, .movToCR2, .movToCR3, .movToCR4, .movToCR8, .movToOther, .movFromDebug, .movToDebug:
            return controlRegister(kind)
        case .lgdt, .lidt: return tableLoad(kind)
        case .sgdt: return [0x0F, 0x01] + store(0, bytes: 10)
        case .sidt: return [0x0F, 0x01] + store(1, bytes: 10)
        case .lldt: return [0x0F, 0x00] + source(2, UInt64(selector(among: [0x98, 0xA8, 0x110, 0])), bytes: 2)
        case .ltr: return [0x0F, 0x00] + source(3, UInt64(selector(among: [0xB8, 0xC8, 0xF8, 0x18])), bytes: 2)
        case .sldt: return size() + [0x0F, 0x00] + destination(0, bytes: 2)
        case .str: return size() + [0x0F, 0x00] + destination(1, bytes: 2)
        case .lmsw: return [0x0F, 0x01] + source(6, random.next(), bytes: 2)
        case .smsw: return size() + [0x0F, 0x01] + destination(4, bytes: 2)
        case .clts:
            one.state.control.cr0 |= 8
            return [0x0F, 0x06]
        case .lar: return size() + [0x0F, 0x02] + source(register(), UInt64(selector()), bytes: 2)
        case .lsl: return size() + [0x0F, 0x03] + source(register(), UInt64(selector()), bytes: 2)
        case .verr: return [0x0F, 0x00] + source(4, UInt64(selector()), bytes: 2)
        case .verw: return [0x0F, 0x00] + source(5, UInt64(selector()), bytes: 2)
        case .invlpg: return [0x0F, 0x01] + source(7, 0, bytes: 1, memory: true)
        case .wbinvd: return [0x0F, 0x09]
        case .invd: return [0x0F, 0x08]
        case .rdmsr, .wrmsr: return modelSpecific(kind)
        case .swapgs: return [0x0F, 0x01, 0xF8]
        case .movToSegment:
            let number = UInt8(random.below(8))
            let wanted = number == 2 ? selector(among: [0x10, 0x80, 0x48, 0]) : selector()
            return size() + [0x8E] + source(number, UInt64(wanted), bytes: 2)
        case .movFromSegment: return size() + [0x8C] + destination(UInt8(random.below(8)), bytes: 2)
        case .popSegment, .pushSegment, .loadPointer: return segments(kind)
        case .iret, .farReturn, .farJump, .farCall: return farTransfer(kind)
        case .pushf: return (chance(3) ? [0x66] : []) + [0x9C]
        case .popf:
            let prefix: [UInt8] = chance(3) ? [0x66] : []
            stack([random.next() & ~0x100], bytes: 8)
            return prefix + [0x9D]
        case .cli: return [0xFA]
        case .sti: return [0xFB]
        case .software: return [0xCD, chance(3) ? UInt8(truncatingIfNeeded: random.next()) : pick([0x40, 0x41, 0x42, 0x43, 3, 13])]
        case .breakpoint: return [0xCC]
        case .syscall, .sysret, .sysenter, .sysexit: return systemCall(kind)
        case .undefined: return [0x0F, 0x0B]
        case .accessFlag: return [0x0F, 0x01, pick([0xCA, 0xCB])]
        case .segmentBase:
            let prefix: [UInt8] = is64 && chance(2) ? [0xF3, 0x48] : [0xF3]
            return prefix + [0x0F, 0xAE, 0xC0 | UInt8(random.below(4)) << 3 | register()]
        case .rdpmc: return [0x0F, 0x33]
        case .xgetbv: return [0x0F, 0x01, 0xD0]
        }
    }

    private mutating func store(_ field: UInt8, bytes count: Int) -> [UInt8] {
        place(bytes(random.next(), 8) + [0, 0])
        return [field << 3 | 3]
    }

    private mutating func tableLoad(_ kind: Kind) -> [UInt8] {
        let limit = chance(2) ? Layout.gdtLimit : UInt16(truncatingIfNeeded: random.next())
        place(bytes(UInt64(limit), 2) + bytes(canonical(), 8))
        return (chance(4) ? [0x66] : []) + [0x0F, 0x01, (kind == .lgdt ? 2 : 3) << 3 | 3]
    }

    private mutating func controlRegister(_ kind: Kind) -> [UInt8] {
        let number = register()
        func move(_ opcode: UInt8, _ field: UInt8) -> [UInt8] {
            (field > 7 ? [0x44] : []) + [0x0F, opcode, 0xC0 | (field & 7) << 3 | number]
        }
        switch kind {
        case .movFromControl:
            one.state.control.cr2 = canonical()
            return move(0x20, pick(is64 ? [0, 2, 3, 4, 8, 1, 5, 6, 7, 9] : [0, 2, 3, 4, 1, 5, 6, 7]))
        case .movToCR0:
            if chance(3) { one.state.control.cr0 |= 8 }
            setRegister(number, flip(one.state.control.cr0, in: 0x6005_002E))
            return move(0x22, 0)
        case .movToCR2:
            setRegister(number, integer())
            return move(0x22, 2)
        case .movToCR3:
            setRegister(number, flip(SystemLayout.tables, in: 0x18))
            return move(0x22, 3)
        case .movToCR4:
            setRegister(number, flip(one.state.control.cr4, in: 0x69F))
            return move(0x22, 4)
        case .movToCR8 where is64:
            setRegister(number, chance(4) ? integer() : random.below(18))
            return move(0x22, 8)
        case .movToCR8, .movToOther:
            return move(0x22, pick(is64 ? [1, 5, 6, 7, 9, 15] : [1, 5, 6, 7]))
        default:
            if chance(2) { one.state.control.cr4 |= 8 }
            if chance(8) { one.state.debug.dr7 |= 0x2000 }
            one.state.debug.address = SIMD4(integer(), integer(), integer(), integer())
            one.state.debug.dr6 = 0xFFFF_0FF0 | random.next() & 0xE00F
            setRegister(number, integer())
            return move(kind == .movToDebug ? 0x23 : 0x21, UInt8(random.below(8)))
        }
    }

    private mutating func modelSpecific(_ kind: Kind) -> [UInt8] {
        let index: UInt64 = pick([
            0x174, 0x175, 0x176, 0x277, 0xC000_0080, 0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084, 0xC000_0100,
            0xC000_0101, 0xC000_0102, 0xC000_0103, 0x10, 0x1B, 0x12345,
        ])
        var value = canonical()
        if index == 0xC000_0080 { value = flip(one.state.control.efer, in: 0x1D01) }
        if index == 0x277, !chance(4) { value = (0..<8).reduce(0) { all, _ in all << 8 | pick([0, 1, 4, 5, 6, 7]) } }
        setRegister(1, index | (chance(2) && is64 ? random.next() << 32 : 0))
        setRegister(0, value & 0xFFFF_FFFF | (chance(2) && is64 ? random.next() << 32 : 0))
        setRegister(2, value >> 32)
        return [0x0F, kind == .rdmsr ? 0x32 : 0x30]
    }

    private mutating func segments(_ kind: Kind) -> [UInt8] {
        let prefix = pick([[], [], [0x66]] as [[UInt8]])
        switch kind {
        case .pushSegment: return prefix + pick([[0x0F, 0xA0], [0x0F, 0xA8]] + (is64 ? [] : [[0x06], [0x0E], [0x16], [0x1E]]))
        case .popSegment:
            stack([UInt64(selector()) | random.next() << 16], bytes: 8)
            return prefix + pick([[0x0F, 0xA1], [0x0F, 0xA9]] + (is64 ? [] : [[0x07], [0x17], [0x1F]]))
        default:
            let prefix = size()
            place(bytes(integer(), bytes(ofSize: prefix)) + bytes(UInt64(selector()), 2))
            return prefix + pick([[0x0F, 0xB2], [0x0F, 0xB4], [0x0F, 0xB5]] + (is64 ? [] : [[0xC4], [0xC5]]))
                + [register() << 3 | 3]
        }
    }

    private mutating func farTransfer(_ kind: Kind) -> [UInt8] {
        let prefix = chance(2) && is64 ? [0x48] : size()
        let count = bytes(ofSize: prefix)
        let cs = UInt64(selector(among: Self.codes)), rip = targetAddress(bytes: count)
        switch kind {
        case .iret:
            one.state.general.rflags &= ~0x4000 | (chance(8) ? 0x4000 : 0)
            let flags = random.next() & (chance(4) ? ~0x100 : 0x24_7ED5)
            let ss = UInt64(selector(among: cs & 3 == 0 ? [0x10, 0x80, 0] : Self.stacks))
            stack([rip, cs, flags & ~0x2_0000, Layout.stack + 0x40, ss], bytes: count)
            return prefix + [0xCF]
        case .farReturn:
            let ss = UInt64(selector(among: Self.stacks))
            let skip = chance(2) ? 8 * random.below(4) : nil
            stack([rip, cs] + [UInt64](repeating: 0, count: Int(skip ?? 0) / count) + [Layout.stack + 0x40, ss], bytes: count)
            return prefix + (skip.map { [0xCA, UInt8($0), 0] } ?? [0xCB])
        default:
            let gates: [UInt16] = [0xD8, 0xE8, 0x140, 0x150]
            let selector = UInt64(chance(3) ? pick(gates) | UInt16(random.below(4)) : UInt16(cs))
            let isCall = kind == .farCall
            if !is64, chance(2) { return prefix + [isCall ? 0x9A : 0xEA] + bytes(rip, count) + bytes(selector, 2) }
            place(bytes(rip, count) + bytes(selector, 2))
            return prefix + [0xFF, (isCall ? 3 : 5) << 3 | 3]
        }
    }

    private mutating func systemCall(_ kind: Kind) -> [UInt8] {
        if chance(6) { one.state.control.efer &= ~1 }
        let prefix: [UInt8] = is64 && !chance(3) ? [0x48] : []
        switch kind {
        case .syscall: return [0x0F, 0x05]
        case .sysret:
            setRegister(1, targetAddress())
            setRegister(11, random.next() & ~0x100)
            return prefix + [0x0F, 0x07]
        case .sysenter: return [0x0F, 0x34]
        default:
            setRegister(1, canonical())
            setRegister(2, targetAddress())
            return prefix + [0x0F, 0x35]
        }
    }
}
