import Foundation
import Trace
import VMCore

/// What a replay found.
public struct ReplayResult: Sendable {
    /// Exits replayed, from the start of the trace.
    public var exits: UInt64
    public var divergence: Divergence?
    /// The state at the end; nil where a divergence ended the replay.
    public var digests: MachineDigests?
    /// Whether the replay came to the end of the trace.
    public var reachedEnd: Bool
    /// Whether the end state was compared with the recording's.
    public var comparedEnd: Bool
    public var stopped: Bool
    public var seconds: Double
    public var landing: LandingStatistics
    /// The devices at the end, where they were run again.
    public var platform: Platform?
    /// Where they first answered otherwise than in the recording.
    public var deviceMismatch: DeviceMismatch?
}

/// Replays a trace.
public final class Replayer {
    public let reader: TraceReader
    public let description: TraceDescription
    /// Nil when the recording was killed.
    public let ending: TraceEnding?
    private let system: KVMSystem
    private let capabilities: EngineCapabilities

    public init(reader: TraceReader, system: KVMSystem, capabilities: EngineCapabilities) throws {
        self.reader = reader
        self.system = system
        self.capabilities = capabilities
        description = try reader.description()
        ending = try reader.meta(TraceEnding.key, as: TraceEnding.self)
        try description.cpuModel.check(against: system.supportedFeatures(), timestamps: description.timestamps)
    }

    /// Replays from the start to `target`, or to the end.
    ///
    /// - Throws: `TraceError`, `HostError`; a divergence is part of the result.
    public func replay(to target: ExitNumber? = nil, withDevices: Bool = false, from platform: Platform? = nil,
                       started: (@escaping @Sendable () -> Void) -> Void = { _ in },
                       observe: ((Exit) -> Void)? = nil) throws -> ReplayResult {
        guard let checkpoint = reader.checkpoints.first else {
            throw TraceError.corrupt(what: "the state at its start is missing", place: "checkpoint")
        }
        if let target, target < checkpoint.exit || target > reader.lastExit {
            throw ReplayError.noSuchExit(target, first: checkpoint.exit, last: reader.lastExit)
        }
        let engine = try makeEngine(at: checkpoint)
        var cursor = reader.cursor()
        try cursor.seek(toEvent: checkpoint.event)
        let stopFlag = SharedFlag()
        let kicker = engine.kicker
        started {
            stopFlag.set()
            kicker.kick()
        }
        let devices = try platform.map { DeviceReplay(platform: $0, engine: engine) }
            ?? (withDevices ? DeviceReplay(reader: reader, checkpoint: checkpoint, engine: engine) : nil)
        let environment = try ReplayEnvironment(cursor: cursor, start: checkpoint.exit, target: target,
                                                stopFlag: stopFlag, devices: devices, observe: observe)
        let wall = ending?.wall ?? .seconds(1)
        environment.patience = .seconds(5) + Nanoseconds(min(wall.rawValue, 3_600_000_000_000) * 10)
        environment.longestElapsed = min(ending?.wall ?? .seconds(3600), .seconds(3600))
        let machine = Machine(engine: engine, environment: environment, exit: checkpoint.exit)
        let start = hostTime()
        var result = ReplayResult(exits: 0, reachedEnd: false, comparedEnd: false, stopped: false, seconds: 0,
                                  landing: LandingStatistics())
        do {
            result.stopped = try machine.run() == .stopped
            result.digests = try machine.digests()
        } catch let divergence as Divergence {
            result.divergence = divergence
        } catch HostError.call(let error) where error.call == "KVM_RUN" && error.errno == EINVAL {
            throw TraceError.corrupt(what: "KVM refuses to run its processor state",
                                     place: "checkpoint \(checkpoint.id.rawValue)")
        }
        result.seconds = (hostTime() - start).seconds
        result.exits = machine.exit.rawValue - checkpoint.exit.rawValue
        result.landing = machine.landing
        result.platform = devices?.platform
        result.deviceMismatch = devices?.mismatch
        result.reachedEnd = result.divergence == nil && !result.stopped && target == nil
        if result.reachedEnd { compareEnd(&result, last: machine.exit) }
        return result
    }

    /// Compares the end state with the one that the recording wrote down.
    private func compareEnd(_ result: inout ReplayResult, last: ExitNumber) {
        guard let expected = ending?.digests, let actual = result.digests else { return }
        result.comparedEnd = true
        if expected.state != actual.state {
            result.divergence = Divergence(exit: last, expected: "state digest \(expected.state) at the end",
                                           actual: "\(actual.state)")
        } else if expected.memory != actual.memory {
            result.divergence = Divergence(exit: last, expected: "memory digest \(expected.memory) at the end",
                                           actual: "\(actual.memory)")
        }
    }

    private func makeEngine(at checkpoint: CheckpointInfo) throws -> KVMEngine {
        let memory = try GuestMemory(map: description.memory)
        let limit = description.memory.regions.map { $0.end.rawValue / UInt64(pageSize) }.max() ?? 0
        try reader.loadPages(checkpoint.id, pageLimit: limit) { number, content in
            guard let page = memory.filePage(ofGuestPage: number) else {
                throw TraceError.corrupt(what: "page \(hex(number)) lies in a hole of memory",
                                         place: "checkpoint \(checkpoint.id.rawValue)")
            }
            memory.setPage(page, to: content)
        }
        let stored = try reader.state(of: checkpoint.id)
        guard let state = CPUState(encoded: Array(stored.cpu)) else {
            throw TraceError.corrupt(what: "its processor state can't be read",
                                     place: "checkpoint \(checkpoint.id.rawValue)")
        }
        let engine = try KVMEngine(system: system, memory: memory, model: description.cpuModel,
                                   capabilities: capabilities)
        engine.trapsTimestamps = description.timestamps == .trap
        do {
            try engine.setState(state)
        } catch {
            throw TraceError.corrupt(what: "KVM refuses its processor state (\(error))",
                                     place: "checkpoint \(checkpoint.id.rawValue)")
        }
        return engine
    }
}

/// A wrong request for a replay.
public enum ReplayError: Error, CustomStringConvertible {
    case noSuchExit(ExitNumber, first: ExitNumber, last: ExitNumber)

    public var description: String {
        switch self {
        case .noSuchExit(let exit, let first, let last):
            "the trace has no exit \(exit.rawValue): its exits are \(first.rawValue) to \(last.rawValue)"
        }
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
