import Foundation
import Trace
import VMCore

/// What a finished run says, recorded or not.
public struct RunResult: Sendable {
    public var ending: Ending
    public var exits: UInt64
    public var digests: MachineDigests?
    public var seconds: Double
    public var latency: TraceEnding.Latency
    /// What the guest has executed; nil where the engine can't count.
    public var instructions: InstructionCount?
    // Of recordings only:
    public var events: UInt64 = 0
    public var interrupts = InterruptCounts()
    public var rawBytes: UInt64 = 0
    public var fileBytes: UInt64 = 0
    public var checkpoints = CheckpointSpacing(policy: "none")
}

/// Where a run and the world outside meet.
public struct RunOptions: Sendable {
    public var live = LiveOptions()
    public var serial = SerialConnection.stdio
    /// Where the console goes when it is not a file: 1 or 2.
    public var consoleDescriptor: Int32 = 1
    /// Says something to the user, once.
    public var notice: @Sendable (String) -> Void = { _ in }
    /// Called with something that ends the run from any thread.
    public var started: @Sendable (@escaping @Sendable () -> Void) -> Void = { _ in }
    /// Called with something that makes a copy of the trace so far, from any thread until the recording has ended.
    public var recording: @Sendable (@escaping @Sendable (String) throws -> Void) -> Void = { _ in }
    /// Called before the recording's end.
    public var finishing: @Sendable () -> Void = {}

    public init() {}
}

/// Runs a machine without recording it.
public func run(_ configuration: MachineConfiguration, on host: EngineHost, options: RunOptions) throws -> RunResult {
    try run(configuration.build(on: host), options: options)
}

/// Runs a machine from where it stands, without recording it.
public func run(_ built: BuiltMachine, options: RunOptions) throws -> RunResult {
    built.keepCounter(with: options.live.clock)
    let serial = try SerialPort(options.serial, console: options.consoleDescriptor)
    defer { serial.restoreTerminal() }
    let live = LiveEnvironment(platform: built.platform, serial: serial, engine: built.engine, options: options.live)
    live.notice = options.notice
    options.started(live.stopper)
    let machine = Machine(engine: built.engine, environment: live, exit: built.exit)
    let ending = try endingOf(machine)
    return RunResult(ending: ending, exits: machine.exit.rawValue, digests: nil, seconds: live.elapsed.seconds,
                     latency: .init(live.latency.all), instructions: built.engine.retired)
}

/// Runs a machine to its end; what the host can't do is an ending too.
private func endingOf(_ machine: Machine) throws -> Ending {
    do {
        return try machine.run()
    } catch let error as HostError {
        return .hostLimit(error.description)
    } catch let error as TraceError {
        guard case .full = error else { throw error }
        return .traceFull(error.description)
    }
}

/// Records a machine into a trace file.
public struct Recording {
    public var path: String
    public var overwrite = false
    /// The guest as the user named it.
    public var guest: String
    public var commandLine: [String]
    public var version: String
    public var checkpoints = CheckpointPolicy()
    /// The trace and the exit that the machine comes from.
    public var parent: TraceParent?
    /// Keep the tail only.
    public var keep: Retention?
    /// Has every checkpoint compared with all of memory. For tests: it is slow.
    public var checksWrites = false

    public init(path: String, guest: String, commandLine: [String], version: String) {
        self.path = path
        self.guest = guest
        self.commandLine = commandLine
        self.version = version
    }

    public func record(_ configuration: MachineConfiguration, on host: EngineHost, options: RunOptions) throws
        -> RunResult {
        try record(configuration.build(on: host), options: options)
    }

    /// Records a machine from where it stands.
    public func record(_ built: BuiltMachine, options: RunOptions) throws -> RunResult {
        built.keepCounter(with: options.live.clock)
        built.notices.forEach(options.notice)
        let description = describe(built, options)
        let serial = try SerialPort(options.serial, console: options.consoleDescriptor)
        defer { serial.restoreTerminal() }
        let memory = built.engine.memory
        let digests = MemoryDigestTable(memory: memory)
        var metadata: [String: any Encodable & Sendable] = [
            TraceDescription.key: description, CheckpointSpacing.key: checkpoints.description,
        ]
        if let parent { metadata[TraceParent.key] = parent }
        let writer = try TraceWriter(
            path: path, metadata: metadata,
            options: TraceWriterOptions(overwrite: overwrite, firstExit: built.exit, keep: keep),
            first: startCheckpoint(built, digests)
        ) { (body: (UInt64, UnsafeRawPointer) throws(TraceError) -> Void) in
            try memory.forEachTouchedPage { page in
                guard let address = memory.address(ofFilePage: page), let bytes = memory.page(page).baseAddress else {
                    return
                }
                try body(address.rawValue / UInt64(pageSize), bytes)
            }
        }

        if case .bytes(let bound) = keep, writer.fileBytes > bound {
            let needed = writer.fileBytes
            try writer.finish()
            unlink(path)
            throw KeepTooSmall(bound: bound, needed: needed)
        }
        options.recording { try writer.save(to: $0) }

        var live = options.live
        live.placement = .replayable
        let world = LiveEnvironment(platform: built.platform, serial: serial, engine: built.engine, options: live)
        world.notice = options.notice
        options.started(world.stopper)
        let environment = RecordingEnvironment(live: world, writer: writer)
        let machine = Machine(engine: built.engine, environment: environment, exit: built.exit)
        _ = try machine.watch.get()
        if checkpoints.spacing != .never {
            let checkpointer = try Checkpointer(machine: machine, writer: writer, digests: digests,
                                                checksWrites: checksWrites)
            environment.takeCheckpoints(checkpointer, when: checkpoints, after: built.exit)
        }
        // Whatever happens, no thread outlives the recording.
        defer { _ = environment.finishCheckpoints() }
        let ending = try endingOf(machine)
        options.finishing()
        return try finish(ending, machine: machine, environment: environment, world: world, writer: writer,
                          notice: options.notice)
    }

    private func describe(_ built: BuiltMachine, _ options: RunOptions) -> TraceDescription {
        TraceDescription(
            vmrrVersion: version, created: Int64(Date().timeIntervalSince1970), commandLine: commandLine, guest: guest,
            engine: built.engine.name, memory: built.engine.memory.map, memoryBytes: built.memoryBytes,
            cpuModel: built.model, timestamps: built.timestamps, sites: built.sites,
            unrecordable: built.unrecordable, capabilities: built.engine.capabilities, hostCPU: Host.cpuName, hostKernel: Host.kernel,
            timingSeed: options.live.timingSeed)
    }

    /// The complete state at exit 0, without memory.
    private func startCheckpoint(_ built: BuiltMachine, _ digests: MemoryDigestTable) throws -> NewCheckpoint {
        let state = try built.engine.state()
        return NewCheckpoint(
            exit: built.exit, cpu: Data(state.encoded()), devices: try JSONEncoder().encode(built.platform),
            digests: CheckpointDigests(state: state.digest.description, memory: digests.masked.description,
                                       strictMemory: digests.strict.description))
    }

    private func finish(_ ending: Ending, machine: Machine, environment: RecordingEnvironment,
                        world: LiveEnvironment, writer: TraceWriter, notice: (String) -> Void) throws -> RunResult {
        let wall = world.elapsed
        // The state after the host gave up lies past the last exit, where replay doesn't go.
        var digests: MachineDigests?
        switch ending {
        case .hostLimit, .traceFull: break
        default: digests = environment.endIsExact ? try machine.digests() : nil
        }
        let spacing = environment.finishCheckpoints()
        if writer.exceedsBound {
            notice("the state of the guest and what came after it take more room than --keep gives: "
                + "the trace became larger")
        }
        var detail: String?
        switch ending {
        case .hostLimit(let text), .traceFull(let text): detail = text
        default: break
        }
        let end = TraceEnding(
            ended: ending.name, guestStatus: ending.guestStatus, failed: ending.isFailure, detail: detail,
            exits: writer.exits.rawValue, digests: digests, interrupts: environment.interrupts,
            latency: .init(world.latency.all), wall: wall,
            assistedInstructions: machine.engine.assistedInstructions, latencies: .init(world.latency),
            marks: environment.marks)
        var result = ending
        do {
            try writer.finish(meta: [TraceEnding.key: end, CheckpointSpacing.key: spacing])
        } catch {
            guard case .full = error else { throw error }
            result = .traceFull(error.description)
            digests = nil
        }
        return RunResult(ending: result, exits: writer.exits.rawValue, digests: digests, seconds: wall.seconds,
                         latency: end.latency, instructions: machine.engine.retired, events: writer.events, interrupts: environment.interrupts,
                         rawBytes: writer.rawBytes, fileBytes: writer.fileBytes, checkpoints: spacing)
    }
}

/// A flight recorder's bound doesn't even hold the machine's first state.
public struct KeepTooSmall: Error, CustomStringConvertible {
    /// Bytes.
    public var bound: UInt64
    public var needed: UInt64

    public var description: String {
        "--keep gives the trace \(bound >> 10) KiB, but the guest's state at the start alone takes \(needed >> 10) KiB"
    }
}

/// The names of this host's processor and kernel.
public enum Host {
    public static var cpuName: String {
        let text = (try? String(contentsOfFile: "/proc/cpuinfo", encoding: .utf8)) ?? ""
        let line = text.split(separator: "\n").first { $0.hasPrefix("model name") }
        return line?.split(separator: ":", maxSplits: 1).last.map { $0.trimmingCharacters(in: .whitespaces) } ?? "unknown"
    }

    public static var kernel: String {
        let text = (try? String(contentsOfFile: "/proc/sys/kernel/osrelease", encoding: .utf8)) ?? "unknown"
        return text.trimmingCharacters(in: .whitespacesAndNewlines)
    }
}
