/// Where the guest stands when an environment is asked what enters.
public enum EntryPoint: Equatable, Sendable {
    /// Right after an exit, before the next instruction; also the start.
    case exit
    /// Within the instruction of the last exit, which makes another exit: nothing can enter here.
    case midInstruction
    /// At the first interruptible boundary after the last exit.
    case window
    /// At the anchor that was asked for.
    case landed
    /// Somewhere between two exits.
    case between
}

/// What enters the guest before its next instruction, or how it goes on.
public enum Entry {
    /// Nothing more: the guest runs.
    case proceed
    /// The guest runs, but no further than the first interruptible boundary.
    case proceedToWindow
    /// The same, where this isn't the first one since the last exit: the point is one between two exits.
    case proceedToBoundary
    /// The guest executes one instruction.
    case step
    /// The same, for an instruction that leads to this linear address: a step may go too far there.
    case stepTo(UInt64)
    /// The guest runs, but no further than the next arrival at a linear address.
    case proceedTo(UInt64)
    /// The guest runs to a point between two exits.
    case land(Anchor)
    case interrupt(UInt8)
    case nmi
    case taskPriority(UInt8)
    /// From here on the engine counts the timestamp counter.
    case timestampCounter(UInt64)
    case memoryWrite(GuestPhysicalAddress, [UInt8])
    case stop(Ending)
}

/// How a run ended.
public enum Ending: Equatable, Sendable {
    /// The guest wrote this value to the debug-exit port: 0 is success.
    case debugExit(UInt32)
    case tripleFault
    /// A Linux kernel has panicked and said so on its serial console.
    case panic
    case powerOff
    case reset
    /// The guest waits for an interrupt that nothing can send.
    case halted
    /// Time given with a deadline is over.
    case deadline
    /// The user or a signal ended it.
    case stopped
    /// The medium of the trace takes no more; the text says why.
    case traceFull(String)
    /// The host can't go on; the text says why.
    case hostLimit(String)
    /// Replay: the last event of the trace is behind, or the exit that was asked for is reached.
    case endOfTrace

    /// The name in `info` and in JSON.
    public var name: String {
        switch self {
        case .debugExit: "debug-exit"
        case .tripleFault: "triple-fault"
        case .panic: "panic"
        case .powerOff: "power-off"
        case .reset: "reset"
        case .halted: "halted"
        case .deadline: "deadline"
        case .stopped: "stopped"
        case .traceFull: "trace-full"
        case .hostLimit: "host-limit"
        case .endOfTrace: "end-of-trace"
        }
    }

    /// The guest status of a panic: as a shell shows a program that aborted.
    public static let panicStatus: UInt32 = 134

    /// What the guest itself said of the run; nil where it said nothing.
    public var guestStatus: UInt32? {
        switch self {
        case .debugExit(let value): value
        case .panic: Self.panicStatus
        default: nil
        }
    }

    /// Whether the guest failed: a debug exit with another value than 0, a panic, or a triple fault.
    public var isFailure: Bool {
        switch self {
        case .debugExit(let value): value != 0
        case .tripleFault, .panic: true
        default: false
        }
    }
}

/// All that isn't the processor and its memory: who answers the guest's exits and decides what enters.
public protocol Environment: AnyObject {
    /// Answers an exit: fills in what was read, or the fault flag.
    func handle(_ exit: inout Exit, number: ExitNumber) throws

    /// Whether `entry` must be asked before the guest goes on from an exit. Asked at every exit.
    var wantsEntry: Bool { get }

    /// What enters here. Asked again after everything that entered, until the guest proceeds or stops.
    func entry(at point: EntryPoint, of machine: Machine) throws -> Entry

    /// Whether someone asked for the run to end. Asked on the way to an anchor.
    var wantsStop: Bool { get }

    /// The guest came to another exit, or ran far too long, while it was on its way to an anchor.
    func missed(_ anchor: Anchor, machine: Machine, next: EventIdentity?) throws
}
