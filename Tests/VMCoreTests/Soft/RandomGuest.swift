import VMCore

/// A guest made of random bytes: its code, its page tables and half of its descriptors.
///
/// What takes a guest on after a fault is sound: gates, handlers, the task's stacks, and the mapping of the pages that these
/// lie in. Each handler goes to a random place of the code, in the guest's mode, so that one guest meets many faults.
struct RandomGuest {
    enum Mode: CaseIterable {
        case real, virtual8086, protected16, protected32, protected32User, paged32, paged32User, extended32, compatibility, long,
            longUser

        var isPaged32: Bool { self == .paged32 || self == .paged32User }
        var isPaged: Bool { isPaged32 || self == .extended32 || isLong }
        var isLong: Bool { [.compatibility, .long, .longUser].contains(self) }
        var isUser: Bool { [.virtual8086, .protected32User, .paged32User, .longUser].contains(self) }
        /// Whether segments are paragraphs.
        var isParagraphs: Bool { self == .real || self == .virtual8086 }
    }

    // Where things lie, in physical and in linear memory.
    private static let code: UInt64 = 0x8000, codeBytes: UInt64 = 0x4000
    private static let pageTables: UInt64 = 0x10000
    private static let descriptors: UInt64 = 0x20000
    private static let gates: UInt64 = 0x21000
    private static let task: UInt64 = 0x22000
    private static let handlers: UInt64 = 0x23000, handlerBytes: UInt64 = 0x80
    private static let soundPages: Range<UInt64> = 0x20..<0x26
    /// The end of the stack that faults in user mode, and all in long mode, are delivered on.
    private static let faultStack: UInt64 = 0x25000
    /// Where handlers make the frame that they return through.
    private static let returnStack: UInt64 = 0x26000
    /// The first pages, which the last page table maps.
    private static let mappedPages: UInt64 = 64

    // Selectors of sound descriptors.
    private static let handlerCode: UInt64 = 0x08, kernelData: UInt64 = 0x10, kernelCode: UInt64 = 0x18
    private static let taskSegment: UInt64 = 0x20, userCode: UInt64 = 0x33, userData: UInt64 = 0x3B

    let mode: Mode
    private let hasAVX: Bool
    private let memory: GuestMemory
    private var random: SeededGenerator

    /// - Parameters:
    ///   - seed: makes the same guest each time, in memory that is all zeros.
    ///   - hasAVX: whether half of the guests have it enabled.
    init(_ mode: Mode, seed: UInt64, hasAVX: Bool, memory: GuestMemory) {
        self.mode = mode
        self.hasAVX = hasAVX
        self.memory = memory
        random = SeededGenerator(seed: seed)
    }

    /// Whether an address is one of the handlers', which aren't random.
    static func isHandler(_ address: UInt64) -> Bool { address &- handlers < 32 * handlerBytes }

    /// Fills memory, and returns the state that the guest starts in.
    mutating func make() -> CPUState {
        fillCode()
        if mode.isPaged { fillPageTables() }
        fillDescriptors()
        fillGates()
        for vector in 0..<32 as Range<UInt64> { put(handler(), at: Self.handlers + Self.handlerBytes * vector) }
        for _ in 0..<8 { put(bytes(random.next(), 8), at: random.next(below: 0x20000)) }
        return state()
    }

    /// A condition that a run stops at.
    mutating func stopCondition() -> StopCondition {
        switch random.next(below: 8) {
        case 0: .step
        case 1: .window
        case 2: .breakpoint(Self.code + random.next(below: Self.codeBytes))
        default: .none
        }
    }

    /// The answer to an exit.
    mutating func answer(_ exit: Exit) -> Exit {
        var answer = exit
        answer.value = random.next()
        if [.msrRead, .msrWrite].contains(exit.identity.kind), random.chance(1, in: 4) {
            answer.identity.flags |= EventIdentity.faulted
        }
        return answer
    }

    mutating func vector() -> UInt8 { UInt8(32 + random.next(below: 224)) }

    // MARK: Memory

    private func bytes(_ value: UInt64, _ count: Int) -> [UInt8] {
        (0..<count).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) }
    }

    private func put(_ bytes: [UInt8], at address: UInt64) { memory.write(bytes, at: .init(address)) }

    private mutating func fillCode() {
        var words = [UInt64](repeating: 0, count: Int(Self.codeBytes) / 8)
        for i in words.indices { words[i] = random.next() }
        // Instructions with the usual escapes and prefixes come up more often than by chance.
        words.withUnsafeMutableBytes { code in
            var place = 0
            while place < code.count - 3 {
                let start = Self.starts[Int(random.next(below: UInt64(Self.starts.count)))]
                for (i, byte) in start.enumerated() { code[place + i] = byte }
                place += 1 + Int(random.next(below: 24))
            }
            memory.write(UnsafeRawBufferPointer(code), at: .init(Self.code))
        }
    }

    private static let starts: [[UInt8]] = [
        [0x0F], [0x66, 0x0F], [0xF3, 0x0F], [0xF2, 0x0F], [0x0F, 0x38], [0x66, 0x0F, 0x38], [0x66, 0x0F, 0x3A], [0xC4, 0xE2],
        [0xC5], [0xD9], [0xDB], [0xDD], [0xF3], [0x48], [0x66], [0x67], [0xF0], [0x0F, 0xAE], [0x0F, 0x01],
        [0xF6], [0xF7], [0x0F, 0x00],
    ]

    /// Page tables are sound down to the table of the first pages. Most of these are where they seem to be; the rest is random.
    private mutating func fillPageTables() {
        let entryBytes: UInt64 = mode.isPaged32 ? 4 : 8
        let levels: UInt64 = mode.isPaged32 ? 2 : mode == .extended32 ? 3 : 4
        func table(_ level: UInt64, _ entries: [UInt64]) {
            put(entries.flatMap { bytes($0, Int(entryBytes)) }, at: Self.pageTables + 0x1000 * level)
        }
        for level in 0..<(levels - 1) {
            // The four entries of PAE's first table have no rights, and most of their bits are reserved.
            let isFirstOfThree = levels == 3 && level == 0
            var entries = [Self.pageTables + 0x1000 * (level + 1) | (isFirstOfThree ? 1 : 7)]
            for _ in 1..<(isFirstOfThree ? 4 : 8) {
                var entry = Self.pageTables + 0x1000 * random.next(below: levels) | random.next(below: 0x200)
                if isFirstOfThree { entry &= ~0x1E6 } else if random.chance(1, in: 8) { entry = random.next() }
                entries.append(entry)
            }
            table(level, entries)
        }
        var entries: [UInt64] = []
        for page in 0..<Self.mappedPages {
            if Self.soundPages.contains(page) {
                // No user mode, and not to be written where nothing has to be.
                entries.append(page << 12 | (page < 0x22 || page == 0x23 ? 1 : 3))
                continue
            }
            var entry = page << 12 | 7 | random.next(below: 0x200) & 0x178
            switch random.next(below: 32) {
            case 0: entry = random.next()
            case 1: entry = random.next(below: Self.mappedPages) << 12 | random.next(below: 0x200)
            case 2: entry &= ~(1 << random.next(below: 3))
            case 3 where entryBytes == 8: entry |= 1 << 63
            default: break
            }
            entries.append(entry)
        }
        table(levels - 1, entries)
    }

    private mutating func fillDescriptors() {
        // Of the rest half are code and data segments of all kinds.
        var table = (0..<32).map { _ in
            random.chance(1, in: 2) ? 0x00CF_9B00_0000_FFFF ^ random.next() & 0x00F0_7F00 << 32 : random.next()
        }
        let code: UInt64 = switch mode {
        case .long, .longUser: 0x00AF_9B00_0000_FFFF
        case .protected16: 0x008F_9B00_0000_FFFF
        default: 0x00CF_9B00_0000_FFFF
        }
        table[0] = 0
        table[Int(Self.handlerCode) / 8] = mode.isLong ? 0x00AF_9B00_0000_FFFF : 0x00CF_9B00_0000_FFFF
        table[Int(Self.kernelData) / 8] = 0x00CF_9300_0000_FFFF
        table[Int(Self.kernelCode) / 8] = code
        table[Int(Self.userCode) / 8] = code | 0x60 << 40
        table[Int(Self.userData) / 8] = 0x00CF_F300_0000_FFFF
        put(table.flatMap { bytes($0, 8) }, at: Self.descriptors)
        // RSP0 or ESP0; SS0; IST1. Ports are allowed where the segment's limit lets the map in.
        put(bytes(Self.faultStack, 8), at: Self.task + 4)
        if !mode.isLong { put(bytes(Self.kernelData, 8), at: Self.task + 8) }
        put(bytes(Self.faultStack, 8), at: Self.task + 0x24)
        put(bytes(0x68, 2), at: Self.task + 0x66)
    }

    /// Gates to the handlers, a vector of 32 and more to the one that its low bits name. Few gates are random.
    private mutating func fillGates() {
        var table: [UInt8] = []
        for vector in 0..<256 as Range<UInt64> {
            let target = Self.handlers + Self.handlerBytes * (vector & 31)
            let isSound = vector == 8 || random.chance(31, in: 32)
            // At times user mode may use it, and at times it leaves interrupts on.
            let kind: UInt64 = 0x8E00 | random.next(below: 4) >> 1 * 0x6000 | random.next(below: 2) << 8
            let gate = kind << 32 | Self.handlerCode << 16 | target & 0xFFFF | (target >> 16) << 48
            if mode == .real {
                let entry = target & 0xFFF | (Self.handlers >> 4) << 16
                table += bytes(isSound ? entry : random.next(), 4)
            } else if mode.isLong {
                table += bytes(isSound ? gate | 1 << 32 : random.next(), 8) + bytes(isSound ? 0 : random.next(), 8)
            } else {
                table += bytes(isSound ? gate : random.next(), 8)
            }
        }
        put(table, at: Self.gates)
    }

    // MARK: Handlers

    /// Code that makes a frame on a stack of its own, and returns through it to the random code.
    private mutating func handler() -> [UInt8] {
        let wide = mode == .real ? 2 : 4
        func load(_ value: UInt64) -> [UInt8] { [0xB8] + bytes(value, wide) }  // MOV EAX, value
        func push(_ value: UInt64) -> [UInt8] { [0x68] + bytes(value, wide) }
        let flags = self.flags()
        let pointer = random.next() & 0x1_FFF8
        if mode == .real {
            return load(Self.handlers >> 4) + [0x8E, 0xD0, 0xBC, 0xF0, 0x2F]  // MOV SS, AX; MOV SP, 0x2FF0
                + push(flags & 0xFFFF) + push(Self.code >> 4) + push(offset()) + load(random.next()) + [0xCF]
        }
        var code = load(Self.kernelData) + [0x8E, 0xD0]  // MOV SS, EAX
        code += mode.isLong ? [0x48, 0xC7, 0xC4] : [0xBC]  // MOV RSP or ESP, value
        code += bytes(Self.returnStack, 4)
        let data = mode.isUser ? Self.userData : Self.kernelData
        code += load(data) + [0x8E, 0xD8, 0x8E, 0xC0]  // MOV DS, EAX; MOV ES, EAX
        if mode == .virtual8086 {
            for _ in 0..<4 { code += push(random.next(below: 0x2000)) }  // GS, FS, DS, ES
            code += push(random.next(below: 0x1000)) + push(pointer) + push(flags | 1 << 17) + push(Self.code >> 4)
        } else {
            code += push(data) + push(pointer) + push(flags) + push(mode.isUser ? Self.userCode : Self.kernelCode)
        }
        code += push(offset()) + load(random.next())
        return code + (mode.isLong ? [0x48, 0xCF] : [0xCF])  // IRETQ, IRETD
    }

    /// A random place in the code, as an offset in the code segment.
    private mutating func offset() -> UInt64 { (mode.isParagraphs ? 0 : Self.code) + random.next(below: Self.codeBytes) }

    private mutating func flags() -> UInt64 {
        // A nested task's return is a task switch, and those the engine lacks.
        random.next() & 0x24_0FD7 & ~(random.chance(7, in: 8) ? RFlags.trap : 0) | 2 | (mode == .virtual8086 ? 0x3000 : 0)
    }

    // MARK: State

    private mutating func segment(_ attributes: UInt16) -> SegmentRegister {
        var segment = SegmentRegister(
            selector: UInt16(truncatingIfNeeded: random.next()) & 0xFB,
            base: random.chance(3, in: 4) ? 0 : random.next() & 0xFFFF_FFFF,
            limit: random.chance(3, in: 4) ? .max : UInt32(truncatingIfNeeded: random.next()), attributes: attributes)
        if mode == .virtual8086 {
            segment.base = UInt64(segment.selector) << 4
            segment.limit = 0xFFFF
        }
        return segment
    }

    private mutating func state() -> CPUState {
        var state = CPUState.reset()
        var g = GeneralRegisters()
        for path in [\GeneralRegisters.rax, \.rbx, \.rcx, \.rdx, \.rsi, \.rdi, \.rsp, \.rbp,
                     \.r8, \.r9, \.r10, \.r11, \.r12, \.r13, \.r14, \.r15] {
            g[keyPath: path] = random.chance(1, in: 3) ? random.next() : random.next() & 0x1_FFFF
        }
        // The kernel's own faults are delivered on its stack, and most of these lie in mapped memory.
        if random.chance(7, in: 8) { g.rsp &= 0x1_FFFF }
        g.rip = offset()
        g.rflags = flags()
        let user: UInt16 = mode.isUser ? 0x60 : 0
        var code: UInt16 = 0xC9B | user, data: UInt16 = 0xC93 | user
        // Mostly without CR0.EM and CR0.TS, so that x87 and vector instructions execute.
        state.control.cr0 = 0x31 | random.next() & 0x5_000E & (random.chance(1, in: 4) ? .max : 0x5_0002)
        state.control.cr4 = random.next() & 0x6D8
        state.control.cr3 = Self.pageTables
        if mode.isPaged { state.control.cr0 |= 1 << 31 }
        switch mode {
        case .real:
            state.control.cr0 &= ~1
            (code, data) = (0x9B, 0x93)
        case .virtual8086:
            g.rflags |= 1 << 17
            (code, data) = (0xF3, 0xF3)
        case .protected16: (code, data) = (0x9B, 0x93)
        case .protected32, .protected32User, .paged32, .paged32User: break
        case .extended32:
            state.control.cr4 |= 0x20
            state.control.efer = random.next() & 0x800
        case .compatibility, .long, .longUser:
            state.control.cr4 |= 0x20
            state.control.efer = 0xD01
            if mode != .compatibility { code = 0xA9B | user }
        }
        state.general = g
        for path in [\CPUState.ss, \.ds, \.es, \.fs, \.gs] { state[keyPath: path] = segment(data) }
        if mode.isParagraphs {
            state.cs = SegmentRegister(selector: UInt16(Self.code >> 4), base: Self.code, limit: 0xFFFF, attributes: code)
        } else {
            let selector = UInt16(mode.isUser ? Self.userCode : Self.kernelCode)
            state.cs = SegmentRegister(selector: selector, limit: .max, attributes: code)
            state.ss.selector = UInt16(mode.isUser ? Self.userData : Self.kernelData)
        }
        state.tr = SegmentRegister(selector: UInt16(Self.taskSegment), base: Self.task,
                                   limit: random.chance(1, in: 2) ? 0x67 : 0xFFF, attributes: 0x8B)
        state.gdtr = DescriptorTable(base: Self.descriptors, limit: UInt16(truncatingIfNeeded: random.next()) | 0xFF)
        state.idtr = DescriptorTable(base: Self.gates, limit: 0xFFF)
        // SYSCALL and SYSENTER go to a handler.
        state.msrs[0] = Self.handlerCode
        state.msrs[1] = Self.faultStack
        state.msrs[2] = Self.handlers
        state.msrs[4] = Self.handlerCode << 32
        state.msrs[5] = Self.handlers
        state.msrs[6] = Self.handlers
        state.floatingPoint.mxcsr = UInt32(truncatingIfNeeded: random.next()) & 0xFFFF
        state.floatingPoint.controlWord = UInt16(truncatingIfNeeded: random.next()) & 0x1F3F | 0x40
        state.floatingPoint.tags = UInt8(truncatingIfNeeded: random.next())
        state.floatingPoint.st = (0..<80).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        state.floatingPoint.xmm = (0..<256).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        // Drawn on every host, so that a seed is the same guest but for this.
        let upper = (0..<256).map { _ in UInt8(truncatingIfNeeded: random.next()) }
        if random.chance(1, in: 2), hasAVX {
            state.control.cr4 |= 1 << 18  // OSXSAVE
            state.control.xcr0 = 7
            state.floatingPoint.ymmHigh = upper
        }
        return state
    }
}
