/// How much work landings were.
public struct LandingStatistics: Sendable {
    public var landings = 0
    /// Times the guest came to an anchor's RIP.
    public var arrivals = 0
    /// Landings by counting instructions, without a search.
    public var counted = 0
    /// Landings that the soft engine made in the engine's place.
    public var assisted = 0
    /// Times a landing started over because the guest had run too far.
    public var overshoots = 0
    /// How long before the expected moment the search begins: a tenth shorter after each success, a quarter longer
    /// after each overshoot, so that about one landing in three overshoots. An overshoot costs one more free run; an
    /// arrival costs as much as some 60 instructions of one.
    private(set) var lead = Nanoseconds.microseconds(100)

    mutating func landedAtOnce() { lead = Nanoseconds(max(10_000, lead.rawValue / 10 * 9)) }
    mutating func overshot() { lead = Nanoseconds(min(5_000_000, lead.rawValue / 4 * 5)) }

    /// What the soft engine may execute in search of an anchor, in instructions for a nanosecond of the lead: twice what it took
    /// where that was most lately, less and less with time. QEMU's processor on a fast host executes two in short loops.
    private var searchRate = 2.0

    /// The soft engine landed after a free run: where it doesn't, all that it may execute is in vain, and that is many times as
    /// much. So about one in nine is to overshoot.
    mutating func assistedAtOnce() { lead = Nanoseconds(max(10_000, lead.rawValue / 20 * 19)) }
    mutating func overshotAssisted() { lead = Nanoseconds(min(20_000_000, lead.rawValue / 2 * 3)) }

    /// How many instructions a search may take that begins so long before the anchor.
    func searchBudget(within lead: Nanoseconds) -> UInt64 { UInt64(Double(lead.rawValue) * searchRate) &+ 200_000 }

    mutating func searched(_ instructions: UInt64, within lead: Nanoseconds) {
        searchRate = min(2, max(searchRate * 0.95, 2 * Double(instructions) / Double(max(lead.rawValue, 1))))
    }

    /// Landings in a row that the soft engine could not make, and how many go by before it is asked again.
    private var refusals: UInt64 = 0
    private var pause: UInt64 = 0

    /// Whether to try the soft engine: after a failure not for a while, each time longer.
    mutating func triesAssistant() -> Bool {
        guard pause == 0 else {
            pause -= 1
            return false
        }
        return true
    }

    mutating func assistantEnded(landed: Bool) {
        refusals = landed ? 0 : min(refusals + 1, 10)
        pause = landed ? 0 : 1 << refusals
        if landed { assisted += 1 }
    }

    public init() {}
}

/// Brings a guest to an anchor: to a point between two exits.
///
/// The engine stops the guest at each arrival at the anchor's RIP, and the state is compared. Arrivals are slow, so when
/// the way is long the guest first runs freely for most of the time that the recording took; should it get too far, it
/// is taken back to where it started and the search begins earlier. Two points with the same complete state are the same
/// point, so neither the clock nor a repetition has any influence on where the guest lands: only on how long it takes.
struct Landing {
    enum Outcome: Equatable {
        case landed
        /// Someone kicked the guest and wants it stopped.
        case interrupted
        /// The guest made an exit (nil: ran far too long) without having been at the anchor.
        case missed(EventIdentity?)
    }

    let machine: Machine
    let anchor: Anchor

    private var engine: any Engine { machine.engine }

    /// A free run shorter than this isn't worth the mark that it needs.
    private static let shortestFreeRun = Nanoseconds.microseconds(200)
    /// Searching is at most this many times slower than running: an arrival costs some 60 instructions, and loops are
    /// seldom shorter than two.
    private static let searchFactor: UInt64 = 30
    /// The search gives up when it has taken this many times as long as the recording took, and `patience` besides.
    private static let slowestSearch: UInt64 = 400
    private static let patience = Nanoseconds.seconds(4)
    /// How often a soft engine asks whether the user wants it stopped.
    private static let attention = Nanoseconds.milliseconds(20)
    /// The same for single steps: a step takes as long as some thousand instructions.
    private static let slowestSteps: UInt64 = 10_000

    func run(_ statistics: inout LandingStatistics) throws -> Outcome {
        statistics.landings += 1
        if engine.retired != nil, let distance {
            statistics.counted += 1
            return try count(distance, with: engine)
        }
        if try machine.isAt(anchor) { return .landed }
        // Where KVM can't stop at a breakpoint there is no other way but single steps.
        if !engine.capabilities.breakpointKernel || statistics.triesAssistant(), let assistant = try machine.assistant.get() {
            // Counting needs no search, and counts from here.
            if !engine.capabilities.breakpointKernel, distance == nil, let outcome = try runAndAssist(assistant, &statistics) { return outcome }
            let outcome = try runAssisted(assistant, &statistics)
            statistics.assistantEnded(landed: outcome == .landed)
            if let outcome { return outcome }
        }
        if !engine.capabilities.cheapBreakpoints, anchor.elapsed > statistics.lead + Self.shortestFreeRun,
            engine.capabilities.breakpointKernel {
            if let outcome = try runAndSearch(&statistics) { return outcome }
        }
        let slowest = engine.capabilities.breakpointKernel ? Self.slowestSearch : Self.slowestSteps
        return try search(&statistics, giveUp: Nanoseconds(anchor.elapsed.rawValue &* slowest) + Self.patience)
    }

    /// Instructions from here to the anchor; nil where they weren't counted, or it isn't known where the guest stands.
    private var distance: InstructionCount? {
        guard anchor.instructions > 0, let here = machine.instructions, here.rawValue <= anchor.instructions else { return nil }
        return InstructionCount(anchor.instructions) - here
    }

    /// Runs an engine that counts instructions to the anchor. Its registers are compared there, and no memory: that is
    /// left to checkpoints and the end, since it costs more than the way.
    private func count(_ distance: InstructionCount, with counter: any Engine) throws -> Outcome {
        guard let start = counter.retired else { return .missed(nil) }
        let end = start + distance
        defer {
            counter.armKick(atInstruction: nil)
            counter.armKick(at: nil)
        }
        while let now = counter.retired, now < end {
            counter.armKick(atInstruction: end)
            counter.armKick(at: hostTime() + Self.attention)
            switch try counter.enter(until: .none) {
            case .exit(let exit): return .missed(exit.identity)
            default: if machine.environment.wantsStop { return .interrupted }
            }
        }
        let registers = try counter.registers()
        guard let flags = anchor.flags(of: registers, counter.profile).first else { return .missed(nil) }
        if flags != registers.general.rflags { try counter.setFlags(flags) }
        return .landed
    }

    /// The soft engine's budget: so many times as long as the recording took. It is some 100 times faster than a KVM that
    /// emulates, and some 20 times slower than one on hardware, where running freely finds the anchor in twice the time.
    private static let assistantFactor: UInt64 = 4
    private static let assistantPatience = Nanoseconds.milliseconds(5)

    /// Lets the soft engine run from here to the anchor and takes its state over. Nil, with all as it was, where it
    /// can't: it lacks an instruction, takes too long, or goes another way.
    private func runAssisted(_ assistant: Assistant, _ statistics: inout LandingStatistics) throws -> Outcome? {
        let start = try engine.state()
        let watch = try machine.watch.get()
        try watch.mark()
        let limit: AssistantLimit = engine.capabilities.breakpointKernel
            ? .time(hostTime() + Nanoseconds(anchor.elapsed.rawValue &* Self.assistantFactor) + Self.assistantPatience)
            : .instructions(for: anchor.elapsed)
        var outcome: Outcome?
        do {
            try assistant.start(from: start)
            if let distance {
                statistics.counted += 1
                outcome = try count(distance, with: assistant.engine)
                assistant.reportWrites()
                if outcome == .landed, try !anchor.isMemory(machine.completeDigest(of: assistant.engine)) { outcome = nil }
                if case .missed? = outcome { outcome = nil }
            } else {
                outcome = try search(with: assistant, limit, &statistics)
            }
        } catch let error as HostError {
            guard error.isLackOfSoftEngine else { throw error }
        }
        assistant.reportWrites()
        if outcome != nil {
            try engine.setState(assistant.engine.state())
        } else {
            try engine.setState(start)
            try watch.rewind()
        }
        return outcome
    }

    /// How long the soft engine may search.
    private enum AssistantLimit {
        /// To a moment of the host's clock: where there are other ways, which may be faster.
        case time(Nanoseconds)
        /// So many instructions: where there is hardly another way, a busy host must not end the search.
        case instructions(UInt64)

        /// More instructions than any processor executes in a time: four a nanosecond, and some for what clocks miss.
        static func instructions(for time: Nanoseconds) -> Self { .instructions(time.rawValue &* 4 &+ 4_000_000) }
    }

    private func search(with assistant: Assistant, _ limit: AssistantLimit, _ statistics: inout LandingStatistics) throws
        -> Outcome? {
        let soft = assistant.engine
        var until = Nanoseconds(.max), last = InstructionCount(.max)
        switch limit {
        case .time(let moment): until = moment
        case .instructions(let count): last = InstructionCount((soft.retired?.rawValue ?? 0) &+ count)
        }
        // Not at each arrival: there may be millions, and asking the clock takes longer than the way between two.
        soft.armKick(at: min(until, hostTime() + Self.attention))
        soft.filterArrivals(by: anchor)
        defer {
            soft.armKick(at: nil)
            statistics.arrivals += soft.endFilter()
        }
        while true {
            switch try soft.enter(until: .breakpoint(anchor.rip)) {
            case .exit: return nil
            case .debug:
                statistics.arrivals += 1
                if try machine.isAt(anchor, with: soft, reportWrites: assistant.reportWrites) { return .landed }
            case .kicked:
                if machine.environment.wantsStop { return .interrupted }
                if hostTime() >= until { return nil }
                if let retired = soft.retired, retired >= last { return nil }
                soft.armKick(at: min(until, hostTime() + Self.attention))
            case .window: continue
            }
        }
    }

    /// Where KVM can't stop at breakpoints: lets it run freely for most of the way, the soft engine for the rest; over again
    /// from an earlier moment after each overshoot, as long as that gains more than it costs to be behind the anchor once more.
    /// Nil, with all as it was, when no free run is left.
    private func runAndAssist(_ assistant: Assistant, _ statistics: inout LandingStatistics) throws -> Outcome? {
        var lead = min(statistics.lead, Nanoseconds(anchor.elapsed.rawValue / 3))
        guard anchor.elapsed > lead + Self.shortestFreeRun else { return nil }
        let start = try engine.state()
        let watch = try machine.watch.get()
        try watch.mark()
        repeat {
            var outcome = try runFreely(for: anchor.elapsed - lead)
            if case .interrupted? = outcome { return .interrupted }
            if outcome == nil {
                do {
                    try assistant.start(from: engine.state())
                    let before = assistant.engine.retired?.rawValue ?? 0
                    outcome = try search(with: assistant, .instructions(statistics.searchBudget(within: lead)), &statistics)
                    if outcome == .landed {
                        statistics.searched((assistant.engine.retired?.rawValue ?? 0) &- before, within: lead)
                    }
                } catch let error as HostError {
                    guard error.isLackOfSoftEngine else { throw error }
                }
                assistant.reportWrites()
                if outcome == .landed || outcome == .interrupted {
                    if lead == statistics.lead { statistics.assistedAtOnce() }
                    statistics.assisted += 1
                    try engine.setState(assistant.engine.state())
                    return outcome
                }
            }
            try rewind(to: start, watch, widening: &lead, &statistics)
        } while anchor.elapsed.rawValue > 4 * lead.rawValue
        return nil
    }

    /// Runs freely, then searches; over again from an earlier moment after each overshoot. Nil when no free run is left.
    private func runAndSearch(_ statistics: inout LandingStatistics) throws -> Outcome? {
        let start = try engine.state()
        let watch = try machine.watch.get()
        try watch.mark()
        var lead = statistics.lead
        while anchor.elapsed > lead + Self.shortestFreeRun {
            let outcome = try runFreely(for: anchor.elapsed - lead)
            if case .interrupted? = outcome { return .interrupted }
            if outcome == nil {
                let budget = Nanoseconds((lead.rawValue + 60_000) * Self.searchFactor) + .milliseconds(1)
                switch try search(&statistics, giveUp: budget) {
                case .landed:
                    if lead == statistics.lead { statistics.landedAtOnce() }
                    return .landed
                case .interrupted: return .interrupted
                case .missed: break
                }
            }
            try rewind(to: start, watch, widening: &lead, &statistics)
        }
        return nil
    }

    /// Takes the guest back after it has run too far; the next free run ends earlier.
    private func rewind(to start: CPUState, _ watch: MemoryWatch, widening lead: inout Nanoseconds,
                        _ statistics: inout LandingStatistics) throws {
        if lead == statistics.lead {
            if engine.capabilities.breakpointKernel { statistics.overshot() } else { statistics.overshotAssisted() }
        }
        statistics.overshoots += 1
        lead = Nanoseconds(max(statistics.lead.rawValue, lead.rawValue * 2 + 100_000))
        // The state first: an exit on which the guest overshot is finished before it, and may write to memory.
        try engine.setState(start)
        try watch.rewind()
    }

    /// Nil when the time is over and the guest is still between the same two exits.
    ///
    /// The processor time of this thread counts: a host that is busy elsewhere stops the clock on the wall for no guest.
    private func runFreely(for span: Nanoseconds) throws -> Outcome? {
        let end = threadTime() + span
        engine.armKick(at: hostTime() + span)
        defer { engine.armKick(at: nil) }
        while true {
            switch try engine.enter(until: .none) {
            case .exit(let exit): return .missed(exit.identity)
            case .kicked:
                if machine.environment.wantsStop { return .interrupted }
                let rest = end - threadTime()
                if rest < .microseconds(10) { return nil }
                engine.armKick(at: hostTime() + rest)
            default: continue
            }
        }
    }

    private func search(_ statistics: inout LandingStatistics, giveUp: Nanoseconds) throws -> Outcome {
        let until = hostTime() + giveUp
        engine.armKick(at: until)
        defer { engine.armKick(at: nil) }
        if try machine.isAt(anchor) { return .landed }
        // Millions of arrivals cost little where they are told apart before they come here.
        let soft = engine as? SoftEngine
        soft?.filterArrivals(by: anchor)
        defer { statistics.arrivals += soft?.endFilter() ?? 0 }
        let stop: StopCondition =
            engine.capabilities.breakpointKernel ? .breakpoint(anchor.rip) : .step
        if stop == .step, !engine.capabilities.stepKernel {
            throw HostError.cannotLand("it is between two exits, and here KVM stops neither at breakpoints nor steps")
        }
        while true {
            switch try engine.enter(until: stop) {
            case .exit(let exit): return .missed(exit.identity)
            case .debug:
                statistics.arrivals += 1
                if try machine.isAt(anchor) { return .landed }
            case .kicked:
                if try machine.isAt(anchor) { return .landed }
                if machine.environment.wantsStop { return .interrupted }
                if hostTime() >= until { return .missed(nil) }
            case .window: continue
            }
        }
    }
}
