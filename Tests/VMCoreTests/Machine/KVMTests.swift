import Foundation
import Testing
import VMCore

/// Whether guests can run here; the reason is printed where they can't.
enum KVM {
    static let isUsable: Bool = {
        do {
            _ = try KVMSystem()
            return true
        } catch {
            print("SKIPPED: tests that need KVM: \(error)")
            return false
        }
    }()
}

/// What the host's kernel says of its processors.
enum HostProcessor {
    static let description = (try? String(contentsOfFile: "/proc/cpuinfo", encoding: .utf8)) ?? ""
    static func says(_ words: String) -> Bool { description.contains(words) }
}

@Suite(.enabled(if: KVM.isUsable, "KVM isn't usable here")) struct KVMTests {
    /// A machine of 2 MiB that runs `code` in real mode at 0x1000.
    private func engine(_ code: [UInt8]) throws -> KVMEngine {
        let system = try KVMSystem()
        let memory = try GuestMemory(map: MemoryLayoutMap(pcWithBytes: 2 << 20))
        let boot = try FlatBoot.load(code, at: .init(0x1000), into: memory)
        let model = try CPUModel(named: "auto", timestamps: .hide, supported: system.supportedFeatures())
        let engine = try KVMEngine(system: system, memory: memory, model: model,
                                   capabilities: SelfTests(system: system).capabilities())
        try engine.setState(boot.state)
        return engine
    }

    @Test func stateSurvivesTheEngine() throws {
        let engine = try engine([0xEB, 0xFE])
        var state = try engine.state()
        state.general.rax = 0x1122_3344
        state.general.r9 = .max
        state.general.rflags = 0x2D7
        state.ds = SegmentRegister(selector: 0x1234, base: 0x12340, limit: 0xFFFF, attributes: 0x93)
        state.control.cr2 = 0xDEAD
        state.control.cr8 = 5
        state.debug.address = SIMD4(1, 2, 3, 4)
        state.floatingPoint.mxcsr = 0x1FA0
        state.floatingPoint.controlWord = 0x27F
        state.floatingPoint.tags = 0x81
        state.floatingPoint.st[79] = 0x3F
        state.floatingPoint.xmm = (0..<256).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        state.msrs[5] = 0xFFFF_8000_0000_1000
        state.events.nmiMasked = true
        state.events.interruptShadow = 2
        try engine.setState(state)
        #expect(try engine.state() == state)
        #expect(try engine.registers() == state.core)
    }

    @Test func exitsCarryPortSizeAndValue() throws {
        // MOV AX, 0x1234; OUT 0x80, AX; IN AL, 0x71; OUT 0x81, AL
        let engine = try engine([0xB8, 0x34, 0x12, 0xE7, 0x80, 0xE4, 0x71, 0xE6, 0x81])
        guard case .exit(let first) = try engine.enter(until: .none) else { return #expect(Bool(false)) }
        #expect(first.identity == EventIdentity(kind: .portWrite, size: 2, address: 0x80))
        #expect(first.value == 0x1234)
        try engine.answer(first)
        guard case .exit(var second) = try engine.enter(until: .none) else { return #expect(Bool(false)) }
        #expect(second.identity == EventIdentity(kind: .portRead, size: 1, address: 0x71))
        second.value = 0xA5
        try engine.answer(second)
        #expect(try engine.settle() == nil)
        #expect(try engine.registers().general.rax & 0xFF == 0xA5)
        #expect(try engine.registers().general.rip == 0x1007)
        guard case .exit(let third) = try engine.enter(until: .none) else { return #expect(Bool(false)) }
        #expect(third.value == 0xA5)
    }

    /// The port read that stands for CPUID is answered as the model says, whatever the processor shows, and is no exit.
    @Test(arguments: EngineKind.allCases) func replacedIdentificationIsTheModels(_ kind: EngineKind) throws {
        // MOV EAX, 1; XOR ECX, ECX; IN EAX, 0xED; HLT; and the same with CPUID in place of IN
        let identify: [UInt8] = [0x66, 0xB8, 1, 0, 0, 0, 0x66, 0x31, 0xC9]
        let code = identify + [0x66, 0xE5, 0xED, 0xF4] + identify + [0x0F, 0xA2, 0xF4]
        let host = kind == .soft ? EngineHost.soft : try EngineHost.openKVM()
        let memory = try GuestMemory(map: MemoryLayoutMap(pcWithBytes: 2 << 20))
        let boot = try FlatBoot.load(code, at: .init(0x1000), into: memory)
        var model = try CPUModel(named: "x86-64-v1", timestamps: .hide, supported: host.supportedFeatures())
        let expected = try #require(model.entries.first { $0.leaf == 1 })
        var shown = expected
        shown.edx |= 1 << 4
        if kind == .soft { model.profile.ownFeatures = [shown] }
        let engine = try host.makeEngine(memory: memory, model: model, trapping: .identification)
        func run(until stop: StopCondition = .none) throws -> Arrival {
            while true {
                let arrival = try engine.enter(until: stop)
                if case .kicked = arrival { continue }
                return arrival
            }
        }
        func answer() throws -> CPUIDEntry {
            let general = try engine.registers().general
            return CPUIDEntry(1, eax: UInt32(general.rax), ebx: UInt32(general.rbx), ecx: UInt32(general.rcx), edx: UInt32(general.rdx))
        }
        try engine.setState(boot.state)
        guard case .exit(let first) = try run() else { return #expect(Bool(false)) }
        #expect(first.identity.kind == .halt)
        #expect(try answer() == expected)
        #expect(try engine.registers().general.rip == 0x100D)
        try engine.answer(first)
        guard case .exit(let second) = try run() else { return #expect(Bool(false)) }
        #expect(second.identity.kind == .halt)
        if kind == .soft { #expect(try answer() == shown) }
        // A step over it is a step, and a breakpoint behind it stops there.
        if case .kvm(_, let capabilities) = host, !capabilities.stepKernel || !capabilities.breakpointKernel { return }
        try engine.setState(boot.state)
        for rip in [0x1006, 0x1009, 0x100C] as [UInt64] {
            guard case .debug = try run(until: .step) else { return #expect(Bool(false)) }
            #expect(try engine.registers().general.rip == rip)
        }
        #expect(try answer() == expected)
        try engine.setState(boot.state)
        guard case .debug = try run(until: .breakpoint(0x100C)) else { return #expect(Bool(false)) }
        #expect(try answer() == expected)
    }

    @Test func kickStopsARunningGuest() throws {
        let engine = try engine([0xEB, 0xFE])
        var latencies: [Nanoseconds] = []
        for _ in 0..<21 {
            let moment = hostTime() + .milliseconds(2)
            engine.armKick(at: moment)
            guard case .kicked = try engine.enter(until: .none) else { return #expect(Bool(false)) }
            latencies.append(hostTime() - moment)
        }
        // The median, since a loaded host delays any thread.
        #expect(latencies.sorted()[10] < .milliseconds(1))
    }

    /// As on a host that was busy elsewhere when it went off: kicked at once, again and again, the guest would never get anywhere.
    @Test func aTimerThatGoesOffBeforeEntryLetsTheGuestRun() throws {
        let engine = try engine([0x66, 0x40, 0xEB, 0xFC])  // INC EAX; JMP back
        var runs = 0
        for _ in 0..<20 {
            let before = try engine.registers().general.rax
            let moment = hostTime()
            engine.armKick(at: moment)
            while hostTime() < moment + .microseconds(200) {}
            guard case .kicked = try engine.enter(until: .none) else { return #expect(Bool(false)) }
            if try engine.registers().general.rax != before { runs += 1 }
        }
        // A busy host may take the processor away on the way into the guest.
        #expect(runs > 10)
    }

    /// What went off before entry takes nothing away from what is set since.
    @Test func aTimerThatIsSetAgainBeforeEntryGoesOff() throws {
        let engine = try engine([0xEB, 0xFE])
        let first = hostTime()
        engine.armKick(at: first)
        while hostTime() < first + .microseconds(200) {}
        let second = hostTime() + .milliseconds(20)
        engine.armKick(at: second)
        while hostTime() < second {
            // As the monitor does at each entry.
            engine.armKick(at: second)
            guard case .kicked = try engine.enter(until: .none) else { return #expect(Bool(false)) }
        }
    }

    @Test func kickFromAnotherThreadBeforeEntryIsNotLost() throws {
        let engine = try engine([0xEB, 0xFE])
        let kicker = engine.kicker
        let done = DispatchSemaphore(value: 0)
        Thread.detachNewThread {
            kicker.kick()
            done.signal()
        }
        done.wait()
        guard case .kicked = try engine.enter(until: .none) else { return #expect(Bool(false)) }
    }

    @Test func writtenPagesAreReported() throws {
        // MOV BYTE [0x5000], 1; JMP $
        let engine = try engine([0xC6, 0x06, 0x00, 0x50, 0x01, 0xEB, 0xFE])
        try engine.trackWrites()
        try engine.takeWrittenPages { _ in }
        // On a busy host one kick may come before the first instruction.
        let end = hostTime() + .seconds(10)
        repeat {
            engine.armKick(at: hostTime() + .milliseconds(5))
            guard case .kicked = try engine.enter(until: .none) else { return #expect(Bool(false)) }
        } while engine.memory.load(.init(0x5000), as: UInt8.self) != 1 && hostTime() < end
        engine.memory.write([1], at: .init(0x9000))
        var pages: Set<Int> = []
        try engine.takeWrittenPages { pages.insert($0) }
        #expect(pages.isSuperset(of: [5, 9]))
        pages = []
        try engine.takeWrittenPages { pages.insert($0) }
        #expect(pages.isEmpty)
    }

    @Test func breakpointsAndStepsStopWhereTheSelfTestSays() throws {
        let engine = try engine([0x40, 0x43, 0xEB, 0xFC])  // INC AX; INC BX; JMP back
        guard engine.capabilities.breakpointKernel, engine.capabilities.stepKernel else { return }
        for turn in 1...5 as ClosedRange<UInt64> {
            guard case .debug = try engine.enter(until: .breakpoint(0x1001)) else { return #expect(Bool(false)) }
            #expect(try engine.registers().general.rip == 0x1001)
            #expect(try engine.registers().general.rax == turn)
            #expect(try engine.registers().general.rbx == turn - 1)
        }
        guard case .debug = try engine.enter(until: .step) else { return #expect(Bool(false)) }
        #expect(try engine.registers().general.rip == 0x1002)
    }

    @Test func refusedStatesAreErrorsNotCrashes() throws {
        let engine = try engine([0xEB, 0xFE])
        var state = try engine.state()
        state.control.cr0 = 0x8000_0000  // paging without protection
        #expect(throws: HostError.self) { try engine.setState(state) }
    }

    /// MOV to CR8 makes no exit where it raises the priority: the devices hear of it at the next one.
    @Test func taskPrioritySurvivesAnExit() throws {
        // MOV EAX, 5; MOV CR8, RAX; OUT 0x81, AL; MOV RAX, CR8; OUT 0xF4, AL
        let engine = try engine([0xB8, 5, 0, 0, 0, 0x44, 0x0F, 0x22, 0xC0, 0xE6, 0x81, 0x44, 0x0F, 0x20, 0xC0, 0xE6, 0xF4])
        // Long mode, the first 2 MiB mapped onto themselves.
        for (address, entry) in [(0x10000, 0x11003), (0x11000, 0x12003), (0x12000, 0x83)] as [(UInt64, UInt64)] {
            engine.memory.write(withUnsafeBytes(of: entry.littleEndian) { Array($0) }, at: .init(address))
        }
        var state = try engine.state()
        state.control.cr0 = 0x8000_0011
        state.control.cr3 = 0x10000
        state.control.cr4 = 0x20
        state.control.efer = 0x500
        state.cs = SegmentRegister(selector: 8, base: 0, limit: .max, attributes: 0xA9B)
        state.general.rip = 0x1000
        try engine.setState(state)
        let platform = Platform(ChipsetConfiguration(memoryBytes: 2 << 20, wallClockStart: 0))
        var options = LiveOptions()
        options.deadline = .seconds(5)
        let live = LiveEnvironment(platform: platform, serial: try SerialPort(.none), engine: engine, options: options)
        let ending = try Machine(engine: engine, environment: live).run()
        let registers = try engine.registers()
        #expect(ending == .debugExit(5), "\(ending) at \(registers)")
    }
}
