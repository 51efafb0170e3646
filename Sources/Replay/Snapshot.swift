import Foundation
import Trace
import VMCore

/// Cuts a self-contained trace out of another: it begins with the complete state at an exit, keeps the numbers of the
/// exits after it, and replays without the other.
public struct Snapshot {
    /// The exit at which the new trace begins.
    public var start: ExitNumber
    /// The exit after which it ends; nil for the end of the other trace.
    public var end: ExitNumber?
    /// Exits between checkpoints; nil for the first one alone.
    public var checkpointInterval: UInt64?

    public init(start: ExitNumber, end: ExitNumber? = nil, checkpointInterval: UInt64? = nil) {
        self.start = start
        self.end = end
        self.checkpointInterval = checkpointInterval
    }

    /// How a trace ends that was cut: the name in `ending`.
    public static let cut = "cut"

    /// Writes the new trace to `path`. `name` is the other trace's file name.
    public func write(from timeline: Timeline, named name: String, to path: String, overwrite: Bool = false) throws {
        try timeline.checkIsWithin(start)
        if let end { try timeline.checkIsWithin(end) }
        guard end ?? timeline.last >= start else {
            throw ReplayError.emptyRange(start, end ?? timeline.last)
        }
        // A state within an instruction isn't complete without the engine that executes it.
        try timeline.seek(to: start)
        guard timeline.canBeKept else { throw ReplayError.withinInstruction(start) }
        let first = try checkpoint(timeline)
        let reader = timeline.reader
        let parent = TraceParent(name: name, identity: reader.identity, exit: start)
        let memory = timeline.memory
        let writer = try TraceWriter(
            path: path, metadata: [TraceDescription.key: timeline.description, TraceParent.key: parent],
            options: TraceWriterOptions(overwrite: overwrite, firstExit: start), first: first
        ) { emit in try memory.forEachTouchedPage { try Self.emit($0, of: memory, emit) } }
        do {
            let ending = try fill(writer, from: timeline)
            try writer.finish(meta: ending.map { [TraceEnding.key: $0] } ?? [:])
        } catch {
            try? writer.finish()
            unlink(path)
            throw error
        }
    }

    /// Writes what comes after the first checkpoint.
    private func fill(_ writer: TraceWriter, from timeline: Timeline) throws -> TraceEnding? {
        let memory = timeline.memory
        let follower = try timeline.machine.writes.get().follow()
        defer { follower.cancel() }
        var latest = CheckpointID(1)
        var cursor = timeline.reader.cursor()
        try cursor.seek(to: start)
        var interrupts = InterruptCounts()
        var next = checkpointInterval.map { start.rawValue + $0 } ?? .max
        while cursor.exit < end ?? ExitNumber(.max), let event = try cursor.next() {
            try writer.append(event)
            interrupts.count(event.identity.kind)
            guard event.identity.kind.isExit, event.exit.rawValue >= next else { continue }
            next = event.exit.rawValue + (checkpointInterval ?? 0)
            try timeline.seek(to: event.exit)
            guard timeline.canBeKept else { continue }
            var later = try checkpoint(timeline)
            later.parent = latest
            latest = try writer.writeCheckpoint(later) { emit in
                try follower.take { try Self.emit($0, of: memory, emit) }
            }
        }
        guard let end else { return timeline.ending }
        try timeline.seek(to: end)
        return TraceEnding(
            ended: Self.cut, guestStatus: nil, failed: false, detail: nil, exits: end.rawValue,
            digests: try timeline.digests(), interrupts: interrupts, latency: .init(),
            wall: timeline.ending?.wall ?? Nanoseconds(0))
    }

    private static func emit(
        _ page: Int, of memory: GuestMemory, _ body: (UInt64, UnsafeRawPointer) throws(TraceError) -> Void
    ) throws {
        guard let address = memory.address(ofFilePage: page), let bytes = memory.page(page).baseAddress else { return }
        try body(address.rawValue / UInt64(pageSize), bytes)
    }

    /// The state where the timeline stands. Without device state the trace can't go live, only be replayed.
    private func checkpoint(_ timeline: Timeline) throws -> NewCheckpoint {
        let digests = try timeline.digests()
        let stored = timeline.checkpoint(at: timeline.position.exit)
        let devices: Data = if let platform = timeline.platform, timeline.deviceMismatch == nil {
            try JSONEncoder().encode(platform)
        } else if let stored {
            try timeline.reader.state(of: stored.id).devices
        } else {
            Data()
        }
        return NewCheckpoint(
            exit: timeline.position.exit, cpu: Data(try timeline.state().encoded()), devices: devices,
            digests: CheckpointDigests(digests),
            wall: stored?.wall ?? Nanoseconds(0), guest: stored?.guest ?? Nanoseconds(0))
    }
}
