import VMCore

/// What a recording says of itself when it begins: the row `recording` of `meta`.
public struct TraceDescription: Codable, Sendable {
    public var vmrrVersion: String
    /// Seconds since 1970 UTC.
    public var created: Int64
    public var commandLine: [String]
    /// The guest as the user named it.
    public var guest: String
    public var engine: String
    public var memory: MemoryLayoutMap
    public var memoryBytes: UInt64
    public var cpuModel: CPUModel
    public var timestamps: TimestampPolicy
    /// The instructions of the guest that were replaced.
    public var sites: [InstructionSites.Site]
    public var unrecordable: [String]
    public var capabilities: EngineCapabilities
    public var hostCPU: String
    public var hostKernel: String
    public var timingSeed: UInt64?

    public static let key = "recording"

    private enum CodingKeys: String, CodingKey {
        case vmrrVersion, created, commandLine, guest, engine, memory, memoryBytes, cpuModel, timestamps
        case sites = "timestampSites"
        case unrecordable, capabilities, hostCPU, hostKernel, timingSeed
    }

    public init(vmrrVersion: String, created: Int64, commandLine: [String], guest: String, engine: String,
                memory: MemoryLayoutMap, memoryBytes: UInt64, cpuModel: CPUModel, timestamps: TimestampPolicy,
                sites: [InstructionSites.Site], unrecordable: [String], capabilities: EngineCapabilities,
                hostCPU: String, hostKernel: String, timingSeed: UInt64?) {
        self.vmrrVersion = vmrrVersion
        self.created = created
        self.commandLine = commandLine
        self.guest = guest
        self.engine = engine
        self.memory = memory
        self.memoryBytes = memoryBytes
        self.cpuModel = cpuModel
        self.timestamps = timestamps
        self.sites = sites
        self.unrecordable = unrecordable
        self.capabilities = capabilities
        self.hostCPU = hostCPU
        self.hostKernel = hostKernel
        self.timingSeed = timingSeed
    }
}

extension TraceReader {
    /// What the recording said of itself, checked for what a machine can be made from.
    public func description() throws(TraceError) -> TraceDescription {
        guard let description = try meta(TraceDescription.key, as: TraceDescription.self) else {
            throw .corrupt(what: "it is missing", place: "meta \"\(TraceDescription.key)\"")
        }
        guard description.memory.isValid else {
            throw .corrupt(what: "its memory map can't be", place: "meta \"\(TraceDescription.key)\"")
        }
        guard description.cpuModel.entries.count <= 128 else {
            throw .corrupt(what: "its CPU model has too many entries", place: "meta \"\(TraceDescription.key)\"")
        }
        return description
    }
}

/// Where a trace comes from that continues or was cut out of another one: the row `parent` of `meta`.
public struct TraceParent: Codable, Equatable, Sendable {
    /// The other trace's file name, without its folder.
    public var name: String
    /// `TraceReader.identity` of the other trace.
    public var identity: String
    /// The exit of the other trace at which this one begins.
    public var exit: ExitNumber

    public static let key = "parent"

    public init(name: String, identity: String, exit: ExitNumber) {
        self.name = name
        self.identity = identity
        self.exit = exit
    }
}

extension TraceReader {
    /// Names the recording: a digest of what it said of itself when it began, which traces cut out of it keep.
    public var identity: String {
        Array((metadata[TraceDescription.key] ?? "").utf8).withUnsafeBytes { Digest128(of: $0).description }
    }
}

/// What a recording says of itself when it has ended: the row `ending` of `meta`. A killed recording has none.
public struct TraceEnding: Codable, Sendable {
    /// `Ending.name`.
    public var ended: String
    /// What the guest wrote to the debug-exit port.
    public var guestStatus: UInt32?
    public var failed: Bool
    /// A reason in words, where there is one.
    public var detail: String?
    public var exits: UInt64
    /// The state in which the recording ended; nil where that point can't be found again.
    public var digests: MachineDigests?
    public var interrupts: InterruptCounts
    public var latency: Latency
    /// Host time of the run.
    public var wall: Nanoseconds
    /// Instructions that KVM could not emulate and the soft engine executed; nil in traces of vmrr 0.1, which ended there.
    public var assistedInstructions: UInt64?
    /// The same by the position that interrupts got; nil in traces of vmrr 0.1.
    public var latencies: Latencies?
    /// The user's marks; nil where they weren't counted.
    public var marks: Int?

    public static let key = "ending"

    public struct Latency: Codable, Sendable {
        public var p50: Nanoseconds
        public var p99: Nanoseconds
        public var worst: Nanoseconds

        public init() { (p50, p99, worst) = (Nanoseconds(0), Nanoseconds(0), Nanoseconds(0)) }

        public init(_ statistics: LatencyStatistics) {
            p50 = statistics.percentile(0.5)
            p99 = statistics.percentile(0.99)
            worst = statistics.worst
        }
    }

    public struct Latencies: Codable, Sendable {
        public var atExit: Latency
        public var atWindow: Latency
        public var betweenExits: Latency

        public init(_ latency: InterruptLatency) {
            (atExit, atWindow, betweenExits) = (.init(latency.atExit), .init(latency.atWindow), .init(latency.betweenExits))
        }

        private enum CodingKeys: String, CodingKey {
            case atExit = "at_exit"
            case atWindow = "at_window"
            case betweenExits = "between_exits"
        }
    }

    public init(ended: String, guestStatus: UInt32?, failed: Bool, detail: String?, exits: UInt64,
                digests: MachineDigests?, interrupts: InterruptCounts, latency: Latency, wall: Nanoseconds,
                assistedInstructions: UInt64? = nil, latencies: Latencies? = nil, marks: Int? = nil) {
        self.ended = ended
        self.guestStatus = guestStatus
        self.failed = failed
        self.detail = detail
        self.exits = exits
        self.digests = digests
        self.interrupts = interrupts
        self.latency = latency
        self.wall = wall
        self.assistedInstructions = assistedInstructions
        self.latencies = latencies
        self.marks = marks
    }
}

/// What a copy says that was made while the recording went on: the row `saved` of `meta`.
public struct TraceSaved: Codable, Equatable, Sendable {
    /// The last exit in it.
    public var exit: ExitNumber

    public static let key = "saved"
}

/// Interrupts and NMIs by the kind of their position.
public struct InterruptCounts: Codable, Equatable, Sendable {
    public var atExit = 0
    public var atWindow = 0
    public var atAnchor = 0
    /// Of all these, the NMIs.
    public var nmi = 0

    public init() {}

    public var total: Int { atExit + atWindow + atAnchor }

    public mutating func count(_ kind: EventKind) {
        switch kind {
        case .interruptAtExit, .nmiAtExit: atExit += 1
        case .interruptAtWindow: atWindow += 1
        case .interruptAtAnchor, .nmiAtAnchor: atAnchor += 1
        default: return
        }
        if kind == .nmiAtExit || kind == .nmiAtAnchor { nmi += 1 }
    }

    private enum CodingKeys: String, CodingKey {
        case atExit = "at_exit"
        case atWindow = "at_window"
        case atAnchor = "between_exits"
        case nmi
    }
}
