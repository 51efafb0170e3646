import DifferentialGuest
import Testing
import VMCore

/// Alignment checks, which processors make at CPL 3 where CR0.AM and RFLAGS.AC are set.
@Suite struct AlignmentTests {
    private static let check: UInt64 = 1 << 18
    /// Where RBX points.
    private static let operand = UInt64(DIFF_DATA + 0x1000 - CASE_DATA_BYTES) + 0x40

    /// Runs code of user mode in the soft engine.
    private func run(_ code: [UInt8], _ mode: DifferentialMachine.Mode = .long64, offset: UInt64 = 0, flags: UInt64 = check,
                     hasMask: Bool = true) throws -> DifferentialRecord {
        let model = try CPUModel(named: "x86-64-v2", timestamps: .hide, supported: SoftEngine.supportedFeatures)
        let machine = DifferentialMachine(try SoftEngine(memory: try DifferentialMachine.memory(), model: model),
                                          hasAVX: false, enablesAVX: false)
        machine.masksAlignment = hasMask
        var record = DifferentialRecord()
        record[Int(CASE_FX), UInt16.self] = 0x37F
        record[Int(CASE_FX) + 24, UInt32.self] = 0x1F80
        // Selectors of user mode's data, for what loads one.
        for i in stride(from: 0, to: Int(CASE_DATA_BYTES), by: 2) { record[Int(CASE_DATA) + i, UInt16.self] = 0x33 }
        record.setRegister(3, Self.operand + offset)
        record.setRegister(4, Self.operand + 0xC0)
        record[Int(CASE_FLAGS), UInt64.self] = 2 | flags
        return try machine.run([DifferentialCase(name: "", code: code, input: record)], mode)[0]
    }

    private static let noFault = UInt64.max

    /// What each operand's address has to be a multiple of, as measured on an Intel processor (Sapphire Rapids).
    private static let operands64: [(String, [UInt8], UInt64)] = [
        ("MOV AL, m", [0x8A, 0x03], 1), ("MOV AX, m", [0x66, 0x8B, 0x03], 2), ("MOV EAX, m", [0x8B, 0x03], 4),
        ("MOV RAX, m", [0x48, 0x8B, 0x03], 8), ("MOV m, EAX", [0x89, 0x03], 4), ("ADD m, EAX", [0x01, 0x03], 4),
        ("BT m, EAX", [0x0F, 0xA3, 0x03], 4), ("CMPXCHG8B", [0x0F, 0xC7, 0x0B], 8), ("MOVNTI", [0x0F, 0xC3, 0x03], 4),
        ("LODSW", [0x48, 0x89, 0xDE, 0x66, 0xAD], 2), ("REP MOVSB", [0x48, 0x89, 0xDF, 0x48, 0x89, 0xDE, 0xB1, 4, 0xF3, 0xA4], 1),
        ("REP STOSQ", [0x48, 0x89, 0xDF, 0xB1, 4, 0xF3, 0x48, 0xAB], 8), ("LAR", [0x0F, 0x02, 0x03], 2),
        ("PUSH RAX", [0x48, 0x89, 0xDC, 0x50], 8), ("PUSH AX", [0x48, 0x89, 0xDC, 0x66, 0x50], 2), ("POP RAX", [0x48, 0x89, 0xDC, 0x58], 8),
        ("PUSH FS", [0x48, 0x89, 0xDC, 0x0F, 0xA0], 8), ("POP FS", [0x48, 0x89, 0xDC, 0x0F, 0xA1], 2),
        ("ENTER", [0x48, 0x89, 0xDC, 0xC8, 8, 0, 0], 8), ("LEAVE", [0x48, 0x89, 0xDD, 0xC9], 8), ("LFS m16:32", [0x0F, 0xB4, 0x03], 4),
        ("FLD m32", [0xD9, 0x03], 4), ("FLD m64", [0xDD, 0x03], 8), ("FLD m80", [0xDB, 0x2B], 8), ("FILD m16", [0xDF, 0x03], 2),
        ("FSTP m80", [0xD9, 0xEE, 0xDB, 0x3B], 8), ("FNSTCW", [0xD9, 0x3B], 2), ("FNSTENV", [0xD9, 0x33], 4),
        ("FNSTENV of 16 bits", [0x66, 0xD9, 0x33], 2), ("FLDENV", [0xD9, 0x23], 4), ("FNSAVE", [0xDD, 0x33], 4),
        ("FRSTOR of 16 bits", [0x66, 0xDD, 0x23], 2), ("FXSAVE", [0x0F, 0xAE, 0x03], 4), ("STMXCSR", [0x0F, 0xAE, 0x1B], 4),
        ("MOVQ MM0, m", [0x0F, 0x6F, 0x03], 8), ("PUNPCKLBW MM0, m32", [0x0F, 0x60, 0x03], 4), ("MOVUPS", [0x0F, 0x10, 0x03], 1),
        ("MOVUPS to memory", [0x0F, 0x11, 0x03], 1), ("MOVAPS", [0x0F, 0x28, 0x03], 1), ("MOVSS", [0xF3, 0x0F, 0x10, 0x03], 4),
        ("MOVSD to memory", [0xF2, 0x0F, 0x11, 0x03], 8), ("PINSRW", [0x66, 0x0F, 0xC4, 0x03, 1], 2),
        ("PMOVZXBQ", [0x66, 0x0F, 0x38, 0x32, 0x03], 2), ("MASKMOVDQU", [0x48, 0x89, 0xDF, 0x66, 0x0F, 0xF7, 0xC1], 8),
        ("PCMPISTRI", [0x66, 0x0F, 0x3A, 0x63, 0x03, 0], 1), ("PREFETCHT0", [0x0F, 0x18, 0x0B], 1),
    ]
    private static let operands32: [(String, [UInt8], UInt64)] = [
        ("BOUND", [0x62, 0x03], 4), ("BOUND of 16 bits", [0x66, 0x62, 0x03], 2), ("LES", [0xC4, 0x03], 4), ("LES m16:16", [0x66, 0xC4, 0x03], 2),
        ("PUSH ES", [0x89, 0xDC, 0x06], 2), ("POP ES", [0x89, 0xDC, 0x07], 2), ("PUSHA", [0x89, 0xDC, 0x60], 4),
        ("POPA of 16 bits", [0x89, 0xDC, 0x66, 0x61], 2), ("ARPL", [0x63, 0x03], 2), ("POPF", [0x89, 0xDC, 0x9D], 4),
    ]

    @Test(arguments: DifferentialMachine.Mode.allCases)
    func operandsAreCheckedByTheirType(_ mode: DifferentialMachine.Mode) throws {
        for (name, code, alignment) in mode == .long64 ? Self.operands64 : Self.operands32 {
            for offset in 0..<16 as Range<UInt64> {
                let record = try run(code, mode, offset: offset)
                let isMisaligned = offset % alignment != 0
                #expect((record.vector == 17) == isMisaligned, "\(name) at \(offset): \(record.vector)")
                guard isMisaligned else { continue }
                #expect(record[Int(CASE_ERROR), UInt64.self] == 0)
                #expect(record[Int(CASE_FAULT_FLAGS), UInt64.self] & Self.check != 0)
            }
        }
    }

    @Test func misalignedVectorsStillRaiseGP() throws {
        #expect(try run([0x0F, 0x28, 0x03], offset: 8).vector == 13)
        #expect(try run([0x0F, 0xAE, 0x03], offset: 4).vector == 13)
    }

    @Test func eachOfItsConditionsIsNeeded() throws {
        let load: [UInt8] = [0x8B, 0x03]
        #expect(try run(load, offset: 1).vector == 17)
        #expect(try run(load, offset: 1, flags: 0).vector == Self.noFault)
        #expect(try run(load, offset: 1, hasMask: false).vector == Self.noFault)
        // MOV EAX, [0x5001] at CPL 0
        let machine = try SoftMachine([0xA1, 0x01, 0x50, 0, 0] + SoftMachine.report(1))
        try machine.enterProtectedMode()
        machine.handleProtected(17, at: 0x800, SoftMachine.report(2))
        var state = try machine.engine.state()
        state.control.cr0 |= Self.check
        state.general.rflags |= Self.check
        try machine.engine.setState(state)
        #expect(try machine.report() == 1)
    }

    /// Translations that were made before the flag was set don't serve after it.
    @Test func checksFollowPOPF() throws {
        // MOV EAX, [RBX+1]; PUSHF; OR dword [RSP], AC; POPF; MOV ECX, [RBX]; MOV ECX, [RBX+1]
        let on = try run([0x8B, 0x43, 1, 0x9C, 0x81, 0x0C, 0x24, 0, 0, 4, 0, 0x9D, 0x8B, 0x0B, 0x8B, 0x4B, 1], flags: 0)
        #expect(on.vector == 17)
        #expect(on[Int(CASE_RIP), UInt64.self] == DifferentialMachine.code(0) + 14)
        // PUSHF; AND dword [RSP], ~AC; POPF; MOV EAX, [RBX+1]
        #expect(try run([0x9C, 0x81, 0x24, 0x24, 0xFF, 0xFF, 0xFB, 0xFF, 0x9D, 0x8B, 0x43, 1]).vector == Self.noFault)
    }

    @Test func checksFollowIRET() throws {
        // PUSH SS; PUSH RBX; PUSHF; OR dword [RSP], AC; PUSH CS; LEA RAX, [behind IRETQ]; PUSH RAX; IRETQ; MOV ECX, [RBX+1]
        let code: [UInt8] = [0x6A, 0x33, 0x53, 0x9C, 0x81, 0x0C, 0x24, 0, 0, 4, 0, 0x6A, 0x2B, 0x48, 0x8D, 0x05, 3, 0, 0, 0, 0x50, 0x48, 0xCF,
                             0x8B, 0x4B, 1]
        let record = try run(code, flags: 0)
        #expect(record.vector == 17)
        #expect(record[Int(CASE_RIP), UInt64.self] == DifferentialMachine.code(0) + 23)
    }

    /// The elements before the misaligned one are done, and a fault leaves the rest to do.
    @Test func stringsAreCheckedByElement() throws {
        // MOV RDI, RBX; MOV RSI, RBX; MOV ECX, 3; REP MOVSD
        let code: [UInt8] = [0x48, 0x89, 0xDF, 0x48, 0x8D, 0x73, 0x20, 0xB9, 3, 0, 0, 0, 0xF3, 0xA5]
        #expect(try run(code).register(1) == 0)
        let record = try run(code, offset: 2)
        #expect(record.vector == 17)
        #expect(record.register(1) == 3)
    }

    /// An alignment check whose delivery to CPL 3 pushes to a misaligned stack raises another, for ever: a guest stopped its host so
    /// (CVE-2015-5307), and guest 584445 of `make fuzz` in paged32User the monitor.
    @Test func checksThatFollowOneAnotherForEverLeaveTheMonitorInCharge() throws {
        // MOV EAX, [0x5001]
        let machine = try SoftMachine([0xA1, 0x01, 0x50, 0, 0] + SoftMachine.report(1))
        try machine.enterProtectedMode()
        machine.handleProtected(17, at: 0x800, SoftMachine.report(2))
        // Code and data of CPL 3, to which the gate leads.
        machine.engine.memory.write([0xFF, 0xFF, 0, 0, 0, 0xFB, 0xCF, 0, 0xFF, 0xFF, 0, 0, 0, 0xF3, 0xCF, 0], at: .init(0x4018))
        machine.engine.memory.write([0x1B], at: .init(0x6000 + 8 * 17 + 2))
        var state = try machine.engine.state()
        state.cs = SegmentRegister(selector: 0x1B, limit: .max, attributes: 0xCFB)
        let data = SegmentRegister(selector: 0x23, limit: .max, attributes: 0xCF3)
        (state.ss, state.ds) = (data, data)
        state.gdtr.limit = 0x27
        state.control.cr0 |= Self.check
        // The report is a port write at CPL 3.
        state.general.rflags |= Self.check | 3 << 12
        state.general.rsp = 0x8002
        try machine.engine.setState(state)
        for stop in [StopCondition.breakpoint(SoftMachine.start), .none, .step, .window, .breakpoint(0x800), .breakpoint(SoftMachine.start)] {
            machine.engine.armKick(at: hostTime() + .milliseconds(20))
            guard case .kicked = try machine.engine.enter(until: stop) else { throw SoftMachine.Late() }
        }
        var stuck = try machine.engine.state()
        #expect(stuck.general.rip == SoftMachine.start && stuck.general.rsp == 0x8002)
        #expect(stuck.events.exceptionPending && stuck.events.exceptionVector == 17)
        #expect(machine.engine.retired == InstructionCount(0))
        #expect(!machine.engine.isInterruptible)
        // It is delivered as soon as it can be.
        stuck.general.rsp = 0x8000
        try machine.engine.setState(stuck)
        #expect(try machine.report() == 2)
        #expect(machine.engine.memory.load(.init(0x7FF4), as: UInt32.self) == UInt32(SoftMachine.start))
    }

    /// Whoever watches is told which handler is entered, and not of the exception whose delivery failed.
    @Test func aDoubleFaultIsToldAsOne() throws {
        // MOV EAX, [0x5000] from a segment that ends before; there is no handler but that of double faults.
        let machine = try SoftMachine([0xA1, 0, 0x50, 0, 0])
        try machine.enterProtectedMode()
        machine.handleProtected(8, at: 0x800, SoftMachine.report(2))
        var state = try machine.engine.state()
        state.ds = SegmentRegister(selector: 0x10, limit: 0xFFF, attributes: 0xC93 & ~0x800)
        try machine.engine.setState(state)
        var entered: [UInt8] = []
        machine.engine.watch = InstructionWatch(begins: { _ in }, ends: { _ in }, enters: { vector, _ in entered.append(vector) })
        #expect(try machine.report() == 2)
        #expect(entered == [8])
    }
}
