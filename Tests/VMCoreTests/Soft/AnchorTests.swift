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

    @Test(arguments: [RFlags.overflow, RFlags.auxiliary, chance], [true, false])
    func flagsOfChanceAreTheRecordedOnes(_ cleared: UInt64, _ isCounted: Bool) throws {
        var (engine, anchor) = try prepare(clearing: cleared, varies: true)
        try #require(anchor.instructions == 3)
        if !isCounted { anchor.instructions = 0 }
        let environment = Landed(at: anchor)
        #expect(try Machine(engine: engine, environment: environment).run() == .stopped)
        #expect(environment.hasLanded)
        let registers = try engine.registers()
        #expect(registers.general.rip == Self.nop)
        #expect(registers.general.rflags & Self.chance == Self.chance & ~cleared)
        #expect(engine.retiredSinceExit == InstructionCount(3))
    }

    /// A processor that leaves nothing to chance isn't at the point.
    @Test func otherFlagsAreAnotherPoint() throws {
        let (engine, anchor) = try prepare(clearing: RFlags.overflow, varies: false)
        let environment = Landed(at: anchor)
        #expect(try Machine(engine: engine, environment: environment).run() == .endOfTrace)
        #expect(!environment.hasLanded)
    }

    /// Nor is one where other flags than these differ, or the memory does.
    @Test func noOtherDifferenceIsForgiven() throws {
        let (engine, anchor) = try prepare(clearing: RFlags.overflow, varies: true)
        var state = try engine.state()
        state.general.rflags |= RFlags.interrupt
        try engine.setState(state)
        #expect(try Machine(engine: engine, environment: Landed(at: anchor)).run() == .endOfTrace)
    }

    @Test func flagsStayWhereMemoryDiffers() throws {
        var (engine, anchor) = try prepare(clearing: RFlags.overflow, varies: true)
        anchor.memory ^= 1
        guard case .debug = try engine.enter(until: .breakpoint(Self.nop)) else { throw SoftMachine.Late() }
        let machine = Machine(engine: engine, environment: Landed())
        #expect(try !machine.isAt(anchor))
        #expect(try engine.registers().general.rflags & Self.chance == Self.chance)
        anchor.memory ^= 1
        #expect(try machine.isAt(anchor))
        #expect(try engine.registers().general.rflags & Self.chance == RFlags.auxiliary)
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
