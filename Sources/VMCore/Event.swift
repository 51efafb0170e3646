/// What an event is. The raw values are the trace format's.
public enum EventKind: UInt8, CaseIterable, Codable, Sendable {
    // Synchronous: exits. Each has a number.
    case portRead = 1
    case portWrite = 2
    case mmioRead = 3
    case mmioWrite = 4
    case msrRead = 5
    case msrWrite = 6
    /// `address` is the instruction: 0 RDTSC, 1 RDTSCP. `value` is the counter.
    case timestamp = 7
    case random = 8
    case halt = 9
    case hypercall = 10
    /// Triple fault.
    case shutdown = 11

    // Asynchronous: they enter between two exits and have no number. `address` is the vector.
    /// Injected before the instruction after the preceding exit.
    case interruptAtExit = 16
    /// Injected at the first interruptible boundary after the preceding exit. `value` is the lowest byte of the digest of the
    /// registers there; 0 is not compared.
    case interruptAtWindow = 17
    /// Injected at the anchor in the payload.
    case interruptAtAnchor = 18
    case nmiAtExit = 19
    case nmiAtAnchor = 20
    /// The monitor wrote the payload to guest memory at `address` (a physical address).
    case memoryWrite = 21
    /// The monitor changed a register: `address` names it (8: CR8; 0x10: the timestamp counter, IA32_TSC), `value` is the
    /// new content. A counter that was set is counted from there on: its reads are no exits any more.
    case registerWrite = 22

    // Annotations: nothing enters the guest.
    /// `value` is the digest of the registers at the preceding exit.
    case registerCheck = 32
    /// `value` is the machine time in nanoseconds at the preceding exit; for play-back and statistics only.
    case time = 33
    /// The recording ended at the anchor in the payload, between two exits.
    case endAtAnchor = 34
    /// `DeviceInput`: the devices are given the machine time `value`, in nanoseconds; with `address` 1 everything due
    /// by then has happened. Stands before the exit or the interrupt that comes of it.
    case deviceTime = 35
    /// `DeviceInput`: the payload came in on the first serial line.
    case serialInput = 36
    /// The user marked this point; the payload is the mark's name in UTF-8.
    case mark = 37

    /// Whether the event is an exit, which has a number.
    @inlinable public var isExit: Bool { rawValue < 16 }

    /// Whether the event carries an anchor.
    @inlinable public var isAnchored: Bool {
        self == .interruptAtAnchor || self == .nmiAtAnchor || self == .endAtAnchor
    }
}

/// What two events of the same kind and place have in common: the part that is equal when a loop polls one register.
public struct EventIdentity: Hashable, Sendable {
    public var kind: EventKind
    /// Bytes of one element: 1, 2, 4 or 8; 0 where the kind has no data.
    public var size: UInt8
    /// Bit 0: the access ended in a fault (#GP for an MSR access).
    public var flags: UInt8
    /// Elements: 1, or the repeat count of a string instruction.
    public var count: UInt32
    /// Port, guest physical address, MSR index, vector or register.
    public var address: UInt64

    @inlinable
    public init(kind: EventKind, size: UInt8 = 0, flags: UInt8 = 0, count: UInt32 = 1, address: UInt64 = 0) {
        self.kind = kind
        self.size = size
        self.flags = flags
        self.count = count
        self.address = address
    }

    public static let faulted: UInt8 = 1
    /// Addresses of `registerWrite`.
    public static let taskPriorityRegister: UInt64 = 8
    public static let timestampRegister: UInt64 = 0x10
}

/// A point between two exits at which an interrupt entered.
///
/// The preceding exit, RIP and both digests together name one point: two points with the same complete state are the
/// same point.
public struct Anchor: Hashable, Codable, Sendable {
    /// Linear address of the next instruction.
    public var rip: UInt64
    /// Digest of the general, segment and control registers: compared at every arrival.
    public var registers: UInt64
    /// Digest of the complete processor state and of memory, page-table accessed/dirty bits masked: compared when the
    /// registers agree.
    public var memory: UInt64
    /// Instructions retired since the preceding exit; 0 where the engine can't count.
    public var instructions: UInt64
    /// Host time the guest had run since the preceding exit or anchor: a hint for the search, no part of the identity.
    public var elapsed: Nanoseconds
    /// `GeneralRegisters.sum`, compared before anything else, since most arrivals of a search differ there; 0 where it isn't
    /// known.
    public var general: UInt64

    public init(rip: UInt64, registers: UInt64, memory: UInt64, instructions: UInt64, elapsed: Nanoseconds, general: UInt64 = 0) {
        self.rip = rip
        self.registers = registers
        self.memory = memory
        self.instructions = instructions
        self.elapsed = elapsed
        self.general = general
    }

    /// Whether this is the short form, a third of the bytes in a trace: of `general` it has 16 bits, of `memory` 40, of `elapsed`
    /// the first seven, and no `registers`, which are part of what `memory` covers.
    ///
    /// It is compared at each arrival at RIP. Of those with other registers one in 65,536 gets as far as the complete state, and
    /// of other states that get there one in 10¹² would be taken for the point.
    public var isBrief: Bool { digits == .brief }
    private var digits = Digits.full

    private enum Digits: UInt8, Codable {
        case full, brief

        var general: UInt64 { self == .full ? .max : 0xFFFF }
        var memory: UInt64 { self == .full ? .max : 0xFF_FFFF_FFFF }
    }

    /// The short form of this anchor: for points that aren't counted, where the complete state is compared in any case.
    public var brief: Anchor {
        var short = self
        short.digits = .brief
        short.registers = 0
        short.general = general & Digits.brief.general
        short.memory = memory & Digits.brief.memory
        let rest = max(0, 64 - elapsed.rawValue.leadingZeroBitCount - 7)
        short.elapsed = Nanoseconds(elapsed.rawValue & ~0 << UInt64(rest))
        return short
    }

    /// The bits of `GeneralRegisters.sum` that `general` has: none where it isn't known.
    var generalMask: UInt64 { general == 0 ? 0 : digits.general }

    /// Whether the anchors can name the same point: as far as both have digits. How long the host took isn't part of it.
    public func isSamePoint(as other: Anchor) -> Bool {
        hasSameRegisters(as: other) && (memory ^ other.memory) & digits.memory & other.digits.memory == 0
    }

    /// Whether RIP and the registers are the same at both: as far as both have digits.
    public func hasSameRegisters(as other: Anchor) -> Bool {
        guard rip == other.rip, isBrief || other.isBrief || registers == other.registers else { return false }
        return (general ^ other.general) & generalMask & other.generalMask == 0
    }

    /// Whether a complete state with this digest is this point's.
    func isMemory(_ digest: UInt64) -> Bool { (digest ^ memory) & digits.memory == 0 }

    /// What RFLAGS can be at this point for a guest with these registers: its own first; then, where the processor of the
    /// recording left some to chance, what they could have been. None where the registers aren't this point's.
    package func flags(of registers: CoreRegisters, _ profile: ProcessorProfile) -> [UInt64] {
        guard registers.linearRIP == rip, (registers.general.sum ^ general) & generalMask == 0 else { return [] }
        if !isBrief, registers.digest == self.registers { return [registers.general.rflags] }
        let others = !profile.bitTestsVary ? [] : Self.chances.map { registers.general.rflags ^ $0 }
        guard !isBrief else { return [registers.general.rflags] + others }
        var other = registers
        return others.filter {
            other.general.rflags = $0
            return other.digest == self.registers
        }
    }

    private static let chances = [RFlags.overflow, RFlags.auxiliary, RFlags.overflow | RFlags.auxiliary]
}
