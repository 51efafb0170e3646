import Foundation
import Trace
import VMCore

/// What a replay found.
public struct ReplayResult: Sendable {
    /// The exit at which the replay began.
    public var start: ExitNumber
    /// Exits replayed from there.
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

/// Replays a trace once and says what it found.
public final class Replayer {
    public let timeline: Timeline
    public var reader: TraceReader { timeline.reader }
    public var ending: TraceEnding? { timeline.ending }

    public init(reader: TraceReader, host: EngineHost, withDevices: Bool = false) throws {
        timeline = try Timeline(reader: reader, host: host, withDevices: withDevices)
    }

    /// Where a replay begins.
    public enum Start: Sendable {
        /// The first checkpoint: everything up to the target is checked.
        case first
        /// The checkpoint nearest to the target.
        case nearest
    }

    /// Replays to `target`, or to the end.
    ///
    /// - Throws: `TraceError`, `HostError`, `ReplayError`; a divergence is part of the result.
    public func replay(from start: Start = .first, to target: Position? = nil,
                       observe: ((Exit) -> Void)? = nil) throws -> ReplayResult {
        let began = hostTime()
        var result = ReplayResult(start: timeline.position.exit, exits: 0, reachedEnd: false, comparedEnd: false,
                                  stopped: false, seconds: 0, landing: LandingStatistics())
        do {
            if start == .nearest, let target {
                result.start = timeline.nearestCheckpoint(atOrBefore: target.exit)
                try timeline.seek(to: result.start)
            }
            timeline.observe = observe
            defer { timeline.observe = nil }
            if let target {
                try timeline.checkIsWithin(target.exit)
                try timeline.play(to: target.exit)
                try timeline.seek(to: target)
            } else {
                try timeline.play()
            }
            result.digests = try timeline.digests()
        } catch let divergence as Divergence {
            result.divergence = divergence
        } catch is Timeline.Stopped {
            result.stopped = true
            result.digests = try timeline.digests()
        }
        result.seconds = (hostTime() - began).seconds
        result.exits = timeline.position.exit.rawValue - min(result.start, timeline.position.exit).rawValue
        result.landing = timeline.landing
        (result.platform, result.deviceMismatch) = (timeline.platform, timeline.deviceMismatch)
        result.reachedEnd = result.divergence == nil && !result.stopped && target == nil
        if result.reachedEnd, let recorded = ending?.digests {
            result.comparedEnd = true
            do {
                _ = try timeline.compare(with: CheckpointDigests(recorded), "at the end")
            } catch let divergence as Divergence {
                result.divergence = divergence
            }
        }
        return result
    }
}

/// A wrong request for a replay.
public enum ReplayError: Error, CustomStringConvertible {
    case noSuchExit(ExitNumber, first: ExitNumber, last: ExitNumber)
    /// The exit after it comes earlier.
    case noSuchInstruction(Position)
    /// A trace can't be cut so.
    case emptyRange(ExitNumber, ExitNumber)
    case withinInstruction(ExitNumber)
    /// There is nothing to go live with.
    case noDevices(ExitNumber)
    case ended(ExitNumber)

    public var description: String {
        switch self {
        case .noSuchExit(let exit, let first, let last):
            "the trace has no exit \(exit.rawValue): its exits are \(first.rawValue) to \(last.rawValue)"
        case .noSuchInstruction(let position):
            "there is no position \(position): the next exit comes before so many instructions, or the trace ends"
        case .emptyRange(let start, let end):
            "exit \(end.rawValue) comes before exit \(start.rawValue)"
        case .withinInstruction(let exit):
            "exit \(exit.rawValue) lies within an instruction that makes more than one; choose a neighbour"
        case .noDevices(let exit):
            "the trace says nothing of the devices at exit \(exit.rawValue)"
        case .ended(let exit):
            "the guest ended with exit \(exit.rawValue): nothing can follow"
        }
    }
}
