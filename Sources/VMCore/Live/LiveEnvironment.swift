import CKVM

/// How an interrupt's entry is placed.
public enum InterruptPlacement: Equatable, Sendable {
    /// As soon as the guest can take it.
    case immediate
    /// Where replay finds it again: at exits and exact windows first, between exits at anchors.
    case replayable
}

/// What the devices and the host's timing are to do.
public struct LiveOptions: Sendable {
    public var placement = InterruptPlacement.immediate
    /// Ends the run after this much time of the host.
    public var deadline: Nanoseconds?
    /// Delays timer interrupts by random spans made from this seed.
    public var timingSeed: UInt64?
    /// What machine time is made of.
    public var clock = MachineClock.Source.host

    public init() {}
}

/// The real world: devices, the host's clock, the serial line.
public final class LiveEnvironment: Environment {
    public private(set) var platform: Platform
    public let serial: SerialPort
    public let options: LiveOptions
    /// The end of the run, a moment of the host's clock.
    private let deadline: Nanoseconds?
    private let engine: any Engine
    private var clock: MachineClock
    /// The host's time at which this run began.
    private let began = hostTime()
    /// Whether the engine counts instructions, so that every point is a position that replay finds at once.
    public let isExact: Bool
    private var random: SeededGenerator?
    /// What RDRAND and RDSEED return: with instructions as the clock the same in each run.
    private var entropy: SeededGenerator

    /// Whether what the devices are given is kept for `takeDeviceInputs`.
    public var logsDeviceInput = false
    private var deviceInputs: [DeviceInput] = []

    /// Machine time of the last exit.
    public private(set) var lastExit: Nanoseconds
    public private(set) var latency = InterruptLatency()
    /// Called once for each thing the user should know about how interrupts are placed.
    public var notice: (String) -> Void = { _ in }
    /// Does what the user asks of the monitor while the guest runs, and says what came of it.
    public var perform: (MonitorCommand) throws -> String = { _ in "nothing is recorded: this is vmrr run" }

    /// Whether the engine is to be given the timestamp counter: after the guest's first look at it, and where time went by
    /// without an instruction.
    private var counterIsDue = false
    private var nextDue: Nanoseconds?
    /// A moment at which someone else wants to be asked.
    private var attention: Nanoseconds?
    private var request: PowerRequest?
    private var tripleFault = false
    private var panic = PanicWatch()
    /// The end of the run after a panic, for a guest that doesn't end by itself.
    private var panicEnds: Nanoseconds?
    private let stopRequested = SharedFlag()
    /// Whether the deadline or the user has ended the run, which may still be on its way to a good place to stop.
    private var endIsDue = false

    // Placement of the interrupt or NMI that waits.
    private var waitingSince: Nanoseconds?
    private var graceEnds: Nanoseconds?
    private var windowRequestedAt: ExitNumber?
    /// Whether it is an NMI.
    private var nmiWaits = false
    private var comesBack = Return.byKick

    /// What ends the way to a place where it may enter. No kick is due for it but in the first case.
    private enum Return {
        case byKick, atExit
        /// The engine says when the guest can take it.
        case atWindow
    }
    private var saidWaitsForExit = false

    // A guest that gets no instruction between two handlers.
    /// Where it stood when an interrupt entered at a window, looked at from time to time.
    private var lastStand: (rip: UInt64, sum: UInt64, at: Nanoseconds)?
    /// Until then it runs without an interrupt, unless it exits.
    private var restEnds: Nanoseconds?
    /// It is looked at after so many grace periods at the soonest, and then rests for one.
    private static let gracesOfWork: UInt64 = 4

    /// How long an interrupt waits for an exit of the guest's own before it gets a position between exits.
    ///
    /// A position at an exit costs a byte of trace and no search in replay; 200 µs is below what a timer's jitter is on
    /// a busy host. Where no breakpoint stops a guest, replay searches for a position with the soft engine, and the recording
    /// has to hash what was written at each: it pays to wait longer. In the lab a Linux boot exits once a millisecond: with
    /// 200 µs 3,899 of 6,653 interrupts came between exits, with 2 ms 1,767 of 9,485, with 10 ms 396 of 8,513.
    private let grace: Nanoseconds
    /// How soon the guest is looked at again when it can't take the interrupt at this instruction, at the soonest.
    private static let retry = Nanoseconds.microseconds(200)
    /// When that is: after an eighth of the time that it has waited. A kick can cost more than the least span, and one string
    /// instruction by which a kernel clears memory takes seconds in the lab.
    private static func nextLook(_ now: Nanoseconds, since: Nanoseconds) -> Nanoseconds {
        now + max(retry, Nanoseconds((now - since).rawValue / 8))
    }
    /// When devices are looked after while an interrupt waits for a window, at which the guest comes back by itself.
    ///
    /// What they raise enters after it, unless it is an NMI, so that a kick for each tick of a timer would only take the guest's
    /// time: in the lab so much that a handler never ended before the next tick. The spans double, and the moment stays the
    /// same from exit to exit.
    private func lookAfterDevices(_ now: Nanoseconds, since: Nanoseconds) -> Nanoseconds {
        let periods = (now - since).rawValue / grace.rawValue
        return since + Nanoseconds(grace.rawValue << UInt64(64 - periods.leadingZeroBitCount))
    }
    /// How long a guest that has panicked may take to say why and to reset the machine.
    private static let panicGrace = Nanoseconds.seconds(10)

    /// Machine time goes on from the devices' own: 0 at power-on, more where a recorded run goes live.
    public init(platform: Platform, serial: SerialPort, engine: any Engine, options: LiveOptions) {
        isExact = engine.retired != nil
        // A counter that counts on is machine time, and newer than the devices'.
        let start = max(platform.time, Nanoseconds(engine.timestampCounter ?? 0))
        clock = MachineClock(isExact ? options.clock : .host, now: start, engine: engine)
        entropy = SeededGenerator(seed: clock.source == .host ? .random(in: 0 ... .max) : 0)
        lastExit = start
        self.platform = platform
        self.serial = serial
        self.engine = engine
        self.options = options
        deadline = options.deadline.map { hostTime() + $0 }
        grace = engine.capabilities.breakpointKernel ? .microseconds(200) : .milliseconds(10)
        random = options.timingSeed.map { SeededGenerator(seed: $0) }
        serial.start(kicker: engine.kicker)
        reschedule(at: now)
    }

    /// Machine time since power-on.
    public var now: Nanoseconds { clock.now(engine) }

    /// A clock for what costs the host time: machine time at the last exit where it is the host's, else the host's own.
    public var hostPace: Nanoseconds { clock.source == .host ? lastExit : hostTime() }

    /// How long this run has taken, by the host's clock.
    public var elapsed: Nanoseconds { hostTime() - began }

    /// Something that ends the run from any thread or a signal handler's thread.
    public var stopper: @Sendable () -> Void {
        let flag = stopRequested
        let serial = serial
        return {
            flag.set()
            serial.wake()
        }
    }

    // MARK: Exits

    public func handle(_ exit: inout Exit, number: ExitNumber) throws {
        let now = now
        lastExit = now
        if let due = nextDue, due <= now {
            advance(to: now)
            reschedule(at: now)
        } else if Platform.dependsOnTime(exit.identity) {
            give(.time(now))
        }
        switch exit.identity.kind {
        case .timestamp:
            exit.value = now.rawValue  // a counter at 1 GHz
            if clock.source.isCounter, engine.canCountTimestamps, engine.timestampCounter == nil { counterIsDue = true }
        case .random: exit.value = entropy.next()
        case .shutdown: tripleFault = true
        default:
            if platform.handle(&exit, taskPriority: engine.taskPriority) { afterWrite(at: now) }
        }
    }

    private func afterWrite(at now: Nanoseconds) {
        if platform.hasOutput { sendOutput() }
        if let asked = platform.takeRequest() { request = asked }
        reschedule(at: now)
    }

    private func sendOutput() {
        let output = platform.takeSerialOutput()
        if !output.isEmpty {
            serial.send(output)
            panic.see(output)
            if panic.hasPanicked, panicEnds == nil { panicEnds = lastExit + Self.panicGrace }
        }
        let debug = platform.takeDebugOutput()
        if !debug.isEmpty { serial.send(debug) }
    }

    // MARK: Time

    private func advance(to now: Nanoseconds) { give(.advance(now)) }

    private func give(_ input: DeviceInput) {
        platform.receive(input)
        if logsDeviceInput { deviceInputs.append(input) }
    }

    /// What the devices were given from outside since the last call, oldest first.
    public func takeDeviceInputs(_ body: (DeviceInput) throws -> Void) rethrows {
        guard !deviceInputs.isEmpty else { return }
        defer { deviceInputs.removeAll(keepingCapacity: true) }
        for input in deviceInputs { try body(input) }
    }

    /// Brings in what was typed, as far as the guest's serial line takes it.
    private func deliverInput(at now: Nanoseconds) {
        var taken: [UInt8] = []
        serial.deliverInput(at: now) {
            guard platform.canReceiveSerial else { return false }
            if taken.isEmpty { give(.time(now)) }
            taken.append($0)
            platform.receive(.serial([$0]))
            return true
        }
        if logsDeviceInput, !taken.isEmpty { deviceInputs.append(.serial(taken)) }
    }

    /// Arms the kick for whatever comes next: a device, typed input, the deadline, the end of a grace period.
    private func reschedule(at now: Nanoseconds) {
        nextDue = earliest(platform.upcomingDeadline(after: now), serial.nextInput)
        var moment = nextDue
        // A device that is due gets its interrupt in at the guest's next exit, if one comes in time.
        if options.placement == .replayable, !isExact, let due = moment { moment = due + grace }
        if random != nil, let due = moment { moment = due + Nanoseconds(random!.next(below: 400_000)) }
        if comesBack == .atWindow, let since = waitingSince { moment = moment.map { max($0, lookAfterDevices(now, since: since)) } }
        if let ends = restEnds { moment = moment.map { max($0, ends) } }
        if !endIsDue { moment = earliest(moment, panicEnds) }
        if let asked = attention {
            if asked > now { moment = earliest(moment, asked) } else { attention = nil }
        }
        if comesBack == .byKick { moment = earliest(moment, graceEnds) }
        if clock.source == .host { moment = moment.map { max($0, self.now + engine.capabilities.shortestRun) } }
        clock.arm(engine, at: moment, limit: endIsDue ? nil : deadline)
    }

    /// Makes sure that `entry` is called at `moment` at the latest.
    public func attend(at moment: Nanoseconds) {
        attention = moment
        reschedule(at: now)
    }

    private func earliest(_ a: Nanoseconds?, _ b: Nanoseconds?) -> Nanoseconds? {
        guard let a, let b else { return a ?? b }
        return min(a, b)
    }

    // MARK: Entries

    public var wantsStop: Bool { stopRequested.isSet }

    public var wantsEntry: Bool {
        // The engine is asked first: an argument made by a call would have the interrupt controllers copied before it.
        let taskPriority = engine.taskPriority
        return platform.isHalted || endIsDue || counterIsDue || request != nil || tripleFault || panic.isOver
            || platform.needsProcessor(taskPriority: taskPriority)
    }

    public func entry(at point: EntryPoint, of machine: Machine) throws -> Entry {
        if let ending = ending(at: now) { return .stop(ending) }
        if point == .midInstruction { return .proceed }
        if platform.interrupts.tpr >> 4 != engine.taskPriority {
            // An exit changed the register in the interrupt controller; anywhere else it was the guest that wrote CR8.
            if point == .exit { return .taskPriority(platform.interrupts.tpr >> 4) }
            platform.interrupts.tpr = engine.taskPriority << 4
        }
        while true {
            if counterIsDue {
                counterIsDue = false
                return .timestampCounter(self.now.rawValue)
            }
            let now = now
            let due = min(nextDue ?? now, now)
            deliverInput(at: now)
            for command in serial.takeRequests() { serial.answer(try perform(command)) }
            if let moment = nextDue, moment <= now { advance(to: now) }
            reschedule(at: now)
            nmiWaits = platform.interrupts.isNMIPending
            let interrupts = platform.interrupts.interruptPending(tpr: engine.taskPriority << 4)
            if nmiWaits || interrupts {
                if waitingSince == nil { waitingSince = due }
                if let entry = try place(at: point, of: machine, now: now) { return entry }
            } else {
                stopWaiting(now: now)
            }
            guard platform.isHalted else { return .proceed }
            if let ending = ending(at: now) { return .stop(ending) }
            if nextDue == nil && !serial.mayReceive { return .stop(panic.hasPanicked ? .panic : .halted) }
            waitForInterrupt()
            if let ending = ending(at: self.now) { return .stop(ending) }
        }
    }

    /// Lets time go by until something is due, or may have come in.
    private func waitForInterrupt() {
        let due = earliest(nextDue, panicEnds)
        if clock.source == .host {
            serial.wait(until: earliest(due.map { clock.hostMoment($0) }, deadline))
        } else if let due {
            clock.skip(to: due, engine)
            counterIsDue = engine.timestampCounter != nil
        } else {
            serial.wait(until: deadline)
        }
    }

    private func ending(at now: Nanoseconds) -> Ending? {
        if let panicEnds, panic.isOver || request != nil || tripleFault || now >= panicEnds {
            endIsDue = true
            return .panic
        }
        switch request {
        case .debugExit(let value): return .debugExit(value)
        case .powerOff: return .powerOff
        case .reset: return .reset
        case nil: break
        }
        if tripleFault { return .tripleFault }
        if stopRequested.isSet || serial.wantsToQuit {
            endIsDue = true
            return .stopped
        }
        if let deadline, hostTime() >= deadline {
            endIsDue = true
            return .deadline
        }
        return nil
    }

    private func stopWaiting(now: Nanoseconds) {
        guard waitingSince != nil else { return }
        waitingSince = nil
        graceEnds = nil
        windowRequestedAt = nil
        comesBack = .byKick
        reschedule(at: now)
    }

    /// Lets the waiting NMI or interrupt in here, or arranges for a better place. Nil when a halted guest can't take it.
    private func place(at point: EntryPoint, of machine: Machine, now: Nanoseconds) throws -> Entry? {
        let since = waitingSince ?? now
        // No window says when an NMI can enter.
        if nmiWaits { comesBack = .byKick }
        if point == .window || point == .between, try engine.mayHaveLostShadow() {
            // Not to be the first window: where the byte before isn't STI that was here.
            windowRequestedAt = nil
            graceEnds = now
            return .step
        }
        // An NMI that is queued while another is in service enters after the next IRET, which some KVMs notice late.
        let ready = nmiWaits
            ? try options.placement == .immediate || engine.isReadyForNMI() : engine.isInterruptible

        if point == .exit || point == .window && !nmiWaits || options.placement == .immediate && !isExact {
            if let ends = restEnds, point == .between, now < ends {
                reschedule(at: now)
                return .proceed
            }
            restEnds = nil
            if ready {
                engine.wantsRegisters = false
                if point == .window, !isExact, try standsStill(now: now) {
                    restEnds = now + grace
                    graceEnds = restEnds
                    windowRequestedAt = nil
                    comesBack = .byKick
                    reschedule(at: now)
                    return .proceed
                }
                return enter(at: point, since: since, now: now)
            }
            if platform.isHalted { return nil }
            if options.placement == .immediate { return proceedToWindow(now: now) }
        }
        if isExact { return try placeExactly(at: point, ready: ready, of: machine, since: since, now: now) }
        if engine.capabilities.exactWindow, !nmiWaits, point == .exit || windowRequestedAt == machine.exit {
            windowRequestedAt = machine.exit
            return proceedToWindow(now: now)
        }
        return try placeBetweenExits(at: point, ready: ready, since: since, now: now)
    }

    /// Whether the guest stands where it stood when an interrupt entered some time ago: it gets no instruction between the end of a
    /// handler and the next interrupt. A host that is slow, or busy elsewhere, takes longer for a tick than a timer's period, and a
    /// guest that is never let go would stay where it is for good.
    private func standsStill(now: Nanoseconds) throws -> Bool {
        if let last = lastStand, now - last.at < Nanoseconds(grace.rawValue * Self.gracesOfWork) { return false }
        let registers = try engine.registers()
        let stand = (rip: registers.linearRIP, sum: registers.general.sum, at: now)
        defer { lastStand = stand }
        guard let last = lastStand, last.rip == stand.rip, last.sum == stand.sum else { return false }
        // To be placed between exits afterwards.
        return options.placement == .immediate || engine.capabilities.canAnchor(cpl: registers.cpl)
    }

    /// The guest comes back by itself.
    private func proceedToWindow(now: Nanoseconds) -> Entry {
        let way = engine.capabilities.exactWindow ? Return.atWindow : .byKick
        // Said once: the guest may make many exits on the way.
        if graceEnds != nil || comesBack != way {
            (graceEnds, comesBack) = (nil, way)
            reschedule(at: now)
        }
        return .proceedToWindow
    }

    /// Every point is as good as any other: the next one at which the guest can take it is the best.
    private func placeExactly(at point: EntryPoint, ready: Bool, of machine: Machine, since: Nanoseconds, now: Nanoseconds)
        throws -> Entry {
        if ready {
            // Not split, so that an engine with breakpoints finds the point as well. A step finishes it.
            if try endOfRepeatedString() != nil { return .step }
            return enter(at: point, since: since, now: now)
        }
        if nmiWaits {
            graceEnds = Self.nextLook(now, since: since)
            reschedule(at: now)
            return .proceed
        }
        if point == .exit { windowRequestedAt = machine.exit }
        return windowRequestedAt == machine.exit ? .proceedToWindow : .proceedToBoundary
    }

    /// Where a repeated string instruction ends that the guest stands at or within: it is not split.
    private func endOfRepeatedString() throws -> UInt64? {
        let registers = try engine.registers()
        return PageWalk(memory: engine.memory, state: registers).repeatedStringLength().map {
            registers.linearRIP &+ UInt64($0)
        }
    }

    private func placeBetweenExits(at point: EntryPoint, ready: Bool, since: Nanoseconds, now: Nanoseconds) throws
        -> Entry {
        if graceEnds == nil { graceEnds = since + grace }
        guard point == .between, now >= graceEnds! else {
            reschedule(at: now)
            return .proceed
        }
        guard ready else {
            // Where the engine says when the guest can take it, kicks until then would only take the guest's time.
            let hasWindow = engine.capabilities.exactWindow && !nmiWaits
            if hasWindow { comesBack = .atWindow } else { graceEnds = Self.nextLook(now, since: since) }
            reschedule(at: now)
            return hasWindow ? .proceedToBoundary : .proceed
        }
        comesBack = .byKick
        graceEnds = Self.nextLook(now, since: since)
        let registers = try engine.registers()
        guard engine.capabilities.canAnchor(cpl: registers.cpl), try !engine.debugRegistersActive() else {
            comesBack = .atExit
            if !saidWaitsForExit {
                saidWaitsForExit = true
                notice("this KVM can't stop a guest at CPL \(registers.cpl) between exits: "
                    + "interrupts that come there wait for the guest's next exit")
            }
            reschedule(at: now)
            return .proceed
        }
        reschedule(at: now)
        if let end = try endOfRepeatedString() {
            return engine.capabilities.breakpointKernel ? .proceedTo(end) : .proceed
        }
        engine.wantsRegisters = true
        return enter(at: point, since: since, now: now)
    }

    private func enter(at point: EntryPoint, since: Nanoseconds, now: Nanoseconds) -> Entry {
        waitingSince = nil
        graceEnds = nil
        windowRequestedAt = nil
        comesBack = .byKick
        restEnds = nil
        defer { reschedule(at: now) }
        let isNMI = platform.acknowledgeNMI()
        let vector = isNMI ? nil : platform.acknowledgeInterrupt(taskPriority: engine.taskPriority)
        guard isNMI || vector != nil else { return .proceed }
        latency.add(now - since, at: point)
        return vector.map { .interrupt($0) } ?? .nmi
    }

    public func missed(_ anchor: Anchor, machine: Machine, next: EventIdentity?) throws {
        preconditionFailure("a live machine is never sent to an anchor")
    }
}

/// How long interrupts waited for a place to enter.
public struct LatencyStatistics: Sendable {
    // Four buckets for each power of two nanoseconds, of constant size: what is said is too large by a quarter at most.
    private static let parts = 2
    private var buckets = [UInt64](repeating: 0, count: 64 << parts)
    public private(set) var count: UInt64 = 0
    public private(set) var worst = Nanoseconds(0)

    public init() {}

    public mutating func add(_ latency: Nanoseconds) {
        buckets[Self.bucket(latency.rawValue)] += 1
        count += 1
        worst = max(worst, latency)
    }

    /// By the highest bit and the two that follow it.
    private static func bucket(_ value: UInt64) -> Int {
        let power = 63 - max(1, value).leadingZeroBitCount
        let rest = power >= parts ? value >> UInt64(power - parts) : value << UInt64(parts - power)
        return power << parts | Int(rest & (1 << UInt64(parts) - 1))
    }

    /// The largest value of a bucket.
    private static func limit(_ bucket: Int) -> UInt64 {
        let (power, part) = (bucket >> parts, UInt64(bucket & (1 << parts - 1)))
        guard power >= parts else { return UInt64(1) << UInt64(power + 1) - 1 }
        return ((1 << UInt64(parts) | part) << UInt64(power - parts)) | (UInt64(1) << UInt64(power - parts) - 1)
    }

    /// The upper bound of the bucket that holds the fraction `p` (0–1) of all latencies.
    public func percentile(_ p: Double) -> Nanoseconds {
        var rest = UInt64((Double(count) * p).rounded(.up))
        for (i, n) in buckets.enumerated() {
            if n >= rest { return min(worst, Nanoseconds(Self.limit(i))) }
            rest -= n
        }
        return worst
    }
}

/// How long interrupts waited, by the position that they got.
public struct InterruptLatency: Sendable {
    public private(set) var all = LatencyStatistics()
    public private(set) var atExit = LatencyStatistics()
    public private(set) var atWindow = LatencyStatistics()
    public private(set) var betweenExits = LatencyStatistics()

    public init() {}

    mutating func add(_ latency: Nanoseconds, at point: EntryPoint) {
        all.add(latency)
        switch point {
        case .exit, .midInstruction: atExit.add(latency)
        case .window: atWindow.add(latency)
        case .between, .landed: betweenExits.add(latency)
        }
    }
}

/// A flag that any thread may set.
public final class SharedFlag: @unchecked Sendable {
    private let value: UnsafeMutablePointer<UInt32>

    public init() {
        value = .allocate(capacity: 1)
        value.initialize(to: 0)
    }
    deinit { value.deallocate() }

    public func set() { ckvm_store(value, 1) }
    public func clear() { ckvm_store(value, 0) }
    public var isSet: Bool { ckvm_load(value) != 0 }
}

/// A small generator with a seed, the same on every host (SplitMix64).
public struct SeededGenerator: RandomNumberGenerator, Sendable {
    private var state: UInt64

    public init(seed: UInt64) { state = seed }

    public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }

    public mutating func next(below bound: UInt64) -> UInt64 { next().multipliedFullWidth(by: bound).high }
}
