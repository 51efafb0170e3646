import Testing
import VMCore

/// The soft engine stops and is watched at the very instruction.
@Suite struct InstructionTests {
    /// INC AX; ADD BX, AX; JMP to the start: the count gives every register.
    private static let loop: [UInt8] = [0x40, 0x01, 0xC3, 0xEB, 0xFB]

    @Test(arguments: [1, 2, 3, 4, 63, 64, 65, 1000, 12_345, 300_000])
    func aKickComesAtItsInstruction(count: UInt64) throws {
        let engine = try SoftMachine(Self.loop).engine
        engine.armKick(atInstruction: InstructionCount(count))
        guard case .kicked = try engine.enter(until: .none) else {
            Issue.record("no kick")
            return
        }
        #expect(engine.retired == InstructionCount(count))
        let state = try engine.state()
        #expect(state.general.rax & 0xFFFF == (count + 2) / 3 & 0xFFFF)
        #expect(state.general.rip == SoftMachine.start + [0, 1, 3][Int(count % 3)])
    }

    @Test func aKickComesOnce() throws {
        let engine = try SoftMachine(Self.loop).engine
        engine.armKick(atInstruction: InstructionCount(10))
        _ = try engine.enter(until: .none)
        engine.armKick(at: hostTime() + .milliseconds(1))
        guard case .kicked = try engine.enter(until: .none) else {
            Issue.record("no kick")
            return
        }
        #expect(try #require(engine.retired) > InstructionCount(1000))
    }

    /// A kick keeps, but an arrival that gives way to one is passed over for good.
    @Test func anArrivalComesBeforeAKick() throws {
        let engine = try SoftMachine(Self.loop).engine
        let add = StopCondition.breakpoint(SoftMachine.start + 1)
        engine.armKick(atInstruction: InstructionCount(4))
        var met: [String] = []
        for _ in 1...4 {
            let arrival = try engine.enter(until: add)
            met.append("\(arrival) \(try #require(engine.retired).rawValue)")
        }
        #expect(met == ["debug 1", "debug 4", "kicked 4", "debug 7"])
    }

    /// A timeline goes back by replacing pages: code that was executed before isn't executed again in its old form.
    @Test func codeInAReplacedPageIsDecodedAnew() throws {
        let machine = try SoftMachine(SoftMachine.report(1))
        let engine = machine.engine
        let start = try engine.state()
        let log = try WriteLog(engine: engine), restorer = try log.follow()
        #expect(try machine.report() == 1)
        let code = GuestPhysicalAddress(SoftMachine.start)
        var page = try #require(engine.memory.read(code, count: pageSize))
        page.replaceSubrange(0..<4, with: SoftMachine.report(2))
        withExtendedLifetime(log) {
            page.withUnsafeBytes { restorer.setPages([(Int(SoftMachine.start) / pageSize, $0)]) }
        }
        try engine.setState(start)
        #expect(try machine.report() == 2)
    }

    /// A branch that lies beyond CS's limit isn't part of the block before it, which ends all the same.
    @Test func aBlockEndsBeforeABranchBeyondTheLimit() throws {
        // INC CX; INC CX; JMP to itself, of which only the first byte is within the limit
        let machine = try SoftMachine([0x41, 0x41, 0xEB, 0xFE])
        machine.handle(13, at: 0x800, SoftMachine.report(2))
        var state = try machine.engine.state()
        state.cs.limit = UInt32(SoftMachine.start) + 2
        try machine.engine.setState(state)
        #expect(try machine.report() == 2)
        let after = try machine.engine.state()
        #expect(after.general.rcx == state.general.rcx + 2)
        let pushed = machine.engine.memory.load(.init(after.ss.base + after.general.rsp & 0xFFFF), as: UInt16.self)
        #expect(pushed.map(UInt64.init) == SoftMachine.start + 2)
    }

    @Test func aRepeatedStringInstructionIsOne() throws {
        // MOV CX, 5000; MOV DI, 0x2000; REP STOSB; report
        let machine = try SoftMachine([0xB9, 0x88, 0x13, 0xBF, 0x00, 0x20, 0xF3, 0xAA] + SoftMachine.report(1))
        machine.engine.armKick(atInstruction: InstructionCount(3))
        guard case .kicked = try machine.engine.enter(until: .none) else {
            Issue.record("no kick")
            return
        }
        #expect(try machine.engine.state().general.rcx == 0)
        #expect(try machine.engine.state().general.rip == SoftMachine.start + 8)
    }

    /// The count since an exit begins when the exit's instruction is finished, whichever kind it is.
    @Test func countsBeginAfterAnExit() throws {
        // NOP; IN AL, 0x60; NOP; NOP; OUT 0x80, AL; NOP; report
        let machine = try SoftMachine([0x90, 0xE4, 0x60, 0x90, 0x90, 0xE6, 0x80, 0x90] + SoftMachine.report(1))
        let engine = machine.engine
        guard case .exit(var exit) = try engine.enter(until: .none) else {
            Issue.record("no exit")
            return
        }
        exit.value = 7
        try engine.answer(exit)
        #expect(try engine.settle() == nil)
        #expect(engine.retiredSinceExit == InstructionCount(0) && engine.retired == InstructionCount(2))
        guard case .exit = try engine.enter(until: .none) else {
            Issue.record("no exit")
            return
        }
        #expect(try engine.settle() == nil)
        #expect(engine.retiredSinceExit == InstructionCount(0) && engine.retired == InstructionCount(5))
        _ = try engine.enter(until: .step)
        #expect(engine.retiredSinceExit == InstructionCount(1))
    }

    @Test func anExitThatNobodyAnswersIsMadeOnce() throws {
        // IN AL, 0x60; INC CX; report
        let machine = try SoftMachine([0xE4, 0x60, 0x41] + SoftMachine.report(1))
        guard case .exit = try machine.engine.enter(until: .none) else {
            Issue.record("no exit")
            return
        }
        #expect(try machine.engine.settle() == nil)
        #expect(try machine.report() == 1)
        #expect(try machine.engine.state().general.rcx == 1)
    }

    // MARK: The guest's breakpoints

    /// Runs `code` with DR0 and DR7 as given and a handler of #DB that reports 2; returns what was reported and DR6.
    private func debug(_ address: UInt32, _ control: UInt32, _ code: [UInt8]) throws
        -> (report: UInt64, state: CPUState, start: UInt64) {
        let setUp = SoftMachine.setDebug(0, address) + SoftMachine.setDebug(7, control)
        let machine = try SoftMachine(setUp + code + SoftMachine.report(1))
        machine.handle(1, at: 0x3000, SoftMachine.report(2))
        let report = try machine.report()
        return (report, try machine.engine.state(), SoftMachine.start + UInt64(setUp.count))
    }

    @Test func aBreakpointOnAnInstructionFaultsBeforeIt() throws {
        // NOP; INC CX; INC CX, with the breakpoint on the second INC
        let address = UInt32(SoftMachine.start) + 18 + 2
        let (report, state, _) = try debug(address, 1, [0x90, 0x41, 0x41])
        #expect(report == 2)
        #expect(state.general.rcx == 1)
        #expect(state.debug.dr6 & 0xF == 1)
    }

    @Test func aBreakpointOnDataTrapsAfterTheWrite() throws {
        // MOV BYTE [0x5002], 9; INC CX. DR7: write, 4 bytes.
        let (report, state, _) = try debug(0x5000, 1 | 1 << 16 | 3 << 18, [0xC6, 0x06, 0x02, 0x50, 0x09, 0x41])
        #expect(report == 2)
        #expect(state.general.rcx == 0)
        #expect(state.debug.dr6 & 0xF == 1)
    }

    @Test(arguments: [(1, 1), (3, 2)] as [(UInt32, UInt64)])
    func readsMeetBreakpointsOnReads(kind: UInt32, report: UInt64) throws {
        // MOV AL, [0x5000]
        #expect(try debug(0x5000, 1 | kind << 16, [0xA0, 0x00, 0x50]).report == report)
    }

    @Test func neighboursDoNotMeetABreakpoint() throws {
        #expect(try debug(0x5000, 1 | 1 << 16 | 3 << 18, [0xC6, 0x06, 0x04, 0x50, 0x09]).report == 1)
        #expect(try debug(0x5000, 1 | 1 << 16 | 3 << 18, [0xC6, 0x06, 0xFF, 0x4F, 0x09]).report == 1)
    }

    // MARK: Watching

    @Test func theWatchSeesEachInstructionAndWhatItChanged() throws {
        // MOV CX, 3; PUSH CX; MOV [0x5000], CX; report
        let machine = try SoftMachine([0xB9, 0x03, 0x00, 0x51, 0x89, 0x0E, 0x00, 0x50] + SoftMachine.report(1))
        let seen = Seen()
        machine.engine.watch = InstructionWatch(
            begins: { _ in },
            ends: { view in
                var changed: [Int] = []
                view.forEachChangedRegister { number, _ in changed.append(number) }
                var writes: [UInt64] = []
                view.forEachWrite { address, bytes in writes.append(address.rawValue << 8 | UInt64(bytes[0])) }
                seen.lines.append(Seen.Line(address: view.address, changed: changed, writes: writes))
            },
            enters: { _, _ in })
        let stack = try machine.engine.state().general.rsp - 2
        _ = try machine.report()
        #expect(seen.lines == [
            Seen.Line(address: 0x1000, changed: [1], writes: []),
            Seen.Line(address: 0x1003, changed: [4], writes: [stack << 8 | 3]),
            Seen.Line(address: 0x1004, changed: [], writes: [0x5000 << 8 | 3]),
            Seen.Line(address: 0x1008, changed: [0], writes: []),
            Seen.Line(address: 0x100A, changed: [], writes: []),
        ])
    }

    private final class Seen {
        struct Line: Equatable {
            var address: UInt64
            var changed: [Int]
            var writes: [UInt64]
        }
        var lines: [Line] = []
    }

    @Test func theWatchSeesWhatEnters() throws {
        // INT 0x40 is an instruction; the divide error is none.
        let machine = try SoftMachine([0x31, 0xC0, 0xF6, 0xF0])  // XOR AX, AX; DIV AL
        machine.handle(0, at: 0x3000, SoftMachine.report(5))
        var entered: [UInt8] = []
        var instructions = 0
        machine.engine.watch = InstructionWatch(
            begins: { _ in }, ends: { _ in instructions += 1 }, enters: { vector, _ in entered.append(vector) })
        #expect(try machine.report() == 5)
        #expect(entered == [0])
        #expect(instructions == 3)
    }

    /// The trap after a single step pushes its frame onto the instruction's own code: that is no change by the instruction. A guest
    /// of `make fuzz` ended the monitor so, after one whose last access to memory had many instructions behind it.
    @Test func aTrapsFrameMayLieOnTheCodeThatItFollows() throws {
        // MOV [0x3000], AX; 30 times INC AX; JMP to the next; NOP; and at 0x1040 another NOP.
        var code: [UInt8] = [0xA3, 0x00, 0x30] + [UInt8](repeating: 0x40, count: 30) + [0xEB, 0x00]
        let end = SoftMachine.start + UInt64(code.count)
        code += [UInt8](repeating: 0x90, count: 0x42 - code.count)
        let machine = try SoftMachine(code)
        machine.handle(1, at: 0x2000, SoftMachine.report(1))
        guard case .debug = try machine.engine.enter(until: .breakpoint(end)) else { throw SoftMachine.Late() }
        var state = try machine.engine.state()
        state.general.rip = 0x1040
        state.general.rsp = 0x1042
        state.general.rflags |= RFlags.trap
        try machine.engine.setState(state)
        #expect(try machine.report() == 1)
        // IP, CS and FLAGS.
        #expect(machine.engine.memory.load(.init(0x103C), as: UInt32.self) == 0x1041)
        // The code before, the NOP, and the handler's two.
        #expect(machine.engine.retired == InstructionCount(32 + 1 + 2))
    }

    /// Each write to a device is made once, whatever else the instruction has to ask devices for.
    @Test func anInstructionThatIsStartedOverWritesOnce() throws {
        // MOV AX, 0xA000; MOV SS, AX; MOV SP, 0x1000; MOV BP, 0x2000; ENTER 0, 31; report: the stack lies in a device
        let engine = try SoftMachine([0xB8, 0x00, 0xA0, 0x8E, 0xD0, 0xBC, 0x00, 0x10, 0xBD, 0x00, 0x20, 0xC8, 0x00, 0x00, 0x1F]
            + SoftMachine.report(1)).engine
        let writes = try Self.exits(engine).filter { $0.kind == .mmioWrite }.map(\.address)
        #expect(writes == (0..<32).map { 0xA0FFE - 2 * $0 })
    }

    /// The debug exception after an instruction doesn't take its write to a device away.
    @Test func devicesAreWrittenToInSingleSteps() throws {
        // MOV AX, 0xA000; MOV DS, AX; MOV [0], AL; OUT 0x80, AL; report
        let machine = try SoftMachine([0xB8, 0x00, 0xA0, 0x8E, 0xD8, 0xA2, 0x00, 0x00, 0xE6, 0x80] + SoftMachine.report(1))
        machine.handle(1, at: 0x3000, [0xCF])
        var state = try machine.engine.state()
        state.general.rflags |= RFlags.trap
        try machine.engine.setState(state)
        #expect(try Self.exits(machine.engine).map(\.address) == [0xA0000, 0x80, 0xF4])
    }

    /// FXSAVE leaves what the model's processor leaves, and writes zeros to the rest that has no meaning.
    @Test(arguments: 0..<16 as Range<UInt8>) func savingLeavesWhatTheModelSays(_ unwritten: UInt8) throws {
        // FXSAVE [0x2000]; report
        let machine = try SoftMachine([0x0F, 0xAE, 0x06, 0x00, 0x20] + SoftMachine.report(1)) { $0.profile.unwrittenBySave = unwritten }
        let area = GuestPhysicalAddress(0x2000)
        machine.engine.memory.write([UInt8](repeating: 0xA5, count: 512), at: area)
        #expect(try machine.report() == 1)
        func bytes(_ range: Range<UInt64>) -> Set<UInt8> {
            Set(range.compactMap { machine.engine.memory.load(.init(area.rawValue + $0), as: UInt8.self) })
        }
        #expect(bytes(0..<5) == [0x7F, 0x03, 0, 0, 0])
        #expect(bytes(5..<6) == [unwritten & 1 != 0 ? 0xA5 : 0])
        #expect(bytes(6..<8) == [unwritten & 2 != 0 ? 0xA5 : 0])
        #expect(bytes(8..<24) == [unwritten & 4 != 0 ? 0xA5 : 0])
        for i in 0..<8 as Range<UInt64> {
            #expect(bytes(32 + 16 * i..<42 + 16 * i) == [0])
            #expect(bytes(42 + 16 * i..<48 + 16 * i) == [unwritten & 8 != 0 ? 0xA5 : 0])
        }
        #expect(bytes(416..<512) == [0xA5])
    }

    /// The error code of a page fault says whether the model's processor reads before it writes, where it does both.
    @Test(arguments: [
        ([0x01, 0x05], [2, 0]),  // ADD [m], EAX
        ([0xF0, 0x0F, 0xB1, 0x15], [2, 0]),  // LOCK CMPXCHG [m], EDX
        ([0x0F, 0xC7, 0x0D], [2, 0]),  // CMPXCHG8B [m]
        ([0x87, 0x05], [2, 0]),  // XCHG [m], EAX
        ([0x89, 0x05], [2, 2]),  // MOV [m], EAX
        ([0x39, 0x05], [0, 0]),  // CMP [m], EAX
    ] as [([UInt8], [UInt64])])
    func modifyingFaultsAsTheModelSays(_ code: [UInt8], _ errors: [UInt64]) throws {
        for (readsFirst, error) in zip([false, true], errors) {
            // The operand is at 4 MiB, where nothing is mapped. The handler: MOV EAX, [ESP]; OUT 0xF4, EAX
            let machine = try SoftMachine(code + [0, 0, 0x40, 0]) { $0.profile.readsBeforeModifying = readsFirst }
            machine.handleProtected(14, at: 0x3000, [0x8B, 0x04, 0x24, 0xE7, 0xF4])
            try machine.enterProtectedMode()
            machine.engine.memory.write([0x83, 0, 0, 0], at: .init(0x10000))
            var state = try machine.engine.state()
            state.control.cr0 |= 0x8000_0000
            state.control.cr3 = 0x10000
            state.control.cr4 |= 0x10  // PSE
            try machine.engine.setState(state)
            #expect(try machine.report() == error, "reads first: \(readsFirst)")
        }
    }

    /// A fault that the monitor asks for pushes RF, though the model's processor pushes none: a KVM injects it.
    @Test func aRefusedAccessPushesTheResumeFlag() throws {
        for (code, pushes) in [([0x0F, 0x32], true), ([0x0F, 0x0B], false)] as [([UInt8], Bool)] {  // RDMSR; UD2
            // MOV ECX, 0x99999999; the code. The handler: MOV EAX, [ESP + 8], or + 12 behind an error code; OUT 0xF4, EAX
            let machine = try SoftMachine([0xB9, 0x99, 0x99, 0x99, 0x99] + code) { $0.profile.faultsWithoutResume = .max }
            try machine.enterProtectedMode()
            for (vector, offset) in [(6, 8), (13, 12)] as [(UInt8, UInt8)] {
                machine.handleProtected(vector, at: 0x3000 + 16 * UInt16(vector), [0x8B, 0x44, 0x24, offset, 0xE7, 0xF4])
            }
            machine.engine.armKick(at: hostTime() + .seconds(5))
            var flags: UInt64?
            while flags == nil {
                guard case .exit(var exit) = try machine.engine.enter(until: .none) else { throw SoftMachine.Late() }
                if exit.identity.kind == .portWrite { flags = exit.value }
                exit.identity.flags |= EventIdentity.faulted
                try machine.engine.answer(exit)
            }
            #expect((flags! & RFlags.resume != 0) == pushes)
        }
    }

    /// A search passes arrivals at which the registers differ, and counts them.
    @Test(arguments: [false, true]) func arrivalsAreToldByTheSumOfTheRegisters(_ isBrief: Bool) throws {
        // INC AX; INC BX; JMP back
        let engine = try SoftMachine([0x40, 0x43, 0xEB, 0xFC]).engine
        var wanted = try engine.registers().general
        (wanted.rax, wanted.rbx) = (1000, 999)
        let anchor = Anchor(rip: SoftMachine.start + 1, registers: 0, memory: 0, instructions: 0, elapsed: Nanoseconds(0),
                            general: wanted.sum)
        engine.filterArrivals(by: isBrief ? anchor.brief : anchor)
        engine.armKick(at: hostTime() + .seconds(5))
        guard case .debug = try engine.enter(until: .breakpoint(SoftMachine.start + 1)) else { throw SoftMachine.Late() }
        wanted.rip = SoftMachine.start + 1
        #expect(try engine.registers().general.rax == 1000)
        #expect(try engine.registers().general.rbx == 999)
        #expect(engine.endFilter() == 999)
    }

    /// The exits up to the report.
    private static func exits(_ engine: SoftEngine) throws -> [EventIdentity] {
        var exits: [EventIdentity] = []
        engine.armKick(at: hostTime() + .seconds(5))
        while exits.last?.address != 0xF4 {
            guard case .exit(let exit) = try engine.enter(until: .none) else { throw SoftMachine.Late() }
            exits.append(exit.identity)
            try engine.answer(exit)
        }
        return exits
    }
}
