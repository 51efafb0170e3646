import Testing
import VMCore

/// An engine whose guest never runs: what can enter is as the test says, and kicks are noted.
private final class StandingEngine: Engine {
    let name = "standing"
    let memory: GuestMemory
    let capabilities: EngineCapabilities
    var profile: ProcessorProfile { ProcessorProfile() }
    var isInterruptible = false
    var taskPriority: UInt8 = 0
    var wantsRegisters = false
    private(set) var armed: Nanoseconds?
    private var cpu = CPUState()

    init(exactWindow: Bool) throws {
        memory = try GuestMemory(map: MemoryLayoutMap(pcWithBytes: 2 << 20))
        var capabilities = EngineCapabilities()
        capabilities.exactWindow = exactWindow
        // It lands by steps, so that an interrupt waits 10 ms for an exit.
        (capabilities.stepKernel, capabilities.stepUser, capabilities.stepToUser) = (true, true, true)
        self.capabilities = capabilities
    }

    /// Puts code where the guest stands.
    func stand(at code: [UInt8], address: UInt64 = 0x1000) {
        memory.write(code, at: .init(address))
        cpu.general.rip = address
    }

    func enter(until stop: StopCondition) throws(HostError) -> Arrival { .kicked }
    func answer(_ exit: Exit) throws(HostError) {}
    func settle() throws(HostError) -> Arrival? { nil }
    func isReadyForNMI() throws(HostError) -> Bool { false }
    func queueInterrupt(_ vector: UInt8) throws(HostError) {}
    func queueNMI() throws(HostError) {}
    func state() throws(HostError) -> CPUState { cpu }
    func setState(_ state: CPUState) throws(HostError) { cpu = state }
    func registers() throws(HostError) -> CoreRegisters { cpu.core }
    func debugRegistersActive() throws(HostError) -> Bool { false }
    func makeAssistant() throws(HostError) -> SoftEngine? { nil }
    func trackWrites() throws(HostError) {}
    func takeWrittenPages(_ body: (Int) -> Void) throws(HostError) {}
    func armKick(at moment: Nanoseconds?) { armed = moment }
    var kicker: Kicker { Kicker {} }
}

/// What a recording does about an interrupt that can't enter yet: kicks take the guest's time, so there are to be few.
@Suite struct WaitingInterruptTests {
    private let engine: StandingEngine
    private let live: LiveEnvironment
    private let machine: Machine

    private init(exactWindow: Bool, placement: InterruptPlacement = .replayable, isPeriodic: Bool = false) throws {
        engine = try StandingEngine(exactWindow: exactWindow)
        engine.stand(at: [0x90])
        var options = LiveOptions()
        options.placement = placement
        live = LiveEnvironment(platform: Platform(ChipsetConfiguration(memoryBytes: 2 << 20, wallClockStart: 0)),
                               serial: try SerialPort(.none), engine: engine, options: options)
        machine = Machine(engine: engine, environment: live)
        // The interrupt controller with vectors from 0x20 on and the timer's line open; the timer fires once, after 0.1 ms, or
        // every millisecond.
        let writes: [(UInt64, UInt64)] = [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xFE)]
            + (isPeriodic ? [(0x43, 0x34), (0x40, 0xA9), (0x40, 4)] : [(0x43, 0x30), (0x40, 119), (0x40, 0)])
        for (number, write) in writes.enumerated() {
            var exit = Exit(EventIdentity(kind: .portWrite, size: 1, address: write.0), value: write.1)
            try live.handle(&exit, number: ExitNumber(UInt64(number + 1)))
        }
    }

    init() throws { try self.init(exactWindow: true) }

    private func wait(_ span: Nanoseconds) {
        let end = hostTime() + span
        while hostTime() < end {}
    }

    /// What a handler tells the interrupt controller.
    private func endInterrupt() throws {
        var exit = Exit(EventIdentity(kind: .portWrite, size: 1, address: 0x20), value: 0x20)
        try live.handle(&exit, number: ExitNumber(100))
    }

    /// Asks what is to be done; nil where an interrupt enters or anything else is wanted but to go on.
    private func look() throws -> Entry? {
        let entry = try live.entry(at: .between, of: machine)
        switch entry {
        case .proceed, .proceedToBoundary: return entry
        default: return nil
        }
    }

    @Test func theEngineSaysWhenItCanEnter() throws {
        wait(.milliseconds(1))
        #expect(try look() != nil)
        wait(.milliseconds(12))
        // The wait for an exit is over.
        guard case .proceedToBoundary = try look() else { return #expect(Bool(false)) }
        #expect(engine.armed == nil)
        engine.isInterruptible = true
        guard case .interrupt(let vector) = try live.entry(at: .between, of: machine) else { return #expect(Bool(false)) }
        #expect(vector == 0x20)
        #expect(live.latency.betweenExits.count == 1)
    }

    @Test func noKickDisturbsTheWayToAWindow() throws {
        wait(.milliseconds(1))
        #expect(try look() != nil)
        // The wait for an exit ends with one, and after it the guest comes back by itself.
        guard case .proceedToWindow = try live.entry(at: .exit, of: machine) else { return #expect(Bool(false)) }
        #expect(engine.armed == nil)
        engine.isInterruptible = true
        guard case .interrupt = try live.entry(at: .window, of: machine) else { return #expect(Bool(false)) }
        #expect(live.latency.atWindow.count == 1)
    }

    /// A handler that takes longer than a timer's period, by the kicks alone, would be followed by the next at once.
    @Test(arguments: [InterruptPlacement.immediate, .replayable])
    func ticksDontDisturbTheWayToAWindow(placement: InterruptPlacement) throws {
        let other = try Self(exactWindow: true, placement: placement, isPeriodic: true)
        other.wait(.milliseconds(2))
        guard case .proceedToWindow = try other.live.entry(at: .exit, of: other.machine) else { return #expect(Bool(false)) }
        let end = hostTime() + .milliseconds(100)
        var kicks = 0
        while let kick = other.engine.armed, kick < end {
            while hostTime() < kick {}
            kicks += 1
            guard case .proceedToWindow = try other.live.entry(at: .between, of: other.machine) else { return #expect(Bool(false)) }
        }
        // After 10, 20, 40 and 80 ms: an NMI is not left for longer than twice what it would have waited.
        #expect((2 ... 4).contains(kicks))
        other.engine.isInterruptible = true
        guard case .interrupt = try other.live.entry(at: .window, of: other.machine) else { return #expect(Bool(false)) }
        // As soon as it has entered, the next tick is looked for in time.
        let next = try #require(other.engine.armed)
        #expect(next < hostTime() + .milliseconds(12))
    }

    /// Where a handler takes longer than the timer's period, by whatever it is, the guest gets a time of its own between two.
    @Test(arguments: [true, false]) func aGuestThatGetsNoInstructionIsLetGo(standsStill: Bool) throws {
        let other = try Self(exactWindow: true, placement: .immediate, isPeriodic: true)
        other.engine.isInterruptible = true
        let end = hostTime() + .milliseconds(95)
        var rests = 0
        while hostTime() < end {
            other.wait(.milliseconds(2))
            switch try other.live.entry(at: .window, of: other.machine) {
            case .interrupt:
                // The handler ends its interrupt, and the main program has or has not gone on.
                try other.endInterrupt()
                if !standsStill { other.engine.stand(at: [0x90], address: UInt64.random(in: 0x1000 ..< 0x8_0000)) }
            case .proceed:
                rests += 1
                let began = hostTime()
                guard case .proceed = try other.live.entry(at: .between, of: other.machine) else { return #expect(Bool(false)) }
                // No tick disturbs it, and then the next one enters wherever the guest is.
                let kick = try #require(other.engine.armed)
                #expect(kick > began + .milliseconds(9))
                while hostTime() < kick {}
                guard case .interrupt = try other.live.entry(at: .between, of: other.machine) else { return #expect(Bool(false)) }
                try other.endInterrupt()
            default: return #expect(Bool(false))
            }
        }
        #expect(standsStill ? (1 ... 2).contains(rests) : rests == 0)
    }

    /// In a repeated string instruction, and where no engine says when the guest can take it.
    @Test(arguments: [true, false]) func looksComeLessAndLessOften(exactWindow: Bool) throws {
        let other = try Self(exactWindow: exactWindow)
        other.engine.isInterruptible = exactWindow
        if exactWindow { other.engine.stand(at: [0xF3, 0xAB]) }
        other.wait(.milliseconds(1))
        let began = hostTime()
        for span in [16, 32] as [UInt64] {
            other.wait(.milliseconds(span))
            let now = hostTime()
            guard case .proceed? = try other.look() else { return #expect(Bool(false)) }
            let next = try #require(other.engine.armed)
            #expect(next - now >= Nanoseconds((now - began).rawValue / 8))
        }
    }
}
