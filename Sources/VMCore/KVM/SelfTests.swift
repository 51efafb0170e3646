import CKVM

/// The outcome of trying one thing out on this host.
public struct SelfTestResult: Codable, Sendable {
    public enum Outcome: String, Codable, Sendable {
        case works
        /// Doesn't work, and vmrr has another way.
        case lacks
        /// Doesn't work, and something can't be recorded or run because of it.
        case gap
    }

    public var name: String
    public var outcome: Outcome
    /// What was seen, and what follows from it.
    public var detail: String

    public init(name: String, outcome: Outcome, detail: String) {
        (self.name, self.outcome, self.detail) = (name, outcome, detail)
    }
}

/// Tries out what this host's KVM really does, with guests of a few instructions and a deadline each.
///
/// Flags and names aren't trusted: nested and software implementations report features that don't work.
public struct SelfTests {
    let system: KVMSystem
    let model: CPUModel

    /// No probe runs longer than this.
    private static let deadline = Nanoseconds.milliseconds(50)
    static let code: UInt64 = 0x1000
    static let handler: UInt64 = 0x3000
    /// The port that the probes' guests report on.
    static let port: UInt8 = 0xF4

    public init(system: KVMSystem) throws(HostError) {
        self.system = system
        model = try CPUModel(named: "x86-64-v1", timestamps: .hide, supported: system.supportedFeatures())
    }

    /// What the engine and the recorder rely on: a few milliseconds at the start of every run.
    public func capabilities() throws(HostError) -> EngineCapabilities {
        var found = EngineCapabilities()
        found.exactWindow = try windowIsExact()
        found.breakpointKernel = try breakpointHits(user: false)
        found.breakpointUser = try breakpointHits(user: true)
        found.stepKernel = try stepWorks(user: false)
        found.stepUser = try stepWorks(user: true)
        if found.stepKernel { found.stepToUser = try stepReachesUser() }
        if found.breakpointKernel { found.resumeFlag = try resumeFlagPasses() }
        found.losesInterruptShadow = try losesInterruptShadow()
        found.profile = try profile()
        return found
    }

    // MARK: Probes

    enum Mode {
        case real
        /// 32-bit protected mode without paging; all exceptions lead to `handler` at CPL 0.
        case protected
        /// 64-bit mode with one 2 MiB page; all exceptions lead to `handler` at CPL 0.
        case long(user: Bool)
    }

    enum Seen: Equatable {
        case exit(EventKind, value: UInt64)
        case window(rip: UInt64)
        case debug(rip: UInt64)
        case timeout
        case error
    }

    /// A machine of 1 MiB with code at 0x1000.
    func machine(_ code: [UInt8], _ mode: Mode, handler: [UInt8] = []) throws(HostError) -> KVMEngine {
        let memory: GuestMemory
        do throws(SystemCallError) {
            memory = try GuestMemory(map: MemoryLayoutMap(regions: [
                .init(address: .init(0), bytes: 1 << 20, fileOffset: 0)
            ]))
        } catch { throw .call(error) }
        memory.write(code, at: .init(Self.code))
        memory.write(handler, at: .init(Self.handler))
        let engine = try KVMEngine(system: system, memory: memory, model: model, capabilities: EngineCapabilities())
        engine.assistsEmulation = false
        try engine.setState(state(mode, memory))
        return engine
    }

    private func state(_ mode: Mode, _ memory: GuestMemory) -> CPUState {
        var state = CPUState.reset()
        state.cs = SegmentRegister(limit: 0xFFFF, attributes: 0x9B)
        state.general.rip = Self.code
        state.general.rsp = 0x8000
        switch mode {
        case .real:
            break
        case .protected:
            enterProtectedMode(&state, memory, privilege: 0, codeAttributes: 0xC9B)
            for vector in 0..<32 as Range<UInt64> {
                memory.write(Self.gate(type: 0xEE00).bytes, at: .init(0x6000 + 8 * vector))
            }
        case .long(let user):
            memory.write(UInt64(0xB007).bytes, at: .init(0xA000))
            memory.write(UInt64(0xC007).bytes, at: .init(0xB000))
            memory.write(UInt64(0x87).bytes, at: .init(0xC000))
            enterProtectedMode(&state, memory, privilege: user ? 3 : 0, codeAttributes: 0xA9B)
            state.control.cr0 = 0x8000_0033
            state.control.cr3 = 0xA000
            state.control.cr4 = 0x620  // PAE, OSFXSR, OSXMMEXCPT
            state.control.efer = 0x500
            state.general.rflags |= 3 << 12
            for vector in 0..<32 as Range<UInt64> {
                memory.write(Self.gate(type: 0xEE00).bytes, at: .init(0x6000 + 16 * vector))
            }
        }
        return state
    }

    private static func gate(type: UInt64) -> UInt64 {
        handler & 0xFFFF | 0x08 << 16 | type << 32 | (handler >> 16) << 48
    }

    private func enterProtectedMode(_ state: inout CPUState, _ memory: GuestMemory, privilege: UInt16,
                                    codeAttributes: UInt16) {
        let flat = SegmentRegister(selector: privilege == 0 ? 0x10 : 0x23, limit: .max,
                                   attributes: 0xC93 | privilege << 5)
        state.control.cr0 |= 1
        state.cs = SegmentRegister(selector: privilege == 0 ? 0x08 : 0x1B, limit: .max,
                                   attributes: codeAttributes | privilege << 5)
        (state.ss, state.ds, state.es, state.fs, state.gs) = (flat, flat, flat, flat, flat)
        state.tr = SegmentRegister(selector: 0x28, base: 0x5000, limit: 0x67, attributes: 0x8B)
        state.gdtr = DescriptorTable(base: 0x4000, limit: 0x2F)
        state.idtr = DescriptorTable(base: 0x6000, limit: 0x7FF)
        // Null, kernel code and data, user code and data, TSS. Source: Intel SDM Vol. 3A, 3.4.5.
        let code: UInt64 = codeAttributes & 0x200 != 0 ? 0x00AF_9B00_0000_FFFF : 0x00CF_9B00_0000_FFFF
        let descriptors: [UInt64] = [
            0, code, 0x00CF_9300_0000_FFFF, code | 0x6000_0000_0000, 0x00CF_F300_0000_FFFF, 0x0000_8B00_5000_0067,
        ]
        for (i, value) in descriptors.enumerated() { memory.write(value.bytes, at: .init(0x4000 + 8 * UInt64(i))) }
        memory.write(UInt64(0x7000).bytes, at: .init(0x5004))  // ESP0, RSP0
        if codeAttributes & 0x200 == 0 { memory.write(UInt32(0x10).bytes, at: .init(0x5008)) }  // SS0
    }

    func see(_ engine: KVMEngine, _ stop: StopCondition) -> Seen {
        let until = hostTime() + Self.deadline
        engine.armKick(at: until)
        defer { engine.armKick(at: nil) }
        do throws(HostError) {
            while true {
                switch try engine.enter(until: stop) {
                case .exit(let exit): return .exit(exit.identity.kind, value: exit.value)
                case .window: return .window(rip: try engine.registers().linearRIP)
                case .debug: return .debug(rip: try engine.registers().linearRIP)
                case .kicked where hostTime() >= until: return .timeout
                case .kicked: continue
                }
            }
        } catch {
            return .error
        }
    }

    func report(_ value: UInt8) -> [UInt8] { [0xB0, value, 0xE6, Self.port] }  // MOV AL, value; OUT port, AL

    private func windowIsExact() throws(HostError) -> Bool {
        // MOV CX, 2000; LOOP $; STI; NOP; MOV CX, 60000; LOOP $; report
        let code: [UInt8] = [0xB9, 0xD0, 0x07, 0xE2, 0xFE, 0xFB, 0x90, 0xB9, 0x60, 0xEA, 0xE2, 0xFE] + report(1)
        return see(try machine(code, .real), .window) == .window(rip: Self.code + 7)
    }

    private func breakpointHits(user: Bool) throws(HostError) -> Bool {
        // NOP; NOP; NOP; report 1. The handler reports 2, where the breakpoint reaches the guest instead.
        let engine = try machine([0x90, 0x90, 0x90] + report(1), .long(user: user), handler: report(2))
        return see(engine, .breakpoint(Self.code + 2)) == .debug(rip: Self.code + 2)
    }

    private func stepWorks(user: Bool) throws(HostError) -> Bool {
        let engine = try machine([0x90, 0x90, 0x90] + report(1), .long(user: user), handler: report(2))
        return see(engine, .step) == .debug(rip: Self.code + 1) && see(engine, .step) == .debug(rip: Self.code + 2)
    }

    /// Whether a step over the IRETQ that leads to CPL 3 stops there and leaves no trap flag behind.
    private func stepReachesUser() throws(HostError) -> Bool {
        let engine = try machine([0x48, 0xCF], .long(user: false), handler: report(2))  // IRETQ
        let user = Self.code + 0x100
        engine.memory.write([0x90, 0x90, 0x9C, 0x58, 0xF6, 0xC4, 0x01, 0x75, 0x04] + report(1) + report(3),
                            at: .init(user))  // NOP; NOP; PUSHF; POP RAX; TEST AH, 1; JNZ: report 3; report 1
        var state = try engine.state()
        state.general.rsp = 0x8000
        try engine.setState(state)
        let frame: [UInt64] = [user, 0x1B, 0x3202, 0x9000, 0x23]
        engine.memory.write(frame.flatMap(\.bytes), at: .init(0x8000))
        guard see(engine, .step) == .debug(rip: user) else { return false }
        return see(engine, .none) == .exit(.portWrite, value: 1)
    }

    private func resumeFlagPasses() throws(HostError) -> Bool {
        let engine = try machine([0x90, 0x90, 0x90] + report(1), .protected, handler: report(2))
        guard see(engine, .breakpoint(Self.code + 1)) == .debug(rip: Self.code + 1) else { return false }
        do throws(SystemCallError) {
            var registers = try engine.vcpu.registers()
            registers.rflags |= RFlags.resume
            try engine.vcpu.set(registers)
        } catch { throw .call(error) }
        ckvm_set_immediate_exit(engine.vcpu.run, 0)
        engine.armKick(at: hostTime() + Self.deadline)
        defer { engine.armKick(at: nil) }
        guard ckvm_run(engine.vcpu.descriptor.rawValue) == 0 else { return false }
        return Int32(bitPattern: engine.vcpu.run.pointee.exit_reason) == KVM_EXIT_IO
    }

    /// Whether an interrupt could enter right behind STI when the guest is entered there.
    private func losesInterruptShadow() throws(HostError) -> Bool {
        let engine = try machine([0x90, 0x90] + report(1), .long(user: false))
        var state = try engine.state()
        state.general.rflags |= RFlags.interrupt
        state.events.interruptShadow = 1
        try engine.setState(state)
        return see(engine, .window) == .window(rip: Self.code)
    }

    /// Instructions that a kernel-mode guest may use and that a KVM emulating them may lack.
    private static let emulated: [(name: String, long: Bool, bytes: [UInt8])] = [
        ("INT3", false, [0xCC]),
        ("INT n", false, [0xCD, 0x06]),
        ("CMPXCHG16B", true, [0x48, 0x8D, 0x34, 0x25, 0x00, 0x90, 0x00, 0x00, 0x48, 0x0F, 0xC7, 0x0E]),
        ("MOVDQA", true, [0x66, 0x0F, 0x6F, 0xC1]),
        ("ADDPD", true, [0x66, 0x0F, 0x58, 0xC1]),
        ("FADDP", true, [0xD9, 0xE8, 0xD9, 0xE8, 0xDE, 0xC1]),
        ("POPCNT", true, [0xF3, 0x48, 0x0F, 0xB8, 0xC0]),
        ("FXSAVE", true, [0x0F, 0xAE, 0x04, 0x25, 0x00, 0x90, 0x00, 0x00]),
        ("INVLPG", true, [0x0F, 0x01, 0x3C, 0x25, 0x00, 0x90, 0x00, 0x00]),
        ("WBINVD", true, [0x0F, 0x09]),
    ]

    /// The names of the instructions that don't run at CPL 0 here.
    private func instructionsThatFail() throws(HostError) -> [String] {
        var failing: [String] = []
        for probe in Self.emulated {
            let engine = try machine(probe.bytes + report(1), probe.long ? .long(user: false) : .protected,
                                     handler: report(1))
            if see(engine, .none) != .exit(.portWrite, value: 1) { failing.append(probe.name) }
        }
        return failing
    }

    /// How long a kick takes to come through: the median, since a busy host delays some.
    private func kickLatency() throws(HostError) -> Nanoseconds {
        let engine = try machine([0xEB, 0xFE], .real)
        let kicker = engine.kicker
        var latencies: [Nanoseconds] = []
        for _ in 0..<15 {
            let moment = hostTime() + .milliseconds(1)
            engine.armKick(at: moment)
            _ = try engine.enter(until: .none)
            latencies.append(hostTime() - moment)
        }
        engine.armKick(at: nil)
        kicker.kick()
        return latencies.sorted()[latencies.count / 2]
    }

    private func writesAreReported() throws(HostError) -> Bool {
        // MOV BYTE [page * 256], 1
        func write(_ page: UInt8) -> [UInt8] { [0xC6, 0x06, 0x00, page, 0x01] }
        let engine = try machine(write(0x50) + report(1) + write(0x60) + report(2) + write(0x50) + report(3), .real)
        try engine.trackWrites()
        try engine.takeWrittenPages { _ in }
        for (value, page, other) in [(1, 5, 6), (2, 6, 5), (3, 5, 6)] as [(UInt64, Int, Int)] {
            guard see(engine, .none) == .exit(.portWrite, value: value) else { return false }
            var written: Set<Int> = []
            try engine.takeWrittenPages { written.insert($0) }
            // A page that is mapped for its first use, which may be a fetch, can be reported too.
            if !written.contains(page) || written.contains(other) { return false }
        }
        return true
    }

    private func timestampIsTrappable() throws(HostError) -> Bool {
        // CR4.TSD set: RDTSC at CPL 3 has to raise #GP.
        let engine = try machine([0x0F, 0x31] + report(1), .long(user: true), handler: report(2))
        var state = try engine.state()
        state.control.cr4 |= 4
        try engine.setState(state)
        return see(engine, .none) == .exit(.portWrite, value: 2)
    }

    private func msrFilterWorks() throws(HostError) -> Bool {
        // MOV ECX, 0x10; RDMSR
        let engine = try machine([0x66, 0xB9, 0x10, 0, 0, 0, 0x0F, 0x32] + report(1), .real)
        return see(engine, .none) == .exit(.timestamp, value: 0)
    }

    /// Everything, for `vmrr doctor`.
    public func all() throws(HostError) -> (EngineCapabilities, [SelfTestResult]) {
        let found = try capabilities()
        var results: [SelfTestResult] = []
        func add(_ name: String, _ works: Bool, _ good: String, _ bad: String, gap: Bool = false) {
            results.append(SelfTestResult(name: name, outcome: works ? .works : gap ? .gap : .lacks,
                                          detail: works ? good : bad))
        }
        add("interrupt window", found.exactWindow, "exits at the first interruptible boundary",
            "exits late: interrupts enter at exits or anchors instead")
        add("breakpoint, CPL 0", found.breakpointKernel, "stops the guest for the monitor",
            found.landsBySteps ? "doesn't hit: the soft engine finds positions between exits again"
                : "doesn't hit: interrupts between exits wait for the next exit", gap: !found.stepKernel)
        add("breakpoint, CPL 3", found.breakpointUser, "stops the guest for the monitor",
            found.landsBySteps ? "reaches the guest or is lost: the soft engine finds positions in user code again"
                : "reaches the guest or is lost: user code gets its interrupts at exits")
        add("single-step, CPL 0", found.stepKernel, "one instruction at a time", "doesn't stop")
        add("single-step, CPL 3", found.stepUser, "one instruction at a time",
            "reaches the guest or is lost: no stepping through user code")
        add("single-step to CPL 3", found.stepToUser, "stops at the first instruction of user code",
            "is lost: interrupts that come while the kernel has them off wait for an exit with them on")
        add("resume flag", found.resumeFlag, "carries the guest past a breakpoint",
            "isn't honoured: breakpoints are passed by a step")
        add("interrupt shadow", !found.losesInterruptShadow, "STI holds interrupts off for one instruction more",
            "forgotten when the host interrupts the guest right behind STI: interrupts that come there wait for one "
                + "instruction more")
        results.append(SelfTestResult(
            name: "undefined flags", outcome: .works,
            detail: found.profile.undefinedFlags == UndefinedFlags() ? "as AMD's family 19h leaves them" : "not as AMD's family 19h "
                + "leaves them; the trace says how, and the soft engine does the same"))
        add("bit tests", !found.profile.bitTestsVary, "BT leaves the same flags each time",
            "BT leaves OF and AF to chance: replay gives them their recorded values where interrupts enter between exits")
        add("CPUID", found.profile.ownFeatures == nil, "answers as the CPU model says",
            "shows the processor's own features in spite of the CPU model: a guest that uses more than the model has replays only here")
        let inUserMode = try answer(1, user: true)
        add("CPUID at CPL 3", inUserMode.map(model.entries.contains) ?? true,
            "answers as the CPU model says", "answers as the processor does: what a program makes of it is not recorded", gap: true)
        add("MSR filter", try msrFilterWorks(), "RDMSR of the timestamp counter comes to the monitor",
            "MSR reads can't be recorded", gap: true)
        add("RDTSC at CPL 3", try timestampIsTrappable(), "can be made to fault by a kernel (CR4.TSD), not by the monitor: a "
                + "program that uses it where CPUID hides it isn't recorded",
            "can't be made to fault, not even by a kernel: a program that uses it where CPUID hides it isn't recorded",
            gap: true)
        let latency = try kickLatency()
        add("kick", latency < .milliseconds(1), "stops a running guest within \(latency.rawValue / 1000) µs",
            "took \(latency.rawValue / 1000) µs: timer interrupts come late")
        let failing = try instructionsThatFail()
        add("instructions at CPL 0", failing.isEmpty, "all that were tried run",
            "not emulated: \(failing.joined(separator: ", ")); the soft engine executes these")
        add("dirty pages", try writesAreReported(), "the bitmap has each page that was written",
            "pages are written unnoticed: positions between exits and checkpoints would be wrong", gap: true)
        return (found, results)
    }
}

extension FixedWidthInteger {
    /// The bytes in little-endian order.
    var bytes: [UInt8] { withUnsafeBytes(of: littleEndian) { [UInt8]($0) } }
}
