import Testing
import VMCore

/// Two engines that take each step together: the first that they see otherwise is an error.
///
/// The reference's answers count. Each has memory of its own, in which the monitor's writes are made good before a step.
final class LockStepEngine: Engine {
    struct Difference: Error, CustomStringConvertible {
        var description: String
    }

    let name = "lock-step"
    let capabilities: EngineCapabilities
    let reference: any Engine
    let subject: SoftEngine
    var memory: GuestMemory { reference.memory }
    var profile: ProcessorProfile { subject.profile }
    private(set) var steps = 0
    private var delivers = false
    private var exit: Exit?
    private var last = CoreRegisters()

    init(reference: any Engine, subject: SoftEngine) {
        self.reference = reference
        self.subject = subject
        capabilities = subject.capabilities
    }

    func enter(until stop: StopCondition) throws(HostError) -> Arrival {
        if let arrival = try settle() { return arrival }
        while true {
            if stop == .window, isInterruptible { return .window }
            last = try subject.registers()
            var arrival = try reference.enter(until: .step)
            // A repeated string instruction comes back between iterations, by itself or for a kick: the subject takes it
            // whole, so it is brought to its end, and a kick within it is one after it.
            var isKicked = false
            while try isBetweenIterations(arrival) {
                if case .kicked = arrival { isKicked = true }
                arrival = try reference.enter(until: .step)
            }
            if isKicked, case .debug = arrival { arrival = .kicked }
            // A kick comes before the step or after it.
            if case .kicked = arrival, try reference.registers() == last { return arrival }
            steps += 1
            var other = try subject.enter(until: .step)
            // Delivery is a step of its own in one engine and belongs to the handler's first in the other.
            if delivers, try reference.registers() != subject.registers() { other = try subject.enter(until: .step) }
            delivers = false
            // A step over HLT is a step to KVM.
            if case .exit(let exit) = other, exit.identity.kind == .halt, case .debug = arrival {
                try compareRegisters()
                return other
            }
            try alignIdentification()
            try compare(arrival, other)
            switch arrival {
            case .exit, .kicked: return arrival
            default:
                if stop == .step { return .debug }
                if case .breakpoint(let address) = stop, try registers().linearRIP == address { return .debug }
            }
        }
    }

    private func isBetweenIterations(_ arrival: Arrival) throws(HostError) -> Bool {
        let now = try reference.registers()
        guard now.linearRIP == last.linearRIP else { return false }
        switch arrival {
        case .debug: return try isRepeated(last)
        case .kicked:
            guard now != last else { return false }
            return try isRepeated(last)
        default: return false
        }
    }

    private func isRepeated(_ registers: CoreRegisters) throws(HostError) -> Bool {
        PageWalk(memory: memory, state: registers).repeatedStringLength() != nil
    }

    /// What CPUID returns under single-step is the host's on some KVMs: no matter of the engines'.
    private func alignIdentification() throws(HostError) {
        guard PageWalk(memory: memory, state: last).bytes(at: last.linearRIP, count: 2) == [0x0F, 0xA2] else { return }
        try reference.setState(subject.state())
    }

    private func fail(_ text: String) -> HostError {
        let code = PageWalk(memory: memory, state: last).bytes(at: last.linearRIP, count: 15)
        return .cannotLand("step \(steps) at \(hex(last.linearRIP)), \(code.map { hex($0) }.joined(separator: " ")): \(text)")
    }

    private func compare(_ a: Arrival, _ b: Arrival) throws(HostError) {
        switch (a, b) {
        case (.exit(let x), .exit(let y)):
            guard x.identity == y.identity, x.data != nil || x.value == y.value || isRead(x) else {
                throw fail("exit \(x.identity) = \(hex(x.value)) and \(y.identity) = \(hex(y.value))")
            }
            exit = y
        case (.debug, .debug), (.kicked, .debug): try compareRegisters()
        default: throw fail("\(a) and \(b)")
        }
    }

    private func isRead(_ exit: Exit) -> Bool {
        switch exit.identity.kind {
        case .portWrite, .mmioWrite, .msrWrite: false
        default: true
        }
    }

    private func compareRegisters() throws(HostError) {
        let a = try reference.registers(), b = try subject.registers()
        guard a != b else { return }
        throw fail(Self.differences(a, b).joined(separator: ", "))
    }

    static func differences(_ a: CoreRegisters, _ b: CoreRegisters) -> [String] {
        var found: [String] = []
        func look(_ name: String, _ x: Any, _ y: Any) {
            for (p, q) in zip(Mirror(reflecting: x).children, Mirror(reflecting: y).children) {
                if let m = p.value as? any FixedWidthInteger, let n = q.value as? any FixedWidthInteger {
                    if "\(m)" != "\(n)" { found.append("\(name).\(p.label ?? "") \(hex(m)) and \(hex(n))") }
                } else {
                    look("\(name).\(p.label ?? "")", p.value, q.value)
                }
            }
        }
        look("", a, b)
        return found
    }

    func answer(_ exit: Exit) throws(HostError) {
        try reference.answer(exit)
        var other = exit
        if let data = exit.data, let copy = self.exit?.data {
            copy.copyMemory(from: UnsafeRawBufferPointer(data))
            other.data = copy
        }
        try subject.answer(other)
    }

    func settle() throws(HostError) -> Arrival? {
        var a = try reference.settle()
        // Finishing an instruction counts as a step.
        if case .debug? = a { a = nil }
        let b = try subject.settle()
        switch (a, b) {
        case (nil, nil):
            try compareRegisters()
            return nil
        case (let a?, let b?):
            try compare(a, b)
            return a
        default: throw fail("settling: \(String(describing: a)) and \(String(describing: b))")
        }
    }

    var isInterruptible: Bool { subject.isInterruptible }
    func isReadyForNMI() throws(HostError) -> Bool { try subject.isReadyForNMI() }
    func queueInterrupt(_ vector: UInt8) throws(HostError) {
        try reference.queueInterrupt(vector)
        try subject.queueInterrupt(vector)
        delivers = true
    }
    func queueNMI() throws(HostError) {
        try reference.queueNMI()
        try subject.queueNMI()
        delivers = true
    }
    var taskPriority: UInt8 {
        get { reference.taskPriority }
        set {
            reference.taskPriority = newValue
            subject.taskPriority = newValue
        }
    }
    func state() throws(HostError) -> CPUState { try reference.state() }
    func setState(_ state: CPUState) throws(HostError) {
        try reference.setState(state)
        try subject.setState(state)
    }
    var wantsRegisters = false
    func registers() throws(HostError) -> CoreRegisters { try reference.registers() }
    func debugRegistersActive() throws(HostError) -> Bool { try reference.debugRegistersActive() }
    func makeAssistant() throws(HostError) -> SoftEngine? { nil }
    func trackWrites() throws(HostError) { try reference.trackWrites() }
    func takeWrittenPages(_ body: (Int) -> Void) throws(HostError) { try reference.takeWrittenPages(body) }
    func armKick(at moment: Nanoseconds?) { reference.armKick(at: moment) }
    var kicker: Kicker { reference.kicker }
}
