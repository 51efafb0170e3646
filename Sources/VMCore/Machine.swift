import CXXHash

/// One virtual machine: an engine, its memory, and the environment that answers it.
///
/// The loop is the same for running, recording and replaying; only the environment differs.
public final class Machine {
    public let engine: any Engine
    public let environment: any Environment
    /// The last exit that was answered.
    public private(set) var exit: ExitNumber
    /// An exit that arrived while the one before it was being finished.
    private var held: Arrival?
    /// What is written to memory; made when first needed.
    public private(set) lazy var writes = Result { try WriteLog(engine: engine) }
    /// Keeps the memory digest; made when first needed.
    public private(set) lazy var watch = Result { try MemoryWatch(memory: engine.memory, log: writes.get()) }
    /// Runs stretches between exits in the engine's place where that is faster; made when first needed.
    private(set) lazy var assistant = Result { try engine.makeAssistant().map { try Assistant($0, log: writes.get()) } }
    public private(set) var landing = LandingStatistics()

    public init(engine: any Engine, environment: any Environment, exit: ExitNumber = .start) {
        self.engine = engine
        self.environment = environment
        self.exit = exit
    }

    /// Whether the guest stands within an instruction that has made one exit and waits with the next. Its registers
    /// are those before the instruction, so that the state alone doesn't say where it stands.
    public var isWithinInstruction: Bool { held != nil }

    /// Whether the guest came back last because it had executed the one instruction that was asked for.
    public private(set) var hasStepped = false

    /// Instructions completed since the last exit, as far as that is known: an engine that can't count them knows it
    /// right after an exit, and where it was brought to a counted point.
    var instructions: InstructionCount? {
        get { engine.retiredSinceExit ?? knownCount }
        set {
            engine.retiredSinceExit = newValue
            knownCount = newValue
        }
    }
    private var knownCount: InstructionCount? = InstructionCount(0)

    /// Goes on from another place: the engine and its memory have been given the state so many instructions after
    /// `exit`; nil where their number isn't known.
    public func move(to exit: ExitNumber, instructions: InstructionCount? = InstructionCount(0)) {
        self.exit = exit
        self.instructions = instructions
        held = nil
    }

    /// Runs until the environment stops it. `point` is where the guest stands.
    public func run(at point: EntryPoint = .exit) throws -> Ending {
        var point = point
        hasStepped = false
        while true {
            var stop = StopCondition.none
            var isStep = false
            var isWindow = false
            if point != .exit || environment.wantsEntry {
                if held == nil { held = try engine.settle() }
                if held != nil { point = .midInstruction }
                switch try enterEvents(at: point) {
                case .proceed(let condition): (stop, isStep, isWindow) = (condition, condition == .step, condition == .window)
                case .boundary: stop = .window
                case .stepTo(let address): (stop, isStep) = (.breakpoint(address), true)
                case .stopped(let ending): return ending
                }
            }
            hasStepped = false
            let arrival: Arrival
            if let waiting = held {
                arrival = waiting
                held = nil
            } else {
                knownCount = nil
                arrival = try engine.enter(until: stop)
            }
            switch arrival {
            case .exit(var exit):
                self.exit = self.exit.next
                try environment.handle(&exit, number: self.exit)
                try engine.answer(exit)
                knownCount = InstructionCount(0)
                point = .exit
            case .debug where isStep:
                hasStepped = true
                point = .between
            case .window:
                point = isWindow ? .window : .between
            case .kicked, .debug:
                point = .between
            }
        }
    }

    private enum Way {
        case proceed(until: StopCondition)
        case boundary
        case stepTo(UInt64)
        case stopped(Ending)
    }

    /// Lets in whatever enters at this point.
    private func enterEvents(at point: EntryPoint) throws -> Way {
        var point = point
        while true {
            switch try environment.entry(at: point, of: self) {
            case .proceed: return .proceed(until: .none)
            case .proceedToWindow: return .proceed(until: .window)
            case .proceedToBoundary: return .boundary
            case .step: return .proceed(until: .step)
            case .stepTo(let address): return .stepTo(address)
            case .proceedTo(let address): return .proceed(until: .breakpoint(address))
            case .stop(let ending): return .stopped(ending)
            case .interrupt(let vector):
                try engine.queueInterrupt(vector)
                if point == .landed { point = .between }
            case .nmi:
                try engine.queueNMI()
                if point == .landed { point = .between }
            case .taskPriority(let value): engine.taskPriority = value
            case .timestampCounter(let value): engine.timestampCounter = value
            case .memoryWrite(let address, let bytes): engine.memory.write(bytes, at: address)
            case .land(let anchor):
                guard point != .midInstruction else {
                    try environment.missed(anchor, machine: self, next: nil)
                    return .stopped(.endOfTrace)
                }
                switch try Landing(machine: self, anchor: anchor).run(&landing) {
                case .landed:
                    if engine.retired == nil {
                        knownCount = anchor.instructions > 0 ? InstructionCount(anchor.instructions) : nil
                    }
                    point = .landed
                case .interrupted:
                    return .stopped(.stopped)
                case .missed(let next):
                    try environment.missed(anchor, machine: self, next: next)
                    return .stopped(.endOfTrace)
                }
            }
        }
    }

    // MARK: Points and digests

    /// Whether the guest stands at an anchor. There its flags are the recorded ones, also those that were left to chance.
    public func isAt(_ anchor: Anchor) throws -> Bool { try isAt(anchor, with: engine) }

    /// The same with the processor of another engine that has the same memory. `reportWrites` is called before memory counts.
    func isAt(_ anchor: Anchor, with engine: any Engine, reportWrites: () -> Void = {}) throws -> Bool {
        let registers = try engine.registers()
        let candidates = anchor.flags(of: registers, engine.profile)
        guard !candidates.isEmpty else { return false }
        reportWrites()
        var flags = registers.general.rflags
        for candidate in candidates {
            if candidate != flags { try engine.setFlags(candidate) }
            flags = candidate
            if try anchor.isMemory(completeDigest(of: engine)) { return true }
        }
        if flags != registers.general.rflags { try engine.setFlags(registers.general.rflags) }
        return false
    }

    /// The digest of the general, segment and control registers.
    public func registerDigest() throws -> UInt64 { try engine.registers().digest }

    /// Names the point at which the guest, settled, stands between two exits.
    public func anchor(elapsed: Nanoseconds) throws -> Anchor {
        let registers = try engine.registers()
        return Anchor(rip: registers.linearRIP, registers: registers.digest, memory: try completeDigest(),
                      instructions: instructions?.rawValue ?? 0, elapsed: elapsed, general: registers.general.sum)
    }

    /// The digest of the complete processor state and of memory, accessed/dirty bits masked.
    func completeDigest() throws -> UInt64 { try completeDigest(of: engine) }

    /// The same with the processor of another engine that has the same memory.
    func completeDigest(of engine: any Engine) throws -> UInt64 {
        let memory = try watch.get()
        try memory.refresh()
        var parts = [memory.digest.total.low, memory.digest.total.high]
        let state = try engine.state().digest
        parts += [state.low, state.high]
        return parts.withUnsafeBytes { XXH3_64bits($0.baseAddress, $0.count) }
    }
}
