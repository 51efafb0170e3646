import VMCore

/// The same cases of system instructions in KVM and in the soft engine.
struct SystemRun {
    struct Count {
        var compared = 0
        /// KVM failed, and the soft engine stood in for it.
        var failed = 0
        /// What KVM does is a peculiarity that leaves nothing to compare.
        var peculiar = 0
        /// KVM raised an exception.
        var faulted = 0
        var all: Int { compared + failed + peculiar }
    }

    let kvm: SystemMachine
    let soft: SystemMachine
    private(set) var disagreements: [String] = []
    private(set) var counts: [String: Count] = [:]
    private(set) var peculiarities: [String: Int] = [:]
    /// Whether KVM emulates what a guest's kernel executes.
    let emulates: Bool

    init() throws {
        let host = try EngineHost.openKVM()
        let guest = BuiltInGuest.named("hello")!
        var configuration = MachineConfiguration(image: guest.guestImage(commandLine: ""),
                                                 memoryBytes: BuiltInGuest.memoryBytes, wallClockStart: 0)
        configuration.timestamps = .hide
        // With what the processor here does in its own way.
        let model = try configuration.build(on: host).model
        kvm = SystemMachine(try host.makeEngine(memory: try SystemMachine.memory(), model: model, trapping: []))
        soft = SystemMachine(try SoftEngine(memory: try SystemMachine.memory(), model: model))
        // UD2 with AC set: processors leave the flag alone.
        var probe = SystemCase(name: "UD2", mode: .long64, code: [0x0F, 0x0B], state: SystemMachine.state(.long64))
        probe.state.general.rflags |= SystemPeculiarity.alignment
        emulates = try kvm.run(probe).state.general.rflags & SystemPeculiarity.alignment == 0
    }

    var summary: String {
        let all = counts.values
        func sum(_ path: KeyPath<Count, Int>) -> Int { all.reduce(0) { $0 + $1[keyPath: path] } }
        let none = counts.filter { $0.value.compared == 0 }.keys.sorted().joined(separator: "; ")
        return "\(sum(\.compared)) compared, \(sum(\.faulted)) with exceptions; SKIPPED: \(sum(\.failed)) that this KVM can't "
            + "emulate, \(sum(\.peculiar)) that it does its own way, all those of \(none)"
    }

    mutating func compare(_ one: SystemCase) throws {
        var a = try kvm.run(one), b = try soft.run(one)
        var count = counts[one.name] ?? Count()
        defer { counts[one.name] = count }
        if a.isAssisted {
            count.failed += 1
            return
        }
        if a.vector != nil { count.faulted += 1 }
        for peculiarity in SystemPeculiarity.all where emulates && peculiarity.applies(one, a, b) {
            peculiarities[peculiarity.what, default: 0] += 1
            guard let mend = peculiarity.mend else {
                count.peculiar += 1
                return
            }
            mend(&a, &b)
        }
        count.compared += 1
        let differences = Self.differences(a, b)
        if !differences.isEmpty {
            disagreements.append("\(one) — KVM and soft engine: " + differences.joined(separator: ", "))
        }
    }

    static func differences(_ a: SystemOutcome, _ b: SystemOutcome) -> [String] {
        guard a.ending == b.ending else { return ["\(a.ending), vector \(a.vector as Any) and \(b.ending), \(b.vector as Any)"] }
        var found: [String] = []
        if a.exits != b.exits { found.append("exits \(a.exits) and \(b.exits)") }
        // What a processor holds after a triple fault is nobody's.
        guard a.ending == .report else { return found }
        if let x = a.vector, let y = b.vector, x != y { found.append("vector \(x) and \(y)") }
        found += LockStepEngine.differences(a.state.core, b.state.core)
        if a.state.debug != b.state.debug { found.append("\(a.state.debug) and \(b.state.debug)") }
        if a.state.msrs != b.state.msrs { found.append("MSRs \(a.state.msrs.map { hex($0) }) and \(b.state.msrs.map { hex($0) })") }
        if a.state.events != b.state.events { found.append("\(a.state.events) and \(b.state.events)") }
        var i = 0
        while i < min(a.memory.count, b.memory.count) {
            if a.memory[i..<(i + 8)] != b.memory[i..<(i + 8)] {
                func word(_ bytes: [UInt8]) -> UInt64 { (0..<8).reduce(0) { $0 | UInt64(bytes[i + $1]) << (8 * UInt64($1)) } }
                found.append("\(hex(SystemLayout.start + UInt64(i))): \(hex(word(a.memory))) and \(hex(word(b.memory)))")
            }
            i += 8
        }
        return found
    }
}
