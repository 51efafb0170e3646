import Trace
import VMCore

/// Answers a guest from its trace: no device, no clock.
public final class ReplayEnvironment: Environment {
    private var cursor: EventCursor
    /// The next event, unless it is plain.
    private var complex: TraceEvent?
    /// The next event where it is an exit with a value and nothing else: what nearly all are. Kept apart, since a
    /// whole event with its payload and anchor takes three reference counts and 160 bytes a copy.
    private var isPlain = false
    private var plainIdentity = EventIdentity(kind: .halt)
    private var plainValue: UInt64 = 0

    private var next: TraceEvent? {
        isPlain
            ? TraceEvent(identity: plainIdentity, value: plainValue, sequence: cursor.sequence - 1, exit: cursor.exit)
            : complex
    }
    /// The event that comes next; nil at the end of the trace.
    var upcoming: TraceEvent? { next }
    /// Where the replay is to stop; nil for the end.
    public var target: ExitNumber?
    /// The last exit that was answered.
    public private(set) var last: ExitNumber
    /// Called with each exit after it was answered.
    public var observe: ((Exit) -> Void)?
    private let stopFlag: SharedFlag
    /// Whether the engine makes exits of RDTSC, RDTSCP, RDRAND and RDSEED where the recording did.
    var canReadTimestamps = true
    /// The devices, run again beside the replay; nil where nobody wants to know their state.
    var devices: DeviceReplay?

    /// A linear address that ends the run between exits; not heeded on the way to an anchor.
    var breakAddress: UInt64?
    /// Whether the next event enters at an anchor.
    var isNextAnchored: Bool { !isPlain && complex?.identity.kind.isAnchored == true }
    /// How far the step of an instruction is; nil where the guest runs freely.
    var stepping: Stepping?
    /// A point after the last exit at which to stop, for engines that count; nil for none.
    var countGoal: Position?
    /// Whether the next event enters at a point whose instructions weren't counted, so that it has to be searched.
    var isNextUncounted: Bool { isNextAnchored && complex?.anchor?.instructions == 0 }

    /// An environment that stands nowhere: it must be moved to a place before it is used.
    public init(cursor: EventCursor, stopFlag: SharedFlag) {
        self.cursor = cursor
        last = cursor.exit
        self.stopFlag = stopFlag
    }

    // MARK: Places

    /// A place in the events of the trace.
    public struct Mark {
        fileprivate var cursor: EventCursor
        fileprivate var complex: TraceEvent?
        fileprivate var isPlain: Bool
        fileprivate var plainIdentity: EventIdentity
        fileprivate var plainValue: UInt64
        fileprivate var last: ExitNumber
        /// The chunk of events that the mark keeps in memory, and its bytes.
        var held: (chunk: UInt64, bytes: Int) { cursor.held }
    }

    /// Where the replay stands.
    public var mark: Mark {
        Mark(cursor: cursor, complex: complex, isPlain: isPlain, plainIdentity: plainIdentity, plainValue: plainValue,
             last: last)
    }

    /// Goes on from a mark.
    public func move(to mark: Mark) {
        (cursor, complex, isPlain) = (mark.cursor, mark.complex, mark.isPlain)
        (plainIdentity, plainValue, last) = (mark.plainIdentity, mark.plainValue, mark.last)
        lastSeen = ExitNumber(.max)
    }

    /// Goes on from before event `event`, the first that isn't behind the state at `exit`.
    public func move(to exit: ExitNumber, beforeEvent event: UInt64) throws {
        try cursor.seek(toEvent: event)
        guard cursor.exit == exit else {
            throw TraceError.corrupt(what: "event \(event) doesn't follow exit \(exit.rawValue)", place: "checkpoint table")
        }
        last = exit
        lastSeen = ExitNumber(.max)
        try advance()
    }

    /// Takes the next event that means something to the guest.
    private func advance() throws {
        repeat {
            isPlain = try cursor.nextPlainExit(&plainIdentity, &plainValue)
            if isPlain { return }
            complex = try cursor.next()
        } while try isForDevices(complex)
    }

    /// Keeps what the devices were given for the moment at which the replay goes on.
    private func isForDevices(_ event: TraceEvent?) throws -> Bool {
        guard let event else { return false }
        switch event.identity.kind {
        case .time, .mark: return true
        case .deviceTime, .serialInput:
            devices?.queue(event)
            return true
        default: return false
        }
    }

    // MARK: Exits

    public func handle(_ exit: inout Exit, number: ExitNumber) throws {
        // The common case: a plain value, the same access, no fault. It copies no event.
        if isPlain, plainIdentity == exit.identity, exit.data == nil {
            switch plainIdentity.kind {
            case .portWrite, .mmioWrite, .msrWrite:
                if exit.value != plainValue { try check(exit, against: next!, number: number) }
            default: exit.value = plainValue
            }
            last = number
            devices?.handle(exit, number: number)
            observe?(exit)
            return try advance()
        }
        guard let event = next else {
            throw Divergence(exit: number, expected: "the end of the trace", actual: Self.text(exit))
        }
        var identity = event.identity
        let flags = identity.flags
        // Whether the access faults is part of the answer, not of the question.
        identity.flags = 0
        guard identity == exit.identity else {
            let isCounter = identity.kind == .timestamp && identity.address < 2
            if !canReadTimestamps, isCounter || identity.kind == .random {
                throw HostError.needsSoftEngine("\(identity.text) at exit \(number.rawValue)")
            }
            throw Divergence(exit: number, expected: Self.text(event), actual: Self.text(exit))
        }
        switch identity.kind {
        case .portWrite, .mmioWrite, .msrWrite:
            try check(exit, against: event, number: number)
        default:
            try fill(&exit, from: event, number: number)
        }
        exit.identity.flags = flags
        last = number
        devices?.handle(exit, number: number)
        observe?(exit)
        try advance()
    }

    private func check(_ exit: Exit, against event: TraceEvent, number: ExitNumber) throws {
        let matches: Bool
        if let data = exit.data {
            matches = event.payload.map { $0.elementsEqual(UnsafeRawBufferPointer(data)) } ?? false
        } else {
            matches = exit.value == event.value
        }
        if !matches { throw Divergence(exit: number, expected: Self.text(event), actual: Self.text(exit)) }
    }

    private func fill(_ exit: inout Exit, from event: TraceEvent, number: ExitNumber) throws {
        guard let data = exit.data else {
            exit.value = event.value
            return
        }
        guard let payload = event.payload, payload.count == data.count else {
            throw TraceError.corrupt(what: "a string read without its \(data.count) bytes", place: "exit \(number.rawValue)")
        }
        data.copyBytes(from: payload)
    }

    // MARK: Entries

    public var wantsEntry: Bool {
        stepping != nil || countGoal != nil || breakAddress != nil || !isPlain && complex?.identity.kind.isExit != true || last == target || lastSeen.rawValue == .max
    }

    public var wantsStop: Bool { stopFlag.isSet }

    /// Gives up when the guest has run for this long without an exit: a recording never does.
    public var patience = Nanoseconds.seconds(5)
    /// No stretch between two exits can have taken longer: the time of the whole recording.
    public var longestElapsed = Nanoseconds.seconds(3600)
    private var patienceEnds = Nanoseconds(0)
    private var lastSeen = ExitNumber(.max)

    private func checkPatience(_ machine: Machine) throws {
        let now = hostTime()
        if last != lastSeen {
            lastSeen = last
            patienceEnds = now + patience
        } else if now >= patienceEnds {
            throw Divergence(exit: last, expected: next.map(Self.text) ?? "the end of the trace",
                             actual: "a guest that runs on without an exit")
        }
        machine.engine.armKick(at: patienceEnds)
    }

    public func entry(at point: EntryPoint, of machine: Machine) throws -> Entry {
        if stopFlag.isSet { return .stop(.stopped) }
        if let stepping, machine.hasStepped || last != stepping.start { return .stop(.endOfTrace) }
        if last == target { return .stop(.endOfTrace) }
        guard let event = next else { return .stop(.endOfTrace) }
        let kind = event.identity.kind
        if let countGoal, point != .midInstruction {
            guard last == countGoal.exit, let here = machine.engine.retiredSinceExit, here.rawValue < countGoal.instructions
            else { return .stop(.endOfTrace) }
            let left = InstructionCount(countGoal.instructions) - here
            // What enters beyond the goal isn't reached, and what enters at the goal comes after it.
            if let anchor = event.anchor, anchor.instructions >= countGoal.instructions || anchor.instructions == 0 {
                machine.engine.armKick(atInstruction: (machine.engine.retired ?? InstructionCount(0)) + left)
                return .proceed
            }
            machine.engine.armKick(atInstruction: (machine.engine.retired ?? InstructionCount(0)) + left)
        }
        if kind.isExit {
            if stepping != nil { return try step(machine, at: point) }
            if point == .between || lastSeen.rawValue == .max { try checkPatience(machine) }
            guard let breakAddress, point != .midInstruction else { return .proceed }
            if point == .between, try machine.engine.registers().linearRIP == breakAddress { return .stop(.endOfTrace) }
            return .proceedTo(breakAddress)
        }
        if stepping?.handler != nil {
            throw HostError.cannotLand("two events enter the guest at once, and here KVM doesn't step into either")
        }
        if point == .midInstruction {
            throw Divergence(exit: last.next, expected: Self.text(event), actual: "another exit of the same instruction")
        }
        switch kind {
        case .registerCheck:
            let actual = try machine.registerDigest()
            guard actual == event.value else {
                throw Divergence(exit: last, expected: "register digest \(hex(event.value))", actual: hex(actual))
            }
            try advance()
            return try entry(at: point, of: machine)
        case .interruptAtExit:
            guard point == .exit, machine.engine.isInterruptible else {
                throw Divergence(exit: last, expected: Self.text(event), actual: "a guest that can't take it")
            }
            return try enter(.interrupt(vector(of: event)), machine)
        case .nmiAtExit:
            guard try machine.engine.isReadyForNMI() else {
                throw Divergence(exit: last, expected: Self.text(event), actual: "a guest that can't take it")
            }
            return try enter(.nmi, machine)
        case .interruptAtWindow:
            if point != .exit, try machine.engine.mayHaveLostShadow() { return .step }
            if machine.engine.isInterruptible {
                guard try event.value == 0 || event.value == machine.registerDigest() & 0xFF else {
                    throw Divergence(exit: last, expected: Self.text(event),
                                     actual: "other registers there, at RIP \(hex(try machine.engine.registers().linearRIP))")
                }
                return try enter(.interrupt(vector(of: event)), machine)
            }
            if stepping != nil { return try step(machine, at: point) }
            if machine.engine.capabilities.exactWindow { return .proceedToWindow }
            guard machine.engine.capabilities.stepKernel else {
                throw HostError.cannotLand("it is the first interruptible boundary, and here KVM neither comes back "
                    + "there nor steps")
            }
            if let target = Self.stepTarget(of: try machine.engine.registers(), machine) { return .stepTo(target) }
            return .step
        case .interruptAtAnchor, .nmiAtAnchor, .endAtAnchor:
            guard let anchor = event.anchor else {
                throw TraceError.corrupt(what: "an anchor is missing", place: "exit \(last.rawValue)")
            }
            guard anchor.elapsed <= longestElapsed, anchor.instructions / 4 <= longestElapsed.rawValue else {
                throw TraceError.corrupt(what: "an anchor lies \(anchor.elapsed.seconds) s after the exit before it, longer "
                    + "than the recording took", place: "exit \(last.rawValue)")
            }
            if stepping != nil {
                guard try machine.isAt(anchor) else { return try step(machine, at: point) }
            } else if point != .landed {
                return .land(anchor)
            }
            if kind == .endAtAnchor { return .stop(.endOfTrace) }
            guard try kind == .nmiAtAnchor ? machine.engine.isReadyForNMI() : machine.engine.isInterruptible else {
                throw Divergence(exit: last, expected: Self.text(event), actual: "a guest that can't take it")
            }
            return try enter(kind == .nmiAtAnchor ? .nmi : .interrupt(vector(of: event)), machine)
        case .memoryWrite:
            return try enter(.memoryWrite(.init(event.identity.address), Array(event.payload ?? [])), machine)
        case .registerWrite:
            switch (event.identity.address, event.value) {
            case (EventIdentity.taskPriorityRegister, 0..<16):
                return try enter(.taskPriority(UInt8(event.value)), machine)
            case (EventIdentity.timestampRegister, _):
                guard machine.engine.canCountTimestamps else { throw HostError.needsSoftEngine(event.identity.text) }
                return try enter(.timestampCounter(event.value), machine)
            default:
                throw TraceError.corrupt(what: "\(event.identity.text) to \(event.value)", place: "exit \(last.rawValue)")
            }
        default:
            throw TraceError.corrupt(what: "an event of kind \(kind)", place: "exit \(last.rawValue)")
        }
    }

    private func enter(_ entry: Entry, _ machine: Machine) throws -> Entry {
        if stepping != nil { try stepInto(entry, machine) }
        devices?.enter(entry, after: last)
        try advance()
        return entry
    }

    private func vector(of event: TraceEvent) throws -> UInt8 {
        guard let vector = UInt8(exactly: event.identity.address) else {
            throw TraceError.corrupt(what: "interrupt vector \(event.identity.address)", place: "exit \(last.rawValue)")
        }
        return vector
    }

    public func missed(_ anchor: Anchor, machine: Machine, next: EventIdentity?) throws {
        let expected = self.next.map(Self.text) ?? "an anchor"
        if let count = machine.engine.retiredSinceExit, count.rawValue == anchor.instructions {
            let registers = try machine.engine.registers()
            throw Divergence(exit: last, expected: "\(expected) at RIP \(hex(anchor.rip)), \(count.rawValue) instructions "
                + "after the exit", actual: registers.linearRIP == anchor.rip
                    ? "other registers there" : "RIP \(hex(registers.linearRIP))")
        }
        throw Divergence(exit: last, expected: "\(expected) at RIP \(hex(anchor.rip))",
                         actual: next.map { "\($0.text) before it" } ?? "no such point in a time far longer than recorded")
    }

    // MARK: Words

    static func text(_ event: TraceEvent) -> String {
        var text = event.identity.text
        switch event.identity.kind {
        case .portWrite, .mmioWrite, .msrWrite:
            text += " = " + (event.payload.map { Self.bytes($0) } ?? hex(event.value))
        default: break
        }
        return text
    }

    static func text(_ exit: Exit) -> String {
        var text = exit.identity.text
        switch exit.identity.kind {
        case .portWrite, .mmioWrite, .msrWrite:
            text += " = " + (exit.data.map { Self.bytes(UnsafeRawBufferPointer($0)) } ?? hex(exit.value))
        default: break
        }
        return text
    }

    private static func bytes(_ bytes: some Collection<UInt8>) -> String {
        bytes.prefix(32).map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined(separator: " ")
            + (bytes.count > 32 ? " …" : "")
    }
}
