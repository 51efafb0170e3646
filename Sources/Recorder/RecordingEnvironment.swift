import Trace
import VMCore

/// A live environment that writes down everything that enters the guest.
public final class RecordingEnvironment: Environment {
    private let live: LiveEnvironment
    private let writer: TraceWriter
    public private(set) var interrupts = InterruptCounts()
    /// Whether replay can come to the very point at which the recording ended.
    public private(set) var endIsExact = true

    private var checkIsDue = false
    /// Whether it was asked what enters after the last exit.
    private var hasEntered = false
    /// Whether the last exit ended in a fault. There engines differ in whether its delivery is still to come, so that nothing is
    /// compared there: the next exit will do.
    private var hasFaulted = false
    /// When checkpoints are due, and who takes them. None are taken until `takeCheckpoints` is called.
    private var policy = CheckpointPolicy(.never)
    private var checkpointer: Checkpointer?
    private var checkpointIsDue = false
    private var saidSpread = false
    private var lastTime = Nanoseconds(0)
    /// How long the guest has run since whatever entered it last, and since when it has run without a break.
    private var guestTime = Nanoseconds(0)
    private var running = hostTime()
    private var lastAnchorThreadTime = Nanoseconds(0)
    /// The user's marks so far.
    private(set) var marks = 0
    /// An ending that waits for a point that replay can find.
    private var endRequestedAt: Nanoseconds?

    /// A digest of the registers is stored every so many exits: a power of two. It costs 8 bytes of trace and about
    /// 5 µs, and bounds how late a divergence is noticed that no exit's identity shows.
    static let checkInterval: UInt64 = 256
    /// How far apart the marks of machine time are: enough to play a console back, too rare to cost space.
    private static let timeInterval = Nanoseconds.milliseconds(10)
    /// How long an ending waits for an exit of the guest's own before it becomes an anchor.
    private static let endGrace = Nanoseconds.microseconds(500)
    /// How long it waits where the engine can't stop between exits.
    private static let longEndGrace = Nanoseconds.seconds(1)

    public init(live: LiveEnvironment, writer: TraceWriter) {
        self.live = live
        self.writer = writer
        live.logsDeviceInput = true
        live.perform = { [unowned self] in try perform($0) }
    }

    public func handle(_ exit: inout Exit, number: ExitNumber) throws {
        hasEntered = false
        try live.handle(&exit, number: number)
        hasFaulted = exit.identity.flags & EventIdentity.faulted != 0
        try recordDeviceInputs()
        if let data = exit.data {
            try writer.append(exit.identity, bytes: UnsafeRawBufferPointer(data))
        } else {
            try writer.append(exit.identity, value: exit.value)
        }
        if number.rawValue & (Self.checkInterval - 1) == 0 { checkIsDue = true }
        if policy.isDue(at: number, now: live.hostPace) { checkpointIsDue = true }
        if live.lastExit - lastTime >= Self.timeInterval {
            lastTime = live.lastExit
            try writer.append(EventIdentity(kind: .time, size: 8), value: lastTime.rawValue)
        }
        guestTime = Nanoseconds(0)
        // An engine that counts instructions needs no clock.
        if !live.isExact { running = hostTime() }
    }

    public var wantsEntry: Bool { live.wantsEntry || checkIsDue || checkpointIsDue || endRequestedAt != nil }
    public var wantsStop: Bool { live.wantsStop }

    public func entry(at point: EntryPoint, of machine: Machine) throws -> Entry {
        // Only what the guest runs counts, for that is what replay lets it run: not what is done here, a checkpoint say.
        if !live.isExact, point != .exit { guestTime = guestTime + (hostTime() - running) }
        defer { if !live.isExact { running = hostTime() } }
        // Before anything else enters: the first time that an exit is asked about.
        if checkpointIsDue, point == .exit, !hasFaulted {
            checkpointIsDue = false
            try takeCheckpoint(of: machine)
        }
        if checkIsDue, point == .exit, !hasFaulted {
            checkIsDue = false
            try writer.append(EventIdentity(kind: .registerCheck, size: 8), value: machine.registerDigest())
        }
        let events = writer.events
        let entry = try live.entry(at: point, of: machine)
        try recordDeviceInputs()
        if case .stop = entry, point == .exit, !hasEntered, !hasFaulted, writer.events == events { try takeLastCheckpoint(of: machine) }
        hasEntered = true
        switch entry {
        case .interrupt(let vector):
            try record(vector: vector, isNMI: false, at: point, of: machine)
        case .nmi:
            try record(vector: 2, isNMI: true, at: point, of: machine)
        case .taskPriority(let value):
            try writer.append(EventIdentity(kind: .registerWrite, size: 8, address: EventIdentity.taskPriorityRegister),
                              value: UInt64(value))
        case .timestampCounter(let value):
            try writer.append(EventIdentity(kind: .registerWrite, size: 8, address: EventIdentity.timestampRegister),
                              value: value)
        case .memoryWrite(let address, let bytes):
            try bytes.withUnsafeBytes {
                try writer.append(EventIdentity(kind: .memoryWrite, size: 1, count: UInt32($0.count),
                                                address: address.rawValue), bytes: $0)
            }
        case .stop(let ending):
            return try stop(ending, at: point, of: machine)
        case .proceed, .proceedToWindow, .proceedToBoundary, .proceedTo, .step, .stepTo, .land:
            break
        }
        return entry
    }

    private func recordDeviceInputs() throws {
        try live.takeDeviceInputs {
            switch $0 {
            case .time(let time):
                try writer.append(EventIdentity(kind: .deviceTime, size: 8), value: time.rawValue)
            case .advance(let time):
                try writer.append(EventIdentity(kind: .deviceTime, size: 8, address: 1), value: time.rawValue)
            case .serial(let bytes):
                try bytes.withUnsafeBytes {
                    try writer.append(EventIdentity(kind: .serialInput, size: 1, count: UInt32($0.count)), bytes: $0)
                }
            }
        }
    }

    // MARK: The user

    /// Does what the user asks of the monitor; returns what came of it.
    private func perform(_ command: MonitorCommand) throws -> String {
        switch command {
        case .mark(let name): return try mark(name)
        case .checkpoint:
            guard checkpointer != nil else { return "this recording takes no checkpoints: --checkpoint-every none" }
            checkpointIsDue = true
            return "taken at the guest's next exit"
        case .info:
            return "exit \(writer.exits.rawValue) after \(live.elapsed.seconds) s: \(writer.events) events, "
                + "\(interrupts.total) interrupts (\(interrupts.atAnchor) between exits), \(marks) marks, "
                + "\(writer.fileBytes >> 10) KiB"
        case .help, .resize, .resume, .quit: return ""
        }
    }

    private func mark(_ name: String?) throws -> String {
        marks += 1
        var bytes = Array((name.flatMap { $0.isEmpty ? nil : $0 } ?? "\(marks)").utf8)
        // Not within a character.
        while bytes.count > TraceMark.longestName || String(validating: bytes, as: UTF8.self) == nil { bytes.removeLast() }
        lastTime = max(lastTime, live.now)
        try writer.append(EventIdentity(kind: .time, size: 8), value: lastTime.rawValue)
        try bytes.withUnsafeBytes {
            try writer.append(EventIdentity(kind: .mark, size: 1, count: UInt32($0.count)), bytes: $0)
        }
        return "marked after exit \(writer.exits.rawValue): \(String(decoding: bytes, as: UTF8.self))"
    }

    // MARK: Checkpoints

    /// Has `checkpointer` take checkpoints after `exit`, when `policy` wants them.
    func takeCheckpoints(_ checkpointer: Checkpointer, when policy: CheckpointPolicy, after exit: ExitNumber) {
        self.checkpointer = checkpointer
        self.policy = policy
        self.policy.begin(at: exit, now: live.hostPace)
    }

    private func takeCheckpoint(of machine: Machine) throws {
        guard let checkpointer else { return }
        let pause = try checkpointer.take(of: machine, devices: live.platform, event: writer.events, guest: live.lastExit)
        policy.took(pause, at: machine.exit, now: live.hostPace)
        // For a recording that is killed; the end writes it again.
        if !saidSpread, policy.spreadTo != nil {
            saidSpread = true
            try writer.setMeta(CheckpointSpacing.key, policy.description)
        }
    }

    /// The end is where a search begins and what a comparison is about, so it is stored, where it is an exit after which
    /// nothing has entered.
    private func takeLastCheckpoint(of machine: Machine) throws {
        guard policy.isWanted(at: machine.exit) else { return }
        try takeCheckpoint(of: machine)
    }

    /// Waits until all checkpoints are with the writer, and says how far apart they were.
    func finishCheckpoints() -> CheckpointSpacing {
        checkpointer?.finish()
        checkpointer = nil
        return policy.description
    }

    private func record(vector: UInt8, isNMI: Bool, at point: EntryPoint, of machine: Machine) throws {
        let kind: EventKind
        switch point {
        case .exit, .midInstruction: kind = isNMI ? .nmiAtExit : .interruptAtExit
        case .window: kind = .interruptAtWindow
        case .landed, .between: kind = isNMI ? .nmiAtAnchor : .interruptAtAnchor
        }
        interrupts.count(kind)
        let identity = EventIdentity(kind: kind, address: UInt64(vector))
        if kind.isAnchored {
            try writer.append(identity, anchor: anchor(of: machine))
        } else {
            // A byte, so that a replay that finds another window says so there, and not at whatever comes of it.
            try writer.append(identity, value: kind == .interruptAtWindow ? machine.registerDigest() & 0xFF : 0)
        }
        guestTime = Nanoseconds(0)
    }

    private func anchor(of machine: Machine) throws -> Anchor {
        // The same in each run: no host's time.
        if let count = machine.engine.retiredSinceExit { return try machine.anchor(elapsed: Nanoseconds(count.rawValue)) }
        // The thread's time leaves out what other work took from the guest, but covers all exits since the last anchor.
        // No way is longer than the time since the last exit, also where the guest began to run without having been asked about.
        let elapsed = min(guestTime, threadTime() - lastAnchorThreadTime, live.now - live.lastExit)
        let anchor = try machine.anchor(elapsed: elapsed).brief
        lastAnchorThreadTime = threadTime()
        return anchor
    }

    /// Ends where replay can end: at an exit if one comes soon, else at an anchor.
    private func stop(_ ending: Ending, at point: EntryPoint, of machine: Machine) throws -> Entry {
        guard point != .exit, point != .midInstruction else { return .stop(ending) }
        let now = live.now
        let since = endRequestedAt ?? now
        endRequestedAt = since
        let registers = try machine.engine.registers()
        if live.isExact, PageWalk(memory: machine.engine.memory, state: registers).repeatedStringLength() != nil {
            return .step
        }
        let events = try machine.engine.state().events
        // With an exception that never gets delivered, the point is none that the guest comes to again.
        let canAnchor = try !events.exceptionPending && !events.exceptionInjected
            && machine.engine.capabilities.canAnchor(cpl: registers.cpl)
            && !machine.engine.debugRegistersActive() && !machine.engine.mayHaveLostShadow()
            && PageWalk(memory: machine.engine.memory, state: registers).repeatedStringLength() == nil
        let grace = live.isExact ? Nanoseconds(0) : canAnchor ? Self.endGrace : Self.longEndGrace
        if now - since < grace {
            live.attend(at: since + grace)
            return .proceed
        }
        if canAnchor {
            try writer.append(EventIdentity(kind: .endAtAnchor), anchor: anchor(of: machine))
        } else {
            endIsExact = false
        }
        return .stop(ending)
    }

    public func missed(_ anchor: Anchor, machine: Machine, next: EventIdentity?) throws {
        try live.missed(anchor, machine: machine, next: next)
    }
}
