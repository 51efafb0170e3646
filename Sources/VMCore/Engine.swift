/// A synchronous exit that waits for its answer.
public struct Exit {
    public var identity: EventIdentity
    /// What the guest wrote; for reads, the answer to be. Elements of string instructions are in `data` instead.
    public var value: UInt64
    /// The elements of a string port access with more than one, in guest order: to read for OUTS, to fill for INS.
    /// Invariant: points into the engine's area and is valid until the guest is entered again.
    public var data: UnsafeMutableRawBufferPointer?

    public init(_ identity: EventIdentity, value: UInt64 = 0, data: UnsafeMutableRawBufferPointer? = nil) {
        self.identity = identity
        self.value = value
        self.data = data
    }
}

/// Why an engine came back.
public enum Arrival {
    /// An exit of the guest's own making. It must be answered before the guest goes on.
    case exit(Exit)
    /// The guest can take an interrupt now.
    case window
    /// The breakpoint or the step that was asked for.
    case debug
    /// The host wants attention; the guest stands between two instructions.
    case kicked
}

/// What ends a stretch of guest execution, besides an exit or a kick.
public enum StopCondition: Equatable, Sendable {
    case none
    /// The first boundary at which the guest can take an interrupt.
    case window
    /// Before the instruction at a linear address, but not the one the guest stands at.
    case breakpoint(UInt64)
    /// One instruction.
    case step
}

/// What an engine can do on this host, found by trying it out.
public struct EngineCapabilities: Codable, Equatable, Sendable {
    /// An interrupt-window exit comes at the very first interruptible boundary.
    public var exactWindow = false
    public var breakpointKernel = false
    public var breakpointUser = false
    public var stepKernel = false
    public var stepUser = false
    /// A step over the return to CPL 3 stops there.
    public var stepToUser = false
    /// The resume flag carries the guest past a breakpoint that it stands at.
    public var resumeFlag = false
    /// Stopping at a breakpoint costs little more than an instruction: a search for an anchor needs no free run.
    public var cheapBreakpoints = false
    /// What the processor does in its own way.
    public var profile = ProcessorProfile()
    /// The instruction after STI loses its protection when the host interrupts the guest before it: see
    /// `Engine.mayHaveLostShadow`.
    public var losesInterruptShadow = false

    public init() {}

    private enum CodingKeys: CodingKey {
        case exactWindow, breakpointKernel, breakpointUser, stepKernel, stepUser, stepToUser, resumeFlag, cheapBreakpoints
        case losesInterruptShadow
    }

    /// A capability that a trace doesn't mention was not known when it was made.
    public init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        exactWindow = try values.value(.exactWindow, false)
        breakpointKernel = try values.value(.breakpointKernel, false)
        breakpointUser = try values.value(.breakpointUser, false)
        stepKernel = try values.value(.stepKernel, false)
        stepUser = try values.value(.stepUser, false)
        stepToUser = try values.value(.stepToUser, false)
        resumeFlag = try values.value(.resumeFlag, false)
        cheapBreakpoints = try values.value(.cheapBreakpoints, false)
        losesInterruptShadow = try values.value(.losesInterruptShadow, false)
        profile = try ProcessorProfile(from: decoder)
    }

    /// One object, as in `CPUModel`.
    public func encode(to encoder: any Encoder) throws {
        var values = encoder.container(keyedBy: CodingKeys.self)
        try values.encode(exactWindow, forKey: .exactWindow)
        try values.encode(breakpointKernel, forKey: .breakpointKernel)
        try values.encode(breakpointUser, forKey: .breakpointUser)
        try values.encode(stepKernel, forKey: .stepKernel)
        try values.encode(stepUser, forKey: .stepUser)
        try values.encode(stepToUser, forKey: .stepToUser)
        try values.encode(resumeFlag, forKey: .resumeFlag)
        try values.encode(cheapBreakpoints, forKey: .cheapBreakpoints)
        try values.encode(losesInterruptShadow, forKey: .losesInterruptShadow)
        try profile.encode(to: encoder)
    }

    /// Whether a point between two exits is found again by single steps alone, for want of breakpoints: slow, but sure,
    /// and where the soft engine knows the way there, fast.
    public var landsBySteps: Bool { !breakpointKernel && stepKernel && stepUser && stepToUser }

    /// Whether entering a guest and a fault of its pages take some hundred times as long as on a processor, since KVM itself is
    /// emulated: told by the breakpoint that stops no guest there.
    package var entersSlowly: Bool { !breakpointKernel }

    /// No kick is to come sooner than this after the guest is entered: one that is kicked before it has executed an instruction never
    /// gets anywhere. Where KVM is emulated, entering takes some 100 µs and on a slow host several times as long.
    var shortestRun: Nanoseconds { entersSlowly ? .milliseconds(1) : .microseconds(30) }

    /// Whether a point between two exits can be found again when the guest runs at privilege level `cpl`.
    public func canAnchor(cpl: UInt8) -> Bool { landsBySteps || (cpl == 3 ? breakpointUser : breakpointKernel) }
}

/// A processor that runs a guest: the part of vmrr that differs between hosts.
public protocol Engine: AnyObject {
    var name: String { get }
    var capabilities: EngineCapabilities { get }
    var memory: GuestMemory { get }
    /// The ways of the processor that the guest was recorded on.
    var profile: ProcessorProfile { get }

    /// Runs the guest until it exits, is kicked, or meets `stop`. The last exit has been answered.
    func enter(until stop: StopCondition) throws(HostError) -> Arrival

    /// Gives the answer to the exit that `enter` returned: its value and flags.
    func answer(_ exit: Exit) throws(HostError)

    /// Finishes the instruction of the last exit without running another one.
    ///
    /// - Returns: the next exit, where the same instruction makes one; nil when the guest stands between instructions.
    func settle() throws(HostError) -> Arrival?

    /// Whether the guest, settled, can take an external interrupt before its next instruction.
    var isInterruptible: Bool { get }

    /// Whether the guest can take an interrupt before its next instruction only because this host forgets that STI holds
    /// interrupts off for one instruction more. Such a point is no place for anything: no other processor lets an interrupt in
    /// there, nor does this one the next time. It may be one where the byte before the instruction looks like STI; a step leads
    /// away from it, to a point like any other.
    func mayHaveLostShadow() throws(HostError) -> Bool

    /// Whether the guest, settled, would take an NMI before its next instruction: none is in service or waits.
    func isReadyForNMI() throws(HostError) -> Bool

    /// Makes an external interrupt enter before the next instruction. The guest is settled and interruptible.
    func queueInterrupt(_ vector: UInt8) throws(HostError)
    func queueNMI() throws(HostError)

    /// CR8: the task priority class, 0–15.
    var taskPriority: UInt8 { get set }

    /// The complete state of a settled guest.
    func state() throws(HostError) -> CPUState
    func setState(_ state: CPUState) throws(HostError)
    /// Whether the guest is likely to be looked at when it comes back next, so that the engine had better bring its
    /// registers along. A hint about speed alone.
    var wantsRegisters: Bool { get set }
    /// The general, segment and control registers only: a cheap part of `state`.
    func registers() throws(HostError) -> CoreRegisters

    /// Whether the guest uses breakpoints of its own, which the monitor's would replace.
    func debugRegistersActive() throws(HostError) -> Bool

    /// A processor in software for the same memory, which can run a stretch in this one's place; nil where that
    /// would gain nothing.
    func makeAssistant() throws(HostError) -> SoftEngine?

    /// Instructions that another engine executed, since this one could not.
    var assistedInstructions: UInt64 { get }

    /// Starts to note which pages of memory are written.
    func trackWrites() throws(HostError)
    /// Calls `body` for each page of the memory file that may have been written since the last call.
    func takeWrittenPages(_ body: (Int) -> Void) throws(HostError)
    /// The monitor has replaced a page of the memory file: what the engine has made of its content is void. The page doesn't
    /// count as written.
    func noteReplacedPage(_ page: Int)

    /// Arranges a kick at a moment of the host's monotonic clock; nil for none.
    func armKick(at moment: Nanoseconds?)
    /// Arranges one kick before the instruction that comes after so many; nil for none. For engines that count them.
    func armKick(atInstruction count: InstructionCount?)
    /// Instructions that the guest has completed since the engine was made; nil where the engine can't count them.
    var retired: InstructionCount? { get }
    /// Of these, the ones since the last exit was finished, or since a state was set. May be set, where a state doesn't
    /// lie right after an exit.
    var retiredSinceExit: InstructionCount? { get set }
    /// Whether the engine can count the timestamp counter by itself: one an instruction.
    var canCountTimestamps: Bool { get }
    /// The counter at the next instruction where the engine counts it; nil where each RDTSC and RDTSCP is an exit.
    var timestampCounter: UInt64? { get set }
    /// Something that kicks the guest from any thread.
    var kicker: Kicker { get }
}

extension Engine {
    /// Gives a settled guest other flags, and leaves it where it stands.
    func setFlags(_ rflags: UInt64) throws(HostError) {
        let count = retiredSinceExit
        var state = try state()
        state.general.rflags = rflags
        try setState(state)
        retiredSinceExit = count
    }

    public var assistedInstructions: UInt64 { 0 }
    public func noteReplacedPage(_ page: Int) {}
    public func mayHaveLostShadow() throws(HostError) -> Bool { false }
    public func armKick(atInstruction count: InstructionCount?) {}
    public var retired: InstructionCount? { nil }
    public var retiredSinceExit: InstructionCount? {
        get { nil }
        set {}
    }
    public var canCountTimestamps: Bool { false }
    public var timestampCounter: UInt64? {
        get { nil }
        set {}
    }
}

/// Stops a running guest from another thread within a millisecond.
///
/// The reason for a kick is to be visible to the guest's thread before the kick: kicks that come close together are one.
public struct Kicker: Sendable {
    private let action: @Sendable () -> Void

    public init(_ action: @escaping @Sendable () -> Void) { self.action = action }
    public func kick() { action() }
}
