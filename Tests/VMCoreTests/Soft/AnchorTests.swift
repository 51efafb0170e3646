import Testing
import VMCore

/// Points between two exits where the processor of the recording left flags to chance.
@Suite struct AnchorTests {
    // MOV AX, 0x7FFF; INC AX, which sets OF and AF; BT CX, 0; NOP
    private static let code: [UInt8] = [0xB8, 0xFF, 0x7F, 0x40, 0x0F, 0xBA, 0xE1, 0x00, 0x90] + SoftMachine.report(1)
    private static let nop = SoftMachine.start + 8
    private static let chance = RFlags.overflow | RFlags.auxiliary

    /// A guest at its start, and the point behind BT as a processor leaves it that clears `cleared` there.
    private func prepare(clearing cleared: UInt64, varies: Bool) throws -> (SoftEngine, Anchor) {
        let engine = try SoftMachine(Self.code) { $0.profile.bitTestsVary = varies }.engine
        let start = try engine.state()
        guard case .debug = try engine.enter(until: .breakpoint(Self.nop)) else { throw SoftMachine.Late() }
        var state = try engine.state()
        try #require(state.general.rflags & Self.chance == Self.chance)
        state.general.rflags &= ~cleared
        try engine.setState(state)
        engine.retiredSinceExit = InstructionCount(3)
        let anchor = try Machine(engine: engine, environment: Landed()).anchor(elapsed: .microseconds(1))
        try engine.setState(start)
        return (engine, anchor)
    }

    enum Form: CaseIterable { case counted, full, brief }

    @Test(arguments: [RFlags.overflow, RFlags.auxiliary, chance], Form.allCases)
    func flagsOfChanceAreTheRecordedOnes(_ cleared: UInt64, _ form: Form) throws {
        var (engine, anchor) = try prepare(clearing: cleared, varies: true)
        try #require(anchor.instructions == 3)
        if form != .counted { anchor.instructions = 0 }
        if form == .brief { anchor = anchor.brief }
        let environment = Landed(at: anchor)
        #expect(try Machine(engine: engine, environment: environment).run() == .stopped)
        #expect(environment.hasLanded)
        let registers = try engine.registers()
        #expect(registers.general.rip == Self.nop)
        #expect(registers.general.rflags & Self.chance == Self.chance & ~cleared)
        #expect(engine.retiredSinceExit == InstructionCount(3))
    }

    /// A processor that leaves nothing to chance isn't at the point.
    @Test(arguments: Form.allCases) func otherFlagsAreAnotherPoint(_ form: Form) throws {
        var (engine, anchor) = try prepare(clearing: RFlags.overflow, varies: false)
        if form != .counted { anchor.instructions = 0 }
        if form == .brief { anchor = anchor.brief }
        let environment = Landed(at: anchor)
        #expect(try Machine(engine: engine, environment: environment).run() == .endOfTrace)
        #expect(!environment.hasLanded)
    }

    /// Nor is one where other flags than these differ, or the memory does.
    @Test(arguments: Form.allCases) func noOtherDifferenceIsForgiven(_ form: Form) throws {
        var (engine, anchor) = try prepare(clearing: RFlags.overflow, varies: true)
        if form != .counted { anchor.instructions = 0 }
        if form == .brief { anchor = anchor.brief }
        var state = try engine.state()
        state.general.rflags |= RFlags.interrupt
        try engine.setState(state)
        #expect(try Machine(engine: engine, environment: Landed(at: anchor)).run() == .endOfTrace)
    }

    @Test(arguments: [false, true]) func flagsStayWhereMemoryDiffers(_ isBrief: Bool) throws {
        var (engine, anchor) = try prepare(clearing: RFlags.overflow, varies: true)
        if isBrief { anchor = anchor.brief }
        anchor.memory ^= 1
        guard case .debug = try engine.enter(until: .breakpoint(Self.nop)) else { throw SoftMachine.Late() }
        let machine = Machine(engine: engine, environment: Landed())
        #expect(try !machine.isAt(anchor))
        #expect(try engine.registers().general.rflags & Self.chance == Self.chance)
        anchor.memory ^= 1
        #expect(try machine.isAt(anchor))
        #expect(try engine.registers().general.rflags & Self.chance == RFlags.auxiliary)
    }

    /// What the short form leaves out makes no point another one; what it has does.
    @Test func theShortFormComparesWhatItHas() throws {
        let anchor = Anchor(rip: 0x1000, registers: .max, memory: .max, instructions: 0, elapsed: Nanoseconds(0x7F_FFFF), general: .max)
        let brief = anchor.brief
        #expect(brief.brief == brief && brief.isBrief && !anchor.isBrief)
        #expect((brief.registers, brief.general, brief.memory) == (0, 0xFFFF, 0xFF_FFFF_FFFF))
        #expect(brief.elapsed == Nanoseconds(0x7F_0000))
        for (left, right) in [(anchor, brief), (brief, anchor), (brief, brief)] {
            #expect(left.isSamePoint(as: right))
            for bit in 0..<64 {
                var other = right
                other.memory ^= 1 << UInt64(bit)
                #expect(left.isSamePoint(as: other) == (bit >= 40))
                other = right
                other.general ^= 1 << UInt64(bit)
                #expect(left.hasSameRegisters(as: other) == (bit >= 16))
                other = right
                other.rip ^= 1 << UInt64(bit)
                #expect(!left.hasSameRegisters(as: other))
            }
        }
        var other = anchor
        other.registers = 1
        #expect(!anchor.isSamePoint(as: other) && brief.isSamePoint(as: other))
    }
}

/// Brings the guest to an anchor, and stops it there.
private final class Landed: Environment {
    private let anchor: Anchor?
    private(set) var hasLanded = false
    let wantsEntry = true, wantsStop = false

    init(at anchor: Anchor? = nil) { self.anchor = anchor }

    func handle(_ exit: inout Exit, number: ExitNumber) {}

    func entry(at point: EntryPoint, of machine: Machine) -> Entry {
        hasLanded = point == .landed
        guard let anchor, !hasLanded else { return .stop(.stopped) }
        return .land(anchor)
    }

    func missed(_ anchor: Anchor, machine: Machine, next: EventIdentity?) {}
}
